//! Writing an image into the maps of a running stage.
//!
//! Owns: the order of the writes, and that everything is as before when one of them fails. Does not own:
//! what the image says (see [`crate::image`]).
//!
//! The deny list is written whole into the slot that is not in force, and the settings, which name the
//! slot, are flipped last. Small tables are written entry by entry, each old value kept in a journal;
//! a failure writes them back in reverse. In between a packet may meet new services with old settings,
//! never a table that is half there: rows are written before what points to them, and what is gone is
//! removed after nothing points to it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::io;

use aya::Pod;
use aya::maps::lpm_trie::Key;
use blitz_ebpf_common::layout::{
    Buckets, DENY_CONFIGURED, DENY_HOST, Deny, Everywhere, INDEX4, INDEX6, Lengths, Limit, Ports, Prefix4,
    Prefix6, RuleName, SETTING_BLOCK, SETTING_DENY, SETTING_HOST, Service, Settings,
};
use blitz_ebpf_common::packet::Words;

use crate::counters;
use crate::error::{Error, Kind, Result};
use crate::image::Image;
use crate::lock::Lock;
use crate::maps::{Sizes, store_error};
use crate::prefixes::{Prefix, PrefixSet};
use crate::stage::Stage;
use crate::sys::clock;
use crate::sys::map::Table;

/// What an application of an image changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Services in force now (count).
    pub services: usize,
    /// Limits in force now (count).
    pub limits: usize,
    /// Denied prefixes in force now (count), the operator's included.
    pub denied: usize,
    /// Those among them that were added at run time and stay (count).
    pub kept: usize,
    /// Whether the deny list was written anew.
    pub is_deny_swapped: bool,
}

impl Stage {
    /// Puts `image` in force. Deny entries that were added at run time stay; limits and allowed prefixes that
    /// were set at run time give way to those of the image. On an error everything is as before.
    ///
    /// # Errors
    /// [`Kind::Layout`] when the image was made for other sizes, [`Kind::Full`] when a table has no room,
    /// and what bpf(2) reports.
    pub fn apply(&self, _lock: &Lock, image: &Image) -> Result<Applied> {
        self.check_sizes(image)?;
        let before = self.settings()?;
        let now = clock::monotonic_nanoseconds();
        let current = self.denied()?;
        let (wanted, kept) = merge(&image.denied, &current, now)?;
        self.check_room(&wanted)?;
        let is_deny_swapped = !wanted.entries().eq(current.entries());
        let slot = if is_deny_swapped { (before.deny_slot & 1) ^ 1 } else { before.deny_slot };
        if is_deny_swapped {
            self.write_slot(slot, &wanted)?;
        }
        let flags = image.settings().flags & !(SETTING_DENY | SETTING_HOST)
            | before.flags & SETTING_BLOCK
            | deny_flags(wanted.entries().map(|(_, deny)| deny));
        let mut journal = Journal::default();
        let after = Settings { flags, deny_slot: slot, versions: image.versions, ..before };
        let result = self.write_tables(image, &mut journal, before, after);
        if let Err(error) = result {
            journal.undo();
            return Err(error.about(self.interface()));
        }
        if is_deny_swapped {
            // What is left over is out of force: it only takes room, and the next swap clears it again.
            let _left_over = self.clear_slot(before.deny_slot);
        }
        Ok(Applied {
            services: image.services.iter().filter(|service| service.rule != 0).count(),
            limits: image.limits.iter().filter(|limit| limit.rule != 0).count(),
            denied: wanted.entries().count(),
            kept,
            is_deny_swapped,
        })
    }

