//! One stream socket: its state, and connecting.
//!
//! Receiving and sending are in `receive.rs` and `send.rs`.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::receive::Receive;
use super::send::Outbox;
use super::{Body, Reactor, gone, os_error, register};
use crate::runtime::buf::{BulkCache, Chunk};
use crate::runtime::driver::{Kind, Token};
use crate::runtime::queue::Queue;
use crate::runtime::slab::Key;
use crate::sys::net::RawAddress;

pub(super) struct Stream {
    /// The peer has opened it.
    pub(super) is_accepted: bool,
    pub(super) receive: Receive,
    /// The next receive goes to a buffer of the socket's own.
    pub(super) bulk: bool,
    pub(super) ended: bool,
    pub(super) receive_error: i32,
    pub(super) inbox: Queue<Chunk>,
    pub(super) unread: usize,
    pub(super) receive_waker: Option<Waker>,
    /// What a bulk receive in flight fills.
    pub(super) in_bulk: Option<Vec<u8>>,
    pub(super) out: Outbox,
    pub(super) connect: Option<Box<Connect>>,
}

pub(super) struct Connect {
    pub(super) address: RawAddress,
    pub(super) result: Option<i32>,
    pub(super) waker: Option<Waker>,
}

impl Stream {
    pub(super) fn new(connect: Option<Box<Connect>>) -> Self {
        Self {
            is_accepted: connect.is_none(),
            receive: Receive::Off,
            bulk: false,
            ended: false,
            receive_error: 0,
            inbox: Queue::default(),
            unread: 0,
            receive_waker: None,
            out: Outbox::default(),
            connect,
            in_bulk: None,
        }
    }

    /// How the peer has ended the connection, when it has.
    ///
    /// A reset is told once, to the operation that comes first (`sk_err` of tcp(7)'s socket). When that was a send, the
    /// receive sees an end like any other, and what came before it would look whole. Behind an orderly end the send
    /// fails with EPIPE.
    pub(super) fn end(&self) -> Option<io::Result<()>> {
        if self.receive_error != 0 {
            return Some(Err(os_error(self.receive_error)));
        }
        let was_reset = self.out.error == libc::ECONNRESET;
        self.ended.then(|| if was_reset { Err(os_error(self.out.error)) } else { Ok(()) })
    }

    /// Keeps the buffer that a bulk receive fills.
    pub(super) fn bulk_buffer(&mut self, buffer: Vec<u8>) {
        self.in_bulk = Some(buffer);
    }

    /// The buffer that a bulk receive has filled with `len` bytes.
    pub(super) fn take_bulk(&mut self, len: usize, cache: &Rc<BulkCache>) -> Option<Chunk> {
        let mut buffer = self.in_bulk.take()?;
        if len > buffer.capacity() {
            debug_assert!(false, "a receive of {len} bytes into {}", buffer.capacity());
            return None;
        }
        // SAFETY: len <= capacity was checked, and the driver has written the first `len` bytes.
        unsafe { buffer.set_len(len) };
        Some(Chunk::bulk(buffer, cache))
    }

    pub(super) fn drop_unfilled(&mut self, cache: &Rc<BulkCache>) {
        if let Some(buffer) = self.in_bulk.take() {
            cache.put(buffer);
        }
    }
}

impl Reactor {
    pub(in crate::runtime) fn connect(&mut self, address: SocketAddr) -> io::Result<Key> {
        let fd = self.driver.stream_socket(address)?;
        let connect = Box::new(Connect { address: RawAddress::new(address), result: None, waker: None });
        let key = self.insert(fd, Body::Stream(Stream::new(Some(connect))))?;
        if let Some(Stream { connect: Some(connect), .. }) = self.stream(key) {
            let address = &raw const connect.address;
            // SAFETY: the boxed address lies in the entry, which lives until the completion.
            unsafe { self.driver.connect(fd, Token { key, kind: Kind::Connect }, address) };
            self.started(key);
        }
        Ok(key)
    }

    pub(in crate::runtime) fn poll_connected(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = self.stream(key) else {
            return Poll::Ready(Err(gone()));
        };
        let Some(connect) = &mut stream.connect else {
            return Poll::Ready(Ok(()));
        };
        match connect.result {
            None => {
                register(&mut connect.waker, cx);
                Poll::Pending
            }
            Some(result) => {
                stream.connect = None;
                Poll::Ready(if result < 0 { Err(os_error(-result)) } else { Ok(()) })
            }
        }
    }
}
