//! The simulated driver: a network in memory and virtual time.
//!
//! Each operation is *attempted* at a random moment after its start and again whenever something
//! changes for it; bytes move only at that moment, so a buffer is touched between start and
//! completion just as the kernel would. See [`crate::runtime::sim`] for the knobs.
//!
//! Owns: time, operations, streams. Does not own: datagrams ([`datagram`]).

mod datagram;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;
use std::rc::Rc;

use self::datagram::{Datagram, Mailbox};
use super::{Completion, DriverStats, Kind, Message, Token};
use crate::runtime::aggregate;
use crate::runtime::buf::Pool;
use crate::runtime::sim::{BLACK_HOLE_PORT, Profile, Rng, Tap, UNREACHABLE_PORT, World};
use crate::sys::net::RawAddress;

/// Connections that wait to be accepted (count); beyond it they are refused.
const BACKLOG_MAX: usize = 128;

pub(in crate::runtime) struct Sim {
    rng: Rng,
    profile: Profile,
    pool: Rc<Pool>,
    aggregates: Rc<Pool>,
    now_ns: u64,
    sockets: Vec<Option<Socket>>,
    listeners: HashMap<SocketAddr, usize>,
    /// Datagram sockets by the address that others know.
    mailboxes: HashMap<SocketAddr, usize>,
    /// Datagrams on their way, by number.
    under_way: HashMap<u64, Datagram>,
    tap: Option<Tap>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    done: Vec<Completion>,
    stats: DriverStats,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Try the operation of this kind again.
    Attempt { socket: usize, serial: u64, kind: u8 },
    /// The oldest segment under way to this socket arrives.
    Arrive { socket: usize, serial: u64 },
    /// The connection breaks.
    Reset { socket: usize, serial: u64 },
    /// A datagram comes to its address.
    Deliver { number: u64 },
}

struct Socket {
    /// Tells this tenant of the number from the one before.
    serial: u64,
    local: SocketAddr,
    remote: Option<SocketAddr>,
    operations: Vec<Operation>,
    /// Connections that wait to be accepted.
    backlog: VecDeque<usize>,
    listening: bool,
    peer: Option<(usize, u64)>,
    /// Segments under way to this socket; an empty one is the end of the stream.
    under_way: VecDeque<Vec<u8>>,
    last_arrival_ns: u64,
    arrived: VecDeque<u8>,
    ended: bool,
    reset: bool,
    shut: bool,
    reset_on_close: bool,
    /// Of a datagram socket.
    mailbox: Option<Box<Mailbox>>,
    /// The datagram socket that this is another descriptor of.
    lane_of: Option<(usize, u64)>,
}

#[derive(Clone, Copy)]
struct Operation {
    token: Token,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Accept,
    Pooled,
    Into(*mut u8, usize),
    Bytes(*const u8, usize),
    Message(*const Message),
    Datagrams,
    Connect(SocketAddr),
    Shutdown,
    /// Never completes by itself.
    Idle,
}

/// What an attempt came to.
enum Attempt {
    NotYet,
    Done(i32),
    Goes(i32, Option<u16>),
    Ends(i32, Option<u16>),
}

impl Sim {
    pub(super) fn new(world: &World) -> Self {
        let profile = world.profile;
        let pool = Pool::listed(profile.pool_slots, profile.pool_slot_bytes)
            .expect("a simulated pool is a few hundred kilobytes");
        let aggregates =
            Pool::listed(aggregate::SLOTS, aggregate::SLOT_BYTES).expect("so is the other, in use");
        Self {
            rng: world.rng.clone(),
            profile,
            pool,
            aggregates,
            now_ns: 1_000_000_000,
            sockets: Vec::new(),
            listeners: HashMap::new(),
            mailboxes: HashMap::new(),
            under_way: HashMap::new(),
            tap: world.tap.clone(),
            events: BinaryHeap::new(),
            sequence: 0,
            done: Vec::new(),
            stats: DriverStats::default(),
        }
    }

    pub(super) fn shuffle_seed(&self) -> u64 {
        self.rng.next() | 1
    }

    pub(super) fn pool(&self) -> &Rc<Pool> {
        &self.pool
    }

    pub(super) fn aggregates(&self) -> &Rc<Pool> {
        &self.aggregates
    }

    pub(super) fn stats(&self) -> DriverStats {
        self.stats
    }

    pub(super) fn clock_ns(&self) -> u64 {
        self.now_ns
    }

