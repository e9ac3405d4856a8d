//! Sending on a socket that many connections share, or past it.
//!
//! A connection takes a lane, fills its buffer with what quiche has to send, and starts the send. When all lanes are
//! busy it waits: what it has to say stays in quiche, so nothing is queued here but who waits.
//!
//! Answers that no connection stands behind (Retry and the like) go the same way, and what finds no lane is kept for a
//! moment: quiche would not say it again, and who waits for it would wait for a second.
//!
//! What came by AF_XDP is answered so: a lane for such a peer is one as long as frames are free, and its bytes are
//! copied into them ([`crate::afxdp`]). The peer's last packet decides, path by path ([`Hops`]).
//!
//! Owns: the lanes, the queues of who and what waits for one, which way a path goes. Does not own: receiving
//! (`listener.rs`), what is sent (`server.rs`).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, Waker};

use super::paths::PATHS_MAX;
use crate::afxdp::port::Hop;
use crate::metrics::names::Metric;
use crate::runtime::{ReceiveBuffer, Received, SEND_BYTES_MAX, Ticket, Transmit, UdpSocket, Waiting};
use crate::segment::WorkerRows;

/// Sends that may be in flight on one socket (count). Each has a buffer of 64 KiB once it was used: 1 MiB.
pub(super) const LANES: usize = 16;

/// Lanes that answers leave to connections (count), so that a flood that is answered does not hold these up.
const LANES_OF_CONNECTIONS: usize = LANES / 4;

/// Answers that wait for a lane (count), of some 600 bytes at most each: more than one aggregate of first packets asks
/// for. Beyond: dropped.
const ANSWERS_MAX: usize = 64;

/// Paths of a connection whose way is remembered (count): as many as quiche keeps. Beyond: the oldest is forgotten, and
/// goes by the socket until its next packet.
const HOPS_MAX: usize = PATHS_MAX as usize;

/// By which way the paths of a connection go; those that are not in it go by the socket.
#[derive(Default)]
pub(super) struct Hops {
    paths: RefCell<Vec<(SocketAddr, IpAddr, Hop)>>,
    /// That of the last packet.
    last: RefCell<Option<Hop>>,
}

impl Hops {
    /// Notes by which way a packet has come: `None` by the socket.
    pub(super) fn note(&self, from: SocketAddr, to: IpAddr, hop: Option<&Hop>) {
        if self.last.borrow().as_ref() != hop {
            *self.last.borrow_mut() = hop.cloned();
        }
        let mut paths = self.paths.borrow_mut();
        let known = paths.iter().position(|(peer, own, _)| (*peer, *own) == (from, to));
        match (known.and_then(|at| paths.get_mut(at)), hop) {
            (Some((.., known)), Some(hop)) if known != hop => *known = hop.clone(),
            (None, Some(hop)) => {
                if paths.len() >= HOPS_MAX {
                    paths.remove(0);
                }
                paths.push((from, to, hop.clone()));
            }
            (Some(_), None) => paths.retain(|(peer, own, _)| (*peer, *own) != (from, to)),
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    /// The way that the next datagrams probably go.
    pub(super) fn last(&self) -> Option<Hop> {
        self.last.borrow().clone()
    }

    /// The way of a path.
    pub(super) fn of(&self, transmit: &Transmit) -> Option<Hop> {
        let paths = self.paths.borrow();
        let mut paths = paths.iter();
        let found = paths.find(|(peer, own, _)| *peer == transmit.to && Some(*own) == transmit.from);
        found.map(|(.., hop)| hop.clone())
    }
}

/// A socket as its connections see it.
pub(super) struct Outlet {
    socket: UdpSocket,
    /// That of the socket.
    port: u16,
    rows: WorkerRows,
    /// Lanes without a send.
    free: RefCell<Vec<usize>>,
    /// Connections that wait for one.
    waiting: Waiting,
    /// Answers that do.
    answers: RefCell<VecDeque<Answer>>,
    /// The task that looks after sends that are done.
    reaper: RefCell<Option<Waker>>,
    /// The buffer for the next send.
    spare: RefCell<Box<[u8]>>,
}

/// A datagram that no connection stands behind.
struct Answer {
    datagram: Box<[u8]>,
    transmit: Transmit,
}

/// A lane that is free. Given back when it is dropped without a send.
pub(super) struct Lane<'a> {
    outlet: &'a Outlet,
    /// That of the socket's lane; `None` for what goes in frames.
    number: Option<usize>,
    buffer: Box<[u8]>,
}

impl Outlet {
    pub(super) fn new(socket: UdpSocket, rows: WorkerRows) -> Self {
        let free = (0..socket.lanes()).rev().collect();
        let port = socket.local_address().map_or(0, |address| address.port());
        Self {
            socket,
            port,
            rows,
            free: RefCell::new(free),
            waiting: Waiting::default(),
            answers: RefCell::default(),
            reaper: RefCell::default(),
            spare: RefCell::default(),
        }
    }

