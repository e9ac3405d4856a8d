//! Sockets and their operations in flight.
//!
//! A socket's entry owns its descriptor and every buffer that an operation of it uses, until the
//! last completion; dropping a [`super::TcpStream`] only marks the entry as closing. So a dropped
//! future never frees memory or closes a descriptor under the kernel.
//!
//! Receiving has two ways. *Pooled*: a multishot receive into small shared slots, for heads and
//! small messages; nothing to arm per message, and an idle socket owns no memory. *Bulk*: once
//! [`receive::POOLED_UNREAD_MAX`] bytes or [`receive::POOLED_UNREAD_COUNT_MAX`] receives lie unread the peer is faster
//! than the reader, so the multishot is cancelled and one 64 KiB buffer at a time is received on
//! demand: that is the backpressure.
//! [`Reactor::settle`] goes back to pooled at a message boundary.
//!
//! Sending appends to an outbox; everything written in one turn leaves in one operation.
//!
//! Owns: entries, outboxes, inboxes. Does not own: the sockets' meaning (see `tcp`, `udp`).
mod accept;
mod datagram;
mod invariants;
mod readiness;
mod receive;
mod send;
mod stream;

use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use super::buf::{BulkCache, Pool};
use super::driver::{Completion, Driver, Kind, Token};
use super::slab::{Key, Slab};
use super::timer::Wheel;

use accept::Listener;
use datagram::DatagramEntry;
use readiness::PollEntry;
use receive::Receive;
use send::{OUT_BUFFER_BYTES, OUT_BUFFERS_KEPT, Piece};
use stream::Stream;

pub use readiness::Readiness;
pub(super) use send::OUTBOX_BYTES_MAX;

/// Turns a shutdown waits for the kernel to give everything back.
const SHUTDOWN_TURNS: usize = 200;

/// Counters of a runtime since its start; see the field names.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Receives that found the pool empty.
    pub pool_exhausted: u64,
    /// Accepts that failed.
    pub accept_errors: AcceptErrors,
    /// Completions that the kernel had to keep outside the completion queue.
    pub completion_overflows: u64,
    /// Looks at the driver.
    pub turns: u64,
    /// Completions handled.
    pub completions: u64,
    /// Bytes received on accepted connections.
    pub accepted_received_bytes: u64,
    /// Bytes that the kernel has taken for accepted connections.
    pub accepted_sent_bytes: u64,
    /// Operations in flight now.
    pub operations_outstanding: u64,
    /// Sockets open now.
    pub sockets: u64,
    /// Pool slots held now.
    pub pool_slots_taken: u64,
    /// Tasks that ended by a panic.
    pub panics: u64,
}

/// Failed accepts by cause.
#[derive(Clone, Copy, Debug, Default)]
pub struct AcceptErrors {
    /// `EMFILE`, `ENFILE`.
    pub descriptors: u64,
    /// `ENOMEM`, `ENOBUFS`.
    pub memory: u64,
    /// Anything else; mostly connections that were aborted before they were accepted.
    pub other: u64,
}

pub(super) struct Reactor {
    driver: Driver,
    pool: Rc<Pool>,
    /// Slots for what datagram sockets receive.
    aggregates: Rc<Pool>,
    bulk: Rc<BulkCache>,
    entries: Slab<Entry>,
    /// Streams with something new to send, kicked once a turn.
    dirty: Vec<Key>,
    /// Sockets whose receive found the pool empty.
    starved: Vec<Key>,
    /// Listeners that pause, and until when (ms).
    paused: Vec<(Key, u64)>,
    out_buffers: Vec<Vec<u8>>,
    completions: Vec<Completion>,
    pub(super) wheel: Wheel,
    now_ns: u64,
    unix: (u64, u64),
    outstanding: usize,
    stats: Stats,
}

/// One socket.
struct Entry {
    fd: RawFd,
    /// Operations in flight, cancels included.
    outstanding: u8,
    /// The owner is gone; close when nothing is in flight.
    closing: bool,
    body: Body,
}

#[allow(clippy::large_enum_variant, reason = "nearly every entry is a stream")]
enum Body {
    Listener(Listener),
    Stream(Stream),
    Poll(PollEntry),
    Datagram(Box<DatagramEntry>),
}

fn os_error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn gone() -> io::Error {
    io::Error::from(io::ErrorKind::NotConnected)
}

/// Stores the caller's waker, unless the same one is there already.
fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        other => *other = Some(cx.waker().clone()),
    }
}

fn wake(slot: &mut Option<Waker>) {
    if let Some(waker) = slot.take() {
        waker.wake();
    }
}

