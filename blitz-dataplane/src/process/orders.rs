//! The mailbox of a worker's loop.
//!
//! Owns: orders between the helper thread and the loop, and the loop's answers. Does not own: who carries an
//! order out (the loop, [`super::worker::WorkerCode::run`]) or where orders come from (see
//! [`super::worker`]).
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::messages::{BankPlace, ConnectionRow, FromWorker, ListenerAddress};
use crate::segment::{WorkerRows, WorkerState};
use crate::sys::eventfd::EventFd;

/// Orders that may wait (count). The loop takes all of them at each turn, so a full mailbox means that it is
/// stuck; further orders are then refused and the supervisor learns of it.
pub const ORDERS_MAX: usize = 64;

/// A listening socket of this worker alone. It outlives the worker, with what waits in it: the supervisor keeps
/// a copy.
#[derive(Debug)]
pub struct BoundListener {
    /// Its address as configured and as bound.
    pub address: ListenerAddress,
    /// Bound, blocking, close-on-exec; for TCP listening, too, with TCP_NODELAY.
    pub fd: OwnedFd,
}

/// What the loop is to do.
#[derive(Debug)]
pub enum Order<S> {
    /// Use this snapshot from the next event on, then call [`Orders::applied`].
    Snapshot {
        /// Its generation.
        generation: u64,
        /// The compiled configuration.
        snapshot: Box<S>,
    },
    /// Accept from new listeners; accept what is queued on removed ones and close them. Follows the snapshot
    /// that knows them.
    Listeners {
        /// New ones.
        added: Vec<BoundListener>,
        /// Those to be closed.
        removed: Vec<BankPlace>,
    },
    /// Accept what is queued, close the listeners, end each connection after its exchange, and return `Ok`
    /// from the loop when the last has ended or the deadline has passed.
    Drain {
        /// When the rest is cut.
        deadline: Instant,
    },
    /// Return `Ok` from the loop at once.
    Stop,
    /// Tell about the connections.
    ListConnections(ConnectionsReply),
    /// Record what a connection does.
    Record {
        /// Its number.
        connection: u64,
        /// Where to.
        pipe: OwnedFd,
    },
}

/// Where the loop puts the list of its connections.
#[derive(Debug)]
pub struct ConnectionsReply {
    request: u64,
    rows_max: usize,
    outbox: Sender<FromWorker>,
}

impl ConnectionsReply {
    pub(super) fn new(request: u64, rows_max: u32, outbox: Sender<FromWorker>) -> Self {
        Self { request, rows_max: rows_max as usize, outbox }
    }

    /// Most rows that are wanted.
    pub fn rows_max(&self) -> usize {
        self.rows_max
    }

    /// Sends the list; rows beyond [`Self::rows_max`] are cut. Does not block.
    pub fn send(self, mut rows: Vec<ConnectionRow>) {
        rows.truncate(self.rows_max);
        // The outbox ends with the worker; then nobody asks any more.
        let _ended = self.outbox.send(FromWorker::Connections { request: self.request, rows });
    }
}

/// The loop's end of the mailbox.
#[derive(Debug)]
pub struct Orders<S> {
    mailbox: Arc<Mailbox<S>>,
    rows: WorkerRows,
    outbox: Sender<FromWorker>,
}

/// The helper thread's end of the mailbox.
#[derive(Debug)]
pub(super) struct Postbox<S> {
    mailbox: Arc<Mailbox<S>>,
}

#[derive(Debug)]
struct Mailbox<S> {
    orders: Mutex<VecDeque<Order<S>>>,
    event: EventFd,
}

/// The mailbox holds [`ORDERS_MAX`] orders that the loop has not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MailboxFull;

/// A mailbox with its two ends.
///
/// # Errors
/// No descriptor left for the eventfd.
pub(super) fn mailbox<S>(
    rows: WorkerRows,
    outbox: Sender<FromWorker>,
) -> io::Result<(Orders<S>, Postbox<S>)> {
    let mailbox = Arc::new(Mailbox { orders: Mutex::new(VecDeque::new()), event: EventFd::new()? });
    Ok((Orders { mailbox: Arc::clone(&mailbox), rows, outbox }, Postbox { mailbox }))
}