    /// The deny list in force, with the index as a fresh list would have it.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn denied(&self) -> Result<PrefixSet> {
        let slot = self.settings()?.deny_slot;
        let read = |error| self.io("read the deny list", &error);
        let mut set = PrefixSet::new();
        let v4 = self.maps().deny4.entries().map_err(read)?.into_iter();
        let v4 = v4.filter(|(key, _)| u32::from(key.slot) == slot);
        let v4 = v4.map(|(key, deny)| (Prefix::V4(Prefix4 { slot: 0, ..key }), deny));
        let v6 = self.maps().deny6.entries().map_err(read)?.into_iter();
        let v6 = v6.filter(|(key, _)| u32::from(key.slot) == slot);
        let v6 = v6.map(|(key, deny)| (Prefix::V6(Prefix6 { slot: 0, ..key }), deny));
        for (prefix, deny) in v4.chain(v6) {
            set.insert(prefix, deny).map_err(|_| too_many_lengths(prefix))?;
        }
        Ok(set)
    }

    /// Refuses an image made for tables of other sizes.
    pub(crate) fn check_sizes(&self, image: &Image) -> Result<()> {
        let asked = Sizes { sources_max: image.sources_max, deny_max: image.deny_max };
        let found = self.sizes();
        if asked == found {
            return Ok(());
        }
        Err(Error::new(
            Kind::Layout,
            format!(
                "{}: the stage was made with sources_max {} and deny_max {}, and the configuration asks for {} and {}",
                self.interface(),
                found.sources_max,
                found.deny_max,
                asked.sources_max,
                asked.deny_max
            ),
            "keep the sizes, or detach and attach (counters begin at zero)",
        ))
    }

    /// Puts another deny list in force as a whole, through the slot that is not in force.
    pub(crate) fn swap_denied(&self, wanted: &PrefixSet) -> Result<()> {
        self.check_room(wanted)?;
        let before = self.settings()?;
        let slot = (before.deny_slot & 1) ^ 1;
        self.write_slot(slot, wanted)?;
        let flags = before.flags & !(SETTING_DENY | SETTING_HOST)
            | deny_flags(wanted.entries().map(|(_, deny)| deny));
        let after = Settings { flags, deny_slot: slot, ..before };
        self.maps().settings.put(&0, &after).map_err(|error| self.io("write SETTINGS", &error))?;
        let _left_over = self.clear_slot(before.deny_slot);
        Ok(())
    }

    pub(crate) fn check_room(&self, wanted: &PrefixSet) -> Result<()> {
        let (v4, v6) = wanted.counts();
        let room = self.sizes().deny_max as usize;
        for (count, family) in [(v4, "IPv4"), (v6, "IPv6")] {
            if count > room {
                return Err(Error::new(
                    Kind::Full,
                    format!(
                        "{}: {count} denied {family} prefixes, and the table holds {room}",
                        self.interface()
                    ),
                    "raise xdp.deny_max, detach and attach; or join prefixes",
                ));
            }
        }
        Ok(())
    }

    /// Fills a deny slot that is not in force. On an error it is cleared as far as possible.
    fn write_slot(&self, slot: u32, set: &PrefixSet) -> Result<()> {
        let result = self.fill_slot(slot, set);
        if result.is_err() {
            // The first error is the one to tell.
            let _left_over = self.clear_slot(slot);
        }
        result
    }

    fn fill_slot(&self, slot: u32, set: &PrefixSet) -> Result<()> {
        self.clear_slot(slot)?;
        let maps = self.maps();
        let mut v4 = Vec::new();
        let mut v6 = Vec::new();
        for (prefix, deny) in set.entries() {
            match prefix {
                Prefix::V4(key) => v4.push((Prefix4 { slot: slot as u16, ..*key }, *deny)),
                Prefix::V6(key) => v6.push((Prefix6 { slot: slot as u16, ..*key }, *deny)),
            }
        }
        let remedy = "raise xdp.deny_max, detach and attach";
        let full = |error: &io::Error| store_error("the deny list", self.sizes().deny_max, remedy, error);
        maps.deny4.put_all(&v4).map_err(|(_, error)| full(&error))?;
        maps.deny6.put_all(&v6).map_err(|(_, error)| full(&error))?;
        let index = |count: u32, buckets: std::collections::btree_map::Iter<'_, u32, Lengths>| {
            let mut rows: Vec<(u32, Lengths)> =
                (slot * count..(slot + 1) * count).map(|row| (row, Lengths::default())).collect();
            for (bucket, lengths) in buckets {
                if let Some(row) = rows.get_mut(*bucket as usize) {
                    row.1 = *lengths;
                }
            }
            rows
        };
        let write = |(_, error)| self.io("write the deny index", &error);
        maps.index4.put_all(&index(INDEX4, set.index4())).map_err(write)?;
        maps.index6.put_all(&index(INDEX6, set.index6())).map_err(write)?;
        maps.everywhere.put(&slot, &set.everywhere()).map_err(|error| write((0, error)))
    }

    /// Removes the entries of a deny slot that is not in force. Its index stays: nobody reads it.
    fn clear_slot(&self, slot: u32) -> Result<()> {
        let error = |error| self.io("clear the deny list", &error);
        for (key, _) in self.maps().deny4.entries().map_err(error)? {
            if u32::from(key.slot) == slot {
                self.maps().deny4.remove(&key).map_err(error)?;
            }
        }
        for (key, _) in self.maps().deny6.entries().map_err(error)? {
            if u32::from(key.slot) == slot {
                self.maps().deny6.remove(&key).map_err(error)?;
            }
        }
        Ok(())
    }

    /// Fills the shared buckets of a limit whose row has changed, unless they are as deep as before: a bucket
    /// word lies up to the depth under which it was granted ahead, and would refuse everything for that long.
    pub(crate) fn refill(&self, number: u32, before: &Limit, after: &Limit) -> io::Result<()> {
        let is_shallower = before.rates.iter().zip(&after.rates).any(|(old, new)| new.depth < old.depth);
        if before.rule == after.rule && !is_shallower {
            return Ok(());
        }
        self.maps().service_words.put(&number, &Buckets::default())
    }

    /// Everything but the deny list; then the settings, and then what nothing points to any more goes.
    fn write_tables<'a>(
        &'a self,
        image: &Image,
        journal: &mut Journal<'a>,
        before: Settings,
        after: Settings,
    ) -> Result<()> {
        let maps = self.maps();
        let write = |name: &'static str| move |error: io::Error| Error::io(format!("write {name}"), &error);
        let names = image.rules.iter().map(|(number, name)| (*number, counters::rule_name(name)));
        let blank = RuleName { text: [0; blitz_ebpf_common::layout::RULE_NAME_MAX] };
        array(&maps.rule_names, names.collect(), blank, journal).map_err(write("RULE_NAMES"))?;
        let limits = maps.limits.entries().map_err(write("LIMITS"))?;
        array(&maps.limits, numbered(&image.limits), Limit::default(), journal).map_err(write("LIMITS"))?;
        for ((number, before), after) in limits.iter().zip(&image.limits) {
            self.refill(*number, before, after).map_err(write("SERVICE_WORDS"))?;
        }
        array(&maps.services, numbered(&image.services), Service::default(), journal)
            .map_err(write("SERVICES"))?;

        let remedy = "remove services with an own address";
        let wanted: HashMap<_, u32> = image.service_at.iter().map(|(key, number)| (*key, *number)).collect();
        let gone = additions(&maps.service_at, &wanted, journal)
            .map_err(|error| store_error("SERVICE_AT", maps.service_at.entries_max(), remedy, &error))?;
        let ports: BTreeMap<u32, Ports> =
            image.ports.iter().map(|(port, ports)| (u32::from(*port), *ports)).collect();
        array(&maps.ports, ports, Ports::default(), journal).map_err(write("PORTS"))?;
        removals(&maps.service_at, gone, journal).map_err(write("SERVICE_AT"))?;

        let (allow4, allow6) = allowed(image);
        let remedy = "remove prefixes from xdp.allow and xdp.management";
        let full =
            |error: io::Error| store_error("the allow list", maps.allow4.entries_max(), remedy, &error);
        let gone4 = trie_additions(&maps.allow4, &allow4, journal).map_err(full)?;
        let gone6 = trie_additions(&maps.allow6, &allow6, journal).map_err(full)?;
        replace(&maps.settings, 0, after, before, journal).map_err(write("SETTINGS"))?;
        removals(&maps.allow4, gone4, journal).map_err(write("ALLOW4"))?;
        removals(&maps.allow6, gone6, journal).map_err(write("ALLOW6"))
    }
}

