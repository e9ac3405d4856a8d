//! The epoll driver: readiness turned into the completions that io_uring would give (epoll(7)).
//!
//! For containers whose seccomp profile refuses io_uring, and for kernels before 6.1. Descriptors
//! are watched edge-triggered from their first operation on. An operation is tried when readiness
//! is known or unknown, and put aside at `EAGAIN` until the next edge.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use super::{Completion, DriverStats, Message, Token};
use crate::runtime::Sizes;
use crate::runtime::aggregate;
use crate::runtime::buf::Pool;
use crate::sys::net::{self, RawAddress};

/// Events taken from the kernel at once (count).
const EVENTS: usize = 512;

/// Accepts or receives of one descriptor before the others get their turn (count).
const ROUNDS: usize = 8;

/// Aggregates taken from a datagram socket by one system call (count).
const AT_ONCE: usize = 8;

pub(in crate::runtime) struct Epoll {
    epoll: OwnedFd,
    pool: Rc<Pool>,
    aggregates: Rc<Pool>,
    /// By descriptor number; bounded by the limit of open files.
    watched: Vec<Watched>,
    /// Descriptors with an operation to try.
    runnable: VecDeque<RawFd>,
    done: Vec<Completion>,
    events: Vec<libc::epoll_event>,
    stats: DriverStats,
    fallback: Option<String>,
}

#[derive(Default)]
struct Watched {
    registered: bool,
    queued: bool,
    /// False after `EAGAIN`, true after an edge and at first.
    readable: bool,
    writable: bool,
    input: Option<(Token, Input)>,
    output: Option<(Token, Output)>,
}

#[derive(Clone, Copy)]
enum Input {
    Accept,
    Pooled,
    Into(*mut u8, usize),
    Datagrams,
    Poll,
}

#[derive(Clone, Copy)]
enum Output {
    Bytes(*const u8, usize),
    Message(*const Message),
    Connect,
}