    pub(super) fn address(&self, fd: RawFd, remote: bool) -> io::Result<SocketAddr> {
        let socket = self.socket(fd).ok_or(io::ErrorKind::NotConnected)?;
        if remote {
            socket.remote.ok_or_else(|| io::ErrorKind::NotConnected.into())
        } else {
            Ok(socket.local)
        }
    }

    fn socket(&self, fd: RawFd) -> Option<&Socket> {
        self.sockets.get(usize::try_from(fd).ok()?)?.as_ref()
    }

    fn socket_mut(&mut self, index: usize) -> Option<&mut Socket> {
        self.sockets.get_mut(index)?.as_mut()
    }

    fn add(&mut self, local: SocketAddr, remote: Option<SocketAddr>) -> usize {
        self.sequence += 1;
        let socket = Socket {
            serial: self.sequence,
            local,
            remote,
            operations: Vec::new(),
            backlog: VecDeque::new(),
            listening: false,
            peer: None,
            under_way: VecDeque::new(),
            last_arrival_ns: 0,
            arrived: VecDeque::new(),
            ended: false,
            reset: false,
            shut: false,
            reset_on_close: false,
            mailbox: None,
            lane_of: None,
        };
        match self.sockets.iter().position(Option::is_none) {
            Some(free) => {
                self.sockets[free] = Some(socket);
                free
            }
            None => {
                self.sockets.push(Some(socket));
                self.sockets.len() - 1
            }
        }
    }

