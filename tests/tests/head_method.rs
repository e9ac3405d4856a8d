//! Answers without a body: to HEAD, 204, 304 (RFC 9112 section 6.3).

use blitz_tests::{Setup, Upstream, matrix};

matrix! {
    /// The length in an answer to HEAD is a fact about GET, and no body follows.
    fn head_has_fields_and_no_body(cell) {
        let upstream = Upstream::start(|conn| {
            loop {
                let request = conn.request()?;
                match request.head.starts_with("HEAD ") {
                    true => conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nX-Own: 1\r\n\r\n")?,
                    false => conn.answer("200 OK", "whole")?,
                }
            }
        });
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        for _ in 0..5 {
            client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
            let response = client.response_to("HEAD");
            assert_eq!(response.field("content-length"), Some("1000"));
            assert_eq!(response.field("x-own"), Some("1"));
            assert_eq!(client.response().text(), "whole");
        }
        assert_eq!(upstream.accepted(), 1, "both connections stayed in step");
    }

    /// 204 and 304 have no body, whatever they say, and the connection goes on.
    fn answers_that_never_have_a_body(cell) {
        let upstream = Upstream::start(|conn| {
            loop {
                let request = conn.request()?;
                match request.target() {
                    "/204" => conn.send("HTTP/1.1 204 No Content\r\n\r\n")?,
                    "/304" => conn.send("HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\nETag: \"x\"\r\n\r\n")?,
                    _ => conn.answer("200 OK", "body")?,
                }
            }
        });
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        for (path, status, body) in [("/204", 204, ""), ("/", 200, "body"), ("/304", 304, ""), ("/", 200, "body")] {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let response = client.response();
            assert_eq!((response.status, response.text().as_str()), (status, body), "{path}");
        }
    }

    /// The gateway's own answers follow the same rule.
    fn own_answers_to_head_have_no_body(cell) {
        let gateway = Setup::new(cell).config(blitz_tests::gateway::LISTENER).start();
        let mut client = gateway.connect();
        for path in ["/hello", "/nowhere"] {
            client.send(format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
            client.response_to("HEAD");
            assert!(client.is_open_and_silent(), "a body followed the answer to HEAD {path}");
        }
        client.send("GET /hello HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
}
