//! Listening sockets (socket(7), tcp(7)).
//!
//! Owns: creation, options and binding of one socket. Does not own: banks of them (see `process::listeners`)
//! or accepting (see `runtime`).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Connections that wait to be accepted, per socket. The kernel cuts it to `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// Whether a socket may stand beside others of our own on one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// One of a SO_REUSEPORT group.
    Group,
    /// Alone: binding fails when any other socket listens there, be it one of a group.
    Alone,
}

/// A listening TCP socket: close-on-exec, blocking (a runtime that wants otherwise sets it), TCP_NODELAY
/// (accepted connections inherit it), IPv6 without IPv4 (`[::]` is IPv6 only; list `0.0.0.0` too for both).
///
/// # Errors
/// What socket(2), setsockopt(2), bind(2) or listen(2) reports: EADDRINUSE, EACCES, EADDRNOTAVAIL.
pub fn listen(address: SocketAddr, share: Share) -> io::Result<OwnedFd> {
    let fd = bind(address, share)?;
    // SAFETY: no pointer is passed; `fd` is open because we own it.
    let result = unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) };
    if result == 0 { Ok(fd) } else { Err(io::Error::last_os_error()) }
}

fn bind(address: SocketAddr, share: Share) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // Without it, connections of a predecessor in TIME_WAIT would refuse the address for a minute.
    set(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    if share == Share::Group {
        set(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT)?;
    }
    if address.is_ipv6() {
        set(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)?;
    }
    set(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY)?;
    match address {
        SocketAddr::V4(address) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                sin_zero: [0; 8],
            };
            bind_raw(&fd, &raw)?;
        }
        SocketAddr::V6(address) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            };
            bind_raw(&fd, &raw)?;
        }
    }
    Ok(fd)
}

/// Binds to `raw`, which must be a `sockaddr_in` or `sockaddr_in6`.
fn bind_raw<T>(fd: &OwnedFd, raw: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `raw` is live and `len` is its size; the kernel only reads it.
    let result = unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(raw).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set(fd: &OwnedFd, level: i32, option: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `on` is live and `len` is its size; the kernel only reads it.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const on).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