    /// Lanes with a send, and connections that wait for one (counts).
    #[cfg(test)]
    pub(super) fn census(&self) -> (usize, usize) {
        (self.socket.lanes() - self.free.borrow().len(), self.waiting.len())
    }

    /// What has come.
    pub(super) fn poll_receive(
        &self,
        cx: &Context<'_>,
        buffer: &mut ReceiveBuffer,
    ) -> Poll<std::io::Result<Received>> {
        self.socket.poll_receive(cx, buffer)
    }

    /// The address that the socket is bound to.
    pub(super) fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_address()
    }

    /// Sends an answer of one datagram, which `write` writes, at once or when there is a lane for it. Whether it will
    /// be sent.
    pub(super) fn answer(
        &self,
        transmit: Transmit,
        hop: Option<&Hop>,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> bool {
        let hop = hop.filter(|hop| hop.is_open());
        let has_way = hop.is_some() || self.has_lane_for_answers();
        if !has_way && self.answers.borrow().len() >= ANSWERS_MAX {
            return false;
        }
        let lane = if has_way { self.lane(hop) } else { Some(self.numbered(None)) };
        let Some(mut lane) = lane else { return false };
        let Some(len) = write(lane.buffer()) else { return false };
        if has_way {
            lane.send(len, 1, transmit, hop);
        } else if let Some(datagram) = lane.buffer().get(..len) {
            self.answers.borrow_mut().push_back(Answer { datagram: datagram.into(), transmit });
        }
        true
    }

    /// Whether answers wait for a lane.
    pub(super) fn has_answers(&self) -> bool {
        !self.answers.borrow().is_empty()
    }

    fn has_lane_for_answers(&self) -> bool {
        self.free.borrow().len() > LANES_OF_CONNECTIONS
    }

    fn send_answers(&self) {
        while self.has_lane_for_answers() {
            let Some(Answer { datagram, transmit }) = self.answers.borrow_mut().pop_front() else { return };
            let Some(mut lane) = self.lane(None) else { return };
            if let Some(room) = lane.buffer().get_mut(..datagram.len()) {
                room.copy_from_slice(&datagram);
                lane.send(datagram.len(), 1, transmit, None);
            }
        }
    }

    /// A free lane.
    fn lane(&self, hop: Option<&Hop>) -> Option<Lane<'_>> {
        if hop.is_some_and(Hop::is_open) {
            return Some(self.numbered(None));
        }
        let number = self.free.borrow_mut().pop()?;
        Some(self.numbered(Some(number)))
    }

