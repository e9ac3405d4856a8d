//! 1 GiB each way, whatever protocol either side speaks, without the worker growing.

use std::process::{Command, Stdio};

use blitz_tests::pair::{Http, Pair};
use blitz_tests::{Cell, Gateway, Io, Mode, Nginx, require};

/// Bytes of a transfer.
const LARGE: u64 = 1 << 30;
/// Resident memory of one worker, at most, while it moves bodies.
const WORKER_BYTES_MAX: u64 = 32 << 20;

fn curl(gateway: &Gateway, down: Http, args: &[&str]) -> String {
    let version = if down == Http::H1 { "--http1.1" } else { "--http2-prior-knowledge" };
    let (output, peak) = gateway.peak_memory(|| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", version, "--noproxy", "*", "-m", "240"]).args(args).stdin(Stdio::null());
        curl.output().expect("curl can be executed")
    });
    assert!(output.status.success(), "curl: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    assert!(peak < WORKER_BYTES_MAX, "{} MiB of memory", peak >> 20);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn both_ways(down: Http, up: Http) {
    require!("curl", "nginx");
    for io in [Io::Uring, Io::Epoll] {
        let Some(cell) = Cell::available(io, Mode::Mp) else { continue };
        let nginx = if up == Http::H1 { Nginx::start() } else { Nginx::start_h2() };
        nginx.sparse_file("big", LARGE);
        let file = tempfile::NamedTempFile::new().expect("a file can be made");
        file.as_file().set_len(LARGE).expect("a sparse file can be made");
        let gateway = Pair { cell, down, up }.gateway(nginx.address, "");
        let url = |path: &str| format!("http://{}{path}", gateway.address);
        let written = curl(&gateway, down, &["-o", "/dev/null", "-w", "%{size_download}", &url("/file/big")]);
        assert_eq!(written, LARGE.to_string());
        let path = file.path().to_string_lossy();
        // The number of bytes that arrived behind nginx.
        assert_eq!(curl(&gateway, down, &["-T", &path, &url("/sink")]), LARGE.to_string());
        gateway.stop();
    }
}

#[test]
fn h1_h1() {
    both_ways(Http::H1, Http::H1);
}

#[test]
fn h1_h2() {
    both_ways(Http::H1, Http::H2);
}

#[test]
fn h2_h1() {
    both_ways(Http::H2, Http::H1);
}

#[test]
fn h2_h2() {
    both_ways(Http::H2, Http::H2);
}
