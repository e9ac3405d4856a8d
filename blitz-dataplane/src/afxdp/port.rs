//! A receive queue of a network interface, with the socket that is bound to it, as the worker's loop uses it.
//!
//! What comes is read where it lies, before the frame goes back to the kernel. What goes is written into a frame once.
//! When no frame is free a connection waits, as it would for a lane of the UDP socket, and what it has to say stays in
//! quiche.
//!
//! A port that does not get rid of its frames, or gets none while the kernel throws some away for want of room, or
//! whose socket fails, closes: its connections go on over UDP by themselves, since a hop over a closed port is none
//! ([`Hop::is_open`]), and the binder binds the queue again.
//!
//! Owns: the port's task, who waits for frames, the watchdog. Does not own: the rings (`sys::xdp`), binding
//! ([`super::binder`]), what a datagram is for (`http3`).

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::Take;
use super::frame::{self, Datagram, Link};
use crate::metrics::names::Metric;
use crate::runtime::{Deadline, Handle, SEGMENTS_MAX, Ticket, Waiting, yield_now};
use crate::segment::WorkerRows;
use crate::sys::xdp::{Account, Statistics, XdpReceiver, XdpSender, XdpSocket};

/// Frames that are read before others get their turn (count).
const BATCH: u32 = 64;

/// Between two looks at a port that nobody waits for.
const LOOK: Duration = Duration::from_millis(100);

/// A port whose frames are all on their way for so long, and none comes back, is closed; and so is one from which
/// nothing could be read for so long, with the kernel throwing frames away.
const STALL: Duration = Duration::from_secs(1);

/// Turns of the loop after which a port looks for free frames when somebody waits for them (count). Completions wake
/// nobody: the kernel has no event for them.
const WAITING_TURNS: u8 = 8;

/// Why a port is no longer in use.
#[derive(Debug)]
pub enum End {
    /// It was told to.
    Closed,
    /// What has not happened for [`STALL`].
    Stalled(&'static str),
    /// The interface is gone or down, or the rings make no sense.
    Failed(io::Error),
}

/// Which queue it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Queue {
    /// The interface's name.
    pub interface: String,
    /// Number of the queue.
    pub number: u32,
}

impl std::fmt::Display for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} queue {}", self.interface, self.number)
    }
}

/// What a port needs to know of its link.
#[derive(Clone, Copy, Debug)]
pub struct LinkFacts {
    /// The interface's number.
    pub index: u32,
    /// Bytes of an IP packet, at most.
    pub mtu: usize,
}

/// A bound queue.
pub struct Port {
    queue: Queue,
    facts: LinkFacts,
    rows: WorkerRows,
    handle: Handle,
    /// Until it closes.
    sender: RefCell<Option<XdpSender>>,
    /// Connections that wait for frames, each once.
    waiting: Waiting,
    task: RefCell<Option<Waker>>,
    is_stopped: Cell<bool>,
    /// When a frame last came back, or none was away (milliseconds).
    moved_ms: Cell<u64>,
}

/// The way to a peer: a port, and the link header of frames to the next hop.
#[derive(Clone)]
pub struct Hop {
    port: Rc<Port>,
    link: Link,
}

impl PartialEq for Hop {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.port, &other.port) && self.link == other.link
    }
}

impl Eq for Hop {}

impl std::fmt::Debug for Hop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hop").field("queue", &self.port.queue).field("link", &self.link).finish()
    }
}

impl Hop {
    /// Whether something can be sent this way.
    pub fn is_open(&self) -> bool {
        self.port.sender.borrow().is_some()
    }

    /// Ready when a burst can be sent, or the port has closed; else the caller is woken then.
    pub fn poll_room(&self, cx: &Context<'_>, ticket: &Ticket) -> Poll<()> {
        let port = &self.port;
        if port.has_room() {
            ticket.leave();
            return Poll::Ready(());
        }
        port.waiting.wait(cx, ticket);
        port.wake();
        Poll::Pending
    }