    pub(super) fn stream_socket(&mut self, _address: SocketAddr) -> io::Result<RawFd> {
        let port = 10_000 + self.rng.below(50_000) as u16;
        let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), port);
        Ok(self.add(local, None) as RawFd)
    }

    pub(super) fn listen(&mut self, address: SocketAddr) -> io::Result<RawFd> {
        if self.listeners.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let index = self.add(address, None);
        if let Some(socket) = self.socket_mut(index) {
            socket.listening = true;
        }
        self.listeners.insert(address, index);
        Ok(index as RawFd)
    }

    pub(super) fn reset_on_close(&mut self, fd: RawFd) {
        if let Some(socket) = usize::try_from(fd).ok().and_then(|index| self.socket_mut(index)) {
            socket.reset_on_close = true;
        }
    }

    // ---- Operations ----------------------------------------------------------------------------

    fn start(&mut self, fd: RawFd, token: Token, what: What) {
        let index = usize::try_from(fd).unwrap_or(usize::MAX);
        match self.socket_mut(index) {
            Some(socket) => {
                socket.operations.push(Operation { token, what });
                self.attempt_soon(index, token.kind);
            }
            None => self.done.push(Completion { token, result: -libc::EBADF, slot: None, more: false }),
        }
    }

    fn delay_ns(&self) -> u64 {
        self.rng.below(self.profile.delay_us_max + 1) * 1000
    }

    fn schedule(&mut self, at_ns: u64, event: Event) {
        // The random middle part shuffles events of the same moment.
        let tie = self.rng.next();
        self.events.push(Reverse((at_ns, tie, event)));
    }

    fn attempt_soon(&mut self, index: usize, kind: Kind) {
        let Some(serial) = self.socket_mut(index).map(|socket| socket.serial) else {
            return;
        };
        // Completions come sooner than packets: a tenth of the network's delay.
        let at_ns = self.now_ns + self.delay_ns() / 10;
        self.schedule(at_ns, Event::Attempt { socket: index, serial, kind: kind as u8 });
    }

    fn changed(&mut self, index: usize) {
        for kind in [Kind::Receive, Kind::Send, Kind::Accept] {
            self.attempt_soon(index, kind);
        }
    }

    pub(super) fn accept(&mut self, fd: RawFd, token: Token) {
        self.start(fd, token, What::Accept);
    }

    pub(super) fn receive_pooled(&mut self, fd: RawFd, token: Token) {
        self.start(fd, token, What::Pooled);
    }

    /// # Safety
    /// As [`super::Driver::receive_into`].
    pub(super) unsafe fn receive_into(&mut self, fd: RawFd, token: Token, memory: *mut u8, len: usize) {
        self.start(fd, token, What::Into(memory, len));
    }

    /// # Safety
    /// As [`super::Driver::send`].
    pub(super) unsafe fn send(&mut self, fd: RawFd, token: Token, memory: *const u8, len: usize) {
        self.start(fd, token, What::Bytes(memory, len));
    }

    /// # Safety
    /// As [`super::Driver::send_message`].
    pub(super) unsafe fn send_message(&mut self, fd: RawFd, token: Token, message: *const Message) {
        self.start(fd, token, What::Message(message));
    }

    /// # Safety
    /// As [`super::Driver::receive_datagrams`].
    pub(super) unsafe fn receive_datagrams(
        &mut self,
        fd: RawFd,
        token: Token,
        _template: *const libc::msghdr,
    ) {
        self.start(fd, token, What::Datagrams);
    }

    /// # Safety
    /// As [`super::Driver::connect`].
    pub(super) unsafe fn connect(&mut self, fd: RawFd, token: Token, address: *const RawAddress) {
        // SAFETY: `address` points to a live RawAddress, as the caller promises.
        let address = unsafe { &*address }.to_socket_addr();
        match address {
            Some(address) => self.start(fd, token, What::Connect(address)),
            None => self.done.push(Completion { token, result: -libc::EINVAL, slot: None, more: false }),
        }
    }

    pub(super) fn shutdown(&mut self, fd: RawFd, token: Token) {
        self.start(fd, token, What::Shutdown);
    }

    pub(super) fn poll_readable(&mut self, fd: RawFd, token: Token) {
        self.start(fd, token, What::Idle);
    }

    pub(super) fn cancel(&mut self, fd: RawFd, target: Token, token: Token) {
        let index = usize::try_from(fd).unwrap_or(usize::MAX);
        let mut result = -libc::ENOENT;
        // As in the kernel, a cancel may come too late; then the operation just completes.
        if let Some(socket) = self.socket_mut(index)
            && let Some(position) = socket.operations.iter().position(|operation| operation.token == target)
        {
            socket.operations.swap_remove(position);
            result = 0;
            self.done.push(Completion { token: target, result: -libc::ECANCELED, slot: None, more: false });
        }
        self.done.push(Completion { token, result, slot: None, more: false });
    }

    pub(super) fn close(&mut self, fd: RawFd) {
        let index = usize::try_from(fd).unwrap_or(usize::MAX);
        let Some(socket) = self.sockets.get_mut(index).and_then(Option::take) else {
            return;
        };
        assert!(socket.operations.is_empty(), "a socket was closed with an operation in flight");
        if socket.listening {
            self.listeners.remove(&socket.local);
            for waiting in socket.backlog {
                self.close(waiting as RawFd);
            }
        }
        if let Some(mailbox) = socket.mailbox {
            self.mailboxes.remove(&mailbox.seen_as);
        }
        if let Some(peer) = socket.peer {
            // Unread bytes at the close make it a reset, as in TCP.
            let abrupt = socket.reset || socket.reset_on_close || !socket.arrived.is_empty();
            if abrupt {
                self.reset(peer);
            } else if !socket.shut {
                self.transmit(peer, Vec::new());
            }
        }
    }

    fn peer_of(&self, peer: (usize, u64)) -> Option<usize> {
        let (index, serial) = peer;
        self.sockets.get(index)?.as_ref().filter(|socket| socket.serial == serial).map(|_| index)
    }

    fn reset(&mut self, peer: (usize, u64)) {
        let Some(index) = self.peer_of(peer) else {
            return;
        };
        if let Some(socket) = self.socket_mut(index) {
            socket.reset = true;
            socket.arrived.clear();
            socket.under_way.clear();
        }
        self.changed(index);
    }

    /// Sends a segment on its way to `peer`; an empty one ends the stream.
    fn transmit(&mut self, peer: (usize, u64), bytes: Vec<u8>) {
        let Some(index) = self.peer_of(peer) else {
            return;
        };
        let arrival = self.now_ns + self.delay_ns();
        let Some(socket) = self.socket_mut(index) else {
            return;
        };
        let arrival = arrival.max(socket.last_arrival_ns + 1);
        socket.last_arrival_ns = arrival;
        socket.under_way.push_back(bytes);
        let serial = socket.serial;
        self.schedule(arrival, Event::Arrive { socket: index, serial });
    }

    // ---- Events --------------------------------------------------------------------------------

    fn run(&mut self, event: Event) {
        let (index, serial) = match event {
            Event::Attempt { socket, serial, .. }
            | Event::Arrive { socket, serial }
            | Event::Reset { socket, serial } => (socket, serial),
            Event::Deliver { number } => return self.deliver(number),
        };
        let Some(socket) = self.socket_mut(index).filter(|socket| socket.serial == serial) else {
            return;
        };
        match event {
            Event::Arrive { .. } => {
                if let Some(segment) = socket.under_way.pop_front() {
                    if segment.is_empty() {
                        socket.ended = true;
                    }
                    socket.arrived.extend(segment);
                    self.attempt_soon(index, Kind::Receive);
                }
            }
            Event::Reset { .. } => {
                let peer = socket.peer;
                self.reset((index, serial));
                if let Some(peer) = peer {
                    self.reset(peer);
                }
            }
            Event::Attempt { kind, .. } => {
                let position =
                    socket.operations.iter().position(|operation| operation.token.kind as u8 == kind);
                if let Some(position) = position {
                    let operation = socket.operations[position];
                    self.attempt(index, operation);
                }
            }
            Event::Deliver { .. } => {}
        }
    }

    fn attempt(&mut self, index: usize, operation: Operation) {
        let outcome = match operation.what {
            What::Accept => self.try_accept(index),
            What::Pooled => self.try_receive_pooled(index),
            What::Into(memory, len) => self.try_receive(index, len, |bytes| {
                // SAFETY: the starter vouched for `len` bytes at `memory`, and `bytes` is no longer.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory, bytes.len()) };
            }),
            What::Bytes(memory, len) => {
                // SAFETY: the starter vouched for the memory until the completion, which is not out yet.
                let bytes = unsafe { std::slice::from_raw_parts(memory, len) };
                self.try_send(index, bytes)
            }
            What::Message(message) => {
                // SAFETY: the starter vouched for the message until the completion, which is not out yet.
                let message = unsafe { &*message };
                let mut bytes = Vec::new();
                for piece in message.pieces.iter().take(message.header.msg_iovlen) {
                    // SAFETY: as for the message: its pieces name live memory.
                    bytes.extend_from_slice(unsafe {
                        std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len)
                    });
                }
                match operation.token.kind {
                    Kind::SendDatagram => self.try_send_datagrams(index, message, &bytes),
                    _ => self.try_send(index, &bytes),
                }
            }
            What::Datagrams => self.try_receive_datagrams(index),
            What::Connect(address) => self.try_connect(index, address),
            What::Shutdown => self.try_shutdown(index),
            What::Idle => Attempt::NotYet,
        };
        let early_end = self.profile.multishot_end_per_mille;
        let (result, slot, more) = match outcome {
            Attempt::NotYet => return,
            Attempt::Done(result) => (result, None, false),
            Attempt::Goes(result, slot) => (result, slot, !self.rng.chance(early_end)),
            Attempt::Ends(result, slot) => (result, slot, false),
        };
        if more {
            self.attempt_soon(index, operation.token.kind);
        } else if let Some(socket) = self.socket_mut(index) {
            socket.operations.retain(|other| other.token != operation.token);
        }
        self.done.push(Completion { token: operation.token, result, slot, more });
    }

    fn try_accept(&mut self, index: usize) -> Attempt {
        match self.socket_mut(index).and_then(|socket| socket.backlog.pop_front()) {
            Some(accepted) => Attempt::Goes(accepted as i32, None),
            None => Attempt::NotYet,
        }
    }

    fn try_connect(&mut self, index: usize, address: SocketAddr) -> Attempt {
        match address.port() {
            BLACK_HOLE_PORT => return Attempt::NotYet,
            UNREACHABLE_PORT => return Attempt::Done(-libc::EHOSTUNREACH),
            _ => {}
        }
        let Some(&listener) = self.listeners.get(&address) else {
            return Attempt::Done(-libc::ECONNREFUSED);
        };
        if self.sockets[listener].as_ref().is_none_or(|socket| socket.backlog.len() >= BACKLOG_MAX) {
            return Attempt::Done(-libc::ECONNREFUSED);
        }
        let Some((local, serial)) = self.socket_mut(index).map(|socket| (socket.local, socket.serial)) else {
            return Attempt::NotYet;
        };
        let accepted = self.add(address, Some(local));
        let accepted_serial = self.sequence;
        if let Some(socket) = self.socket_mut(accepted) {
            socket.peer = Some((index, serial));
        }
        if let Some(socket) = self.socket_mut(index) {
            socket.remote = Some(address);
            socket.peer = Some((accepted, accepted_serial));
        }
        if let Some(socket) = self.socket_mut(listener) {
            socket.backlog.push_back(accepted);
        }
        self.attempt_soon(listener, Kind::Accept);
        if self.rng.chance(self.profile.reset_per_mille) {
            let at_ns = self.now_ns + self.rng.below(1_000_000_000);
            self.schedule(at_ns, Event::Reset { socket: index, serial });
        }
        Attempt::Done(0)
    }

    fn try_shutdown(&mut self, index: usize) -> Attempt {
        let Some(socket) = self.socket_mut(index) else {
            return Attempt::NotYet;
        };
        let first = !std::mem::replace(&mut socket.shut, true);
        match socket.peer {
            Some(peer) if first && !socket.reset => self.transmit(peer, Vec::new()),
            _ => {}
        }
        Attempt::Done(0)
    }

    fn try_receive_pooled(&mut self, index: usize) -> Attempt {
        let nothing_yet = self
            .socket_mut(index)
            .is_none_or(|socket| socket.arrived.is_empty() && !socket.ended && !socket.reset);
        if nothing_yet {
            return Attempt::NotYet;
        }
        let pool = Rc::clone(&self.pool);
        let Some(slot) = pool.take_slot() else {
            return Attempt::Ends(-libc::ENOBUFS, None);
        };
        let memory = pool.slot_ptr(slot);
        let outcome = self.try_receive(index, pool.slot_bytes() as usize, |bytes| {
            // SAFETY: the slot was free and is ours; `bytes` is at most a slot long.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory, bytes.len()) };
        });
        match outcome {
            Attempt::Done(result) if result > 0 => Attempt::Goes(result, Some(slot)),
            other => {
                pool.give_back(slot);
                other
            }
        }
    }

    fn try_receive(&mut self, index: usize, room: usize, put: impl FnOnce(&[u8])) -> Attempt {
        let short_io = self.profile.short_io;
        let rng = self.rng.clone();
        let Some(socket) = self.socket_mut(index) else {
            return Attempt::NotYet;
        };
        if socket.reset {
            return Attempt::Done(-libc::ECONNRESET);
        }
        if socket.arrived.is_empty() {
            return if socket.ended { Attempt::Done(0) } else { Attempt::NotYet };
        }
        let most = socket.arrived.len().min(room);
        let count = if short_io { 1 + rng.below(most as u64) as usize } else { most };
        let bytes: Vec<u8> = socket.arrived.drain(..count).collect();
        put(&bytes);
        let peer = socket.peer;
        // The window has opened.
        if let Some(peer) = peer.and_then(|peer| self.peer_of(peer)) {
            self.attempt_soon(peer, Kind::Send);
        }
        Attempt::Done(count as i32)
    }

    fn try_send(&mut self, index: usize, bytes: &[u8]) -> Attempt {
        let Some(socket) = self.socket_mut(index) else {
            return Attempt::NotYet;
        };
        if socket.reset {
            return Attempt::Done(-libc::ECONNRESET);
        }
        let Some(peer) = socket.peer else {
            return Attempt::Done(-libc::ENOTCONN);
        };
        if socket.shut {
            return Attempt::Done(-libc::EPIPE);
        }
        let Some(peer_index) = self.peer_of(peer) else {
            // The other side has closed: its kernel answers with a reset, which is noticed next time.
            if let Some(socket) = self.socket_mut(index) {
                socket.reset = true;
            }
            self.changed(index);
            return Attempt::Done(bytes.len() as i32);
        };
        let queued = self.sockets[peer_index]
            .as_ref()
            .map_or(0, |peer| peer.arrived.len() + peer.under_way.iter().map(Vec::len).sum::<usize>());
        let room = self.profile.window_bytes.saturating_sub(queued);
        let most = bytes.len().min(room);
        if most == 0 {
            return Attempt::NotYet;
        }
        let count = if self.profile.short_io { 1 + self.rng.below(most as u64) as usize } else { most };
        self.transmit(peer, bytes[..count].to_vec());
        Attempt::Done(count as i32)
    }

    pub(super) fn wait(&mut self, timeout_ns: Option<u64>, out: &mut Vec<Completion>) {
        self.stats.waits += 1;
        // Time goes on even when nothing waits, so that a loop of yields cannot stop the world.
        self.now_ns += 1_000;
        let deadline = timeout_ns.map(|timeout| self.now_ns.saturating_add(timeout));
        loop {
            while self.events.peek().is_some_and(|Reverse((at_ns, _, _))| *at_ns <= self.now_ns) {
                if let Some(Reverse((_, _, event))) = self.events.pop() {
                    self.run(event);
                }
            }
            if !self.done.is_empty() || timeout_ns == Some(0) {
                break;
            }
            match (self.events.peek().map(|Reverse((at_ns, _, _))| *at_ns), deadline) {
                (Some(next), Some(deadline)) if next > deadline => {
                    self.now_ns = deadline;
                    break;
                }
                (Some(next), _) => self.now_ns = next,
                (None, Some(deadline)) => {
                    self.now_ns = deadline;
                    break;
                }
                (None, None) => {
                    panic!("the simulation has come to a stop: every task waits for ever")
                }
            }
        }
        #[cfg(test)]
        crate::sys::clock::simulated::advance(self.now_ns);
        self.stats.completions += self.done.len() as u64;
        out.append(&mut self.done);
    }
}
