//! From a prepared configuration, or a changed name, to workers that use it.
//!
//! Two phases: every worker compiles the new configuration beside its loop and says so (or one refuses, and
//! nothing has changed); then all are told to swap, which is one pointer each. So a reload is in effect
//! everywhere or nowhere, and the time in which workers differ is that of a message.
//!
//! Owns: both phases and the report about them. Does not own: preparing (see
//! [`crate::control::reload`]) or what workers do with it (see [`crate::process::worker`]).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use blitz_config::plan::Plan;
use tokio::sync::oneshot;

use super::{Again, Control, Current, Progress, Reload, Staged, addresses, places};
use crate::control::Event;
use crate::control::names::NameUpdate;
use crate::control::reload::{
    self, APPLY_TIMEOUT, Prepared, ReloadReport, STAGE_TIMEOUT, Timings, micros, prepare,
};
use crate::metrics::Metric;
use crate::process::messages::{ConfigMessage, ToWorker};

impl Control {
    pub(super) fn begin_reload(&mut self, reply: Option<oneshot::Sender<Arc<ReloadReport>>>) {
        if self.ending.is_some() || !self.is_ready {
            let why = if self.is_ready { "it ends" } else { "it still starts" };
            let message = format!("not reloaded: {why}");
            log::warn!("{message}");
            let report = ReloadReport::new(false, self.current.generation, message, Timings::default());
            if let Some(reply) = reply {
                let _gone = reply.send(Arc::new(report));
            }
            return;
        }
        match &mut self.reload {
            Reload::Idle => self.start_reload(reply.into_iter().collect()),
            // What is being read now may be older than the wish: do it again afterwards.
            Reload::Preparing { again, .. }
            | Reload::Staging { again, .. }
            | Reload::Applying { again, .. } => {
                again.is_wanted = true;
                again.waiting.extend(reply);
            }
        }
    }

    fn start_reload(&mut self, waiting: Vec<oneshot::Sender<Arc<ReloadReport>>>) {
        self.reload = Reload::Preparing { started: Instant::now(), waiting, again: Again::default() };
        let known = reload::names(&self.current.config);
        let (origin, lookup, code) = (self.options.origin.clone(), self.names.lookup().clone(), self.code);
        let events = self.events.clone();
        tokio::spawn(async move {
            let prepared = prepare(origin, lookup, known, code).await;
            let _ended = events.send(Event::Prepared(prepared)).await;
        });
    }

    pub(super) fn prepared(&mut self, prepared: Result<Box<Prepared>, String>) {
        let Reload::Preparing { started, waiting, again } = std::mem::replace(&mut self.reload, Reload::Idle)
        else {
            return;
        };
        let timings = prepared.as_ref().map(|prepared| prepared.timings).unwrap_or_default();
        let mut progress = Progress { started, timings, notes: Vec::new(), waiting };
        let prepared = prepared.and_then(|prepared| match self.ending {
            None => Ok(prepared),
            Some(_) => Err("the gateway ends".to_owned()),
        });
        match prepared.and_then(|prepared| self.stage(*prepared, &mut progress.notes)) {
            Ok(staged) => {
                let generation = staged.next.generation;
                self.reload =
                    Reload::Staging { staged: Box::new(staged), since: Instant::now(), progress, again };
                self.later(STAGE_TIMEOUT, Event::StageDeadline { generation });
                self.check_staged();
            }
            Err(reason) => self.refuse(reason, progress, again),
        }
    }

    /// Gives a prepared configuration its sockets and rows, and the workers something to compile. Nothing has
    /// changed when it fails.
    fn stage(&mut self, prepared: Prepared, notes: &mut Vec<String>) -> Result<Staged, String> {
        let Prepared { config, head, text, names, outcomes, .. } = prepared;
        let plan = Plan::between(&self.current.config, &config);
        notes.extend(plan.requires_restart(&self.current.config).iter().map(ToString::to_string));
        let listeners = places(&config);
        let new_banks = self.banks.bind_missing(&listeners, self.workers.count())?;
        let removed = self.banks.superfluous(&listeners);

        self.reclaim_rows();
        // Both sets of names stay until it is known which one is needed.
        let before = reload::names(&self.current.config);
        self.names.adopt(&before.union(&names).cloned().collect(), outcomes);
        let generation = self.next_generation;
        let mut rows = self.rows.clone();
        let endpoints = match rows.assign(&addresses(&config, &self.names), generation) {
            Ok(endpoints) => endpoints,
            Err(error) => {
                self.names.adopt(&before, BTreeMap::new());
                return Err(error.to_string());
            }
        };
        let next = Current { config, head, text, generation, endpoints };
        let awaited = self.workers.alive().into_iter().collect();
        let staged = Staged { next, rows, names, new_banks, removed, awaited };
        let orders: std::io::Result<Vec<_>> =
            staged.awaited.iter().map(|index| Ok((*index, staged.order(*index)?))).collect();
        let orders = match orders {
            Ok(orders) => orders,
            Err(error) => {
                self.names.adopt(&before, BTreeMap::new());
                return Err(format!(
                    "no descriptor left for the workers' copies: {error}; raise the limit of open files"
                ));
            }
        };
        self.next_generation += 1;
        for (index, (message, fds)) in orders {
            self.workers.tell(index, &message, fds);
        }
        Ok(staged)
    }

