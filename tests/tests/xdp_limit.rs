//! A flood from one source is cut to the limit, and a source that keeps to it loses nothing.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use blitz_tests::policy::SERVICE_PORT;
use blitz_tests::wire::{self, HOST4, HOST6, PEER4, PEER6, Wire, WireSetup};
use blitz_tests::{Flood, PATIENCE, Policy, Receiver, Stage, require, require_netns, wait_until};

const RATE: u64 = 10_000;
/// Long, so that a machine that is busy with other things for a second does not make the bucket overflow.
const BURST_SECONDS: u64 = 2;
/// Of each sender: more than the limit, less than what starves the threads that receive.
const FLOOD_RATE: u64 = 40_000;
const FLOOD: Duration = Duration::from_secs(5);
const HONEST: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 77));

fn policy() -> Policy {
    let lines = format!("packets_per_second = {RATE}\nburst_seconds = {BURST_SECONDS}");
    Policy::new().limit("per_source", &lines)
}

/// Floods from one source on each of `cpus`, the receive work of whose queue is on the other CPU, while
/// another source sends little. `host` and `source` are of one family.
fn cut_to_the_limit(wire: &Wire, cpus: &[usize], host: IpAddr, source: IpAddr, honest: IpAddr) {
    let stage = Stage::attach(wire, &policy().toml(wire));
    let work: Vec<usize> = cpus.iter().map(|cpu| 1 - cpu).collect();
    let threads = wire.pin_receive_work(&work);
    let receiver = Receiver::start(&wire.host, host, SERVICE_PORT);
    let before = stage.counters(wire);

    let honest = Flood::new(honest, receiver.address).flow(100).rate(500).insisting();
    let honest = honest.duration(FLOOD).on_cpu(work[0]).start(wire);
    let floods: Vec<_> = (0..)
        .zip(cpus)
        .map(|(flow, &cpu)| {
            let flood = Flood::new(source, receiver.address).flow(flow).rate(FLOOD_RATE);
            flood.duration(FLOOD).on_cpu(cpu).start(wire)
        })
        .collect();
    let offered: Vec<_> = floods.into_iter().map(|flood| flood.join()).collect();
    let honest = honest.join();

    let longest = offered.iter().map(|offered| offered.elapsed).max().unwrap();
    let expected = RATE as f64 * (BURST_SECONDS as f64 + longest.as_secs_f64());
    let kept = receiver.settled(100);
    let arrived: u64 = (0..cpus.len() as u32).map(|flow| receiver.arrived(flow).packets).sum();
    let sent: u64 = offered.iter().map(|offered| offered.sent).sum();
    println!("offered {offered:?}, {arrived} arrived, {expected:.0} expected, honest {honest:?}");
    assert_eq!(receiver.overflowed(), 0, "the receiver lost packets itself: the test says nothing");
    assert!(sent as f64 > 1.5 * expected, "that was no flood: {offered:?}");
    let deviation = arrived as f64 / expected - 1.0;
    assert!(deviation.abs() < 0.02, "{arrived} arrived of {sent}, {expected:.0} allowed: {deviation:+.4}");
    assert_eq!(kept.missing(honest.sent), Vec::<u64>::new(), "of {} honest packets", honest.sent);

    let counted = stage.counters(wire);
    let dropped = counted.verdict("drop_source_packets") - before.verdict("drop_source_packets");
    assert_eq!(dropped, sent - arrived, "what did not arrive was counted as dropped");
    assert_eq!(counted.rule("limit:per_source") - before.rule("limit:per_source"), dropped);
    for thread in threads {
        let used = wire::cpu_time(thread);
        assert!(used > Duration::from_millis(20), "receive thread {thread} did only {used:?} of work");
    }
}

#[test]
fn a_flood_is_cut_to_the_limit_on_one_cpu() {
    require_netns!();
    let _alone = require::alone();
    cut_to_the_limit(&Wire::new(), &[0], HOST4.into(), PEER4.into(), HONEST);
}

#[test]
fn a_flood_is_cut_to_the_limit_on_two_cpus() {
    require_netns!();
    if std::thread::available_parallelism().map_or(1, |count| count.get()) < 2 {
        return require::skip("two CPUs are needed");
    }
    let _alone = require::alone();
    cut_to_the_limit(&WireSetup::default().queues(2).make(), &[0, 1], HOST4.into(), PEER4.into(), HONEST);
}

#[test]
fn a_flood_over_ipv6_is_cut_to_the_limit_of_its_64() {
    require_netns!();
    let _alone = require::alone();
    let honest = "2001:2:0:77::1".parse().unwrap();
    cut_to_the_limit(&Wire::new(), &[0], HOST6.into(), PEER6.into(), honest);
}

