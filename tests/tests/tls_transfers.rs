//! One GiB in each direction over TLS, in little memory.

use std::process::{Command, Stdio};

use blitz_tests::{Gateway, Nginx, Pki, Setup, matrix, require};

const GIB: u64 = 1 << 30;
/// Resident memory of one worker, at most: as without TLS, and what the library itself takes.
const WORKER_BYTES_MAX: u64 = 32 << 20;

/// Runs curl and samples the workers' memory meanwhile; what it says, and the largest sample.
fn curl(gateway: &Gateway, pki: &Pki, args: &[&str], path: &str) -> (String, u64) {
    let port = gateway.address.port();
    let (output, peak) = gateway.peak_memory(|| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "--noproxy", "*", "-m", "300"]).args(args).stdin(Stdio::null());
        curl.args(["--resolve", &format!("edge.test:{port}:127.0.0.1"), "--cacert"]).arg(pki.path("ca.pem"));
        curl.arg(format!("https://edge.test:{port}{path}")).output()
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

fn start(cell: blitz_tests::Cell, nginx: &Nginx) -> (Gateway, Pki) {
    let pki = Pki::edge();
    let route = format!(
        "[upstreams.pool]\nendpoints = [{{ address = \"{}\" }}]\n[[routes]]\nupstream = \"pool\"\n",
        nginx.address
    );
    (Setup::new(cell).config(&(pki.listener(&["edge"], "") + &route)).start(), pki)
}

matrix! {
    fn a_gib_down(cell) {
        require!("nginx", "curl");
        let nginx = Nginx::start();
        nginx.sparse_file("big", GIB);
        let (gateway, pki) = start(cell, &nginx);
        let args = ["-o", "/dev/null", "-w", "%{http_code} %{size_download}"];
        let (said, peak) = curl(&gateway, &pki, &args, "/file/big");
        assert_eq!(said, format!("200 {GIB}"));
        assert_small(peak);
        gateway.stop();
    }

    fn a_gib_up(cell) {
        require!("nginx", "curl");
        let nginx = Nginx::start();
        let (gateway, pki) = start(cell, &nginx);
        let file = pki.path("big");
        std::fs::File::create(&file).and_then(|file| file.set_len(GIB)).expect("a sparse file can be made");
        let (said, peak) = curl(&gateway, &pki, &["-T", &file.to_string_lossy()], "/sink");
        assert_eq!(said, GIB.to_string(), "bytes that arrived behind nginx");
        assert_small(peak);
        gateway.stop();
    }
}