impl<S> Orders<S> {
    /// Takes all waiting orders, oldest first, and makes the descriptor unreadable. Never blocks on anything
    /// but the push of one order by the helper thread.
    pub fn take(&self) -> VecDeque<Order<S>> {
        self.mailbox.event.take();
        std::mem::take(&mut *self.mailbox.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says that the loop uses the snapshot of `generation` now: in the segment, for readers, and to the
    /// supervisor.
    pub fn applied(&self, generation: u64) {
        let status = self.rows.status();
        status.snapshot_generation.store(generation, Ordering::Release);
        if status.state() != WorkerState::Draining {
            status.set_state(WorkerState::Serving);
        }
        let _ended = self.outbox.send(FromWorker::SnapshotApplied { generation });
    }
}

impl<S> AsFd for Orders<S> {
    /// Readable while orders wait. To be polled by the loop.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mailbox.event.as_fd()
    }
}

impl<S> Postbox<S> {
    /// Puts orders in, all or none. A snapshot replaces one that still waits: only the newest matters.
    pub(super) fn post(&self, orders: Vec<Order<S>>) -> Result<(), MailboxFull> {
        let mut waiting = self.mailbox.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() + orders.len() > ORDERS_MAX {
            return Err(MailboxFull);
        }
        for order in orders {
            let is_snapshot = |order: &Order<S>| matches!(order, Order::Snapshot { .. });
            match waiting.iter_mut().find(|old| is_snapshot(old)) {
                Some(old) if is_snapshot(&order) => *old = order,
                _ => waiting.push_back(order),
            }
        }
        drop(waiting);
        self.mailbox.event.signal();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::mpsc;

    use super::*;
    use crate::segment::{Segment, Shape};

    #[test]
    fn snapshots_replace_each_other_and_the_mailbox_is_bounded() {
        let segment = Segment::create(Shape { workers: 1, endpoints: 1 }).expect("segment");
        let (outbox, inbox) = mpsc::channel();
        let rows = segment.worker(0).expect("rows");
        let (orders, postbox) = mailbox::<u32>(rows, outbox.clone()).expect("mailbox");
        let snapshot = |generation| Order::Snapshot { generation, snapshot: Box::new(generation as u32) };
        postbox.post(vec![snapshot(1)]).expect("room");
        postbox.post(vec![snapshot(2), Order::Stop]).expect("room");
        let taken = orders.take();
        assert!(matches!(&taken[0], Order::Snapshot { generation: 2, snapshot } if **snapshot == 2));
        assert!(matches!(taken[1], Order::Stop));
        assert_eq!(taken.len(), 2);
        assert!(!orders.mailbox.event.take(), "taking the orders also takes the signal");
        for _ in 0..ORDERS_MAX {
            postbox.post(vec![Order::Stop]).expect("room");
        }
        assert_eq!(postbox.post(vec![Order::Stop]), Err(MailboxFull));
        orders.applied(2);
        assert!(matches!(inbox.recv(), Ok(FromWorker::SnapshotApplied { generation: 2 })));
        assert_eq!(segment.status(0).map(WorkerStatusView::of), Some((2, WorkerState::Serving)));
        let row = ConnectionRow {
            id: 1,
            peer: SocketAddr::from(([127, 0, 0, 1], 1)),
            local: SocketAddr::from(([127, 0, 0, 1], 2)),
            state: "idle".to_owned(),
            requests: 0,
            age_ms: 0,
        };
        ConnectionsReply::new(7, 2, outbox).send(vec![row; 5]);
        assert!(matches!(inbox.recv(), Ok(FromWorker::Connections { request: 7, rows }) if rows.len() == 2));
    }

    struct WorkerStatusView;

    impl WorkerStatusView {
        fn of(status: &crate::segment::WorkerStatus) -> (u64, WorkerState) {
            (status.snapshot_generation.load(Ordering::Relaxed), status.state())
        }
    }
}
