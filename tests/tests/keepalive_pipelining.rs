//! Connections are reused on both sides, and answers keep the order of their requests.

use std::time::Duration;

use blitz_tests::{PATIENCE, Setup, Upstream, matrix, wait_until};

matrix! {
    /// Many requests, one connection on each side.
    fn one_connection_carries_many_requests(cell) {
        let upstream = Upstream::echoing_targets();
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        for n in 0..100 {
            client.send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert_eq!(client.response().text(), format!("/{n}"));
        }
        assert_eq!(upstream.accepted(), 1, "the pooled connection is reused");
        wait_until("nothing is in flight", PATIENCE, || gateway.in_flight() == Some(0));
    }

    /// Requests sent in one piece are answered in order, with a body in between.
    fn pipelined_requests_are_answered_in_order(cell) {
        let upstream = Upstream::echoing_targets();
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        let mut all = String::new();
        for n in 0..32 {
            all += &match n % 3 {
                0 => format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
                1 => format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /"),
                _ => format!("POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"),
            };
        }
        client.send(all);
        for n in 0..32 {
            assert_eq!(client.response().text(), format!("/{n}"));
        }
        assert!(client.is_open_and_silent());
    }

    /// A request may arrive in any pieces.
    fn a_request_in_single_bytes_is_one_request(cell) {
        let upstream = Upstream::echoing_targets();
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        for byte in b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" {
            client.send([*byte]);
        }
        assert_eq!(client.response().text(), "/slow");
        assert_eq!(upstream.last_request().body, b"abc");
    }

    /// `Connection: close` is obeyed after the answer, and said in it.
    fn connection_close_is_obeyed(cell) {
        let upstream = Upstream::echoing_targets();
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send("GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let response = client.response();
        assert_eq!(response.text(), "/last");
        assert!(response.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")));
        assert!(client.is_closed_without_bytes());
    }

    /// A close waits until a slow client has taken the whole answer.
    fn a_close_does_not_cut_a_large_answer(cell) {
        // More than the kernel's buffers on both sides take.
        const LARGE: usize = 16 << 20;
        let upstream = Upstream::start(|conn| {
            conn.request()?;
            conn.answer("200 OK", vec![b'x'; LARGE])
        });
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        std::thread::sleep(Duration::from_millis(300));
        let response = client.response();
        assert_eq!((response.body.len(), response.is_complete), (LARGE, true));
        assert!(client.is_closed_without_bytes());
    }

    /// An upstream closes its kept connection between two requests: the client does not notice.
    fn a_stale_pooled_connection_is_replaced(cell) {
        let upstream = Upstream::start(|conn| {
            // One request for each connection, closed without a word.
            conn.request()?;
            conn.answer("200 OK", "once")
        });
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        for n in 1..=20 {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            let response = client.response();
            assert_eq!((response.status, response.text().as_str()), (200, "once"), "request {n}");
        }
        assert_eq!(upstream.accepted(), 20);
    }

    /// A client that leaves in the middle of an answer takes its upstream connection with it.
    fn a_client_that_leaves_frees_what_it_held(cell) {
        let upstream = Upstream::start(|conn| {
            conn.request()?;
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nsome")?;
            conn.until_closed();
            conn.record(blitz_tests::Request::default());
            Some(())
        });
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.head();
        client.reset();
        wait_until("the upstream sees the close", PATIENCE, || upstream.requests().len() == 2);
        wait_until("nothing is in flight", PATIENCE, || gateway.in_flight() == Some(0));
    }
}
