//! The blocklist: sources that the data plane or an operator had blocked, each with its end and reason.
//!
//! Owns: what a report must look like, the bounds, the ends, the order in which the list is read. Does not
//! own: the maps (see [`Stages`] and its implementation in [`super::stages`]), who may report (see
//! [`super::peers`]).
//!
//! The maps are the truth: they outlive the daemon, and the command line writes to them as well. What is
//! kept here beside them is what they cannot hold (notes, counts by reason, the order of ends), renewed from
//! them by [`Blocklist::reconcile`].
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::Duration;

use blitz_config::model::Cidr;
use blitz_ctl_protocol::message::{Blocked, BlockedPage, Outcome, PAGE_ROWS_MAX, Reason, Report, ReportDone};
use blitz_ebpf_common::layout::{BLOCKED_MAX, Block, BlockKey};

use crate::error::Result;
use crate::prefixes::{address, wire};

/// Longest block that a report may ask for. A longer one is cut.
pub const TTL_MAX: Duration = Duration::from_secs(3600);
/// Share of the list that one reason may hold, in eighths: a flood of reports for one reason leaves room for
/// the others.
const REASON_EIGHTHS: u64 = 7;

/// Where blocks hold: the stages of all interfaces.
pub trait Stages {
    /// How many stages there are that filter.
    fn count(&self) -> u32;
    /// Stores a block in every stage. When one has no room, the others hold it all the same and the first
    /// failure is returned.
    ///
    /// # Errors
    /// What the map said.
    fn block(&self, key: &BlockKey, held: &Held) -> Result<()>;
    /// Removes a block from every stage; whether any had it.
    ///
    /// # Errors
    /// What the map said.
    fn unblock(&self, key: &BlockKey) -> Result<bool>;
    /// Removes a block from every stage in which it has ended by `now`.
    ///
    /// # Errors
    /// What the map said.
    fn expire(&self, key: &BlockKey, now: u64) -> Result<()>;
    /// Every block of every stage; one that several hold may come several times.
    ///
    /// # Errors
    /// What the map said.
    fn blocks(&self) -> Result<Vec<(BlockKey, Block, Option<Reason>)>>;
    /// Tells the program whether to look at the list at all. While another writer is at work this may be put
    /// off; as long as somebody is blocked each sweep asks for it again.
    ///
    /// # Errors
    /// What the map said.
    fn use_blocklist(&self, used: bool) -> Result<()>;
}

/// One blocked source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// When it began, CLOCK_MONOTONIC nanoseconds.
    pub since: u64,
    /// When it ends; 0 is never.
    pub expires: u64,
    /// Why; `None` when a rule of another name counts it.
    pub reason: Option<Reason>,
    /// The note of the report.
    pub note: String,
}

/// What the configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Sources that reports may have blocked at the same time (count).
    pub entries_max: u64,
    /// Whether a reason is in use.
    pub framing: bool,
    /// Whether a reason is in use.
    pub limit: bool,
    /// Sources that are never blocked: `xdp.allow` and `xdp.management`.
    pub exempt: Vec<Cidr>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Blocklist {
    rules: Rules,
    /// At most [`BLOCKED_MAX`], which is what the maps hold.
    entries: BTreeMap<BlockKey, Held>,
    ends: BTreeSet<(u64, BlockKey)>,
    /// Entries by reason.
    counts: BTreeMap<Option<Reason>, u64>,
    /// When the list became empty, while the program still looks at it; it stops a while later.
    empty_since: Option<u64>,
}

/// How long the program goes on looking at an empty list: turning the look on takes the writers' lock.
const EMPTY_LINGER: u64 = 60 * 1_000_000_000;

