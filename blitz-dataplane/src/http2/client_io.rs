//! The byte stream under the h2 crate at the upstream end: tokio's traits over the runtime's stream.
//!
//! Owns: the hand-over in both directions. Does not own: what the bytes mean, or deadlines (`client.rs`).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client::Shared;
use crate::runtime::{Chunk, Transport};

/// The stream as the crate sees it.
pub(super) struct ClientIo<T> {
    stream: Rc<T>,
    shared: Rc<Shared>,
    /// Received and not yet handed over.
    unread: Option<Chunk>,
}

impl<T: Transport> ClientIo<T> {
    pub(super) fn new(stream: Rc<T>, shared: Rc<Shared>) -> Self {
        Self { stream, shared, unread: None }
    }
}

impl<T: Transport> AsyncRead for ClientIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut chunk = match this.unread.take() {
            Some(chunk) => chunk,
            None => match ready!(this.stream.poll_receive(cx))? {
                Some(chunk) => {
                    let received = &this.shared.received;
                    received.set(received.get() + chunk.len() as u64);
                    chunk
                }
                None => return Poll::Ready(Ok(())),
            },
        };
        let count = buf.remaining().min(chunk.len());
        buf.put_slice(chunk.get(..count).unwrap_or_default());
        chunk.advance(count);
        if !chunk.is_empty() {
            // The crate may be waiting for room to answer: others need the pool's slot.
            chunk.spill();
            this.unread = Some(chunk);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport> AsyncWrite for ClientIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.stream.poll_writable(cx))?;
        let mut written = 0;
        for buf in bufs {
            self.shared.gathered.push(buf, &*self.stream)?;
            written += buf.len();
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What is written leaves when the poll is over.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The owner of the stream ends it, after the last bytes have left.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