    /// Has a worker that was started meanwhile compile what the others compile.
    pub(super) fn stage_also(&mut self, index: u32) {
        let Reload::Staging { staged, .. } = &mut self.reload else { return };
        match staged.order(index) {
            Ok((message, fds)) => {
                staged.awaited.insert(index);
                self.workers.tell(index, &message, fds);
            }
            Err(error) => self.unstage(format!("no descriptor left for worker {index}: {error}")),
        }
    }

    pub(super) fn staged_by(&mut self, index: u32, generation: u64) {
        if matches!(&self.reload, Reload::Staging { staged, .. } if staged.next.generation == generation) {
            self.no_longer_awaited(index);
        }
    }

    pub(super) fn no_longer_awaited(&mut self, index: u32) {
        if let Reload::Staging { staged, .. } = &mut self.reload {
            staged.awaited.remove(&index);
            self.check_staged();
        }
    }

    pub(super) fn refused_by(&mut self, index: u32, generation: u64, reason: &str) {
        match &mut self.reload {
            Reload::Staging { staged, .. } if staged.next.generation == generation => {
                self.unstage(format!("worker {index}: {reason}"));
            }
            Reload::Applying { generation: applying, progress, .. } if *applying == generation => {
                progress.notes.push(format!("worker {index}: {reason}"));
            }
            _ => {}
        }
    }

    pub(super) fn stage_overdue(&mut self, generation: u64) {
        if let Reload::Staging { staged, .. } = &self.reload
            && staged.next.generation == generation
        {
            let (late, seconds) = (&staged.awaited, STAGE_TIMEOUT.as_secs());
            self.unstage(format!("workers {late:?} have not compiled it within {seconds} s"));
        }
    }

    /// Gives up what is being compiled.
    fn unstage(&mut self, reason: String) {
        let Reload::Staging { since, mut progress, again, .. } =
            std::mem::replace(&mut self.reload, Reload::Idle)
        else {
            return;
        };
        progress.timings.stage_us = micros(since);
        self.names.adopt(&reload::names(&self.current.config), BTreeMap::new());
        self.refuse(reason, progress, again);
        self.renew_addresses();
    }

    /// Makes the staged configuration the current one once every worker has compiled it. Nothing can fail
    /// here.
    fn check_staged(&mut self) {
        if !matches!(&self.reload, Reload::Staging { staged, .. } if staged.awaited.is_empty()) {
            return;
        }
        let Reload::Staging { staged, since, mut progress, again } =
            std::mem::replace(&mut self.reload, Reload::Idle)
        else {
            return;
        };
        progress.timings.stage_us = micros(since);
        if self.ending.is_some() {
            self.refuse("the gateway ends".to_owned(), progress, again);
            return;
        }
        let Staged { next, rows, names, new_banks, removed, .. } = *staged;
        let generation = next.generation;
        let since = Instant::now();
        self.workers.tell_all(&ToWorker::Swap { generation });
        self.names.adopt(&names, BTreeMap::new());
        self.rows = rows;
        self.banks.add(new_banks);
        self.current = next;
        self.own_rows.gauge_set(Metric::ConfigGeneration, generation);
        self.publish();
        self.reload = Reload::Applying { generation, since, removed, progress, again };
        self.later(APPLY_TIMEOUT, Event::ReloadDeadline { generation });
        self.check_reload();
        self.renew_addresses();
    }

    pub(super) fn check_reload(&mut self) {
        if matches!(&self.reload, Reload::Applying { generation, .. } if self.workers.all_applied(*generation))
        {
            self.reload_done(None);
        }
    }

