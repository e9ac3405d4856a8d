//! Connections to one address that many requests share (HTTP/2).
//!
//! The oldest connection with room for a stream is used, so that under a falling load the younger ones grow idle and
//! end. While a connection is being made, and its endpoint has not said yet whether it speaks HTTP/2 and how many
//! streams it takes, those who come later wait for it: a thousand requests to an endpoint that has just come back make
//! ten connections and not a thousand.
//!
//! Owns: who uses which connection, who makes the next one, what is counted of them. Does not own: the protocol
//! (`http2/client.rs`), connections that carry one request at a time (`pool.rs`).
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::pool::Pool;
use crate::exchange::{Protocol, ProxyError, Scheme};
use crate::http1::client::ClientLimits;
use crate::http2::client::{ClientStream, Requests, STREAMS_MAX};
use crate::metrics::names::Metric;
use crate::runtime::Handle;
use crate::segment::WorkerRows;

/// The shared connections to one address.
#[derive(Default)]
pub(super) struct Shared {
    /// The oldest first. Those that take no requests any more leave at the next look.
    connections: RefCell<Vec<Rc<Entry>>>,
    /// What the last connection spoke.
    speaks: Cell<Option<Protocol>>,
    opening: RefCell<Option<Rc<Opening>>>,
}

struct Entry {
    requests: Requests,
    rows: WorkerRows,
    /// Streams in use (count).
    streams: Cell<u32>,
    /// Streams so far (count).
    served: Cell<u64>,
    idle_since_ms: Cell<u64>,
}

impl Shared {
    /// A stream on a connection that has room for one.
    pub(super) fn take(&self, handle: &Handle) -> Option<Place> {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|entry| entry.requests.is_open() || entry.leave(Metric::PoolClosedStale));
        let entry = connections.iter().find(|entry| entry.streams.get() < entry.requests.streams_max())?;
        Some(Place::new(entry, handle))
    }

    /// Takes up a new connection, and gives its first stream.
    pub(super) fn add(&self, requests: Requests, rows: &WorkerRows, handle: &Handle) -> Place {
        let (streams, served, idle_since_ms) = Default::default();
        let entry = Rc::new(Entry { requests, rows: rows.clone(), streams, served, idle_since_ms });
        entry.rows.gauge_add(Metric::UpstreamIdle, 1);
        let place = Place::new(&entry, handle);
        self.connections.borrow_mut().push(entry);
        place
    }

    /// Whether requests need connections of their own, as far as is known.
    pub(super) fn is_unshared(&self) -> bool {
        self.speaks.get() == Some(Protocol::H1)
    }

    /// Ends connections that have carried no request for so long, and the oldest of those beyond `idle_max`.
    pub(super) fn sweep(&self, now_ms: u64, idle_ms_max: u64, idle_max: usize) {
        let mut connections = self.connections.borrow_mut();
        let is_idle = |entry: &Rc<Entry>| entry.streams.get() == 0;
        let mut surplus = connections.iter().filter(|entry| is_idle(entry)).count().saturating_sub(idle_max);
        connections.retain(|entry| {
            if !entry.requests.is_open() {
                return entry.leave(Metric::PoolClosedStale);
            }
            if !is_idle(entry) {
                return true;
            }
            if now_ms.saturating_sub(entry.idle_since_ms.get()) >= idle_ms_max {
                entry.rows.add(Metric::DeadlineUpstreamIdle, 1);
                return entry.leave(Metric::PoolClosedIdle);
            }
            let is_surplus = surplus > 0;
            surplus = surplus.saturating_sub(1);
            !is_surplus || entry.leave(Metric::PoolClosedFull)
        });
    }

    fn forget(&self, gone: &Rc<Entry>) {
        self.connections
            .borrow_mut()
            .retain(|entry| !Rc::ptr_eq(entry, gone) || entry.leave(Metric::PoolClosedStale));
    }
}

impl Drop for Shared {
    /// The address has left the configuration, or the worker ends.
    fn drop(&mut self) {
        for entry in self.connections.get_mut().drain(..) {
            entry.leave(Metric::PoolClosedRemoved);
        }
    }
}

impl Entry {
    /// The connection leaves the list: it begins no request any more. `false`, for [`Vec::retain`].
    fn leave(&self, reason: Metric) -> bool {
        self.requests.retire();
        if self.streams.get() == 0 {
            self.rows.gauge_sub(Metric::UpstreamIdle, 1);
        }
        self.rows.add(reason, 1);
        // What is counted as idle from now on is nobody's.
        self.idle_since_ms.set(LEFT);
        false
    }
}

