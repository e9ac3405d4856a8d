//! AF_XDP sockets (kernel documentation, networking/af_xdp).
//!
//! Owns: making one, which takes CAP_NET_RAW. Does not own: its memory and its queue, which are the worker's.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

/// A new socket, close-on-exec.
///
/// # Errors
/// EPERM without CAP_NET_RAW, EAFNOSUPPORT when the kernel has none.
pub fn socket() -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
