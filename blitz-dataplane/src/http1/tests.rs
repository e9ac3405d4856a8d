//! Unit and property tests of the codec as a whole; the corpus is replayed by `corpus.rs`.

use proptest::prelude::*;

use super::replay::{Kind, Transcript, replay};
use super::*;
use crate::exchange::{BodyLength, Method, RequestHead, ResponseHead, Scheme, Upgrade};
use crate::fields::{Fields, Known};

fn request(head: &[u8]) -> Result<(RequestHead, RequestFraming), H1Error> {
    let mut out = RequestHead::new(Scheme::Http);
    parse_request(head, &HeadLimits::RECOMMENDED, &mut out).map(|framing| (out, framing))
}

#[test]
fn a_request_is_taken_apart() {
    let head = b"POST /a?b HTTP/1.1\r\nHost: example.com:8080\r\nAccept: */*\r\nContent-Length: 5\r\nX:\r\nY:  1 \r\n\r\n";
    let (out, framing) = request(head).unwrap();
    assert_eq!(out.method, Method::Post);
    assert_eq!(out.authority, b"example.com:8080");
    assert_eq!(out.path, b"/a?b");
    assert_eq!((out.path_only(), out.query()), (&b"/a"[..], Some(&b"b"[..])));
    assert_eq!(framing.body, BodyFraming::Exact(5));
    assert!(framing.keep_alive);
    let fields: Vec<_> = out.fields.iter().collect();
    assert_eq!(
        fields,
        [(Known::Accept, &b"Accept"[..], &b"*/*"[..]), (Known::Other, b"X", b""), (Known::Other, b"Y", b"1"),]
    );
    let mut wire = Vec::new();
    assert_eq!(write_request_head(&mut wire, &out, framing.body_length()), BodyFraming::Exact(5));
    assert_eq!(
        wire,
        b"POST /a?b HTTP/1.1\r\nHost: example.com:8080\r\nAccept: */*\r\nX:\r\nY:  1 \r\nContent-Length: 5\r\n\r\n"
    );
}

#[test]
fn a_switch_is_asked_for_by_a_bare_get_of_http_1_1_that_names_what_is_known() {
    let asked = |start: &str, fields: &str| {
        let head = format!("{start}\r\nHost: a\r\n{fields}\r\n");
        request(head.as_bytes()).unwrap().0.upgrade
    };
    let both = "Connection: close, Upgrade\r\nUpgrade: h2c, WebSocket\r\n";
    assert_eq!(asked("GET / HTTP/1.1", both), Some(Upgrade::WebSocket));
    assert_eq!(asked("GET / HTTP/1.1", &format!("{both}Content-Length: 0\r\n")), Some(Upgrade::WebSocket));
    for (start, fields) in [
        ("GET / HTTP/1.0", both.to_owned()),
        ("HEAD / HTTP/1.1", both.to_owned()),
        ("POST / HTTP/1.1", both.to_owned()),
        ("GET / HTTP/1.1", format!("{both}Content-Length: 1\r\n")),
        ("GET / HTTP/1.1", format!("{both}Transfer-Encoding: chunked\r\n")),
        ("GET / HTTP/1.1", "Upgrade: websocket\r\n".to_owned()),
        ("GET / HTTP/1.1", "Connection: upgrade\r\n".to_owned()),
        ("GET / HTTP/1.1", "Connection: upgrade\r\nUpgrade: h2c\r\n".to_owned()),
    ] {
        assert_eq!(asked(start, &fields), None, "{start} {fields}");
    }
}

