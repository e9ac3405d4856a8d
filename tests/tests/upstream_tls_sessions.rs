//! Connections to endpoints over TLS: kept, resumed, made anew when what was checked changes; and what is told of them.

use blitz_tests::gateway::one_upstream;
use blitz_tests::tls::{Algorithm, Authority};
use blitz_tests::{Cell, Gateway, Nginx, PATIENCE, Pki, Setup, Signal, matrix, require, wait_until};

/// The last lines of `/tls`, one for each request, each on a connection of its own to the gateway.
fn visits(gateway: &Gateway, count: usize) -> Vec<String> {
    let visit = |_| {
        let answer = gateway.get("/tls");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text().trim_end().lines().last().unwrap_or_default().to_owned()
    };
    (0..count).map(visit).collect()
}

fn pki() -> Pki {
    let pki = Pki::new();
    pki.certificate("up", &["127.0.0.1"], Algorithm::Ecdsa);
    pki
}

fn setup(cell: Cell, pki: &Pki, nginx: &Nginx, tls: &str, more: &str) -> Setup {
    let table =
        format!("{more}\n[upstreams.pool.tls]\nca_path = \"{}\"\n{tls}", pki.path("ca.pem").display());
    Setup::new(cell).config(&one_upstream(&[nginx.address], &table))
}

/// No connection is kept.
const NO_POOL: &str = "[upstreams.pool.pool]\nidle_connections_max = 0\n";

#[track_caller]
fn assert_metric(gateway: &Gateway, line: &str) {
    let metrics = gateway.admin("/metrics").text();
    assert!(metrics.contains(&format!("{line}\n")), "{line} is not in\n{metrics}");
}

