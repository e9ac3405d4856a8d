//! Sockets and their operations in flight.
//!
//! A socket's entry owns its descriptor and every buffer that an operation of it uses, until the
//! last completion; dropping a [`super::TcpStream`] only marks the entry as closing. So a dropped
//! future never frees memory or closes a descriptor under the kernel.
//!
//! Receiving has two ways. *Pooled*: a multishot receive into small shared slots, for heads and
//! small messages; nothing to arm per message, and an idle socket owns no memory. *Bulk*: once
//! [`POOLED_UNREAD_MAX`] bytes or [`POOLED_UNREAD_COUNT_MAX`] receives lie unread the peer is faster
//! than the reader, so the multishot is cancelled and one 64 KiB buffer at a time is received on
//! demand: that is the backpressure.
//! [`Reactor::settle`] goes back to pooled at a message boundary.
//!
//! Sending appends to an outbox; everything written in one turn leaves in one operation.
//!
//! Owns: entries, outboxes, inboxes. Does not own: the sockets' meaning (see `tcp`, `udp`).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::Handle;
use super::buf::{BULK_BYTES, BulkCache, Chunk, Pool, heap_ptr};
use super::driver::{Completion, Driver, GATHER_MAX, Kind, Message, Token};
use super::queue::Queue;
use super::slab::{Key, Slab};
use super::timer::Wheel;
use crate::sys::net::RawAddress;

/// Unread bytes in the inbox at which a socket leaves the shared pool: four slots of 4 KiB.
const POOLED_UNREAD_MAX: usize = 16 * 1024;

/// Unread receives at which it leaves as well (count): a slot is held however little is in it.
const POOLED_UNREAD_COUNT_MAX: usize = 16;

/// Unsent bytes at which a writer must wait: one bulk buffer may be leaving while the next fills.
pub(super) const OUTBOX_BYTES_MAX: usize = 2 * BULK_BYTES;

/// Pieces up to this size are copied behind the bytes before them: a copy of 4 KiB costs less than
/// a second piece of a gathered send, and frees the pool slot at once.
const COPY_BYTES_MAX: usize = 4096;

/// Bytes of an outbox buffer, and how many a worker keeps for reuse (64 x 8 KiB = 512 KiB).
const OUT_BUFFER_BYTES: usize = 8 * 1024;
const OUT_BUFFERS_KEPT: usize = 64;

/// How long accepting pauses when descriptors or memory are used up.
const ACCEPT_PAUSE_MS: u64 = 50;

/// Accepted connections that wait for the listener's task (count). Beyond it accepting stops until
/// some are taken; the rest wait in the kernel's queue.
const ACCEPTED_WAITING_MAX: usize = 1024;

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

struct Listener {
    armed: bool,
    accepted: VecDeque<RawFd>,
    waker: Option<Waker>,
}

struct PollEntry {
    ready: bool,
    armed: bool,
    waker: Option<Waker>,
}

struct Stream {
    /// The peer has opened it.
    is_accepted: bool,
    receive: Receive,
    /// The next receive goes to a buffer of the socket's own.
    bulk: bool,
    ended: bool,
    receive_error: i32,
    inbox: Queue<Chunk>,
    unread: usize,
    receive_waker: Option<Waker>,
    /// What a bulk receive in flight fills.
    in_bulk: Option<Vec<u8>>,
    out: Outbox,
    connect: Option<Box<Connect>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Receive {
    Off,
    Pooled,
    Cancelling,
    Bulk,
    Starved,
}

struct Connect {
    address: RawAddress,
    result: Option<i32>,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Outbox {
    pieces: Queue<Piece>,
    /// Bytes of the first piece that have left.
    sent_of_first: usize,
    /// Unsent bytes.
    bytes: usize,
    /// Pieces that the operation in flight reads.
    in_flight: usize,
    message: Option<Box<Message>>,
    dirty: bool,
    shutdown: Shutdown,
    error: i32,
    /// Bytes that the kernel has taken since the start; progress deadlines look at it.
    sent: u64,
    /// Wake the waiter when at most this many bytes are unsent.
    wake_at: usize,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Shutdown {
    #[default]
    No,
    Wanted,
    Sent,
}

enum Piece {
    Owned(Vec<u8>),
    Chunk(Chunk),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Chunk(chunk) => chunk,
        }
    }
}

struct DatagramEntry {
    receive: Box<Message>,
    buffer: Vec<u8>,
    receive_armed: bool,
    received: Option<i32>,
    receive_waker: Option<Waker>,
    send: Box<Message>,
    send_buffer: Vec<u8>,
    sending: bool,
    sent: Option<i32>,
    send_waker: Option<Waker>,
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

