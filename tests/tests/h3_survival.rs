//! Workers that die, packets that go astray, and a restart: who has lost a connection is told so at once, and nobody
//! else.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use blitz_tests::h3bundle::send_merged;
use blitz_tests::process;
use blitz_tests::tls::Algorithm;
use blitz_tests::{Cell, Gateway, H3, PATIENCE, Pki, Setup, Signal, free_port, matrix, wait_until};

/// Kills in the ordinary test; `BLITZ_H3_KILLS` asks for more.
const KILLS: usize = 4;
/// Connections at any time.
const CONNECTIONS: usize = 12;
/// From a client's next packet until it knows, as the middle of all: a round trip takes much less than a millisecond.
const TOLD_WITHIN: Duration = Duration::from_millis(100);

fn setup(cell: Cell, pki: &Pki) -> (Setup, String) {
    pki.certificate("edge", &["edge.test"], Algorithm::Ecdsa);
    let toml = pki.listener(&["edge"], "").replace("[\"h1\"]", "[\"h1\", \"h3\"]");
    (Setup::new(cell).workers(2).config(&toml), toml)
}

fn metric(gateway: &Gateway, line: &str) -> u64 {
    let text = gateway.admin("/metrics").text();
    let found = text.lines().find_map(|it| it.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("no {line} in {text}"))
}

fn received(gateway: &Gateway, fate: &str) -> u64 {
    metric(gateway, &format!("blitz_quic_datagrams_received_total{{fate=\"{fate}\"}}"))
}

/// The worker that has the connection of each client.
fn owners(gateway: &Gateway) -> HashMap<SocketAddr, u64> {
    let shown = gateway.admin("/connections");
    let shown: serde_json::Value = serde_json::from_slice(&shown.body).expect("it is JSON");
    let rows = shown["connections"].as_array().expect("a list");
    let of = |row: &serde_json::Value| {
        let peer = row["peer"].as_str()?.parse().ok()?;
        Some((peer, row["worker"].as_u64()?))
    };
    rows.iter().filter_map(of).collect()
}

/// The number of a worker process.
fn number(pid: u32) -> Option<u64> {
    let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    words.split('\0').next()?.rsplit(' ').next()?.parse().ok()
}

fn connect(address: SocketAddr) -> H3 {
    let mut client = H3::connect(address, "edge.test");
    assert_eq!(client.get("/hello").status(), 200);
    client
}

/// Two clients whose connections different workers have.
fn two_of_different_workers(gateway: &Gateway) -> (H3, H3) {
    let first = connect(gateway.address);
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "all connections go to one worker");
        let second = connect(gateway.address);
        let owners = owners(gateway);
        if owners.get(&first.local()) != owners.get(&second.local()) {
            return (first, second);
        }
    }
}

/// Something that looks like a packet of a connection, and that nobody can open.
fn nonsense(cid: &[u8]) -> Vec<u8> {
    [&[0x41], cid, &[0x5a; 43]].concat()
}

/// Asks something of the gateway, and takes what comes until it knows that the connection is lost.
fn learns(client: &mut H3) -> Duration {
    client.quic.send_ack_eliciting().expect("it does not know yet");
    let begun = Instant::now();
    client.until("the client is told", |client| client.quic.is_closed());
    assert!(!client.quic.is_timed_out() && client.quic.peer_error().is_none(), "it was a stateless reset");
    begun.elapsed()
}

