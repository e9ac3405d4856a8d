//! HTTP/1.0 clients and upstreams (RFC 9112 section 9.3, RFC 9110 section 6.2).

use blitz_tests::{Setup, Upstream, matrix};

matrix! {
    /// One answer, then the close. A host is not required.
    fn a_plain_request_is_answered_and_closed(cell) {
        let upstream = Upstream::echoing_targets();
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send("GET /old HTTP/1.0\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (200, "/old"));
        assert!(client.is_closed_without_bytes());
        assert!(upstream.last_request().head.starts_with("GET /old HTTP/1.1\r\n"), "we speak our own version");
    }

    /// Kept alive when it asks, and then told so.
    fn keep_alive_on_request(cell) {
        let upstream = Upstream::echoing_targets();
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        for n in 0..3 {
            client.send(format!("GET /{n} HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n"));
            let response = client.response();
            assert_eq!(response.text(), format!("/{n}"));
            let connection = response.field("connection").unwrap_or_default().to_ascii_lowercase();
            assert_eq!(connection, "keep-alive", "{}", response.head);
        }
    }

    /// It does not know chunks: the body ends with the connection.
    fn chunks_are_not_sent_to_it(cell) {
        let upstream = Upstream::sending(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        );
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let response = client.response();
        assert_eq!(response.field("transfer-encoding"), None, "{}", response.head);
        assert_eq!(response.text(), "hello");
        assert!(client.is_closed_without_bytes());
    }

    /// An upstream of HTTP/1.0 is read until it closes.
    fn an_old_upstream_is_understood(cell) {
        let upstream = Upstream::sending(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold body");
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let response = gateway.get("/");
        assert_eq!((response.status, response.text().as_str()), (200, "old body"));
        assert!(response.head.starts_with("HTTP/1.1 200"), "{}", response.head);
    }
}