    fn numbered(&self, number: Option<usize>) -> Lane<'_> {
        let mut buffer = self.spare.take();
        if buffer.is_empty() {
            buffer = vec![0; SEND_BYTES_MAX].into_boxed_slice();
        }
        Lane { outlet: self, number, buffer }
    }

    /// A free lane for what probably goes by `hop`; else the caller is woken when there is one.
    pub(super) fn poll_lane(&self, cx: &Context<'_>, ticket: &Ticket, hop: Option<&Hop>) -> Poll<Lane<'_>> {
        if let Some(hop) = hop.filter(|hop| hop.is_open()) {
            return hop.poll_room(cx, ticket).map(|()| self.numbered(None));
        }
        if let Some(lane) = self.lane(None) {
            ticket.leave();
            return Poll::Ready(lane);
        }
        self.waiting.wait(cx, ticket);
        Poll::Pending
    }

    /// Frees the lanes whose sends are done, and has the caller woken for the others.
    pub(super) fn reap(&self, cx: &Context<'_>) {
        let mut reaper = self.reaper.borrow_mut();
        if !reaper.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *reaper = Some(cx.waker().clone());
        }
        drop(reaper);
        for number in 0..self.socket.lanes() {
            let is_free = self.free.borrow().contains(&number);
            if !is_free && let Poll::Ready(sent) = self.socket.poll_sent(number, cx) {
                self.done(number, sent);
            }
        }
        self.send_answers();
        // Who was woken for a lane may have gone without it. With a send in flight its end calls the next; else nothing
        // would.
        let free = self.free.borrow().len();
        if free == self.socket.lanes() && !self.waiting.is_empty() {
            self.waiting.call(free);
        }
    }

    fn done(&self, number: usize, sent: std::io::Result<usize>) {
        match sent {
            Ok(bytes) => self.rows.add(Metric::DownstreamSentBytes, bytes as u64),
            Err(error) => {
                // As if it had been lost on the way: QUIC sends it again.
                self.rows.add(Metric::QuicSendErrors, 1);
                log::debug!("quic: a send failed: {error}");
            }
        }
        self.release(number);
    }

    fn release(&self, number: usize) {
        self.free.borrow_mut().push(number);
        self.waiting.call(1);
    }
}

impl Lane<'_> {
    /// Room for datagrams.
    pub(super) fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Sends the first `len` bytes, by `hop` or else by the socket.
    pub(super) fn send(mut self, len: usize, datagrams: u64, transmit: Transmit, hop: Option<&Hop>) {
        let outlet = self.outlet;
        if let (Some(hop), Some(from)) = (hop.filter(|hop| hop.is_open()), transmit.from) {
            let segment = transmit.segment.map_or(len, usize::from).max(1);
            let all = self.buffer.get(..len).unwrap_or_default();
            let sent = hop.send(SocketAddr::new(from, outlet.port), transmit.to, all.chunks(segment));
            outlet.rows.add(Metric::QuicDatagramsSent, datagrams);
            outlet.rows.add(Metric::DownstreamSentBytes, sent as u64);
            return;
        }
        // It was to go in frames, and its path is another one: it is lost when no lane is free, and sent again.
        let Some(number) = self.number.take().or_else(|| outlet.free.borrow_mut().pop()) else {
            outlet.rows.add(Metric::QuicSendErrors, 1);
            return;
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let started = outlet.socket.start_send(number, &mut buffer, len, transmit);
        *outlet.spare.borrow_mut() = buffer;
        outlet.rows.add(Metric::QuicDatagramsSent, datagrams);
        if let Err(error) = started {
            outlet.done(number, Err(error));
            return;
        }
        // Else nobody would be told of its end.
        let reaper = outlet.reaper.borrow().clone();
        if let Some(reaper) = reaper
            && let Poll::Ready(sent) = outlet.socket.poll_sent(number, &Context::from_waker(&reaper))
        {
            outlet.done(number, sent);
        }
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        if !self.buffer.is_empty() {
            *self.outlet.spare.borrow_mut() = std::mem::take(&mut self.buffer);
        }
        if let Some(number) = self.number.take() {
            self.outlet.release(number);
        }
    }
}