    /// Sends datagrams; returns their bytes. Those that find no frame, or are larger than the link carries, are lost as
    /// if on the way.
    pub fn send<'a>(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        datagrams: impl Iterator<Item = &'a [u8]>,
    ) -> usize {
        self.port.send(&self.link, from, to, datagrams)
    }
}

impl Port {
    /// A port and its task; the socket is bound. `take` gets each datagram with what is known of it and the way back.
    /// The task ends with the port.
    pub fn open(
        queue: Queue,
        facts: LinkFacts,
        socket: XdpSocket,
        handle: &Handle,
        rows: &WorkerRows,
        take: &Take,
    ) -> (Rc<Self>, impl Future<Output = End> + use<>) {
        let XdpSocket { receiver, sender } = socket;
        let port = Rc::new(Self {
            queue,
            facts,
            rows: rows.clone(),
            handle: handle.clone(),
            sender: RefCell::new(Some(sender)),
            waiting: Waiting::default(),
            task: RefCell::default(),
            is_stopped: Cell::new(false),
            moved_ms: Cell::new(handle.now_ms()),
        });
        rows.gauge_add(Metric::AfxdpQueues, 1);
        (Rc::clone(&port), port.serve(receiver, Rc::clone(take)))
    }

    /// Which queue it is.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Ends the task.
    pub fn stop(&self) {
        self.is_stopped.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(task) = &*self.task.borrow() {
            task.wake_by_ref();
        }
    }

    async fn serve(self: Rc<Self>, mut receiver: XdpReceiver, take: Take) -> End {
        let mut published =
            Published { rows: self.rows.clone(), account: Account::default(), statistics: None };
        let _closing = Closing(&self);
        let end = self.take_all(&mut receiver, &mut published, &take).await;
        published.statistics(&receiver);
        end
    }

