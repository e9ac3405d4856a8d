//! One question to rtnetlink(7), and its answer as octets.
//!
//! Owns: the socket and the exchange. Does not own: messages (see [`crate::netlink`]).

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

/// Octets of one answer. A link with 128 virtual functions needs about 40 KiB; what is cut off is
/// refused.
const ANSWER_MAX: usize = 256 * 1024;
/// The kernel answers within the call; this only bounds a broken machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends `request`, a whole message with its header, and returns the first datagram of the answer.
///
/// # Errors
/// What socket(2), send(2) and recv(2) report; EMSGSIZE when the answer is larger than the buffer.
pub fn ask(request: &[u8]) -> io::Result<Vec<u8>> {
    // SAFETY: integers only.
    let raw =
        unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let time = libc::timeval { tv_sec: PATIENCE.as_secs() as libc::time_t, tv_usec: 0 };
    let size = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: the value is a live timeval of the size given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            std::ptr::from_ref(&time).cast(),
            size,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the octets are live for the call. Without an address the message goes to the kernel.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = vec![0_u8; ANSWER_MAX];
    // SAFETY: the buffer is live, writable and as long as said; with MSG_TRUNC the result is the datagram's
    // whole length.
    let length =
        unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), libc::MSG_TRUNC) };
    let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error()) };
    if length > answer.len() {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    answer.truncate(length);
    Ok(answer)
}
