//! Changes to the deny list of a running stage.
//!
//! Owns: adding, removing and listing single prefixes at run time, and why each is denied. Does not own:
//! the list as a whole (see [`crate::apply`]), or single sources with a time (see [`crate::blocklist`]).
//!
//! A prefix is added to the list in force: its reason, its entry, then the index through which it is
//! found, then the flag that makes the program look. A removal leaves the index, which costs a lookup
//! and decides nothing, until the list is next written whole.
#![forbid(unsafe_code)]

use std::time::{SystemTime, UNIX_EPOCH};

use blitz_ebpf_common::layout::{
    DENY_CONFIGURED, DENY_HOST, DENY_SHADOW, Deny, NOTE_MAX, Note, Prefix4, Prefix6, SETTING_DENY,
    SETTING_HOST, index4, index6,
};

use crate::apply::{deny_flags, index_with};
use crate::counters;
use crate::error::{Error, Kind, Result};
use crate::image::RULE_DENY_OPERATOR;
use crate::lock::Lock;
use crate::maps::store_error;
use crate::prefixes::Prefix;
use crate::stage::Stage;
use crate::sys::clock;

/// How a prefix is denied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms<'a> {
    /// Until when, CLOCK_MONOTONIC nanoseconds; 0 is for ever.
    pub expires: u64,
    /// Everything to the host, not only what goes to services.
    pub host: bool,
    /// Counted, not dropped.
    pub shadow: bool,
    /// Why, for people; cut after 120 octets.
    pub reason: &'a str,
}

/// One denied prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The sources.
    pub prefix: Prefix,
    /// Name of the rule that counts it.
    pub rule: String,
    /// Until when, CLOCK_MONOTONIC nanoseconds; 0 is for ever.
    pub expires: u64,
    /// Everything to the host, not only what goes to services.
    pub host: bool,
    /// Counted, not dropped.
    pub shadow: bool,
    /// From the configuration file.
    pub configured: bool,
    /// Why, if somebody said so.
    pub reason: Option<String>,
    /// When it was added, seconds since the Unix epoch, if it was at run time.
    pub added: Option<u64>,
}

