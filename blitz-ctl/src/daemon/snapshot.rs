//! One scrape: the values behind the names.
//!
//! Owns: which value goes under which name and labels. Does not own: the names (see [`super::names`]), or
//! counting large tables (see [`super::census`]).
//!
//! A scrape reads the counters of each stage: a system call for each verdict, rule, reason and fault. It walks no
//! table.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use blitz_ctl_protocol::message::{Outcome, Reason};
use blitz_ebpf_common::layout::{self, LAYOUT_VERSION, Steered};

use super::exposition::Families;
use super::names;
use super::server::Refusal;
use super::stages::Managed;
use super::state::State;
use crate::error::Result;
use crate::maps;

/// The text of a scrape. A stage that cannot be read is left out and marked down.
///
/// # Errors
/// Those of the encoder.
pub(super) fn text(state: &State) -> prometheus::Result<String> {
    let mut families = Families::default();
    for managed in state.stages().iter() {
        let interface = managed.stage().interface();
        let up = match stage(&mut families, managed) {
            Ok(is_attached) => is_attached,
            Err(error) => {
                log::warn!("a scrape could not read the stage of {interface}: {error}");
                false
            }
        };
        families.push(names::STAGE_UP, &[interface], u64::from(up));
        let Some(counts) = state.census(interface) else { continue };
        let sizes = managed.stage().sizes();
        for spec in maps::specs(sizes) {
            if let Some(entries) = counts.get(spec.name) {
                // An entry of the table of sources is a set of several.
                let is_sources = spec.name == layout::maps::SOURCES;
                let max = if is_sources { sizes.sources_max } else { spec.entries_max };
                families.push(names::MAP_ENTRIES, &[interface, spec.name], *entries);
                families.push(names::MAP_ENTRIES_MAX, &[interface, spec.name], max.into());
            }
        }
    }
    for interface in state.missing() {
        families.push(names::STAGE_UP, &[&interface], 0);
    }
    daemon(&mut families, state);
    families.text()
}

/// Returns whether the program is attached.
fn stage(families: &mut Families, managed: &Managed) -> Result<bool> {
    let stage = managed.stage();
    let interface = stage.interface();
    let counters = stage.counters()?;
    for (verdict, sum) in &counters.verdicts {
        families.push(names::PACKETS, &[interface, verdict], sum.packets);
        families.push(names::BYTES, &[interface, verdict], sum.bytes);
    }
    for rule in &counters.rules {
        families.push(names::RULE_PACKETS, &[interface, &rule.name], rule.decided.packets);
        families.push(names::RULE_BYTES, &[interface, &rule.name], rule.decided.bytes);
        families.push(names::SHADOW_PACKETS, &[interface, &rule.name], rule.shadow.packets);
        families.push(names::SHADOW_BYTES, &[interface, &rule.name], rule.shadow.bytes);
    }
    for (reason, count) in &counters.steered {
        families.push(names::QUIC_PACKETS, &[interface, reason], *count);
    }
    families.push(names::UNKNOWN_WORKER, &[interface], counters.steered(Steered::UnknownWorker));
    for (fault, count) in &counters.faults {
        families.push(names::FAULTS, &[interface, fault], *count);
    }
    let running = managed.running()?;
    if let Some(running) = &running {
        let (id, layout) = (running.program_id.to_string(), LAYOUT_VERSION.to_string());
        families.push(names::PROGRAM_INFO, &[interface, running.mode, &id, &layout], 1);
    }
    Ok(running.is_some())
}

fn daemon(families: &mut Families, state: &State) {
    let (blocked, blocked_max) = state.blocked();
    families.push(names::BLOCKED_SOURCES, &[], blocked);
    families.push(names::BLOCKED_SOURCES_MAX, &[], blocked_max);
    let tallies = state.tallies();
    for reason in Reason::ALL {
        for outcome in Outcome::ALL {
            let count = tallies.reports(reason, outcome).load(Ordering::Relaxed);
            families.push(names::BLOCK_REPORTS, &[reason.label(), outcome.label()], count);
        }
    }
    families.push(names::SOCKET_CONNECTIONS, &[], tallies.connections.load(Ordering::Relaxed));
    for cause in Refusal::ALL {
        let count = tallies.refused(cause).load(Ordering::Relaxed);
        families.push(names::SOCKET_REFUSED, &[cause.label()], count);
    }
    for (result, count) in [("ok", &tallies.reloads_ok), ("failed", &tallies.reloads_failed)] {
        families.push(names::RELOADS, &[result], count.load(Ordering::Relaxed));
    }
    families.push(names::DENY_EXPIRED, &[], tallies.deny_expired.load(Ordering::Relaxed));
    families.push(names::STEERED, &[], tallies.steered.load(Ordering::Relaxed));
    families.push(names::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1);
    families.push(names::START_TIME, &[], state.started_unix());
}
