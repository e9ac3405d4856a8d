//! What the tasks of one connection share: quiche's state of it, and signals for each request.
//!
//! Owns: both, and turning quiche's events into signals. Does not own: the tasks (`server.rs`, `stream.rs`).

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::task::{Context, Waker};

use quiche::h3::{self, NameValue};

use super::Code;
use super::allowance::Allowance;
use super::early::Early;
use super::outlet::Hops;
use super::priority::{self, Priority};
use super::qlog::Recorder;

/// A connection as its tasks share it. No borrow is held across a wait.
pub(super) struct Conn {
    /// Its number in the registry.
    pub(super) number: u64,
    pub(super) state: RefCell<State>,
    /// The connection's own task, which sends.
    task: RefCell<Option<Waker>>,
    /// quiche has panicked in it.
    pub(super) is_broken: Cell<bool>,
    /// The ways of its paths.
    pub(super) hops: Hops,
    /// Of a client that has not shown a token.
    pub(super) allowance: Option<Allowance>,
    /// What is known of its early data.
    pub(super) early: Cell<Early>,
}

/// quiche's two halves, and who waits for which stream.
pub(super) struct State {
    pub(super) quic: quiche::Connection,
    /// Once the handshake is done.
    pub(super) h3: Option<h3::Connection>,
    streams: HashMap<u64, Rc<Signals>, StreamHashes>,
    /// Requests that were answered before quiche told that nothing more comes: it still will.
    ended_early: HashSet<u64, StreamHashes>,
    /// Answers that the client has stopped (count), as of the last look.
    stopped: u64,
}

/// Spreads the numbers of streams. They need no key: a client opens them in order, and no more than are announced.
#[derive(Default)]
struct StreamHasher(u64);

type StreamHashes = BuildHasherDefault<StreamHasher>;

impl Hasher for StreamHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 over the golden ratio, so that neighbours differ in the upper bits as well, which the table looks at.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What is known of a request's stream.
#[derive(Default)]
pub(super) struct Signals {
    /// There may be something of the body to be read.
    pub(super) is_readable: Cell<bool>,
    /// Nothing more comes.
    pub(super) has_ended: Cell<bool>,
    /// The client has reset it, or the connection is gone.
    pub(super) is_gone: Cell<bool>,
    pub(super) priority: Cell<Priority>,
    pub(super) trailers: RefCell<Option<Vec<h3::Header>>>,
    pub(super) reader: Slot,
    pub(super) writer: Slot,
    pub(super) watcher: Slot,
}

/// Who waits.
#[derive(Default)]
pub(super) struct Slot(RefCell<Option<Waker>>);

impl Slot {
    pub(super) fn register(&self, cx: &Context<'_>) {
        let mut waker = self.0.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Whether anybody waited.
    pub(super) fn wake(&self) -> bool {
        let waker = self.0.borrow_mut().take();
        waker.map(Waker::wake).is_some()
    }
}

impl Signals {
    pub(super) fn wake_all(&self) {
        self.reader.wake();
        self.writer.wake();
        self.watcher.wake();
    }
}

/// A request that has begun.
pub(super) struct Begun {
    pub(super) id: u64,
    pub(super) list: Vec<h3::Header>,
    /// The stream has no body.
    pub(super) has_ended: bool,
    pub(super) signals: Rc<Signals>,
    /// It came before the handshake was done.
    pub(super) is_early: bool,
}

/// What a look at quiche's events has brought.
#[derive(Default)]
pub(super) struct News {
    pub(super) begun: Vec<Begun>,
    /// Requests that the client has given up (count).
    pub(super) resets: u32,
    /// The peer broke the rules of HTTP/3; quiche is closing the connection.
    pub(super) failed: Option<h3::Error>,
}

/// Events that are looked at before others get their turn (count).
const EVENTS_MAX: usize = 256;

impl Conn {
    pub(super) fn new(
        number: u64,
        quic: quiche::Connection,
        allowance: Option<Allowance>,
        early: Early,
    ) -> Self {
        let (streams, ended_early) = (HashMap::default(), HashSet::default());
        let state = State { quic, h3: None, streams, ended_early, stopped: 0 };
        let (task, is_broken, hops) = (RefCell::new(None), Cell::new(false), Hops::default());
        let (state, early) = (RefCell::new(state), Cell::new(early));
        Self { number, state, task, is_broken, hops, allowance, early }
    }

    /// Gives a datagram to quiche.
    pub(super) fn receive(&self, datagram: &mut [u8], info: quiche::RecvInfo) -> quiche::Result<usize> {
        let quic = &mut self.state.borrow_mut().quic;
        match &self.allowance {
            Some(allowance) if !quic.is_established() => {
                let from = info.from;
                let opened = |quic: &quiche::Connection| quic.stats().recv;
                allowance.earn(quic, opened, from, datagram, |quic, datagram| quic.recv(datagram, info))
            }
            _ => quic.recv(datagram, info),
        }
    }

    /// Has quiche write down what happens from now on. A recording that was under way ends.
    pub(super) fn record(&self, recorder: Recorder) {
        let (title, what) = (format!("connection {}", self.number), "recorded by blitz".to_owned());
        self.state.borrow_mut().quic.set_qlog(Box::new(recorder), title, what);
    }

    /// Has the connection's task look: something has come, or is to be sent.
    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.task.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Names the connection's task.
    pub(super) fn register(&self, cx: &Context<'_>) {
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *task = Some(cx.waker().clone());
        }
    }
}

