//! Heads of the upstream end by themselves.

use super::*;

const ENDPOINT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

fn request(path: &str) -> RequestHead {
    RequestHead {
        authority: b"a.example:81".to_vec(),
        path: path.as_bytes().to_vec(),
        ..RequestHead::new(Scheme::Https)
    }
}

fn written(head: &RequestHead, length: BodyLength) -> Request<()> {
    write_request(head, length, Scheme::Http, ENDPOINT).unwrap()
}

fn read(answer: http::response::Builder, has_ended: bool) -> Result<(ResponseHead, BodyLength), ProxyError> {
    let (parts, ()) = answer.body(()).unwrap().into_parts();
    let mut head = ResponseHead::default();
    let length = read_response(&parts, has_ended, &Method::Get, &HeadLimits::RECOMMENDED, &mut head)?;
    Ok((head, length))
}

#[test]
fn the_scheme_is_the_connections() {
    let sent = written(&request("/x?y=z"), BodyLength::Empty);
    assert_eq!(sent.uri().to_string(), "http://a.example:81/x?y=z");
}

#[test]
fn who_names_no_host_gets_the_endpoints() {
    let mut head = request("/");
    head.authority.clear();
    assert_eq!(written(&head, BodyLength::Empty).uri().to_string(), "http://127.0.0.1:8080/");
}

#[test]
fn octets_that_a_uri_does_not_have_are_escaped() {
    let sent = written(&request("/a<b>`c\\^d?e=<f>&g=%41"), BodyLength::Empty);
    assert_eq!(sent.uri().path_and_query().unwrap(), "/a%3Cb%3E%60c%5C%5Ed?e=%3Cf%3E&g=%41");
    // What the crate takes stays as it is.
    for path in ["/%zz", "/a|b\"{c}", "/\u{e9}", "//x"] {
        assert_eq!(written(&request(path), BodyLength::Empty).uri().path_and_query().unwrap(), path);
    }
}

#[test]
fn options_of_the_server_keeps_its_asterisk() {
    let mut head = request("*");
    head.method = Method::Options;
    assert_eq!(written(&head, BodyLength::Empty).uri().path(), "*");
}

#[test]
fn connection_fields_end_here_and_te_says_trailers() {
    let mut head = request("/");
    head.fields.push_known(Known::Te, b"trailers").unwrap();
    head.fields.push_known(Known::Connection, b"te").unwrap();
    head.fields.push(b"x-a", b"1").unwrap();
    let sent = written(&head, BodyLength::Empty);
    let fields: Vec<_> =
        sent.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(fields, [("x-a", &b"1"[..]), ("te", b"trailers")]);
}

#[test]
fn the_length_is_said_where_it_is_known() {
    let length = |method: Method, length| {
        let head = RequestHead { method, ..request("/") };
        let sent = written(&head, length);
        sent.headers().get("content-length").map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(length(Method::Get, BodyLength::Empty), None);
    assert_eq!(length(Method::Post, BodyLength::Empty).as_deref(), Some("0"));
    assert_eq!(length(Method::Get, BodyLength::Exact(7)).as_deref(), Some("7"));
    assert_eq!(length(Method::Post, BodyLength::Unknown), None);
}

#[test]
fn an_answer_keeps_its_meaning() {
    let answer =
        http::Response::builder().status(200).header("content-length", "5").header("set-cookie", "a=b");
    let (head, length) = read(answer.header("set-cookie", "c"), false).unwrap();
    assert_eq!((head.status, length), (200, BodyLength::Exact(5)));
    let cookies: Vec<_> = head.fields.iter().map(|(_, name, value)| (name, value)).collect();
    assert_eq!(cookies, [(&b"set-cookie"[..], &b"a=b"[..]), (b"set-cookie", b"c")]);
    let of = |status, has_ended| read(http::Response::builder().status(status), has_ended).unwrap().1;
    assert_eq!(of(200, false), BodyLength::Unknown);
    assert_eq!(of(200, true), BodyLength::Empty);
    assert_eq!(of(204, true), BodyLength::Empty);
}

#[test]
fn a_length_that_describes_another_body_is_kept() {
    let (head, length) =
        read(http::Response::builder().status(304).header("content-length", "5"), true).unwrap();
    assert_eq!(length, BodyLength::Empty);
    assert_eq!(head.fields.get(Known::ContentLength), Some(&b"5"[..]));
}

#[test]
fn what_breaks_the_rules_is_the_endpoints() {
    let of =
        |answer: http::response::Builder| read(answer, false).map_err(|error| (error.kind, error.detail));
    let ok = || http::Response::builder().status(200);
    let bad = |detail| Err((ErrorKind::UpstreamBadHead, detail));
    assert_eq!(of(ok().header("content-length", "5").header("content-length", "5")), bad("duplicate_length"));
    assert_eq!(of(ok().header("content-length", "+5")), bad("bad_length"));
    assert_eq!(of(http::Response::builder().status(101)), bad("bad_status"));
    assert_eq!(of(http::Response::builder().status(700)), bad("bad_status"));
    let large = "x".repeat(HeadLimits::RECOMMENDED.head_bytes_max);
    let too_large = Err((ErrorKind::UpstreamHeadTooLarge, "upstream_head_too_large"));
    assert_eq!(of(ok().header("x", large)), too_large);
}
