//! What a protocol codec needs of the connection under it.
//!
//! Owns: the seam between codecs and what carries their bytes. Does not own: a carrier
//! ([`TcpStream`]; `tls::TlsStream` seals the same bytes). Codecs are generic over it, so the plain
//! one costs no call through a pointer.
#![forbid(unsafe_code)]

use std::io;
use std::task::{Context, Poll};

use super::{Chunk, Handle, TcpStream};

/// An ordered stream of bytes in both directions, with backpressure. The same contract whether the bytes
/// travel in clear or sealed.
pub trait Transport {
    /// The runtime that it belongs to.
    fn handle(&self) -> &Handle;

    /// The next received bytes; `None` when the peer has ended its side in the way that the carrier
    /// prescribes. Backpressure: what is not taken here waits in bounded memory, then in the kernel.
    ///
    /// # Errors
    /// When the connection is reset or broken, or its end cannot be told from a cut.
    fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>>;

    /// Ready when the peer has ended (`Ok`) or lost (`Err`) the connection. Takes nothing from the reader.
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Whether the peer has sent something, ended or broken the connection while nobody waited for it: an idle
    /// connection with any is not used again. What only the carrier has to know is taken in and is no news.
    fn has_news(&self) -> bool;

    /// Notes a message boundary: the next message is expected to be small again.
    fn settle(&self);

    /// Lets `write` append to what will be sent at the end of this turn. Never waits: the caller bounds what
    /// it adds with [`Transport::poll_writable`].
    ///
    /// # Errors
    /// When an earlier send has failed.
    fn write_with(&self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()>;

    /// Appends bytes that lie in the caller's memory.
    ///
    /// # Errors
    /// When an earlier send has failed.
    fn write_bytes(&self, bytes: &[u8]) -> io::Result<()>;

    /// Appends a chunk.
    ///
    /// # Errors
    /// When an earlier send has failed.
    fn write_chunk(&self, chunk: Chunk) -> io::Result<()>;

    /// Appends a chunk with what goes before and behind it.
    ///
    /// # Errors
    /// When an earlier send has failed.
    fn write_framed(
        &self,
        before: impl FnOnce(&mut Vec<u8>),
        chunk: Chunk,
        behind: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<()> {
        self.write_with(before)?;
        self.write_chunk(chunk)?;
        self.write_with(behind)
    }

    /// Ready when at most 64 KiB are unsent: the backpressure for writers.
    ///
    /// # Errors
    /// When a send has failed.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when the kernel has taken everything.
    ///
    /// # Errors
    /// When a send has failed.
    fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Bytes that the kernel has taken since the start; a deadline on progress compares it.
    fn bytes_sent(&self) -> u64;

    /// Ends sending, in the way that the carrier prescribes, once everything written has left.
    fn shutdown_write(&self);

    /// Makes the coming close a cut: the peer must not take what it got for a whole message.
    fn reset_on_close(&self);
}

impl Transport for TcpStream {
    fn handle(&self) -> &Handle {
        self.handle()
    }

    fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        self.poll_receive(cx)
    }

    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_gone(cx)
    }

    fn has_news(&self) -> bool {
        self.has_news()
    }

    fn settle(&self) {
        self.settle();
    }

    fn write_with(&self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.write_with(write)
    }

    fn write_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.write_with(|out| {
                // No more than the buffer has room for: it would move, and grow for ever.
                let room = (out.capacity() - out.len()).max(1).min(rest.len());
                let (now, later) = rest.split_at(room);
                out.extend_from_slice(now);
                rest = later;
            })?;
        }
        Ok(())
    }

    fn write_chunk(&self, chunk: Chunk) -> io::Result<()> {
        self.write_chunk(chunk)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_writable(cx)
    }

    fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flushed(cx)
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent()
    }

    fn shutdown_write(&self) {
        self.shutdown_write();
    }

    fn reset_on_close(&self) {
        self.reset_on_close();
    }
}
