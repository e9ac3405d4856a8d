//! The least that an io_uring server can do: one ring, one thread, multishot accept and receive.
//!
//! Owns: the ring with its setup flags, the provided buffers, completions as plain values. Does not own:
//! connections, which differ between the floors (`bin/floor_respond.rs`, `bin/floor_forward.rs`). Written
//! for measuring on loopback, not for hostile peers: a floor bounds what is possible, nothing more.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// Buffers in the ring. Their sum, 4 MiB, is more than 64 connections ever hold at once.
pub const BUFFERS: u16 = 1024;
/// Bytes in a buffer: an answer with a body of 1 KiB fits.
pub const BUFFER_BYTES: usize = 4096;
/// The one buffer group.
const GROUP: u16 = 0;

/// One completion.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// What the submission was tagged with.
    pub tag: u64,
    /// Bytes, a descriptor, or a negated errno.
    pub result: i32,
    /// The buffer that was received into.
    pub buffer: Option<u16>,
    /// Whether a multishot operation goes on.
    pub more: bool,
}

/// The ring and its buffers.
#[derive(Debug)]
pub struct Floor {
    ring: RingHandle,
    entries: *mut types::BufRingEntry,
    data: Box<[u8]>,
    tail: u16,
}

/// `IoUring` without a `Debug` of its own.
struct RingHandle(IoUring);

impl std::fmt::Debug for RingHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IoUring")
    }
}

impl Floor {
    /// Sets the ring up and gives it every buffer.
    ///
    /// # Errors
    /// What the kernel says: `EPERM` or `ENOSYS` without io_uring, `EINVAL` before Linux 6.1.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_cqsize(8192)
            .build(2048)?;
        let bytes = usize::from(BUFFERS) * size_of::<types::BufRingEntry>();
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no other memory.
        let entries = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if entries == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping is page-aligned, holds BUFFERS entries, and is never unmapped, so it outlives the ring.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, BUFFERS, GROUP, 0) }?;
        let data = vec![0; usize::from(BUFFERS) * BUFFER_BYTES].into_boxed_slice();
        let mut floor = Self { ring: RingHandle(ring), entries: entries.cast(), data, tail: 0 };
        for buffer in 0..BUFFERS {
            floor.give_back(buffer);
        }
        Ok(floor)
    }

    /// The bytes that were received into a buffer.
    pub fn bytes(&self, buffer: u16, len: usize) -> &[u8] {
        let start = usize::from(buffer) * BUFFER_BYTES;
        &self.data[start..start + len]
    }

    /// Returns a buffer to the kernel. The caller no longer reads it, and no operation does.
    pub fn give_back(&mut self, buffer: u16) {
        let index = usize::from(self.tail & (BUFFERS - 1));
        let start = usize::from(buffer) * BUFFER_BYTES;
        let address = self.data[start..start + BUFFER_BYTES].as_mut_ptr();
        // SAFETY: index < BUFFERS because of the mask (BUFFERS is a power of two), inside the mapping.
        let entry = unsafe { self.entries.add(index) };
        // SAFETY: the kernel reads only entries below the tail, and this one is at the tail.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address as u64);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `entries` points at the first entry of the registered ring.
        let tail = unsafe { types::BufRingEntry::tail(self.entries) };
        // SAFETY: the tail is an aligned u16 in the mapping that only atomics touch once it is registered.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Accepts until told otherwise.
    pub fn accept(&mut self, listener: &TcpListener, tag: u64) {
        self.push(opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).build().user_data(tag));
    }

    /// Receives into the provided buffers until told otherwise.
    pub fn receive(&mut self, fd: i32, tag: u64) {
        self.push(opcode::RecvMulti::new(types::Fd(fd), GROUP).build().user_data(tag));
    }

    /// Sends part of a provided buffer, all of it or an error. The buffer is given back only afterwards.
    pub fn send_buffer(&mut self, fd: i32, buffer: u16, len: usize, tag: u64) {
        let address = self.bytes(buffer, len).as_ptr();
        self.send(fd, address, len, tag);
    }

    /// Sends bytes that live as long as the program, all of them or an error.
    pub fn send_static(&mut self, fd: i32, bytes: &'static [u8], tag: u64) {
        self.send(fd, bytes.as_ptr(), bytes.len(), tag);
    }

    fn send(&mut self, fd: i32, address: *const u8, len: usize, tag: u64) {
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        self.push(opcode::Send::new(types::Fd(fd), address, len as u32).flags(flags).build().user_data(tag));
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: what the entry points at outlives the operation: `data` lives as long as the ring and a buffer is
            // not given back while it is sent, and static bytes live for ever.
            let pushed = unsafe { self.ring.0.submission().push(&entry) };
            if pushed.is_ok() {
                return;
            }
            // The queue is full: hand it to the kernel, which empties it. EBUSY and EINTR are tried again.
            let _ = self.ring.0.submit();
        }
    }

    /// Submits, waits for at least one completion and moves them all into `done`.
    ///
    /// # Errors
    /// What the kernel says, but for interruptions.
    pub fn wait(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        match self.ring.0.submit_and_wait(1) {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {
                return Err(error);
            }
            _ => {}
        }
        done.extend(self.ring.0.completion().map(|entry| Done {
            tag: entry.user_data(),
            result: entry.result(),
            buffer: cqueue::buffer_select(entry.flags()),
            more: cqueue::more(entry.flags()),
        }));
        Ok(())
    }
}

/// Shuts both directions down, so that operations on the descriptor end.
pub fn shut_down(fd: i32) {
    // SAFETY: shutdown takes no pointer; a descriptor that is no socket is an error that changes nothing.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// Closes a descriptor that nothing uses any more.
pub fn close(fd: i32) {
    // SAFETY: close takes no pointer; the caller owns the descriptor and has forgotten it.
    unsafe { libc::close(fd) };
}

/// Binds, with TCP_NODELAY, which accepted sockets inherit.
///
/// # Errors
/// What the kernel says, such as an address in use.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    let on: libc::c_int = 1;
    let (fd, len) = (listener.as_raw_fd(), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the option value is a c_int that lives across the call, and the length is its size.
    let status =
        unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const on).cast(), len) };
    if status == 0 { Ok(listener) } else { Err(io::Error::last_os_error()) }
}

/// The floor's command line: addresses and numbers, in order.
///
/// # Errors
/// A sentence that says what is missing.
pub fn argument<T: std::str::FromStr>(at: usize, what: &str) -> Result<T, String> {
    let word = std::env::args().nth(at).ok_or_else(|| format!("{what} is missing"))?;
    word.parse().map_err(|_| format!("{word:?} is no {what}"))
}
