//! Keys of connection IDs that change: connections live over many epochs, and none of their packets goes astray.
//!
//! An epoch has four seconds here, so that a client has one to replace its connection IDs in at the least.
//! `BLITZ_QUIC_EPOCHS` says how many are lived through.

use std::collections::HashSet;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blitz_tests::process::{self, Signal};
use blitz_tests::{Cell, Gateway, H3, PATIENCE, Pki, Setup, matrix, require, wait_until};

/// Seconds of an epoch.
const EPOCH: u64 = 4;

const SHORT: &str = "[http3]\nconnection_id_epoch_s = 4\nidle_timeout_ms = 2000\n";

/// Clients of each test.
const CLIENTS: usize = 6;

fn epochs() -> u64 {
    std::env::var("BLITZ_QUIC_EPOCHS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

fn epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() / EPOCH
}

fn start(cell: Cell, more: &str) -> (Pki, Gateway) {
    let pki = Pki::edge();
    let listener = pki.listener(&["edge"], "").replace("[\"h1\"]", "[\"h1\", \"h3\"]");
    let gateway = Setup::new(cell).workers(3).config(&format!("{listener}{SHORT}{more}")).start();
    (pki, gateway)
}

fn fates(gateway: &Gateway) -> Vec<(String, u64)> {
    let text = gateway.admin("/metrics").text();
    let lines =
        text.lines().filter_map(|line| line.strip_prefix("blitz_quic_datagrams_received_total{fate=\""));
    let parts = lines.filter_map(|line| line.split_once("\"} "));
    parts.map(|(fate, count)| (fate.to_owned(), count.parse().expect("a number"))).collect()
}

/// Has all clients ask again and again, until so many epochs have begun.
fn live(clients: &mut [H3], epochs: u64) {
    let last = epoch() + epochs;
    while epoch() < last {
        for client in &mut *clients {
            let asked = Instant::now();
            let got = client.get("/hello");
            let (by_us, by_peer) = (client.quic.local_error(), client.quic.peer_error());
            assert!(
                got.is_whole,
                "{by_us:?} {by_peer:?} after {:?}, timed out: {}",
                asked.elapsed(),
                client.quic.is_timed_out()
            );
            assert_eq!(got.status(), 200);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Another implementation, which does the same meanwhile.
fn aioquic(pki: &Pki, gateway: &Gateway) -> Option<Child> {
    let Some(mut python) = require::python("aioquic") else {
        require::skip("aioquic is not installed: cargo xtask setup");
        return None;
    };
    pki.write("ca.crt", &pki.authority.certificate);
    python.arg("-B").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/h3_sessions.py"));
    python.arg(gateway.address.port().to_string()).arg(pki.path("ca.crt"));
    python.arg(format!("stay {}", (epochs() - 1) * EPOCH)).stderr(Stdio::piped());
    Some(python.spawn().expect("Python runs"))
}

matrix! {
    fn connections_outlive_the_keys_of_their_connection_ids(cell) {
        let (pki, gateway) = start(cell, "retry = \"always\"\n");
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| {
            let mut config = blitz_tests::h3::config();
            let mut client = H3::start(gateway.address, "edge.test", &mut config, None);
            client.record = Some(Vec::new());
            client.shake_hands().expect("a handshake");
            client
        }).collect();
        let mut seen: Vec<HashSet<Vec<u8>>> = vec![HashSet::new(); CLIENTS];
        let other = aioquic(&pki, &gateway);
        for _ in 0..epochs() {
            live(&mut clients, 1);
            for (client, seen) in clients.iter().zip(&mut seen) {
                seen.insert(client.quic.destination_id().to_vec());
            }
            // New ones begin in every epoch, with a token.
            assert_eq!(H3::connect(gateway.address, "edge.test").get("/hello").status(), 200);
        }
        assert!(seen.iter().all(|seen| seen.len() as u64 >= epochs() - 1), "each epoch has its own: {seen:?}");
        if let Some(other) = other {
            let output = other.wait_with_output().expect("it was started");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let fates = fates(&gateway);
        for stray in ["other_worker", "unknown", "reset", "malformed"] {
            assert!(fates.iter().any(|fate| *fate == (stray.to_owned(), 0)), "{fates:?}");
        }
        gateway.stop();
    }
}

mod killed {
    use super::*;

    matrix! { mp only:
        /// Successors know the connection IDs of a later epoch than the one that they were begun in. (quiche as a
        /// client does not look for the tokens of later ones, so what is sent is what counts.)
        fn the_successor_tells_clients_of_an_earlier_epoch(cell) {
            let (_pki, gateway) = start(cell, "");
            let mut clients: Vec<_> = (0..CLIENTS).map(|_| H3::connect(gateway.address, "edge.test")).collect();
            let first: Vec<_> = clients.iter().map(|client| client.quic.destination_id().to_vec()).collect();
            let is_same = |(client, first): (&H3, &Vec<u8>)| client.quic.destination_id().as_ref() == first.as_slice();
            while clients.iter().zip(&first).any(is_same) {
                live(&mut clients, 1);
            }
            let victims = gateway.workers();
            victims.iter().for_each(|victim| assert!(process::send(*victim, Signal::Kill)));
            wait_until("others are in their place", PATIENCE, || {
                let workers = gateway.workers();
                workers.len() == victims.len() && !workers.iter().any(|it| victims.contains(it))
                    && gateway.admin("/readyz").status == 200
            });
            for (n, client) in (1..).zip(&mut clients) {
                let heard = client.datagrams;
                client.begin_get("/hello");
                client.until("an answer", |client| client.datagrams > heard);
                let is_told = || fates(&gateway).iter().any(|(fate, count)| fate == "reset" && *count >= n);
                wait_until("it is counted", PATIENCE, is_told);
            }
            assert!(fates(&gateway).iter().any(|fate| *fate == ("unknown".to_owned(), 0)));
            gateway.stop();
        }
    }
}
