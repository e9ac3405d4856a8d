//! TCP listeners and streams as tasks see them.
//!
//! Owns: the handles. Does not own: descriptors and buffers in flight (see `reactor`).

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::task::{Context, Poll};

use super::reactor::OUTBOX_BYTES_MAX;
use super::slab::Key;
use super::{Chunk, Handle};

/// A listening socket of this runtime.
pub struct TcpListener {
    handle: Handle,
    key: Key,
}

impl TcpListener {
    /// Takes over a listening socket.
    ///
    /// # Errors
    /// When its mode cannot be set, or on the simulated network.
    pub fn adopt(handle: &Handle, fd: OwnedFd) -> io::Result<Self> {
        let key = handle.reactor.borrow_mut().adopt_listener(fd.into_raw_fd())?;
        Ok(Self { handle: handle.clone(), key })
    }

    /// Listens on the simulated network.
    ///
    /// # Errors
    /// `AddrInUse`, or `Unsupported` on a real driver.
    pub fn simulated(handle: &Handle, address: SocketAddr) -> io::Result<Self> {
        let key = handle.reactor.borrow_mut().simulated_listener(address)?;
        Ok(Self { handle: handle.clone(), key })
    }

    /// The next connection. When descriptors are used up, accepting pauses for 50 ms (counted as an
    /// accept error) and goes on by itself; waiting connections stay in the kernel's queue.
    ///
    /// # Cancel safety
    /// Safe: a connection that arrives meanwhile waits here.
    ///
    /// # Errors
    /// When the connection could not be registered.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        let key = poll_fn(|cx| self.handle.reactor.borrow_mut().poll_accept(self.key, cx)).await?;
        Ok(TcpStream { handle: self.handle.clone(), key })
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        self.handle.reactor.borrow_mut().close(self.key);
    }
}

/// A connection. Dropping it aborts what is in flight and closes it; see [`TcpStream::flushed`] and
/// [`TcpStream::shutdown_write`] for an orderly end.
pub struct TcpStream {
    handle: Handle,
    key: Key,
}

impl TcpStream {
    /// Connects. There is no deadline here; see [`super::Deadline::limit`].
    ///
    /// # Cancel safety
    /// Dropping the future abandons the connection.
    ///
    /// # Errors
    /// As connect(2): refused, unreachable, timed out, no descriptors.
    pub async fn connect(handle: &Handle, address: SocketAddr) -> io::Result<Self> {
        let key = handle.reactor.borrow_mut().connect(address)?;
        let stream = Self { handle: handle.clone(), key };
        poll_fn(|cx| handle.reactor.borrow_mut().poll_connected(key, cx)).await?;
        Ok(stream)
    }

    /// The runtime that this stream belongs to.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The next received bytes; `None` at the end of the stream. Backpressure: what is not taken
    /// here stays in the kernel beyond 16 KiB.
    ///
    /// # Errors
    /// When the connection is reset or broken.
    pub fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        self.handle.reactor.borrow_mut().poll_receive(self.key, cx)
    }

    /// [`TcpStream::poll_receive`] as a future.
    ///
    /// # Cancel safety
    /// Safe: bytes that arrive meanwhile wait here.
    ///
    /// # Errors
    /// When the connection is reset or broken.
    pub async fn receive(&self) -> io::Result<Option<Chunk>> {
        poll_fn(|cx| self.poll_receive(cx)).await
    }

    /// Ready when the peer has ended (`Ok`) or reset (`Err`) the connection. Consumes nothing.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handle.reactor.borrow_mut().poll_gone(self.key, cx)
    }

    /// Whether bytes, an end or an error wait unread: a pooled connection with any is stale.
    pub fn has_news(&self) -> bool {
        self.handle.reactor.borrow_mut().has_news(self.key)
    }

    /// Notes a message boundary: the next message is expected to be small again.
    pub fn settle(&self) {
        self.handle.reactor.borrow_mut().settle(self.key);
    }

    /// Lets `write` append to what will be sent at the end of this turn. Never waits: the caller
    /// bounds what it adds with [`TcpStream::writable`].
    ///
    /// # Errors
    /// When an earlier send has failed.
    pub fn write_with(&self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.handle.reactor.borrow_mut().write_with(self.key, write)
    }

    /// Appends a chunk, without a copy when it is large.
    ///
    /// # Errors
    /// When an earlier send has failed.
    pub fn write_chunk(&self, chunk: Chunk) -> io::Result<()> {
        self.handle.reactor.borrow_mut().write_chunk(self.key, chunk)
    }

    /// Waits until at most 64 KiB are unsent: the backpressure for writers.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Errors
    /// When a send has failed.
    pub async fn writable(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_writable(cx)).await
    }

    /// [`TcpStream::writable`] as a poll function.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handle.reactor.borrow_mut().poll_unsent_at_most(self.key, OUTBOX_BYTES_MAX / 2, cx)
    }

    /// Waits until the kernel has taken everything.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Errors
    /// When a send has failed.
    pub async fn flushed(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flushed(cx)).await
    }

    /// [`TcpStream::flushed`] as a poll function.
    pub fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handle.reactor.borrow_mut().poll_unsent_at_most(self.key, 0, cx)
    }

    /// Bytes that the kernel has taken since the start; a deadline on progress compares it.
    pub fn bytes_sent(&self) -> u64 {
        self.handle.reactor.borrow_mut().bytes_sent(self.key)
    }

    /// Ends sending once everything written has left.
    pub fn shutdown_write(&self) {
        self.handle.reactor.borrow_mut().shutdown_write(self.key);
    }

    /// Makes the coming close a reset: the peer must not take what it got for a whole message.
    pub fn reset_on_close(&self) {
        self.handle.reactor.borrow_mut().reset_on_close(self.key);
    }

    /// The address at the other end.
    ///
    /// # Errors
    /// When the connection is gone already.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        self.handle.reactor.borrow().peer_address(self.key)
    }

    /// The address at this end.
    ///
    /// # Errors
    /// When the descriptor is gone.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.handle.reactor.borrow().local_address(self.key)
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.handle.reactor.borrow_mut().close(self.key);
    }
}
