//! Large bodies each way, whatever protocol either side speaks, without the worker growing.

use std::process::{Command, Stdio};

use blitz_tests::h3::request;
use blitz_tests::pair::{Http, Pair};
use blitz_tests::{Cell, Gateway, H3, Io, Mode, Nginx, require};

/// Bytes of a transfer.
const LARGE: u64 = 1 << 30;
/// The same over HTTP/3, whose client is a debug build too; `BLITZ_H3_LARGE_BYTES` asks for more.
const LARGE_H3: u64 = 24 << 20;
/// Resident memory of one worker, at most, while it moves bodies.
const WORKER_BYTES_MAX: u64 = 32 << 20;
/// The same over HTTP/3: what is in flight is this process's, not the kernel's.
const WORKER_BYTES_MAX_H3: u64 = 40 << 20;

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

fn both_ways(down: Http, up: Http, run: impl Fn(Pair<'static>, fn(Pair<'_>))) {
    require!("curl", "nginx");
    for io in [Io::Uring, Io::Epoll] {
        let Some(cell) = Cell::available(io, Mode::Mp) else { continue };
        run(Pair::new(cell, down, up), |pair| {
            let nginx = if pair.up == Http::H1 { Nginx::start() } else { Nginx::start_h2() };
            let gateway = pair.gateway(nginx.address, "");
            if pair.down == Http::H3 {
                both_ways_over_h3(&nginx, &gateway, pair.connect_h3(&gateway));
            } else {
                both_ways_over_tcp(&nginx, &gateway, pair.down);
            }
            gateway.stop();
        });
    }
}

fn both_ways_over_tcp(nginx: &Nginx, gateway: &Gateway, down: Http) {
    nginx.sparse_file("big", LARGE);
    let file = tempfile::NamedTempFile::new().expect("a file can be made");
    file.as_file().set_len(LARGE).expect("a sparse file can be made");
    let url = |path: &str| format!("http://{}{path}", gateway.address);
    let written = curl(gateway, down, &["-o", "/dev/null", "-w", "%{size_download}", &url("/file/big")]);
    assert_eq!(written, LARGE.to_string());
    let path = file.path().to_string_lossy();
    // The number of bytes that arrived behind nginx.
    assert_eq!(curl(gateway, down, &["-T", &path, &url("/sink")]), LARGE.to_string());
}

fn both_ways_over_h3(nginx: &Nginx, gateway: &Gateway, mut client: H3) {
    let large =
        std::env::var("BLITZ_H3_LARGE_BYTES").ok().and_then(|text| text.parse().ok()).unwrap_or(LARGE_H3);
    nginx.sparse_file("big", large);
    let ((down, up), peak) = gateway.peak_memory(|| {
        let down = client.get("/file/big");
        let id = client.begin(&request("PUT", "/sink"), false);
        let piece = vec![b'x'; 1 << 20];
        let mut left = large;
        while left > 0 {
            let count = left.min(piece.len() as u64);
            left -= count;
            assert!(client.send(id, &piece[..count as usize], left == 0), "the body is taken");
        }
        (down, client.outcome(id))
    });
    assert_eq!((down.status(), down.is_whole, down.body_bytes), (200, true, large));
    assert_eq!((up.status(), String::from_utf8_lossy(&up.body).into_owned()), (200, large.to_string()));
    println!("{} MiB of memory for {} MiB each way", peak >> 20, large >> 20);
    assert!(peak < WORKER_BYTES_MAX_H3, "{} MiB of memory", peak >> 20);
}

#[test]
fn h1_h1() {
    both_ways(Http::H1, Http::H1, Pair::by_the_kernel);
}

#[test]
fn h1_h2() {
    both_ways(Http::H1, Http::H2, Pair::by_the_kernel);
}

#[test]
fn h2_h1() {
    both_ways(Http::H2, Http::H1, Pair::by_the_kernel);
}

#[test]
fn h2_h2() {
    both_ways(Http::H2, Http::H2, Pair::by_the_kernel);
}

#[test]
fn h3_h1() {
    both_ways(Http::H3, Http::H1, Pair::by_the_kernel);
}

#[test]
fn h3_h2() {
    both_ways(Http::H3, Http::H2, Pair::by_the_kernel);
}

#[test]
fn h3_h1_by_af_xdp() {
    both_ways(Http::H3, Http::H1, Pair::by_af_xdp);
}

#[test]
fn h3_h2_by_af_xdp() {
    both_ways(Http::H3, Http::H2, Pair::by_af_xdp);
}
