//! One GiB in each direction to and from an endpoint over TLS, in little memory.

use std::process::{Command, Stdio};

use blitz_tests::gateway::one_upstream;
use blitz_tests::tls::Algorithm;
use blitz_tests::{Cell, Gateway, Nginx, Pki, Setup, matrix, require};

const GIB: u64 = 1 << 30;
/// Resident memory of one worker, at most: as towards clients.
const WORKER_BYTES_MAX: u64 = 32 << 20;

/// Runs curl and samples the workers' memory meanwhile; what it says, and the largest sample.
fn curl(gateway: &Gateway, args: &[&str], path: &str) -> (String, u64) {
    let (output, peak) = gateway.peak_memory(|| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "--noproxy", "*", "-m", "300"]).args(args).stdin(Stdio::null());
        curl.arg(format!("http://{}{path}", gateway.address)).output()
    });
    let output = output.expect("curl can be executed");
    assert!(output.status.success(), "curl: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    (String::from_utf8_lossy(&output.stdout).into_owned(), peak)
}

fn assert_small(peak: u64) {
    println!("at most {} KiB", peak / 1024);
    assert!(peak > 0, "no worker was seen");
    assert!(peak < WORKER_BYTES_MAX, "a worker held {} KiB", peak / 1024);
}

fn start(cell: Cell) -> (Gateway, Nginx, Pki) {
    let pki = Pki::new();
    pki.certificate("up", &["127.0.0.1"], Algorithm::Ecdsa);
    let nginx = Nginx::start_tls(&pki, "up", "");
    let tls = format!("[upstreams.pool.tls]\nca_path = \"{}\"\n", pki.path("ca.pem").display());
    (Setup::new(cell).config(&one_upstream(&[nginx.address], &tls)).start(), nginx, pki)
}

matrix! {
    fn a_gib_down(cell) {
        require!("nginx", "curl");
        let (gateway, nginx, _pki) = start(cell);
        nginx.sparse_file("big", GIB);
        let args = ["-o", "/dev/null", "-w", "%{http_code} %{size_download}"];
        let (said, peak) = curl(&gateway, &args, "/file/big");
        assert_eq!(said, format!("200 {GIB}"));
        assert_small(peak);
        gateway.stop();
    }

    fn a_gib_up(cell) {
        require!("nginx", "curl");
        let (gateway, _nginx, pki) = start(cell);
        let file = pki.path("big");
        std::fs::File::create(&file).and_then(|file| file.set_len(GIB)).expect("a sparse file can be made");
        let (said, peak) = curl(&gateway, &["-T", &file.to_string_lossy()], "/sink");
        assert_eq!(said, GIB.to_string(), "bytes that arrived behind nginx");
        assert_small(peak);
        gateway.stop();
    }
}
