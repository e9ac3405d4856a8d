//! A connected UDP socket that takes and gives many datagrams at once (udp(7): `UDP_GRO`, `UDP_SEGMENT`).
//!
//! Owns: that. Does not own: what the datagrams say (`bin/load_h3.rs`).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

/// Bytes of what is taken or given at once, at most.
pub const BYTES_MAX: usize = 65_535 - 20 - 8;
/// Datagrams that are given at once, at most.
pub const SEGMENTS_MAX: usize = 64;
/// Bytes that may wait in the socket.
const QUEUE_BYTES: libc::c_int = 4 << 20;
/// Words of a control message: the header's two, and one with the size of a segment.
const CONTROL_WORDS: usize = size_of::<libc::cmsghdr>() / 8 + 1;

/// The socket.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
}

impl Datagrams {
    /// Connects from a port of the kernel's choice.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn connect(to: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        let options = [
            (libc::SOL_UDP, libc::UDP_GRO, 1),
            (libc::SOL_SOCKET, libc::SO_RCVBUF, QUEUE_BYTES),
            (libc::SOL_SOCKET, libc::SO_SNDBUF, QUEUE_BYTES),
        ];
        for (level, name, value) in options {
            let (value, len) = (&raw const value, size_of::<libc::c_int>() as libc::socklen_t);
            // SAFETY: the option's value is a c_int that lives across the call, and the length is its size.
            let status = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.cast(), len) };
            if status != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self { socket })
    }

    /// The address at this end.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The descriptor, to be waited for.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Takes what has come: bytes in all, and of each datagram but the last.
    ///
    /// # Errors
    /// As recvmsg(2); `WouldBlock` when nothing has.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, usize)> {
        let mut control = [0_u64; CONTROL_WORDS];
        let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut message = message(&mut piece, &mut control);
        // SAFETY: the message names a buffer and control words that live across the call, with their sizes.
        let count = unsafe { libc::recvmsg(self.descriptor(), &raw mut message, 0) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        // The one message that was asked for: length, level and type, size.
        let segment = if message.msg_controllen > 0 { control[2] as u32 as usize } else { count };
        Ok((count, segment.max(1)))
    }

    /// Gives datagrams of `segment` bytes each, the last perhaps shorter.
    ///
    /// # Errors
    /// As sendmsg(2).
    pub fn send(&self, bytes: &[u8], segment: usize) -> io::Result<()> {
        let kind =
            u64::from(libc::SOL_UDP.cast_unsigned()) | u64::from(libc::UDP_SEGMENT.cast_unsigned()) << 32;
        let mut control = [(CONTROL_WORDS as u64 - 1) * 8 + 2, kind, segment as u64];
        let mut piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut message = message(&mut piece, &mut control);
        if segment >= bytes.len() {
            message.msg_controllen = 0;
        }
        // SAFETY: the message names bytes and control words that live across the call, with their sizes.
        let count = unsafe { libc::sendmsg(self.descriptor(), &raw const message, 0) };
        if count < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// A message to the connected address.
fn message(piece: &mut libc::iovec, control: &mut [u64; CONTROL_WORDS]) -> libc::msghdr {
    // SAFETY: all fields are numbers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = piece;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(control);
    message
}