matrix! {
    /// nginx sends its tickets on connections that are idle afterwards; they do not make one stale.
    fn connections_are_kept(cell) {
        require!("nginx");
        let pki = pki();
        let nginx = Nginx::start_tls(&pki, "up", "");
        let gateway = setup(cell, &pki, &nginx, "", "").start();
        assert_eq!(visits(&gateway, 6), vec!["TLSv1.3  . NONE"; 6]);
        assert_metric(&gateway, "blitz_upstream_connects_total{result=\"ok\"} 1");
        assert_metric(&gateway, "blitz_upstream_reuses_total 5");
        assert_metric(&gateway, "blitz_upstream_pool_closes_total{reason=\"stale\"} 0");
        gateway.stop();
    }

    fn sessions_are_resumed(cell) {
        require!("nginx");
        let pki = pki();
        for (only, shown, version) in
            [("", "TLSv1.3", "1.3"), ("ssl_protocols TLSv1.2;", "TLSv1.2", "1.2")]
        {
            let nginx = Nginx::start_tls(&pki, "up", only);
            let gateway = setup(cell, &pki, &nginx, "", NO_POOL).start();
            let seen = visits(&gateway, 5);
            assert_eq!(seen[0], format!("{shown}  . NONE"));
            assert_eq!(seen[1..], vec![format!("{shown}  r NONE"); 4]);
            let count = |kind, count| {
                format!("blitz_upstream_tls_handshakes_total{{version=\"{version}\",kind=\"{kind}\"}} {count}")
            };
            assert_metric(&gateway, &count("full", 1));
            assert_metric(&gateway, &count("resumed", 4));
            gateway.stop();
        }
    }

    fn an_old_endpoint_can_be_refused(cell) {
        require!("nginx");
        let pki = pki();
        let nginx = Nginx::start_tls(&pki, "up", "ssl_protocols TLSv1.2;");
        let gateway = setup(cell, &pki, &nginx, "min_version = \"1.3\"", "").start();
        let answer = gateway.get("/tls");
        assert_eq!(answer.status, 502);
        let said = "blitz; error=tls_alert_received; details=\"upstream_alert_protocol_version\"";
        assert_eq!(answer.field("proxy-status"), Some(said));
        assert_metric(&gateway, "blitz_upstream_tls_handshake_failures_total{reason=\"alert\"} 1");
        gateway.stop();
    }

    /// Also for what is pooled: a connection is as good as the authorities that it was checked against.
    fn authorities_are_read_again_on_reload(cell) {
        require!("nginx");
        let pki = pki();
        let nginx = Nginx::start_tls(&pki, "up", "");
        let gateway = setup(cell, &pki, &nginx, "", "").start();
        assert_eq!(gateway.get("/").status, 200);
        let good = blitz_tests::tls::read(&pki.path("ca.pem"));
        for (authorities, status) in [(&Authority::new("stranger").certificate, 502), (&good, 200)] {
            pki.write("ca.pem", authorities);
            gateway.signal(Signal::Hup);
            wait_until("the authorities take effect", PATIENCE, || gateway.get("/").status == status);
        }
        // A reload that changes nothing here keeps what is pooled.
        let metrics = gateway.admin("/metrics").text();
        let connects = metrics.lines().find(|line| line.starts_with("blitz_upstream_connects_total{result=\"ok\"}"));
        let connects = connects.expect("counted").to_owned();
        let before = gateway.log().len();
        gateway.signal(Signal::Hup);
        wait_until("it is reloaded", PATIENCE, || gateway.log()[before..].contains("reloaded: generation"));
        assert_eq!(gateway.get("/").status, 200);
        assert_metric(&gateway, &connects);
        // What cannot be read changes nothing and is named.
        pki.write("ca.pem", "nonsense");
        let before = gateway.log().len();
        gateway.signal(Signal::Hup);
        wait_until("the log names the mistake", PATIENCE, || {
            gateway.log()[before..].contains("upstreams.pool.tls.ca_path:")
        });
        assert_eq!(gateway.get("/").status, 200);
        gateway.stop();
    }

    /// The endpoint picks of what is offered, HTTP/2 first; what was picked is spoken, by many requests together.
    fn the_protocol_is_agreed_on(cell) {
        require!("nginx");
        let pki = pki();
        let (both, old) = (Nginx::start_tls_h2(&pki, "up"), Nginx::start_tls(&pki, "up", ""));
        let table = format!("[upstreams.pool.tls]\nca_path = \"{}\"", pki.path("ca.pem").display());
        for (nginx, protocol, expected) in [
            (&both, "auto", "HTTP/2.0"),
            (&both, "h2", "HTTP/2.0"),
            (&both, "h1", "HTTP/1.1"),
            (&old, "auto", "HTTP/1.1"),
            (&old, "h1", "HTTP/1.1"),
            (&old, "h2", "upstream_alert_no_application_protocol"),
        ] {
            let config = one_upstream(&[nginx.address], &table);
            let with = format!("[upstreams.pool]\nprotocol = \"{protocol}\"\n");
            let gateway = Setup::new(cell).config(&config.replace("[upstreams.pool]\n", &with)).start();
            for _ in 0..3 {
                let answer = gateway.get("/version");
                assert!(answer.text().trim_end().ends_with(expected), "{protocol}: {}", answer.text());
                assert_eq!(answer.status, if expected.starts_with("HTTP") { 200 } else { 502 });
            }
            if expected.starts_with("HTTP") {
                assert_metric(&gateway, "blitz_upstream_connects_total{result=\"ok\"} 1");
            }
            gateway.stop();
        }
    }

    fn handshakes_are_told_and_their_secrets_where_asked_for(cell) {
        require!("nginx");
        let pki = pki();
        pki.certificate("api", &["api.test"], Algorithm::Ecdsa);
        let nginx = Nginx::start_tls(&pki, "api", "");
        let secrets = pki.path("secrets");
        let gateway = setup(cell, &pki, &nginx, "server_name = \"api.test\"", NO_POOL)
            .flag("--tls-trace")
            .flag("--tls-key-log")
            .environment("SSLKEYLOGFILE", &secrets)
            .start();
        visits(&gateway, 2);
        let begin = format!(" tls: side=upstream {} version=1.3 group=", nginx.address);
        let told = |resumed: &str| {
            let end = format!(" alpn=http/1.1 sni=api.test resumed={resumed}");
            gateway.log().lines().filter(|line| line.contains(&begin) && line.ends_with(&end)).count()
        };
        wait_until("both handshakes are told", PATIENCE, || told("no") == 1 && told("yes") == 1);
        assert_eq!(blitz_tests::tls::read(&secrets).matches("CLIENT_TRAFFIC_SECRET_0").count(), 2);
        gateway.stop();
    }
}