impl Reactor {
    pub(super) fn new(driver: Driver) -> Self {
        let now_ns = driver.clock_ns();
        Self {
            pool: Rc::clone(driver.pool()),
            aggregates: Rc::clone(driver.aggregates()),
            bulk: BulkCache::new(),
            entries: Slab::new(),
            dirty: Vec::new(),
            starved: Vec::new(),
            paused: Vec::new(),
            out_buffers: Vec::new(),
            completions: Vec::with_capacity(1024),
            wheel: Wheel::new(now_ns / 1_000_000),
            now_ns,
            unix: (now_ns, driver.unix_seconds()),
            outstanding: 0,
            stats: Stats::default(),
            driver,
        }
    }

    pub(super) fn io_name(&self) -> &'static str {
        self.driver.name()
    }

    pub(super) fn fallback_reason(&self) -> Option<String> {
        self.driver.fallback_reason()
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    pub(super) fn unix_seconds(&self) -> u64 {
        self.unix.1
    }

    pub(super) fn stats(&self) -> Stats {
        let driver = self.driver.stats();
        Stats {
            completion_overflows: driver.completion_overflows,
            turns: driver.waits,
            completions: driver.completions,
            operations_outstanding: self.outstanding as u64,
            sockets: self.entries.len() as u64,
            pool_slots_taken: u64::from(self.pool.taken()),
            panics: super::task::panics(),
            ..self.stats
        }
    }

    /// See [`Handle::cool`](super::Handle::cool).
    pub(super) fn cool(&self) {
        self.pool.cool();
        self.aggregates.cool();
    }

    /// One look at the driver; waits for something to happen when `idle`.
    pub(super) fn turn(&mut self, idle: bool) {
        self.kick_dirty();
        // Before the wait: what the tasks gave back since the last turn would wake nobody.
        if !self.starved.is_empty() {
            self.feed_starved();
        }
        self.pool.refill();
        self.aggregates.refill();
        let timeout = if idle { self.timeout_ns() } else { Some(0) };
        let mut completions = std::mem::take(&mut self.completions);
        self.driver.wait(timeout, &mut completions);
        self.now_ns = self.driver.clock_ns();
        if self.now_ns.saturating_sub(self.unix.0) >= 100_000_000 {
            self.unix = (self.now_ns, self.driver.unix_seconds());
        }
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        let now_ms = self.now_ns / 1_000_000;
        if !self.paused.is_empty() {
            self.resume_listeners(now_ms);
        }
        self.wheel.advance(now_ms);
    }

    fn timeout_ns(&self) -> Option<u64> {
        let now_ms = self.now_ns / 1_000_000;
        let wheel = self.wheel.next_in_ms(now_ms);
        let paused = self.paused.iter().map(|(_, until)| until.saturating_sub(now_ms)).min();
        let soonest = match (wheel, paused) {
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) | (None, Some(a)) => a,
            (None, None) => return None,
        };
        // At least a millisecond: the wheel's resolution is coarser, and zero would spin.
        Some(soonest.max(1) * 1_000_000)
    }

    // ---- Entries -------------------------------------------------------------------------------

    fn insert(&mut self, fd: RawFd, body: Body) -> io::Result<Key> {
        let entry = Entry { fd, outstanding: 0, closing: false, body };
        match self.entries.insert(entry) {
            Some(key) => Ok(key),
            None => {
                self.driver.close(fd);
                Err(os_error(libc::EMFILE))
            }
        }
    }

    fn started(&mut self, key: Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.outstanding += 1;
            self.outstanding += 1;
        }
    }

    fn stream(&mut self, key: Key) -> Option<&mut Stream> {
        match self.entries.get_mut(key) {
            Some(Entry { body: Body::Stream(stream), closing: false, .. }) => Some(stream),
            _ => None,
        }
    }

    fn fd(&self, key: Key) -> io::Result<RawFd> {
        self.entries.get(key).map(|entry| entry.fd).ok_or_else(gone)
    }

    /// The owner is gone: cancels what is in flight, closes when the last completion is in.
    pub(super) fn close(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.closing = true;
        let fd = entry.fd;
        let mut cancels = [None; 3];
        match &mut entry.body {
            Body::Listener(listener) => {
                for accepted in std::mem::take(&mut listener.accepted) {
                    self.driver.close(accepted);
                }
                cancels[0] = listener.armed.then_some(Kind::Accept);
            }
            Body::Poll(poll) => cancels[0] = poll.armed.then_some(Kind::Poll),
            Body::Stream(stream) => {
                stream.inbox.clear();
                stream.unread = 0;
                cancels[0] =
                    matches!(stream.receive, Receive::Pooled | Receive::Bulk).then_some(Kind::Receive);
                cancels[1] = (stream.out.in_flight > 0).then_some(Kind::Send);
                cancels[2] =
                    stream.connect.as_ref().is_some_and(|c| c.result.is_none()).then_some(Kind::Connect);
            }
            Body::Datagram(datagram) => {
                cancels[0] = datagram.receive_armed.then_some(Kind::ReceiveDatagram);
                cancels[1] = datagram.sending.then_some(Kind::SendDatagram);
            }
        }
        for kind in cancels.into_iter().flatten() {
            self.cancel(key, fd, kind);
        }
        self.close_if_done(key);
    }

    fn cancel(&mut self, key: Key, fd: RawFd, kind: Kind) {
        self.driver.cancel(fd, Token { key, kind }, Token { key, kind: Kind::Cancel });
        self.started(key);
    }

    fn close_if_done(&mut self, key: Key) {
        let done = self.entries.get(key).is_some_and(|entry| entry.closing && entry.outstanding == 0);
        if done && let Some(entry) = self.entries.remove(key) {
            self.driver.close(entry.fd);
            if let Body::Stream(mut stream) = entry.body {
                while let Some(piece) = stream.out.pieces.pop() {
                    self.recycle(piece);
                }
            }
        }
    }

    fn recycle(&mut self, piece: Piece) {
        if let Piece::Owned(mut buffer) = piece
            && buffer.capacity() == OUT_BUFFER_BYTES
            && self.out_buffers.len() < OUT_BUFFERS_KEPT
        {
            buffer.clear();
            self.out_buffers.push(buffer);
        }
    }

    // ---- Completions ---------------------------------------------------------------------------

    fn complete(&mut self, completion: Completion) {
        let Completion { token, result, slot, more } = completion;
        if token.kind == Kind::Detached {
            return;
        }
        let pool = if token.kind == Kind::ReceiveDatagram { &self.aggregates } else { &self.pool };
        // A slot that nobody wants any more goes back when this chunk is dropped.
        let chunk = match (slot, u32::try_from(result)) {
            (Some(slot), Ok(len)) => pool.filled(slot, len),
            (Some(slot), Err(_)) => {
                pool.give_back(slot);
                None
            }
            (None, _) => None,
        };
        let Some(entry) = self.entries.get_mut(token.key) else {
            debug_assert!(false, "{token:?} completed after its socket was closed");
            return;
        };
        if !more {
            debug_assert!(entry.outstanding > 0, "{token:?} completed more often than it was started");
            entry.outstanding = entry.outstanding.saturating_sub(1);
            self.outstanding = self.outstanding.saturating_sub(1);
        }
        let closing = entry.closing;
        match (token.kind, &mut entry.body) {
            (Kind::Accept, Body::Listener(_)) => self.accepted(token.key, result, more),
            (Kind::Receive, Body::Stream(_)) => self.received(token.key, result, chunk, more),
            (Kind::Send, Body::Stream(_)) => self.sent(token.key, result),
            (Kind::Connect, Body::Stream(stream)) => {
                if let Some(connect) = &mut stream.connect {
                    connect.result = Some(result);
                    wake(&mut connect.waker);
                }
            }
            (Kind::Poll, Body::Poll(poll)) => {
                poll.ready = true;
                poll.armed = more;
                wake(&mut poll.waker);
            }
            (Kind::ReceiveDatagram, Body::Datagram(datagram)) => {
                Self::datagrams_received(datagram, result, chunk, more);
            }
            (Kind::SendDatagram, Body::Datagram(datagram)) => {
                datagram.sending = false;
                datagram.sent = Some(result);
                wake(&mut datagram.send_waker);
            }
            // Shutdown and cancel only count; what they bring about completes by itself.
            _ => {}
        }
        if closing && !more {
            self.close_if_done(token.key);
        }
    }

    // ---- Ends ----------------------------------------------------------------------------------

    /// Closes every socket and waits, bounded, for the kernel to let go.
    pub(super) fn shut_down(&mut self) {
        for key in self.entries.keys() {
            self.close(key);
        }
        for _ in 0..SHUTDOWN_TURNS {
            if self.outstanding == 0 {
                break;
            }
            let mut completions = Vec::new();
            self.driver.wait(Some(Duration::from_millis(10).as_nanos() as u64), &mut completions);
            for completion in completions {
                self.complete(completion);
            }
        }
        // Whatever was submitted last (closes) must still reach the kernel.
        self.driver.wait(Some(0), &mut Vec::new());
        if self.outstanding > 0 {
            log::error!("{} operations did not end at shutdown; their memory is kept", self.outstanding);
            // Freed memory could be written by the kernel: better lost than shared.
            let _ = Rc::into_raw(Rc::clone(&self.pool));
            let _ = Rc::into_raw(Rc::clone(&self.aggregates));
            let entries = std::mem::replace(&mut self.entries, Slab::new());
            Box::leak(Box::new(entries));
        }
    }
}
