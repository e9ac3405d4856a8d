//! Idle connections to endpoints, per worker and address.
//!
//! The last one in is the first one out, so that a falling load lets the rest grow old. Nobody waits
//! on an idle connection: its armed receive notes when the endpoint closes it, which is looked at when
//! it is taken and at each sweep.
//!
//! Owns: the idle connections. Does not own: those in use, those that many requests share (`shared.rs`), or which
//! address is used (`balance.rs`).
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use super::carrier::Carrier;
use super::connect::Link;
use super::shared::Shared;
use crate::http1::client::ClientConnection;
use crate::metrics::names::Metric;
use crate::segment::WorkerRows;

/// The idle connections of one address.
pub struct Pool {
    /// Where they lead.
    pub address: SocketAddr,
    /// How they are made, and what is spoken on them.
    pub link: Rc<Link>,
    /// Those that many requests share.
    pub(super) shared: Shared,
    idle: RefCell<Vec<Idle>>,
    idle_max: Cell<usize>,
    rows: WorkerRows,
}

struct Idle {
    connection: ClientConnection<Carrier>,
    since_ms: u64,
}

impl Pool {
    /// Takes a connection that the endpoint has not closed meanwhile.
    pub fn take(&self) -> Option<ClientConnection<Carrier>> {
        loop {
            let Idle { connection, .. } = self.idle.borrow_mut().pop()?;
            self.rows.gauge_sub(Metric::UpstreamIdle, 1);
            if !connection.is_stale() {
                return Some(connection);
            }
            self.close(connection, Metric::PoolClosedStale);
        }
    }

    /// Keeps a connection for the next exchange; beyond the bound the oldest is closed.
    pub fn put(&self, mut connection: ClientConnection<Carrier>, now_ms: u64) {
        connection.settle();
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= self.idle_max.get() {
            if self.idle_max.get() == 0 {
                return self.close(connection, Metric::PoolClosedFull);
            }
            let oldest = idle.remove(0);
            self.rows.gauge_sub(Metric::UpstreamIdle, 1);
            self.close(oldest.connection, Metric::PoolClosedFull);
        }
        idle.push(Idle { connection, since_ms: now_ms });
        self.rows.gauge_add(Metric::UpstreamIdle, 1);
    }

    fn close(&self, connection: ClientConnection<Carrier>, reason: Metric) {
        drop(connection);
        self.rows.gauge_sub(Metric::UpstreamActive, 1);
        self.rows.add(reason, 1);
    }

    fn sweep(&self, now_ms: u64, idle_ms_max: u64) {
        self.shared.sweep(now_ms, idle_ms_max, self.idle_max.get());
        let mut idle = self.idle.borrow_mut();
        let expired = |entry: &Idle| now_ms.saturating_sub(entry.since_ms) >= idle_ms_max;
        for entry in idle.extract_if(.., |entry| expired(entry) || entry.connection.is_stale()) {
            let reason = if expired(&entry) {
                self.rows.add(Metric::DeadlineUpstreamIdle, 1);
                Metric::PoolClosedIdle
            } else {
                Metric::PoolClosedStale
            };
            self.rows.gauge_sub(Metric::UpstreamIdle, 1);
            self.close(entry.connection, reason);
        }
    }
}

impl Drop for Pool {
    /// The address has left the configuration, or the worker ends.
    fn drop(&mut self) {
        for entry in std::mem::take(self.idle.get_mut()) {
            self.rows.gauge_sub(Metric::UpstreamIdle, 1);
            self.close(entry.connection, Metric::PoolClosedRemoved);
        }
    }
}

/// What tells pools apart: upstream, address, and the name that the endpoint's certificate has to be for (empty: none).
/// Endpoints of several names may be at one address.
type Place = (String, SocketAddr, String);

/// The pools of a worker. A pool lives while a configuration in use knows its address.
pub struct Pools {
    /// Ordered, so that a sweep closes in the same order in every run of a simulation.
    by_address: RefCell<BTreeMap<Place, Weak<Pool>>>,
    rows: WorkerRows,
}

impl Pools {
    /// No pool yet.
    pub fn new(rows: WorkerRows) -> Self {
        Self { by_address: RefCell::new(BTreeMap::new()), rows }
    }

    /// The pool of an address of an upstream, kept over configurations while they link alike. Upstreams do not
    /// share: they may differ in how they speak to the same address.
    pub fn of(&self, upstream: &str, address: SocketAddr, idle_max: usize, link: &Rc<Link>) -> Rc<Pool> {
        let mut pools = self.by_address.borrow_mut();
        let name = link.name().unwrap_or_default().into_owned();
        let slot = pools.entry((upstream.to_owned(), address, name)).or_default();
        let pool = slot.upgrade().filter(|pool| pool.link == *link).unwrap_or_else(|| {
            let pool = Rc::new(Pool {
                address,
                link: Rc::clone(link),
                shared: Shared::default(),
                idle: RefCell::new(Vec::new()),
                idle_max: Cell::new(idle_max),
                rows: self.rows.clone(),
            });
            *slot = Rc::downgrade(&pool);
            pool
        });
        pool.idle_max.set(idle_max);
        pool
    }

    /// Closes what is idle for too long or was closed by its endpoint; forgets pools nobody uses.
    pub fn sweep(&self, now_ms: u64, idle_ms_max: u64) {
        self.by_address.borrow_mut().retain(|_, pool| match pool.upgrade() {
            Some(pool) => {
                pool.sweep(now_ms, idle_ms_max);
                true
            }
            None => false,
        });
    }
}

#[cfg(test)]
mod tests;