/// The image's deny list with what was added at run time and is not over.
fn merge(image: &PrefixSet, current: &PrefixSet, now: u64) -> Result<(PrefixSet, usize)> {
    let mut merged = image.clone();
    let mut kept = 0;
    for (prefix, deny) in current.entries() {
        let is_over = deny.expires != 0 && deny.expires <= now;
        // What the file denies does not end with an entry of the operator's that has a time.
        let ends_the_files = deny.expires != 0 && image.get(prefix).is_some();
        if deny.flags & DENY_CONFIGURED == 0 && !is_over && !ends_the_files {
            merged.insert(*prefix, *deny).map_err(|_| too_many_lengths(*prefix))?;
            kept += 1;
        }
    }
    Ok((merged, kept))
}

/// `SETTING_*` flags that follow from the entries of a deny list.
pub(crate) fn deny_flags<'a>(entries: impl Iterator<Item = &'a Deny>) -> u32 {
    let host = |flags| if flags & DENY_HOST != 0 { SETTING_HOST } else { 0 };
    entries.fold(0, |flags, deny| flags | SETTING_DENY | host(deny.flags))
}

pub(crate) fn too_many_lengths(prefix: Prefix) -> Error {
    Error::new(
        Kind::Full,
        format!("{prefix} finds no room: the denied IPv6 prefixes have too many different lengths"),
        "join prefixes so that fewer lengths occur",
    )
}

