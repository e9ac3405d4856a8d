//! From a prepared configuration, or a changed name, to workers that use it.
//!
//! Owns: the commit, in one step of the loop, and the report about it. Does not own: preparing (see
//! [`crate::control::reload`]) or what workers do with it (see [`crate::process::worker`]).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use blitz_config::Config;
use blitz_config::plan::Plan;
use tokio::sync::oneshot;

use super::{Again, Control, Current, Reload, WorkerOrder, addresses, listener_addresses};
use crate::control::Event;
use crate::control::load::ConfigHead;
use crate::control::names::NameUpdate;
use crate::control::reload::{self, APPLY_TIMEOUT, Prepared, ReloadReport, Timings, micros, prepare};
use crate::metrics::Metric;
use crate::process::endpoints::ResolvedEndpoints;
use crate::process::listeners::Bank;
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
            Reload::Preparing { again, .. } | Reload::Applying { again, .. } => {
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
        let committed = Instant::now();
        match prepared.and_then(|prepared| self.commit(*prepared)) {
            Ok((notes, removed)) => {
                let generation = self.current.generation;
                self.reload = Reload::Applying {
                    generation,
                    started,
                    committed,
                    timings,
                    notes,
                    removed,
                    waiting,
                    again,
                };
                self.later(APPLY_TIMEOUT, Event::ReloadDeadline { generation });
                self.check_reload();
            }
            Err(reason) => {
                self.own_rows.add(Metric::ConfigReloadFailures, 1);
                let timings = Timings { total_us: micros(started), ..timings };
                for line in reason.lines() {
                    log::error!("reload refused, nothing has changed: {line}");
                }
                let report = ReloadReport::new(false, self.current.generation, reason, timings);
                self.reported(report, waiting, again);
            }
        }
    }

    /// Makes a prepared configuration the current one and tells the workers. Nothing has changed when it fails. Returns
    /// remarks for the report, and the addresses to close once the workers have closed them.
    fn commit(&mut self, prepared: Prepared) -> Result<(Vec<String>, Vec<SocketAddr>), String> {
        let Prepared { config, head, text, names: wanted, outcomes, .. } = prepared;
        let generation = self.current.generation + 1;
        let plan = Plan::between(&self.current.config, &config);
        let notes = plan.requires_restart(&self.current.config).iter().map(ToString::to_string).collect();
        let listeners = listener_addresses(&config);
        let new_banks = self.banks.bind_missing(&listeners, self.workers.count())?;
        let removed = self.banks.superfluous(&listeners);

        // Both sets of names stay until nothing can fail any more.
        let before = reload::names(&self.current.config);
        let rows_before = self.rows.clone();
        self.names.adopt(&before.union(&wanted).cloned().collect(), outcomes);
        self.reclaim_rows();
        let orders = self.orders(&config, &head, &text, generation, &new_banks, &removed);
        let (endpoints, orders) = match orders {
            Ok(orders) => orders,
            Err(reason) => {
                self.names.adopt(&before, BTreeMap::new());
                self.rows = rows_before;
                return Err(reason);
            }
        };
        self.names.adopt(&wanted, BTreeMap::new());
        for (index, message, fds) in orders {
            self.workers.tell(index, &message, fds);
        }
        self.banks.add(new_banks);
        self.current = Current { config, head, text, generation, endpoints };
        self.own_rows.gauge_set(Metric::ConfigGeneration, generation);
        self.publish();
        Ok((notes, removed))
    }

    /// Gives the endpoints rows and makes the order for each live worker, with its descriptors.
    fn orders(
        &mut self,
        config: &Config,
        head: &ConfigHead,
        text: &OwnedFd,
        generation: u64,
        new_banks: &[Bank],
        removed: &[SocketAddr],
    ) -> Result<(ResolvedEndpoints, Vec<WorkerOrder>), String> {
        let endpoints = self
            .rows
            .assign(&addresses(config, &self.names), generation)
            .map_err(|error| error.to_string())?;
        let order = |index: u32| {
            let mut fds = vec![text.try_clone()?];
            let mut added = Vec::new();
            for bank in new_banks {
                if let Some(socket) = bank.socket(index) {
                    added.push(bank.address());
                    fds.push(socket.try_clone_to_owned()?);
                }
            }
            let message = ConfigMessage {
                generation,
                head: head.clone(),
                endpoints: endpoints.clone(),
                added,
                removed: removed.to_vec(),
            };
            Ok((index, ToWorker::Config(Box::new(message)), fds))
        };
        let orders: std::io::Result<Vec<_>> = self.workers.alive().into_iter().map(order).collect();
        let orders = orders.map_err(|error| {
            format!("no descriptor left for the workers' copies: {error}; raise the limit of open files")
        })?;
        Ok((endpoints, orders))
    }

    pub(super) fn check_reload(&mut self) {
        if matches!(&self.reload, Reload::Applying { generation, .. } if self.workers.all_applied(*generation))
        {
            self.reload_done(None);
        }
    }

    pub(super) fn reload_done(&mut self, late: Option<String>) {
        let Reload::Applying { generation, started, committed, timings, mut notes, removed, waiting, again } =
            std::mem::replace(&mut self.reload, Reload::Idle)
        else {
            return;
        };
        self.banks.close(&removed);
        self.own_rows.add(Metric::ConfigReloads, 1);
        let timings = Timings { apply_us: micros(committed), total_us: micros(started), ..timings };
        let ms = |us: u64| us as f64 / 1e3;
        log::info!(
            "reloaded: generation {generation}, {} listeners, {} routes, {} upstreams in {:.1} ms (read {:.1}, parse {:.1}, \
             compile {:.1}, names {:.1}, workers {:.1})",
            self.current.config.listeners.len(),
            self.current.config.routes.len(),
            self.current.config.upstreams.len(),
            ms(timings.total_us),
            ms(timings.read_us),
            ms(timings.parse_us),
            ms(timings.compile_us),
            ms(timings.names_us),
            ms(timings.apply_us),
        );
        notes.extend(late);
        for note in &notes {
            log::warn!("reload: {note}");
        }
        let report = ReloadReport::new(true, generation, notes.join("\n"), timings);
        self.reported(report, waiting, again);
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
        let generation = self.current.generation + 1;
        self.reclaim_rows();
        match self.rows.assign(&addresses(&self.current.config, &self.names), generation) {
            Ok(endpoints) => {
                log::info!(
                    "name {} has {} addresses now; generation {generation}",
                    update.name,
                    self.names.addresses(&update.name).len()
                );
                self.current.generation = generation;
                self.current.endpoints = endpoints.clone();
                self.own_rows.gauge_set(Metric::ConfigGeneration, generation);
                self.workers.tell_all(&ToWorker::Endpoints { generation, endpoints });
                self.publish();
            }
            Err(error) => log::error!("name {}: {error}; the addresses before stay in use", update.name),
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
