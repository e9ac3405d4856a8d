//! The life of a connection: packets out, requests in, connection IDs, deadlines, the end.
//!
//! Owns: the connection's task. Does not own: packets in (`listener.rs`), what happens to a request (`stream.rs`).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use blitz_config::model::Http3Limits;
use quiche::h3;

use super::Code;
use super::allowance::Allowance;
use super::connection::{Conn, News, State};
use super::error::CONNECTION_REFUSED;
use super::keys::Cids;
use super::listener::{Cid, Table};
use super::outlet::Outlet;
use super::paths::{Paths, Route, UsedUp, source};
use super::rotation::Rotation;
use super::stream::Task;
use crate::exchange::stream::Service;
use crate::exchange::{ErrorKind, ProxyError};
use crate::metrics::names::Metric;
use crate::proxy::connections::{Connection, Ended};
use crate::runtime::{Deadline, Handle, Lull, Pooled, SEGMENTS_MAX, SEND_BYTES_MAX, Ticket, Transmit};
use crate::segment::WorkerRows;

/// Connection IDs that the client has retired and that are still known (count): packets may be on their way that it has
/// sent before (RFC 9000 section 5.1.2).
const RETIRED_MAX: usize = 8;

/// Requests that the client resets may come so many seconds' worth at once.
const BURST_SECONDS: u32 = 4;

/// Requests of one connection (count), after which its client is sent for another: quiche keeps a little of each
/// whose body was not read to its end.
const REQUESTS_MAX: u64 = 100_000;

/// After the last answer of a connection that is to end: its packets may have to be sent again.
const CLOSING: Duration = Duration::from_secs(1);

/// How long a connection that is over is kept for late packets, at most: three times the probe timeout (RFC 9000
/// section 10.2) is the client's to stretch, by answering slowly. Whoever is later still gets a stateless reset.
const LINGER_MAX: Duration = Duration::from_secs(3);

/// Sends of one connection before others get their turn (count).
const BURSTS_MAX: usize = 4;

/// Turns of the loop that what there is to be sent waits at most for more to join it, while there is other work.
const HELD_TURNS_MAX: u8 = 4;

/// Bytes of the largest datagram that is tried: IPv6 and UDP have 48 of the 1500 of an Ethernet.
pub(super) const DATAGRAM_BYTES_MAX: usize = 1452;

/// CRYPTO_ERROR with the alert `bad_certificate` (RFC 9001 section 4.8).
const BAD_CERTIFICATE: u64 = 0x100 + 42;

/// What a connection's task needs.
pub(super) struct Session<S> {
    pub(super) service: Rc<S>,
    pub(super) conn: Rc<Conn>,
    pub(super) connection: Rc<Connection>,
    pub(super) handle: Handle,
    pub(super) outlet: Rc<Outlet>,
    pub(super) table: Rc<Table>,
    pub(super) cids: Rc<Cids>,
    pub(super) limits: Http3Limits,
    pub(super) handshake: Duration,
    /// Connection IDs under which it is in the table.
    pub(super) known_as: Vec<Cid>,
    pub(super) paths: Paths,
    pub(super) rows: WorkerRows,
    /// Those that the client has retired last, which are in the table too.
    pub(super) retired: VecDeque<Cid>,
}

/// Told once when a handshake has ended, well or not. Whether the client may go on.
pub(super) type Handshaken = Box<dyn FnOnce(&quiche::Connection) -> bool>;

impl<S: Service + 'static> Session<S> {
    /// Serves the connection to its end. `handshaken` is called when the handshake is over.
    pub(super) async fn run(self, handshaken: Handshaken) -> Ended {
        let deadline = Deadline::new(&self.handle);
        let now = self.handle.now_ms();
        let rotation = Rotation::new(&self.cids);
        let route = Route::of(&self.conn.state.borrow().quic);
        let mut running = Running {
            session: self,
            deadline,
            handshaken: Some(handshaken),
            opened_ms: now,
            pinged_ms: now,
            closing: None,
            said: false,
            over_ms: None,
            next_stream: 0,
            resets: 0,
            resets_at_ms: now,
            ticket: Ticket::default(),
            rotation,
            route,
            lull: Lull::default(),
        };
        poll_fn(|cx| running.poll(cx)).await
    }
}

impl<S> Drop for Session<S> {
    fn drop(&mut self) {
        self.known_as.iter().chain(&self.retired).for_each(|cid| self.table.remove(cid));
        if let Ok(mut state) = self.conn.state.try_borrow_mut() {
            state.gone();
        }
    }
}