impl Stage {
    /// Denies `prefix`; true when it was not denied before. An entry that is there gets the new terms.
    ///
    /// # Errors
    /// [`Kind::Full`] when the list has no room, [`Kind::Usage`] for an end of what the configuration denies
    /// without one; the list is then as before.
    pub fn deny(&self, lock: &Lock, prefix: Prefix, terms: &Terms<'_>) -> Result<bool> {
        let before = self.entry(prefix)?;
        if terms.expires != 0 && before.is_some_and(|deny| deny.flags & DENY_CONFIGURED != 0) {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "{}: the configuration denies {prefix} until it is changed, and a time would end that sooner",
                    self.interface()
                ),
                "leave out --ttl",
            ));
        }
        let rule = self.rule_or_new(lock, RULE_DENY_OPERATOR)?;
        let mut flags = 0;
        if terms.host {
            flags |= DENY_HOST;
        }
        if terms.shadow {
            flags |= DENY_SHADOW;
        }
        let deny = Deny { expires: terms.expires, rule, flags };
        if before.is_none() && !self.has_room(prefix)? {
            // What is over makes room.
            self.clear_expired_denials(lock, clock::monotonic_nanoseconds())?;
            let mut longer = self.denied()?;
            longer.insert(prefix, deny).map_err(|_| crate::apply::too_many_lengths(prefix))?;
            self.check_room(&longer)?;
        }
        self.write_note(prefix, terms.reason)?;
        let result = self.insert(prefix, deny).or_else(|error| match error.kind() {
            // The index has grown through removals: a fresh one has room.
            Kind::Full => {
                let mut list = self.denied()?;
                list.insert(prefix, deny).map_err(|_| crate::apply::too_many_lengths(prefix))?;
                self.swap_denied(&list)
            }
            _ => Err(error),
        });
        if let Err(error) = result {
            if before.is_none() {
                // The first error is the one to tell.
                let _left_over = self.remove_entry(prefix);
                let _left_over = self.maps().notes.remove(&prefix.noted());
            }
            return Err(error);
        }
        Ok(before.is_none())
    }

    /// Denies `prefix` no more; what it was, if it was denied.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn undeny(&self, _lock: &Lock, prefix: Prefix) -> Result<Option<Deny>> {
        let before = self.entry(prefix)?;
        if before.is_none() {
            return Ok(None);
        }
        self.remove_entry(prefix)?;
        self.maps().notes.remove(&prefix.noted()).map_err(|error| self.io("write DENY_NOTES", &error))?;
        self.settle_deny_flags()?;
        Ok(before)
    }

    /// The deny list in force, without what is over.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn deny_list(&self) -> Result<Vec<Denied>> {
        let now = clock::monotonic_nanoseconds();
        let rules: std::collections::HashMap<u32, String> = counters::rule_names(self.maps())
            .map_err(|error| self.io("read RULE_NAMES", &error))?
            .into_iter()
            .collect();
        let notes = self.maps().notes.entries().map_err(|error| self.io("read DENY_NOTES", &error))?;
        let notes: std::collections::HashMap<Prefix6, Note> = notes.into_iter().collect();
        let list = self.denied()?;
        let in_force = list.entries().filter(|(_, deny)| !is_over(deny, now));
        let found = in_force.map(|(prefix, deny)| {
            let note = notes.get(&prefix.noted());
            Denied {
                prefix: *prefix,
                rule: rules.get(&deny.rule).cloned().unwrap_or_else(|| format!("rule {}", deny.rule)),
                expires: deny.expires,
                host: deny.flags & DENY_HOST != 0,
                shadow: deny.flags & DENY_SHADOW != 0,
                configured: deny.flags & DENY_CONFIGURED != 0,
                reason: note.and_then(note_text),
                added: note.map(|note| note.added),
            }
        });
        Ok(found.collect())
    }

    /// Removes the entries that are over at `now`; how many.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn clear_expired_denials(&self, _lock: &Lock, now: u64) -> Result<usize> {
        let list = self.denied()?;
        let mut removed = 0;
        for (prefix, _) in list.entries().filter(|(_, deny)| is_over(deny, now)) {
            self.remove_entry(*prefix)?;
            self.maps().notes.remove(&prefix.noted()).map_err(|error| self.io("write DENY_NOTES", &error))?;
            removed += 1;
        }
        if removed > 0 {
            self.settle_deny_flags()?;
        }
        Ok(removed)
    }

    /// Says why a blocked source is blocked.
    ///
    /// # Errors
    /// [`Kind::Full`] when the table of reasons has no room.
    pub fn note(&self, _lock: &Lock, prefix: Prefix, reason: &str) -> Result<()> {
        self.write_note(prefix, reason)
    }

    /// Forgets the words about a source whose block is over, unless they are about the same prefix being denied.
    /// Nobody else would: they would fill the table, and speak for the source's next block.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub(crate) fn forget_block_note(&self, source: Prefix) -> Result<()> {
        if self.entry(source)?.is_some() {
            return Ok(());
        }
        let removed = self.maps().notes.remove(&source.noted());
        removed.map(drop).map_err(|error| self.io("write DENY_NOTES", &error))
    }

    /// Why a prefix is denied; without words only the moment is kept.
    fn write_note(&self, prefix: Prefix, reason: &str) -> Result<()> {
        let added = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut note = Note { added, reason: [0; NOTE_MAX] };
        counters::fill(&mut note.reason, reason);
        let table = &self.maps().notes;
        match table.put(&prefix.noted(), &note) {
            // What is denied counts for more than the words about it.
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) && reason.is_empty() => Ok(()),
            Err(error) => {
                let remedy = "leave out --reason, or remove entries that have one";
                Err(store_error("the table of reasons", table.entries_max(), remedy, &error)
                    .about(self.interface()))
            }
            Ok(()) => Ok(()),
        }
    }

    /// The words about a prefix.
    ///
    /// Absent words and words that cannot be read are the same here: they only inform.
    pub fn reason(&self, prefix: Prefix) -> Option<String> {
        self.maps().notes.get(&prefix.noted()).ok().flatten().as_ref().and_then(note_text)
    }

    /// Entry, index, flags, in this order.
    fn insert(&self, prefix: Prefix, deny: Deny) -> Result<()> {
        let maps = self.maps();
        let slot = self.settings()?.deny_slot & 1;
        let read = |error| self.io("read the deny index", &error);
        let write = |error| self.io("write the deny index", &error);
        let remedy = "raise xdp.deny_max, detach and attach; or remove prefixes";
        let full = |error| {
            store_error("the deny list", self.sizes().deny_max, remedy, &error).about(self.interface())
        };
        let before = maps.everywhere.get(&slot).map_err(read)?.unwrap_or_default();
        let (table, bucket) = match prefix {
            Prefix::V4(p) => (&maps.index4, index4(slot, p.address)),
            Prefix::V6(p) => (&maps.index6, index6(slot, p.address[0])),
        };
        let row = table.get(&bucket).map_err(read)?.unwrap_or_default();
        let (new_row, everywhere) = index_with(prefix, row, before)?;
        match prefix {
            Prefix::V4(p) => maps.deny4.put(&Prefix4 { slot: slot as u16, ..p }, &deny).map_err(full)?,
            Prefix::V6(p) => maps.deny6.put(&Prefix6 { slot: slot as u16, ..p }, &deny).map_err(full)?,
        }
        if let Some(new_row) = new_row.filter(|new_row| *new_row != row) {
            table.put(&bucket, &new_row).map_err(write)?;
        }
        if everywhere != before {
            maps.everywhere.put(&slot, &everywhere).map_err(write)?;
        }
        let host = if deny.flags & DENY_HOST != 0 { SETTING_HOST } else { 0 };
        self.change_flags(SETTING_DENY | host, 0)
    }

    fn remove_entry(&self, prefix: Prefix) -> Result<()> {
        let slot = (self.settings()?.deny_slot & 1) as u16;
        let removed = match prefix {
            Prefix::V4(p) => self.maps().deny4.remove(&Prefix4 { slot, ..p }),
            Prefix::V6(p) => self.maps().deny6.remove(&Prefix6 { slot, ..p }),
        };
        removed.map(drop).map_err(|error| self.io("write the deny list", &error))
    }

    /// The entry of exactly this prefix in the list in force.
    fn entry(&self, prefix: Prefix) -> Result<Option<Deny>> {
        let slot = (self.settings()?.deny_slot & 1) as u16;
        let found = match prefix {
            Prefix::V4(p) => self.maps().deny4.get(&Prefix4 { slot, ..p }),
            Prefix::V6(p) => self.maps().deny6.get(&Prefix6 { slot, ..p }),
        };
        found.map_err(|error| self.io("read the deny list", &error))
    }

    /// Whether one more prefix of this family fits.
    fn has_room(&self, prefix: Prefix) -> Result<bool> {
        let slot = (self.settings()?.deny_slot & 1) as u16;
        let read = |error| self.io("read the deny list", &error);
        let used = match prefix {
            Prefix::V4(_) => {
                let entries = self.maps().deny4.entries().map_err(read)?;
                entries.iter().filter(|(key, _)| key.slot == slot).count()
            }
            Prefix::V6(_) => {
                let entries = self.maps().deny6.entries().map_err(read)?;
                entries.iter().filter(|(key, _)| key.slot == slot).count()
            }
        };
        Ok(used < self.sizes().deny_max as usize)
    }

    /// Makes the flags say what the list in force holds.
    fn settle_deny_flags(&self) -> Result<()> {
        let slot = (self.settings()?.deny_slot & 1) as u16;
        let read = |error| self.io("read the deny list", &error);
        let v4 = self.maps().deny4.entries().map_err(read)?;
        let v6 = self.maps().deny6.entries().map_err(read)?;
        let v4 = v4.iter().filter(|(key, _)| key.slot == slot).map(|(_, deny)| deny);
        let v6 = v6.iter().filter(|(key, _)| key.slot == slot).map(|(_, deny)| deny);
        let wanted = deny_flags(v4.chain(v6));
        self.change_flags(wanted, (SETTING_DENY | SETTING_HOST) & !wanted)
    }
}

fn is_over(deny: &Deny, now: u64) -> bool {
    deny.expires != 0 && deny.expires <= now
}

fn note_text(note: &Note) -> Option<String> {
    let text = note.reason.split(|octet| *octet == 0).next().unwrap_or_default();
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}