impl State {
    /// Takes quiche's events, and wakes whom they concern.
    pub(super) fn pump(&mut self) -> News {
        let mut news = News::default();
        let mut incomplete = Vec::new();
        let is_early = !self.quic.is_established();
        let Some(h3) = &mut self.h3 else { return news };
        for _ in 0..EVENTS_MAX {
            match h3.poll(&mut self.quic) {
                Ok((id, h3::Event::Headers { list, more_frames })) => {
                    if let Some(signals) = self.streams.get(&id) {
                        if signals.trailers.replace(Some(list)).is_some() {
                            news.failed = Some(unexpected(&mut self.quic));
                            break;
                        }
                        signals.reader.wake();
                        continue;
                    }
                    let signals = Rc::new(Signals::default());
                    signals.priority.set(priority_of(h3, id, &list));
                    self.streams.insert(id, Rc::clone(&signals));
                    news.begun.push(Begun { id, list, has_ended: !more_frames, signals, is_early });
                }
                Ok((id, h3::Event::Data)) => {
                    if let Some(signals) = self.streams.get(&id) {
                        if signals.trailers.borrow().is_some() {
                            news.failed = Some(unexpected(&mut self.quic));
                            break;
                        }
                        signals.is_readable.set(true);
                        signals.reader.wake();
                    }
                }
                Ok((id, h3::Event::Finished)) => {
                    if let Some(signals) = self.streams.get(&id) {
                        signals.has_ended.set(true);
                        signals.reader.wake();
                    } else if !self.ended_early.remove(&id) {
                        // It ended before there was a head (RFC 9114 section 4.1).
                        incomplete.push(id);
                    }
                }
                Ok((id, h3::Event::Reset(_))) => {
                    news.resets += 1;
                    if let Some(signals) = self.streams.get(&id) {
                        signals.is_gone.set(true);
                        signals.wake_all();
                    }
                }
                Ok((id, h3::Event::PriorityUpdate)) => {
                    // For a request that is still to come it stays where it is.
                    if let Some(signals) = self.streams.get(&id)
                        && let Ok(value) = h3.take_last_priority_update(id)
                    {
                        signals.priority.set(Priority::of(&value));
                        signals.priority.get().apply(&mut self.quic, id);
                    }
                }
                Ok((_, h3::Event::GoAway)) => {}
                Err(h3::Error::Done) => break,
                Err(error) => {
                    news.failed = Some(error);
                    break;
                }
            }
        }
        for id in incomplete {
            self.end(id, Some(Code::RequestIncomplete));
        }
        while let Some(id) = self.quic.stream_writable_next() {
            if let Some(signals) = self.streams.get(&id)
                && signals.writer.wake()
                && signals.priority.get().is_incremental
            {
                // It takes the room that there is, and wakes this task; then it is the next one's turn. Woken together
                // they would keep their order, and the first would have all.
                break;
            }
        }
        // Which one it was quiche does not say of a stream that had room already.
        let stopped = self.quic.stats().stopped_stream_count_remote;
        let more = stopped.saturating_sub(std::mem::replace(&mut self.stopped, stopped));
        if more > 0 {
            // A client gives a request up by a reset, by this, or by both.
            news.resets = news.resets.max(u32::try_from(more).unwrap_or(u32::MAX));
            self.wake_all();
        }
        news
    }

    /// Whether the client wants nothing more of an answer.
    pub(super) fn is_stopped(&mut self, id: u64) -> bool {
        self.quic.stream_capacity(id).is_err()
    }

    /// Forgets a stream: the rest of what the client sends is not read, and an answer that is not whole is cut.
    pub(super) fn end(&mut self, id: u64, cut: Option<Code>) {
        let signals = self.streams.remove(&id);
        if signals.is_some_and(|signals| !signals.has_ended.get()) && self.quic.stream_finished(id) {
            self.ended_early.insert(id);
        }
        if let Some(code) = cut {
            // It may be gone already.
            let _gone = self.quic.stream_shutdown(id, quiche::Shutdown::Write, code as u64);
        }
        if !self.quic.stream_finished(id) {
            let code = cut.unwrap_or(Code::NoError);
            let _gone = self.quic.stream_shutdown(id, quiche::Shutdown::Read, code as u64);
        }
    }

    /// Refuses a request that came after the last one that is served.
    pub(super) fn reject(&mut self, id: u64) {
        self.end(id, Some(Code::RequestRejected));
    }

    /// Tells all streams to look again.
    pub(super) fn wake_all(&self) {
        self.streams.values().for_each(|signals| signals.wake_all());
    }

    /// Tells all streams that the connection is gone.
    pub(super) fn gone(&mut self) {
        for (_, signals) in self.streams.drain() {
            signals.is_gone.set(true);
            signals.wake_all();
        }
    }
}

/// The priority of a request that begins. A frame that came before it counts more than its field (RFC 9218 section 7).
fn priority_of(h3: &mut h3::Connection, id: u64, list: &[h3::Header]) -> Priority {
    if let Ok(value) = h3.take_last_priority_update(id) {
        return Priority::of(&value);
    }
    let mut priority = Priority::default();
    let fields = list.iter().filter(|field| field.name() == priority::NAME);
    fields.for_each(|field| priority.change(field.value()));
    priority
}

/// Closes a connection for a frame behind trailers (RFC 9114 section 4.1): to quiche, a second field section may be a
/// final head behind an interim one, as in answers.
fn unexpected(quic: &mut quiche::Connection) -> h3::Error {
    // It is open: a frame has just come.
    let _closed = quic.close(true, Code::FrameUnexpected as u64, b"");
    h3::Error::FrameUnexpected
}
