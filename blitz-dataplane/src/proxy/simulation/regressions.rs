//! What the simulation has found, each in a world that shows it without the help of chance.
//!
//! Owns: the names of the faults, and the worlds. Does not own: the scripts and the verdicts.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::client::{ASKS, READS_LATE, UPLOADS_SLOWLY, UPLOADS_TO_A_WALL};
use super::run_in;
use crate::runtime::sim::{Profile, World};
use crate::runtime::{Runtime, yield_now};

/// Plays a few seeds in which every client plays `script`.
fn play(script: u64, profile: Profile) {
    for seed in 0..12 {
        let report = run_in(seed, &World::with_profile(seed, profile), Some(script));
        assert!(report.violations.is_empty(), "seed {seed}:\n  {}", report.violations.join("\n  "));
    }
}

/// The wait for the first byte of an answer was counted from the beginning of the request, so that
/// every upload that took longer got 504 in the middle of its body.
#[test]
fn a_long_upload_is_no_silence_of_the_endpoint() {
    play(UPLOADS_SLOWLY, Profile::CALM);
}

/// The deadline of the lingering close was set by the first wait only. When bytes lay ready nobody
/// waited, a deadline of an earlier phase counted instead, and the close became a reset that took
/// the answer with it.
#[test]
fn the_answer_to_an_upload_that_goes_on_is_not_lost_to_a_reset() {
    play(UPLOADS_TO_A_WALL, Profile { short_io: true, delay_us_max: 5_000, ..Profile::CALM });
}

/// Found together, with requests in bursts and half-closes through a small window:
/// - a client that ended its side after the request, or read slowly beyond the keep-alive deadline,
///   lost what was still unsent of its answer;
/// - `Via` told the version of the first request of the connection for all of them;
/// - an endpoint could send interim answers without end, faster than the client read them.
#[test]
fn bursts_and_half_closes_through_a_small_window_lose_nothing() {
    play(ASKS, Profile { window_bytes: 700, delay_us_max: 50_000, ..Profile::CALM });
}

/// What lay behind a head or a chunk kept its slot of the shared pool while its connection waited for
/// an endpoint: a few pipelining clients could stop every other connection of the worker.
#[test]
fn connections_that_wait_hold_no_slot_of_the_pool() {
    play(ASKS, Profile { pool_slots: 4, ..Profile::CALM });
}

/// A send that stalled at the end of an answer without a length was followed by an orderly close, so
/// that what had arrived looked whole.
#[test]
fn a_stalled_end_of_an_answer_is_a_reset() {
    play(READS_LATE, Profile { window_bytes: 4096, ..Profile::CALM });
}

/// A deadline was counted from the last whole millisecond and fired up to one early.
#[test]
fn a_deadline_is_not_early_by_a_part_of_a_millisecond() {
    let mut runtime = Runtime::simulated(&World::with_profile(1, Profile::CALM));
    let handle = runtime.handle().clone();
    // Time goes on by a microsecond a turn, so the wheel is looked at within every millisecond.
    handle.spawn(async {
        loop {
            yield_now().await;
        }
    });
    runtime.block_on(async {
        for part_us in (100..1000).step_by(300) {
            for _ in 0..part_us {
                yield_now().await;
            }
            let began_ns = handle.now_ns();
            handle.sleep(Duration::from_millis(8)).await;
            assert!(handle.now_ns() - began_ns >= 8_000_000, "{} ns", handle.now_ns() - began_ns);
        }
    });
}