    async fn take_all(
        self: &Rc<Self>,
        receiver: &mut XdpReceiver,
        published: &mut Published,
        take: &Take,
    ) -> End {
        let mut readable = self.handle.readiness(receiver.as_fd().as_raw_fd());
        let mut clock = Deadline::new(&self.handle);
        clock.set_after(LOOK);
        let (mut read, mut starving) = (0, Starving::default());
        loop {
            let mut ready = pin!(readable.ready());
            // The clock first: a busy queue must not keep it from being looked at.
            let woken = poll_fn(|cx| match self.poll_look(cx, &mut clock) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => ready.as_mut().poll(cx).map(Some),
            });
            let woken = woken.await;
            let is_time = woken.is_none();
            if let Some(Err(error)) = woken {
                return End::Failed(error);
            }
            loop {
                if self.is_stopped.get() {
                    return End::Closed;
                }
                match receiver.receive(BATCH, |bytes| self.take(bytes, take)) {
                    Ok(count) => {
                        read += u64::from(count);
                        self.rows.add(Metric::AfxdpFramesReceived, count.into());
                        if count < BATCH {
                            break;
                        }
                    }
                    Err(error) => return End::Failed(error),
                }
                yield_now().await;
            }
            if !is_time {
                continue;
            }
            if let Some(end) = self.look(receiver, published) {
                return end;
            }
            let refused = published.statistics.unwrap_or_default();
            let refused = refused.fill_ring_empty.saturating_add(refused.receive_ring_full);
            if starving.is_stalled(self.handle.now_ms(), read, refused) {
                return End::Stalled("no frame was read for a second, and the kernel had some");
            }
        }
    }

    /// Ready when it is time to look after what was sent.
    fn poll_look(&self, cx: &mut Context<'_>, clock: &mut Deadline) -> Poll<()> {
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            *task = Some(cx.waker().clone());
        }
        drop(task);
        if self.is_stopped.get() {
            return Poll::Ready(());
        }
        if !self.waiting.is_empty() {
            self.collect();
            if !self.waiting.is_empty() {
                self.handle.wake_later(cx, WAITING_TURNS);
            }
        }
        clock.poll_expired(cx).map(|_| clock.set_after(LOOK))
    }

    fn take(self: &Rc<Self>, bytes: &mut [u8], take: &Take) {
        let Some(Datagram { mut from, to, link, place }) = frame::parse(bytes) else {
            self.rows.add(Metric::AfxdpDropMalformed, 1);
            return;
        };
        let Some(datagram) = bytes.get_mut(place) else { return };
        if let SocketAddr::V6(from) = &mut from
            && from.ip().is_unicast_link_local()
        {
            // As the kernel names them.
            from.set_scope_id(self.facts.index);
        }
        take(datagram, from, to, &Hop { port: Rc::clone(self), link });
    }

    /// Looks after frames that are away, and publishes. `Some`: the port is of no more use.
    fn look(&self, receiver: &XdpReceiver, published: &mut Published) -> Option<End> {
        if let Some(error) = receiver.pending_error() {
            return Some(End::Failed(error));
        }
        // A driver may have found the fill ring empty just before it was filled, and say so just after.
        if let Err(error) = receiver.wake_if_asked() {
            return Some(End::Failed(error));
        }
        self.collect();
        let mut sender = self.sender.borrow_mut();
        let sender = sender.as_mut()?;
        let account = sender.account();
        published.statistics(receiver);
        published.account(receiver.account(), account);
        let now = self.handle.now_ms();
        if account.sending == 0 {
            self.moved_ms.set(now);
            return None;
        }
        // What was sent may wait for another push: the device was busy.
        if let Err(error) = self.push(sender) {
            return Some(End::Failed(error));
        }
        let is_stalled = Duration::from_millis(now.saturating_sub(self.moved_ms.get())) >= STALL;
        is_stalled.then_some(End::Stalled("no frame was sent for a second"))
    }

    fn has_room(&self) -> bool {
        let enough = |sender: &XdpSender| sender.room() as usize >= SEGMENTS_MAX;
        if self.sender.borrow().as_ref().is_none_or(enough) {
            return true;
        }
        self.collect();
        self.sender.borrow().as_ref().is_none_or(enough)
    }

    /// Takes back frames that were sent, and wakes as many as can go on.
    fn collect(&self) {
        let mut sender = self.sender.borrow_mut();
        let Some(sender) = sender.as_mut() else { return };
        match sender.reap() {
            Ok(0) => {}
            Ok(_) => self.moved_ms.set(self.handle.now_ms()),
            // The next look finds the same and closes the port.
            Err(error) => log::debug!("{}: {error}", self.queue),
        }
        self.waiting.call(sender.room() as usize / SEGMENTS_MAX);
    }

    fn send<'a>(
        &self,
        link: &Link,
        from: SocketAddr,
        to: SocketAddr,
        datagrams: impl Iterator<Item = &'a [u8]>,
    ) -> usize {
        let mut sender = self.sender.borrow_mut();
        let Some(sender) = sender.as_mut() else {
            self.rows.add(Metric::AfxdpDropNoFrame, datagrams.count() as u64);
            return 0;
        };
        if sender.room() == sender.frames() {
            self.moved_ms.set(self.handle.now_ms());
        }
        let mtu = self.facts.mtu;
        let (mut frames, mut bytes) = (0, 0);
        for datagram in datagrams {
            if sender.room() == 0 {
                self.rows.add(Metric::AfxdpDropNoFrame, 1);
                continue;
            }
            match sender.send(|room| frame::build(room, link, mtu, from, to, datagram)) {
                Ok(true) => (frames, bytes) = (frames + 1, bytes + datagram.len()),
                Ok(false) => self.rows.add(Metric::AfxdpDropTooLarge, 1),
                Err(error) => log::debug!("{}: {error}", self.queue),
            }
        }
        self.rows.add(Metric::AfxdpFramesSent, frames);
        if let Err(error) = self.push(sender) {
            // The next look finds the same and closes the port.
            log::debug!("{}: {error}", self.queue);
            self.wake();
        }
        bytes
    }

    fn push(&self, sender: &mut XdpSender) -> io::Result<()> {
        let kicks = sender.wake()?;
        self.rows.add(Metric::AfxdpKicks, kicks.into());
        Ok(())
    }
}

