//! Datagram sockets: receive with both addresses and GRO segment size, send with GSO.
//!
//! A socket has one receive in flight, which goes on until it is cancelled, and several sends. Buffers change hands, so
//! that no byte is copied on the way: a receive lends the slot that it came in, a send takes the caller's buffer and
//! gives back the one that is done.
//!
//! Owns: the handle and the control messages (udp(7): `UDP_GRO`, `UDP_SEGMENT`; ip(7), ipv6(7): packet information).
//! Does not own: the buffers in flight (see `reactor`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::task::{Context, Poll};

use super::Handle;
use super::buf::Chunk;
use super::slab::Key;
use crate::sys::net;

/// Datagrams that one send may carry (count): what kernels before 6.9 take.
pub const SEGMENTS_MAX: usize = 64;

/// Bytes of one send, at most: an IPv4 packet's, without the headers of IP and UDP.
pub const SEND_BYTES_MAX: usize = 65_535 - 20 - 8;

/// What a receive has brought, until the next one.
#[derive(Default)]
pub struct ReceiveBuffer {
    slot: Option<Chunk>,
    payload_at: usize,
}

impl ReceiveBuffer {
    /// Holds nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lends the slot of a receive; the one before goes back.
    pub(super) fn fill(&mut self, slot: Chunk, payload_at: usize) {
        *self = Self { slot: Some(slot), payload_at };
    }

    /// The datagrams that a receive brought, in order.
    pub fn datagrams(&mut self, received: &Received) -> impl Iterator<Item = &mut [u8]> {
        let slot = self.slot.as_mut().and_then(Chunk::bytes_mut).unwrap_or_default();
        let bytes = slot.get_mut(self.payload_at..self.payload_at + received.len).unwrap_or_default();
        bytes.chunks_mut(received.segment.map_or(usize::MAX, |segment| usize::from(segment).max(1)))
    }
}

/// What one receive brought.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Bytes in all; several datagrams of `segment` bytes each (the last may be shorter) after GRO.
    pub len: usize,
    /// Who sent it; `None`: neither IPv4 nor IPv6.
    pub source: Option<SocketAddr>,
    /// The address at this end that it was sent to, when the socket asks for it.
    pub destination: Option<IpAddr>,
    /// The size of each datagram, when the kernel merged several.
    pub segment: Option<u16>,
}

/// A send.
#[derive(Clone, Copy, Debug)]
pub struct Transmit {
    /// To whom.
    pub to: SocketAddr,
    /// From which address of this host; `None`: the kernel chooses.
    pub from: Option<IpAddr>,
    /// The size of each datagram when there are several (GSO): at most [`SEGMENTS_MAX`] of them, and
    /// [`SEND_BYTES_MAX`] in all.
    pub segment: Option<u16>,
}

/// A UDP socket of this runtime.
pub struct UdpSocket {
    handle: Handle,
    key: Key,
    /// A copy of the descriptor for each send that may be in flight.
    lanes: Vec<Key>,
}

impl UdpSocket {
    /// Takes over a bound socket, and turns GRO on. As many as `lanes` sends may be in flight.
    ///
    /// # Errors
    /// When the kernel has no `UDP_GRO` (before 5.0), or no descriptor is left.
    pub fn adopt(handle: &Handle, fd: OwnedFd, lanes: usize) -> io::Result<Self> {
        net::set_option(fd.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1)?;
        let copies: io::Result<Vec<OwnedFd>> = (0..lanes).map(|_| fd.try_clone()).collect();
        let mut reactor = handle.reactor.borrow_mut();
        let key = reactor.adopt_datagram(fd.into_raw_fd())?;
        let mut socket = Self { handle: handle.clone(), key, lanes: Vec::with_capacity(lanes) };
        let adopted = copies.and_then(|copies| {
            copies.into_iter().try_for_each(|copy| {
                socket.lanes.push(reactor.adopt_datagram(copy.into_raw_fd())?);
                Ok(())
            })
        });
        // Where it failed, the drop below needs it.
        drop(reactor);
        adopted.map(|()| socket)
    }

    /// A socket of the simulated network.
    ///
    /// # Errors
    /// `AddrInUse`, or `Unsupported` on a real driver.
    pub fn simulated(handle: &Handle, address: SocketAddr, lanes: usize) -> io::Result<Self> {
        let mut reactor = handle.reactor.borrow_mut();
        let fd = reactor.simulated_datagram(address)?;
        let key = reactor.adopt_datagram(fd)?;
        let mut socket = Self { handle: handle.clone(), key, lanes: Vec::with_capacity(lanes) };
        for _ in 0..lanes {
            let lane = reactor.simulated_lane(fd)?;
            socket.lanes.push(reactor.adopt_datagram(lane)?);
        }
        drop(reactor);
        Ok(socket)
    }

    /// Gives a simulated socket another address in the eyes of others, as a NAT does that has forgotten the old one.
    ///
    /// # Errors
    /// `AddrInUse`, or `Unsupported` on a real driver.
    pub fn rebind_simulated(&self, seen_as: SocketAddr) -> io::Result<()> {
        self.handle.reactor.borrow_mut().rebind_simulated(self.key, seen_as)
    }

    /// Sends that may be in flight (count).
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Ready with what has come, which is in `buffer` then. What was in it goes back to the kernel.
    ///
    /// # Errors
    /// As recvmsg(2); a pending ICMP error among them.
    pub fn poll_receive(&self, cx: &Context<'_>, buffer: &mut ReceiveBuffer) -> Poll<io::Result<Received>> {
        self.handle.reactor.borrow_mut().poll_receive_datagram(self.key, cx, buffer)
    }