    /// One look at the driver; waits for something to happen when `idle`.
    pub(super) fn turn(&mut self, idle: bool) {
        self.kick_dirty();
        // Before the wait: what the tasks gave back since the last turn would wake nobody.
        if !self.starved.is_empty() {
            self.feed_starved();
        }
        self.pool.refill();
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
        // A slot that nobody wants any more goes back when this chunk is dropped.
        let chunk = match (slot, u32::try_from(result)) {
            (Some(slot), Ok(len)) => self.pool.filled(slot, len),
            (Some(slot), Err(_)) => {
                self.pool.give_back(slot);
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
                datagram.receive_armed = false;
                datagram.received = Some(result);
                wake(&mut datagram.receive_waker);
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

    // ---- Accepting -----------------------------------------------------------------------------

    /// A real listening socket, taken over.
    pub(super) fn adopt_listener(&mut self, fd: RawFd) -> io::Result<Key> {
        self.driver.adopt_listener(fd)?;
        self.insert(fd, Body::Listener(Listener { armed: false, accepted: VecDeque::new(), waker: None }))
    }

    pub(super) fn simulated_listener(&mut self, address: SocketAddr) -> io::Result<Key> {
        let fd = self.driver.simulated_listener(address)?;
        self.insert(fd, Body::Listener(Listener { armed: false, accepted: VecDeque::new(), waker: None }))
    }

    fn arm_accept(&mut self, key: Key) {
        let Some(Entry { fd, closing: false, body: Body::Listener(listener), .. }) =
            self.entries.get_mut(key)
        else {
            return;
        };
        if !listener.armed {
            listener.armed = true;
            let fd = *fd;
            self.driver.accept(fd, Token { key, kind: Kind::Accept });
            self.started(key);
        }
    }

    fn accepted(&mut self, key: Key, result: i32, more: bool) {
        let Some(Entry { fd, closing, body: Body::Listener(listener), .. }) = self.entries.get_mut(key)
        else {
            return;
        };
        let (fd, closing) = (*fd, *closing);
        listener.armed = more;
        let mut full = false;
        if result >= 0 {
            if closing {
                // Arrived after the cancel: nobody will take it.
                self.driver.close(result);
            } else {
                listener.accepted.push_back(result);
                // Once, when the bound is reached: what was on its way still arrives.
                full = listener.accepted.len() == ACCEPTED_WAITING_MAX;
                wake(&mut listener.waker);
            }
        } else if result != -libc::ECANCELED && !closing {
            let errors = &mut self.stats.accept_errors;
            match -result {
                libc::EMFILE | libc::ENFILE => errors.descriptors += 1,
                libc::ENOMEM | libc::ENOBUFS => errors.memory += 1,
                _ => errors.other += 1,
            }
            // Aborted before it was accepted: the next one may be fine. Anything else lasts.
            let lasting = !matches!(-result, libc::ECONNABORTED | libc::EPROTO | libc::EINTR);
            if lasting {
                self.paused.push((key, self.now_ns / 1_000_000 + ACCEPT_PAUSE_MS));
                return;
            }
        }
        let has_room = listener.accepted.len() < ACCEPTED_WAITING_MAX;
        if full && more {
            self.cancel(key, fd, Kind::Accept);
        } else if !more && has_room && !closing {
            self.arm_accept(key);
        }
    }

    fn resume_listeners(&mut self, now_ms: u64) {
        let due: Vec<Key> =
            self.paused.extract_if(.., |(_, until)| *until <= now_ms).map(|(key, _)| key).collect();
        for key in due {
            self.arm_accept(key);
        }
    }

    pub(super) fn poll_accept(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<Key>> {
        let Some(Entry { body: Body::Listener(listener), .. }) = self.entries.get_mut(key) else {
            return Poll::Ready(Err(gone()));
        };
        if let Some(fd) = listener.accepted.pop_front() {
            return Poll::Ready(self.insert(fd, Body::Stream(Stream::new(None))));
        }
        register(&mut listener.waker, cx);
        if !self.paused.iter().any(|(paused, _)| *paused == key) {
            self.arm_accept(key);
        }
        Poll::Pending
    }

    // ---- Connecting ----------------------------------------------------------------------------

    pub(super) fn connect(&mut self, address: SocketAddr) -> io::Result<Key> {
        let fd = self.driver.stream_socket(address)?;
        let connect = Box::new(Connect { address: RawAddress::new(address), result: None, waker: None });
        let key = self.insert(fd, Body::Stream(Stream::new(Some(connect))))?;
        if let Some(Stream { connect: Some(connect), .. }) = self.stream(key) {
            let address = &raw const connect.address;
            // SAFETY: the boxed address lies in the entry, which lives until the completion.
            unsafe { self.driver.connect(fd, Token { key, kind: Kind::Connect }, address) };
            self.started(key);
        }
        Ok(key)
    }

    pub(super) fn poll_connected(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = self.stream(key) else {
            return Poll::Ready(Err(gone()));
        };
        let Some(connect) = &mut stream.connect else {
            return Poll::Ready(Ok(()));
        };
        match connect.result {
            None => {
                register(&mut connect.waker, cx);
                Poll::Pending
            }
            Some(result) => {
                stream.connect = None;
                Poll::Ready(if result < 0 { Err(os_error(-result)) } else { Ok(()) })
            }
        }
    }

    // ---- Receiving -----------------------------------------------------------------------------

    fn received(&mut self, key: Key, result: i32, chunk: Option<Chunk>, more: bool) {
        let bulk_cache = Rc::clone(&self.bulk);
        let Some(Entry { fd, closing, body: Body::Stream(stream), .. }) = self.entries.get_mut(key) else {
            return;
        };
        let (fd, closing) = (*fd, *closing);
        let was = stream.receive;
        if !more {
            stream.receive = Receive::Off;
        }
        if closing {
            stream.inbox.clear();
            return;
        }
        let mut starved = false;
        match result {
            1.. => {
                let chunk = match chunk {
                    Some(chunk) => Some(chunk),
                    None => stream.take_bulk(result as usize, &bulk_cache),
                };
                if let Some(chunk) = chunk {
                    if stream.is_accepted {
                        self.stats.accepted_received_bytes += chunk.len() as u64;
                    }
                    stream.unread += chunk.len();
                    stream.inbox.push(chunk);
                }
            }
            0 => stream.ended = true,
            _ if -result == libc::ENOBUFS => starved = true,
            _ if -result == libc::ECANCELED && was == Receive::Cancelling => {}
            _ => stream.receive_error = -result,
        }
        if result <= 0 {
            stream.drop_unfilled(&bulk_cache);
        }
        let too_much = stream.unread >= POOLED_UNREAD_MAX || stream.inbox.len() >= POOLED_UNREAD_COUNT_MAX;
        if too_much && was == Receive::Pooled {
            stream.bulk = true;
            // The slots beyond the bound would be held for as long as the reader is slow.
            if let Some(last) = stream.inbox.last_mut() {
                last.spill();
            }
        }
        if starved {
            stream.receive = Receive::Starved;
            self.stats.pool_exhausted += u64::from(!self.pool.widen());
            self.starved.push(key);
            return;
        }
        wake(&mut stream.receive_waker);
        if too_much && more && was == Receive::Pooled {
            stream.receive = Receive::Cancelling;
            self.cancel(key, fd, Kind::Receive);
        } else if too_much && was == Receive::Cancelling {
            if let Some(last) = stream.inbox.last_mut() {
                last.spill();
            }
        } else if !more && !stream.bulk && !stream.ended && stream.receive_error == 0 {
            // The multishot ended by itself (a full completion queue): go on.
            self.arm_receive(key);
        }
    }

    fn arm_receive(&mut self, key: Key) {
        let Some(Entry { fd, closing: false, body: Body::Stream(stream), .. }) = self.entries.get_mut(key)
        else {
            return;
        };
        if stream.receive != Receive::Off || stream.ended || stream.receive_error != 0 {
            return;
        }
        let fd = *fd;
        let token = Token { key, kind: Kind::Receive };
        if stream.bulk {
            let mut buffer = self.bulk.take();
            let (memory, len) = (buffer.as_mut_ptr(), buffer.capacity());
            stream.receive = Receive::Bulk;
            stream.bulk_buffer(buffer);
            // SAFETY: the buffer now lies in the entry, which keeps it untouched until the completion.
            unsafe { self.driver.receive_into(fd, token, memory, len) };
        } else {
            stream.receive = Receive::Pooled;
            self.driver.receive_pooled(fd, token);
        }
        self.started(key);
    }

    /// The pool ran empty: unread data moves to the heap, then the receives that failed go on.
    fn feed_starved(&mut self) {
        if self.pool.is_scarce() {
            for key in self.entries.keys() {
                if let Some(Entry { body: Body::Stream(stream), .. }) = self.entries.get_mut(key) {
                    stream.inbox.iter_mut().for_each(Chunk::spill);
                }
            }
        }
        if self.pool.taken() >= self.pool.slots() {
            // Readers hold every slot; when they return one they have run, and a turn follows.
            return;
        }
        for key in std::mem::take(&mut self.starved) {
            if let Some(stream) = self.stream(key)
                && stream.receive == Receive::Starved
            {
                stream.receive = Receive::Off;
                self.arm_receive(key);
            }
        }
    }

    pub(super) fn poll_receive(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        let Some(stream) = self.stream(key) else {
            return Poll::Ready(Err(gone()));
        };
        if let Some(chunk) = stream.inbox.pop() {
            stream.unread -= chunk.len();
            return Poll::Ready(Ok(Some(chunk)));
        }
        if stream.receive_error != 0 {
            return Poll::Ready(Err(os_error(stream.receive_error)));
        }
        if stream.ended {
            return Poll::Ready(Ok(None));
        }
        register(&mut stream.receive_waker, cx);
        if stream.receive == Receive::Off {
            self.arm_receive(key);
        }
        Poll::Pending
    }

    /// Ready when the peer has reset the connection, or has ended it and all it sent is read: watches
    /// without consuming. `Ok` is an orderly end.
    pub(super) fn poll_gone(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = self.stream(key) else {
            return Poll::Ready(Err(gone()));
        };
        if stream.receive_error != 0 {
            return Poll::Ready(Err(os_error(stream.receive_error)));
        }
        if stream.ended && stream.inbox.is_empty() {
            return Poll::Ready(Ok(()));
        }
        register(&mut stream.receive_waker, cx);
        if stream.receive == Receive::Off && stream.inbox.is_empty() {
            // Watching needs no buffer of the socket's own.
            stream.bulk = false;
            self.arm_receive(key);
        }
        Poll::Pending
    }

    /// Whether unread bytes, an end or an error wait: a pooled connection with any is stale.
    pub(super) fn has_news(&mut self, key: Key) -> bool {
        self.stream(key)
            .is_none_or(|stream| stream.ended || stream.receive_error != 0 || !stream.inbox.is_empty())
    }

    /// A message boundary: the next message is expected to be small again. From here on the peer's
    /// end is noticed although nobody waits for it.
    pub(super) fn settle(&mut self, key: Key) {
        if let Some(stream) = self.stream(key)
            && stream.inbox.is_empty()
        {
            stream.bulk = false;
            self.arm_receive(key);
        }
    }

    // ---- Sending -------------------------------------------------------------------------------

    /// Lets `write` append to the outbox. What one turn appends leaves together.
    pub(super) fn write_with(&mut self, key: Key, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let spare = self.out_buffers.pop();
        let Some(stream) = self.stream(key) else {
            return Err(gone());
        };
        let out = &mut stream.out;
        if out.error != 0 {
            return Err(os_error(out.error));
        }
        let appendable = out.pieces.len() > out.in_flight
            && matches!(out.pieces.last(), Some(Piece::Owned(buffer)) if buffer.len() < OUT_BUFFER_BYTES / 2);
        let mut unused = spare;
        if !appendable {
            let buffer = unused.take().unwrap_or_else(|| Vec::with_capacity(OUT_BUFFER_BYTES));
            out.pieces.push(Piece::Owned(buffer));
        }
        if let Some(Piece::Owned(buffer)) = out.pieces.last_mut() {
            let before = buffer.len();
            write(buffer);
            out.bytes += buffer.len().saturating_sub(before);
        }
        let newly_dirty = !std::mem::replace(&mut out.dirty, true);
        if let Some(buffer) = unused {
            self.out_buffers.push(buffer);
        }
        if newly_dirty {
            self.dirty.push(key);
        }
        Ok(())
    }

    /// Appends a chunk: small or pooled ones by copy, others by reference.
    pub(super) fn write_chunk(&mut self, key: Key, mut chunk: Chunk) -> io::Result<()> {
        if chunk.len() <= COPY_BYTES_MAX || chunk.is_pooled() {
            return self.write_with(key, |out| out.extend_from_slice(&chunk));
        }
        let Some(stream) = self.stream(key) else {
            return Err(gone());
        };
        let out = &mut stream.out;
        if out.error != 0 {
            return Err(os_error(out.error));
        }
        if out.bytes > 0 {
            // It has to wait: the bound counts its bytes, so it shall not hold many times as much.
            chunk.compact();
        }
        out.bytes += chunk.len();
        out.pieces.push(Piece::Chunk(chunk));
        if !std::mem::replace(&mut out.dirty, true) {
            self.dirty.push(key);
        }
        Ok(())
    }

    fn kick_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for key in dirty.drain(..) {
            if let Some(stream) = self.stream(key) {
                stream.out.dirty = false;
                self.send_next(key);
            }
        }
        self.dirty = dirty;
    }

    /// Starts the next send, or the shutdown when nothing is left to send.
    fn send_next(&mut self, key: Key) {
        let Some(Entry { fd, closing: false, body: Body::Stream(stream), .. }) = self.entries.get_mut(key)
        else {
            return;
        };
        let fd = *fd;
        let out = &mut stream.out;
        if out.in_flight > 0 || out.error != 0 {
            return;
        }
        if out.bytes == 0 {
            if out.shutdown == Shutdown::Wanted {
                out.shutdown = Shutdown::Sent;
                self.driver.shutdown(fd, Token { key, kind: Kind::Shutdown });
                self.started(key);
            }
            return;
        }
        let token = Token { key, kind: Kind::Send };
        let skip = out.sent_of_first;
        if out.pieces.len() == 1 {
            let bytes =
                out.pieces.first().map(Piece::bytes).and_then(|bytes| bytes.get(skip..)).unwrap_or_default();
            out.in_flight = 1;
            let (memory, len) = (heap_ptr(bytes).as_ptr(), bytes.len());
            // SAFETY: a piece in flight is neither changed nor dropped until the completion, and its
            // heap memory stays where it is when the entry moves.
            unsafe { self.driver.send(fd, token, memory, len) };
        } else {
            let message = out.message.get_or_insert_with(Message::new);
            let mut count = 0;
            for (piece, slot) in out.pieces.iter().zip(message.pieces.iter_mut()) {
                let bytes = piece.bytes();
                let bytes = if count == 0 { bytes.get(skip..).unwrap_or_default() } else { bytes };
                *slot = libc::iovec { iov_base: heap_ptr(bytes).as_ptr().cast(), iov_len: bytes.len() };
                count += 1;
            }
            debug_assert!(count <= GATHER_MAX);
            message.header.msg_iov = message.pieces.as_mut_ptr();
            message.header.msg_iovlen = count;
            out.in_flight = count;
            let message: *const Message = &raw const **message;
            // SAFETY: the boxed message and the pieces it names lie in the entry and are left alone
            // until the completion.
            unsafe { self.driver.send_message(fd, token, message) };
        }
        self.started(key);
    }

    fn sent(&mut self, key: Key, result: i32) {
        let Some(Entry { closing, body: Body::Stream(stream), .. }) = self.entries.get_mut(key) else {
            return;
        };
        let closing = *closing;
        let out = &mut stream.out;
        out.in_flight = 0;
        let mut done: Option<Piece> = None;
        if let Ok(mut left) = usize::try_from(result) {
            out.sent += left as u64;
            if stream.is_accepted {
                self.stats.accepted_sent_bytes += left as u64;
            }
            out.bytes = out.bytes.saturating_sub(left);
            while let Some(first) = out.pieces.first() {
                let unsent = first.bytes().len() - out.sent_of_first;
                if left < unsent {
                    out.sent_of_first += left;
                    break;
                }
                left -= unsent;
                out.sent_of_first = 0;
                let piece = out.pieces.pop();
                if matches!(piece, Some(Piece::Owned(_))) {
                    done = piece;
                }
                if left == 0 && out.bytes > 0 {
                    break;
                }
            }
            if out.bytes == 0 {
                out.message = None;
            }
        } else if !matches!(-result, libc::EINTR | libc::EAGAIN) {
            out.error = -result;
        }
        if out.bytes <= out.wake_at || out.error != 0 {
            wake(&mut out.waker);
        }
        let go_on = !closing && (out.bytes > 0 || out.shutdown == Shutdown::Wanted);
        if let Some(piece) = done {
            self.recycle(piece);
        }
        if go_on {
            self.send_next(key);
        }
    }

    /// Ready when at most `limit` bytes are unsent.
    pub(super) fn poll_unsent_at_most(
        &mut self,
        key: Key,
        limit: usize,
        cx: &Context<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(stream) = self.stream(key) else {
            return Poll::Ready(Err(gone()));
        };
        let out = &mut stream.out;
        if out.error != 0 {
            return Poll::Ready(Err(os_error(out.error)));
        }
        if out.bytes <= limit {
            return Poll::Ready(Ok(()));
        }
        out.wake_at = limit;
        register(&mut out.waker, cx);
        Poll::Pending
    }

    /// Bytes that the kernel has taken so far.
    pub(super) fn bytes_sent(&mut self, key: Key) -> u64 {
        self.stream(key).map_or(0, |stream| stream.out.sent)
    }

    /// Ends sending once the outbox is empty.
    pub(super) fn shutdown_write(&mut self, key: Key) {
        if let Some(stream) = self.stream(key)
            && stream.out.shutdown == Shutdown::No
        {
            stream.out.shutdown = Shutdown::Wanted;
            if !std::mem::replace(&mut stream.out.dirty, true) {
                self.dirty.push(key);
            }
        }
    }

    pub(super) fn reset_on_close(&mut self, key: Key) {
        if let Ok(fd) = self.fd(key) {
            self.driver.reset_on_close(fd);
        }
    }

    pub(super) fn peer_address(&self, key: Key) -> io::Result<SocketAddr> {
        self.driver.peer_address(self.fd(key)?)
    }

    pub(super) fn local_address(&self, key: Key) -> io::Result<SocketAddr> {
        self.driver.local_address(self.fd(key)?)
    }

    // ---- Datagrams -----------------------------------------------------------------------------

    pub(super) fn adopt_datagram(&mut self, fd: RawFd, buffer_bytes: usize) -> io::Result<Key> {
        if matches!(self.driver, Driver::Epoll(_)) {
            crate::sys::net::set_nonblocking(fd, true)?;
        }
        self.insert(
            fd,
            Body::Datagram(Box::new(DatagramEntry {
                receive: Message::new(),
                buffer: vec![0; buffer_bytes],
                receive_armed: false,
                received: None,
                receive_waker: None,
                send: Message::new(),
                send_buffer: Vec::new(),
                sending: false,
                sent: None,
                send_waker: None,
            })),
        )
    }

    fn datagram(&mut self, key: Key) -> Option<(RawFd, &mut DatagramEntry)> {
        match self.entries.get_mut(key) {
            Some(Entry { fd, closing: false, body: Body::Datagram(datagram), .. }) => Some((*fd, datagram)),
            _ => None,
        }
    }

    /// One datagram, or several of one size merged by GRO; `read` sees the bytes, the source and
    /// the segment size.
    pub(super) fn poll_receive_datagram<T>(
        &mut self,
        key: Key,
        cx: &Context<'_>,
        read: impl FnOnce(&[u8], Option<SocketAddr>, Option<u16>) -> T,
    ) -> Poll<io::Result<T>> {
        let Some((fd, datagram)) = self.datagram(key) else {
            return Poll::Ready(Err(gone()));
        };
        if let Some(result) = datagram.received.take() {
            let Ok(len) = usize::try_from(result) else {
                return Poll::Ready(Err(os_error(-result)));
            };
            let segment =
                super::udp::gro_segment(&datagram.receive.control, datagram.receive.header.msg_controllen);
            let bytes = datagram.buffer.get(..len).unwrap_or_default();
            return Poll::Ready(Ok(read(bytes, datagram.receive.address.to_socket_addr(), segment)));
        }
        register(&mut datagram.receive_waker, cx);
        if !datagram.receive_armed {
            datagram.receive_armed = true;
            let message = &mut datagram.receive;
            message.pieces[0] =
                libc::iovec { iov_base: datagram.buffer.as_mut_ptr().cast(), iov_len: datagram.buffer.len() };
            message.header.msg_name = message.address.as_mut_ptr().cast();
            message.header.msg_namelen = RawAddress::empty().len();
            message.header.msg_iov = message.pieces.as_mut_ptr();
            message.header.msg_iovlen = 1;
            message.header.msg_control = message.control.as_mut_ptr().cast();
            message.header.msg_controllen = size_of_val(&message.control);
            let message: *mut Message = &raw mut **message;
            // SAFETY: message and buffer are boxed in the entry and left alone until the completion.
            unsafe { self.driver.receive_message(fd, Token { key, kind: Kind::ReceiveDatagram }, message) };
            self.started(key);
        }
        Poll::Pending
    }

    /// Starts a send; `segment` is the size of each datagram when `bytes` holds several (GSO).
    /// `false` when the one before has not completed.
    pub(super) fn start_send_datagram(
        &mut self,
        key: Key,
        bytes: &[u8],
        to: SocketAddr,
        segment: Option<u16>,
    ) -> io::Result<bool> {
        let Some((fd, datagram)) = self.datagram(key) else {
            return Err(gone());
        };
        if datagram.sending || datagram.sent.is_some() {
            return Ok(false);
        }
        datagram.sending = true;
        datagram.send_buffer.clear();
        datagram.send_buffer.extend_from_slice(bytes);
        let message = &mut datagram.send;
        message.address = RawAddress::new(to);
        message.pieces[0] = libc::iovec {
            iov_base: datagram.send_buffer.as_mut_ptr().cast(),
            iov_len: datagram.send_buffer.len(),
        };
        message.header.msg_namelen = message.address.len();
        message.header.msg_name = message.address.as_mut_ptr().cast();
        message.header.msg_iov = message.pieces.as_mut_ptr();
        message.header.msg_iovlen = 1;
        message.header.msg_controllen = super::udp::gso_control(&mut message.control, segment);
        message.header.msg_control = match message.header.msg_controllen {
            0 => std::ptr::null_mut(),
            _ => message.control.as_mut_ptr().cast(),
        };
        let message: *const Message = &raw const **message;
        // SAFETY: message and buffer are boxed in the entry and left alone until the completion.
        unsafe { self.driver.send_message(fd, Token { key, kind: Kind::SendDatagram }, message) };
        self.started(key);
        Ok(true)
    }

    pub(super) fn poll_datagram_sent(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        let Some((_, datagram)) = self.datagram(key) else {
            return Poll::Ready(Err(gone()));
        };
        match datagram.sent.take() {
            Some(result) => Poll::Ready(usize::try_from(result).map_err(|_| os_error(-result))),
            None => {
                register(&mut datagram.send_waker, cx);
                Poll::Pending
            }
        }
    }

    // ---- Readiness -----------------------------------------------------------------------------

    fn add_poll(&mut self, fd: RawFd) -> io::Result<Key> {
        // A duplicate: the entry closes what it owns, and the caller keeps its own.
        // SAFETY: F_DUPFD_CLOEXEC takes and returns plain integers.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        self.insert(copy, Body::Poll(PollEntry { ready: false, armed: false, waker: None }))
    }

    fn poll_ready(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let Some(Entry { fd, body: Body::Poll(poll), .. }) = self.entries.get_mut(key) else {
            return Poll::Ready(Err(gone()));
        };
        if std::mem::take(&mut poll.ready) {
            return Poll::Ready(Ok(()));
        }
        register(&mut poll.waker, cx);
        if !std::mem::replace(&mut poll.armed, true) {
            let fd = *fd;
            self.driver.poll_readable(fd, Token { key, kind: Kind::Poll });
            self.started(key);
        }
        Poll::Pending
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
            let entries = std::mem::replace(&mut self.entries, Slab::new());
            Box::leak(Box::new(entries));
        }
    }

    /// The most unread bytes that a stream holds now, the most unsent ones, and the slots held by
    /// tasks: what simulation compares with the written bounds.
    #[cfg(test)]
    pub(super) fn largest_queues(&self) -> (usize, usize, usize) {
        let mut largest = (0, 0, usize::from(self.pool.taken()));
        for (_, entry) in self.entries.iter() {
            if let Body::Stream(stream) = &entry.body {
                largest.0 = largest.0.max(stream.unread);
                largest.1 = largest.1.max(stream.out.bytes);
                largest.2 -= stream.inbox.iter().filter(|chunk| chunk.is_pooled()).count();
            }
        }
        largest
    }

    pub(super) fn check_invariants(&self) -> Result<(), String> {
        let mut outstanding = 0;
        let mut slots = 0u64;
        for (key, entry) in self.entries.iter() {
            outstanding += usize::from(entry.outstanding);
            if entry.closing && entry.outstanding == 0 {
                return Err(format!("socket {key:?} is closing with nothing in flight, and still open"));
            }
            let Body::Stream(stream) = &entry.body else {
                continue;
            };
            let unread: usize = stream.inbox.iter().map(|chunk| chunk.len()).sum();
            if unread != stream.unread {
                return Err(format!(
                    "socket {key:?} counts {} unread bytes and holds {unread}",
                    stream.unread
                ));
            }
            slots += stream.inbox.iter().filter(|chunk| chunk.is_pooled()).count() as u64;
            let out = &stream.out;
            let unsent =
                out.pieces.iter().map(|piece| piece.bytes().len()).sum::<usize>() - out.sent_of_first;
            if unsent != out.bytes {
                return Err(format!("socket {key:?} counts {} unsent bytes and holds {unsent}", out.bytes));
            }
            if out.in_flight > out.pieces.len() {
                return Err(format!("socket {key:?} sends {} pieces of {}", out.in_flight, out.pieces.len()));
            }
            let pending =
                out.bytes > 0 && out.in_flight == 0 && !out.dirty && out.error == 0 && !entry.closing;
            if pending {
                return Err(format!("socket {key:?} has {} bytes that nothing sends", out.bytes));
            }
        }
        if outstanding != self.outstanding {
            return Err(format!("{} operations counted, {outstanding} held by sockets", self.outstanding));
        }
        if slots > u64::from(self.pool.taken()) {
            return Err(format!("{slots} pool slots in inboxes, {} taken", self.pool.taken()));
        }
        Ok(())
    }
}

impl Stream {
    fn new(connect: Option<Box<Connect>>) -> Self {
        Self {
            is_accepted: connect.is_none(),
            receive: Receive::Off,
            bulk: false,
            ended: false,
            receive_error: 0,
            inbox: Queue::default(),
            unread: 0,
            receive_waker: None,
            out: Outbox::default(),
            connect,
            in_bulk: None,
        }
    }

    /// Keeps the buffer that a bulk receive fills.
    fn bulk_buffer(&mut self, buffer: Vec<u8>) {
        self.in_bulk = Some(buffer);
    }

    /// The buffer that a bulk receive has filled with `len` bytes.
    fn take_bulk(&mut self, len: usize, cache: &Rc<BulkCache>) -> Option<Chunk> {
        let mut buffer = self.in_bulk.take()?;
        if len > buffer.capacity() {
            debug_assert!(false, "a receive of {len} bytes into {}", buffer.capacity());
            return None;
        }
        // SAFETY: len <= capacity was checked, and the driver has written the first `len` bytes.
        unsafe { buffer.set_len(len) };
        Some(Chunk::bulk(buffer, cache))
    }

    fn drop_unfilled(&mut self, cache: &Rc<BulkCache>) {
        if let Some(buffer) = self.in_bulk.take() {
            cache.put(buffer);
        }
    }
}

/// Readability of a descriptor that is not a socket of ours.
pub struct Readiness {
    handle: Handle,
    key: io::Result<Key>,
}

impl Readiness {
    pub(super) fn new(handle: Handle, fd: RawFd) -> Self {
        let key = handle.reactor.borrow_mut().add_poll(fd);
        Self { handle, key }
    }

    /// Waits until the descriptor was readable since the last time this was asked. The caller
    /// drains it and asks again.
    ///
    /// # Cancel safety
    /// Safe: readiness stays noted.
    ///
    /// # Errors
    /// When the descriptor could not be watched.
    pub async fn ready(&mut self) -> io::Result<()> {
        let key = match &self.key {
            Ok(key) => *key,
            Err(error) => return Err(io::Error::new(error.kind(), error.to_string())),
        };
        poll_fn(|cx| self.handle.reactor.borrow_mut().poll_ready(key, cx)).await
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        if let Ok(key) = self.key {
            self.handle.reactor.borrow_mut().close(key);
        }
    }
}
