//! A worker that dies takes only its own connections with it.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use blitz_tests::load::Wrk;
use blitz_tests::process::{self, Signal};
use blitz_tests::{Client, Gateway, Nginx, PATIENCE, Setup, matrix, require, wait_until};

const WORKERS: usize = 2;
const KILLS: usize = 50;
/// From the kill until connections that fell to the dead worker are answered by its replacement.
const REPLACED_WITHIN: Duration = Duration::from_millis(100);
/// Fresh connections after each kill: were the dead worker's share of them lost, one would show it.
const PROBES: usize = 12;

/// Whether a kept connection still answers.
fn is_alive(client: &mut Client) -> bool {
    if !client.is_open_and_silent() {
        return false;
    }
    // The kernel may take a moment to end the connections of a dead process.
    client.try_send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        && !client.is_closed_without_bytes()
        && client.response().status == 200
}

/// Whether all workers serve again, without this one.
fn is_replaced(gateway: &Gateway, victim: u32) -> bool {
    let workers = gateway.workers();
    workers.len() == WORKERS && !workers.contains(&victim) && gateway.admin("/readyz").status == 200
}

/// Connects as a client does at any moment, and asks. The connect must never be refused.
fn probe(gateway: &Gateway) {
    let stream = TcpStream::connect_timeout(&gateway.address, PATIENCE);
    let mut client = Client::from(stream.expect("the listener never refuses"));
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(client.response().status, 200);
}

matrix! { mp only:
    /// 50 kills under load: never a refused connect, a replacement in time, nothing left in flight.
    fn fifty_kills_under_load(cell) {
        require!("nginx", "wrk");
        let nginx = Nginx::start();
        let gateway = Setup::new(cell).backend(nginx.address).workers(WORKERS).start();
        wait_until("all workers run", PATIENCE, || gateway.workers().len() == WORKERS);
        let wrk = Wrk::start(&format!("http://{}/", gateway.address), 16, 120);
        let mut times = Vec::new();
        for n in 0..KILLS {
            let workers = gateway.workers();
            let victim = workers[n % workers.len()];
            assert!(process::send(victim, Signal::Kill));
            let begun = Instant::now();
            // Until then it might still accept one more, which would be reset with it.
            wait_until("the victim is dead", PATIENCE, || !process::is_running(victim));
            // Connections that fall to the dead worker wait in its accept queue, which the supervisor holds.
            let mut probes: Vec<_> = (0..PROBES).map(|_| gateway.connect()).collect();
            for probe in &mut probes {
                probe.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            }
            for probe in &mut probes {
                assert_eq!(probe.response().status, 200, "kill {n}");
            }
            times.push(begun.elapsed());
            wait_until("the worker is replaced", PATIENCE, || is_replaced(&gateway, victim));
        }
        wrk.interrupt();
        wrk.finish();
        times.sort();
        let (median, worst) = (times[KILLS / 2], times[KILLS - 1]);
        println!("{cell}: {KILLS} kills, probes answered after {median:?} (median), {worst:?} (worst)");
        assert!(median <= REPLACED_WITHIN, "median {median:?}, all {times:?}");
        assert!(worst <= REPLACED_WITHIN * 5, "worst {worst:?} on a loaded machine, all {times:?}");
        wait_until("nothing is in flight", PATIENCE, || gateway.in_flight() == Some(0));
        gateway.stop();
    }

    /// Connections held by the other worker notice nothing.
    fn connections_of_other_workers_live_on(cell) {
        require!("nginx");
        let nginx = Nginx::start();
        let gateway = Setup::new(cell).backend(nginx.address).workers(WORKERS).start();
        wait_until("all workers run", PATIENCE, || gateway.workers().len() == WORKERS);
        let mut clients: Vec<_> = (0..64).map(|_| gateway.connect()).collect();
        assert!(clients.iter_mut().all(is_alive));
        let workers = gateway.workers();
        assert!(process::send(workers[0], Signal::Kill));
        wait_until("the worker is replaced", PATIENCE, || is_replaced(&gateway, workers[0]));
        let first: Vec<bool> = clients.iter_mut().map(is_alive).collect();
        let survivors = first.iter().filter(|alive| **alive).count();
        assert!(survivors > 0, "the other worker's connections were cut");
        assert!(survivors < clients.len(), "the victim held no connection, so nothing was shown");
        // Now the other one: those that lived were all its own, and no third worker holds any.
        assert!(process::send(workers[1], Signal::Kill));
        wait_until("the worker is replaced", PATIENCE, || is_replaced(&gateway, workers[1]));
        wait_until("its connections end", PATIENCE, || {
            clients.iter_mut().all(|client| !client.is_open_and_silent())
        });
        probe(&gateway);
        gateway.stop();
    }
}