    pub(super) fn reload_done(&mut self, late: Option<String>) {
        let Reload::Applying { generation, since, removed, mut progress, again } =
            std::mem::replace(&mut self.reload, Reload::Idle)
        else {
            return;
        };
        self.banks.close(&removed);
        if let Some(steerer) = &mut self.steerer {
            steerer.withdraw(&removed);
        }
        self.own_rows.add(Metric::ConfigReloads, 1);
        let timings =
            Timings { swap_us: micros(since), total_us: micros(progress.started), ..progress.timings };
        let ms = |us: u64| us as f64 / 1e3;
        log::info!(
            "reloaded: generation {generation}, {} listeners, {} routes, {} upstreams in {:.1} ms (read {:.1}, \
             parse {:.1}, compile {:.1}, names {:.1}, workers' compile {:.1}, swap {:.1})",
            self.current.config.listeners.len(),
            self.current.config.routes.len(),
            self.current.config.upstreams.len(),
            ms(timings.total_us),
            ms(timings.read_us),
            ms(timings.parse_us),
            ms(timings.compile_us),
            ms(timings.names_us),
            ms(timings.stage_us),
            ms(timings.swap_us),
        );
        progress.notes.extend(late);
        for note in &progress.notes {
            log::warn!("reload: {note}");
        }
        let report = ReloadReport::new(true, generation, progress.notes.join("\n"), timings);
        self.reported(report, progress.waiting, again);
    }

    fn refuse(&mut self, reason: String, progress: Progress, again: Again) {
        self.own_rows.add(Metric::ConfigReloadFailures, 1);
        let timings = Timings { total_us: micros(progress.started), ..progress.timings };
        for line in reason.lines() {
            log::error!("reload refused, nothing has changed: {line}");
        }
        let report = ReloadReport::new(false, self.current.generation, reason, timings);
        self.reported(report, progress.waiting, again);
    }

    fn reported(
        &mut self,
        report: ReloadReport,
        waiting: Vec<oneshot::Sender<Arc<ReloadReport>>>,
        again: Again,
    ) {
        let report = Arc::new(report);
        for reply in waiting {
            let _gone = reply.send(Arc::clone(&report));
        }
        self.last_reload = Some(report);
        self.publish();
        if again.is_wanted {
            self.start_reload(again.waiting);
        }
    }

    pub(super) fn name_updated(&mut self, update: &NameUpdate) {
        let has_failed = update.outcome.failure().is_some();
        self.own_rows.add(if has_failed { Metric::DnsLookupsFailed } else { Metric::DnsLookupsOk }, 1);
        if !self.names.update(update) || self.ending.is_some() {
            return;
        }
        self.own_rows.add(Metric::DnsChanges, 1);
        let count = self.names.addresses(&update.name).len();
        log::info!("name {} has {count} addresses now", update.name);
        self.are_names_stale = true;
        self.renew_addresses();
    }

    /// Sends the addresses of changed names to the workers. While they compile a configuration it waits for
    /// the outcome.
    fn renew_addresses(&mut self) {
        if !self.are_names_stale || matches!(self.reload, Reload::Staging { .. }) {
            return;
        }
        self.are_names_stale = false;
        self.reclaim_rows();
        let generation = self.next_generation;
        match self.rows.assign(&addresses(&self.current.config, &self.names), generation) {
            // The name was of a configuration that is not used, or came with the one that is.
            Ok(endpoints) if endpoints == self.current.endpoints => {}
            Ok(endpoints) => {
                self.next_generation += 1;
                self.current.generation = generation;
                self.current.endpoints = endpoints.clone();
                self.own_rows.gauge_set(Metric::ConfigGeneration, generation);
                self.workers.tell_all(&ToWorker::Endpoints { generation, endpoints });
                self.publish();
            }
            Err(error) => log::error!("changed names: {error}; the addresses before stay in use"),
        }
    }

    fn reclaim_rows(&mut self) {
        let applied = self.workers.lowest_applied().unwrap_or(self.current.generation);
        let segment = &self.segment;
        for row in self.rows.reclaim(applied, |row| segment.in_flight(row)) {
            segment.clear_endpoint(row);
        }
    }
}

impl Staged {
    /// The order for one worker, with its descriptors.
    fn order(&self, index: u32) -> std::io::Result<(ToWorker, Vec<OwnedFd>)> {
        let mut fds = vec![self.next.text.try_clone()?];
        let mut added = Vec::new();
        for bank in &self.new_banks {
            if let Some(socket) = bank.socket(index) {
                added.push(bank.address());
                fds.push(socket.try_clone_to_owned()?);
            }
        }
        let message = ConfigMessage {
            generation: self.next.generation,
            head: self.next.head.clone(),
            endpoints: self.next.endpoints.clone(),
            added,
            removed: self.removed.clone(),
        };
        Ok((ToWorker::Config(Box::new(message)), fds))
    }
}