impl Blocklist {
    /// Takes new rules; entries that break them stay until they end.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = Rules { entries_max: rules.entries_max.min(u64::from(BLOCKED_MAX)), ..rules };
    }

    /// Sources on the list.
    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Whether nobody is blocked.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sources that the list takes from reports.
    pub fn entries_max(&self) -> u64 {
        self.rules.entries_max
    }

    /// Acts on a report at `now`. `is_own` tells whether an address is this machine's.
    ///
    /// # Errors
    /// A sentence, when the report makes no sense or the maps failed.
    pub fn report(
        &mut self,
        report: &Report,
        now: u64,
        stages: &impl Stages,
        is_own: impl Fn(IpAddr) -> bool,
    ) -> std::result::Result<ReportDone, String> {
        let source = report.source.to_canonical();
        let peer = report.connection.peer.ip().to_canonical();
        if peer != source {
            return Err(format!(
                "the report is about {source}, and its connection's peer is {peer}: only the peer can be blocked"
            ));
        }
        if report.ttl_ms == 0 {
            return Err("the report asks for a block of no time".to_owned());
        }
        let nothing = |outcome| ReportDone { outcome, remaining_ms: 0 };
        if !self.is_in_use(report.reason) || stages.count() == 0 {
            return Ok(nothing(Outcome::Off));
        }
        let key = key_of(source);
        if is_never_blocked(source) || self.is_exempt(source) || is_own(source) {
            return Ok(nothing(Outcome::Exempt));
        }
        let ttl = Duration::from_millis(report.ttl_ms).min(TTL_MAX);
        let mut held = Held {
            since: now,
            expires: now.saturating_add(ttl.as_nanos() as u64),
            reason: Some(report.reason),
            note: report.connection.note.clone(),
        };
        let before = self.entries.get(&key).filter(|held| held.expires == 0 || held.expires > now);
        let outcome = match before {
            Some(before) => {
                // The later end holds, with the reason that came first.
                let later = if before.expires == 0 { 0 } else { before.expires.max(held.expires) };
                held = Held { expires: later, ..before.clone() };
                Outcome::Already
            }
            None if !self.has_room(report.reason) => return Ok(nothing(Outcome::Capped)),
            None => Outcome::Blocked,
        };
        // Also for a source that is listed already: somebody may have removed it from a map.
        let stored = stages.block(&key, &held).map_err(|error| error.to_string());
        let used = stages.use_blocklist(true).map_err(|error| error.to_string());
        self.empty_since = None;
        let remaining_ms = remaining_ms(held.expires, now).unwrap_or(u64::MAX);
        self.insert(key, held);
        stored.and(used)?;
        Ok(ReportDone { outcome, remaining_ms })
    }

    /// Takes a source off the list; whether it was there.
    ///
    /// # Errors
    /// A sentence, when the maps failed.
    pub fn unblock(&mut self, source: IpAddr, stages: &impl Stages) -> std::result::Result<bool, String> {
        // Never a source, and where the keys of IPv4 addresses lie.
        if source.is_multicast() {
            return Ok(false);
        }
        let key = key_of(source.to_canonical());
        let was_there = stages.unblock(&key).map_err(|error| error.to_string())?;
        Ok(self.remove(&key) | was_there)
    }

    /// Removes what has ended by `now`; how many.
    ///
    /// # Errors
    /// What the maps said; what is left is removed by the next sweep, and the program ignores it meanwhile.
    pub fn sweep(&mut self, now: u64, stages: &impl Stages) -> Result<usize> {
        let mut removed = 0;
        while let Some((expires, key)) = self.ends.first().copied()
            && expires <= now
        {
            stages.expire(&key, now)?;
            self.remove(&key);
            removed += 1;
        }
        match self.empty_since {
            _ if !self.entries.is_empty() => {
                self.empty_since = None;
                // A command that found the list empty may have made the program stop looking just when the
                // first block was stored.
                stages.use_blocklist(true)?;
            }
            None => self.empty_since = Some(now),
            Some(since) if now.saturating_sub(since) >= EMPTY_LINGER && since != NEVER_AGAIN => {
                stages.use_blocklist(false)?;
                self.empty_since = Some(NEVER_AGAIN);
            }
            Some(_) => {}
        }
        Ok(removed)
    }

    /// Takes over what the maps hold: at the start, and from time to time, since the command line writes to
    /// them as well. With `spread`, a source that some stages lack (an interface that came later) is stored
    /// there, too; without, somebody may have unblocked it there on purpose.
    ///
    /// # Errors
    /// What the maps said. When they could not be read the list stays as it was; when a block could not be
    /// spread, everything else has been taken over.
    pub fn reconcile(&mut self, now: u64, stages: &impl Stages, spread: bool) -> Result<()> {
        let mut found: BTreeMap<BlockKey, (Held, u32)> = BTreeMap::new();
        for (key, block, reason) in stages.blocks()? {
            let note = self.entries.get(&key).map(|held| held.note.clone()).unwrap_or_default();
            let held = Held { since: block.since, expires: block.expires, reason, note };
            let entry = found.entry(key).or_insert_with(|| (held.clone(), 0));
            entry.1 += 1;
            if entry.0.expires != 0 && (held.expires == 0 || held.expires > entry.0.expires) {
                entry.0 = held;
            }
        }
        self.entries.clear();
        self.ends.clear();
        self.counts.clear();
        let mut result = Ok(());
        for (key, (held, count)) in found {
            if spread && count < stages.count() && (held.expires == 0 || held.expires > now) {
                // One stage may be full; what the others hold is listed and ends all the same.
                result = result.and(stages.block(&key, &held));
            }
            self.insert(key, held);
        }
        if !self.entries.is_empty() {
            self.empty_since = None;
            result = result.and(stages.use_blocklist(true));
        }
        result
    }

    /// A page of the list, in the order of its keys, from behind `after` on.
    pub fn page(&self, after: Option<IpAddr>, now: u64) -> BlockedPage {
        let start = after.map_or(Bound::Unbounded, |after| Bound::Excluded(key_of(after.to_canonical())));
        let mut rest = self.entries.range((start, Bound::Unbounded));
        let rows = rest
            .by_ref()
            .take(PAGE_ROWS_MAX)
            .map(|(key, held)| Blocked {
                source: address_of(key),
                reason: held.reason,
                age_ms: now.saturating_sub(held.since) / 1_000_000,
                remaining_ms: remaining_ms(held.expires, now),
                note: held.note.clone(),
            })
            .collect();
        BlockedPage { rows, more: rest.next().is_some() }
    }

    fn is_in_use(&self, reason: Reason) -> bool {
        match reason {
            Reason::Framing => self.rules.framing,
            Reason::Limit => self.rules.limit,
            Reason::Operator => true,
        }
    }

    /// What one reason may hold is a part of what all may hold. An operator is bound by the maps alone.
    fn has_room(&self, reason: Reason) -> bool {
        if reason == Reason::Operator {
            return self.len() < u64::from(BLOCKED_MAX);
        }
        let share = (self.rules.entries_max * REASON_EIGHTHS / 8).max(1).min(self.rules.entries_max);
        let of = |reason| self.counts.get(&Some(reason)).copied().unwrap_or(0);
        of(Reason::Framing) + of(Reason::Limit) < self.rules.entries_max && of(reason) < share
    }

    /// Whether a prefix that is never blocked has anything in common with what would be blocked.
    fn is_exempt(&self, source: IpAddr) -> bool {
        let blocked = match source {
            IpAddr::V4(_) => Cidr { address: source, prefix_len: 32 },
            IpAddr::V6(_) => Cidr { address: address_of(&key_of(source)), prefix_len: 64 },
        };
        self.rules.exempt.iter().any(|cidr| cidr.contains(blocked.address) || blocked.contains(cidr.address))
    }

    fn insert(&mut self, key: BlockKey, held: Held) {
        self.remove(&key);
        *self.counts.entry(held.reason).or_default() += 1;
        if held.expires != 0 {
            self.ends.insert((held.expires, key));
        }
        self.entries.insert(key, held);
    }

    fn remove(&mut self, key: &BlockKey) -> bool {
        let Some(held) = self.entries.remove(key) else { return false };
        self.ends.remove(&(held.expires, *key));
        if let Some(count) = self.counts.get_mut(&held.reason) {
            *count = count.saturating_sub(1);
        }
        true
    }
}

/// [`Blocklist::empty_since`] once the program has stopped looking.
const NEVER_AGAIN: u64 = u64::MAX;

/// The key of a source; of an IPv6 source its /64.
pub fn key_of(source: IpAddr) -> BlockKey {
    let (family, words) = wire(source);
    BlockKey::new(family, &words)
}

/// The address of a key; of an IPv6 key the first of its /64.
pub fn address_of(key: &BlockKey) -> IpAddr {
    address(key.source())
}

/// Addresses that stand for nobody in particular, or for everybody on a link.
fn is_never_blocked(source: IpAddr) -> bool {
    source.is_loopback()
        || source.is_unspecified()
        || source.is_multicast()
        || match source {
            IpAddr::V4(source) => source.is_broadcast(),
            // All neighbours share fe80::/64.
            IpAddr::V6(source) => source.is_unicast_link_local(),
        }
}

fn remaining_ms(expires: u64, now: u64) -> Option<u64> {
    // A block that is about to end has a millisecond, not none.
    (expires != 0).then(|| expires.saturating_sub(now).div_ceil(1_000_000))
}

#[cfg(test)]
mod tests;
