//! The io_uring driver (Linux 6.1 or later; io_uring(7)).
//!
//! One ring per runtime: single issuer, deferred task work, created disabled, restricted to the
//! operations in [`OPERATIONS`], then enabled, so that a worker taken over by an attacker cannot
//! open files or change the ring through it (io_uring is not seen by seccomp).
//!
//! Multishot accept and receive stay armed across requests: a request costs one send, nothing to
//! arm. Receives take slots from a ring-provided buffer pool, so an idle connection owns no memory.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{IntoRawFd, RawFd};
use std::rc::Rc;

use io_uring::register::Restriction;
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::{Completion, DriverStats, Message, Token};
use crate::runtime::Sizes;
use crate::runtime::aggregate;
use crate::runtime::buf::Pool;
use crate::sys::net::{self, RawAddress};

/// The buffer group of the receive pool.
const POOL_GROUP: u16 = 0;
/// That of what datagram sockets receive.
const AGGREGATES_GROUP: u16 = 1;

/// Every operation the ring may carry out; anything else is refused by the kernel with `EACCES`.
const OPERATIONS: [u8; 11] = [
    opcode::Accept::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Close::CODE,
    opcode::Connect::CODE,
    opcode::PollAdd::CODE,
    opcode::Recv::CODE,
    opcode::RecvMsg::CODE,
    opcode::Send::CODE,
    opcode::SendMsg::CODE,
    opcode::Shutdown::CODE,
    opcode::Timeout::CODE,
];

pub(in crate::runtime) struct Uring {
    /// Before the pool: the ring must be gone before the memory that the kernel writes into.
    ring: IoUring,
    pool: Rc<Pool>,
    aggregates: Rc<Pool>,
    /// Completions that were taken to make room for a submission, for the next wait.
    early: Vec<Completion>,
    stats: DriverStats,
}

impl Uring {
    pub(super) fn new(sizes: Sizes) -> io::Result<Self> {
        let ring = IoUring::builder()
            .dontfork()
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(sizes.completion_entries)
            .build(sizes.submission_entries)
            .map_err(|error| explain("io_uring_setup", error))?;
        let pool = Pool::ringed(sizes.pool_slots, sizes.pool_slot_bytes)?;
        let aggregates = Pool::ringed(aggregate::SLOTS, aggregate::SLOT_BYTES)?;
        for (pool, group) in [(&pool, POOL_GROUP), (&aggregates, AGGREGATES_GROUP)] {
            let Some((address, entries)) = pool.ring() else { continue };
            // SAFETY: the ring's mapping holds `entries` entries and lives in a pool, which this
            // driver keeps until after the ring (field order above).
            unsafe { ring.submitter().register_buf_ring_with_flags(address, entries, group, 0) }
                .map_err(|error| explain("registering the receive buffers", error))?;
        }
        let mut restrictions = Vec::from(OPERATIONS.map(Restriction::sqe_op));
        let flags = squeue::Flags::BUFFER_SELECT | squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS;
        restrictions.push(Restriction::sqe_flags_allowed(flags.bits()));
        ring.submitter()
            .register_restrictions(&mut restrictions)
            .map_err(|error| explain("restricting the ring", error))?;
        ring.submitter().register_enable_rings().map_err(|error| explain("enabling the ring", error))?;
        Ok(Self { ring, pool, aggregates, early: Vec::new(), stats: DriverStats::default() })
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
        // Blocking on purpose: io_uring waits itself, and answers EAGAIN on a non-blocking socket.
        net::stream_socket(address, false).map(IntoRawFd::into_raw_fd)
    }

