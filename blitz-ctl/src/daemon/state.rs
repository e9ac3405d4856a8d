//! What the daemon's threads share.
//!
//! Owns: stages, blocklist, census and tallies, each behind its own lock, and what a request on the control
//! socket does. Does not own: threads (see [`super::run`] and [`super::server`]).
//!
//! Locks are taken in this order: the blocklist, the list of stages, the writers' lock of the pins. No lock
//! is held while a configuration is read or compiled.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use blitz_ctl_protocol::message::{
    BlockedPage, Outcome, Queues, Reason, Report, ReportDone, SeatXdp, Status, Steer,
};

use super::blocklist::{Blocklist, Rules};
use super::census::{self, Entries};
use super::server::{Refusal, Requests};
use super::stages::{All, Managed};
use super::{own, queues, steering};
use crate::error::Result;
use crate::pins::Pins;
use crate::sys::clock;

/// See the module.
#[derive(Debug)]
pub struct State {
    pins: Pins,
    blocklist: Mutex<Blocklist>,
    stages: RwLock<Arc<Vec<Managed>>>,
    /// Interfaces that are to have a stage and have none.
    missing: Mutex<BTreeSet<String>>,
    census: Mutex<BTreeMap<String, Entries>>,
    tallies: Tallies,
    started: Instant,
    started_unix: u64,
}

/// What the daemon counts.
#[derive(Debug, Default)]
pub struct Tallies {
    reports: [[AtomicU64; Outcome::ALL.len()]; Reason::ALL.len()],
    refused: [AtomicU64; Refusal::ALL.len()],
    /// Connections on the control socket now.
    pub connections: AtomicU64,
    /// Reloads that took effect.
    pub reloads_ok: AtomicU64,
    /// Reloads that changed nothing.
    pub reloads_failed: AtomicU64,
    /// Deny entries removed after their end.
    pub deny_expired: AtomicU64,
    /// Times that the gateway has said how QUIC is steered.
    pub steered: AtomicU64,
    /// For an index that no array above has; never read.
    spare: AtomicU64,
}

impl Tallies {
    /// Reports about `reason` that ended in `outcome`.
    pub fn reports(&self, reason: Reason, outcome: Outcome) -> &AtomicU64 {
        self.reports.get(reason as usize).and_then(|row| row.get(outcome as usize)).unwrap_or(&self.spare)
    }

    /// Connections that were turned away for `cause`.
    pub fn refused(&self, cause: Refusal) -> &AtomicU64 {
        self.refused.get(cause as usize).unwrap_or(&self.spare)
    }
}

impl State {
    /// Nothing managed yet.
    pub fn new(pins: Pins) -> Self {
        let started_unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self {
            pins,
            blocklist: Mutex::default(),
            stages: RwLock::default(),
            missing: Mutex::default(),
            census: Mutex::default(),
            tallies: Tallies::default(),
            started: Instant::now(),
            started_unix,
        }
    }

