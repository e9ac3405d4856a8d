//! Unit tests of methods, authorities, the error table and the forwarding rules.

use std::collections::HashSet;
use std::net::IpAddr;

use super::*;
use crate::fields::Known;

fn head(authority: &str, lines: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead { authority: authority.into(), path: b"/".to_vec(), ..RequestHead::default() };
    for (name, value) in lines {
        head.fields.push(name.as_bytes(), value.as_bytes()).unwrap();
    }
    head
}

fn lines(fields: &Fields) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    fields.iter().map(|(_, name, value)| format!("{}: {}", text(name), text(value))).collect()
}

fn from(peer: &str, is_trusted: bool) -> Forwarding {
    Forwarding::new(peer.parse::<IpAddr>().unwrap(), Scheme::Https, is_trusted, "1.1").unwrap()
}

#[test]
fn hop_by_hop_fields_and_nominated_ones_go() {
    let mut head = head(
        "a",
        &[
            ("Connection", "close, X-One, keep-alive"),
            ("X-One", "1"),
            ("x-one", "2"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("TE", "gzip, Trailers"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "AAM"),
            ("Proxy-Authorization", "Basic x"),
            ("Transfer-Encoding", "chunked"),
            ("Trailer", "X-Sum"),
            ("Connection", "X-Two"),
            ("X-Two", "1"),
            ("X-Three", "1"),
        ],
    );
    assert_eq!(strip_hop_by_hop(&mut head.fields), HopByHop { accepts_trailers: true });
    assert_eq!(lines(&head.fields), ["Trailer: X-Sum", "X-Three: 1"]);
}

#[test]
fn end_to_end_fields_cannot_be_nominated_away() {
    let mut head = head(
        "a",
        &[
            (
                "Connection",
                "Host, Content-Length, Authorization, Cookie, X-Forwarded-For, Via, Content-Type, X",
            ),
            ("Content-Length", "5"),
            ("Authorization", "Bearer x"),
            ("Cookie", "a=b"),
            ("X-Forwarded-For", "192.0.2.1"),
            ("Via", "1.1 x"),
            ("Content-Type", "text/plain"),
            ("X", "1"),
        ],
    );
    strip_hop_by_hop(&mut head.fields);
    assert_eq!(
        lines(&head.fields),
        [
            "Content-Length: 5",
            "Authorization: Bearer x",
            "Cookie: a=b",
            "X-Forwarded-For: 192.0.2.1",
            "Via: 1.1 x",
            "Content-Type: text/plain",
        ]
    );
}

#[test]
fn a_hostile_list_of_nominations_is_bounded() {
    let list = "x,".repeat(5_000) + "x-last";
    let mut head = head("a", &[("Connection", &list), ("X", "1"), ("X-Last", "2")]);
    strip_hop_by_hop(&mut head.fields);
    assert_eq!(lines(&head.fields), ["X-Last: 2"]);
}

#[test]
fn an_untrusted_peer_claims_nothing() {
    let mut head = head(
        "example.com:8080",
        &[
            ("X-Forwarded-For", "192.0.2.1"),
            ("X-Forwarded-Proto", "ftp"),
            ("X-Forwarded-Host", "evil"),
            ("X-Forwarded-Port", "1"),
            ("X-Real-IP", "192.0.2.1"),
            ("Forwarded", "for=192.0.2.1"),
            ("Via", "1.0 fred"),
            ("Accept", "*/*"),
        ],
    );
    add_forwarding(&mut head, &from("203.0.113.7", false)).unwrap();
    assert_eq!(
        lines(&head.fields),
        [
            "Via: 1.0 fred",
            "Accept: */*",
            "Via: 1.1 blitz",
            "X-Forwarded-For: 203.0.113.7",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: example.com:8080",
            "Forwarded: for=203.0.113.7;proto=https;host=\"example.com:8080\"",
        ]
    );
}

#[test]
fn a_trusted_peer_is_continued() {
    let mut head = head(
        "a",
        &[
            ("X-Forwarded-For", "192.0.2.1"),
            ("X-Forwarded-For", "192.0.2.2"),
            ("X-Forwarded-Proto", "http"),
            ("X-Forwarded-Host", "outer"),
            ("X-Real-IP", "192.0.2.1"),
            ("Forwarded", "for=192.0.2.1"),
        ],
    );
    add_forwarding(&mut head, &from("2001:db8::7", true)).unwrap();
    assert_eq!(
        lines(&head.fields),
        [
            "X-Forwarded-Proto: http",
            "X-Forwarded-Host: outer",
            "X-Real-IP: 192.0.2.1",
            "Via: 1.1 blitz",
            "X-Forwarded-For: 192.0.2.1, 192.0.2.2, 2001:db8::7",
            "Forwarded: for=192.0.2.1, for=\"[2001:db8::7]\";proto=https;host=a",
        ]
    );
}

#[test]
fn addresses_are_written_as_rfc_7239_wants_them() {
    for (peer, expected) in [
        ("192.0.2.1", "for=192.0.2.1;proto=https"),
        ("::ffff:192.0.2.1", "for=192.0.2.1;proto=https"),
        (
            "2001:db8:1111:2222:3333:4444:5555:6666",
            "for=\"[2001:db8:1111:2222:3333:4444:5555:6666]\";proto=https",
        ),
    ] {
        let mut head = head("", &[]);
        add_forwarding(&mut head, &from(peer, false)).unwrap();
        assert_eq!(head.fields.get(Known::Forwarded), Some(expected.as_bytes()));
        assert!(!head.fields.contains(Known::XForwardedHost));
    }
    let mut head = head("[2001:db8::1]", &[]);
    add_forwarding(&mut head, &from("192.0.2.1", false)).unwrap();
    assert_eq!(
        head.fields.get(Known::Forwarded),
        Some(&b"for=192.0.2.1;proto=https;host=\"[2001:db8::1]\""[..])
    );
}

#[test]
fn max_forwards_counts_down_for_options_and_trace_only() {
    let cases: [(&str, &[&str], MaxForwards, Option<&str>); 8] = [
        ("GET", &["0"], MaxForwards::Unlimited, Some("0")),
        ("OPTIONS", &[], MaxForwards::Unlimited, None),
        ("OPTIONS", &["0"], MaxForwards::Exhausted, Some("0")),
        ("OPTIONS", &["10"], MaxForwards::Decremented, Some("9")),
        ("TRACE", &["1"], MaxForwards::Decremented, Some("0")),
        ("TRACE", &["99999999999999999999"], MaxForwards::Decremented, Some("4294967294")),
        ("TRACE", &["-1"], MaxForwards::Malformed, Some("-1")),
        ("TRACE", &["1", "1"], MaxForwards::Malformed, Some("1")),
    ];
    for (method, values, expected, left) in cases {
        let pairs: Vec<_> = values.iter().map(|value| ("Max-Forwards", *value)).collect();
        let mut head = head("a", &pairs);
        head.method = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(max_forwards(&mut head), Ok(expected), "{method} {values:?}");
        assert_eq!(head.fields.get(Known::MaxForwards), left.map(str::as_bytes));
    }
}

#[test]
fn methods_keep_their_names_and_properties() {
    for (name, is_safe, is_idempotent) in [
        ("GET", true, true),
        ("HEAD", true, true),
        ("OPTIONS", true, true),
        ("TRACE", true, true),
        ("PUT", false, true),
        ("DELETE", false, true),
        ("POST", false, false),
        ("PATCH", false, false),
        ("CONNECT", false, false),
        ("PROPFIND", true, true),
        ("MKCOL", false, true),
        ("LOCK", false, false),
        ("get", false, false),
        ("X", false, false),
    ] {
        let method = Method::from_bytes(name.as_bytes()).unwrap();
        assert_eq!(method.to_string(), name);
        assert_eq!((method.is_safe(), method.is_idempotent()), (is_safe, is_idempotent), "{name}");
    }
    for name in [&b""[..], b"A B", b"\xe9", &[b'A'; MethodToken::BYTES_MAX + 1]] {
        assert_eq!(Method::from_bytes(name), None);
    }
}

#[test]
fn authorities_split_into_host_and_port() {
    assert_eq!(authority::split(b"a"), (&b"a"[..], None));
    assert_eq!(authority::split(b"a:80"), (&b"a"[..], Some(&b"80"[..])));
    assert_eq!(authority::split(b"[::1]:80"), (&b"[::1]"[..], Some(&b"80"[..])));
    assert_eq!(authority::split(b"[::1]"), (&b"[::1]"[..], None));
    assert_eq!(authority::parse_port(b"65535"), Some(65535));
    assert_eq!(authority::parse_port(b"65536"), None);
    assert_eq!(authority::parse_port(b"000080"), None);
    assert!(authority::is_valid(b"a-b.c_d~e:1"));
    assert!(!authority::is_valid(b"a b"));
}

#[test]
fn the_error_table_is_consistent() {
    let mut labels = HashSet::new();
    for kind in ErrorKind::ALL {
        let row = kind.row();
        assert!(labels.insert(row.label), "label {} twice", row.label);
        assert!(row.status == 0 || (400..=599).contains(&row.status));
        // Without an answer there is nothing to say in Proxy-Status.
        assert_eq!(row.status == 0, row.proxy_status.is_none(), "{}", row.label);
        match row.side {
            Side::Downstream => {
                assert!(row.retry == Retry::No && !(502..=504).contains(&row.status), "{}", row.label)
            }
            Side::Upstream => assert!((502..=504).contains(&row.status), "{}", row.label),
            Side::Internal => assert!(row.status >= 500, "{}", row.label),
        }
    }
    let error = ProxyError::new(ErrorKind::UpstreamClosedBeforeAnswer);
    assert!(error.may_retry(true) && !error.may_retry(false));
    assert!(!error.with_retry(Retry::No).may_retry(true));
    let refused = ProxyError::new(ErrorKind::UpstreamConnectRefused).with_os_error(libc::ECONNREFUSED);
    assert!(refused.to_string().starts_with("upstream_connect_refused: "));
    assert!(size_of::<ProxyError>() <= 32);
}