/// In place of the time since when: the connection has left the list.
const LEFT: u64 = u64::MAX;

/// The right to one stream of a connection, until dropped.
pub(super) struct Place {
    entry: Rc<Entry>,
    handle: Handle,
    /// Bytes that the endpoint had sent when the stream began.
    received_before: u64,
    /// The connection had carried a request before.
    pub(super) is_reused: bool,
}

impl Place {
    fn new(entry: &Rc<Entry>, handle: &Handle) -> Self {
        if entry.streams.replace(entry.streams.get() + 1) == 0 {
            entry.rows.gauge_sub(Metric::UpstreamIdle, 1);
        }
        let is_reused = entry.served.replace(entry.served.get() + 1) > 0;
        let received_before = entry.requests.received();
        Self { entry: Rc::clone(entry), handle: handle.clone(), received_before, is_reused }
    }

    /// The exchange for which the place was taken.
    pub(super) fn stream(&self, limits: ClientLimits, scheme: Scheme, authority: SocketAddr) -> ClientStream {
        self.entry.requests.stream(&self.handle, limits, scheme, authority)
    }

    /// Whether the endpoint has sent nothing at all since the stream began.
    pub(super) fn is_silent(&self) -> bool {
        self.entry.requests.received() == self.received_before
    }

    /// Lets the connection begin no request any more.
    pub(super) fn retire(&self, shared: &Shared) {
        shared.forget(&self.entry);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let entry = &self.entry;
        let left = entry.streams.get().saturating_sub(1);
        entry.streams.set(left);
        if left == 0 && entry.idle_since_ms.get() != LEFT {
            entry.idle_since_ms.set(self.handle.now_ms());
            entry.rows.gauge_add(Metric::UpstreamIdle, 1);
        }
    }
}

/// A connection that is being made.
#[derive(Default)]
struct Opening {
    /// Requests that will use it (count), beside the one that makes it.
    expected: Cell<u32>,
    /// Present when it has come to an end; an error is that of the connect.
    outcome: Cell<Option<Result<(), ProxyError>>>,
    waiting: RefCell<Vec<Waker>>,
}

/// Makes a connection. Dropped before it has told how that went, somebody else begins.
pub(super) struct Opener {
    pool: Rc<Pool>,
    begun: Rc<Opening>,
}

impl Opener {
    /// Begins to make a connection, or tells that somebody is.
    pub(super) fn begin(pool: &Rc<Pool>) -> Result<Self, Waiting> {
        let mut opening = pool.shared.opening.borrow_mut();
        match &*opening {
            Some(begun) if begun.expected.get() < STREAMS_MAX => {
                begun.expected.set(begun.expected.get() + 1);
                Err(Waiting(Rc::clone(begun)))
            }
            // None, or it is full: those who come now wait for the next.
            _ => {
                let begun = Rc::new(Opening::default());
                *opening = Some(Rc::clone(&begun));
                Ok(Self { pool: Rc::clone(pool), begun })
            }
        }
    }

    /// Notes what is spoken on the connection.
    pub(super) fn speaks(&self, protocol: Protocol) {
        self.pool.shared.speaks.set(Some(protocol));
    }

    /// Tells those who wait that there is no connection.
    pub(super) fn failed(self, error: ProxyError) {
        self.begun.outcome.set(Some(Err(error)));
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        let mut opening = self.pool.shared.opening.borrow_mut();
        if opening.as_ref().is_some_and(|begun| Rc::ptr_eq(begun, &self.begun)) {
            *opening = None;
        }
        drop(opening);
        if self.begun.outcome.get().is_none() {
            self.begun.outcome.set(Some(Ok(())));
        }
        self.begun.waiting.take().into_iter().for_each(Waker::wake);
    }
}

/// Waits for a connection that somebody makes.
pub(super) struct Waiting(Rc<Opening>);

impl Waiting {
    /// Returns when it is worth a look whether there is room.
    ///
    /// # Errors
    /// The connect has failed.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn ended(self) -> Result<(), ProxyError> {
        poll_fn(|cx| match self.0.outcome.get() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                let mut waiting = self.0.waiting.borrow_mut();
                if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    waiting.push(cx.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }
}
