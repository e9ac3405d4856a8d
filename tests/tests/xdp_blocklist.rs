//! A source that tries to smuggle requests over TCP is blocked in the kernel, and let in again.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use blitz_tests::ctl::Daemon;
use blitz_tests::policy::LISTENER_PORT;
use blitz_tests::wire::{HOST4, Wire};
use blitz_tests::{
    Cell, Client, Gateway, Io, Mode, PATIENCE, Policy, Setup, Stage, matrix, require, require_netns,
    wait_until,
};

/// Requests with bad framing that block a source.
const VIOLATIONS: usize = 5;
const TTL: Duration = Duration::from_secs(3);
/// Both lengths and a coding: RFC 9112 section 6.3 has it refused.
const SMUGGLING: &str =
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";

const EDGE: SocketAddrV4 = SocketAddrV4::new(HOST4, LISTENER_PORT);

fn policy() -> Policy {
    let blocklist = format!(
        "[xdp.blocklist]\nframing_violations_per_minute = {VIOLATIONS}\nttl_ms = {}\n",
        TTL.as_millis()
    );
    Policy::new().tables(&blocklist)
}

/// The daemon, and a gateway beside it that reports to it.
fn start(cell: Cell, wire: &Wire) -> (Stage, Daemon, Gateway) {
    let toml = policy().toml(wire);
    let stage = Stage::attach(wire, &toml);
    let daemon = Daemon::start(wire, &stage);
    let network = wire.host.space.as_ref().unwrap().network();
    let socket = daemon.socket.to_string_lossy().into_owned();
    let gateway = Setup::new(cell).config(&toml).inside(network, SocketAddr::V4(EDGE));
    let gateway = gateway.flag("--ctl-socket").flag(&socket).start();
    (stage, daemon, gateway)
}

/// Connects from an address of the peer.
fn connect(wire: &Wire, source: Ipv4Addr, limit: Duration) -> std::io::Result<TcpStream> {
    wire.peer.run(|| blitz_tests::net::connect_from(source, EDGE, limit))
}

#[track_caller]
fn hello(wire: &Wire, source: Ipv4Addr) {
    let mut client = Client::from(connect(wire, source, PATIENCE).expect("the gateway is reached"));
    client.send("GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(client.response().status, 200);
}

matrix! {
    mp only:
    fn smuggling_blocks_its_source_and_nobody_else(cell) {
        require_netns!();
        let _alone = require::alone();
        let wire = Wire::new();
        let (stage, daemon, _gateway) = start(cell, &wire);
        let (attacker, honest) = (Ipv4Addr::from([198, 18, 0, 66]), Ipv4Addr::from([198, 18, 0, 77]));
        wire.peer.source(attacker.into());
        wire.peer.source(honest.into());
        hello(&wire, attacker);

        let before = stage.counters(&wire).rule("block:framing");
        for _ in 1..VIOLATIONS {
            let mut client = Client::from(connect(&wire, attacker, PATIENCE).expect("not blocked yet"));
            client.send(SMUGGLING);
            assert_eq!(client.response().status, 400);
        }
        hello(&wire, attacker);
        let mut last = Client::from(connect(&wire, attacker, PATIENCE).expect("not blocked yet"));
        // From the request that crosses the threshold until its source is in the kernel's table.
        let crossed = Instant::now();
        last.send(SMUGGLING);
        let blocked_after = loop {
            if is_blocked(&wire, attacker) {
                break crossed.elapsed();
            }
            assert!(crossed.elapsed() < PATIENCE, "never blocked:\n{}", daemon.log());
        };
        println!("{cell}: blocked {blocked_after:?} after the request");
        assert!(blocked_after < Duration::from_millis(100), "blocked only after {blocked_after:?}");

        assert!(connect(&wire, attacker, Duration::from_millis(300)).is_err(), "the attacker connects");
        assert!(stage.counters(&wire).rule("block:framing") > before);
        hello(&wire, honest);

        wait_until("the block ends", TTL + PATIENCE, || {
            connect(&wire, attacker, Duration::from_millis(300)).is_ok()
        });
        let ended = crossed.elapsed();
        println!("{cell}: let in {ended:?} after the request");
        assert!(ended + Duration::from_millis(100) > TTL, "let in after {ended:?}");
        assert!(ended < TTL + Duration::from_secs(2), "let in only after {ended:?}");
        hello(&wire, attacker);
    }
}

/// Whether the kernel drops what the source sends: a datagram or segment of its own is not needed to know,
/// but it is what counts.
fn is_blocked(wire: &Wire, source: Ipv4Addr) -> bool {
    connect(wire, source, Duration::from_millis(20)).is_err()
}

#[test]
fn a_claim_in_a_header_blocks_nobody() {
    require_netns!();
    let wire = Wire::new();
    let (stage, daemon, _gateway) = start(Cell { io: Io::Epoll, mode: Mode::Mp }, &wire);
    let (attacker, claimed) = (Ipv4Addr::from([198, 18, 0, 66]), Ipv4Addr::from([198, 18, 0, 77]));
    wire.peer.source(attacker.into());
    wire.peer.source(claimed.into());
    let request = SMUGGLING.replace("Host: a", &format!("Host: a\r\nX-Forwarded-For: {claimed}"));
    for _ in 0..VIOLATIONS {
        let mut client = Client::from(connect(&wire, attacker, PATIENCE).expect("not blocked yet"));
        client.send(&request);
        client.rest();
    }
    wait_until("the peer itself is blocked", PATIENCE, || is_blocked(&wire, attacker));
    hello(&wire, claimed);
    assert!(stage.counters(&wire).rule("block:framing") > 0, "{}", daemon.log());
}
