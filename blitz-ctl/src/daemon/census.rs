//! How full the tables are, counted in the background.
//!
//! Owns: when and how fast large tables are walked, and the removal of deny entries whose time is over,
//! which the same walk finds. Does not own: how a table is walked (see [`crate::sys::map`]).
//!
//! The kernel keeps no count of a hash's entries. A walk of one million sources copies 40 MB and takes the
//! lock of each hash bucket for a moment, so it is never done for a scrape: a thread does it every
//! [`PERIOD`], a few thousand entries at a time with a pause between, and scrapes show the last count.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use aya::Pod;
use blitz_ebpf_common::layout::{Deny, Prefix4, Prefix6, maps};

use super::stages::Managed;
use crate::error::{Error, Result};
use crate::pins::Pins;
use crate::prefixes::Prefix;
use crate::sys::clock;
use crate::sys::map::Table;

/// From the end of one walk to the begin of the next.
pub const PERIOD: Duration = Duration::from_secs(15);
/// Between two batches of one walk.
const PAUSE: Duration = Duration::from_millis(2);
/// Expired deny entries that one walk remembers of a table (count). More of them wait for the next walk;
/// the program ignores them meanwhile.
const EXPIRED_MAX: usize = 65_536;

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
    let is_over = |deny: &Deny| deny.expires != 0 && deny.expires <= now;
    let mut counts = Entries::new();
    let mut over4: Vec<Prefix4> = Vec::new();
    let mut over6: Vec<Prefix6> = Vec::new();
    counts.insert(maps::SERVICE_AT, count(&all.service_at, |_, _| {}).map_err(failed(maps::SERVICE_AT))?);
    counts.insert(maps::ALLOW4, count(&all.allow4, |_, _| {}).map_err(failed(maps::ALLOW4))?);
    counts.insert(maps::ALLOW6, count(&all.allow6, |_, _| {}).map_err(failed(maps::ALLOW6))?);
    counts.insert(maps::BLOCKED, count(&all.blocked, |_, _| {}).map_err(failed(maps::BLOCKED))?);
    counts.insert(maps::SOURCES, count(&all.sources, |_, _| {}).map_err(failed(maps::SOURCES))?);
    counts.insert(maps::DENY_NOTES, count(&all.notes, |_, _| {}).map_err(failed(maps::DENY_NOTES))?);
    let deny4 = count(&all.deny4, |key, deny| {
        if is_over(deny) && over4.len() < EXPIRED_MAX {
            over4.push(*key);
        }
    });
    counts.insert(maps::DENY4, deny4.map_err(failed(maps::DENY4))?);
    let deny6 = count(&all.deny6, |key, deny| {
        if is_over(deny) && over6.len() < EXPIRED_MAX {
            over6.push(*key);
        }
    });
    counts.insert(maps::DENY6, deny6.map_err(failed(maps::DENY6))?);
    let mut removed = 0;
    if !over4.is_empty() || !over6.is_empty() {
        let _lock = pins.lock()?;
        let prefix4 = |key: &Prefix4| Prefix::V4(Prefix4 { slot: 0, ..*key });
        let prefix6 = |key: &Prefix6| Prefix::V6(Prefix6 { slot: 0, ..*key });
        let write = |error: std::io::Error| {
            Error::io(format!("{}: remove expired deny entries", stage.interface()), &error)
        };
        removed += expire(&all.deny4, &over4, is_over, prefix4, &all.notes).map_err(write)?;
        removed += expire(&all.deny6, &over6, is_over, prefix6, &all.notes).map_err(write)?;
        for (name, gone) in [(maps::DENY4, over4.len()), (maps::DENY6, over6.len())] {
            counts.entry(name).and_modify(|count| *count = count.saturating_sub(gone as u64));
        }
    }
    Ok((counts, removed))
}

/// Removes those of `keys` that are still over, with their notes. The index goes on naming their lengths
/// until the next list is written, which costs packets a lookup and decides nothing.
fn expire<K: Pod>(
    table: &Table<K, Deny>,
    keys: &[K],
    is_over: impl Fn(&Deny) -> bool,
    prefix: impl Fn(&K) -> Prefix,
    notes: &Table<Prefix6, blitz_ebpf_common::layout::Note>,
) -> std::io::Result<u64> {
    let mut removed = 0;
    for key in keys {
        // Its end may have been put off since the walk.
        if table.get(key)?.is_some_and(|deny| is_over(&deny)) {
            removed += u64::from(table.remove(key)?);
            notes.remove(&prefix(key).noted())?;
        }
    }
    Ok(removed)
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