struct Running<S> {
    session: Session<S>,
    deadline: Deadline,
    handshaken: Option<Handshaken>,
    opened_ms: u64,
    /// When the client was last asked for a packet, or one of it was there.
    pinged_ms: u64,
    /// It was told to end: why, and when.
    closing: Option<(Ended, u64)>,
    /// CONNECTION_CLOSE was said.
    said: bool,
    /// Since when it is over, by either side's word.
    over_ms: Option<u64>,
    /// The lowest request that has not come.
    next_stream: u64,
    /// Requests that the client has reset, in thousandths, less what has drained.
    resets: u64,
    resets_at_ms: u64,
    /// With which it waits for a lane.
    ticket: Ticket,
    rotation: Rotation,
    route: Route,
    /// When it may send: acknowledgements and answers that come about in the same moment travel together.
    lull: Lull,
}

impl<S: Service + 'static> Session<S> {
    /// Gives a new connection ID out; when the client has as many as it takes, in the place of its oldest. Whether
    /// that was possible now.
    fn issue(&mut self, quic: &mut quiche::Connection, in_place: bool) -> bool {
        let Some(drawn) = self.cids.draw() else { return false };
        let token = u128::from_be_bytes(self.cids.keys.reset_token(&drawn));
        let issued = quic.new_scid(&quiche::ConnectionId::from_ref(&drawn), token, in_place);
        let (Ok(_), Some(cid)) = (issued, Cid::new(&drawn)) else { return false };
        self.table.insert(cid, &self.conn);
        self.known_as.push(cid);
        true
    }
}

