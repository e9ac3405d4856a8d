//! Heads of HTTP/3: what is taken, what ends the stream, what is answered.

use super::*;
use crate::exchange::Scheme;

type Pairs<'a> = &'a [(&'a str, &'a str)];

const LIMITS: HeadLimits = HeadLimits { head_bytes_max: 4096, fields_max: 20, target_bytes_max: 100 };

const GET: Pairs<'static> =
    &[(":method", "GET"), (":scheme", "https"), (":authority", "a.example:81"), (":path", "/x?y=z")];

fn read(fields: Pairs<'_>, has_ended: bool) -> Result<(RequestHead, BodyLength), HeadError> {
    let mut head = RequestHead::new(Scheme::Https);
    read_request(fields, has_ended, &LIMITS, &mut head).map(|length| (head, length))
}

fn with(more: Pairs<'_>) -> Result<(RequestHead, BodyLength), HeadError> {
    read(&[GET, more].concat(), false)
}

#[test]
fn a_head_is_read() {
    let (head, length) =
        with(&[("accept", "*/*"), ("te", "trailers"), ("cookie", "a=b"), ("cookie", "c=d")]).unwrap();
    assert_eq!(
        (head.method, head.authority.as_slice(), head.path.as_slice()),
        (Method::Get, &b"a.example:81"[..], &b"/x?y=z"[..])
    );
    assert_eq!(head.fields.get(Known::Cookie), Some(&b"a=b; c=d"[..]));
    assert_eq!((length, read(GET, true).unwrap().1), (BodyLength::Unknown, BodyLength::Empty));
    let (head, length) =
        with(&[("content-length", "5"), ("expect", "100-continue"), ("host", "A.example:81")]).unwrap();
    assert!(length == BodyLength::Exact(5) && head.expects_continue);
    assert!(!head.fields.contains(Known::ContentLength) && !head.fields.contains(Known::Host));
    let host_only = [(":method", "GET"), (":scheme", "https"), (":path", "/"), ("host", "b")];
    assert_eq!(read(&host_only, true).unwrap().0.authority, b"b");
    assert_eq!(
        read(&[(":method", "OPTIONS"), (":scheme", "https"), (":path", "*"), ("host", "b")], true)
            .unwrap()
            .0
            .path,
        b"*"
    );
    assert_eq!(
        read(&[(":method", "CONNECT"), (":authority", "a:443")], false).unwrap().0.method,
        Method::Connect
    );
}