    /// Queues an entry; flushes the queue when it is full, so nothing is ever dropped.
    fn push(&mut self, entry: squeue::Entry, token: Token) {
        let entry = entry.user_data(token.bits());
        loop {
            // SAFETY: every entry is built below from parameters whose lifetime the caller of the
            // `unsafe` methods vouches for; the others hold no pointers.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_ok() {
                return;
            }
            match self.ring.submit().map_err(|error| error.raw_os_error()) {
                Ok(_) | Err(Some(libc::EINTR)) => {}
                // The kernel wants completions to be taken first, or is short of memory.
                Err(Some(libc::EBUSY | libc::EAGAIN)) => {
                    let mut early = std::mem::take(&mut self.early);
                    self.reap(&mut early);
                    self.early = early;
                }
                Err(errno) => {
                    let result = -errno.unwrap_or(libc::EIO);
                    self.early.push(Completion { token, result, slot: None, more: false });
                    return;
                }
            }
        }
    }

    pub(super) fn accept(&mut self, fd: RawFd, token: Token) {
        let entry = opcode::AcceptMulti::new(Fd(fd)).flags(libc::SOCK_CLOEXEC).build();
        self.push(entry, token);
    }

    pub(super) fn receive_pooled(&mut self, fd: RawFd, token: Token) {
        let entry = opcode::RecvMulti::new(Fd(fd), POOL_GROUP).build();
        self.push(entry, token);
    }

    /// # Safety
    /// As [`super::Driver::receive_into`].
    pub(super) unsafe fn receive_into(&mut self, fd: RawFd, token: Token, memory: *mut u8, len: usize) {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.push(opcode::Recv::new(Fd(fd), memory, len).build(), token);
    }

    /// # Safety
    /// As [`super::Driver::send`].
    pub(super) unsafe fn send(&mut self, fd: RawFd, token: Token, memory: *const u8, len: usize) {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(Fd(fd), memory, len).flags(libc::MSG_NOSIGNAL).build();
        self.push(entry, token);
    }

    /// # Safety
    /// As [`super::Driver::send_message`].
    pub(super) unsafe fn send_message(&mut self, fd: RawFd, token: Token, message: *const Message) {
        // SAFETY: `message` points to a live Message, as the caller promises.
        let header = unsafe { &raw const (*message).header };
        let entry = opcode::SendMsg::new(Fd(fd), header).flags(libc::MSG_NOSIGNAL as u32).build();
        self.push(entry, token);
    }

    /// # Safety
    /// As [`super::Driver::receive_datagrams`].
    pub(super) unsafe fn receive_datagrams(
        &mut self,
        fd: RawFd,
        token: Token,
        template: *const libc::msghdr,
    ) {
        self.push(opcode::RecvMsgMulti::new(Fd(fd), template, AGGREGATES_GROUP).build(), token);
    }

    /// # Safety
    /// As [`super::Driver::connect`].
    pub(super) unsafe fn connect(&mut self, fd: RawFd, token: Token, address: *const RawAddress) {
        // SAFETY: `address` points to a live RawAddress, as the caller promises.
        let address = unsafe { &*address };
        let entry = opcode::Connect::new(Fd(fd), address.as_ptr(), address.len()).build();
        self.push(entry, token);
    }

    pub(super) fn shutdown(&mut self, fd: RawFd, token: Token) {
        let entry = opcode::Shutdown::new(Fd(fd), libc::SHUT_WR).build();
        self.push(entry, token);
    }

    pub(super) fn poll_readable(&mut self, fd: RawFd, token: Token) {
        let entry = opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).multi(true).build();
        self.push(entry, token);
    }

    pub(super) fn cancel(&mut self, _fd: RawFd, target: Token, token: Token) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(target.bits())).build();
        self.push(entry, token);
    }

    pub(super) fn close(&mut self, fd: RawFd) {
        let entry = opcode::Close::new(Fd(fd)).build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(entry, Token::DETACHED);
    }

    pub(super) fn wait(&mut self, timeout_ns: Option<u64>, out: &mut Vec<Completion>) {
        self.stats.waits += 1;
        out.append(&mut self.early);
        let timeout_ns = if out.is_empty() { timeout_ns } else { Some(0) };
        let entered = match timeout_ns {
            None => self.ring.submitter().submit_and_wait(1).map(drop),
            Some(0) => self.poll_completions(),
            Some(timeout_ns) => {
                let time = Timespec::from(std::time::Duration::from_nanos(timeout_ns));
                let args = SubmitArgs::new().timespec(&time);
                self.ring.submitter().submit_with_args(1, &args).map(drop)
            }
        };
        if let Err(error) = entered {
            match error.raw_os_error() {
                // The time is up; a signal came; completions must be taken first (below).
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => log::error!("io_uring_enter failed: {error}"),
            }
        }
        // The kernel keeps what does not fit and hands it over at the next call.
        self.stats.completion_overflows += u64::from(self.ring.submission().cq_overflow());
        self.reap(out);
    }

    /// Appends the completions that lie in the queue.
    fn reap(&mut self, out: &mut Vec<Completion>) {
        let mut completions = self.ring.completion();
        completions.sync();
        for entry in completions {
            let Some(token) = Token::from_bits(entry.user_data()) else {
                debug_assert!(false, "a completion of nobody: {entry:?}");
                continue;
            };
            self.stats.completions += 1;
            out.push(Completion {
                token,
                result: entry.result(),
                slot: cqueue::buffer_select(entry.flags()),
                more: cqueue::more(entry.flags()),
            });
        }
    }

    /// Submits, runs the deferred work, returns at once.
    fn poll_completions(&mut self) -> io::Result<()> {
        const GETEVENTS: u32 = 1; // IORING_ENTER_GETEVENTS
        let queued = self.ring.submission().len() as u32;
        // SAFETY: no argument structure is passed, and every queued entry was vouched for by `push`.
        unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, GETEVENTS, None) }.map(drop)
    }
}

/// Says which limit or setting stands in the way.
fn explain(step: &str, error: io::Error) -> io::Error {
    let remedy = match error.raw_os_error() {
        Some(libc::ENOMEM) => {
            "; the memory that this user may lock is used up (it counts over all processes of the user): \
             raise LimitMEMLOCK= in the unit, or `ulimit -l`"
        }
        Some(libc::EPERM) => {
            "; io_uring is refused here: see sysctl kernel.io_uring_disabled, or the container's seccomp profile"
        }
        Some(libc::ENOSYS) => "; this kernel has no io_uring, or the container's seccomp profile hides it",
        Some(libc::EINVAL) => "; this kernel's io_uring is older than Linux 6.1",
        _ => "",
    };
    io::Error::new(error.kind(), format!("{step}: {error}{remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_refuses_what_it_was_not_made_for() {
        let mut uring = Uring::new(Sizes::RECOMMENDED).unwrap();
        let token = Token {
            key: crate::runtime::slab::Key { index: 1, generation: 1 },
            kind: super::super::Kind::Poll,
        };
        uring.push(opcode::Nop::new().build(), token);
        let mut out = Vec::new();
        uring.wait(Some(1_000_000_000), &mut out);
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].result, -libc::EACCES);
    }
}
