//! What an upstream does wrong becomes 502, 503 or 504 with a `Proxy-Status` (RFC 9209), or a cut answer.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use blitz_tests::{Gateway, PATIENCE, Response, Setup, Upstream, closed_port, matrix, wait_until};

const SHORT: &str = "
[timeouts]
upstream_connect_ms = 300
upstream_first_byte_ms = 300
upstream_body_progress_ms = 300
";

fn start(cell: blitz_tests::Cell, endpoints: &[SocketAddr]) -> Gateway {
    Setup::new(cell).config_for(endpoints, SHORT).start()
}

#[track_caller]
fn assert_error(response: &Response, status: u16, error: &str) {
    assert_eq!(response.status, status, "{response:?}");
    let proxy_status =
        response.field("proxy-status").unwrap_or_else(|| panic!("no Proxy-Status: {}", response.head));
    assert!(proxy_status.contains(&format!("error={error}")), "{proxy_status}");
}

matrix! {
    fn a_refused_connection_is_502(cell) {
        let gateway = start(cell, &[closed_port()]);
        assert_error(&gateway.get("/"), 502, "connection_refused");
    }

    fn a_reset_is_502(cell) {
        let at_once = Upstream::resetting_after_accept();
        // Whether connecting or reading meets the reset is the kernel's business.
        let response = start(cell, &[at_once.address]).get("/");
        let proxy_status = response.field("proxy-status").unwrap_or_default();
        let is_named = ["connection_terminated", "destination_unavailable"].map(|error| proxy_status.contains(error));
        assert!(response.status == 502 && is_named.contains(&true), "{response:?}");
        let later = Upstream::resetting_after_request();
        assert_error(&start(cell, &[later.address]).get("/"), 502, "connection_terminated");
    }

    fn a_close_without_an_answer_is_502(cell) {
        let upstream = Upstream::sending(b"");
        assert_error(&start(cell, &[upstream.address]).get("/"), 502, "connection_terminated");
        // The connection was new: the request may have been acted on, and is not made again.
        assert_eq!(upstream.requests().len(), 1);
    }

    fn half_a_head_is_502(cell) {
        let upstream = Upstream::sending(b"HTTP/1.1 200 OK\r\nContent-Le");
        let response = start(cell, &[upstream.address]).get("/");
        assert_error(&response, 502, "");
    }

    fn garbage_is_502(cell) {
        for bytes in [
            &b"SSH-2.0-OpenSSH_9.2\r\n\r\n"[..],
            b"HTTP/1.1 2x0 OK\r\n\r\n",
            b"\0\0\0\0\r\n\r\n",
            b"HTTP/2 200\r\n\r\n",
        ] {
            let upstream = Upstream::sending(bytes);
            assert_error(&start(cell, &[upstream.address]).get("/"), 502, "http_protocol_error");
        }
    }

    fn silence_is_504(cell) {
        let upstream = Upstream::never_answering();
        let gateway = start(cell, &[upstream.address]);
        assert_error(&gateway.get("/"), 504, "http_response_timeout");
        wait_until("nothing is in flight", PATIENCE, || gateway.in_flight() == Some(0));
    }

    /// A body that ends too early cannot be repaired: the client must be able to tell.
    fn a_cut_body_is_cut_for_the_client(cell) {
        for bytes in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\nnonsense\r\n",
        ] {
            let upstream = Upstream::sending(bytes);
            let gateway = start(cell, &[upstream.address]);
            let mut client = gateway.connect();
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            let response = client.response();
            assert!(!response.is_complete, "it looked whole: {response:?}");
            assert!(client.is_closed_without_bytes());
        }
    }

    /// To a client of HTTP/1.0 the end of the connection is the end of the body: only a reset tells that it was cut.
    fn a_cut_body_without_length_ends_with_a_reset(cell) {
        let upstream =
            Upstream::sending(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n");
        let gateway = start(cell, &[upstream.address]);
        let mut client = TcpStream::connect(gateway.address).expect("the gateway takes connections");
        client.set_read_timeout(Some(PATIENCE)).expect("a read timeout can be set");
        client.write_all(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").expect("the gateway takes the request");
        let end = client.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
    }

    fn a_stalled_body_is_cut_at_its_deadline(cell) {
        let upstream = Upstream::start(|conn| {
            conn.request()?;
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")?;
            conn.until_closed();
            Some(())
        });
        let response = start(cell, &[upstream.address]).get("/");
        assert_eq!((response.status, response.is_complete), (200, false));
    }

    /// Interim answers pass or are dropped; a thousand of them neither hold memory nor hide the end.
    fn a_storm_of_interim_answers_ends(cell) {
        let upstream = Upstream::start(|conn| {
            conn.request()?;
            for _ in 0..1000 {
                if conn.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n").is_none() {
                    break;
                }
            }
            let _ = conn.answer("200 OK", "at last");
            conn.until_closed();
            Some(())
        });
        let gateway = start(cell, &[upstream.address]);
        let response = gateway.get("/");
        assert!(matches!(response.status, 200 | 502), "{response:?}");
        assert_eq!(gateway.admin("/readyz").status, 200);
    }

    /// An answer head beyond its bound is the upstream's fault.
    fn an_endless_head_is_502(cell) {
        let upstream = Upstream::start(|conn| {
            conn.request()?;
            conn.send("HTTP/1.1 200 OK\r\n")?;
            while conn.send(format!("X-A: {}\r\n", "b".repeat(1000))).is_some() {}
            Some(())
        });
        assert_error(&start(cell, &[upstream.address]).get("/"), 502, "");
    }

    /// With a dead and a living endpoint, the dead one is taken out and clients see answers.
    fn a_dead_endpoint_is_taken_out(cell) {
        let upstream = Upstream::answering("alive");
        let gateway = start(cell, &[closed_port(), upstream.address]);
        for _ in 0..10 {
            gateway.get("/");
        }
        for _ in 0..20 {
            let response = gateway.get("/");
            assert_eq!((response.status, response.text().as_str()), (200, "alive"));
        }
    }

    /// When all are out, or while only a dead one is there, the answer stays an error and comes at once.
    fn all_endpoints_dead_stays_an_error(cell) {
        let gateway = start(cell, &[closed_port(), closed_port()]);
        for n in 0..20 {
            let response = gateway.get("/");
            assert!(matches!(response.status, 502 | 503), "request {n}: {response:?}");
            assert!(response.field("proxy-status").is_some(), "request {n}: {}", response.head);
        }
    }

    /// The client's connection survives an upstream's fault when its own framing is intact.
    fn the_client_may_go_on_after_an_error(cell) {
        let gateway = start(cell, &[closed_port()]);
        let mut client = gateway.connect();
        for _ in 0..3 {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert!(matches!(client.response().status, 502 | 503));
        }
    }
}
