//! Listening sockets: accepted connections, and the pause when descriptors run out.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::task::{Context, Poll, Waker};

use super::stream::Stream;
use super::{Body, Entry, Reactor, gone, register, wake};
use crate::runtime::driver::{Kind, Token};
use crate::runtime::slab::Key;

/// How long accepting pauses when descriptors or memory are used up.
const ACCEPT_PAUSE_MS: u64 = 50;

/// Accepted connections that wait for the listener's task (count). Beyond it accepting stops until
/// some are taken; the rest wait in the kernel's queue.
const ACCEPTED_WAITING_MAX: usize = 1024;

pub(super) struct Listener {
    pub(super) armed: bool,
    pub(super) accepted: VecDeque<RawFd>,
    pub(super) waker: Option<Waker>,
}

impl Reactor {
    /// A real listening socket, taken over.
    pub(in crate::runtime) fn adopt_listener(&mut self, fd: RawFd) -> io::Result<Key> {
        self.driver.adopt_listener(fd)?;
        self.insert(fd, Body::Listener(Listener { armed: false, accepted: VecDeque::new(), waker: None }))
    }

    pub(in crate::runtime) fn simulated_listener(&mut self, address: SocketAddr) -> io::Result<Key> {
        let fd = self.driver.simulated_listener(address)?;
        self.insert(fd, Body::Listener(Listener { armed: false, accepted: VecDeque::new(), waker: None }))
    }

    pub(super) fn arm_accept(&mut self, key: Key) {
        let Some(Entry { fd, closing: false, body: Body::Listener(listener), .. }) =
            self.entries.get_mut(key)
        else {
            return;
        };
        if !listener.armed {
            listener.armed = true;
            let fd = *fd;
            self.driver.accept(fd, Token { key, kind: Kind::Accept });
            self.started(key);
        }
    }

    pub(super) fn accepted(&mut self, key: Key, result: i32, more: bool) {
        let Some(Entry { fd, closing, body: Body::Listener(listener), .. }) = self.entries.get_mut(key)
        else {
            return;
        };
        let (fd, closing) = (*fd, *closing);
        listener.armed = more;
        let mut full = false;
        if result >= 0 {
            if closing {
                // Arrived after the cancel: nobody will take it.
                self.driver.close(result);
            } else {
                listener.accepted.push_back(result);
                // Once, when the bound is reached: what was on its way still arrives.
                full = listener.accepted.len() == ACCEPTED_WAITING_MAX;
                wake(&mut listener.waker);
            }
        } else if result != -libc::ECANCELED && !closing {
            let errors = &mut self.stats.accept_errors;
            match -result {
                libc::EMFILE | libc::ENFILE => errors.descriptors += 1,
                libc::ENOMEM | libc::ENOBUFS => errors.memory += 1,
                _ => errors.other += 1,
            }
            // Aborted before it was accepted: the next one may be fine. Anything else lasts.
            let lasting = !matches!(-result, libc::ECONNABORTED | libc::EPROTO | libc::EINTR);
            if lasting {
                self.paused.push((key, self.now_ns / 1_000_000 + ACCEPT_PAUSE_MS));
                return;
            }
        }
        let has_room = listener.accepted.len() < ACCEPTED_WAITING_MAX;
        if full && more {
            self.cancel(key, fd, Kind::Accept);
        } else if !more && has_room && !closing {
            self.arm_accept(key);
        }
    }

    pub(super) fn resume_listeners(&mut self, now_ms: u64) {
        let due: Vec<Key> =
            self.paused.extract_if(.., |(_, until)| *until <= now_ms).map(|(key, _)| key).collect();
        for key in due {
            self.arm_accept(key);
        }
    }

    pub(in crate::runtime) fn poll_accept(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<Key>> {
        let Some(Entry { body: Body::Listener(listener), .. }) = self.entries.get_mut(key) else {
            return Poll::Ready(Err(gone()));
        };
        if let Some(fd) = listener.accepted.pop_front() {
            return Poll::Ready(self.insert(fd, Body::Stream(Stream::new(None))));
        }
        register(&mut listener.waker, cx);
        if !self.paused.iter().any(|(paused, _)| *paused == key) {
            self.arm_accept(key);
        }
        Poll::Pending
    }
}