impl<S: Service + 'static> Running<S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        self.session.conn.register(cx);
        // At most twice: the second time after a timer.
        loop {
            if self.session.conn.is_broken.get() {
                return Poll::Ready(Ended::Error);
            }
            self.advance(cx);
            let has_more = self.lull.poll(cx, HELD_TURNS_MAX).is_ready() && self.flush(cx);
            if let Some(ended) = self.ended() {
                return Poll::Ready(ended);
            }
            self.deadline.set_after(self.next_look());
            if has_more {
                cx.waker().wake_by_ref();
            }
            if self.deadline.poll_expired(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Everything but sending.
    fn advance(&mut self, cx: &mut Context<'_>) {
        let conn = Rc::clone(&self.session.conn);
        let mut state = conn.state.borrow_mut();
        if state.quic.timeout_instant().is_some_and(|at| at <= Instant::now()) {
            state.quic.on_timeout();
            self.route.timed_out(&mut state.quic);
        }
        if !self.said && self.handshaken.is_some() && state.quic.is_established() {
            self.handshake_done(&mut state);
        }
        let is_ready = state.quic.is_established() || state.quic.is_in_early_data();
        if state.h3.is_none() && is_ready && !self.said {
            state.h3 = self.establish(&mut state.quic);
        }
        let news = state.pump();
        self.follow_paths(&mut state.quic);
        drop(state);
        self.take(news);
        if self.closing.is_none()
            && let Poll::Ready(ended) = self.session.connection.poll_asked_to_close(cx)
        {
            self.close(ended);
        }
        self.check_deadlines();
    }

    fn handshake_done(&mut self, state: &mut State) {
        let is_admitted = self.handshaken.take().is_some_and(|handshaken| handshaken(&state.quic));
        if !is_admitted {
            self.closing = Some((Ended::Error, self.session.handle.now_ms()));
            let _closing = state.quic.close(false, BAD_CERTIFICATE, b"");
            self.said = true;
            return;
        }
        self.session.connection.set_idle(self.session.handle.now_ms());
        // Requests that came before may go on.
        state.wake_all();
    }

    /// Requests can be taken.
    fn establish(&mut self, quic: &mut quiche::Connection) -> Option<h3::Connection> {
        let session = &self.session;
        let limits = session.service.limits();
        let mut config = h3::Config::new().ok()?;
        // What is larger than allowed, and not much, gets an answer; the rest ends the connection.
        config.set_max_field_section_size(limits.head.head_bytes_max as u64 * 4);
        config.enable_extended_connect(true);
        match h3::Connection::with_transport(quic, &config) {
            Ok(h3) => Some(h3),
            Err(error) => {
                log::debug!("h3: a connection could not begin: {error}");
                let _closing = quic.close(true, Code::InternalError as u64, b"");
                self.said = true;
                None
            }
        }
    }

    /// Starts requests, and judges what the client has done.
    fn take(&mut self, news: News) {
        let session = &self.session;
        for begun in news.begun {
            if self.closing.is_some() && begun.id >= self.next_stream {
                session.conn.state.borrow_mut().reject(begun.id);
                continue;
            }
            self.next_stream = self.next_stream.max(begun.id + 4);
            let task = Task {
                service: Rc::clone(&session.service),
                connection: Rc::clone(&session.connection),
                handle: session.handle.clone(),
                conn: Rc::clone(&session.conn),
                _under_way: session.connection.under_way(&session.handle),
            };
            // In memory that is kept for the next one.
            session.handle.spawn(Pooled::new(task.run(begun)));
        }
        if self.next_stream >= REQUESTS_MAX * 4 && self.closing.is_none() {
            self.close(Ended::AfterAnswer);
        }
        if let Some(error) = news.failed {
            log::debug!("h3: {error}");
            self.fault("h3_connection_error");
        }
        if news.resets > 0 {
            let now = self.session.handle.now_ms();
            let per_second = u64::from(self.session.limits.resets_per_second);
            let drained = now.saturating_sub(self.resets_at_ms).saturating_mul(per_second);
            self.resets_at_ms = now;
            self.resets = self.resets.saturating_sub(drained) + u64::from(news.resets) * 1000;
            if self.resets > per_second * u64::from(BURST_SECONDS) * 1000 {
                self.fault("rapid_reset");
                self.say(true, Code::ExcessiveLoad as u64);
            }
        }
    }

    /// Accounts for a connection that ends for what its client did.
    fn fault(&mut self, detail: &'static str) {
        let error = ProxyError::new(ErrorKind::BadRequestFraming).with_detail(detail);
        self.session.service.note(&error);
        self.session.service.misconduct(&self.session.connection, &error);
        self.closing = Some((Ended::Error, self.session.handle.now_ms()));
    }

    /// Connection IDs: given out as far as the client takes them, replaced when their epoch is over, forgotten when
    /// it has retired them. Paths: counted.
    fn follow_paths(&mut self, quic: &mut quiche::Connection) {
        let session = &mut self.session;
        while let Some(retired) = quic.retired_scid_next() {
            if let Some(cid) = Cid::new(&retired) {
                session.table.retire(cid);
                session.known_as.retain(|known| *known != cid);
                session.retired.push_back(cid);
            }
            if session.retired.len() > RETIRED_MAX
                && let Some(cid) = session.retired.pop_front()
            {
                session.table.remove(&cid);
            }
        }
        if quic.is_established() {
            while quic.scids_left() > 0 && session.issue(quic, false) {}
            self.rotation.follow(quic, &session.cids, session.handle.now_ms());
            while self.rotation.is_due(quic) && session.issue(quic, true) {
                self.rotation.done();
            }
        }
        let mut used_up = None;
        while let Some(event) = quic.path_event_next() {
            match event {
                quiche::PathEvent::New(local, peer) => {
                    self.route.seen((local, peer));
                    used_up = used_up.or(session.paths.add(session.limits.moves_per_worker_max));
                }
                quiche::PathEvent::PeerMigrated(local, peer) => {
                    session.rows.add(Metric::QuicMigrations, 1);
                    session.connection.set_addresses(peer, local);
                    self.route.moved(quic, (local, peer));
                }
                quiche::PathEvent::Validated(local, peer) => self.route.proved((local, peer)),
                quiche::PathEvent::FailedValidation(local, peer) => {
                    self.route.doubted(quic, (local, peer));
                }
                _ => {}
            }
        }
        if let Some(used_up) = used_up
            && !self.said
        {
            let metric = match used_up {
                UsedUp::Connection => Metric::QuicPathsConnection,
                UsedUp::Worker => Metric::QuicPathsWorker,
            };
            session.rows.add(metric, 1);
            self.closing = Some((Ended::Error, session.handle.now_ms()));
            let _closing = quic.close(true, Code::NoError as u64, b"paths");
            self.said = true;
        }
    }

    /// Lets the requests under way end, and takes no new ones (RFC 9114 section 5.2).
    fn close(&mut self, ended: Ended) {
        self.closing = Some((ended, self.session.handle.now_ms()));
        let mut state = self.session.conn.state.borrow_mut();
        let State { quic, h3, .. } = &mut *state;
        if let Some(h3) = h3
            && let Err(error) = h3.send_goaway(quic, self.next_stream)
        {
            // The client learns it from the requests that are rejected.
            log::debug!("h3: GOAWAY: {error}");
        }
    }

    /// Says CONNECTION_CLOSE, once.
    fn say(&mut self, is_application: bool, code: u64) {
        if !std::mem::replace(&mut self.said, true) {
            // Closed already.
            let _closed = self.session.conn.state.borrow_mut().quic.close(is_application, code, b"");
        }
    }

    fn check_deadlines(&mut self) {
        let session = &self.session;
        let now = session.handle.now_ms();
        let is_up = |since: u64, limit: Duration| Duration::from_millis(now.saturating_sub(since)) >= limit;
        if self.handshaken.is_some() {
            if is_up(self.opened_ms, session.handshake) && self.closing.is_none() {
                session.service.note(&ProxyError::new(ErrorKind::TlsHandshakeTimeout));
                self.closing = Some((Ended::Deadline, now));
                self.say(false, CONNECTION_REFUSED);
            } else if self.closing.is_some() {
                self.say(false, CONNECTION_REFUSED);
            }
            return;
        }
        if session.connection.active() > 0 {
            // The upstream may take longer than the client's silence is borne.
            if is_up(self.pinged_ms, self.session.limits.idle_timeout / 3) {
                self.pinged_ms = now;
                let _closed = self.session.conn.state.borrow_mut().quic.send_ack_eliciting();
            }
            return;
        }
        let idle_since = session.connection.idle_since_ms();
        if self.closing.is_some() {
            if is_up(idle_since, CLOSING) {
                self.say(true, Code::NoError as u64);
            }
            return;
        }
        let limits = session.service.limits();
        let is_first = session.connection.requests() == 0;
        if is_up(idle_since, if is_first { limits.request_head } else { limits.keep_alive }) {
            self.close(Ended::Idle);
            self.say(true, Code::NoError as u64);
        }
    }

    /// When to look again at the latest.
    fn next_look(&self) -> Duration {
        let session = &self.session;
        let quic = session.conn.state.borrow().quic.timeout();
        let now = session.handle.now_ms();
        let until = |since: u64, limit: Duration| {
            limit.saturating_sub(Duration::from_millis(now.saturating_sub(since)))
        };
        let own = if self.handshaken.is_some() {
            until(self.opened_ms, session.handshake)
        } else if session.connection.active() > 0 {
            until(self.pinged_ms, session.limits.idle_timeout / 3)
        } else if self.closing.is_some() {
            until(session.connection.idle_since_ms(), CLOSING)
        } else {
            let limits = session.service.limits();
            let is_first = session.connection.requests() == 0;
            until(
                session.connection.idle_since_ms(),
                if is_first { limits.request_head } else { limits.keep_alive },
            )
        };
        let own = own.min(self.rotation.next_look(&session.cids, now));
        // Once it is over, only quiche's own time matters.
        let own = self.over_ms.map_or(own, |since| until(since, LINGER_MAX));
        quic.map_or(own, |quic| quic.min(own))
    }

    /// Sends what there is to be sent. Whether there is more, and it is for others to go first.
    fn flush(&mut self, cx: &Context<'_>) -> bool {
        let session = &self.session;
        let hops = &session.conn.hops;
        while self.route.is_due() {
            let lane = session.outlet.poll_lane(cx, &self.ticket, hops.last().as_ref());
            let Poll::Ready(mut lane) = lane else { return false };
            let sent = self.route.send(&mut session.conn.state.borrow_mut().quic, lane.buffer());
            if let Some((len, transmit)) = sent {
                lane.send(len, 1, transmit, hops.of(&transmit).as_ref());
            }
        }
        let mut odd = None;
        for round in 0..=BURSTS_MAX {
            let is_over = round == BURSTS_MAX;
            if is_over && odd.is_none() {
                break;
            }
            // What is odd is lost then, and sent again.
            let lane = session.outlet.poll_lane(cx, &self.ticket, hops.last().as_ref());
            let Poll::Ready(mut lane) = lane else { return false };
            let mut state = session.conn.state.borrow_mut();
            let quantum = if is_over { 0 } else { state.quic.send_quantum() };
            let allowance = session.conn.allowance.as_ref();
            let burst =
                Burst::fill(&mut state.quic, &self.route, allowance, quantum, lane.buffer(), &mut odd);
            drop(state);
            let Some(Burst { len, count, transmit }) = burst else { return false };
            lane.send(len, count, transmit, hops.of(&transmit).as_ref());
        }
        true
    }

    fn ended(&mut self) -> Option<Ended> {
        let state = self.session.conn.state.borrow();
        let quic = &state.quic;
        let is_over = quic.is_closed();
        let is_leaving = quic.is_draining() || quic.local_error().is_some();
        let (is_timed_out, is_by_peer) = (quic.is_timed_out(), quic.peer_error().is_some());
        drop(state);
        let now = self.session.handle.now_ms();
        if is_leaving || is_over {
            self.over_ms.get_or_insert(now);
            // The tasks of its streams have nobody to talk to.
            self.session.conn.state.borrow_mut().gone();
        }
        let has_lingered =
            self.over_ms.is_some_and(|since| Duration::from_millis(now.saturating_sub(since)) >= LINGER_MAX);
        if !is_over && !has_lingered {
            return None;
        }
        if let Some(handshaken) = self.handshaken.take() {
            let _over = handshaken(&self.session.conn.state.borrow().quic);
        }
        Some(match self.closing {
            Some((ended, _)) => ended,
            None if is_by_peer => Ended::ByClient,
            None if is_timed_out => Ended::Idle,
            None => Ended::Error,
        })
    }
}

/// Datagrams to one address, all of one size but the last, which may be shorter.
struct Burst {
    len: usize,
    count: u64,
    transmit: Transmit,
}

/// A datagram that did not fit behind the others, for the next burst.
struct Odd {
    bytes: [u8; DATAGRAM_BYTES_MAX],
    len: usize,
    transmit: Transmit,
}

impl Burst {
    /// Fills `buffer` with what is odd of the burst before, and what quiche has to send now, up to `quantum` bytes;
    /// `None` when that is nothing.
    fn fill(
        quic: &mut quiche::Connection,
        route: &Route,
        allowance: Option<&Allowance>,
        quantum: usize,
        buffer: &mut [u8],
        odd: &mut Option<Odd>,
    ) -> Option<Self> {
        let allowance = allowance.filter(|_| !quic.is_established());
        let mut burst = odd.take().and_then(|odd| odd.begin(buffer));
        loop {
            let is_full = |burst: &Self| burst.count as usize >= SEGMENTS_MAX || burst.len >= quantum;
            if burst.as_ref().is_some_and(is_full) {
                return burst;
            }
            let at = burst.as_ref().map_or(0, |burst| burst.len);
            // quiche takes what the path carries, and more when it finds out whether the path carries more.
            let room = buffer.get_mut(at..(at + DATAGRAM_BYTES_MAX).min(SEND_BYTES_MAX));
            let room = room.filter(|room| room.len() == DATAGRAM_BYTES_MAX);
            let allowed = allowance.map_or(DATAGRAM_BYTES_MAX, Allowance::left);
            let room = room.and_then(|room| room.get_mut(..DATAGRAM_BYTES_MAX.min(allowed)));
            // What quiche cannot encode, it closes the connection for.
            let Some((written, info)) = room.and_then(|room| quic.send(room).ok()) else { return burst };
            if let Some(allowance) = allowance {
                allowance.spend(written);
            }
            if route.is_too_much(quic, (info.from, info.to)) {
                // As if it had been lost on the way.
                continue;
            }
            let transmit = Transmit { to: info.to, from: source(info.from), segment: None };
            let Some(current) = &mut burst else {
                burst = Some(Self { len: written, count: 1, transmit });
                continue;
            };
            let segment = current.transmit.segment.map_or(current.len, usize::from);
            if written > segment
                || transmit.to != current.transmit.to
                || transmit.from != current.transmit.from
            {
                *odd = buffer.get(at..at + written).and_then(|bytes| Odd::new(bytes, transmit));
                return burst;
            }
            current.transmit.segment = u16::try_from(segment).ok();
            current.len += written;
            current.count += 1;
            if written < segment {
                return burst;
            }
        }
    }
}

impl Odd {
    fn new(datagram: &[u8], transmit: Transmit) -> Option<Self> {
        let mut bytes = [0; DATAGRAM_BYTES_MAX];
        bytes.get_mut(..datagram.len())?.copy_from_slice(datagram);
        Some(Self { bytes, len: datagram.len(), transmit })
    }

    /// The begin of a burst.
    fn begin(&self, buffer: &mut [u8]) -> Option<Burst> {
        buffer.get_mut(..self.len)?.copy_from_slice(self.bytes.get(..self.len)?);
        Some(Burst { len: self.len, count: 1, transmit: self.transmit })
    }
}
