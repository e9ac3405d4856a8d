//! Certificates change under load, and no handshake fails; bad files change nothing and are named.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use blitz_tests::tls::{Algorithm, TlsClient, der, read};
use blitz_tests::{PATIENCE, Pki, Setup, Signal, matrix, wait_until};

/// Swaps in the ordinary test; `BLITZ_TLS_SWAPS` asks for more.
const SWAPS: usize = 200;

matrix! {
    fn swaps_under_load_fail_no_handshake(cell) {
        let swaps = std::env::var("BLITZ_TLS_SWAPS").ok().and_then(|text| text.parse().ok()).unwrap_or(SWAPS);
        let pki = Pki::new();
        let pairs: Vec<_> = (0..8).map(|_| pki.authority.issue(&["edge.test"], Algorithm::Ecdsa)).collect();
        pki.write_pair("edge", &pairs[0]);
        let gateway = Setup::new(cell).workers(2).config(&pki.listener(&["edge"], "")).start();
        let (done, good, bad) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !done.load(Ordering::SeqCst) {
                        let client = TlsClient::connect(gateway.address, "edge.test", &pki.client().build());
                        match client.and_then(|mut client| client.get("/hello")) {
                            Ok(answer) if answer.starts_with("HTTP/1.1 200") => drop(good.fetch_add(1, Ordering::SeqCst)),
                            Ok(answer) => bad.lock().expect("no panic").push(answer),
                            Err(error) => bad.lock().expect("no panic").push(error.to_string()),
                        }
                    }
                });
            }
            for n in 1..=swaps {
                pki.write_pair("edge", &pairs[n % pairs.len()]);
                let mut admin = blitz_tests::Client::connect(gateway.admin);
                admin.send("POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                let answer = admin.response();
                if answer.status != 200 {
                    bad.lock().expect("no panic").push(answer.text());
                    break;
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        let (good, bad) = (good.into_inner(), bad.into_inner().expect("no panic"));
        println!("{cell}: {swaps} swaps, {good} handshakes");
        assert!(bad.is_empty(), "{} of {good} failed, first: {}", bad.len(), bad[0]);
        assert!(good > 0);
        let client = TlsClient::connect(gateway.address, "edge.test", &pki.client().build()).expect("a handshake");
        assert_eq!(client.certificate(), der(&pairs[swaps % pairs.len()].certificate));
        gateway.stop();
    }

    fn a_bad_file_changes_nothing_and_is_named(cell) {
        let pki = Pki::edge();
        let gateway = Setup::new(cell).config(&pki.listener(&["edge"], "")).start();
        let good = (read(&pki.path("edge.crt")), read(&pki.path("edge.key")));
        let other = pki.authority.issue(&["edge.test"], Algorithm::Rsa);
        for (certificate, key, said) in [
            (&good.0, &other.key, "certificates[0].key_path: the key in"),
            (&String::new(), &good.1, "certificates[0].cert_path:"),
            (&good.0, &"nonsense".to_owned(), "holds no private key in PEM"),
        ] {
            let before = gateway.log().len();
            pki.write("edge.crt", certificate);
            pki.write("edge.key", key);
            gateway.signal(Signal::Hup);
            wait_until("the log names the mistake", PATIENCE, || gateway.log()[before..].contains(said));
            let client = TlsClient::connect(gateway.address, "edge.test", &pki.client().build()).expect("served");
            assert_eq!(client.certificate(), der(&good.0));
        }
        std::fs::remove_file(pki.path("edge.key")).expect("can be removed");
        let before = gateway.log().len();
        gateway.signal(Signal::Hup);
        wait_until("the log names the file", PATIENCE, || {
            gateway.log()[before..].contains("listeners[0].tls.certificates[0].key_path: cannot read")
        });
        // One that has expired is used, loudly: it is one of many.
        pki.write_pair("edge", &pki.authority.issue_expired("edge.test"));
        let before = gateway.log().len();
        gateway.signal(Signal::Hup);
        wait_until("the log names the certificate", PATIENCE, || gateway.log()[before..].contains("has expired"));
        gateway.stop();
    }
}
