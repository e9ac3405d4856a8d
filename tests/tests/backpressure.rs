//! A reader that stops stops the sender behind the gateway: what lies in between is bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blitz_tests::{PATIENCE, Setup, Upstream, matrix};

/// What is sent: far more than the four socket buffers on the way, which the kernel lets grow to some 6 MiB each.
const ALL: u64 = 256 << 20;
const IN_BETWEEN_MAX: u64 = 64 << 20;
static PIECE: &[u8] = &[b'x'; 64 << 10];

/// The count once it no longer grows.
fn settled(count: &AtomicU64) -> u64 {
    let begun = Instant::now();
    let mut last = 0;
    while begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(300));
        let now = count.load(Ordering::SeqCst);
        if now == last && now > 0 {
            break;
        }
        last = now;
    }
    last
}

matrix! {
    fn a_client_that_does_not_read_stops_the_upstream(cell) {
        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sent);
        let upstream = Upstream::start(move |conn| {
            conn.request()?;
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {ALL}\r\n\r\n"))?;
            while count.load(Ordering::SeqCst) < ALL {
                conn.send(PIECE)?;
                count.fetch_add(PIECE.len() as u64, Ordering::SeqCst);
            }
            Some(())
        });
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.head();
        let taken = settled(&sent);
        assert!(taken < IN_BETWEEN_MAX, "{} MiB are in between", taken >> 20);
    }

    fn an_upstream_that_does_not_read_stops_the_client(cell) {
        let upstream = Upstream::start(|conn| {
            let request = conn.head()?;
            conn.record(request);
            std::thread::sleep(2 * PATIENCE);
            None
        });
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sent);
        std::thread::spawn(move || {
            client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {ALL}\r\n\r\n"));
            while count.load(Ordering::SeqCst) < ALL && client.try_send(PIECE) {
                count.fetch_add(PIECE.len() as u64, Ordering::SeqCst);
            }
        });
        let taken = settled(&sent);
        assert!(taken < IN_BETWEEN_MAX, "{} MiB are in between", taken >> 20);
    }
}
