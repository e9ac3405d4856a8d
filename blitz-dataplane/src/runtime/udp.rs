//! Datagram sockets: receive with source and GRO segment size, send with GSO.
//!
//! Owns: the handle and the control messages (udp(7): `UDP_GRO`, `UDP_SEGMENT`). Does not own: the
//! buffers in flight (see `reactor`).

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};

use super::Handle;
use super::slab::Key;
use crate::sys::net;

/// Room for the largest aggregate that GRO hands over, in bytes.
const RECEIVE_BYTES: usize = 64 * 1024;

/// What one receive brought.
pub struct Datagram<'a> {
    /// The payload; several datagrams of `segment` bytes each (the last may be shorter) after GRO.
    pub bytes: &'a [u8],
    /// Who sent it.
    pub source: Option<SocketAddr>,
    /// The size of each datagram in `bytes`, when the kernel merged several.
    pub segment: Option<u16>,
}

/// A UDP socket of this runtime.
pub struct UdpSocket {
    handle: Handle,
    key: Key,
}

impl UdpSocket {
    /// Takes over a bound socket, and turns GRO on.
    ///
    /// # Errors
    /// When the kernel has no `UDP_GRO` (before 5.0).
    pub fn adopt(handle: &Handle, fd: OwnedFd) -> io::Result<Self> {
        net::set_option(fd.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1)?;
        let key = handle.reactor.borrow_mut().adopt_datagram(fd.into_raw_fd(), RECEIVE_BYTES)?;
        Ok(Self { handle: handle.clone(), key })
    }

    /// Waits for a datagram and shows it to `read`.
    ///
    /// # Cancel safety
    /// Safe: what arrives meanwhile waits here.
    ///
    /// # Errors
    /// As recvmsg(2); a pending ICMP error among them.
    pub async fn receive<T>(&self, read: impl FnOnce(Datagram<'_>) -> T) -> io::Result<T> {
        let mut read = Some(read);
        poll_fn(|cx| {
            self.handle.reactor.borrow_mut().poll_receive_datagram(self.key, cx, |bytes, source, segment| {
                read.take().map(|read| read(Datagram { bytes, source, segment }))
            })
        })
        .await?
        .ok_or_else(|| io::Error::other("a datagram was read twice"))
    }

    /// Sends `bytes`; as datagrams of `segment` bytes each when that is given (GSO, at most 64 of
    /// them and 64 KiB). One send is in flight at a time; the next waits.
    ///
    /// # Cancel safety
    /// What was handed over is sent all the same.
    ///
    /// # Errors
    /// As sendmsg(2); `EINVAL` when the segments do not fit.
    pub async fn send(&self, bytes: &[u8], to: SocketAddr, segment: Option<u16>) -> io::Result<usize> {
        while !self.handle.reactor.borrow_mut().start_send_datagram(self.key, bytes, to, segment)? {
            poll_fn(|cx| self.handle.reactor.borrow_mut().poll_datagram_sent(self.key, cx)).await?;
        }
        poll_fn(|cx| self.handle.reactor.borrow_mut().poll_datagram_sent(self.key, cx)).await
    }

    /// The address at this end.
    ///
    /// # Errors
    /// When the descriptor is gone.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.handle.reactor.borrow().local_address(self.key)
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.handle.reactor.borrow_mut().close(self.key);
    }
}

/// A control message as the kernel lays it out: `cmsghdr` (16 bytes: length, level, type), then data.
const HEADER_BYTES: usize = size_of::<libc::cmsghdr>();

/// Writes a `UDP_SEGMENT` message into `control`; returns the length to announce.
pub(super) fn gso_control(control: &mut [u64; 8], segment: Option<u16>) -> usize {
    let Some(segment) = segment else { return 0 };
    let len = (HEADER_BYTES + size_of::<u16>()) as u64;
    control[0] = len;
    // Level in the low half, type in the high half: two 32-bit integers on a little-endian machine.
    control[1] = u64::from(libc::SOL_UDP as u32) | (u64::from(libc::UDP_SEGMENT as u32) << 32);
    control[2] = u64::from(segment);
    HEADER_BYTES + 8
}

/// The segment size out of a `UDP_GRO` message, which holds an `int`.
pub(super) fn gro_segment(control: &[u64; 8], len: usize) -> Option<u16> {
    let wanted = u64::from(libc::SOL_UDP as u32) | (u64::from(libc::UDP_GRO as u32) << 32);
    if len < HEADER_BYTES + size_of::<u32>() || control[1] != wanted {
        return None;
    }
    u16::try_from(control[2] as u32).ok()
}

const _: () =
    assert!(cfg!(target_endian = "little"), "control messages are packed for little-endian machines");
