//! Unit and property tests of field sections.

use proptest::prelude::*;

use super::*;

fn wire(fields: &Fields, except: KnownSet) -> Vec<u8> {
    fields.wire_runs(except).collect::<Vec<_>>().concat()
}

#[test]
fn every_known_field_is_found_in_any_case() {
    for known in Known::ALL {
        assert_eq!(Known::lookup(known.name().as_bytes()), *known, "{}", known.name());
        assert_eq!(Known::lookup(known.name().to_lowercase().as_bytes()), *known);
        assert_eq!(Known::lookup(known.name().to_uppercase().as_bytes()), *known);
        assert_eq!(Known::lookup(format!("{}x", known.name()).as_bytes()), Known::Other);
        let mut changed = known.name().as_bytes().to_vec();
        if let Some(last) = changed.last_mut() {
            *last = b'!';
        }
        assert_eq!(Known::lookup(&changed), Known::Other);
    }
    assert_eq!(Known::lookup(b""), Known::Other);
    // Bytes that differ from a letter or hyphen only in the case bit.
    assert_eq!(Known::lookup(b"keep\x0dalive"), Known::Other);
}

#[test]
fn a_value_cannot_end_a_field() {
    let mut fields = Fields::new();
    for value in [&b"a\r\nHost: evil"[..], b"a\nb", b"a\rb", b"a\0b", b"\x7f"] {
        assert_eq!(fields.push(b"X", value), Err(FieldError::Value));
        assert_eq!(fields.push_known(Known::Via, value), Err(FieldError::Value));
        assert_eq!(fields.push_known_parts(Known::Via, &[b"ok", value]), Err(FieldError::Value));
    }
    for name in [&b""[..], b"a b", b"a:", b"a\r\n", b"\xe9", b" a"] {
        assert_eq!(fields.push(name, b"x"), Err(FieldError::Name));
    }
    assert_eq!(fields.push_known(Known::Other, b"x"), Err(FieldError::Name));
    assert!(fields.is_empty());
    assert_eq!(fields.bytes_len(), 0);
}

#[test]
fn a_full_section_takes_no_more() {
    let mut fields = Fields::new();
    let value = vec![b'a'; SECTION_BYTES_MAX - 5];
    assert_eq!(fields.push(b"X", &value), Ok(()));
    assert_eq!(fields.push(b"X", b""), Err(FieldError::SectionFull));
    fields.clear();
    assert_eq!(fields.push(b"X", b""), Ok(()));
    assert!(fields.bytes.capacity() <= RETAINED_BYTES_MAX);
    for _ in 0..RETAINED_LINES_MAX * 4 {
        fields.push(b"X", b"").unwrap();
    }
    fields.clear();
    assert!(fields.entries.capacity() <= RETAINED_LINES_MAX);
}

#[test]
fn removal_leaves_the_others_in_order() {
    let mut fields = Fields::new();
    for (name, value) in [("Host", "a"), ("X", "1"), ("Via", "b"), ("Y", "2"), ("x", "3"), ("via", "c")] {
        fields.push(name.as_bytes(), value.as_bytes()).unwrap();
    }
    assert_eq!(fields.get_all(Known::Via).collect::<Vec<_>>(), [b"b", b"c"]);
    assert_eq!(fields.occurrence(Known::Via), Occurrence::Repeated);
    assert_eq!(fields.occurrence(Known::Host), Occurrence::Once(b"a"));
    assert_eq!(wire(&fields, KnownSet::of(&[Known::Via])), b"Host: a\r\nX: 1\r\nY: 2\r\nx: 3\r\n");
    assert_eq!(fields.wire_runs(KnownSet::of(&[Known::Via])).count(), 2);
    assert_eq!(fields.wire_runs(KnownSet::EMPTY).count(), 1);
    assert_eq!(fields.remove(Known::Via), 2);
    assert_eq!(fields.remove(Known::Via), 0);
    assert_eq!(fields.occurrence(Known::Via), Occurrence::Absent);
    assert_eq!(fields.remove_named(b"X"), 2);
    assert_eq!(fields.remove_named(b"HOST"), 1);
    assert_eq!(wire(&fields, KnownSet::EMPTY), b"Y: 2\r\n");
    assert_eq!((fields.len(), fields.bytes_len()), (1, 6));
    assert!(fields.contains(Known::Other));
    assert_eq!(fields.remove_named(b"y"), 1);
    assert!(!fields.contains(Known::Other));
    assert_eq!(fields.wire_runs(KnownSet::EMPTY).count(), 0);
}

#[test]
fn a_prepared_section_is_appended_line_by_line() {
    let mut prepared = Fields::new();
    prepared.push(b"Via", b"1.1 x").unwrap();
    prepared.push(b"Y", b"2").unwrap();
    let mut fields = Fields::new();
    fields.push(b"X", b"1").unwrap();
    fields.extend(&prepared).unwrap();
    prepared.remove(Known::Via);
    fields.extend(&prepared).unwrap();
    assert_eq!(wire(&fields, KnownSet::EMPTY), b"X: 1\r\nVia: 1.1 x\r\nY: 2\r\nY: 2\r\n");
    assert_eq!((fields.len(), fields.get(Known::Via)), (4, Some(&b"1.1 x"[..])));
    let mut full = Fields::new();
    full.push(b"X", &vec![b'a'; SECTION_BYTES_MAX - 5]).unwrap();
    assert_eq!(full.extend(&prepared), Err(FieldError::SectionFull));
    assert_eq!(full.len(), 1);
}

