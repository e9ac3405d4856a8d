//! HTTP/2 over TLS, agreed on by ALPN.

use std::process::{Command, Stdio};

use blitz_tests::tls::TlsClient;
use blitz_tests::{Gateway, Nginx, Pki, Setup, matrix, require};

const BODY_BYTES: u64 = 256 << 20;

fn curl(gateway: &Gateway, pki: &Pki, args: &[&str], path: &str) -> String {
    let port = gateway.address.port();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--fail", "--noproxy", "*", "-m", "100"]).args(args).stdin(Stdio::null());
    curl.args(["--resolve", &format!("edge.test:{port}:127.0.0.1"), "--cacert"]).arg(pki.path("ca.pem"));
    let output = curl.arg(format!("https://edge.test:{port}{path}")).output().expect("curl can be executed");
    assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn start(cell: blitz_tests::Cell, protocols: &str, nginx: &Nginx) -> (Gateway, Pki) {
    let pki = Pki::edge();
    let route = format!(
        "[upstreams.pool]\nendpoints = [{{ address = \"{}\" }}]\n[[routes]]\nupstream = \"pool\"\n",
        nginx.address
    );
    let config = (pki.listener(&["edge"], "") + &route).replace("[\"h1\"]", protocols);
    (Setup::new(cell).config(&config).start(), pki)
}

matrix! {
    /// h2 where both speak it, whatever the order in the file; HTTP/1.1 for who offers no more, or nothing.
    fn alpn_chooses(cell) {
        require!("curl", "nginx");
        let nginx = Nginx::start();
        let (gateway, pki) = start(cell, "[\"h1\", \"h2\"]", &nginx);
        let version = ["-o", "/dev/null", "-w", "%{http_version} %{http_code}"];
        let with = |flag: &str| curl(&gateway, &pki, &[&version[..], &[flag]].concat(), "/");
        assert_eq!(with("--http2"), "2 200");
        assert_eq!(with("--http1.1"), "1.1 200");
        assert_eq!(with("--no-alpn"), "1.1 200");
        gateway.stop();
        // Without h1, a client that agrees on nothing is told so in the words of HTTP/2.
        let (gateway, pki) = start(cell, "[\"h2\"]", &nginx);
        let with = |flag: &str| curl(&gateway, &pki, &[&version[..], &[flag]].concat(), "/");
        assert_eq!(with("--http2"), "2 200");
        let mut client = TlsClient::connect(gateway.address, "edge.test", &pki.client().build()).expect("TLS");
        assert_eq!(client.rest().map(|answer| answer.is_empty()).ok(), Some(false));
        let only_h1 = pki.client().alpn("http/1.1").build();
        TlsClient::connect(gateway.address, "edge.test", &only_h1).expect_err("nothing in common");
        gateway.stop();
    }

    fn bodies_both_ways(cell) {
        require!("curl", "nginx");
        let nginx = Nginx::start();
        nginx.sparse_file("big", BODY_BYTES);
        let (gateway, pki) = start(cell, "[\"h1\", \"h2\"]", &nginx);
        let args = ["--http2", "-o", "/dev/null", "-w", "%{http_version} %{size_download}"];
        assert_eq!(curl(&gateway, &pki, &args, "/file/big"), format!("2 {BODY_BYTES}"));
        let file = pki.path("big");
        std::fs::File::create(&file).and_then(|file| file.set_len(BODY_BYTES)).expect("a sparse file can be made");
        let said = curl(&gateway, &pki, &["--http2", "-T", &file.to_string_lossy()], "/sink");
        assert_eq!(said, BODY_BYTES.to_string(), "bytes that arrived behind nginx");
        gateway.stop();
    }
}