pub(crate) type Trie<K> = HashMap<(u32, K), u32>;

/// The allow list as the two tries hold it: data in network order.
pub(crate) fn allowed(image: &Image) -> (Trie<u32>, Trie<Words>) {
    let (mut v4, mut v6) = (HashMap::new(), HashMap::new());
    for (prefix, flags) in &image.allow {
        match prefix {
            Prefix::V4(p) => drop(v4.insert((p.length.into(), p.address.to_be()), *flags)),
            Prefix::V6(p) => drop(v6.insert((p.length.into(), p.address.map(u32::to_be)), *flags)),
        }
    }
    (v4, v6)
}

/// Number and value of each element; number 0 stays as it is.
fn numbered<V: Copy>(list: &[V]) -> BTreeMap<u32, V> {
    (0..).zip(list).skip(1).map(|(number, value)| (number, *value)).collect()
}

/// What has been written, to be taken back.
#[derive(Default)]
pub(crate) struct Journal<'a>(Vec<Box<dyn FnOnce() -> io::Result<()> + 'a>>);

impl<'a> Journal<'a> {
    fn on_undo(&mut self, undo: impl FnOnce() -> io::Result<()> + 'a) {
        self.0.push(Box::new(undo));
    }

    /// Writes everything back, the last first. An entry that cannot be written back stays as it is: the
    /// caller's error is the one to tell.
    pub(crate) fn undo(self) {
        for undo in self.0.into_iter().rev() {
            let _unheard = undo();
        }
    }
}

/// Writes one value of an array and remembers the one before.
pub(crate) fn replace<'a, V: Pod>(
    table: &'a Table<u32, V>,
    number: u32,
    value: V,
    before: V,
    journal: &mut Journal<'a>,
) -> io::Result<()> {
    journal.on_undo(move || table.put(&number, &before));
    table.put(&number, &value)
}