#[test]
fn addresses_of_one_64_share_a_bucket_and_addresses_of_ipv4_do_not() {
    require_netns!();
    let wire = Wire::new();
    let stage = Stage::attach(&wire, &Policy::new().limit("few", "packets_per_second = 1").toml(&wire));
    let receiver = Receiver::start(&wire.host, HOST6, SERVICE_PORT);
    let of_one_64 = (0..50u16).map(|n| IpAddr::from([0x2001, 2, 0, 9, 0, 0, 0, n])).collect();
    let flood = Flood::new(PEER6, receiver.address).sources(of_one_64);
    assert_eq!(flood.packets(50).insisting().run(&wire).sent, 50);
    // One at once, and another when a second has passed before all were sent.
    assert!((1..=2).contains(&receiver.settled(0).packets), "{:?}", receiver.arrived(0));
    let receiver = Receiver::start(&wire.host, HOST4, SERVICE_PORT);
    let of_ipv4 = (0..50).map(|n| IpAddr::from([198, 51, 100, n])).collect();
    Flood::new(PEER4, receiver.address).sources(of_ipv4).packets(50).insisting().run(&wire);
    assert_eq!(receiver.settled(0).packets, 50);
    drop(stage);
}

#[test]
fn syns_and_bytes_are_limited_each_by_itself() {
    require_netns!();
    let _alone = require::alone();
    let wire = Wire::new();
    let lines = "syns_per_second = 100\nbytes_per_second = 500000";
    let stage = Stage::attach(&wire, &Policy::new().limit("each", lines).toml(&wire));
    let listener = (HOST4, blitz_tests::policy::LISTENER_PORT).into();
    let offered = Flood::new(PEER4, listener).syns().packets(2000).rate(2000).insisting().run(&wire);
    let passed = stage.counters(&wire).rule("service:edge");
    let allowed = 100.0 * (1.0 + offered.elapsed.as_secs_f64());
    assert!((passed as f64 - allowed).abs() < 5.0, "{passed} SYNs passed, {allowed:.1} allowed");
    // Bytes are of the whole frame: 14 + 20 + 8 + payload.
    let receiver = Receiver::start(&wire.host, HOST4, SERVICE_PORT);
    let source = IpAddr::from([198, 51, 100, 1]);
    let flood = Flood::new(source, receiver.address).payload(958).rate(5000);
    let offered = flood.duration(Duration::from_secs(2)).insisting().run(&wire);
    let allowed = 500.0 * (1.0 + offered.elapsed.as_secs_f64());
    let arrived = receiver.settled(0).packets as f64;
    assert!((arrived / allowed - 1.0).abs() < 0.02, "{arrived} frames of 1000 octets, {allowed:.0} allowed");
}

#[test]
fn a_service_limit_holds_over_all_sources() {
    require_netns!();
    let _alone = require::alone();
    let wire = Wire::new();
    let lines = "by = \"service\"\npackets_per_second = 10000\nburst_seconds = 2";
    let stage = Stage::attach(&wire, &Policy::new().limit("all", lines).toml(&wire));
    wire.pin_receive_work(&[1]);
    let receiver = Receiver::start(&wire.host, HOST4, SERVICE_PORT);
    let sources = (0..200).map(|n| IpAddr::from([198, 51, 100, n])).collect();
    let flood = Flood::new(PEER4, receiver.address).sources(sources).rate(FLOOD_RATE);
    let offered = flood.duration(Duration::from_secs(4)).on_cpu(0).run(&wire);
    let expected = 10_000.0 * (2.0 + offered.elapsed.as_secs_f64());
    let arrived = receiver.settled(0).packets as f64;
    assert!((arrived / expected - 1.0).abs() < 0.02, "{arrived} arrived, {expected:.0} allowed");
    assert!(stage.counters(&wire).verdict("drop_service_packets") > 0);
}

#[test]
fn shadow_counts_and_drops_nothing() {
    require_netns!();
    let wire = Wire::new();
    let policy = Policy::new().limit("few", "packets_per_second = 10\nshadow = true");
    let stage = Stage::attach(&wire, &policy.toml(&wire));
    let receiver = Receiver::start(&wire.host, HOST4, SERVICE_PORT);
    let flood = Flood::new(PEER4, receiver.address).packets(1000).insisting();
    assert_eq!(flood.duration(PATIENCE).run(&wire).sent, 1000);
    assert_eq!(receiver.settled(0).missing(1000), Vec::<u64>::new());
    wait_until("what was over the limit is counted", PATIENCE, || {
        let counters = stage.counters(&wire);
        counters.shadow.get("limit:few").is_some_and(|&count| (900..=990).contains(&count))
    });
}
