//! The blocklist of a running stage: single sources, each until a moment.
//!
//! Owns: adding, removing, listing, clearing what is over. Does not own: who may be blocked and for how
//! long (the daemon's policy), or prefixes (see [`crate::deny`]).
//!
//! A source is an IPv4 address or the /64 of an IPv6 address. A block ends on time without anybody's
//! help: the program compares the moment; only its place in the table waits to be cleared. The table
//! holds 65,536; when it is full, what is over is cleared, and then a block is refused.
#![forbid(unsafe_code)]

use std::io;
use std::net::IpAddr;

use blitz_ebpf_common::layout::{Block, BlockKey, DENY_SHADOW, SETTING_BLOCK, SOURCE_PREFIX6, Settings};

use crate::error::Result;
use crate::lock::Lock;
use crate::maps::store_error;
use crate::prefixes::{Prefix, address, wire};
use crate::stage::Stage;
use crate::sys::clock;

/// One blocked source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The address as a /32, or the /64.
    pub source: Prefix,
    /// Name of the rule, which names the reason.
    pub rule: String,
    /// Since when, CLOCK_MONOTONIC nanoseconds.
    pub since: u64,
    /// Until when, likewise; 0 is for ever.
    pub expires: u64,
    /// Counted, not dropped.
    pub shadow: bool,
}

/// What a call to block found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The source was not blocked before.
    New,
    /// It was, and now until the later of both moments.
    Extended,
}

/// The prefix that stands for `source` on the blocklist.
pub fn source_prefix(source: IpAddr) -> Prefix {
    match source.to_canonical() {
        IpAddr::V4(v4) => Prefix::new(v4.into(), 32),
        IpAddr::V6(v6) => Prefix::new(v6.into(), SOURCE_PREFIX6 as u8),
    }
}

/// Whether `prefix` is one source as the blocklist sees it. Multicast is none: it is never a source, and the keys
/// of IPv4 addresses lie there (see [`BlockKey`]).
pub fn is_source(prefix: Prefix) -> bool {
    source_prefix(prefix.address()) == prefix && !prefix.address().is_multicast()
}

impl Stage {
    /// Blocks `source` until `expires` (CLOCK_MONOTONIC nanoseconds, 0 for ever), under the rule called
    /// `rule`. One that is blocked already stays so until the later moment.
    ///
    /// # Errors
    /// [`crate::Kind::Full`] when the table has no room.
    pub fn block(&self, lock: &Lock, source: IpAddr, expires: u64, rule: &str) -> Result<Outcome> {
        let number = self.rule_or_new(lock, rule)?;
        let (family, words) = wire(source);
        let key = BlockKey::new(family, &words);
        let now = clock::monotonic_nanoseconds();
        let read = |error| self.io("read BLOCKED", &error);
        let table = &self.maps().blocked;
        let before = table.get(&key).map_err(read)?.filter(|block| !is_over(block, now));
        let mut block = Block { expires, since: now, rule: number, flags: 0 };
        if let Some(before) = before {
            block.since = before.since;
            if before.expires == 0 || (expires != 0 && before.expires > expires) {
                block.expires = before.expires;
            }
        }
        if let Err(error) = table.put(&key, &block) {
            if error.raw_os_error() == Some(libc::E2BIG) && self.clear_expired_blocks(lock, now)? > 0 {
                table.put(&key, &block).map_err(|error| self.blocklist_full(&error))?;
            } else {
                return Err(self.blocklist_full(&error));
            }
        }
        if before.is_none() {
            self.forget_block_note(source_prefix(source))?;
        }
        self.change_flags(SETTING_BLOCK, 0)?;
        Ok(if before.is_some() { Outcome::Extended } else { Outcome::New })
    }

    /// Takes `source` off the blocklist; false when it was not on it.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn unblock(&self, _lock: &Lock, source: IpAddr) -> Result<bool> {
        let (family, words) = wire(source);
        let key = BlockKey::new(family, &words);
        let removed = self.maps().blocked.remove(&key).map_err(|error| self.io("write BLOCKED", &error))?;
        if removed {
            self.forget_block_note(source_prefix(source))?;
        }
        if removed
            && self.maps().blocked.entries().map_err(|error| self.io("read BLOCKED", &error))?.is_empty()
        {
            self.change_flags(0, SETTING_BLOCK)?;
        }
        Ok(removed)
    }

    /// Every source that is blocked now.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn blocked(&self) -> Result<Vec<Blocked>> {
        let now = clock::monotonic_nanoseconds();
        let entries = self.maps().blocked.entries().map_err(|error| self.io("read BLOCKED", &error))?;
        let in_force = entries.into_iter().filter(|(_, block)| !is_over(block, now));
        let mut found: Vec<Blocked> = in_force
            .map(|(key, block)| Blocked {
                source: key_prefix(&key),
                rule: self.rule_label(block.rule),
                since: block.since,
                expires: block.expires,
                shadow: block.flags & DENY_SHADOW != 0,
            })
            .collect();
        found.sort_by_key(|blocked| blocked.source);
        Ok(found)
    }

    /// Removes the blocks that are over at `now`; how many. With none left the program stops looking.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn clear_expired_blocks(&self, _lock: &Lock, now: u64) -> Result<usize> {
        let table = &self.maps().blocked;
        let error = |error| self.io("clear BLOCKED", &error);
        let entries = table.entries().map_err(error)?;
        let count = entries.len();
        let mut removed = 0;
        for (key, block) in entries {
            if is_over(&block, now) && table.remove(&key).map_err(error)? {
                self.forget_block_note(key_prefix(&key))?;
                removed += 1;
            }
        }
        if count == removed {
            self.change_flags(0, SETTING_BLOCK)?;
        }
        Ok(removed)
    }

    /// Sets and clears `SETTING_*` flags, when that changes something.
    pub(crate) fn change_flags(&self, set: u32, cleared: u32) -> Result<()> {
        let before = self.settings()?;
        let after = Settings { flags: before.flags & !cleared | set, ..before };
        if after == before {
            return Ok(());
        }
        self.maps().settings.put(&0, &after).map_err(|error| self.io("write SETTINGS", &error))
    }

    fn blocklist_full(&self, error: &io::Error) -> crate::Error {
        let remedy = "deny a prefix instead (blitz-ctl deny add), or wait for blocks to end";
        store_error("the blocklist", self.maps().blocked.entries_max(), remedy, error).about(self.interface())
    }
}

fn is_over(block: &Block, now: u64) -> bool {
    block.expires != 0 && block.expires <= now
}

pub(crate) fn key_prefix(key: &BlockKey) -> Prefix {
    source_prefix(address(key.source()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_prefixes_agree() {
        for (text, prefix) in [
            ("192.0.2.7", "192.0.2.7/32"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ] {
            let source: IpAddr = text.parse().expect("an address");
            let (family, words) = wire(source);
            assert_eq!(source_prefix(source).to_string(), prefix);
            assert_eq!(key_prefix(&BlockKey::new(family, &words)).to_string(), prefix);
        }
    }
}
