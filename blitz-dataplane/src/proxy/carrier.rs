//! What carries the bytes of a connection to an endpoint.
//!
//! Owns: the choice between carriers, made once per connection. An enum and not a type parameter: a pool holds
//! connections of either kind, and a branch costs less than the call through a pointer that the alternative is.
#![forbid(unsafe_code)]

use std::io;
use std::task::{Context, Poll};

use crate::runtime::{Chunk, Handle, TcpStream, Transport};
use crate::tls::TlsClientStream;

/// A connection to an endpoint, in clear or sealed.
pub enum Carrier {
    /// TCP.
    Plain(TcpStream),
    /// TLS over TCP.
    Tls(TlsClientStream),
}

/// Calls the same method of whichever carrier it is.
macro_rules! carried {
    ($carrier:expr, $stream:ident => $call:expr) => {
        match $carrier {
            Carrier::Plain($stream) => $call,
            Carrier::Tls($stream) => $call,
        }
    };
}

impl Transport for Carrier {
    fn handle(&self) -> &Handle {
        carried!(self, stream => Transport::handle(stream))
    }

    fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        carried!(self, stream => Transport::poll_receive(stream, cx))
    }

    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        carried!(self, stream => Transport::poll_gone(stream, cx))
    }

    fn has_news(&self) -> bool {
        carried!(self, stream => Transport::has_news(stream))
    }

    fn settle(&self) {
        carried!(self, stream => Transport::settle(stream));
    }

    fn write_with(&self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        carried!(self, stream => Transport::write_with(stream, write))
    }

    fn write_chunk(&self, chunk: Chunk) -> io::Result<()> {
        carried!(self, stream => Transport::write_chunk(stream, chunk))
    }

    fn write_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        carried!(self, stream => Transport::write_bytes(stream, bytes))
    }

    fn write_framed(
        &self,
        before: impl FnOnce(&mut Vec<u8>),
        chunk: Chunk,
        behind: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<()> {
        carried!(self, stream => Transport::write_framed(stream, before, chunk, behind))
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        carried!(self, stream => Transport::poll_writable(stream, cx))
    }

    fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        carried!(self, stream => Transport::poll_flushed(stream, cx))
    }

    fn bytes_sent(&self) -> u64 {
        carried!(self, stream => Transport::bytes_sent(stream))
    }

    fn shutdown_write(&self) {
        carried!(self, stream => Transport::shutdown_write(stream));
    }

    fn reset_on_close(&self) {
        carried!(self, stream => Transport::reset_on_close(stream));
    }
}
