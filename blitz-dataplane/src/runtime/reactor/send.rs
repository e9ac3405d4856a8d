//! Sending: an outbox per stream, whose content leaves in one operation a turn.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};

use super::{Body, Entry, Reactor, gone, os_error, register, wake};
use crate::runtime::buf::{BULK_BYTES, Chunk, heap_ptr};
use crate::runtime::driver::{GATHER_MAX, Kind, Message, Token};
use crate::runtime::queue::Queue;
use crate::runtime::slab::Key;

/// Unsent bytes at which a writer must wait: one bulk buffer may be leaving while the next fills.
pub(in crate::runtime) const OUTBOX_BYTES_MAX: usize = 2 * BULK_BYTES;

/// Pieces up to this size are copied behind the bytes before them: a copy of 4 KiB costs less than
/// a second piece of a gathered send, and frees the pool slot at once.
const COPY_BYTES_MAX: usize = 4096;

/// Bytes of an outbox buffer, and how many a worker keeps for reuse (64 x 8 KiB = 512 KiB).
pub(super) const OUT_BUFFER_BYTES: usize = 8 * 1024;
pub(super) const OUT_BUFFERS_KEPT: usize = 64;

#[derive(Default)]
pub(super) struct Outbox {
    pub(super) pieces: Queue<Piece>,
    /// Bytes of the first piece that have left.
    pub(super) sent_of_first: usize,
    /// Unsent bytes.
    pub(super) bytes: usize,
    /// Pieces that the operation in flight reads.
    pub(super) in_flight: usize,
    pub(super) message: Option<Box<Message>>,
    pub(super) dirty: bool,
    pub(super) shutdown: Shutdown,
    pub(super) error: i32,
    /// Bytes that the kernel has taken since the start; progress deadlines look at it.
    pub(super) sent: u64,
    /// Wake the waiter when at most this many bytes are unsent.
    pub(super) wake_at: usize,
    pub(super) waker: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Shutdown {
    #[default]
    No,
    Wanted,
    Sent,
}

pub(super) enum Piece {
    Owned(Vec<u8>),
    Chunk(Chunk),
}

impl Piece {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Chunk(chunk) => chunk,
        }
    }
}

impl Reactor {
    /// Lets `write` append to the outbox. What one turn appends leaves together.
    pub(in crate::runtime) fn write_with(
        &mut self,
        key: Key,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<()> {
        let spare = self.out_buffers.pop();
        let Some(stream) = self.stream(key) else {
            return Err(gone());
        };
        let out = &mut stream.out;
        if out.error != 0 {
            return Err(os_error(out.error));
        }
        let appendable = out.pieces.len() > out.in_flight
            && matches!(out.pieces.last(), Some(Piece::Owned(buffer)) if buffer.len() < OUT_BUFFER_BYTES / 2);
        let mut unused = spare;
        if !appendable {
            let buffer = unused.take().unwrap_or_else(|| Vec::with_capacity(OUT_BUFFER_BYTES));
            out.pieces.push(Piece::Owned(buffer));
        }
        if let Some(Piece::Owned(buffer)) = out.pieces.last_mut() {
            let before = buffer.len();
            write(buffer);
            out.bytes += buffer.len().saturating_sub(before);
        }
        let newly_dirty = !std::mem::replace(&mut out.dirty, true);
        if let Some(buffer) = unused {
            self.out_buffers.push(buffer);
        }
        if newly_dirty {
            self.dirty.push(key);
        }
        Ok(())
    }

    /// Appends a chunk: small or pooled ones by copy, others by reference.
    pub(in crate::runtime) fn write_chunk(&mut self, key: Key, mut chunk: Chunk) -> io::Result<()> {
        if chunk.len() <= COPY_BYTES_MAX || chunk.is_pooled() {
            return self.write_with(key, |out| out.extend_from_slice(&chunk));
        }
        let Some(stream) = self.stream(key) else {
            return Err(gone());
        };
        let out = &mut stream.out;
        if out.error != 0 {
            return Err(os_error(out.error));
        }
        if out.bytes > 0 {
            // It has to wait: the bound counts its bytes, so it shall not hold many times as much.
            chunk.compact();
        }
        out.bytes += chunk.len();
        out.pieces.push(Piece::Chunk(chunk));
        if !std::mem::replace(&mut out.dirty, true) {
            self.dirty.push(key);
        }
        Ok(())
    }

    pub(super) fn kick_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for key in dirty.drain(..) {
            if let Some(stream) = self.stream(key) {
                stream.out.dirty = false;
                self.send_next(key);
            }
        }
        self.dirty = dirty;
    }

