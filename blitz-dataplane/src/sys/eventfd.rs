//! An event counter (eventfd(2)) that one thread signals and another polls.
//!
//! Owns: the descriptor. Does not own: what the signal means (see `process::orders`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// A counter whose descriptor is readable while the counter is not zero.
#[derive(Debug)]
pub struct EventFd(File);

impl EventFd {
    /// A counter at zero; close-on-exec, not blocking.
    ///
    /// # Errors
    /// EMFILE, ENFILE or ENOMEM.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self(File::from(fd)))
    }

    /// Makes the descriptor readable. A full counter (2^64 - 2) is readable already, so nothing is lost.
    pub fn signal(&self) {
        let written = (&self.0).write(&1u64.to_ne_bytes());
        debug_assert!(written.is_ok(), "an eventfd takes a signal");
    }

    /// Sets the counter to zero; whether it was signalled since the last call.
    pub fn take(&self) -> bool {
        let mut value = [0; 8];
        matches!((&self.0).read(&mut value), Ok(8))
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