    /// Where stages are pinned.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The stages that are managed.
    pub fn stages(&self) -> Arc<Vec<Managed>> {
        Arc::clone(&self.stages.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over other stages, and the rules of a configuration for the blocklist.
    ///
    /// # Errors
    /// The blocklist in the maps could not be read; everything else has been taken over.
    pub fn manage(&self, stages: Vec<Managed>, missing: BTreeSet<String>, rules: Rules) -> Result<()> {
        let mut blocklist = self.blocklist();
        lock(&self.census).retain(|interface, _| stages.iter().any(|m| m.stage().interface() == interface));
        *self.stages.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(stages);
        *lock(&self.missing) = missing;
        blocklist.set_rules(rules);
        blocklist.reconcile(clock::monotonic_nanoseconds(), &self.all(), true)
    }

    /// Interfaces that are to have a stage and have none.
    pub fn missing(&self) -> BTreeSet<String> {
        lock(&self.missing).clone()
    }

    /// Removes blocks that have ended; returns how many.
    ///
    /// # Errors
    /// What the maps said.
    pub fn sweep(&self) -> Result<usize> {
        self.blocklist().sweep(clock::monotonic_nanoseconds(), &self.all())
    }

    /// Takes over what the command line has changed in the blocklist.
    ///
    /// # Errors
    /// What the maps said.
    pub fn reconcile(&self) -> Result<()> {
        self.blocklist().reconcile(clock::monotonic_nanoseconds(), &self.all(), false)
    }

    /// Counts the tables of every stage. Takes seconds for large ones.
    pub fn take_census(&self) {
        for managed in self.stages().iter() {
            let interface = managed.stage().interface();
            match census::take(managed, &self.pins) {
                Ok((entries, expired)) => {
                    if expired > 0 {
                        log::info!("{interface}: {expired} deny entries have ended and were removed");
                    }
                    self.tallies.deny_expired.fetch_add(expired, Ordering::Relaxed);
                    lock(&self.census).insert(interface.to_owned(), entries);
                }
                Err(error) => {
                    log::warn!("the tables of {interface} could not be counted: {error}");
                    lock(&self.census).remove(interface);
                }
            }
        }
    }

    /// The last count of an interface's tables.
    pub fn census(&self, interface: &str) -> Option<Entries> {
        lock(&self.census).get(interface).cloned()
    }

    /// Sources on the blocklist, and how many reports may put there.
    pub fn blocked(&self) -> (u64, u64) {
        let blocklist = self.blocklist();
        (blocklist.len(), blocklist.entries_max())
    }

    /// What has been counted.
    pub fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// When the daemon started, seconds since the Unix epoch.
    pub fn started_unix(&self) -> u64 {
        self.started_unix
    }

    fn blocklist(&self) -> MutexGuard<'_, Blocklist> {
        lock(&self.blocklist)
    }

    fn all(&self) -> All {
        All { pins: self.pins.clone(), stages: self.stages() }
    }
}

/// A thread that panicked has logged it; what it held is still a list of facts.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Requests for State {
    fn report(&self, report: &Report) -> std::result::Result<ReportDone, String> {
        let done = self.blocklist().report(report, clock::monotonic_nanoseconds(), &self.all(), own::is_own);
        match &done {
            Ok(done) => {
                self.tallies.reports(report.reason, done.outcome).fetch_add(1, Ordering::Relaxed);
                match done.outcome {
                    Outcome::Blocked => log::info!(
                        "blocked {} for {} s: {} ({:?})",
                        report.source,
                        done.remaining_ms / 1000,
                        report.reason.label(),
                        report.connection.note
                    ),
                    Outcome::Capped => {
                        log::debug!("{} was not blocked: the blocklist is full", report.source);
                    }
                    _ => {}
                }
            }
            Err(sentence) => log::warn!("a report about {}: {sentence}", report.source),
        }
        done
    }

    fn unblock(&self, source: IpAddr) -> std::result::Result<bool, String> {
        let was_blocked = self.blocklist().unblock(source, &self.all())?;
        if was_blocked {
            log::info!("unblocked {source} on request");
        }
        Ok(was_blocked)
    }

    fn list_blocked(&self, after: Option<IpAddr>) -> BlockedPage {
        self.blocklist().page(after, clock::monotonic_nanoseconds())
    }

    fn steer(&self, steer: &Steer, keys: OwnedFd) -> std::result::Result<Vec<String>, String> {
        let done = steering::steer(&self.all(), steer, keys);
        match &done {
            Ok(_) => drop(self.tallies.steered.fetch_add(1, Ordering::Relaxed)),
            Err(sentence) => log::warn!("QUIC is steered as before: {sentence}"),
        }
        done
    }

    fn status(&self) -> Status {
        let (blocked, blocked_max) = self.blocked();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            interfaces: self.stages().iter().map(|managed| managed.stage().interface().to_owned()).collect(),
            blocked,
            blocked_max,
        }
    }

    fn queues(&self, interface: &str) -> std::result::Result<Queues, String> {
        queues::facts(&self.pins, interface)
    }

    fn open_xdp(&self) -> std::result::Result<OwnedFd, String> {
        queues::open()
    }

    fn seat_xdp(&self, wanted: &SeatXdp, socket: OwnedFd) -> std::result::Result<(), String> {
        queues::seat(&self.pins, wanted, socket)
    }

    fn refused(&self, cause: Refusal) {
        self.tallies.refused(cause).fetch_add(1, Ordering::Relaxed);
    }

    fn connections(&self, count: usize) {
        self.tallies.connections.store(count as u64, Ordering::Relaxed);
    }
}
