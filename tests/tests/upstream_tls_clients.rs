//! An endpoint that asks who we are is shown the configured certificate.

use blitz_tests::gateway::one_upstream;
use blitz_tests::tls::{Algorithm, Authority};
use blitz_tests::{Cell, Gateway, Nginx, Pki, Setup, matrix, require};

fn pki() -> (Pki, Authority) {
    let pki = Pki::new();
    pki.certificate("up", &["127.0.0.1"], Algorithm::Ecdsa);
    let clients = Authority::new("clients");
    pki.write("clients.pem", &clients.certificate);
    pki.write_pair("gateway", &clients.issue(&["gateway"], Algorithm::Ecdsa));
    (pki, clients)
}

fn start(cell: Cell, pki: &Pki, endpoint: std::net::SocketAddr, shows: Option<&str>) -> Gateway {
    let shown = |name: &str| {
        let (certificate, key) = (pki.path(&format!("{name}.crt")), pki.path(&format!("{name}.key")));
        format!("cert_path = \"{}\"\nkey_path = \"{}\"\n", certificate.display(), key.display())
    };
    let tls = format!(
        "[upstreams.pool.tls]\nca_path = \"{}\"\n{}",
        pki.path("ca.pem").display(),
        shows.map(shown).unwrap_or_default()
    );
    Setup::new(cell).config(&one_upstream(&[endpoint], &tls)).start()
}

matrix! {
    fn nginx_demands_a_certificate(cell) {
        require!("nginx");
        let (pki, _) = pki();
        let demand =
            format!("ssl_client_certificate {}; ssl_verify_client on;", pki.path("clients.pem").display());
        let nginx = Nginx::start_tls(&pki, "up", &demand);
        let gateway = start(cell, &pki, nginx.address, Some("gateway"));
        let answer = gateway.get("/tls");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.text().trim_end().ends_with("SUCCESS"), "{}", answer.text());
        gateway.stop();
        // Without one nginx itself says no, in HTTP.
        let gateway = start(cell, &pki, nginx.address, None);
        let answer = gateway.get("/tls");
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains("No required SSL certificate was sent"), "{}", answer.text());
        gateway.stop();
    }

    /// Over TLS 1.3 an endpoint can refuse only after we believe the handshake to be over.
    fn a_refusal_after_the_handshake_is_named(cell) {
        let (pki, _) = pki();
        let demand = format!(
            "[listeners.tls.client_auth]\nmode = \"required\"\nca_path = \"{}\"",
            pki.path("clients.pem").display()
        );
        let endpoint = Setup::new(cell).config(&pki.listener(&["up"], &demand)).start();
        let gateway = start(cell, &pki, endpoint.address, Some("gateway"));
        assert_eq!(gateway.get("/health").status, 200);
        assert_eq!(gateway.get("/echo/x").status, 200);
        gateway.stop();
        let gateway = start(cell, &pki, endpoint.address, None);
        let answer = gateway.get("/elsewhere");
        assert_eq!(answer.status, 502);
        let said = answer.field("proxy-status").unwrap_or_default();
        assert!(said.contains("details=\"upstream_alert_certificate_required\""), "{said}");
        gateway.stop();
        endpoint.stop();
    }
}