    /// Starts the next send, or the shutdown when nothing is left to send.
    pub(super) fn send_next(&mut self, key: Key) {
        let Some(Entry { fd, closing: false, body: Body::Stream(stream), .. }) = self.entries.get_mut(key)
        else {
            return;
        };
        let fd = *fd;
        let out = &mut stream.out;
        if out.in_flight > 0 || out.error != 0 {
            return;
        }
        if out.bytes == 0 {
            if out.shutdown == Shutdown::Wanted {
                out.shutdown = Shutdown::Sent;
                self.driver.shutdown(fd, Token { key, kind: Kind::Shutdown });
                self.started(key);
            }
            return;
        }
        let token = Token { key, kind: Kind::Send };
        let skip = out.sent_of_first;
        if out.pieces.len() == 1 {
            let bytes =
                out.pieces.first().map(Piece::bytes).and_then(|bytes| bytes.get(skip..)).unwrap_or_default();
            out.in_flight = 1;
            let (memory, len) = (heap_ptr(bytes).as_ptr(), bytes.len());
            // SAFETY: a piece in flight is neither changed nor dropped until the completion, and its
            // heap memory stays where it is when the entry moves.
            unsafe { self.driver.send(fd, token, memory, len) };
        } else {
            let message = out.message.get_or_insert_with(Message::new);
            let mut count = 0;
            for (piece, slot) in out.pieces.iter().zip(message.pieces.iter_mut()) {
                let bytes = piece.bytes();
                let bytes = if count == 0 { bytes.get(skip..).unwrap_or_default() } else { bytes };
                *slot = libc::iovec { iov_base: heap_ptr(bytes).as_ptr().cast(), iov_len: bytes.len() };
                count += 1;
            }
            debug_assert!(count <= GATHER_MAX);
            message.header.msg_iov = message.pieces.as_mut_ptr();
            message.header.msg_iovlen = count;
            out.in_flight = count;
            let message: *const Message = &raw const **message;
            // SAFETY: the boxed message and the pieces it names lie in the entry and are left alone
            // until the completion.
            unsafe { self.driver.send_message(fd, token, message) };
        }
        self.started(key);
    }

    pub(super) fn sent(&mut self, key: Key, result: i32) {
        let Some(Entry { closing, body: Body::Stream(stream), .. }) = self.entries.get_mut(key) else {
            return;
        };
        let closing = *closing;
        let out = &mut stream.out;
        out.in_flight = 0;
        let mut done: Option<Piece> = None;
        if let Ok(mut left) = usize::try_from(result) {
            out.sent += left as u64;
            if stream.is_accepted {
                self.stats.accepted_sent_bytes += left as u64;
            }
            out.bytes = out.bytes.saturating_sub(left);
            while let Some(first) = out.pieces.first() {
                let unsent = first.bytes().len() - out.sent_of_first;
                if left < unsent {
                    out.sent_of_first += left;
                    break;
                }
                left -= unsent;
                out.sent_of_first = 0;
                let piece = out.pieces.pop();
                if matches!(piece, Some(Piece::Owned(_))) {
                    done = piece;
                }
                if left == 0 && out.bytes > 0 {
                    break;
                }
            }
            if out.bytes == 0 {
                out.message = None;
            }
        } else if !matches!(-result, libc::EINTR | libc::EAGAIN) {
            out.error = -result;
            wake(&mut stream.receive_waker);
        }
        if out.bytes <= out.wake_at || out.error != 0 {
            wake(&mut out.waker);
        }
        let go_on = !closing && (out.bytes > 0 || out.shutdown == Shutdown::Wanted);
        if let Some(piece) = done {
            self.recycle(piece);
        }
        if go_on {
            self.send_next(key);
        }
    }

    /// Ready when at most `limit` bytes are unsent.
    pub(in crate::runtime) fn poll_unsent_at_most(
        &mut self,
        key: Key,
        limit: usize,
        cx: &Context<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(stream) = self.stream(key) else {
            return Poll::Ready(Err(gone()));
        };
        let out = &mut stream.out;
        if out.error != 0 {
            return Poll::Ready(Err(os_error(out.error)));
        }
        if out.bytes <= limit {
            return Poll::Ready(Ok(()));
        }
        out.wake_at = limit;
        register(&mut out.waker, cx);
        Poll::Pending
    }

    /// Bytes that the kernel has taken so far.
    pub(in crate::runtime) fn bytes_sent(&mut self, key: Key) -> u64 {
        self.stream(key).map_or(0, |stream| stream.out.sent)
    }

    /// Ends sending once the outbox is empty.
    pub(in crate::runtime) fn shutdown_write(&mut self, key: Key) {
        if let Some(stream) = self.stream(key)
            && stream.out.shutdown == Shutdown::No
        {
            stream.out.shutdown = Shutdown::Wanted;
            if !std::mem::replace(&mut stream.out.dirty, true) {
                self.dirty.push(key);
            }
        }
    }

    pub(in crate::runtime) fn reset_on_close(&mut self, key: Key) {
        if let Ok(fd) = self.fd(key) {
            self.driver.reset_on_close(fd);
        }
    }

    pub(in crate::runtime) fn peer_address(&self, key: Key) -> io::Result<SocketAddr> {
        self.driver.peer_address(self.fd(key)?)
    }

    pub(in crate::runtime) fn local_address(&self, key: Key) -> io::Result<SocketAddr> {
        self.driver.local_address(self.fd(key)?)
    }
}
