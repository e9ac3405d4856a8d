//! Traffic does not notice when the daemon is killed or the program is replaced.

use std::time::Duration;

use blitz_tests::ctl::Daemon;
use blitz_tests::policy::SERVICE_PORT;
use blitz_tests::wire::{HOST4, PEER4, Wire};
use blitz_tests::{Flood, Policy, Receiver, Stage, require, require_netns};

const RATE: u64 = 5000;
/// Longer than any test here takes.
const LONG: Duration = Duration::from_secs(600);

#[test]
fn killing_the_daemon_fifty_times_changes_nothing_for_traffic() {
    require_netns!();
    let _alone = require::alone();
    let wire = Wire::new();
    let policy = Policy::new().xdp("deny = [\"203.0.113.0/24\"]");
    let stage = Stage::attach(&wire, &policy.toml(&wire));
    let receiver = Receiver::start(&wire.host, HOST4, SERVICE_PORT);
    let flow = Flood::new(PEER4, receiver.address).flow(1).rate(RATE).duration(LONG).insisting().start(&wire);
    let denied =
        Flood::new([203, 0, 113, 1], receiver.address).flow(2).rate(RATE).duration(LONG).start(&wire);
    for round in 1..=50 {
        let daemon = Daemon::start(&wire, &stage);
        let log = daemon.log();
        daemon.kill();
        assert!(log.lines().filter(|line| line.contains("adopted")).count() >= round, "{log}");
        program_number(&wire);
    }
    let (offered, denied) = (flow.stop(), denied.stop());
    let arrived = receiver.settled(1);
    println!("{offered:?}, longest gap {:?}", arrived.longest_gap);
    assert_eq!(arrived.missing(offered.sent), Vec::<u64>::new(), "of {}", offered.sent);
    assert_eq!((arrived.duplicates, receiver.overflowed()), (0, 0));
    assert_eq!(receiver.arrived(2).packets, 0, "of {} denied", denied.sent);
    // The counters have gone on through all of it.
    let counters = stage.counters(&wire);
    assert_eq!(counters.rule("deny:config"), denied.sent);
    assert_eq!(counters.rule("service:udp"), offered.sent);
}

#[test]
fn replacing_the_program_a_hundred_times_loses_no_packet() {
    require_netns!();
    let _alone = require::alone();
    let wire = Wire::new();
    let policy = Policy::new().xdp("deny = [\"203.0.113.0/24\"]");
    let stage = Stage::attach(&wire, &policy.toml(&wire));
    let receiver = Receiver::start(&wire.host, HOST4, SERVICE_PORT);
    let flow = Flood::new(PEER4, receiver.address).flow(1).rate(RATE).duration(LONG).insisting().start(&wire);
    let denied =
        Flood::new([203, 0, 113, 1], receiver.address).flow(2).rate(RATE).duration(LONG).start(&wire);
    let mut program = program_number(&wire);
    for round in 0..100 {
        stage.attach_again(&wire);
        let now = program_number(&wire);
        assert_ne!(now, program, "round {round}: the program was replaced");
        program = now;
    }
    let (offered, denied) = (flow.stop(), denied.stop());
    let arrived = receiver.settled(1);
    println!("{offered:?}, longest gap {:?}", arrived.longest_gap);
    assert_eq!(arrived.missing(offered.sent), Vec::<u64>::new(), "of {}", offered.sent);
    assert_eq!((arrived.duplicates, receiver.overflowed()), (0, 0));
    assert_eq!(receiver.arrived(2).packets, 0, "of {} denied", denied.sent);
}

/// The kernel's number of the program on the host end.
#[track_caller]
fn program_number(wire: &Wire) -> u64 {
    let text = wire.host.ip(&["-j", "link", "show", "dev", &wire.host.interface]);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value[0]["xdp"]["prog"]["id"].as_u64().unwrap_or_else(|| panic!("no program: {text}"))
}
