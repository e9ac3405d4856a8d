//! The thread that has queues bound: it asks `blitz-ctl` for sockets, binds them, and has them put into the stage.
//!
//! Attach, bind, map, in this order: what a stage redirects to a socket that is not bound is lost. A socket that is
//! bound already is put into the stage again when the stage is a new one. As long as nothing can be bound all datagrams
//! come by UDP, so nothing here is fatal, and everything is tried again.
//!
//! Owns: the conversation about queues, which of them are this worker's, who is told why there are none. Does not own:
//! the loop's side of a queue ([`super::port`]).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blitz_config::model::{AfXdp, Copying as Configured};
use blitz_ctl_protocol::message::{QueueSeat, Queues};
use blitz_ctl_protocol::{Client, Error};
use blitz_ebpf_common::layout::QUEUES_MAX;

use super::port::{LinkFacts, Queue};
use crate::http3::keys::GENERATION;
use crate::logging;
use crate::sys::eventfd::EventFd;
use crate::sys::xdp::{Copying, Shape, XdpSocket};
use crate::sys::{privilege, rlimit};

/// Between two looks at the stages, and between two tries to bind a queue that somebody else still has: doubled each
/// time, from the first to the last.
const LOOK: Duration = Duration::from_millis(500);
const BUSY: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(64));

/// How long the daemon may take for one step.
const STEP: Duration = Duration::from_millis(500);

/// Bytes of a link header, at most.
const LINK_BYTES: u32 = 22;

/// CAP_IPC_LOCK: whoever has it may lock as much memory as there is (capabilities(7)).
const CAP_IPC_LOCK: u64 = 1 << 14;

/// What is to be bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) interfaces: Vec<String>,
    pub(super) settings: AfXdp,
}

/// Whose queues they are.
#[derive(Clone, Debug)]
pub(super) struct Whose {
    pub(super) worker: u32,
    pub(super) workers: u32,
    /// The control socket of `blitz-ctl`.
    pub(super) ctl_socket: PathBuf,
}

/// A queue that has just been bound.
pub(super) struct Bound {
    /// That of the order to bind it.
    pub(super) order: u64,
    pub(super) queue: Queue,
    pub(super) facts: LinkFacts,
    pub(super) socket: XdpSocket,
}

/// The loop's end. Dropping it ends the thread, which then holds no socket any more.
pub(super) struct Binder {
    orders: Sender<Order>,
    found: Arc<Found>,
}

enum Order {
    Follow(u64, Option<Wanted>),
    Lost(Queue),
}

/// Sockets on their way to the loop: each queue at most once.
struct Found {
    bound: Mutex<Vec<Bound>>,
    event: EventFd,
}

impl Binder {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread or descriptor left.
    pub(super) fn start(whose: Whose) -> io::Result<Self> {
        let found = Arc::new(Found { bound: Mutex::default(), event: EventFd::new()? });
        let (orders, inbox) = channel();
        let name = format!("w{}-afxdp", whose.worker);
        let talk = Conversation::new(whose, Arc::clone(&found));
        std::thread::Builder::new().name(name).spawn(move || talk.hold(&inbox))?;
        Ok(Self { orders, found })
    }

    /// Says what is to be bound from now on; what was bound for an order before is given up.
    pub(super) fn follow(&self, order: u64, wanted: Option<Wanted>) {
        // The thread ends with this value only.
        let _ended = self.orders.send(Order::Follow(order, wanted));
    }

    /// Says that a queue's port is closed: it is to be bound again.
    pub(super) fn lost(&self, queue: Queue) {
        let _ended = self.orders.send(Order::Lost(queue));
    }

