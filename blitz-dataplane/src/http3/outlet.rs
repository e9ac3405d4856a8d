//! Sending on a socket that many connections share.
//!
//! A connection takes a lane, fills its buffer with what quiche has to send, and starts the send. When all lanes are
//! busy it waits: what it has to say stays in quiche, so nothing is queued here but who waits.
//!
//! Owns: the lanes and the queue of who waits for one. Does not own: receiving (`listener.rs`), what is sent
//! (`server.rs`).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};

use crate::metrics::names::Metric;
use crate::runtime::{ReceiveBuffer, Received, SEND_BYTES_MAX, Transmit, UdpSocket};
use crate::segment::WorkerRows;

/// Sends that may be in flight on one socket (count). Each has a buffer of 64 KiB once it was used: 1 MiB.
pub(super) const LANES: usize = 16;

/// A socket as its connections see it.
pub(super) struct Outlet {
    socket: UdpSocket,
    rows: WorkerRows,
    /// Lanes without a send.
    free: RefCell<Vec<usize>>,
    /// Connections that wait for one, each once.
    waiting: RefCell<VecDeque<Waker>>,
    /// The task that looks after sends that are done.
    reaper: RefCell<Option<Waker>>,
    /// The buffer for the next send.
    spare: RefCell<Box<[u8]>>,
}

/// A lane that is free. Given back when it is dropped without a send.
pub(super) struct Lane<'a> {
    outlet: &'a Outlet,
    number: Option<usize>,
    buffer: Box<[u8]>,
}

impl Outlet {
    pub(super) fn new(socket: UdpSocket, rows: WorkerRows) -> Self {
        let free = (0..socket.lanes()).rev().collect();
        Self {
            socket,
            rows,
            free: RefCell::new(free),
            waiting: RefCell::default(),
            reaper: RefCell::default(),
            spare: RefCell::default(),
        }
    }

    /// Lanes with a send, and connections that wait for one (counts).
    #[cfg(test)]
    pub(super) fn census(&self) -> (usize, usize) {
        (self.socket.lanes() - self.free.borrow().len(), self.waiting.borrow().len())
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

    /// A free lane, for what may be left unsaid.
    pub(super) fn lane(&self) -> Option<Lane<'_>> {
        let number = self.free.borrow_mut().pop()?;
        let mut buffer = self.spare.take();
        if buffer.is_empty() {
            buffer = vec![0; SEND_BYTES_MAX].into_boxed_slice();
        }
        Some(Lane { outlet: self, number: Some(number), buffer })
    }

    /// A free lane; else the caller is woken when there is one. `is_waiting` is the caller's, false at first.
    pub(super) fn poll_lane(&self, cx: &Context<'_>, is_waiting: &Cell<bool>) -> Poll<Lane<'_>> {
        if let Some(lane) = self.lane() {
            return Poll::Ready(lane);
        }
        if !is_waiting.replace(true) {
            self.waiting.borrow_mut().push_back(cx.waker().clone());
        }
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
        if let Some(waker) = self.waiting.borrow_mut().pop_front() {
            waker.wake();
        }
    }
}

impl Lane<'_> {
    /// Room for datagrams.
    pub(super) fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Sends the first `len` bytes.
    pub(super) fn send(mut self, len: usize, datagrams: u64, transmit: Transmit) {
        let Some(number) = self.number.take() else { return };
        let outlet = self.outlet;
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
        if let Some(number) = self.number.take() {
            *self.outlet.spare.borrow_mut() = std::mem::take(&mut self.buffer);
            self.outlet.release(number);
        }
    }
}
