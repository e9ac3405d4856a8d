//! The seam below the runtime: operations go in, completions come out.
//!
//! Three drivers behave alike: [`uring`] (the kernel carries operations out), [`epoll`] (readiness
//! turned into completions) and [`sim`] (a seeded network in virtual time). An operation is named
//! by a [`Token`]; each gives completions until one without `more`, also after a cancel.
//!
//! Owns: how operations are carried out. Does not own: buffers' and descriptors' lifetimes (the
//! reactor keeps both until the last completion) or who waits (see `reactor`).

mod epoll;
mod sim;
mod uring;

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::Rc;

use super::Sizes;
use super::buf::Pool;
use super::sim::World;
use super::slab::Key;
use super::udp::CONTROL_WORDS;
use crate::sys::net::RawAddress;

/// Which driver to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IoMode {
    /// io_uring where the kernel has what we need and lets us, else epoll.
    #[default]
    Auto,
    /// io_uring (Linux 6.1 or later), or an error.
    Uring,
    /// epoll.
    Epoll,
}

/// What a completion is about; travels in the kernel's `user_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Accept = 1,
    Receive = 2,
    Send = 3,
    Connect = 4,
    Shutdown = 5,
    Poll = 6,
    Cancel = 7,
    ReceiveDatagram = 8,
    SendDatagram = 9,
    /// Completions that nobody waits for (close).
    Detached = 10,
}

impl Kind {
    fn from_bits(bits: u8) -> Option<Self> {
        use Kind::*;
        [Accept, Receive, Send, Connect, Shutdown, Poll, Cancel, ReceiveDatagram, SendDatagram, Detached]
            .into_iter()
            .find(|kind| *kind as u8 == bits)
    }
}

/// An operation's name: socket slot, its generation, and the kind of operation. A socket has at
/// most one operation of a kind in flight, so the triple is unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) key: Key,
    pub(super) kind: Kind,
}

impl Token {
    pub(super) const DETACHED: Self = Self { key: Key { index: 0, generation: 0 }, kind: Kind::Detached };

    pub(super) fn bits(self) -> u64 {
        (u64::from(self.key.generation) << 32) | (u64::from(self.key.index) << 8) | self.kind as u64
    }

    pub(super) fn from_bits(bits: u64) -> Option<Self> {
        let kind = Kind::from_bits(bits as u8)?;
        let key = Key { index: (bits as u32) >> 8, generation: (bits >> 32) as u32 };
        Some(Self { key, kind })
    }
}

/// What became of an operation.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) token: Token,
    /// Bytes, a descriptor, or a negated errno, as io_uring has it.
    pub(super) result: i32,
    /// The pool slot that was filled.
    pub(super) slot: Option<u16>,
    /// Whether the operation goes on.
    pub(super) more: bool,
}

/// Most pieces one send gathers. Sixteen 4 KiB slots make a full bulk send.
pub(super) const GATHER_MAX: usize = 16;

/// The message header of a gathered send or of a datagram; stays in place until the completion.
pub(super) struct Message {
    pub(super) header: libc::msghdr,
    pub(super) pieces: [libc::iovec; GATHER_MAX],
    pub(super) address: RawAddress,
    /// Room for the control messages of a datagram, aligned as `cmsghdr` wants.
    pub(super) control: [u64; CONTROL_WORDS],
}

impl Message {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            header: libc::msghdr {
                msg_name: std::ptr::null_mut(),
                msg_namelen: 0,
                msg_iov: std::ptr::null_mut(),
                msg_iovlen: 0,
                msg_control: std::ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            },
            pieces: [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; GATHER_MAX],
            address: RawAddress::empty(),
            control: [0; CONTROL_WORDS],
        })
    }
}

/// Counters a driver keeps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DriverStats {
    pub(super) completion_overflows: u64,
    pub(super) waits: u64,
    pub(super) completions: u64,
}

/// One of the three drivers. A match instead of a trait object: the branch is always the same one,
/// and the compiler sees through it.
pub(super) enum Driver {
    Uring(uring::Uring),
    Epoll(epoll::Epoll),
    Sim(sim::Sim),
}

macro_rules! each {
    ($self:expr, $driver:ident => $call:expr) => {
        match $self {
            Driver::Uring($driver) => $call,
            Driver::Epoll($driver) => $call,
            Driver::Sim($driver) => $call,
        }
    };
}

