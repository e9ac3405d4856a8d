//! What the simulation of HTTP/3 has found, each in a world that shows it without the help of chance.
//!
//! Owns: the names of the faults, and the worlds. Does not own: the scripts and the verdicts.
#![forbid(unsafe_code)]

use super::run_in;
use super::script::Script;
use crate::runtime::sim::Weather;

/// Plays a few seeds in which every client plays `script`.
fn play(script: Script, weather: Weather) {
    for seed in 0..4 {
        let report = run_in(seed, weather, Some(script));
        assert!(report.violations.is_empty(), "seed {seed}:\n  {}", report.violations.join("\n  "));
    }
}

/// quiche pads datagrams that carry its first packets and does not count the padding, so that a client that said
/// nothing more got four times what it had sent.
#[test]
fn padding_counts_for_an_address_that_is_not_proven() {
    play(Script::NeverShakesHands, Weather::CALM);
}

/// What belongs to no connection, or is too short to be answered, among clients of all kinds.
#[test]
fn who_speaks_to_nobody_gets_no_answer() {
    for seed in 0..8 {
        let report = run_in(seed, Weather::CALM, None);
        assert!(report.violations.is_empty(), "seed {seed}:\n  {}", report.violations.join("\n  "));
    }
}

/// A path that carries less than is tried.
#[test]
fn a_narrow_path_is_found_out() {
    play(Script::Asks, Weather { mtu_bytes: 1252, ..Weather::CALM });
}

/// Lanes, connection IDs and deadlines of connections that ended in every way.
#[test]
fn connections_leave_nothing_behind() {
    for script in [Script::Asks, Script::Cancels, Script::Vanishes] {
        play(script, Weather { loss_per_mille: 50, merge_per_mille: 900, ..Weather::CALM });
    }
}