#[test]
fn malformed_heads_end_the_stream() {
    let cases: &[(Pairs<'_>, &str)] = &[
        (&GET[1..], "missing_method"),
        (&[GET[0], GET[2], GET[3]], "missing_scheme"),
        (&GET[..3], "missing_path"),
        (&[GET[0], GET[1], GET[2], (":path", "")], "missing_path"),
        (&[GET[0], GET[0], GET[1], GET[2], GET[3]], "duplicate_pseudo_field"),
        (&[GET[0], GET[1], GET[2], GET[3], (":protocol", "websocket")], "bad_connect"),
        (&[GET[0], GET[1], GET[2], GET[3], (":status", "200")], "unknown_pseudo_field"),
        (&[GET[0], GET[1], ("accept", "x"), GET[2], GET[3]], "pseudo_field_late"),
        (&[(":method", "G T"), GET[1], GET[2], GET[3]], "bad_method"),
        (&[(":method", "CONNECT"), GET[1], GET[2], GET[3]], "bad_connect"),
        (&[GET[0], GET[1], GET[2], GET[3], ("Accept", "x")], "bad_field_name"),
        (&[GET[0], GET[1], GET[2], GET[3], ("a b", "x")], "bad_field_name"),
        (&[GET[0], GET[1], GET[2], GET[3], ("", "x")], "bad_field_name"),
        (&[GET[0], GET[1], GET[2], GET[3], ("x", "a\r\nb: c")], "bad_field_value"),
        (&[GET[0], GET[1], GET[2], GET[3], ("cookie", "a\0")], "bad_field_value"),
        (&[GET[0], GET[1], GET[2], GET[3], ("connection", "x")], "connection_specific_field"),
        (&[GET[0], GET[1], GET[2], GET[3], ("transfer-encoding", "chunked")], "connection_specific_field"),
        (&[GET[0], GET[1], GET[2], GET[3], ("upgrade", "x")], "connection_specific_field"),
        (&[GET[0], GET[1], GET[2], GET[3], ("te", "gzip")], "connection_specific_field"),
        (&[GET[0], GET[1], GET[2], GET[3], ("content-length", "1")], "body_too_short"),
    ];
    for (fields, detail) in cases {
        let error = read(fields, true).unwrap_err();
        assert!(error.is_malformed && error.error.kind == ErrorKind::BadRequestHead, "{detail}: {error:?}");
        assert_eq!(error.error.detail, *detail);
    }
}

#[test]
fn what_is_wrong_otherwise_gets_an_answer() {
    let long = "x".repeat(5000);
    let path = format!("/{}", "x".repeat(100));
    let many = [("a", "b"); 21];
    let cases: &[(Pairs<'_>, ErrorKind, u16)] = &[
        (&[GET[0], (":scheme", "http"), GET[2], GET[3]], ErrorKind::Misdirected, 421),
        (&[GET[0], GET[1], GET[2], (":path", "x")], ErrorKind::BadRequestHead, 400),
        (&[GET[0], GET[1], GET[2], (":path", "/a#b")], ErrorKind::BadRequestHead, 400),
        (&[GET[0], GET[1], GET[2], (":path", &path)], ErrorKind::TargetTooLong, 414),
        (&[GET[0], GET[1], GET[3]], ErrorKind::BadRequestHead, 400),
        (&[GET[0], GET[1], (":authority", "u@a"), GET[3]], ErrorKind::BadRequestHead, 400),
        (&[GET[0], GET[1], GET[2], GET[3], ("host", "b")], ErrorKind::BadRequestHead, 400),
        (&[GET[0], GET[1], GET[2], GET[3], ("x", &long)], ErrorKind::RequestHeadTooLarge, 431),
        (&[GET, &many].concat(), ErrorKind::TooManyRequestFields, 431),
        (&[GET[0], GET[1], GET[2], GET[3], ("content-length", "+1")], ErrorKind::BadRequestHead, 400),
        (&[GET[0], GET[1], GET[2], GET[3], ("expect", "x")], ErrorKind::ExpectationFailed, 417),
    ];
    for (fields, kind, status) in cases {
        let error = read(fields, false).unwrap_err();
        assert!(!error.is_malformed, "{error:?}");
        assert_eq!((error.error.kind, error.error.status()), (*kind, *status), "{error:?}");
    }
}

#[test]
fn an_extended_connect_is_the_get_that_it_stands_for() {
    let connect = [
        (":method", "CONNECT"),
        GET[1],
        GET[2],
        GET[3],
        (":protocol", "WebSocket"),
        ("sec-websocket-key", "x"),
    ];
    let (head, length) = read(&connect, false).unwrap();
    assert_eq!(
        (head.method, head.upgrade, length),
        (Method::Get, Some(crate::exchange::Upgrade::WebSocket), BodyLength::Empty)
    );
    assert!(head.path == b"/x?y=z" && !head.fields.contains(Known::SecWebSocketKey));
    let other = [(":method", "CONNECT"), GET[1], GET[2], GET[3], (":protocol", "other")];
    assert_eq!(read(&other, false).unwrap_err().error.status(), 501);
}

#[test]
fn a_field_counts_32_bytes_beside_its_own() {
    let text: usize = GET.iter().map(|(name, value)| name.len() + value.len()).sum();
    let room = LIMITS.head_bytes_max - text - 5 * FIELD_OVERHEAD_BYTES - 1;
    let fits = "v".repeat(room);
    assert!(with(&[("x", &fits)]).is_ok());
    assert_eq!(with(&[("x", &format!("{fits}v"))]).unwrap_err().error.kind, ErrorKind::RequestHeadTooLarge);
}

#[test]
fn trailers_lose_what_frames_and_routes() {
    let mut out = Fields::new();
    read_trailers(&[("x-sum", "7"), ("content-length", "9"), ("host", "h")], &LIMITS, &mut out).unwrap();
    assert_eq!(out.iter().map(|(_, name, _)| name).collect::<Vec<_>>(), [b"x-sum"]);
    assert!(read_trailers(&[(":path", "/")], &LIMITS, &mut Fields::new()).unwrap_err().is_malformed);
}

#[test]
fn answers_are_written_without_what_belongs_to_a_connection() {
    let mut head = ResponseHead { status: 200, ..ResponseHead::default() };
    for (name, value) in [("Connection", "x"), ("Server", "s"), ("X-A", "b")] {
        head.fields.push(name.as_bytes(), value.as_bytes()).unwrap();
    }
    let date = b"Thu, 01 Jan 1970 00:00:00 GMT";
    let mut digits = Digits::default();
    let (list, body) = write_response(&head, BodyLength::Exact(12), false, date, &mut digits);
    let expected: Vec<(&[u8], &[u8])> = vec![
        (b":status", b"200"),
        (b"Server", b"s"),
        (b"X-A", b"b"),
        (b"content-length", b"12"),
        (b"date", date),
    ];
    assert_eq!((list, body), (expected, AnswerBody::Data));
    let mut digits = Digits::default();
    let (list, body) = write_response(&head, BodyLength::Empty, false, date, &mut digits);
    assert!(body == AnswerBody::None && list.contains(&(b"content-length", b"0")));
    assert_eq!(write_interim(103, &head.fields, &mut Digits::default()).len(), 3);
}
