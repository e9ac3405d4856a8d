//! Certificates of clients: good, missing, of a stranger, revoked.

use blitz_tests::tls::{Algorithm, Authority, Pair, TlsClient, TlsSetup};
use blitz_tests::{Gateway, PATIENCE, Pki, Setup, Signal, matrix, wait_until};

struct World {
    pki: Pki,
    clients: Authority,
    good: Pair,
    bad: Pair,
}

fn world() -> World {
    let pki = Pki::edge();
    let clients = Authority::new("clients");
    pki.write("clients.pem", &clients.certificate);
    let (good, bad) = (clients.issue_numbered("good", 7), clients.issue_numbered("bad", 8));
    World { pki, clients, good, bad }
}

impl World {
    fn config(&self, mode: &str, with_list: bool) -> String {
        let list = if with_list {
            format!("crl_path = \"{}\"", self.pki.path("list.pem").display())
        } else {
            String::new()
        };
        let authority = self.pki.path("clients.pem");
        let more = format!(
            "min_version = \"1.2\"\n[listeners.tls.client_auth]\nmode = \"{mode}\"\nca_path = \"{}\"\n{list}",
            authority.display()
        );
        self.pki.listener(&["edge"], &more)
    }

    /// Whether a client is served; TLS 1.3 tells with the first answer only.
    fn is_served(&self, gateway: &Gateway, setup: TlsSetup) -> bool {
        let client = TlsClient::connect(gateway.address, "edge.test", &setup.build());
        client
            .and_then(|mut client| client.get("/hello"))
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }
}

matrix! {
    fn required(cell) {
        let world = world();
        let gateway = Setup::new(cell).config(&world.config("required", false)).start();
        let stranger = Authority::new("strangers").issue(&["good"], Algorithm::Ecdsa);
        for base in [world.pki.client(), world.pki.client().tls12()] {
            assert!(world.is_served(&gateway, base.clone().identity(&world.good)));
            assert!(!world.is_served(&gateway, base.clone()));
            assert!(!world.is_served(&gateway, base.identity(&stranger)));
        }
        let failed = "blitz_tls_handshake_failures_total{reason=\"client_certificate\"} 4";
        wait_until("all are counted", PATIENCE, || gateway.admin("/metrics").text().contains(failed));
        gateway.stop();
    }

    fn optional(cell) {
        let world = world();
        let gateway = Setup::new(cell).config(&world.config("optional", false)).start();
        let stranger = Authority::new("strangers").issue(&["good"], Algorithm::Ecdsa);
        assert!(world.is_served(&gateway, world.pki.client().identity(&world.good)));
        assert!(world.is_served(&gateway, world.pki.client()));
        assert!(!world.is_served(&gateway, world.pki.client().identity(&stranger)));
        gateway.stop();
    }

    /// A revoked certificate is refused, also one that was good when its session began; an expired list refuses all.
    fn revoked(cell) {
        let world = world();
        world.pki.write("list.pem", &world.clients.revoke(&[8], 2100));
        let gateway = Setup::new(cell).config(&world.config("required", true)).start();
        assert!(world.is_served(&gateway, world.pki.client().identity(&world.good)));
        assert!(!world.is_served(&gateway, world.pki.client().identity(&world.bad)));
        let kept = world.pki.client().identity(&world.good).build();
        let again = || {
            let client = TlsClient::connect(gateway.address, "edge.test", &kept);
            client.and_then(|mut client| Ok((client.is_resumed(), client.get("/hello")?)))
        };
        assert!(!again().expect("served").0);
        assert!(again().expect("served").0, "the session is resumed");
        world.pki.write("list.pem", &world.clients.revoke(&[7, 8], 2100));
        gateway.signal(Signal::Hup);
        // Its ticket was good under the list before.
        wait_until("the new list takes effect", PATIENCE, || again().is_err());
        world.pki.write("list.pem", &world.clients.revoke(&[], 2100));
        gateway.signal(Signal::Hup);
        wait_until("the good list takes effect", PATIENCE, || again().is_ok());
        world.pki.write("list.pem", &world.clients.revoke(&[], 2001));
        gateway.signal(Signal::Hup);
        wait_until("the expired list takes effect", PATIENCE, || again().is_err());
        gateway.stop();
    }

    /// A session does not outlive the certificate that it began with.
    fn expired_meanwhile(cell) {
        let world = world();
        let gateway = Setup::new(cell).config(&world.config("required", false)).start();
        let short = world.clients.issue_for_seconds("short", 3);
        let kept = world.pki.client().identity(&short).build();
        let visit = || {
            let client = TlsClient::connect(gateway.address, "edge.test", &kept);
            client.and_then(|mut client| Ok((client.is_resumed(), client.get("/hello")?)))
        };
        assert!(!visit().expect("served").0);
        assert!(visit().expect("served").0);
        // Each visit brings fresh tickets.
        wait_until("it is refused", PATIENCE, || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            visit().is_err()
        });
        gateway.stop();
    }
}
