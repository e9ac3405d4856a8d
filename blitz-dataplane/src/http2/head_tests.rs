//! Heads by themselves.

use super::*;
use crate::exchange::{Scheme, Upgrade};

fn read(request: http::request::Builder) -> Result<(RequestHead, BodyLength), &'static str> {
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let mut head = RequestHead::new(Scheme::Http);
    let length =
        read_request(&parts, true, &HeadLimits::RECOMMENDED, &mut head).map_err(|error| error.detail)?;
    Ok((head, length))
}

fn get() -> http::request::Builder {
    http::Request::get("http://a.example:81/x?y=z")
}

#[test]
fn a_request_keeps_its_meaning() {
    let (head, length) = read(get().header("accept", "*/*").header("x-a", "1").header("x-a", "2")).unwrap();
    assert_eq!(head.method, Method::Get);
    assert_eq!((head.authority.as_slice(), head.path.as_slice()), (&b"a.example:81"[..], &b"/x?y=z"[..]));
    assert_eq!(length, BodyLength::Empty);
    let fields: Vec<_> = head.fields.iter().map(|(_, name, value)| (name, value)).collect();
    assert_eq!(fields, [(&b"accept"[..], &b"*/*"[..]), (b"x-a", b"1"), (b"x-a", b"2")]);
}

#[test]
fn crumbs_are_one_cookie() {
    let (head, _) =
        read(get().header("cookie", "a=b").header("x", "y").header("cookie", "c=d").header("cookie", "e"))
            .unwrap();
    let cookies: Vec<_> = head.fields.get_all(Known::Cookie).collect();
    assert_eq!(cookies, [b"a=b; c=d; e"]);
}

#[test]
fn what_has_two_meanings_is_refused() {
    assert_eq!(read(get().header("host", "a.example:81")).map(|(head, _)| head.fields.len()), Ok(0));
    for (request, detail) in [
        (get().header("host", "b.example"), "host_mismatch"),
        (get().header("host", "a b"), "bad_host"),
        (get().header("content-length", "5").header("content-length", "5"), "duplicate_length"),
        (get().header("content-length", "5, 5"), "bad_length"),
        (get().header("content-length", "18446744073709551616"), "bad_length"),
        (http::Request::get("/x"), "missing_host"),
        (http::Request::get("https://a/"), "scheme_mismatch"),
        (http::Request::get("ftp://a/"), "scheme_mismatch"),
        (http::Request::get("http://u@a/"), "bad_host"),
        (get().header("expect", "more"), "expectation_failed"),
    ] {
        assert_eq!(read(request).map(|_| ()), Err(detail));
    }
}

#[test]
fn a_head_at_the_limit_passes_and_one_beyond_does_not() {
    let limits = HeadLimits::RECOMMENDED;
    let sized = |bytes: usize| read(get().header("x", "y".repeat(bytes))).map(|_| ());
    // Pseudo-header fields with their values, and 32 for each of five fields.
    let rest = ":methodGET:schemehttp:authoritya.example:81:path/x?y=zx".len() + 5 * FIELD_OVERHEAD_BYTES;
    assert_eq!(sized(limits.head_bytes_max - rest), Ok(()));
    assert_eq!(sized(limits.head_bytes_max - rest + 1), Err("request_head_too_large"));
    let many = |count: usize| read((0..count).fold(get(), |request, _| request.header("x", "y"))).map(|_| ());
    assert_eq!(many(limits.fields_max), Ok(()));
    assert_eq!(many(limits.fields_max + 1), Err("too_many_request_fields"));
}

#[test]
fn an_answer_says_of_its_body_what_follows() {
    let write = |status, length, is_head_request| {
        let mut fields = Fields::new();
        fields.push(b"Connection", b"close").unwrap();
        fields.push(b"X-A", b"b").unwrap();
        let (response, body) = write_response(
            &ResponseHead { status, fields },
            length,
            is_head_request,
            b"Sun, 06 Nov 1994 08:49:37 GMT",
        )
        .unwrap();
        assert_eq!(response.headers().get("connection"), None);
        assert_eq!(response.headers().get("x-a").unwrap(), "b");
        assert!(response.headers().contains_key("date"));
        let length = response.headers().get("content-length").map(|value| value.to_str().unwrap().to_owned());
        (length, body == AnswerBody::Data)
    };
    assert_eq!(write(200, BodyLength::Exact(5), false), (Some("5".to_owned()), true));
    assert_eq!(write(200, BodyLength::Exact(5), true), (Some("5".to_owned()), false));
    assert_eq!(write(200, BodyLength::Unknown, false), (None, true));
    assert_eq!(write(200, BodyLength::Empty, false), (Some("0".to_owned()), false));
    assert_eq!(write(204, BodyLength::Empty, false), (None, false));
    assert_eq!(write(304, BodyLength::Exact(7), false), (None, false));
}

fn connect(protocol: &'static str) -> http::request::Builder {
    http::Request::connect("http://a.example/chat?x").extension(h2::ext::Protocol::from_static(protocol))
}

#[test]
fn an_extended_connect_is_the_get_that_it_stands_for() {
    let request = connect("WebSocket")
        .header("sec-websocket-key", "the client's")
        .header("sec-websocket-accept", "x")
        .header("sec-websocket-version", "13");
    let (head, length) = read(request).unwrap();
    assert_eq!((head.method, head.upgrade), (Method::Get, Some(Upgrade::WebSocket)));
    assert_eq!((head.authority.as_slice(), head.path.as_slice()), (&b"a.example"[..], &b"/chat?x"[..]));
    assert_eq!(length, BodyLength::Empty);
    let fields: Vec<_> = head.fields.iter().map(|(known, ..)| known).collect();
    assert_eq!(fields, [Known::SecWebSocketVersion]);
    assert_eq!(read(connect("websocket").header("content-length", "0")), Err("bad_length"));
    for protocol in ["", "connect-udp", "websocket/13"] {
        assert_eq!(read(connect(protocol)), Err("connect_protocol"), "{protocol}");
    }
}

#[test]
fn a_switch_is_a_200_without_the_words_of_http_1() {
    let mut head = ResponseHead { status: 101, ..ResponseHead::default() };
    for (name, value) in [
        ("Connection", "upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Accept", "x"),
        ("Sec-WebSocket-Protocol", "chat"),
    ] {
        head.fields.push(name.as_bytes(), value.as_bytes()).unwrap();
    }
    let response = write_switch(&head).unwrap();
    assert_eq!((response.status(), response.headers().len()), (StatusCode::OK, 1));
    assert_eq!(response.headers().get("sec-websocket-protocol").unwrap(), "chat");
}