/// Whether what comes can still be read. A queue to which nobody sends looks the same as one that has broken, so only
/// frames count that the kernel had and found no room for: where the worker is merely slow, some are read all the same.
#[derive(Debug, Default)]
struct Starving {
    read: u64,
    refused: u64,
    /// When it was first seen since the last frame (milliseconds).
    since_ms: Option<u64>,
}

impl Starving {
    /// Takes the frames that were read so far, and those that the kernel has thrown away for want of room.
    fn is_stalled(&mut self, now_ms: u64, read: u64, refused: u64) -> bool {
        let (has_read, has_refused) = (read != self.read, refused != self.refused);
        (self.read, self.refused) = (read, refused);
        if has_read {
            self.since_ms = None;
        }
        if has_read || !has_refused {
            return false;
        }
        let since_ms = *self.since_ms.get_or_insert(now_ms);
        Duration::from_millis(now_ms.saturating_sub(since_ms)) >= STALL
    }
}

/// Closes a port when its task ends, however that was.
struct Closing<'a>(&'a Port);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        drop(self.0.sender.borrow_mut().take());
        self.0.rows.gauge_sub(Metric::AfxdpQueues, 1);
        self.0.waiting.call(usize::MAX);
    }
}

/// What of a port is in the metrics; its gauges are taken out of them when it is dropped.
struct Published {
    rows: WorkerRows,
    account: Account,
    statistics: Option<Statistics>,
}

impl Published {
    fn account(&mut self, receiving: Account, sending: Account) {
        let now = Account {
            free: sending.free,
            receiving: receiving.receiving,
            reading: 0,
            sending: sending.sending,
        };
        let before = std::mem::replace(&mut self.account, now);
        for (gauge, before, now) in [
            (Metric::AfxdpFramesFree, before.free, now.free),
            (Metric::AfxdpFramesReceiving, before.receiving, now.receiving),
            (Metric::AfxdpFramesSending, before.sending, now.sending),
        ] {
            self.rows.gauge_add(gauge, u64::from(now.saturating_sub(before)));
            self.rows.gauge_sub(gauge, u64::from(before.saturating_sub(now)));
        }
    }

    fn statistics(&mut self, receiver: &XdpReceiver) {
        let Ok(now) = receiver.statistics() else { return };
        let before = self.statistics.replace(now).unwrap_or_default();
        let since = |now: u64, before: u64| now.saturating_sub(before);
        self.rows.add(Metric::AfxdpDropKernel, since(now.receive_dropped, before.receive_dropped));
        self.rows.add(Metric::AfxdpDropRingFull, since(now.receive_ring_full, before.receive_ring_full));
        self.rows.add(Metric::AfxdpFillRingEmpty, since(now.fill_ring_empty, before.fill_ring_empty));
        self.rows.add(Metric::AfxdpDropInvalid, since(now.invalid, before.invalid));
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        self.account(Account::default(), Account::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_starves_when_the_kernel_throws_away_and_nothing_is_read() {
        let stall_ms = STALL.as_millis() as u64;
        let mut port = Starving::default();
        // Nobody sends.
        assert!((0..100).all(|nth| !port.is_stalled(nth * 100, 7, 3)));
        // The worker is slow.
        assert!((0..100).all(|nth| !port.is_stalled(10_000 + nth * 100, 8 + nth, 4 + nth)));
        // Nothing comes through.
        let first_ms = 30_000;
        assert!((0..10).all(|nth| !port.is_stalled(first_ms + nth * 100, 107, 104 + nth)));
        assert!(port.is_stalled(first_ms + stall_ms, 107, 120));
        // Nor did it when there are pauses; one frame, and it is well again.
        let mut port = Starving::default();
        assert!(!port.is_stalled(100, 0, 1));
        assert!(!port.is_stalled(100 + stall_ms, 0, 1));
        assert!(port.is_stalled(200 + stall_ms, 0, 2));
        assert!(!port.is_stalled(300 + stall_ms, 1, 3));
        assert!(!port.is_stalled(400 + stall_ms, 1, 4));
    }
}
