//! What the crate writes while its connection is polled once, so that it leaves together.
//!
//! The crate hands over a frame's header and its payload apart, and frame after frame. Over TLS each would be a record
//! of its own, with its own tag and its own call into the cipher. What has been gathered goes to the stream when the
//! poll is over, or earlier when it fills a record.
//!
//! Owns: the bytes in between. Does not own: the stream, or when a poll is over (`server.rs`).

use std::cell::RefCell;
use std::io;

use crate::runtime::Transport;

/// Gathered bytes that are passed on at once: a record holds no more (RFC 8446 section 5.1).
const GATHERED_BYTES_MAX: usize = 16 * 1024;

/// Bytes of memory that a worker keeps for it; a larger write, of one frame at most, grows it once.
const SCRATCH_KEPT_BYTES: usize = 64 * 1024;

thread_local! {
    /// Memory that the worker's connections share: only one is polled at a time.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Bytes on their way to a stream.
#[derive(Default)]
pub(super) struct Gathered(RefCell<Vec<u8>>);

impl Gathered {
    /// Adds bytes, and passes everything on when a record is full.
    ///
    /// # Errors
    /// When an earlier send has failed.
    pub(super) fn push(&self, bytes: &[u8], stream: &impl Transport) -> io::Result<()> {
        let mut gathered = self.0.borrow_mut();
        if gathered.capacity() == 0 {
            *gathered = SCRATCH.take();
        }
        let room = GATHERED_BYTES_MAX.saturating_sub(gathered.len());
        let Some((first, rest)) = bytes.split_at_checked(room) else {
            gathered.extend_from_slice(bytes);
            return Ok(());
        };
        gathered.extend_from_slice(first);
        let sent = stream.write_bytes(&gathered);
        gathered.clear();
        gathered.extend_from_slice(rest);
        sent
    }

    /// Passes on what there is, and gives the memory back.
    ///
    /// # Errors
    /// When an earlier send has failed.
    pub(super) fn pass_on(&self, stream: &impl Transport) -> io::Result<()> {
        let mut gathered = self.0.take();
        if gathered.capacity() == 0 {
            return Ok(());
        }
        let sent = if gathered.is_empty() { Ok(()) } else { stream.write_bytes(&gathered) };
        gathered.clear();
        if gathered.capacity() <= SCRATCH_KEPT_BYTES {
            SCRATCH.set(gathered);
        }
        sent
    }
}
