//! How full the tables are, counted in the background.
//!
//! Owns: when and how fast large tables are walked, and that deny entries whose time is over, which the same
//! walk finds, are cleared. Does not own: how a table is walked (see [`crate::sys::map`]), or how entries are
//! cleared (see [`crate::deny`]).
//!
//! The kernel keeps no count of a table's entries. A walk of one million sources copies 32 MB, and one of a
//! hash takes the lock of each bucket for a moment, so it is never done for a scrape: a thread does it every
//! [`PERIOD`], a few thousand entries at a time with a pause between, and scrapes show the last count.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use aya::Pod;
use blitz_ebpf_common::gcra;
use blitz_ebpf_common::layout::{Deny, maps};

use super::stages::Managed;
use crate::counters::sources_in_debt;
use crate::error::{Error, Result};
use crate::pins::Pins;
use crate::sys::clock;
use crate::sys::map::Table;

/// From the end of one walk to the begin of the next.
pub const PERIOD: Duration = Duration::from_secs(15);
/// Between two batches of one walk.
const PAUSE: Duration = Duration::from_millis(2);

/// Entries of the tables of one stage, by map name.
pub type Entries = BTreeMap<&'static str, u64>;

/// Counts the entries of every table that can be full, and removes deny entries that have ended. Returns the
/// counts and how many were removed.
///
/// # Errors
/// What bpf(2) reports, or that another writer does not let go of the lock.
pub fn take(managed: &Managed, pins: &Pins) -> Result<(Entries, u64)> {
    let stage = managed.stage();
    let all = stage.maps();
    let failed = |name: &'static str| {
        move |error: std::io::Error| Error::io(format!("{}: read {name}", stage.interface()), &error)
    };
    let now = clock::monotonic_nanoseconds();
    let mut counts = Entries::new();
    counts.insert(maps::SERVICE_AT, count(&all.service_at, |_, _| {}).map_err(failed(maps::SERVICE_AT))?);
    counts.insert(maps::ALLOW4, count(&all.allow4, |_, _| {}).map_err(failed(maps::ALLOW4))?);
    counts.insert(maps::ALLOW6, count(&all.allow6, |_, _| {}).map_err(failed(maps::ALLOW6))?);
    counts.insert(maps::BLOCKED, count(&all.blocked, |_, _| {}).map_err(failed(maps::BLOCKED))?);
    let units = gcra::units(now);
    let mut in_debt = 0;
    let sources = count(&all.sources, |_, set| in_debt += sources_in_debt(set, units));
    sources.map_err(failed(maps::SOURCES))?;
    counts.insert(maps::SOURCES, in_debt);
    counts.insert(maps::DENY_NOTES, count(&all.notes, |_, _| {}).map_err(failed(maps::DENY_NOTES))?);
    let mut is_some_over = false;
    let slot = stage.settings()?.deny_slot;
    let mut look = |entry_slot: u16, deny: &Deny| {
        is_some_over |= u32::from(entry_slot) == slot && deny.expires != 0 && deny.expires <= now;
    };
    let deny4 = count(&all.deny4, |key, deny| look(key.slot, deny));
    counts.insert(maps::DENY4, deny4.map_err(failed(maps::DENY4))?);
    let deny6 = count(&all.deny6, |key, deny| look(key.slot, deny));
    counts.insert(maps::DENY6, deny6.map_err(failed(maps::DENY6))?);
    let mut removed = 0;
    if is_some_over {
        let lock = pins.lock()?;
        removed = stage.clear_expired_denials(&lock, now)?;
    }
    Ok((counts, removed as u64))
}

fn count<K: Pod, V: Pod>(table: &Table<K, V>, mut visit: impl FnMut(&K, &V)) -> std::io::Result<u64> {
    let mut count = 0;
    let mut is_first = true;
    table.walk(|batch| {
        if !std::mem::take(&mut is_first) {
            std::thread::sleep(PAUSE);
        }
        count += batch.len() as u64;
        batch.iter().for_each(|(key, value)| visit(key, value));
    })?;
    Ok(count)
}
