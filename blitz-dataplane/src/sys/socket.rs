//! Listening sockets (socket(7), tcp(7), udp(7), ip(7)).
//!
//! Owns: creation, options and binding of one socket. Does not own: banks of them (see `process::listeners`)
//! or accepting (see `runtime`).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::net;

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
    let fd = net::socket(address, libc::SOCK_STREAM, false)?;
    // Without it, connections of a predecessor in TIME_WAIT would refuse the address for a minute.
    set(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    set(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    bind(&fd, address, share)?;
    net::listen(fd.as_fd(), BACKLOG)?;
    Ok(fd)
}

/// Bytes that wait in a socket of datagrams until its worker reads, and as many to be sent. The kernel cuts it to
/// `net.core.rmem_max` and `wmem_max`.
const DATAGRAM_BUFFER_BYTES: i32 = 4 * 1024 * 1024;

/// A UDP socket: close-on-exec, blocking (a runtime that wants otherwise sets it), told the local address of each
/// datagram, its own never fragmented (RFC 9000 section 14); IPv6 without IPv4, as [`listen`].
///
/// # Errors
/// As for [`listen`].
pub fn datagram(address: SocketAddr, share: Share) -> io::Result<OwnedFd> {
    let fd = net::socket(address, libc::SOCK_DGRAM, false)?;
    if address.is_ipv4() {
        set(&fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        set(&fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
    } else {
        set(&fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        set(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
    }
    set(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, DATAGRAM_BUFFER_BYTES)?;
    set(&fd, libc::SOL_SOCKET, libc::SO_SNDBUF, DATAGRAM_BUFFER_BYTES)?;
    bind(&fd, address, share)?;
    Ok(fd)
}

fn bind(fd: &OwnedFd, address: SocketAddr, share: Share) -> io::Result<()> {
    if share == Share::Group {
        set(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    if address.is_ipv6() {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    net::bind(fd.as_fd(), address)
}

fn set(fd: &OwnedFd, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
    net::set_option(fd.as_fd(), level, option, value)
}