/// Makes an array hold exactly `wanted`, and `blank` elsewhere, writing only what differs. Element 0 of
/// numbered tables is never in `wanted` and always blank.
fn array<'a, V: Pod + PartialEq>(
    table: &'a Table<u32, V>,
    wanted: BTreeMap<u32, V>,
    blank: V,
    journal: &mut Journal<'a>,
) -> io::Result<()> {
    for (number, before) in table.entries()? {
        let value = wanted.get(&number).copied().unwrap_or(blank);
        if value != before {
            replace(table, number, value, before, journal)?;
        }
    }
    Ok(())
}

/// Adds and changes entries of a hash; returns those that are not wanted.
fn additions<'a, K: Pod + Eq + Hash>(
    table: &'a Table<K, u32>,
    wanted: &HashMap<K, u32>,
    journal: &mut Journal<'a>,
) -> io::Result<Vec<(K, u32)>> {
    let before: HashMap<K, u32> = table.entries()?.into_iter().collect();
    for (key, value) in wanted {
        store(table, *key, *value, before.get(key).copied(), journal)?;
    }
    Ok(before.into_iter().filter(|(key, _)| !wanted.contains_key(key)).collect())
}

/// The same for a trie, whose keys cannot be hashed as they are.
pub(crate) fn trie_additions<'a, K: Pod + Eq + Hash>(
    table: &'a Table<Key<K>, u32>,
    wanted: &Trie<K>,
    journal: &mut Journal<'a>,
) -> io::Result<Vec<(Key<K>, u32)>> {
    let before = table.entries()?.into_iter().map(|(key, flags)| ((key.prefix_len(), key.data()), flags));
    let before: Trie<K> = before.collect();
    for ((length, data), value) in wanted {
        let old = before.get(&(*length, *data)).copied();
        store(table, Key::new(*length, *data), *value, old, journal)?;
    }
    let gone = before.into_iter().filter(|(key, _)| !wanted.contains_key(key));
    Ok(gone.map(|((length, data), flags)| (Key::new(length, data), flags)).collect())
}

fn store<'a, K: Pod>(
    table: &'a Table<K, u32>,
    key: K,
    value: u32,
    before: Option<u32>,
    journal: &mut Journal<'a>,
) -> io::Result<()> {
    if before == Some(value) {
        return Ok(());
    }
    journal.on_undo(move || match before {
        Some(before) => table.put(&key, &before),
        None => table.remove(&key).map(drop),
    });
    table.put(&key, &value)
}

pub(crate) fn removals<'a, K: Pod>(
    table: &'a Table<K, u32>,
    gone: Vec<(K, u32)>,
    journal: &mut Journal<'a>,
) -> io::Result<()> {
    for (key, value) in gone {
        journal.on_undo(move || table.put(&key, &value));
        table.remove(&key)?;
    }
    Ok(())
}

/// The lengths that an index row or the list of a family must have so that `prefix` is found; used when
/// one prefix is added to a list in force.
pub(crate) fn index_with(
    prefix: Prefix,
    row: Lengths,
    everywhere: Everywhere,
) -> Result<(Option<Lengths>, Everywhere)> {
    use blitz_ebpf_common::layout::{PIVOT4, PIVOT6};
    let (length, pivot) = match prefix {
        Prefix::V4(p) => (p.length, PIVOT4),
        Prefix::V6(p) => (p.length, PIVOT6),
    };
    if u32::from(length) >= pivot
        && let Some(row) = crate::prefixes::with_length(row, length)
    {
        return Ok((Some(row), everywhere));
    }
    let mut everywhere = everywhere;
    let words = match prefix {
        Prefix::V4(_) => &mut everywhere.v4,
        Prefix::V6(_) => &mut everywhere.v6,
    };
    crate::prefixes::add_everywhere(words, length).map_err(|_| too_many_lengths(prefix))?;
    Ok((None, everywhere))
}