impl Epoll {
    pub(super) fn new(sizes: Sizes, fallback: Option<String>) -> io::Result<Self> {
        // SAFETY: epoll_create1(2) takes a plain integer.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call just returned this descriptor, and nothing else owns it.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            epoll,
            pool: Pool::listed(sizes.pool_slots, sizes.pool_slot_bytes)?,
            aggregates: Pool::listed(aggregate::SLOTS, aggregate::SLOT_BYTES)?,
            watched: Vec::new(),
            runnable: VecDeque::new(),
            done: Vec::new(),
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS],
            stats: DriverStats::default(),
            fallback,
        })
    }

    pub(super) fn fallback_reason(&self) -> Option<String> {
        self.fallback.clone()
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

    pub(super) fn stream_socket(&mut self, address: SocketAddr) -> io::Result<RawFd> {
        net::stream_socket(address, true).map(IntoRawFd::into_raw_fd)
    }

    /// The entry of `fd`, watched from now on.
    fn watch(&mut self, fd: RawFd) -> Option<&mut Watched> {
        let index = usize::try_from(fd).ok()?;
        if self.watched.len() <= index {
            self.watched.resize_with(index + 1, Watched::default);
        }
        if !self.watched[index].registered {
            let mut event = libc::epoll_event {
                events: (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32,
                u64: fd as u64,
            };
            // SAFETY: the event is a live structure that the kernel copies during the call.
            let result =
                unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
            if result < 0 {
                log::error!("epoll_ctl: descriptor {fd}: {}", io::Error::last_os_error());
                return None;
            }
            self.watched[index] =
                Watched { registered: true, readable: true, writable: true, ..Watched::default() };
        }
        Some(&mut self.watched[index])
    }

    fn start_input(&mut self, fd: RawFd, token: Token, input: Input) {
        match self.watch(fd) {
            Some(watched) => {
                watched.input = Some((token, input));
                if watched.readable {
                    self.queue(fd);
                }
            }
            None => self.fail(token, libc::EBADF),
        }
    }

    fn start_output(&mut self, fd: RawFd, token: Token, output: Output) {
        match self.watch(fd) {
            Some(watched) => {
                watched.output = Some((token, output));
                if watched.writable {
                    self.queue(fd);
                }
            }
            None => self.fail(token, libc::EBADF),
        }
    }

    fn queue(&mut self, fd: RawFd) {
        if let Some(watched) = usize::try_from(fd).ok().and_then(|index| self.watched.get_mut(index))
            && !std::mem::replace(&mut watched.queued, true)
        {
            self.runnable.push_back(fd);
        }
    }

    fn fail(&mut self, token: Token, errno: i32) {
        self.done.push(Completion { token, result: -errno, slot: None, more: false });
    }

    pub(super) fn accept(&mut self, fd: RawFd, token: Token) {
        self.start_input(fd, token, Input::Accept);
    }

    pub(super) fn receive_pooled(&mut self, fd: RawFd, token: Token) {
        self.start_input(fd, token, Input::Pooled);
    }

    /// # Safety
    /// As [`super::Driver::receive_into`].
    pub(super) unsafe fn receive_into(&mut self, fd: RawFd, token: Token, memory: *mut u8, len: usize) {
        self.start_input(fd, token, Input::Into(memory, len));
    }

    /// # Safety
    /// As [`super::Driver::send`].
    pub(super) unsafe fn send(&mut self, fd: RawFd, token: Token, memory: *const u8, len: usize) {
        self.start_output(fd, token, Output::Bytes(memory, len));
    }

    /// # Safety
    /// As [`super::Driver::send_message`].
    pub(super) unsafe fn send_message(&mut self, fd: RawFd, token: Token, message: *const Message) {
        self.start_output(fd, token, Output::Message(message));
    }

    /// # Safety
    /// As [`super::Driver::receive_datagrams`].
    pub(super) unsafe fn receive_datagrams(
        &mut self,
        fd: RawFd,
        token: Token,
        _template: *const libc::msghdr,
    ) {
        self.start_input(fd, token, Input::Datagrams);
    }

    /// # Safety
    /// As [`super::Driver::connect`].
    pub(super) unsafe fn connect(&mut self, fd: RawFd, token: Token, address: *const RawAddress) {
        // SAFETY: `address` points to a live RawAddress, as the caller promises.
        let address = unsafe { &*address };
        // SAFETY: pointer and length describe that address; the kernel copies it during the call.
        let result = unsafe { libc::connect(fd, address.as_ptr(), address.len()) };
        let errno = if result == 0 { 0 } else { last_errno() };
        if errno == libc::EINPROGRESS {
            self.start_output(fd, token, Output::Connect);
            if let Some(watched) = self.watch(fd) {
                // Writable means connected: wait for the edge.
                watched.writable = false;
            }
        } else {
            self.done.push(Completion { token, result: -errno, slot: None, more: false });
        }
    }

    pub(super) fn shutdown(&mut self, fd: RawFd, token: Token) {
        // SAFETY: shutdown(2) takes plain integers.
        let result = unsafe { libc::shutdown(fd, libc::SHUT_WR) };
        let result = if result < 0 { -last_errno() } else { 0 };
        self.done.push(Completion { token, result, slot: None, more: false });
    }

    pub(super) fn poll_readable(&mut self, fd: RawFd, token: Token) {
        if let Some(watched) = self.watch(fd) {
            // Only an edge tells; the descriptor may not be readable now.
            watched.readable = false;
        }
        self.start_input(fd, token, Input::Poll);
        // An edge from before the registration would be lost: adding to the set reports it again.
    }

    pub(super) fn cancel(&mut self, fd: RawFd, target: Token, token: Token) {
        let mut found = false;
        if let Some(watched) = usize::try_from(fd).ok().and_then(|index| self.watched.get_mut(index)) {
            if watched.input.is_some_and(|(input, _)| input == target) {
                watched.input = None;
                found = true;
            }
            if watched.output.is_some_and(|(output, _)| output == target) {
                watched.output = None;
                found = true;
            }
        }
        if found {
            self.fail(target, libc::ECANCELED);
        }
        let result = if found { 0 } else { -libc::ENOENT };
        self.done.push(Completion { token, result, slot: None, more: false });
    }

    pub(super) fn close(&mut self, fd: RawFd) {
        if let Some(watched) = usize::try_from(fd).ok().and_then(|index| self.watched.get_mut(index)) {
            if watched.registered {
                // Another process may hold the same open file (listeners): leave the set explicitly.
                // SAFETY: a null event is allowed for EPOLL_CTL_DEL since Linux 2.6.9.
                unsafe {
                    libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut())
                };
            }
            let queued = watched.queued;
            *watched = Watched { queued, ..Watched::default() };
        }
        net::close(fd);
    }

    pub(super) fn wait(&mut self, timeout_ns: Option<u64>, out: &mut Vec<Completion>) {
        self.stats.waits += 1;
        self.run();
        let block = if self.done.is_empty() && self.runnable.is_empty() { timeout_ns } else { Some(0) };
        self.collect(block);
        self.run();
        self.stats.completions += self.done.len() as u64;
        out.append(&mut self.done);
    }

    /// Takes events from the kernel, waiting as long as `timeout_ns` says.
    fn collect(&mut self, timeout_ns: Option<u64>) {
        let timeout_ms = match timeout_ns {
            None => -1,
            // Rounded up: waking early would spin until the deadline.
            Some(ns) => i32::try_from(ns.div_ceil(1_000_000)).unwrap_or(i32::MAX),
        };
        let capacity = self.events.len() as i32;
        let epoll = self.epoll.as_raw_fd();
        // SAFETY: the buffer holds `capacity` events for the kernel to write.
        let count = unsafe { libc::epoll_wait(epoll, self.events.as_mut_ptr(), capacity, timeout_ms) };
        for index in 0..usize::try_from(count).unwrap_or(0) {
            let event = self.events[index];
            let (fd, bits) = (event.u64 as RawFd, event.events as i32);
            let Some(watched) = usize::try_from(fd).ok().and_then(|index| self.watched.get_mut(index)) else {
                continue;
            };
            let broken = bits & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
            watched.readable |= broken || bits & (libc::EPOLLIN | libc::EPOLLRDHUP) != 0;
            watched.writable |= broken || bits & libc::EPOLLOUT != 0;
            self.queue(fd);
        }
    }

    /// Tries every operation that may succeed, once around.
    fn run(&mut self) {
        for _ in 0..self.runnable.len() {
            let Some(fd) = self.runnable.pop_front() else {
                return;
            };
            let Ok(index) = usize::try_from(fd) else {
                continue;
            };
            self.watched[index].queued = false;
            if !self.watched[index].registered {
                continue;
            }
            self.run_output(fd, index);
            self.run_input(fd, index);
        }
    }

    fn run_output(&mut self, fd: RawFd, index: usize) {
        let watched = &mut self.watched[index];
        let (Some((token, output)), true) = (watched.output, watched.writable) else {
            return;
        };
        let result = match output {
            Output::Bytes(memory, len) => {
                // SAFETY: memory and length were vouched for until this operation completes.
                let sent =
                    unsafe { libc::send(fd, memory.cast(), len, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
                outcome(sent)
            }
            Output::Message(message) => {
                // SAFETY: the message was vouched for until this operation completes.
                let header = unsafe { &raw const (*message).header };
                // SAFETY: as above; the kernel reads it during the call only.
                outcome(unsafe { libc::sendmsg(fd, header, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) })
            }
            Output::Connect => -net::pending_error(fd),
        };
        match -result {
            libc::EAGAIN => {
                watched.writable = false;
                return;
            }
            libc::EINTR => return self.queue(fd),
            _ => watched.output = None,
        }
        self.done.push(Completion { token, result, slot: None, more: false });
    }

    fn run_input(&mut self, fd: RawFd, index: usize) {
        for _ in 0..ROUNDS {
            let watched = &mut self.watched[index];
            let (Some((token, input)), true) = (watched.input, watched.readable) else {
                return;
            };
            let (result, slot, multishot) = match input {
                Input::Accept => {
                    let (address, len) = (std::ptr::null_mut(), std::ptr::null_mut());
                    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                    // SAFETY: null pointers say that no address is wanted.
                    (outcome(unsafe { libc::accept4(fd, address, len, flags) } as isize), None, true)
                }
                Input::Pooled => match self.pool.take_slot() {
                    None => (-libc::ENOBUFS, None, true),
                    Some(slot) => {
                        let (memory, len) = (self.pool.slot_ptr(slot), self.pool.slot_bytes() as usize);
                        // SAFETY: the slot was free and is ours now: nobody else reads or writes it.
                        let result =
                            outcome(unsafe { libc::recv(fd, memory.cast(), len, libc::MSG_DONTWAIT) });
                        if result > 0 {
                            (result, Some(slot), true)
                        } else {
                            self.pool.give_back(slot);
                            (result, None, true)
                        }
                    }
                },
                Input::Into(memory, len) => {
                    // SAFETY: memory and length were vouched for until this operation completes.
                    (outcome(unsafe { libc::recv(fd, memory.cast(), len, libc::MSG_DONTWAIT) }), None, false)
                }
                Input::Datagrams => {
                    let (result, slot) = self.receive_aggregates(fd, token);
                    (result, slot, true)
                }
                Input::Poll => {
                    watched.readable = false;
                    (libc::POLLIN.into(), None, true)
                }
            };
            let watched = &mut self.watched[index];
            match -result {
                libc::EAGAIN => {
                    watched.readable = false;
                    return;
                }
                libc::EINTR => break,
                _ => {}
            }
            // A multishot ends at the end of the stream and at errors, as io_uring's does.
            let ends = result < 0 || (result == 0 && matches!(input, Input::Pooled));
            let more = multishot && !ends;
            if !more {
                watched.input = None;
            }
            self.done.push(Completion { token, result, slot, more });
        }
        // Others first; this one has more to give.
        self.queue(fd);
    }

    /// Takes what has come, several aggregates at once, each into a slot of its own. The last of them, or why there is
    /// none, is the caller's to report.
    fn receive_aggregates(&mut self, fd: RawFd, token: Token) -> (i32, Option<u16>) {
        let mut slots = [0; AT_ONCE];
        let mut pieces = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; AT_ONCE];
        let mut messages = [libc::mmsghdr { msg_hdr: aggregate::template(), msg_len: 0 }; AT_ONCE];
        let mut taken = 0;
        while taken < AT_ONCE
            && let Some(slot) = self.aggregates.take_slot()
        {
            slots[taken] = slot;
            messages[taken].msg_hdr = aggregate::header(self.aggregates.slot_ptr(slot), &mut pieces[taken]);
            taken += 1;
        }
        if taken == 0 {
            return (-libc::ENOBUFS, None);
        }
        let (list, count, limit) = (messages.as_mut_ptr(), taken as u32, std::ptr::null_mut());
        // SAFETY: the headers lead to parts of slots that were free and are ours now, and to pieces that live across
        // the call; there are `taken` of them.
        let result = outcome(unsafe { libc::recvmmsg(fd, list, count, libc::MSG_DONTWAIT, limit) } as isize);
        let filled = usize::try_from(result).unwrap_or(0);
        slots[filled..taken].iter().for_each(|slot| self.aggregates.give_back(*slot));
        let mut last = (result, None);
        for (slot, message) in slots[..filled].iter().zip(&messages) {
            let (lengths, used) = aggregate::lengths(&message.msg_hdr, message.msg_len);
            let memory = self.aggregates.slot_ptr(*slot).cast();
            // SAFETY: the slot is ours, and larger than the lengths in front.
            unsafe { std::ptr::copy_nonoverlapping(lengths.as_ptr(), memory, lengths.len()) };
            let before = std::mem::replace(&mut last, (used as i32, Some(*slot)));
            if let (result, slot @ Some(_)) = before {
                self.done.push(Completion { token, result, slot, more: true });
            }
        }
        last
    }
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// A system call's result as io_uring gives it.
fn outcome(result: isize) -> i32 {
    if result < 0 { -last_errno() } else { i32::try_from(result).unwrap_or(i32::MAX) }
}