    /// Takes the queues that were bound since the last call.
    pub(super) fn take(&self) -> Vec<Bound> {
        self.found.event.take();
        std::mem::take(&mut *self.found.bound.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsFd for Binder {
    /// Readable when [`Self::take`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.found.event.as_fd()
    }
}

/// A socket that the loop uses, as the thread remembers it.
struct Held {
    copy: OwnedFd,
    /// This stage, or one before, has it.
    is_seated: bool,
}

struct Conversation {
    whose: Whose,
    found: Arc<Found>,
    /// While it looks: there may be more workers than the daemon takes connections.
    client: Option<Client>,
    order: u64,
    wanted: Option<Wanted>,
    held: HashMap<Queue, Held>,
    /// Sockets with memory that wait for their queue.
    ready: HashMap<Queue, XdpSocket>,
    /// Receive queues by interface (count).
    queues: HashMap<String, u32>,
    /// What the log was last told about each interface.
    told: HashMap<String, String>,
    /// How long to wait for a queue that is taken.
    busy: Duration,
}

impl Conversation {
    fn new(whose: Whose, found: Arc<Found>) -> Self {
        Self {
            whose,
            found,
            client: None,
            order: 0,
            wanted: None,
            held: HashMap::new(),
            ready: HashMap::new(),
            queues: HashMap::new(),
            told: HashMap::new(),
            busy: BUSY.0,
        }
    }

    fn hold(mut self, inbox: &Receiver<Order>) {
        logging::name_thread(logging::Who::Worker(self.whose.worker));
        let mut wait = LOOK;
        loop {
            match inbox.recv_timeout(wait) {
                Ok(Order::Follow(order, wanted)) => self.follow(order, wanted),
                Ok(Order::Lost(queue)) => drop(self.held.remove(&queue)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            wait = self.look();
        }
    }

    fn follow(&mut self, order: u64, wanted: Option<Wanted>) {
        (self.order, self.wanted) = (order, wanted);
        self.held.clear();
        self.ready.clear();
        self.queues.clear();
        self.told.clear();
    }

    /// Binds what can be bound; when to look again.
    fn look(&mut self) -> Duration {
        let Some(wanted) = self.wanted.clone() else { return LOOK };
        let mut is_busy = false;
        for interface in &wanted.interfaces {
            match self.look_at(interface, wanted.settings) {
                Ok(busy) => is_busy |= busy,
                Err(sentence) => self.tell(interface, log::Level::Warn, sentence),
            }
        }
        self.client = None;
        if !is_busy {
            self.busy = BUSY.0;
            return LOOK;
        }
        let wait = self.busy;
        self.busy = (wait * 2).min(BUSY.1);
        wait
    }

    /// Binds the queues of one interface; whether one is still somebody else's.
    fn look_at(&mut self, interface: &str, settings: AfXdp) -> Result<bool, String> {
        let facts = self.ask(|client| client.queues(interface))?;
        let Some(seats) = &facts.seats else {
            return Err("it has no stage; `blitz-ctl run` attaches it, or `blitz-ctl attach`".to_owned());
        };
        let shape = shape(&settings, facts.mtu);
        self.check_memory(interface, &facts, shape)?;
        let Whose { worker, workers, .. } = self.whose;
        let (mut bound, mut is_busy) = (Vec::new(), false);
        for number in (worker..facts.queues.min(QUEUES_MAX)).step_by(workers.max(1) as usize) {
            let queue = Queue { interface: interface.to_owned(), number };
            let seat = QueueSeat { queue: number, generation: GENERATION, worker };
            if !self.held.contains_key(&queue) {
                if !self.bind(&queue, &facts, shape, settings.copying)? {
                    is_busy = true;
                    continue;
                }
                bound.push(number.to_string());
            }
            let held = self.held.get(&queue).filter(|held| !held.is_seated || !seats.contains(&seat));
            if let Some(held) = held {
                let copy = held.copy.try_clone().map_err(|error| format!("no descriptor left: {error}"))?;
                self.ask(|client| client.seat_xdp(interface, seat, &copy))?;
                if let Some(held) = self.held.get_mut(&queue) {
                    held.is_seated = true;
                }
            }
        }
        if !bound.is_empty() {
            self.told.remove(interface);
            log::info!("AF_XDP: {interface}: receive queues {} are bound", bound.join(", "));
        }
        Ok(is_busy)
    }

    /// Binds a queue and hands the socket to the loop. `false`: somebody else still has it.
    fn bind(
        &mut self,
        queue: &Queue,
        facts: &Queues,
        shape: Shape,
        copying: Configured,
    ) -> Result<bool, String> {
        let socket = match self.ready.remove(queue) {
            Some(socket) => socket,
            None => {
                let fd = self.ask(Client::open_xdp)?;
                XdpSocket::register(fd, shape).map_err(|error| registering(queue, shape, &error))?
            }
        };
        let copying = match copying {
            Configured::Always => Copying::Always,
            Configured::Never => Copying::Never,
            Configured::IfNeeded => Copying::IfNeeded,
        };
        match socket.bind(facts.index, queue.number, copying) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                self.ready.insert(queue.clone(), socket);
                return Ok(false);
            }
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                return Err(format!(
                    "{queue} cannot do without copying: {error}; xdp.afxdp.copying = \"if_needed\" lets it copy"
                ));
            }
            Err(error) => return Err(format!("{queue} cannot be bound: {error}")),
        }
        let copy = socket.as_fd().try_clone_to_owned();
        let copy = copy.map_err(|error| format!("no descriptor left: {error}"))?;
        self.held.insert(queue.clone(), Held { copy, is_seated: false });
        let facts = LinkFacts { index: facts.index, mtu: facts.mtu as usize };
        let bound = Bound { order: self.order, queue: queue.clone(), facts, socket };
        self.found.bound.lock().unwrap_or_else(PoisonError::into_inner).push(bound);
        self.found.event.signal();
        Ok(true)
    }

    /// Asks the daemon, over a connection that is made when there is none.
    fn ask<T>(&mut self, question: impl FnOnce(&mut Client) -> Result<T, Error>) -> Result<T, String> {
        let path = self.whose.ctl_socket.display();
        let absent = |error: Error| format!("blitz-ctl does not answer on {path}: {error}");
        let client = match &mut self.client {
            Some(client) => client,
            None => {
                let name = format!("blitz worker {}", self.whose.worker);
                self.client.insert(Client::connect(&self.whose.ctl_socket, &name, STEP).map_err(absent)?)
            }
        };
        let answer = question(client);
        match answer {
            Ok(answer) => Ok(answer),
            Err(Error::Refused(sentence)) => Err(sentence),
            Err(error) => {
                let sentence = absent(error);
                self.client = None;
                Err(sentence)
            }
        }
    }

    /// What all workers together lock may not be more than one user may.
    fn check_memory(&mut self, interface: &str, facts: &Queues, shape: Shape) -> Result<(), String> {
        let Whose { worker, workers, .. } = self.whose;
        if self.queues.insert(interface.to_owned(), facts.queues) == Some(facts.queues) {
            return Ok(());
        }
        if worker == 0 && facts.queues < workers {
            log::warn!(
                "AF_XDP: {interface} has fewer receive queues ({}) than there are workers ({workers}): those from \
                 worker {} on get no new HTTP/3 connections of it; `ethtool -L`, or fewer workers with -w",
                facts.queues,
                facts.queues
            );
        }
        let all: u32 = self.queues.values().sum();
        let needed = shape.locked_bytes().saturating_mul(all.into());
        let may_lock_all =
            privilege::capabilities().is_ok_and(|(effective, _)| effective & CAP_IPC_LOCK != 0);
        match rlimit::locked_memory() {
            Ok(limit) if needed > limit && !may_lock_all => {
                self.queues.remove(interface);
                Err(format!(
                    "{all} receive queues with {} frames of {} bytes each are {} KiB of locked memory, and \
                     RLIMIT_MEMLOCK is {} KiB; raise LimitMEMLOCK= in the unit, or `ulimit -l`, or lower \
                     xdp.afxdp.frames_per_queue",
                    shape.frames,
                    shape.frame_bytes,
                    needed / 1024,
                    limit / 1024
                ))
            }
            _ => Ok(()),
        }
    }

    /// Says something to the log, once.
    fn tell(&mut self, interface: &str, level: log::Level, sentence: String) {
        if self.told.get(interface) != Some(&sentence) {
            // All workers say the same; one is enough for the operator.
            let level = if self.whose.worker == 0 { level } else { log::Level::Debug };
            log::log!(level, "AF_XDP: {interface}: {sentence}; until then HTTP/3 comes by the kernel's UDP");
            self.told.insert(interface.to_owned(), sentence);
        }
    }
}

/// Frames that hold a packet of the link, where they can.
fn shape(settings: &AfXdp, mtu: u32) -> Shape {
    let small = Shape { frames: settings.frames_per_queue, frame_bytes: 2048 };
    if mtu.saturating_add(LINK_BYTES) <= small.receive_bytes_max() {
        small
    } else {
        Shape { frame_bytes: 4096, ..small }
    }
}

fn registering(queue: &Queue, shape: Shape, error: &io::Error) -> String {
    let remedy = match error.raw_os_error() {
        Some(libc::ENOBUFS) => {
            "; RLIMIT_MEMLOCK does not allow it beside what else this user has locked: raise LimitMEMLOCK= in the \
             unit, or `ulimit -l`, or lower xdp.afxdp.frames_per_queue"
        }
        _ => "",
    };
    format!("{queue}: {} KiB cannot be locked: {error}{remedy}", shape.locked_bytes() / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_hold_what_the_link_carries() {
        let settings = AfXdp { frames_per_queue: 256, copying: Configured::Always };
        assert_eq!(shape(&settings, 1500), Shape { frames: 256, frame_bytes: 2048 });
        assert_eq!(shape(&settings, 1770).frame_bytes, 2048);
        assert_eq!(shape(&settings, 1771).frame_bytes, 4096);
        assert_eq!(shape(&settings, 9000).frame_bytes, 4096);
    }

    #[test]
    fn without_a_daemon_the_reason_is_told_once_and_queues_come_when_it_does() {
        let folder = std::env::temp_dir().join("nowhere-at-all");
        let whose = Whose { worker: 0, workers: 1, ctl_socket: folder };
        let found = Arc::new(Found { bound: Mutex::default(), event: EventFd::new().expect("a descriptor") });
        let mut talk = Conversation::new(whose, found);
        assert_eq!(talk.look(), LOOK);
        assert!(talk.told.is_empty(), "nothing is wanted");
        let settings = AfXdp { frames_per_queue: 256, copying: Configured::Always };
        talk.follow(1, Some(Wanted { interfaces: vec!["eth0".to_owned()], settings }));
        assert_eq!(talk.look(), LOOK);
        assert!(talk.told["eth0"].contains("blitz-ctl does not answer"), "{:?}", talk.told);
    }
}