impl Driver {
    pub(super) fn start(mode: IoMode, sizes: Sizes) -> io::Result<Self> {
        match mode {
            IoMode::Uring => Ok(Self::Uring(uring::Uring::new(sizes)?)),
            IoMode::Epoll => Ok(Self::Epoll(epoll::Epoll::new(sizes, None)?)),
            IoMode::Auto => match uring::Uring::new(sizes) {
                Ok(uring) => Ok(Self::Uring(uring)),
                Err(error) => Ok(Self::Epoll(epoll::Epoll::new(sizes, Some(error.to_string()))?)),
            },
        }
    }

    pub(super) fn simulated(world: &World) -> Self {
        Self::Sim(sim::Sim::new(world))
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Uring(_) => "io_uring",
            Self::Epoll(_) => "epoll",
            Self::Sim(_) => "sim",
        }
    }

    pub(super) fn fallback_reason(&self) -> Option<String> {
        match self {
            Self::Epoll(epoll) => epoll.fallback_reason(),
            _ => None,
        }
    }

    /// Non-zero when tasks shall run in a seeded random order.
    pub(super) fn shuffle_seed(&self) -> u64 {
        match self {
            Self::Sim(sim) => sim.shuffle_seed(),
            _ => 0,
        }
    }

    pub(super) fn pool(&self) -> &Rc<Pool> {
        each!(self, driver => driver.pool())
    }

    /// Slots for what datagram sockets receive.
    pub(super) fn aggregates(&self) -> &Rc<Pool> {
        each!(self, driver => driver.aggregates())
    }

    /// Nanoseconds of the driver's clock.
    pub(super) fn clock_ns(&self) -> u64 {
        match self {
            Self::Sim(sim) => sim.clock_ns(),
            _ => crate::sys::net::monotonic_ns(),
        }
    }

    /// Whole seconds of the wall clock.
    pub(super) fn unix_seconds(&self) -> u64 {
        match self {
            Self::Sim(sim) => 1_700_000_000 + sim.clock_ns() / 1_000_000_000,
            _ => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        }
    }

    pub(super) fn stats(&self) -> DriverStats {
        each!(self, driver => driver.stats())
    }

    /// A stream socket for a connection to `address`.
    pub(super) fn stream_socket(&mut self, address: SocketAddr) -> io::Result<RawFd> {
        each!(self, driver => driver.stream_socket(address))
    }

    /// Takes over a listening socket (`fd` stays the caller's to close through [`Driver::close`]).
    pub(super) fn adopt_listener(&mut self, fd: RawFd) -> io::Result<()> {
        match self {
            // io_uring would answer EAGAIN instead of waiting.
            Self::Uring(_) => crate::sys::net::set_nonblocking(fd, false),
            Self::Epoll(_) => crate::sys::net::set_nonblocking(fd, true),
            Self::Sim(_) => Ok(()),
        }
    }

    /// A listening socket of the simulated network.
    pub(super) fn simulated_listener(&mut self, address: SocketAddr) -> io::Result<RawFd> {
        match self {
            Self::Sim(sim) => sim.listen(address),
            _ => Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
    }

    /// A datagram socket of the simulated network.
    pub(super) fn simulated_datagram(&mut self, address: SocketAddr) -> io::Result<RawFd> {
        match self {
            Self::Sim(sim) => sim.datagram(address),
            _ => Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
    }

    /// Another descriptor for a datagram socket of the simulated network, to send by.
    pub(super) fn simulated_lane(&mut self, fd: RawFd) -> io::Result<RawFd> {
        match self {
            Self::Sim(sim) => sim.lane(fd),
            _ => Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
    }

    /// Gives a datagram socket of the simulated network another address.
    pub(super) fn rebind_simulated(&mut self, fd: RawFd, seen_as: SocketAddr) -> io::Result<()> {
        match self {
            Self::Sim(sim) => sim.rebind(fd, seen_as),
            _ => Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
    }

    pub(super) fn peer_address(&self, fd: RawFd) -> io::Result<SocketAddr> {
        match self {
            Self::Sim(sim) => sim.address(fd, true),
            _ => crate::sys::net::peer_address(fd),
        }
    }

    pub(super) fn local_address(&self, fd: RawFd) -> io::Result<SocketAddr> {
        match self {
            Self::Sim(sim) => sim.address(fd, false),
            _ => crate::sys::net::local_address(fd),
        }
    }

    /// Makes the coming close a reset.
    pub(super) fn reset_on_close(&mut self, fd: RawFd) {
        match self {
            Self::Sim(sim) => sim.reset_on_close(fd),
            _ => crate::sys::net::reset_on_close(fd),
        }
    }

    /// Accepts until cancelled: a completion with `more` and a descriptor for each connection.
    pub(super) fn accept(&mut self, fd: RawFd, token: Token) {
        each!(self, driver => driver.accept(fd, token));
    }

    /// Receives into pool slots until cancelled, end of stream, error, or an empty pool (`ENOBUFS`).
    pub(super) fn receive_pooled(&mut self, fd: RawFd, token: Token) {
        each!(self, driver => driver.receive_pooled(fd, token));
    }

    /// Receives once into `memory`.
    ///
    /// # Safety
    /// - `memory` is valid for writes of `len` bytes and used by nobody else until the completion.
    pub(super) unsafe fn receive_into(&mut self, fd: RawFd, token: Token, memory: *mut u8, len: usize) {
        each!(self, driver => {
            // SAFETY: the same duties are the caller's.
            unsafe { driver.receive_into(fd, token, memory, len) }
        });
    }

    /// Sends once; may send less than `len`.
    ///
    /// # Safety
    /// - `memory` is valid for reads of `len` bytes and not written until the completion.
    pub(super) unsafe fn send(&mut self, fd: RawFd, token: Token, memory: *const u8, len: usize) {
        each!(self, driver => {
            // SAFETY: the same duties are the caller's.
            unsafe { driver.send(fd, token, memory, len) }
        });
    }

    /// Sends a gathered message once; may send less.
    ///
    /// # Safety
    /// - `message` and all that it points to stay in place and unwritten until the completion.
    pub(super) unsafe fn send_message(&mut self, fd: RawFd, token: Token, message: *const Message) {
        each!(self, driver => {
            // SAFETY: the same duties are the caller's.
            unsafe { driver.send_message(fd, token, message) }
        });
    }

    /// Receives datagrams with their sources and control data into slots (see `aggregate`) until cancelled, error, or
    /// an empty pool (`ENOBUFS`).
    ///
    /// # Safety
    /// - `template` stays in place and unwritten until the last completion.
    pub(super) unsafe fn receive_datagrams(
        &mut self,
        fd: RawFd,
        token: Token,
        template: *const libc::msghdr,
    ) {
        each!(self, driver => {
            // SAFETY: the same duties are the caller's.
            unsafe { driver.receive_datagrams(fd, token, template) }
        });
    }

    /// Connects.
    ///
    /// # Safety
    /// - `address` stays in place until the completion.
    pub(super) unsafe fn connect(&mut self, fd: RawFd, token: Token, address: *const RawAddress) {
        each!(self, driver => {
            // SAFETY: the same duties are the caller's.
            unsafe { driver.connect(fd, token, address) }
        });
    }

    /// Ends sending (`SHUT_WR`).
    pub(super) fn shutdown(&mut self, fd: RawFd, token: Token) {
        each!(self, driver => driver.shutdown(fd, token));
    }

    /// Reports readability until cancelled.
    pub(super) fn poll_readable(&mut self, fd: RawFd, token: Token) {
        each!(self, driver => driver.poll_readable(fd, token));
    }

    /// Asks for the end of `target`, which still completes; `token` completes as well.
    pub(super) fn cancel(&mut self, fd: RawFd, target: Token, token: Token) {
        each!(self, driver => driver.cancel(fd, target, token));
    }

    /// Closes a descriptor with no operation in flight.
    pub(super) fn close(&mut self, fd: RawFd) {
        each!(self, driver => driver.close(fd));
    }

    /// Hands over what was submitted, waits for a completion (at most `timeout_ns`, for ever when
    /// absent, not at all when zero) and appends all there are to `out`.
    pub(super) fn wait(&mut self, timeout_ns: Option<u64>, out: &mut Vec<Completion>) {
        each!(self, driver => driver.wait(timeout_ns, out));
    }
}
