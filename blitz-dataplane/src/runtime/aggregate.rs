//! How that lies in memory which one receive of a datagram socket brings: lengths, source, control messages, payload.
//!
//! The layout is that of io_uring's multishot recvmsg (io_uring_prep_recvmsg_multishot(3)); the others follow it.
//!
//! Owns: the layout. Does not own: the slots (`buf.rs`), what control messages say (`udp.rs`).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::udp::{self, CONTROL_WORDS, Received};

/// Slots of one runtime (count), 2 MiB in all, of which only what was written into is resident: all of its sockets
/// share them. When they are used up the kernel keeps what comes.
pub(super) const SLOTS: u16 = 32;
/// Bytes of a slot.
pub(super) const SLOT_BYTES: u32 = (PAYLOAD_AT + PAYLOAD_BYTES) as u32;

/// Room for the largest aggregate that GRO hands over.
const PAYLOAD_BYTES: usize = 64 * 1024;
/// Room for the source: a `sockaddr_in6` has 28 bytes.
const SOURCE_BYTES: usize = 32;
/// `struct io_uring_recvmsg_out`: the lengths of source, control messages and payload, and flags, 32 bits each.
const LENGTHS_BYTES: usize = 16;
const CONTROL_AT: usize = LENGTHS_BYTES + SOURCE_BYTES;
const PAYLOAD_AT: usize = CONTROL_AT + CONTROL_WORDS * 8;

/// A header that tells the kernel how much room each part has.
pub(super) const fn template() -> libc::msghdr {
    libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: SOURCE_BYTES as libc::socklen_t,
        msg_iov: std::ptr::null_mut(),
        msg_iovlen: 0,
        msg_control: std::ptr::null_mut(),
        msg_controllen: CONTROL_WORDS * 8,
        msg_flags: 0,
    }
}

/// A header that leads to the parts of a slot, the payload through `piece`.
pub(super) fn header(slot: *mut u8, piece: &mut libc::iovec) -> libc::msghdr {
    *piece = libc::iovec { iov_base: slot.wrapping_add(PAYLOAD_AT).cast(), iov_len: PAYLOAD_BYTES };
    libc::msghdr {
        msg_name: slot.wrapping_add(LENGTHS_BYTES).cast(),
        msg_iov: piece,
        msg_iovlen: 1,
        msg_control: slot.wrapping_add(CONTROL_AT).cast(),
        ..template()
    }
}

/// The lengths in front, of a receive that has filled the parts; and the bytes of the slot that are in use.
pub(super) fn lengths(header: &libc::msghdr, payload: u32) -> ([u8; LENGTHS_BYTES], u32) {
    let mut lengths = [0; LENGTHS_BYTES];
    let control = header.msg_controllen as u32;
    for (bytes, length) in lengths.chunks_mut(4).zip([header.msg_namelen, control, payload]) {
        bytes.copy_from_slice(&length.to_ne_bytes());
    }
    (lengths, PAYLOAD_AT as u32 + payload)
}

/// What a slot says, and where the payload begins; `None` where it is shorter than its own lengths.
pub(super) fn read(slot: &[u8]) -> Option<(Received, usize)> {
    let word = |at: usize| Some(u32::from_ne_bytes(slot.get(at..at + 4)?.try_into().ok()?) as usize);
    let (control_len, len) = (word(4)?, word(8)?);
    let mut control = [0; CONTROL_WORDS];
    for (word, bytes) in control.iter_mut().zip(slot.get(CONTROL_AT..PAYLOAD_AT)?.chunks(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().ok()?);
    }
    let (segment, destination) = udp::read_control(&control, control_len);
    slot.get(PAYLOAD_AT..PAYLOAD_AT + len)?;
    let source = source(slot.get(LENGTHS_BYTES..CONTROL_AT)?);
    Some((Received { len, source, destination, segment }, PAYLOAD_AT))
}

/// A socket address out of the kernel's form: family, port, then as `sockaddr_in` and `sockaddr_in6` have it.
fn source(bytes: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let (first, rest) = rest.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes(*port);
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => Some((Ipv4Addr::from(*first), port).into()),
        libc::AF_INET6 => {
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            let scope = u32::from_ne_bytes(*rest.first_chunk()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(*ip), port, u32::from_ne_bytes(*first), scope).into())
        }
        _ => None,
    }
}
