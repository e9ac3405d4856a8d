//! One GiB in each direction through real programs, in little memory.

use std::process::{Command, Output, Stdio};

use blitz_tests::{Gateway, Nginx, Setup, matrix, process, require};

const GIB: u64 = 1 << 30;
/// Memory of one worker's own, at most, while it moves bodies; of all of them where they are threads of one process.
const WORKER_BYTES_MAX: u64 = 20 << 20;

/// Runs curl and samples the workers' memory meanwhile; the largest sample.
fn curl(gateway: &Gateway, args: &[&str]) -> (Output, u64) {
    let (output, peak) = gateway.peak_memory(|| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "--noproxy", "*", "-m", "120"]).args(args).stdin(Stdio::null());
        curl.output()
    });
    let output = output.expect("curl can be executed");
    assert!(output.status.success(), "curl: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    (output, peak)
}

fn assert_small(peak: u64) {
    assert!(peak > 0, "no worker was seen");
    assert!(peak < WORKER_BYTES_MAX, "a worker held {} KiB", peak / 1024);
}

matrix! {
    fn a_gib_down(cell) {
        require!("nginx", "curl");
        let nginx = Nginx::start();
        nginx.sparse_file("big", GIB);
        let gateway = Setup::new(cell).backend(nginx.address).start();
        let url = format!("http://{}/file/big", gateway.address);
        let (output, peak) = curl(&gateway, &["-o", "/dev/null", "-w", "%{http_code} %{size_download}", &url]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("200 {GIB}"));
        assert_small(peak);
        gateway.stop();
    }

    fn a_gib_up(cell) {
        require!("nginx", "curl");
        let nginx = Nginx::start();
        let gateway = Setup::new(cell).backend(nginx.address).start();
        let scratch = tempfile::tempdir().expect("a scratch folder can be made");
        let file = scratch.path().join("big");
        std::fs::File::create(&file).and_then(|file| file.set_len(GIB)).expect("a sparse file can be made");
        let url = format!("http://{}/sink", gateway.address);
        let (output, peak) = curl(&gateway, &["-T", &file.to_string_lossy(), &url]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), GIB.to_string(), "bytes that arrived behind nginx");
        assert_small(peak);
        gateway.stop();
    }

    /// A client that stops reading stops the upstream: what is in between stays bounded.
    fn a_slow_reader_stops_the_upstream(cell) {
        require!("nginx");
        let nginx = Nginx::start();
        nginx.sparse_file("big", GIB);
        let gateway = Setup::new(cell).backend(nginx.address).start();
        let mut clients: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
        for client in &mut clients {
            client.send("GET /file/big HTTP/1.1\r\nHost: a\r\n\r\n");
            assert!(client.head().starts_with("HTTP/1.1 200"));
        }
        // Another client is served beside them, which takes as long as buffers need to fill.
        for _ in 0..200 {
            assert_eq!(gateway.get("/").status, 200);
        }
        assert_small(gateway.workers().into_iter().map(process::own_bytes).max().unwrap_or(0));
    }
}
