//! Unit and property tests of the codec as a whole; the corpus is replayed by `corpus.rs`.

use super::*;
use crate::exchange::{BodyLength, Method, RequestHead, ResponseHead, Scheme};
use crate::fields::Known;

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
    write_response_head(&mut wire, 200, &out.fields, body, connection, b"Thu, 01 Jan 1970 00:00:00 GMT");
    assert_eq!(
        wire,
        b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nServer: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
}