    /// Starts a send of the first `len` bytes of `buffer` on a lane whose last one is done. `buffer` is taken, and that
    /// of the lane's send before left in its place: an empty one the first time.
    ///
    /// # Errors
    /// When the socket is gone, the lane is busy, or the buffer is shorter than `len`.
    pub fn start_send(
        &self,
        lane: usize,
        buffer: &mut Box<[u8]>,
        len: usize,
        transmit: Transmit,
    ) -> io::Result<()> {
        let key = *self.lanes.get(lane).ok_or(io::ErrorKind::InvalidInput)?;
        self.handle.reactor.borrow_mut().start_send_datagram(key, buffer, len, transmit)
    }

    /// Ready when the send on a lane is done.
    ///
    /// # Errors
    /// As sendmsg(2): `EINVAL` when the segments do not fit, `EMSGSIZE` when a datagram is too large for the path.
    pub fn poll_sent(&self, lane: usize, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        let Some(key) = self.lanes.get(lane) else {
            return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
        };
        self.handle.reactor.borrow_mut().poll_datagram_sent(*key, cx)
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
        let mut reactor = self.handle.reactor.borrow_mut();
        for key in self.lanes.drain(..).chain([self.key]) {
            reactor.close(key);
        }
    }
}

/// Words of room for control messages: packet information of IPv6 (36 bytes, padded to 40) and a segment size (18 or 20
/// bytes, padded to 24).
pub(super) const CONTROL_WORDS: usize = (40 + 24) / 8;

/// A control message as the kernel lays it out: `cmsghdr` (16 bytes: length, level, type), then data, padded to 8.
const HEADER_WORDS: usize = size_of::<libc::cmsghdr>() / 8;

const IP_INFO: u64 = kind(libc::IPPROTO_IP, libc::IP_PKTINFO);
const IPV6_INFO: u64 = kind(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO);
const GRO: u64 = kind(libc::SOL_UDP, libc::UDP_GRO);
const GSO: u64 = kind(libc::SOL_UDP, libc::UDP_SEGMENT);

/// Level in the low half, type in the high half: two 32-bit integers on a little-endian machine.
const fn kind(level: i32, kind: i32) -> u64 {
    level as u32 as u64 | (kind as u32 as u64) << 32
}

/// Writes the messages of a send into `control`; returns the length to announce.
pub(super) fn send_control(control: &mut [u64; CONTROL_WORDS], transmit: &Transmit) -> usize {
    let segment = transmit.segment.map(u16::to_ne_bytes);
    write_control(control, transmit.from, segment.as_ref().map(|segment| (GSO, &segment[..])))
}

/// Writes the messages of a receive, as the kernel would.
pub(super) fn simulated_control(
    control: &mut [u64; CONTROL_WORDS],
    destination: IpAddr,
    segment: Option<u16>,
) -> usize {
    let segment = segment.map(|segment| i32::from(segment).to_ne_bytes());
    write_control(control, Some(destination), segment.as_ref().map(|segment| (GRO, &segment[..])))
}

fn write_control(
    control: &mut [u64; CONTROL_WORDS],
    local: Option<IpAddr>,
    segment: Option<(u64, &[u8])>,
) -> usize {
    let mut data = [0_u8; 24];
    let mut at = 0;
    let mut put = |message: u64, data: &[u8]| {
        let words = HEADER_WORDS + data.len().div_ceil(8);
        // Both messages fit by the size of the array.
        let Some(room) = control.get_mut(at..at + words) else { return };
        let (header, body) = room.split_at_mut(HEADER_WORDS);
        header.copy_from_slice(&[(HEADER_WORDS * 8 + data.len()) as u64, message]);
        for (word, bytes) in body.iter_mut().zip(data.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(padded);
        }
        at += words;
    };
    match local {
        // in_pktinfo: interface (chosen by the kernel), local address, destination (not read).
        Some(IpAddr::V4(local)) => {
            data[4..8].copy_from_slice(&local.octets());
            put(IP_INFO, &data[..12]);
        }
        // in6_pktinfo: local address, interface.
        Some(IpAddr::V6(local)) => {
            data[..16].copy_from_slice(&local.octets());
            put(IPV6_INFO, &data[..20]);
        }
        None => {}
    }
    if let Some((message, size)) = segment {
        put(message, size);
    }
    at * 8
}

/// The segment size and the local address out of the messages of a receive, or of a send; `len` is what was written.
pub(super) fn read_control(control: &[u64; CONTROL_WORDS], len: usize) -> (Option<u16>, Option<IpAddr>) {
    let (mut segment, mut destination) = (None, None);
    let mut rest = control.get(..len.div_ceil(8)).unwrap_or(control);
    while let [bytes, message, body @ ..] = rest {
        let words = usize::try_from(bytes.div_ceil(8)).unwrap_or(usize::MAX);
        match (*message, body) {
            // An `int`, a `u16`: either alone in its word.
            (GRO | GSO, [size, ..]) => segment = u16::try_from(*size as u32).ok(),
            // in_pktinfo: interface, local address, destination in the header.
            (IP_INFO, [first, ..]) => {
                let octets: [u8; 8] = first.to_ne_bytes();
                destination = Some(Ipv4Addr::new(octets[4], octets[5], octets[6], octets[7]).into());
            }
            (IPV6_INFO, [first, second, ..]) => {
                let high = u128::from(u64::from_be_bytes(first.to_ne_bytes()));
                let low = u128::from(u64::from_be_bytes(second.to_ne_bytes()));
                destination = Some(Ipv6Addr::from(high << 64 | low).into());
            }
            _ => {}
        }
        rest = rest.get(words.max(HEADER_WORDS)..).unwrap_or_default();
    }
    (segment, destination)
}

const _: () =
    assert!(cfg!(target_endian = "little"), "control messages are packed for little-endian machines");
