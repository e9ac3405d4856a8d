//! `Expect: 100-continue` (RFC 9110 section 10.1.1).

use blitz_tests::{PATIENCE, Setup, Upstream, matrix, wait_until};

matrix! {
    /// The client waits for 100 and gets it, before the final answer.
    fn a_waiting_client_is_told_to_go_on(cell) {
        let upstream = Upstream::start(|conn| {
            loop {
                let mut request = conn.head()?;
                if request.field("expect").is_some() {
                    conn.send("HTTP/1.1 100 Continue\r\n\r\n")?;
                }
                conn.body(&mut request)?;
                conn.record(request);
                conn.answer("200 OK", "taken")?;
            }
        });
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
        assert!(client.head().starts_with("HTTP/1.1 100"));
        client.send("body");
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (200, "taken"));
        assert_eq!(upstream.last_request().body, b"body");
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200, "the connection goes on");
    }

    /// An upstream that refuses by its head alone: the client is told, and sends no body.
    fn a_refusal_comes_without_the_body(cell) {
        let upstream = Upstream::start(|conn| {
            let request = conn.head()?;
            conn.record(request);
            conn.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        });
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (417, "no"));
        wait_until("nothing is in flight", PATIENCE, || gateway.in_flight() == Some(0));
    }

    /// Whether the client of a refused body sends it all the same, nobody knows: the connection ends with the
    /// refusal, and no 100 follows it.
    fn a_refusal_ends_the_connection(cell) {
        let upstream = Upstream::start(|conn| {
            loop {
                conn.head()?;
                conn.answer("417 Expectation Failed", "no")?;
            }
        });
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status, response.field("connection")), (417, Some("close")));
        assert!(client.is_closed_without_bytes());
    }

    /// A client that does not wait is served as well.
    fn a_client_that_does_not_wait_is_served(cell) {
        let upstream = Upstream::answering("taken");
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbody");
        assert_eq!(client.response().status, 200);
        assert_eq!(upstream.last_request().body, b"body");
    }
}
