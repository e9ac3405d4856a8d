//! Certificates over QUIC as over TCP: those of clients, staples, the key log.

use boring::ssl::SslRef;

use blitz_tests::h3::{self, H3};
use blitz_tests::tls::{Algorithm, Authority, Pair, read};
use blitz_tests::{PATIENCE, Pki, Setup, matrix, wait_until};

/// Codes of CONNECTION_CLOSE for alerts of TLS (RFC 9001 section 4.8).
const BAD_CERTIFICATE: u64 = 0x12a;
const CERTIFICATE_REQUIRED: u64 = 0x174;

/// How a client fares that shows `pair`: the code of the gateway's refusal, or an answer's status.
fn fares(address: std::net::SocketAddr, pki: &Pki, pair: Option<&Pair>) -> Result<u16, u64> {
    let mut config = h3::config();
    if let Some(pair) = pair {
        pki.write_pair("client", pair);
        let path = |name: &str| pki.path(name).to_string_lossy().into_owned();
        config.load_cert_chain_from_pem_file(&path("client.crt")).expect("a certificate");
        config.load_priv_key_from_pem_file(&path("client.key")).expect("a key");
    }
    let mut client = H3::start(address, "edge.test", &mut config, None);
    // It is done for the client before it is for the gateway.
    if client.shake_hands().is_ok() {
        let id = client.begin_get("/hello");
        let got = client.outcome(id);
        if got.is_whole {
            return Ok(got.status());
        }
    }
    let (is_application, code) = client.close_code();
    assert!(!is_application, "{code:#x}");
    Err(code)
}

matrix! {
    fn clients_certificates(cell) {
        let pki = Pki::edge();
        let clients = Authority::new("clients");
        pki.write("clients.pem", &clients.certificate);
        pki.write("list.pem", &clients.revoke(&[8], 2100));
        let (good, revoked) = (clients.issue_numbered("good", 7), clients.issue_numbered("bad", 8));
        let (old, stranger) = (clients.issue_expired("old"), Authority::new("strangers").issue(&["good"], Algorithm::Ecdsa));
        for (mode, without) in [("required", Err(CERTIFICATE_REQUIRED)), ("optional", Ok(200))] {
            let more = format!(
                "[listeners.tls.client_auth]\nmode = \"{mode}\"\nca_path = \"{}\"\ncrl_path = \"{}\"",
                pki.path("clients.pem").display(),
                pki.path("list.pem").display()
            );
            let gateway = Setup::new(cell).config(&pki.h3_listener(&more)).start();
            assert_eq!(fares(gateway.address, &pki, Some(&good)), Ok(200), "{mode}");
            assert_eq!(fares(gateway.address, &pki, None), without, "{mode}");
            for bad in [&revoked, &old, &stranger] {
                assert_eq!(fares(gateway.address, &pki, Some(bad)), Err(BAD_CERTIFICATE), "{mode}");
            }
            let failures = 3 + u64::from(without.is_err());
            wait_until("each failure is counted as one", PATIENCE, || {
                gateway.metric("blitz_tls_handshake_failures_total{reason=\"client_certificate\"}") == failures
            });
            gateway.stop();
        }
    }

    fn staples(cell) {
        let pki = Pki::edge();
        // A response of status "tryLater" (RFC 6960 section 4.2.1), which has no more to it.
        let staple = [0x30, 3, 0x0a, 1, 3];
        std::fs::write(pki.path("edge.ocsp"), staple).expect("can be written");
        let ocsp = format!("ocsp_path = \"{}\" }}", pki.path("edge.ocsp").display());
        let toml = pki.h3_listener("").replace(".key\" }", &format!(".key\", {ocsp}"));
        let gateway = Setup::new(cell).config(&toml).start();
        for is_wanted in [true, false] {
            let mut config = h3::config_with(|tls| if is_wanted { tls.enable_ocsp_stapling() });
            let mut client = H3::try_connect(gateway.address, "edge.test", &mut config).expect("a handshake");
            let tls: &SslRef = client.quic.as_mut();
            let stapled = tls.ocsp_status().map(<[u8]>::to_vec);
            assert_eq!(stapled, is_wanted.then(|| staple.to_vec()));
        }
        gateway.stop();
    }

    /// With what is logged, and only then, a capture of packets can be read.
    fn secrets(cell) {
        let pki = Pki::edge();
        let (theirs, ours) = (pki.path("secrets"), pki.path("the clients secrets"));
        for with_flag in [false, true] {
            let mut setup = Setup::new(cell).config(&pki.h3_listener("")).environment("SSLKEYLOGFILE", &theirs);
            if with_flag {
                setup = setup.flag("--tls-key-log");
            }
            let gateway = setup.start();
            let mut config = h3::config();
            config.log_keys();
            let mut client = H3::start(gateway.address, "edge.test", &mut config, None);
            client.quic.set_keylog(Box::new(std::fs::File::create(&ours).expect("can be written")));
            client.shake_hands().expect("a handshake");
                assert_eq!(client.get("/hello").status(), 200);
            assert_eq!(theirs.exists(), with_flag);
            gateway.stop();
        }
        let theirs = read(&theirs);
        let of_traffic: Vec<_> = read(&ours).lines().filter(|line| line.contains("TRAFFIC_SECRET")).map(str::to_owned).collect();
        assert_eq!(of_traffic.len(), 4, "{of_traffic:?}");
        for line in &of_traffic {
            assert!(theirs.contains(line), "{line}\n{theirs}");
        }
    }
}
