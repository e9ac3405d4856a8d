//! A denied prefix gets nothing through to a service, and everything else is let alone.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use blitz_tests::policy::SERVICE_PORT;
use blitz_tests::wire::{HOST4, HOST6, PEER4, PEER6, Wire, WireSetup};
use blitz_tests::{Flood, PATIENCE, Policy, Receiver, Stage, require, require_netns, wait_until};

fn denied4() -> IpAddr {
    IpAddr::from([203, 0, 113, 9])
}

fn denied6() -> IpAddr {
    "2001:db8:bad::9".parse().unwrap()
}

fn policy() -> Policy {
    Policy::new().xdp("deny = [\"203.0.113.0/24\", \"2001:db8:bad::/48\"]")
}

#[test]
fn a_denied_prefix_gets_nothing_through() {
    require_netns!();
    let _alone = require::alone();
    let wire = Wire::new();
    let stage = Stage::attach(&wire, &policy().toml(&wire));
    for (host, denied, other) in
        [(IpAddr::from(HOST4), denied4(), IpAddr::from(PEER4)), (HOST6.into(), denied6(), PEER6.into())]
    {
        let receiver = Receiver::start(&wire.host, host, SERVICE_PORT);
        let other = Flood::new(other, receiver.address).flow(2).rate(2000).insisting().start(&wire);
        let before = stage.counters(&wire).rule("deny:config");
        let denied = Flood::new(denied, receiver.address).flow(1).run(&wire);
        let other = other.join();
        let kept = receiver.settled(2);
        assert_eq!(receiver.arrived(1).packets, 0);
        assert_eq!(kept.missing(other.sent), Vec::<u64>::new(), "of {}", other.sent);
        assert_eq!(stage.counters(&wire).rule("deny:config") - before, denied.sent);
        assert!(denied.sent > 1000, "{denied:?}");
    }
}

#[test]
fn what_is_no_service_is_let_alone() {
    require_netns!();
    // Addresses are asked for by ARP and neighbour discovery, which must pass.
    let wire = WireSetup::default().without_neighbours().mtu(9000).make();
    let _stage = Stage::attach(&wire, &policy().toml(&wire));
    wire.peer.source(denied4());
    wire.peer.source(denied6());
    wire.host.ip(&["-6", "route", "replace", "2001:db8:bad::/48", "dev", &wire.host.interface]);
    wire.host.ip(&["route", "replace", "203.0.113.0/24", "dev", &wire.host.interface]);
    for (host, denied) in [(IpAddr::from(HOST4), denied4()), (HOST6.into(), denied6())] {
        // As ssh would: a port that is no service, from a denied source.
        let listener = wire.host.run(|| TcpListener::bind((host, 0)).unwrap());
        let address = listener.local_addr().unwrap();
        let connected = wire.peer.run(|| TcpStream::connect_timeout(&address, PATIENCE));
        connected.unwrap_or_else(|error| panic!("{address}: {error}"));
        let from_denied = Receiver::start(&wire.host, host, 0);
        Flood::new(denied, from_denied.address).packets(100).insisting().run(&wire);
        assert_eq!(from_denied.settled(0).missing(100), Vec::<u64>::new());
    }
}

#[test]
fn scope_host_denies_everything_but_to_management() {
    require_netns!();
    let wire = Wire::new();
    let policy = Policy::new()
        .xdp("management = [\"203.0.113.200\"]\ndeny = [{ prefix = \"203.0.113.0/24\", scope = \"host\" }]");
    let _stage = Stage::attach(&wire, &policy.toml(&wire));
    let other_port = Receiver::start(&wire.host, HOST4, 0);
    let management = IpAddr::from([203, 0, 113, 200]);
    for (flow, source) in [(1, denied4()), (2, management), (3, PEER4.into())] {
        Flood::new(source, other_port.address).flow(flow).packets(100).insisting().run(&wire);
    }
    let arrived = |flow| other_port.settled(flow).packets;
    assert_eq!([1, 2, 3].map(arrived), [0, 100, 100]);
}

#[test]
fn deny_add_and_del_take_effect_at_once_and_a_ttl_ends_it() {
    require_netns!();
    let wire = Wire::new();
    let stage = Stage::attach(&wire, &Policy::new().toml(&wire));
    let receiver = Receiver::start(&wire.host, HOST4, SERVICE_PORT);
    let passes = |flow| {
        let before = receiver.settled(flow).packets;
        Flood::new(denied4(), receiver.address).flow(flow).packets(10).insisting().run(&wire);
        receiver.settled(flow).packets - before == 10
    };
    assert!(passes(1));
    stage.must(&wire, &["deny", "add", "203.0.113.0/24", "--reason", "a test"]);
    assert!(!passes(2));
    let listed = stage.must(&wire, &["deny", "list"]);
    assert!(listed.contains("203.0.113.0/24") && listed.contains("a test"), "{listed}");
    stage.must(&wire, &["deny", "del", "203.0.113.0/24"]);
    assert!(passes(3));
    stage.must(&wire, &["deny", "add", "203.0.113.0/24", "--ttl", "2s"]);
    assert!(!passes(4));
    wait_until("the entry ends", Duration::from_secs(5), || passes(5));
}

#[test]
fn an_allowed_source_passes_a_deny_that_covers_it() {
    require_netns!();
    let wire = Wire::new();
    let stage = Stage::attach(&wire, &policy().xdp("allow = [\"203.0.113.9\"]").toml(&wire));
    let service = SocketAddr::new(HOST4.into(), SERVICE_PORT);
    let receiver = Receiver::start(&wire.host, HOST4, SERVICE_PORT);
    Flood::new(denied4(), service).flow(1).packets(10).insisting().run(&wire);
    Flood::new(IpAddr::from([203, 0, 113, 10]), service).flow(2).packets(10).insisting().run(&wire);
    assert_eq!((receiver.settled(1).packets, receiver.arrived(2).packets), (10, 0));
    assert_eq!(stage.counters(&wire).verdict("pass_allowed"), 10);
}
