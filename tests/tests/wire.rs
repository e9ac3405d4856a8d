//! The harness for packets: namespaces, the wire between them, the generator and the receiver.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use blitz_tests::wire::{HOST4, HOST6, PEER4, PEER6, Wire, WireSetup};
use blitz_tests::{Flood, PATIENCE, Receiver, require_netns};

#[test]
fn both_ends_reach_each_other_and_nothing_is_left() {
    require_netns!();
    let wire = WireSetup::default().mtu(9000).queues(2).without_neighbours().make();
    let listener = wire.host.run(|| TcpListener::bind((HOST4, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    wire.peer.run(|| TcpStream::connect_timeout(&address, PATIENCE)).expect("IPv4 connects over ARP");
    let listener = wire.host.run(|| TcpListener::bind((HOST6, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    wire.peer.run(|| TcpStream::connect_timeout(&address, PATIENCE)).expect("IPv6 connects over ND");
    let name = wire.host.space.as_ref().unwrap().name().to_owned();
    let file = std::path::Path::new("/run/netns").join(&name);
    assert!(file.exists());
    drop(wire);
    assert!(!file.exists());
}

#[test]
fn the_host_end_can_stay_in_the_namespace_of_the_test() {
    require_netns!();
    // Other addresses than the machine may use: the benchmark range of RFC 2544.
    let wire = WireSetup::default().host_here().make();
    assert!(std::path::Path::new("/sys/class/net").join(&wire.host.interface).exists());
    let receiver = Receiver::start(&wire.host, HOST4, 0);
    Flood::new(PEER4, receiver.address).packets(10).insisting().run(&wire);
    assert_eq!(receiver.settled(0).packets, 10);
    let interface = wire.host.interface.clone();
    drop(wire);
    assert!(!std::path::Path::new("/sys/class/net").join(interface).exists());
}

#[test]
fn each_packet_of_a_paced_flow_is_offered_once_and_arrives_once() {
    require_netns!();
    let wire = Wire::new();
    for (host, peer) in [(IpAddr::from(HOST4), IpAddr::from(PEER4)), (HOST6.into(), PEER6.into())] {
        let receiver = Receiver::start(&wire.host, host, 0);
        let flood = Flood::new(peer, receiver.address).flow(3).rate(5000).packets(2000).insisting();
        let offered = flood.duration(PATIENCE).run(&wire);
        let arrived = receiver.settled(3);
        assert_eq!((offered.sent, arrived.packets, receiver.overflowed()), (2000, 2000, 0));
        assert_eq!((arrived.missing(2000), arrived.duplicates), (vec![], 0));
        // 2000 packets at 5000 a second: the last one is due after 399.8 ms.
        assert!(offered.elapsed > Duration::from_millis(399), "{offered:?}");
    }
}

#[test]
fn syns_of_many_sources_reach_the_host() {
    require_netns!();
    let wire = Wire::new();
    let before = wire.host.statistic("rx", "packets");
    let sources = (0..250).map(|n| IpAddr::from([198, 51, 100, n])).collect();
    let closed = SocketAddr::new(HOST4.into(), 9);
    let offered = Flood::new(PEER4, closed).sources(sources).syns().packets(1000).insisting().run(&wire);
    assert_eq!(offered.sent, 1000);
    let text = wire.host.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let numbers: Vec<_> = text.lines().filter(|line| line.starts_with("Tcp:")).collect();
    let column = numbers[0].split(' ').position(|name| name == "OutRsts").unwrap();
    // Each closed port answers with a reset, so the checksums were right.
    assert_eq!(numbers[1].split(' ').nth(column), Some("1000"), "{text}");
    assert!(wire.host.statistic("rx", "packets") - before >= 1000);
}
