//! A session over QUIC begun with one worker is resumed by any other, by its replacement, and after a restart; as
//! over TCP.

use blitz_tests::process::{self, Signal};
use blitz_tests::tls::Algorithm;
use blitz_tests::{Authority, Gateway, H3, PATIENCE, Pki, Setup, h3, matrix, require, wait_until};

const CONNECTIONS: usize = 24;

fn config(pki: &Pki, more: &str) -> String {
    pki.listener(&["edge"], more).replace("[\"h1\"]", "[\"h1\", \"h3\"]")
}

/// A client that comes again and again.
struct Visitor {
    config: quiche::Config,
    session: Option<Vec<u8>>,
}

impl Visitor {
    fn new() -> Self {
        Self { config: h3::config(), session: None }
    }

    /// One request on a connection of its own; whether the session was resumed.
    fn try_visit(&mut self, gateway: &Gateway) -> Result<bool, String> {
        let session = self.session.as_deref();
        let mut client = H3::start(gateway.address, "edge.test", &mut self.config, session);
        client.shake_hands()?;
        let is_resumed = client.quic.is_resumed();
        let id = client.begin_get("/hello");
        let got = client.outcome(id);
        if !got.is_whole {
            return Err(format!("{:?}", client.quic.peer_error()));
        }
        assert_eq!(got.status(), 200);
        self.session = Some(client.session());
        Ok(is_resumed)
    }

    #[track_caller]
    fn visit(&mut self, gateway: &Gateway) -> bool {
        self.try_visit(gateway).expect("it is served")
    }
}

/// How many workers have shaken hands, by the log.
fn workers_seen(log: &str) -> usize {
    (0..8).filter(|worker| log.lines().any(|line| line.contains(&format!(" w{worker} tls: ")))).count()
}

