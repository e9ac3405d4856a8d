//! Endpoints that do not speak TLS as they should: a clear 502 or 504 in time, and no hang.

use std::time::{Duration, Instant};

use blitz_tests::gateway::one_upstream;
use blitz_tests::tls::Algorithm;
use blitz_tests::upstream::Conn;
use blitz_tests::{Cell, Gateway, Nginx, Pki, Setup, Upstream, matrix, require};

/// How long a connection to an endpoint may take, its handshake included.
const CONNECT: Duration = Duration::from_millis(400);

fn start(cell: Cell, upstream: &Upstream) -> Gateway {
    let more = format!(
        "[timeouts]\nupstream_connect_ms = {}\n[upstreams.pool.tls]\nverify = false\n",
        CONNECT.as_millis()
    );
    Setup::new(cell).config(&one_upstream(&[upstream.address], &more)).start()
}

#[track_caller]
fn assert_fails(gateway: &Gateway, status: u16, said: &str, reason: &str) {
    let answer = gateway.get("/");
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.field("proxy-status"), Some(&*format!("blitz; error={said}\"")));
    let failed = format!("blitz_upstream_tls_handshake_failures_total{{reason=\"{reason}\"}} 1\n");
    let metrics = gateway.admin("/metrics").text();
    assert!(metrics.contains(&failed), "{metrics}");
    assert!(metrics.contains("blitz_upstream_connections_active 0\n"), "{metrics}");
}

matrix! {
    /// It reads the ClientHello as a request.
    fn one_that_speaks_http_in_clear(cell) {
        let upstream = Upstream::start(|conn: &mut Conn| {
            conn.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
            conn.until_closed();
            Some(())
        });
        let gateway = start(cell, &upstream);
        assert_fails(&gateway, 502, "tls_protocol_error; details=\"upstream_speaks_no_tls", "malformed");
        gateway.stop();
    }

    fn one_that_accepts_and_says_nothing(cell) {
        let upstream = Upstream::start(|conn: &mut Conn| {
            conn.until_closed();
            Some(())
        });
        let gateway = start(cell, &upstream);
        let begun = Instant::now();
        assert_fails(&gateway, 504, "connection_timeout; details=\"upstream_tls_timeout", "timeout");
        assert!(begun.elapsed() >= CONNECT);
        let metrics = gateway.admin("/metrics").text();
        assert!(metrics.contains("blitz_deadline_expiries_total{phase=\"upstream_connect\"} 1\n"), "{metrics}");
        gateway.stop();
    }

    fn one_that_hangs_up(cell) {
        let upstream = Upstream::start(|_: &mut Conn| None);
        let gateway = start(cell, &upstream);
        assert_fails(&gateway, 502, "tls_protocol_error; details=\"upstream_tls_closed", "closed");
        gateway.stop();
    }

    /// Nothing was sent that could have been acted on: another endpoint serves the request, whatever its method.
    fn another_endpoint_is_tried(cell) {
        require!("nginx");
        let pki = Pki::new();
        pki.certificate("up", &["127.0.0.1"], Algorithm::Ecdsa);
        let nginx = Nginx::start_tls(&pki, "up", "");
        let broken = Upstream::start(|_: &mut Conn| None);
        let more = format!("[upstreams.pool.tls]\nca_path = \"{}\"\n", pki.path("ca.pem").display());
        let config = one_upstream(&[broken.address, nginx.address], &more);
        let gateway = Setup::new(cell).config(&config).start();
        for _ in 0..4 {
            let mut client = gateway.connect();
            client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            assert_eq!(client.response().status, 200);
        }
        assert!(broken.accepted() > 0);
        let retries = format!("blitz_upstream_retries_total {}\n", broken.accepted());
        let metrics = gateway.admin("/metrics").text();
        assert!(metrics.contains(&retries), "{metrics}");
        gateway.stop();
    }
}