#[test]
fn storage_is_reused() {
    let mut fields = Fields::new();
    let mut storage = None;
    for round in 0..100_u32 {
        fields.clear();
        for line in 0..10 {
            fields.push(b"X-Name", format!("{:010}", round + line).as_bytes()).unwrap();
        }
        let now = (fields.bytes.as_ptr(), fields.entries.as_ptr());
        assert_eq!(*storage.get_or_insert(now), now, "allocated again in round {round}");
    }
}

#[test]
fn keep_last_keeps_the_last() {
    let mut fields = Fields::new();
    for value in ["1", "2", "3"] {
        fields.push_known(Known::XForwardedFor, value.as_bytes()).unwrap();
    }
    fields.keep_last(Known::XForwardedFor);
    assert_eq!(wire(&fields, KnownSet::EMPTY), b"X-Forwarded-For: 3\r\n");
    assert_eq!((fields.len(), fields.occurrence(Known::XForwardedFor)), (1, Occurrence::Once(b"3")));
}

#[test]
fn heads_with_bare_lf_or_foreign_headers_are_refused() {
    let mut fields = Fields::new();
    for head in [
        &b"GET / HTTP/1.1\r\nA: 1\nB: 2\r\n\r\n"[..],
        b"GET / HTTP/1.1\nA: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: 1\n\r\n",
    ] {
        let mut room = [httparse::EMPTY_HEADER; 4];
        let mut request = httparse::Request::new(&mut room);
        let parsed = request.parse(head).expect("httparse takes bare LFs");
        assert!(parsed.is_complete());
        assert_eq!(fields.set_from_head(head, request.headers), Err(FieldError::Layout));
        assert!(fields.is_empty());
    }
    let foreign = [httparse::Header { name: "A", value: b"1" }];
    assert_eq!(fields.set_from_head(b"GET / HTTP/1.1\r\nA: 1\r\n\r\n", &foreign), Err(FieldError::Layout));
}

#[test]
fn list_members_follow_quotes_and_skip_empty_ones() {
    let members = |value: &'static str| {
        list_members(value.as_bytes()).map(|m| String::from_utf8_lossy(m)).collect::<Vec<_>>()
    };
    assert_eq!(members(""), Vec::<String>::new());
    assert_eq!(members(" , ,"), Vec::<String>::new());
    assert_eq!(members("a"), ["a"]);
    assert_eq!(members("a,b ,\tc,"), ["a", "b", "c"]);
    assert_eq!(members(r#"a="x,\"y,",b"#), [r#"a="x,\"y,""#, "b"]);
    assert_eq!(members(r#"a="x,b"#), [r#"a="x,b"#]);
    assert!(has_token(b"keep-alive, Close", b"close"));
    assert!(!has_token(b"keep-alive, closed", b"close"));
}

proptest! {
    #[test]
    fn pushed_lines_come_back_and_parse_back(
        lines in prop::collection::vec(("[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}", "[\\x21-\\x7e]{0,6}[ \t]?[\\x21-\\x7e]{0,20}"), 0..12),
        removed in 0_usize..12,
    ) {
        let mut fields = Fields::new();
        for (name, value) in &lines {
            fields.push(name.as_bytes(), value.as_bytes()).unwrap();
        }
        let pairs = lines.iter().map(|(name, value)| (name.as_bytes(), trim_ows(value.as_bytes())));
        let expected: Vec<_> = pairs.collect();
        prop_assert_eq!(fields.iter().map(|(_, name, value)| (name, value)).collect::<Vec<_>>(), expected);
        prop_assert_eq!(fields.bytes_len(), wire(&fields, KnownSet::EMPTY).len());

        if let Some((name, _)) = lines.get(removed) {
            let count = lines.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name)).count();
            prop_assert_eq!(fields.remove_named(name.as_bytes()), count);
            prop_assert!(fields.get_named(name.as_bytes()).is_none());
            prop_assert_eq!(fields.len(), lines.len() - count);
        }
        let mut head = b"GET / HTTP/1.1\r\n".to_vec();
        head.extend(wire(&fields, KnownSet::EMPTY));
        head.extend(b"\r\n");
        let mut room = [httparse::EMPTY_HEADER; 16];
        let mut request = httparse::Request::new(&mut room);
        prop_assert_eq!(request.parse(&head), Ok(httparse::Status::Complete(head.len())));
        let mut again = Fields::new();
        prop_assert_eq!(again.set_from_head(&head, request.headers), Ok(()));
        prop_assert_eq!(wire(&again, KnownSet::EMPTY), wire(&fields, KnownSet::EMPTY));
        prop_assert_eq!(&again, &fields);
    }

    #[test]
    fn no_push_lets_a_line_end_inside(
        name in prop::collection::vec(any::<u8>(), 0..8),
        value in prop::collection::vec(any::<u8>(), 0..16),
    ) {
        let mut fields = Fields::new();
        if fields.push(&name, &value).is_ok() {
            let wire = wire(&fields, KnownSet::EMPTY);
            prop_assert_eq!(wire.iter().filter(|byte| matches!(byte, b'\r' | b'\n' | b'\0')).count(), 2);
            prop_assert!(wire.ends_with(b"\r\n"));
        }
    }
}