matrix! {
    fn any_worker_resumes(cell) {
        let pki = Pki::edge();
        let gateway = Setup::new(cell).workers(2).config(&config(&pki, "")).flag("--tls-trace").start();
        let mut visitor = Visitor::new();
        assert!(!visitor.visit(&gateway));
        for n in 0..CONNECTIONS {
            assert!(visitor.visit(&gateway), "connection {n}");
        }
        assert_eq!(workers_seen(&gateway.log()), 2);
        let metrics = gateway.admin("/metrics").text();
        for (kind, count) in [("full", 1), ("resumed", CONNECTIONS)] {
            let line = format!("blitz_tls_handshakes_total{{version=\"1.3\",kind=\"{kind}\"}} {count}\n");
            assert!(metrics.contains(&line), "{metrics}");
        }
        gateway.stop();
    }

    fn a_restart_resumes(cell) {
        let pki = Pki::edge();
        let secret = pki.path("master.secret");
        let mut visitor = Visitor::new();
        for n in 0..3 {
            let gateway = Setup::new(cell).secret(&secret).config(&config(&pki, "")).start();
            assert_eq!(visitor.visit(&gateway), n > 0, "start {n}");
            gateway.stop();
        }
        // Another secret: a full handshake, and no harm.
        let gateway = Setup::new(cell).config(&config(&pki, "")).start();
        assert!(!visitor.visit(&gateway));
        gateway.stop();
    }

    /// Another certificate changes nothing for a session that was begun under the one before.
    fn a_reload_with_another_certificate_resumes(cell) {
        let pki = Pki::edge();
        let gateway = Setup::new(cell).config(&config(&pki, "")).start();
        let mut visitor = Visitor::new();
        assert!(!visitor.visit(&gateway));
        pki.certificate("edge", &["edge.test"], Algorithm::Rsa);
        gateway.signal(Signal::Hup);
        let shown = || H3::connect(gateway.address, "edge.test").quic.peer_cert().expect("a certificate").to_vec();
        let on_disk = blitz_tests::tls::der(&blitz_tests::tls::read(&pki.path("edge.crt")));
        wait_until("new connections get the new one", PATIENCE, || shown() == on_disk);
        assert!(visitor.visit(&gateway));
        gateway.stop();
    }

    /// Another implementation of both protocols.
    fn aioquic_resumes(cell) {
        let Some(mut python) = require::python("aioquic") else {
            require::skip("aioquic is not installed: cargo xtask setup");
            return;
        };
        let pki = Pki::edge();
        pki.write("ca.crt", &pki.authority.certificate);
        let gateway = Setup::new(cell).workers(2).config(&config(&pki, "")).start();
        python.arg("-B").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/h3_sessions.py"));
        python.arg(gateway.address.port().to_string()).arg(pki.path("ca.crt")).arg("resume");
        let output = python.output().expect("Python runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        gateway.stop();
    }
}

mod killed {
    use super::*;

    matrix! { mp only:
        fn the_replacement_resumes(cell) {
            let pki = Pki::edge();
            let gateway = Setup::new(cell).config(&config(&pki, "")).start();
            let mut visitor = Visitor::new();
            assert!(!visitor.visit(&gateway));
            for _ in 0..2 {
                let victim = gateway.workers()[0];
                assert!(process::send(victim, Signal::Kill));
                wait_until("the victim is dead", PATIENCE, || !process::is_running(victim));
                assert!(visitor.visit(&gateway));
            }
            gateway.stop();
        }
    }
}

mod client_certificates {
    use super::*;

    struct World {
        pki: Pki,
        clients: Authority,
    }

    impl World {
        fn new() -> Self {
            let (pki, clients) = (Pki::edge(), Authority::new("clients"));
            pki.write("clients.pem", &clients.certificate);
            Self { pki, clients }
        }

        fn config(&self, more: &str) -> String {
            let authority = self.pki.path("clients.pem");
            let auth = format!(
                "[listeners.tls.client_auth]\nmode = \"required\"\nca_path = \"{}\"\n{more}",
                authority.display()
            );
            config(&self.pki, &auth)
        }

        fn visitor(&self, pair: &blitz_tests::tls::Pair) -> Visitor {
            self.pki.write_pair("client", pair);
            let path = |ending: &str| self.pki.path(&format!("client.{ending}")).display().to_string();
            let mut visitor = Visitor::new();
            visitor.config.load_cert_chain_from_pem_file(&path("crt")).expect("a certificate");
            visitor.config.load_priv_key_from_pem_file(&path("key")).expect("a key");
            visitor
        }
    }

    matrix! {
        /// A session is good under the lists that it was begun under only, and another listener's is not good at all.
        fn revoked(cell) {
            let world = World::new();
            let list = |serials: &[u64]| world.pki.write("list.pem", &world.clients.revoke(serials, 2100));
            list(&[8]);
            let with_list = format!("crl_path = \"{}\"", world.pki.path("list.pem").display());
            // Two gateways of one secret, one of which asks for no certificates.
            let secret = world.pki.path("master.secret");
            let gateway = Setup::new(cell).secret(&secret).config(&world.config(&with_list)).start();
            let open = Setup::new(cell).secret(&secret).config(&config(&world.pki, "")).start();
            let mut visitor = world.visitor(&world.clients.issue_numbered("good", 7));
            assert!(!visitor.visit(&open));
            assert!(visitor.visit(&open));
            assert!(!visitor.visit(&gateway), "it has shown no certificate");
            assert!(visitor.visit(&gateway));
            list(&[7, 8]);
            gateway.signal(Signal::Hup);
            wait_until("the new list takes effect", PATIENCE, || visitor.try_visit(&gateway).is_err());
            gateway.stop();
            open.stop();
        }

        /// A session does not outlive the certificate that it began with.
        fn expired_meanwhile(cell) {
            let world = World::new();
            let gateway = Setup::new(cell).config(&world.config("")).start();
            let mut visitor = world.visitor(&world.clients.issue_for_seconds("short", 3));
            assert!(!visitor.visit(&gateway));
            assert!(visitor.visit(&gateway));
            wait_until("it is refused", PATIENCE, || {
                std::thread::sleep(std::time::Duration::from_millis(50));
                visitor.try_visit(&gateway).is_err()
            });
            let failed = "blitz_tls_handshake_failures_total{reason=\"client_certificate\"} 1\n";
            wait_until("it is counted", PATIENCE, || gateway.admin("/metrics").text().contains(failed));
            gateway.stop();
        }
    }
}
