//! An endpoint over TLS has to be who it is said to be: whom the gateway believes, and whom it refuses with 502.

use blitz_tests::gateway::one_upstream;
use blitz_tests::tls::{Algorithm, Authority};
use blitz_tests::{Cell, Gateway, Nginx, PATIENCE, Pki, Response, Setup, matrix, require};

/// A gateway before this endpoint, with this table of TLS.
fn start(cell: Cell, nginx: &Nginx, tls: &str) -> Gateway {
    setup(cell, nginx, tls).start()
}

fn setup(cell: Cell, nginx: &Nginx, tls: &str) -> Setup {
    Setup::new(cell).config(&one_upstream(&[nginx.address], &format!("[upstreams.pool.tls]\n{tls}")))
}

fn ca(pki: &Pki) -> String {
    format!("ca_path = \"{}\"\n", pki.path("ca.pem").display())
}

#[track_caller]
fn assert_refused(gateway: &Gateway, answer: &Response, detail: &str) {
    assert_eq!(answer.status, 502, "{}", answer.text());
    let expected = format!("blitz; error=tls_certificate_error; details=\"{detail}\"");
    assert_eq!(answer.field("proxy-status"), Some(expected.as_str()));
    let metrics = gateway.admin("/metrics").text();
    assert!(metrics.contains("blitz_errors_total{kind=\"upstream_certificate\"} 1\n"), "{metrics}");
    let failed = "blitz_upstream_tls_handshake_failures_total{reason=\"certificate\"} 1\n";
    assert!(metrics.contains(failed), "{metrics}");
}

matrix! {
    /// By address, and by a name that the configuration gives, which is also asked for.
    fn a_good_certificate_is_believed(cell) {
        require!("nginx");
        let pki = Pki::new();
        pki.certificate("up", &["127.0.0.1", "api.test"], Algorithm::Ecdsa);
        let nginx = Nginx::start_tls(&pki, "up", "");
        for (name, asked_for) in [("", ""), ("server_name = \"api.test\"", "api.test")] {
            let gateway = start(cell, &nginx, &(ca(&pki) + name));
            let answer = gateway.get("/tls");
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.text().lines().last(), Some(&*format!("TLSv1.3 {asked_for} . NONE")));
            let metrics = gateway.admin("/metrics").text();
            let full = "blitz_upstream_tls_handshakes_total{version=\"1.3\",kind=\"full\"} 1\n";
            assert!(metrics.contains(full), "{metrics}");
            gateway.stop();
        }
    }

    fn a_certificate_of_a_stranger_is_refused(cell) {
        require!("nginx");
        let pki = Pki::new();
        pki.write_pair("up", &Authority::new("stranger").issue(&["127.0.0.1"], Algorithm::Ecdsa));
        let nginx = Nginx::start_tls(&pki, "up", "");
        let gateway = start(cell, &nginx, &ca(&pki));
        assert_refused(&gateway, &gateway.get("/"), "upstream_certificate_of_unknown_authority");
        gateway.stop();
    }

    fn a_certificate_for_another_name_is_refused(cell) {
        require!("nginx");
        let pki = Pki::new();
        pki.certificate("up", &["127.0.0.1", "api.test"], Algorithm::Ecdsa);
        let nginx = Nginx::start_tls(&pki, "up", "");
        let gateway = start(cell, &nginx, &(ca(&pki) + "server_name = \"other.test\""));
        assert_refused(&gateway, &gateway.get("/"), "upstream_certificate_for_other_name");
        gateway.stop();
    }

    fn an_expired_certificate_is_refused(cell) {
        require!("nginx");
        let pki = Pki::new();
        pki.write_pair("up", &pki.authority.issue_expired("127.0.0.1"));
        let nginx = Nginx::start_tls(&pki, "up", "");
        let gateway = start(cell, &nginx, &ca(&pki));
        assert_refused(&gateway, &gateway.get("/"), "upstream_certificate_expired");
        gateway.stop();
    }

    /// `verify = false` in the file, or `-k`, which warns.
    fn nobody_is_refused_where_that_is_asked_for(cell) {
        require!("nginx");
        let pki = Pki::new();
        pki.write_pair("up", &Authority::new("stranger").issue(&["other.test"], Algorithm::Rsa));
        let nginx = Nginx::start_tls(&pki, "up", "");
        let gateway = start(cell, &nginx, "verify = false");
        assert_eq!(gateway.get("/").status, 200);
        assert!(!gateway.log().contains("are not verified"));
        gateway.stop();
        let gateway = setup(cell, &nginx, &ca(&pki)).flag("-k").start();
        assert_eq!(gateway.get("/").status, 200);
        assert!(gateway.log().contains("-k: certificates of upstreams are not verified"), "{}", gateway.log());
        gateway.stop();
    }

    /// Without `ca_path` the system's authorities decide; without any the start is refused.
    fn the_system_is_asked_by_default(cell) {
        require!("nginx");
        let pki = Pki::new();
        pki.certificate("up", &["127.0.0.1"], Algorithm::Ecdsa);
        let nginx = Nginx::start_tls(&pki, "up", "");
        let store = pki.path("ca.pem");
        let gateway = setup(cell, &nginx, "").environment("SSL_CERT_FILE", &store).start();
        assert_eq!(gateway.get("/").status, 200);
        gateway.stop();
        let nowhere = pki.path("nowhere.pem");
        let mut gateway = setup(cell, &nginx, "").environment("SSL_CERT_FILE", &nowhere).spawn();
        assert_eq!(gateway.wait(PATIENCE).code(), Some(1));
        let log = gateway.log();
        for part in ["upstreams.pool.tls.ca_path: absent", "nowhere.pem", "verify = false"] {
            assert!(log.contains(part), "{log}");
        }
    }
}