matrix! { mp only:
    fn a_dead_workers_clients_are_told_at_once_and_nobody_else_notices(cell) {
        let kills = std::env::var("BLITZ_H3_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
        let pki = Pki::new();
        let gateway = setup(cell, &pki).0.start();
        let mut clients: Vec<H3> = (0..CONNECTIONS).map(|_| connect(gateway.address)).collect();
        let (mut times, mut survivors) = (Vec::new(), 0);
        for nth in 0..kills {
            let owners = owners(&gateway);
            let workers = gateway.workers();
            let victim = workers[nth % workers.len()];
            let of_victim = number(victim).expect("a worker's command line has its number");
            // Under load: what is asked now may be answered by nobody.
            let asked: Vec<u64> = clients.iter_mut().map(|client| client.begin_get("/hello")).collect();
            assert!(process::send(victim, Signal::Kill));
            wait_until("the worker is replaced", PATIENCE, || {
                let now = gateway.workers();
                now.len() == workers.len() && !now.contains(&victim) && gateway.admin("/readyz").status == 200
            });
            for (client, asked) in clients.iter_mut().zip(asked) {
                if owners[&client.local()] == of_victim {
                    // The answer may have come before the end.
                    if !client.quic.is_closed() {
                        times.push(learns(client));
                    }
                    *client = connect(gateway.address);
                } else {
                    assert_eq!(client.outcome(asked).status(), 200, "kill {nth}");
                    assert_eq!(client.get("/hello").status(), 200, "kill {nth}");
                    survivors += 1;
                }
            }
        }
        times.sort_unstable();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        println!("{cell}: {kills} kills, {} clients told after {median:?} (median), {worst:?} (worst); {survivors} times a client of another worker went on", times.len());
        assert!(median <= TOLD_WITHIN, "{times:?}");
        assert!(survivors > 0, "the victims had all connections, so nothing was shown");
        assert!(received(&gateway, "reset") >= times.len() as u64);
        gateway.stop();
    }
}

matrix! {
    /// Whatever is done to packets: no reset is sent for a connection that lives, be it another worker's.
    fn no_reset_is_sent_for_a_connection_that_lives(cell) {
        let pki = Pki::new();
        let gateway = setup(cell, &pki).0.start();
        wait_until("all workers serve", PATIENCE, || gateway.admin("/readyz").status == 200);
        let (mut first, mut second) = two_of_different_workers(&gateway);
        let cids = [&first, &second].map(|client| client.quic.destination_id().to_vec());
        let stranger = UdpSocket::bind((gateway.address.ip(), 0)).expect("a socket");
        let before = received(&gateway, "forwarded");
        // Each behind one of the other worker.
        for [ahead, behind] in [[0, 1], [1, 0]] {
            send_merged(&stranger, &[&nonsense(&cids[ahead]), &nonsense(&cids[behind])], gateway.address);
        }
        wait_until("each was passed on to its owner", PATIENCE, || {
            received(&gateway, "forwarded") == before + 2
                && metric(&gateway, "blitz_quic_datagrams_relayed_total{fate=\"delivered\"}") == before + 2
        });
        // Every bit of a live one turned: where it goes to another worker, that finds the tag wrong.
        let unknown = received(&gateway, "unknown");
        for bit in 0..128 {
            let mut cid = cids[0].clone();
            cid[bit / 8] ^= 1 << (bit % 8);
            stranger.send_to(&nonsense(&cid), gateway.address).expect("sent");
        }
        wait_until("workers have seen some of them", PATIENCE, || received(&gateway, "unknown") > unknown);
        // What was sent before has been looked at when this is answered, by both workers.
        for client in [&mut first, &mut second] {
            assert_eq!(client.get("/hello").status(), 200);
        }
        stranger.set_nonblocking(true).expect("an option");
        assert!(stranger.recv(&mut [0; 100]).is_err(), "somebody was answered");
        assert_eq!(received(&gateway, "reset"), 0);
        // One that has ended is answered for by its owner, also when the packet came by way of another worker.
        second.leave();
        wait_until("it has ended", PATIENCE, || !owners(&gateway).contains_key(&second.local()));
        let trigger = nonsense(&cids[1]);
        send_merged(&stranger, &[&nonsense(&cids[0]), &trigger], gateway.address);
        stranger.set_nonblocking(false).expect("an option");
        stranger.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let length = stranger.recv(&mut [0; 100]).expect("a reset");
        assert!((21..trigger.len()).contains(&length), "{length} bytes");
        assert_eq!(metric(&gateway, "blitz_quic_datagrams_relayed_total{fate=\"answered\"}"), 1);
        assert_eq!(first.get("/hello").status(), 200);
        gateway.stop();
    }

    fn a_restart_with_the_same_secret_tells_those_that_were_connected(cell) {
        let pki = Pki::new();
        let secret = tempfile::tempdir().expect("a folder");
        let (setup, toml) = setup(cell, &pki);
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let toml = toml.replace("127.0.0.1:@PORT@", &address.to_string());
        let setup = setup.config(&toml).secret(&secret.path().join("master"));
        let before = setup.clone().start();
        let mut clients: Vec<H3> = (0..4).map(|_| connect(address)).collect();
        // Killed: nobody says goodbye.
        drop(before);
        // The kernel may let go of a ring's sockets a moment after its process.
        wait_until("the address is free", PATIENCE, || {
            TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
        });
        let after = setup.start();
        for client in &mut clients {
            learns(client);
        }
        assert!(received(&after, "reset") >= 4);
        assert_eq!(connect(address).get("/hello").status(), 200);
        after.stop();
    }
}
