//! What is agreed on in a handshake: version, certificate, signature, group, protocol.

use std::process::{Command, Stdio};

use blitz_tests::tls::{Algorithm, TlsClient, der, read};
use blitz_tests::{Gateway, PATIENCE, Pki, Setup, Upstream, matrix, require, wait_until};
use rustls::{NamedGroup, ProtocolVersion, SignatureScheme};

/// curl by the name `edge.test`; its exit status and what it says.
fn curl(gateway: &Gateway, pki: &Pki, args: &[&str]) -> (bool, String) {
    let port = gateway.address.port();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--noproxy", "*", "-m", "10", "--resolve", &format!("edge.test:{port}:127.0.0.1")]);
    curl.arg("--cacert").arg(pki.path("ca.pem")).args(args);
    curl.arg(format!("https://edge.test:{port}/hello")).stdin(Stdio::null());
    let output = curl.output().expect("curl can be executed");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

matrix! {
    /// TLS 1.3 always, 1.2 only where the file says so.
    fn versions(cell) {
        require!("curl");
        let pki = Pki::edge();
        let gateway = Setup::new(cell).config(&pki.listener(&["edge"], "")).start();
        assert_eq!(curl(&gateway, &pki, &["--tlsv1.3"]), (true, "Hello from Blitz\n".to_owned()));
        let (is_good, said) = curl(&gateway, &pki, &["--tls-max", "1.2"]);
        assert!(!is_good && said.contains("alert protocol version"), "{said}");
        let metrics = || gateway.admin("/metrics").text();
        let metrics_then = metrics();
        assert!(metrics_then.contains("blitz_tls_handshakes_total{version=\"1.3\",kind=\"full\"} 1"), "{metrics_then}");
        let failed = "blitz_tls_handshake_failures_total{reason=\"nothing_in_common\"} 1";
        wait_until("the failure is counted", PATIENCE, || metrics().contains(failed));
        gateway.stop();

        let gateway = Setup::new(cell).config(&pki.listener(&["edge"], "min_version = \"1.2\"")).start();
        for version in [&["--tlsv1.3"][..], &["--tls-max", "1.2"]] {
            assert_eq!(curl(&gateway, &pki, version), (true, "Hello from Blitz\n".to_owned()));
        }
        gateway.stop();
    }

    /// Exact name, wildcard of one label, default for all else.
    fn names(cell) {
        let pki = Pki::new();
        pki.certificate("first", &["first.test"], Algorithm::Ecdsa);
        pki.certificate("exact", &["a.example.test"], Algorithm::Ecdsa);
        pki.certificate("wild", &["*.example.test", "example.test"], Algorithm::Ecdsa);
        let gateway = Setup::new(cell).config(&pki.listener(&["first", "exact", "wild"], "")).start();
        let served = |name: &str| {
            let client = TlsClient::connect(gateway.address, name, &pki.client().build()).expect(name);
            client.certificate()
        };
        let pem = |name: &str| der(&read(&pki.path(&format!("{name}.crt"))));
        assert_eq!(served("first.test"), pem("first"));
        assert_eq!(served("a.example.test"), pem("exact"));
        assert_eq!(served("A.Example.TEST"), pem("exact"));
        assert_eq!(served("b.example.test"), pem("wild"));
        assert_eq!(served("example.test"), pem("wild"));
        // The default is not for these names, as the client says.
        for name in ["a.b.example.test", "other.test", "127.0.0.1"] {
            let error = TlsClient::connect(gateway.address, name, &pki.client().build()).expect_err(name);
            assert!(error.to_string().contains("not valid for name"), "{name}: {error}");
        }
        gateway.stop();
    }

    /// ECDSA for who knows it, RSA for who does not, in either order of the file.
    fn signatures(cell) {
        let pki = Pki::new();
        pki.certificate("ec", &["edge.test"], Algorithm::Ecdsa);
        pki.certificate("rsa", &["edge.test"], Algorithm::Rsa);
        for order in [["ec", "rsa"], ["rsa", "ec"]] {
            let config = pki.listener(&order, "min_version = \"1.2\"");
            let gateway = Setup::new(cell).config(&config).start();
            for (name, scheme) in
                [("ec", SignatureScheme::ECDSA_NISTP256_SHA256), ("rsa", SignatureScheme::RSA_PSS_SHA256)]
            {
                for client in [pki.client(), pki.client().tls12()] {
                    // The authority's own signature is ECDSA, and is verified by other means.
                    let client = client.schemes(&[scheme]).build();
                    let client = TlsClient::connect(gateway.address, "edge.test", &client).expect(name);
                    assert_eq!(client.certificate(), der(&read(&pki.path(&format!("{name}.crt")))), "{name}");
                }
            }
            let both = TlsClient::connect(gateway.address, "edge.test", &pki.client().build()).expect("both");
            assert_eq!(both.certificate(), der(&read(&pki.path("ec.crt"))));
            let none = pki.client().schemes(&[SignatureScheme::ED25519]).build();
            TlsClient::connect(gateway.address, "edge.test", &none).expect_err("nothing in common");
            gateway.stop();
        }
    }

    /// The hybrid group for who offers it, X25519 else; `http/1.1` by ALPN, an alert where nothing is in common.
    fn groups_and_protocols(cell) {
        let pki = Pki::edge();
        let upstream = Upstream::echoing_targets();
        let route = format!("[upstreams.pool]\nendpoints = [{{ address = \"{}\" }}]\n\
                             [[routes]]\npath = \"/up/*rest\"\nupstream = \"pool\"\n", upstream.address);
        let config = pki.listener(&["edge"], "") + &route;
        let gateway = Setup::new(cell).config(&config).flag("--tls-trace").start();
        let connect = |setup: blitz_tests::tls::TlsSetup| {
            TlsClient::connect(gateway.address, "edge.test", &setup.build())
        };
        let mut client = connect(pki.client().group(NamedGroup::X25519MLKEM768).alpn("h2").alpn("http/1.1")).expect("h1");
        let agreed = client.agreed();
        assert_eq!(agreed.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(agreed.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let group = |client: &TlsClient| client.agreed().negotiated_key_exchange_group().map(|group| group.name());
        assert_eq!(group(&client), Some(NamedGroup::X25519MLKEM768));
        let answer = client.get("/up/a").expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(upstream.requests()[0].field("x-forwarded-proto"), Some("https"));
        let client = connect(pki.client().group(NamedGroup::X25519)).expect("X25519");
        assert_eq!(group(&client), Some(NamedGroup::X25519));
        assert_eq!(client.agreed().alpn_protocol(), None);
        let error = connect(pki.client().alpn("smtp")).expect_err("nothing in common");
        assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
        let log = gateway.log();
        let line = "version=1.3 group=X25519MLKEM768 cipher=TLS13_AES_256_GCM_SHA384 alpn=http/1.1 sni=edge.test resumed=no";
        assert!(log.contains(line), "{log}");
        gateway.stop();
    }

    /// Many requests on one connection, with fresh keys in between.
    fn a_kept_connection_takes_fresh_keys(cell) {
        let pki = Pki::edge();
        let gateway = Setup::new(cell).config(&pki.listener(&["edge"], "")).start();
        let mut client =
            TlsClient::connect(gateway.address, "edge.test", &pki.client().build()).expect("a handshake");
        for n in 0..40 {
            if n % 4 == 3 {
                client.update_keys().expect("fresh keys");
            }
            client.get_kept("/hello", "Hello from Blitz\n").expect("an answer");
        }
        client.finish().expect("said");
        assert_eq!(client.rest().expect("an orderly end"), "");
        gateway.stop();
    }

    /// What `ocsp_path` names is stapled; the secrets of a connection are written where a flag says so, and only then.
    fn staples_and_secrets(cell) {
        require!("openssl");
        let pki = Pki::edge();
        // A response of status "tryLater" (RFC 6960 section 4.2.1), which has no more to it.
        std::fs::write(pki.path("edge.ocsp"), [0x30, 3, 0x0a, 1, 3]).expect("can be written");
        let ocsp = format!("ocsp_path = \"{}\" }}", pki.path("edge.ocsp").display());
        let config = pki.listener(&["edge"], "").replace(".key\" }", &format!(".key\", {ocsp}"));
        let secrets = pki.path("secrets");
        for with_flag in [false, true] {
            let mut setup = Setup::new(cell).config(&config).environment("SSLKEYLOGFILE", &secrets);
            if with_flag {
                setup = setup.flag("--tls-key-log");
            }
            let gateway = setup.start();
            let mut openssl = Command::new("openssl");
            openssl.args(["s_client", "-status", "-servername", "edge.test", "-connect"]);
            let output = openssl.arg(gateway.address.to_string()).stdin(Stdio::null()).output();
            let text = String::from_utf8_lossy(&output.expect("openssl can be executed").stdout).into_owned();
            assert!(text.contains("OCSP Response Status: trylater"), "{text}");
            assert_eq!(secrets.exists(), with_flag);
            gateway.stop();
        }
        let lines = read(&secrets);
        assert!(lines.lines().any(|line| line.starts_with("SERVER_TRAFFIC_SECRET_0 ")), "{lines}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&secrets).expect("there").permissions());
        assert_eq!(mode & 0o777, 0o600);
    }
}
