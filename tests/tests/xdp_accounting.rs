//! Every packet that was offered is found again: as a verdict, or as dropped by the device.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use blitz_tests::policy::{LISTENER_PORT, SERVICE_PORT};
use blitz_tests::wire::{HOST4, HOST6, PEER4, PEER6, WireSetup};
use blitz_tests::{Flood, PATIENCE, Policy, Receiver, Stage, require, require_netns, wait_until};

#[test]
fn offered_packets_are_verdicts_and_device_drops() {
    require_netns!();
    let _alone = require::alone();
    let wire = WireSetup::default().queues(2).make();
    let policy = Policy::new()
        .limit("per_source", "packets_per_second = 5000\nsyns_per_second = 20")
        .xdp("deny = [\"203.0.113.0/24\"]");
    let stage = Stage::attach(&wire, &policy.toml(&wire));
    wire.pin_receive_work(&[0, 1]);
    let receiver = Receiver::start(&wire.host, HOST4, SERVICE_PORT);
    let (before, dropped_before) = (stage.counters(&wire), wire.dropped());

    let service = receiver.address;
    let many = (0..=255).map(|n| IpAddr::from([198, 51, 100, n])).collect();
    let floods = [
        Flood::new(PEER4, service).on_cpu(0),
        Flood::new(IpAddr::from([203, 0, 113, 1]), service).on_cpu(1),
        Flood::new(PEER4, (HOST4, LISTENER_PORT).into()).syns().sources(many).on_cpu(0),
        Flood::new(PEER6, SocketAddr::new(HOST6.into(), SERVICE_PORT)).on_cpu(1),
        // To no service: passes.
        Flood::new(PEER4, (HOST4, 9).into()).rate(5000),
    ];
    let running: Vec<_> =
        floods.into_iter().map(|flood| flood.duration(Duration::from_secs(2)).start(&wire)).collect();
    let offered: Vec<_> = running.into_iter().map(|flood| flood.join()).collect();

    let total: u64 = offered.iter().map(|offered| offered.packets()).sum();
    let refused: u64 = offered.iter().map(|offered| offered.refused).sum();
    let mut found = 0;
    wait_until("what is in the rings is decided", PATIENCE, || {
        let now = stage.counters(&wire).packets() - before.packets() + wire.dropped() - dropped_before;
        let is_settled = now == found;
        found = now;
        is_settled
    });
    let counted = stage.counters(&wire);
    println!("offered {total}, found {found}, refused {refused}, {offered:?}\n{counted:?}");
    assert!(total > 100_000, "that was no flood: {offered:?}");
    // A few packets are the kernel's own: neighbour discovery, answers to resets.
    let difference = found.abs_diff(total) as f64 / total as f64;
    assert!(difference < 0.001, "offered {total}, found {found}: {difference:.6}");
    let by_device = (wire.dropped() - dropped_before).abs_diff(refused);
    assert!(by_device < 100, "the device counts {by_device} more or less than it refused");
    for verdict in
        ["pass_service", "pass_no_service", "drop_denied", "drop_source_packets", "drop_source_syns"]
    {
        assert!(counted.verdict(verdict) > before.verdict(verdict), "{verdict} in {counted:?}");
    }
}
