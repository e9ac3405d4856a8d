//! Readability of descriptors that are not sockets of ours, such as event descriptors.

use std::future::poll_fn;
use std::io;
use std::os::fd::RawFd;
use std::task::{Context, Poll, Waker};

use super::{Body, Entry, Reactor, gone, register};
use crate::runtime::Handle;
use crate::runtime::driver::{Kind, Token};
use crate::runtime::slab::Key;

pub(super) struct PollEntry {
    pub(super) ready: bool,
    pub(super) armed: bool,
    pub(super) waker: Option<Waker>,
}

impl Reactor {
    pub(super) fn add_poll(&mut self, fd: RawFd) -> io::Result<Key> {
        // A duplicate: the entry closes what it owns, and the caller keeps its own.
        // SAFETY: F_DUPFD_CLOEXEC takes and returns plain integers.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        self.insert(copy, Body::Poll(PollEntry { ready: false, armed: false, waker: None }))
    }

    pub(super) fn poll_ready(&mut self, key: Key, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let Some(Entry { fd, body: Body::Poll(poll), .. }) = self.entries.get_mut(key) else {
            return Poll::Ready(Err(gone()));
        };
        if std::mem::take(&mut poll.ready) {
            return Poll::Ready(Ok(()));
        }
        register(&mut poll.waker, cx);
        if !std::mem::replace(&mut poll.armed, true) {
            let fd = *fd;
            self.driver.poll_readable(fd, Token { key, kind: Kind::Poll });
            self.started(key);
        }
        Poll::Pending
    }
}

/// Readability of a descriptor that is not a socket of ours.
pub struct Readiness {
    handle: Handle,
    key: io::Result<Key>,
}

impl Readiness {
    pub(in crate::runtime) fn new(handle: Handle, fd: RawFd) -> Self {
        let key = handle.reactor.borrow_mut().add_poll(fd);
        Self { handle, key }
    }

    /// Waits until the descriptor was readable since the last time this was asked. The caller
    /// drains it and asks again.
    ///
    /// # Cancel safety
    /// Safe: readiness stays noted.
    ///
    /// # Errors
    /// When the descriptor could not be watched.
    pub async fn ready(&mut self) -> io::Result<()> {
        let key = match &self.key {
            Ok(key) => *key,
            Err(error) => return Err(io::Error::new(error.kind(), error.to_string())),
        };
        poll_fn(|cx| self.handle.reactor.borrow_mut().poll_ready(key, cx)).await
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        if let Ok(key) = self.key {
            self.handle.reactor.borrow_mut().close(key);
        }
    }
}
