//! Pipes (pipe(7)).
//!
//! Owns: making them. Does not own: what goes through.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A pipe of which neither end blocks or is inherited: where to read, where to write. The kernel is asked to hold
/// `bytes` and may hold less, when the user has many pipes already.
///
/// # Errors
/// EMFILE or ENFILE.
pub fn non_blocking(bytes: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two descriptors to the array.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned both descriptors and nothing else owns them.
    let [read, write] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    // SAFETY: no pointer is passed.
    let held = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) };
    if held < 0 {
        log::debug!("a pipe holds less than {bytes} bytes: {}", io::Error::last_os_error());
    }
    Ok((read, write))
}