#[test]
fn a_response_is_taken_apart() {
    let mut out = ResponseHead::default();
    let head = b"HTTP/1.1 200 Fine\r\nTransfer-Encoding: Chunked\r\nServer: x\r\n\r\n";
    let framing = parse_response(head, &HeadLimits::RECOMMENDED, &Method::Get, &mut out).unwrap();
    assert_eq!(framing.body, BodyFraming::Chunked);
    assert_eq!(framing.body_length(), BodyLength::Unknown);
    assert_eq!(out.status, 200);
    let mut wire = Vec::new();
    let body = ResponseBody::choose(200, false, framing.body_length(), Version::Http11);
    let connection = ConnectionField::choose(false, Version::Http11, body);
    write_response_head(
        &mut wire,
        200,
        &out.fields,
        body,
        connection,
        b"Thu, 01 Jan 1970 00:00:00 GMT",
        None,
    );
    assert_eq!(
        wire,
        b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nServer: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
}

/// What a connection would make of the bytes, in one piece.
fn chunks(bytes: &[u8]) -> Transcript {
    replay(Kind::Chunked, &HeadLimits::RECOMMENDED, bytes, &mut || usize::MAX)
}

#[test]
fn chunk_extensions_are_bounded_for_the_body_too() {
    let chunk = format!("1;{}\r\na\r\n", "x".repeat(200));
    let fits = EXTENSION_BYTES_PER_BODY_MAX as usize / 201;
    assert!(chunks((chunk.repeat(fits) + "0\r\n\r\n").as_bytes()).complete);
    let flood = chunks((chunk.repeat(fits + 1) + "0\r\n\r\n").as_bytes());
    assert_eq!(flood.error, Some(H1Error::ChunkExtensionTooLong));
}

#[test]
fn trailers_are_bounded_in_bytes() {
    let with_value = |bytes: usize| format!("0\r\nX: {}\r\n\r\n", "a".repeat(bytes));
    assert!(chunks(with_value(TRAILER_BYTES_MAX - 5).as_bytes()).complete);
    assert_eq!(chunks(with_value(TRAILER_BYTES_MAX - 4).as_bytes()).error, Some(H1Error::TrailersTooLarge));
}

#[test]
fn the_scanner_looks_at_each_byte_once() {
    // 1 MiB byte by byte: quadratic work would be 2^39 looks and not end.
    let mut scanner = HeadScanner::new(HeadKind::Request, 2 << 20);
    let bytes = vec![b'a'; 1 << 20];
    for end in 1..=bytes.len() {
        assert_eq!(scanner.scan(&bytes[..end]), Ok(Scan::Partial));
    }
}

#[test]
fn the_scanner_says_whether_a_request_has_begun() {
    let mut scanner = HeadScanner::new(HeadKind::Request, 1024);
    assert!(!scanner.has_begun());
    assert_eq!(scanner.scan(b"\r\n"), Ok(Scan::Partial));
    assert!(!scanner.has_begun());
    assert_eq!(scanner.scan(b"\r\nG"), Ok(Scan::Partial));
    assert!(scanner.has_begun());
    scanner.reset();
    assert!(!scanner.has_begun());
}

#[test]
fn the_parser_relies_on_no_scanner() {
    for (head, error) in [
        (&b"GET / HTTP/1.1\nHost: a\r\n\r\n"[..], H1Error::BareLf),
        (b"GET / HTTP/1.1\r\nHost: a\n\r\n", H1Error::BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", H1Error::BareLf),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", H1Error::BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\nX\r\n\r\n", H1Error::BadHead),
        (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", H1Error::BadHead),
        (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", H1Error::BadHead),
        (b"", H1Error::BadHead),
        (b"\r\n\r\n", H1Error::BadHead),
    ] {
        assert_eq!(request(head).err(), Some(error), "{}", head.escape_ascii());
    }
    let mut out = ResponseHead::default();
    let head = b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n";
    assert_eq!(parse_response(head, &HeadLimits::RECOMMENDED, &Method::Get, &mut out), Err(H1Error::BareLf));
}

#[test]
fn connect_and_trace_are_refused_by_policy() {
    assert_eq!(refuse_method(&Method::Connect).map(|error| error.status()), Some(501));
    assert_eq!(refuse_method(&Method::Trace).map(|error| error.status()), Some(405));
    assert_eq!(refuse_method(&Method::Get), None);
}

#[test]
fn https_targets_need_an_https_connection() {
    let head = b"GET https://b/ HTTP/1.1\r\nHost: b\r\n\r\n";
    let mut out = RequestHead::new(Scheme::Https);
    assert!(parse_request(head, &HeadLimits::RECOMMENDED, &mut out).is_ok());
    assert_eq!(request(head).err(), Some(H1Error::SchemeMismatch));
    assert_eq!(H1Error::SchemeMismatch.request_status(), 421);
}

#[test]
fn a_head_is_reused_without_a_trace_of_the_last_one() {
    let mut out = RequestHead::new(Scheme::Http);
    let first = b"POST /first HTTP/1.1\r\nHost: first\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\nX: 1\r\n\r\n";
    parse_request(first, &HeadLimits::RECOMMENDED, &mut out).unwrap();
    let second = b"GET / HTTP/1.0\r\n\r\n";
    parse_request(second, &HeadLimits::RECOMMENDED, &mut out).unwrap();
    assert_eq!(out, RequestHead { path: b"/".to_vec(), ..RequestHead::new(Scheme::Http) });
}

#[test]
fn responses_say_how_their_body_ends() {
    let choose = ResponseBody::choose;
    assert_eq!(choose(200, true, BodyLength::Exact(5), Version::Http11), ResponseBody::Omitted);
    assert_eq!(choose(304, false, BodyLength::Empty, Version::Http11), ResponseBody::Omitted);
    assert_eq!(choose(200, false, BodyLength::Empty, Version::Http11), ResponseBody::Exact(0));
    assert_eq!(choose(200, false, BodyLength::Unknown, Version::Http11), ResponseBody::Chunked);
    assert_eq!(choose(200, false, BodyLength::Unknown, Version::Http10), ResponseBody::UntilClose);
    let connection = ConnectionField::choose;
    assert_eq!(connection(true, Version::Http11, ResponseBody::Exact(1)), ConnectionField::Silent);
    assert_eq!(connection(true, Version::Http10, ResponseBody::Exact(1)), ConnectionField::KeepAlive);
    assert_eq!(connection(true, Version::Http10, ResponseBody::UntilClose), ConnectionField::Close);
    assert_eq!(connection(false, Version::Http11, ResponseBody::Chunked), ConnectionField::Close);
}

#[test]
fn the_encoder_never_lets_a_field_contradict_the_framing() {
    let mut fields = Fields::new();
    for (name, value) in
        [("Content-Length", "7"), ("Transfer-Encoding", "chunked"), ("Connection", "x"), ("Date", "d")]
    {
        fields.push(name.as_bytes(), value.as_bytes()).unwrap();
    }
    let date = b"Thu, 01 Jan 1970 00:00:00 GMT";
    let write = |status, body, connection| {
        let mut out = Vec::new();
        write_response_head(&mut out, status, &fields, body, connection, date, None);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        write(200, ResponseBody::Exact(3), ConnectionField::Close),
        "HTTP/1.1 200 OK\r\nDate: d\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(
        write(304, ResponseBody::Omitted, ConnectionField::Silent),
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nConnection: x\r\nDate: d\r\n\r\n"
    );
    assert_eq!(
        write(204, ResponseBody::Omitted, ConnectionField::KeepAlive),
        "HTTP/1.1 204 No Content\r\nDate: d\r\nConnection: keep-alive\r\n\r\n"
    );
    assert_eq!(
        write(299, ResponseBody::UntilClose, ConnectionField::Close),
        "HTTP/1.1 299 \r\nDate: d\r\nConnection: close\r\n\r\n"
    );
    let mut out = Vec::new();
    write_interim_head(&mut out, 101, &fields);
    assert_eq!(out, b"HTTP/1.1 101 Switching Protocols\r\nConnection: x\r\nDate: d\r\n\r\n");
}

#[test]
fn empty_bodies_are_said_only_where_one_is_anticipated() {
    for (method, length, framing) in [
        ("GET", "", BodyFraming::Empty),
        ("DELETE", "", BodyFraming::Empty),
        ("POST", "Content-Length: 0\r\n", BodyFraming::Exact(0)),
    ] {
        let head = RequestHead {
            method: Method::from_bytes(method.as_bytes()).unwrap(),
            path: b"/".to_vec(),
            ..RequestHead::default()
        };
        let mut out = Vec::new();
        assert_eq!(write_request_head(&mut out, &head, BodyLength::Empty), framing);
        assert_eq!(String::from_utf8(out).unwrap(), format!("{method} / HTTP/1.1\r\nHost: \r\n{length}\r\n"));
    }
}

#[test]
fn chunk_sizes_are_written_in_hexadecimal() {
    for (length, text) in [
        (0, ""),
        (1, "1\r\n"),
        (15, "f\r\n"),
        (16, "10\r\n"),
        (0xabcdef, "abcdef\r\n"),
        (usize::MAX, "ffffffffffffffff\r\n"),
    ] {
        let mut out = Vec::new();
        write_chunk_head(&mut out, length);
        assert_eq!(out, text.as_bytes());
    }
}

#[test]
fn every_error_has_a_label_of_its_own_and_a_row_for_each_side() {
    let labels: std::collections::HashSet<_> = H1Error::ALL.iter().map(|error| error.label()).collect();
    assert_eq!(labels.len(), H1Error::ALL.len());
    for error in H1Error::ALL {
        assert_eq!(error.in_request().detail, error.label());
        assert_eq!(error.in_response().side(), crate::exchange::Side::Upstream);
    }
}

/// The seeds of the fuzz targets, replayed in the ordinary test run.
#[test]
fn fuzz_seeds_hold_their_properties() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    for (target, hook) in [
        ("request_head", fuzz::request_head as fn(&[u8])),
        ("response_head", fuzz::response_head),
        ("chunked", fuzz::chunked),
        ("canary", fuzz::canary),
    ] {
        let seeds: Vec<_> =
            std::fs::read_dir(root.join(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!seeds.is_empty(), "no seeds for {target}");
        for seed in seeds {
            hook(&std::fs::read(seed).unwrap());
        }
    }
}

#[test]
#[should_panic(expected = "the canary is found")]
fn the_canary_fails_on_its_planted_input() {
    fuzz::canary(b"BLITZ");
}

/// Bytes that look like a head: pieces of valid and invalid ones in any order.
fn head_like(start_lines: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        "Host: a\r\n",
        "Host: b:80\r\n",
        "Content-Length: 3\r\n",
        "Content-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Connection: close, X\r\n",
        "Connection: upgrade\r\n",
        "Upgrade: h2c\r\n",
        "Expect: 100-continue\r\n",
        "X: y\r\n",
        "X:\r\n",
        "X: y\n",
        " fold\r\n",
        "\r",
        "\n",
        "\0",
        "X : y\r\n",
        "\u{e9}: x\r\n",
        "\r\n",
        "abc",
        "3\r\nabc\r\n",
        "0\r\n\r\n",
        "0\r\nT: u\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ":",
        " ",
        "\t",
    ]);
    (
        prop::sample::select(start_lines),
        prop::collection::vec(pieces, 0..8),
        any::<bool>(),
        any::<prop::sample::Index>(),
        any::<u8>(),
    )
        .prop_map(|(line, pieces, mutates, at, byte)| {
            let mut bytes = line.as_bytes().to_vec();
            bytes.extend(pieces.concat().into_bytes());
            bytes.extend(b"\r\n");
            if mutates {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn requests_do_not_depend_on_the_split(
        bytes in head_like(&["GET / HTTP/1.1\r\n", "POST /a HTTP/1.1\r\nHost: a\r\n", "GET http://h/x HTTP/1.1\r\n", "OPTIONS * HTTP/1.0\r\n", "\r\nGET / HTTP/1.1\r\n"]),
        seed in any::<u8>(),
    ) {
        let mut data = vec![seed];
        data.extend(bytes);
        fuzz::request_head(&data);
    }

    #[test]
    fn responses_do_not_depend_on_the_split(
        bytes in head_like(&["HTTP/1.1 200 OK\r\n", "HTTP/1.0 200\r\n", "HTTP/1.1 204 \r\n", "HTTP/1.1 304 Not Modified\r\n", "HTTP/1.1 101 X\r\n"]),
        seed in any::<[u8; 2]>(),
    ) {
        let mut data = seed.to_vec();
        data.extend(bytes);
        fuzz::response_head(&data);
    }

    #[test]
    fn chunked_bodies_do_not_depend_on_the_split(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "3\r\nabc\r\n", "1\r\na\r\n", "0\r\n", "\r\n", "X: y\r\n", ";a=b", ";a=\"b\"", "a", "\n", "\r", "0", " ", "Host: a\r\n", "5;x\r\nhello\r\n",
        ]), 0..10),
        seed in any::<u8>(),
    ) {
        let mut data = vec![seed];
        data.extend(pieces.concat().into_bytes());
        fuzz::chunked(&data);
    }

    #[test]
    fn any_bytes_are_safe(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz::request_head(&bytes);
        fuzz::response_head(&bytes);
        fuzz::chunked(&bytes);
    }
}
