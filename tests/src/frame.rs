//! Frames of the flood generator, built octet by octet.
//!
//! Owns: Ethernet, IPv4, IPv6, UDP and TCP SYN with right lengths and checksums, and the mark by which
//! the receiver knows a packet. Does not own: sending (see [`crate::flood`]).

use std::net::{IpAddr, SocketAddr};

/// First octets of the payload, before flow and number.
const MAGIC: [u8; 4] = *b"bltz";
/// Octets of a [`Mark`] on the wire.
pub const MARK_BYTES: usize = 16;

/// What tells one packet of a test from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark {
    /// The flow.
    pub flow: u32,
    /// Its packets are numbered from 0.
    pub number: u64,
}

impl Mark {
    /// As it is sent.
    pub fn encode(self) -> [u8; MARK_BYTES] {
        let mut octets = [0; MARK_BYTES];
        octets[..4].copy_from_slice(&MAGIC);
        octets[4..8].copy_from_slice(&self.flow.to_be_bytes());
        octets[8..].copy_from_slice(&self.number.to_be_bytes());
        octets
    }

    /// From a payload; `None` when it has none.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let (magic, rest) = payload.split_first_chunk()?;
        let (flow, rest) = rest.split_first_chunk()?;
        let (number, _) = rest.split_first_chunk()?;
        let mark = Self { flow: u32::from_be_bytes(*flow), number: u64::from_be_bytes(*number) };
        (*magic == MAGIC).then_some(mark)
    }
}

/// A UDP datagram with `payload`, in a frame.
///
/// # Panics
/// When source and destination are of different families.
pub fn udp(macs: [[u8; 6]; 2], source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut segment = Vec::with_capacity(8 + payload.len());
    segment.extend(source.port().to_be_bytes());
    segment.extend(destination.port().to_be_bytes());
    segment.extend((8 + payload.len() as u16).to_be_bytes());
    segment.extend([0; 2]);
    segment.extend(payload);
    // RFC 768: a sum of zero is sent as all ones.
    let sum = match pseudo_sum(source.ip(), destination.ip(), UDP, &segment) {
        0 => u16::MAX,
        sum => sum,
    };
    segment[6..8].copy_from_slice(&sum.to_be_bytes());
    frame(macs, source.ip(), destination.ip(), UDP, &segment)
}

/// A TCP SYN without options, in a frame.
///
/// # Panics
/// When source and destination are of different families.
pub fn syn(macs: [[u8; 6]; 2], source: SocketAddr, destination: SocketAddr, number: u32) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend(source.port().to_be_bytes());
    segment.extend(destination.port().to_be_bytes());
    segment.extend(number.to_be_bytes());
    segment.extend([0; 4]);
    // Five words of header, SYN, a window of 65,535.
    segment.extend([0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = pseudo_sum(source.ip(), destination.ip(), TCP, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    frame(macs, source.ip(), destination.ip(), TCP, &segment)
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// `macs` are destination and source, as on the wire.
fn frame(macs: [[u8; 6]; 2], source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> Vec<u8> {
    let mut frame = macs.concat();
    let length = segment.len() as u16;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend((20 + length).to_be_bytes());
            // No fragment, do not fragment, 64 hops, the sum still zero.
            header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = !folded(sum(&header));
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => panic!("a packet from {source} to {destination} cannot be"),
    }
    frame.extend(segment);
    frame
}

/// The checksum of a segment with its pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1).
fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    let total = address(source) + address(destination) + u32::from(protocol) + segment.len() as u32;
    !folded(total + sum(segment))
}

/// The sum of 16-bit words in ones' complement before folding (RFC 1071). At most 64 KiB.
fn sum(octets: &[u8]) -> u32 {
    octets.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_and_other_octets_are_none() {
        let mark = Mark { flow: 7, number: 1 << 40 };
        assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        assert_eq!(Mark::decode(&mark.encode()[..15]), None);
        assert_eq!(Mark::decode(b"another payload of more than sixteen"), None);
    }

    #[test]
    fn sums_verify() {
        let macs = [[2; 6], [4; 6]];
        let (a, b) = ("192.0.2.1:1000".parse().unwrap(), "198.51.100.2:53".parse().unwrap());
        let datagram = udp(macs, a, b, b"odd");
        // RFC 1071: the sum over a header with its checksum is all ones.
        assert_eq!(folded(sum(&datagram[14..34])), 0xffff);
        let pseudo = sum(&datagram[26..34]) + u32::from(UDP) + 11;
        assert_eq!(folded(pseudo + sum(&datagram[34..])), 0xffff);
        let (a, b) = ("[2001:db8::1]:1000".parse().unwrap(), "[2001:db8::2]:443".parse().unwrap());
        let segment = syn(macs, a, b, 5);
        assert_eq!(segment.len(), 14 + 40 + 20);
        let pseudo = sum(&segment[22..54]) + u32::from(TCP) + 20;
        assert_eq!(folded(pseudo + sum(&segment[54..])), 0xffff);
    }
}
