//! Receiving: pooled until the reader falls behind, then one buffer at a time.
//!
//! See the module above for the two ways. A receive that finds the pool empty is *starved*: unread
//! data is moved to the heap, and the receive starts again.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::{Body, Entry, Reactor, gone, os_error, register, wake};
use crate::runtime::buf::Chunk;
use crate::runtime::driver::{Kind, Token};
use crate::runtime::slab::Key;

/// Unread bytes in the inbox at which a socket leaves the shared pool: four slots of 4 KiB.
const POOLED_UNREAD_MAX: usize = 16 * 1024;

/// Unread receives at which it leaves as well (count): a slot is held however little is in it.
const POOLED_UNREAD_COUNT_MAX: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Receive {
    Off,
    Pooled,
    Cancelling,
    Bulk,
    Starved,
}

impl Reactor {
    pub(super) fn received(&mut self, key: Key, result: i32, chunk: Option<Chunk>, more: bool) {
        let bulk_cache = Rc::clone(&self.bulk);
        let Some(Entry { fd, closing, body: Body::Stream(stream), .. }) = self.entries.get_mut(key) else {
            return;
        };
        let (fd, closing) = (*fd, *closing);
        let was = stream.receive;
        if !more {
            stream.receive = Receive::Off;
        }
        if closing {
            stream.inbox.clear();
            return;
        }
        let mut starved = false;
        match result {
            1.. => {
                let chunk = match chunk {
                    Some(chunk) => Some(chunk),
                    None => stream.take_bulk(result as usize, &bulk_cache),
                };
                if let Some(chunk) = chunk {
                    if stream.is_accepted {
                        self.stats.accepted_received_bytes += chunk.len() as u64;
                    }
                    stream.unread += chunk.len();
                    stream.inbox.push(chunk);
                }
            }
            0 => stream.ended = true,
            _ if -result == libc::ENOBUFS => starved = true,
            _ if -result == libc::ECANCELED && was == Receive::Cancelling => {}
            _ => stream.receive_error = -result,
        }
        if result <= 0 {
            stream.drop_unfilled(&bulk_cache);
        }
        let too_much = stream.unread >= POOLED_UNREAD_MAX || stream.inbox.len() >= POOLED_UNREAD_COUNT_MAX;
        if too_much && was == Receive::Pooled {
            stream.bulk = true;
            // The slots beyond the bound would be held for as long as the reader is slow.
            if let Some(last) = stream.inbox.last_mut() {
                last.spill();
            }
        }
        if starved {
            stream.receive = Receive::Starved;
            self.stats.pool_exhausted += u64::from(!self.pool.widen());
            self.starved.push(key);
            return;
        }
        wake(&mut stream.receive_waker);
        if too_much && more && was == Receive::Pooled {
            stream.receive = Receive::Cancelling;
            self.cancel(key, fd, Kind::Receive);
        } else if too_much && was == Receive::Cancelling {
            if let Some(last) = stream.inbox.last_mut() {
                last.spill();
            }
        } else if !more && !stream.bulk && !stream.ended && stream.receive_error == 0 {
            // The multishot ended by itself (a full completion queue): go on.
            self.arm_receive(key);
        }
    }

    pub(super) fn arm_receive(&mut self, key: Key) {
        let Some(Entry { fd, closing: false, body: Body::Stream(stream), .. }) = self.entries.get_mut(key)
        else {
            return;
        };
        if stream.receive != Receive::Off || stream.ended || stream.receive_error != 0 {
            return;
        }
        let fd = *fd;
        let token = Token { key, kind: Kind::Receive };
        if stream.bulk {
            let mut buffer = self.bulk.take();
            let (memory, len) = (buffer.as_mut_ptr(), buffer.capacity());
            stream.receive = Receive::Bulk;
            stream.bulk_buffer(buffer);
            // SAFETY: the buffer now lies in the entry, which keeps it untouched until the completion.
            unsafe { self.driver.receive_into(fd, token, memory, len) };
        } else {
            stream.receive = Receive::Pooled;
            self.driver.receive_pooled(fd, token);
        }
        self.started(key);
    }

    /// The pool ran empty: unread data moves to the heap, then the receives that failed go on.
    pub(super) fn feed_starved(&mut self) {
        if self.pool.is_scarce() {
            for key in self.entries.keys() {
                if let Some(Entry { body: Body::Stream(stream), .. }) = self.entries.get_mut(key) {
                    stream.inbox.iter_mut().for_each(Chunk::spill);
                }
            }
        }
        if self.pool.taken() >= self.pool.slots() {
            // Readers hold every slot; when they return one they have run, and a turn follows.
            return;
        }
        for key in std::mem::take(&mut self.starved) {
            if let Some(stream) = self.stream(key)
                && stream.receive == Receive::Starved
            {
                stream.receive = Receive::Off;
                self.arm_receive(key);
            }
        }
    }

    pub(in crate::runtime) fn poll_receive(
        &mut self,
        key: Key,
        cx: &Context<'_>,
    ) -> Poll<io::Result<Option<Chunk>>> {
        let Some(stream) = self.stream(key) else {
            return Poll::Ready(Err(gone()));
        };
        if let Some(chunk) = stream.inbox.pop() {
            stream.unread -= chunk.len();
            return Poll::Ready(Ok(Some(chunk)));
        }
        if let Some(end) = stream.end() {
            return Poll::Ready(end.map(|()| None));
        }
        register(&mut stream.receive_waker, cx);
        if stream.receive == Receive::Off {
            self.arm_receive(key);
        }
        Poll::Pending
    }

    /// Ready when the peer has reset the connection or takes nothing more, or has ended it and all it sent is read:
    /// watches without consuming. `Ok` is an orderly end.
    pub(in crate::runtime) fn poll_gone(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let Some(stream) = self.stream(key) else {
            return Poll::Ready(Err(gone()));
        };
        if let Some(end) = stream.end()
            && (end.is_err() || stream.inbox.is_empty())
        {
            return Poll::Ready(end);
        }
        // Whoever watches has written it all and waits for no room: only here it learns that nothing arrives.
        if stream.out.error != 0 {
            return Poll::Ready(Err(os_error(stream.out.error)));
        }
        register(&mut stream.receive_waker, cx);
        if stream.receive == Receive::Off && stream.inbox.is_empty() {
            // Watching needs no buffer of the socket's own.
            stream.bulk = false;
            self.arm_receive(key);
        }
        Poll::Pending
    }

    /// Whether unread bytes, an end or an error wait: a pooled connection with any is stale.
    pub(in crate::runtime) fn has_news(&mut self, key: Key) -> bool {
        self.stream(key)
            .is_none_or(|stream| stream.ended || stream.receive_error != 0 || !stream.inbox.is_empty())
    }

    /// A message boundary: the next message is expected to be small again. From here on the peer's
    /// end is noticed although nobody waits for it, and a buffer of the socket's own is given back.
    pub(in crate::runtime) fn settle(&mut self, key: Key) {
        let Some(Entry { fd, closing: false, body: Body::Stream(stream), .. }) = self.entries.get_mut(key)
        else {
            return;
        };
        if !stream.inbox.is_empty() {
            return;
        }
        stream.bulk = false;
        if stream.receive == Receive::Bulk {
            // It ends with what it has received, or with nothing; a pooled one follows.
            stream.receive = Receive::Cancelling;
            let fd = *fd;
            self.cancel(key, fd, Kind::Receive);
        } else {
            self.arm_receive(key);
        }
    }
}
