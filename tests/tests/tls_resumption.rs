//! A session begun with one worker is resumed by any other, by its replacement, and after a restart.

use std::sync::Arc;

use blitz_tests::process::{self, Signal};
use blitz_tests::tls::TlsClient;
use blitz_tests::{Gateway, PATIENCE, Pki, Setup, matrix, wait_until};
use rustls::ClientConfig;

const CONNECTIONS: usize = 24;

/// One request on a connection of its own; whether the session was resumed.
fn visit(gateway: &Gateway, config: &Arc<ClientConfig>) -> bool {
    let mut client = TlsClient::connect(gateway.address, "edge.test", config).expect("a handshake");
    let is_resumed = client.is_resumed();
    assert!(client.get("/hello").expect("an answer").starts_with("HTTP/1.1 200"));
    is_resumed
}

/// How many workers have shaken hands, by the log.
fn workers_seen(log: &str) -> usize {
    (0..8).filter(|worker| log.lines().any(|line| line.contains(&format!(" w{worker} tls: ")))).count()
}

matrix! {
    fn any_worker_resumes(cell) {
        let pki = Pki::edge();
        let config = pki.listener(&["edge"], "min_version = \"1.2\"");
        let gateway = Setup::new(cell).workers(2).config(&config).flag("--tls-trace").start();
        for setup in [pki.client(), pki.client().tls12()] {
            let client = setup.build();
            assert!(!visit(&gateway, &client));
            for n in 0..CONNECTIONS {
                assert!(visit(&gateway, &client), "connection {n}");
            }
        }
        assert_eq!(workers_seen(&gateway.log()), 2);
        let metrics = gateway.admin("/metrics").text();
        for version in ["1.2", "1.3"] {
            let line = format!("blitz_tls_handshakes_total{{version=\"{version}\",kind=\"resumed\"}} {CONNECTIONS}");
            assert!(metrics.contains(&line), "{metrics}");
        }
        gateway.stop();
    }

    /// Also under another certificate, as long as the secret stays.
    fn a_restart_resumes(cell) {
        let pki = Pki::edge();
        let secret = pki.path("master.secret");
        let client = pki.client().build();
        for n in 0..3 {
            let gateway = Setup::new(cell).secret(&secret).config(&pki.listener(&["edge"], "")).start();
            assert_eq!(visit(&gateway, &client), n > 0, "start {n}");
            gateway.stop();
        }
        // Another secret: a full handshake, and no harm.
        let gateway = Setup::new(cell).config(&pki.listener(&["edge"], "")).start();
        assert!(!visit(&gateway, &client));
        gateway.stop();
    }
}

mod killed {
    use super::*;

    matrix! { mp only:
        fn the_replacement_resumes(cell) {
            let pki = Pki::edge();
            let gateway = Setup::new(cell).config(&pki.listener(&["edge"], "")).start();
            let client = pki.client().build();
            assert!(!visit(&gateway, &client));
            for _ in 0..3 {
                let victim = gateway.workers()[0];
                assert!(process::send(victim, Signal::Kill));
                wait_until("the victim is dead", PATIENCE, || !process::is_running(victim));
                assert!(visit(&gateway, &client));
            }
            gateway.stop();
        }
    }
}
