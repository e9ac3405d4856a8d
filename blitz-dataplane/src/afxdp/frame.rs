//! Datagrams as frames: Ethernet with up to two VLAN tags, IPv4 or IPv6, UDP.
//!
//! The XDP program has chosen the frame with the same parser; here its datagram is found, and answers are built. Who
//! the next hop is was learnt from the frame that came in: its link header, turned around, is that of the answer. So
//! there is no ARP and no neighbour discovery here; the kernel has both, for what passes by it.
//!
//! Checksums of what comes are not looked at: QUIC's packet protection covers all that they would, but the addresses,
//! and a path is validated before it is used (RFC 9000 section 8.2).
//!
//! Owns: that. Does not own: the memory that frames lie in (`sys::xdp`), which frames come (`blitz-ebpf`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use blitz_ebpf_common::packet::{self, Family, VLAN_TAGS_MAX, Words};

/// Bytes of addresses in an Ethernet header, of an address, and of a VLAN tag.
const MAC_BYTES: usize = 6;
const ETHERNET_BYTES: usize = 14;
const TAG_BYTES: usize = 4;
const LINK_BYTES_MAX: usize = ETHERNET_BYTES + VLAN_TAGS_MAX * TAG_BYTES;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;

/// Hops that a packet may take: what Linux sends with.
const HOPS: u8 = 64;
/// In the fragment word of IPv4: never cut this packet (RFC 9000 section 14).
const DO_NOT_FRAGMENT: u16 = 0x4000;

/// Bytes before a datagram, at most.
pub const HEADER_BYTES_MAX: usize = LINK_BYTES_MAX + IPV6_BYTES + UDP_BYTES;

/// The link header of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    bytes: [u8; LINK_BYTES_MAX],
    length: u8,
}

impl Link {
    /// The header of an answer to `frame`, whose IP header begins at `ip`. `None`: it came to a group, or from one, so
    /// that its addresses are nobody's.
    fn turned(frame: &[u8], ip: usize) -> Option<Self> {
        let header = frame.get(..ip)?;
        let mut bytes = [0; LINK_BYTES_MAX];
        bytes.get_mut(..ip)?.copy_from_slice(header);
        let (to, from, _) = header.split_first_chunk::<MAC_BYTES>().and_then(|(to, rest)| {
            let (from, rest) = rest.split_first_chunk::<MAC_BYTES>()?;
            Some((to, from, rest))
        })?;
        // The first bit on the wire says "group" (IEEE 802).
        if (to[0] | from[0]) & 1 != 0 {
            return None;
        }
        let (first, rest) = bytes.split_first_chunk_mut::<MAC_BYTES>()?;
        *first = *from;
        *rest.first_chunk_mut::<MAC_BYTES>()? = *to;
        Some(Self { bytes, length: u8::try_from(ip).ok()? })
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

/// A datagram in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// To which of our addresses.
    pub to: SocketAddr,
    /// The way back.
    pub link: Link,
    /// Where it lies in the frame.
    pub place: Range<usize>,
}

/// Finds the datagram of a frame. `None`: it is no whole UDP datagram from one host to another.
pub fn parse(frame: &[u8]) -> Option<Datagram> {
    let packet = packet::parse(frame)?;
    if packet.protocol != packet::UDP || packet.fragment || packet.hidden {
        return None;
    }
    let ip = link_length(frame)?;
    let word = |at: usize| Some(usize::from(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?)));
    let end = match packet.family {
        // The length of all, and that of what is behind the header.
        Family::V4 => ip + word(ip + 2)?,
        Family::V6 => ip + IPV6_BYTES + word(ip + 4)?,
    };
    let (udp, length) = (packet.transport_at, word(packet.transport_at + 4)?);
    // Behind the end of the packet may be padding.
    if length < UDP_BYTES || udp + length > end || udp + length > frame.len() {
        return None;
    }
    Some(Datagram {
        from: SocketAddr::new(address(packet.family, packet.source), packet.source_port),
        to: SocketAddr::new(address(packet.family, packet.destination), packet.destination_port),
        link: Link::turned(frame, ip)?,
        place: udp + UDP_BYTES..udp + length,
    })
}

/// Bytes of the link header: where the IP header begins. The tags are those that [`packet::parse`] steps over.
fn link_length(frame: &[u8]) -> Option<usize> {
    const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
    let mut at = ETHERNET_BYTES;
    for _ in 0..VLAN_TAGS_MAX {
        if !TAGS.contains(frame.get(at - 2..)?.first_chunk()?) {
            break;
        }
        at += TAG_BYTES;
    }
    Some(at)
}

fn address(family: Family, words: Words) -> IpAddr {
    let [.., last] = words;
    match family {
        Family::V4 => Ipv4Addr::from_bits(last).into(),
        Family::V6 => {
            let bits = words.iter().fold(0_u128, |bits, word| bits << 32 | u128::from(*word));
            Ipv6Addr::from_bits(bits).into()
        }
    }
}

/// Writes the frame of a datagram; its length. `None`: it does not fit `room`, or is larger than a packet may be on
/// this link (`mtu`, without the link's header), or its addresses are of two families.
pub fn build(
    room: &mut [u8],
    link: &Link,
    mtu: usize,
    from: SocketAddr,
    to: SocketAddr,
    datagram: &[u8],
) -> Option<usize> {
    let length = UDP_BYTES + datagram.len();
    let udp_length = u16::try_from(length).ok()?.to_be_bytes();
    let (header, rest) = room.split_at_mut_checked(link.bytes().len())?;
    header.copy_from_slice(link.bytes());
    // Addresses, protocol and length, as the checksum of UDP has them once more (RFC 768, RFC 8200 section 8.1).
    let (ip_bytes, pseudo) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = rest.first_chunk_mut::<IPV4_BYTES>()?;
            let total = u16::try_from(IPV4_BYTES + length).ok()?;
            header[..2].copy_from_slice(&[0x45, 0]);
            header[2..4].copy_from_slice(&total.to_be_bytes());
            // No number: what is never cut needs none (RFC 6864 section 4).
            header[4..6].fill(0);
            header[6..8].copy_from_slice(&DO_NOT_FRAGMENT.to_be_bytes());
            header[8..12].copy_from_slice(&[HOPS, packet::UDP, 0, 0]);
            header[12..16].copy_from_slice(&from.octets());
            header[16..].copy_from_slice(&to.octets());
            let checksum = checksum(sum(header));
            header[10..12].copy_from_slice(&checksum);
            (IPV4_BYTES, sum(&header[12..]))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = rest.first_chunk_mut::<IPV6_BYTES>()?;
            header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
            header[4..6].copy_from_slice(&udp_length);
            header[6..8].copy_from_slice(&[packet::UDP, HOPS]);
            header[8..24].copy_from_slice(&from.octets());
            header[24..].copy_from_slice(&to.octets());
            (IPV6_BYTES, sum(&header[8..]))
        }
        _ => return None,
    };
    if ip_bytes + length > mtu {
        return None;
    }
    let udp = rest.get_mut(ip_bytes..ip_bytes + length)?;
    let (header, payload) = udp.split_first_chunk_mut::<UDP_BYTES>()?;
    header[..2].copy_from_slice(&from.port().to_be_bytes());
    header[2..4].copy_from_slice(&to.port().to_be_bytes());
    header[4..6].copy_from_slice(&udp_length);
    header[6..].fill(0);
    payload.copy_from_slice(datagram);
    let [high, low] = udp_length;
    let pseudo = pseudo + sum(&[0, packet::UDP, high, low]);
    let checksum = match checksum(pseudo + sum(header) + sum(payload)) {
        // Zero would say that there is none.
        [0, 0] => [0xff, 0xff],
        checksum => checksum,
    };
    header[6..].copy_from_slice(&checksum);
    Some(link.bytes().len() + ip_bytes + length)
}

/// The sum of 16-bit words, not folded. It does not depend on the order of octets (RFC 1071 section 2 (B)), so they are
/// added as they lie, two at a time. All parts of a sum but the last have even lengths.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    sum + u64::from(u32::from_ne_bytes(last))
}

/// The checksum of a sum: its octets, in the order of the wire.
fn checksum(sum: u64) -> [u8; 2] {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    (!(sum as u16)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const US: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn link(tags: &[u16], ethertype: u16) -> Link {
        let mut bytes = [CLIENT, US].concat();
        tags.iter().for_each(|tag| bytes.extend([0x81, 0x00, (tag >> 8) as u8, *tag as u8]));
        bytes.extend(ethertype.to_be_bytes());
        let mut link = Link { bytes: [0; LINK_BYTES_MAX], length: bytes.len() as u8 };
        link.bytes[..bytes.len()].copy_from_slice(&bytes);
        link
    }

    /// As the RFC says it, one word after the other.
    fn slow_checksum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|word| u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
        words.fold(0_u16, |sum, word| {
            let (sum, carry) = sum.overflowing_add(word);
            sum + u16::from(carry)
        })
    }

    fn build_one(tags: &[u16], from: SocketAddr, to: SocketAddr, datagram: &[u8]) -> Option<Vec<u8>> {
        let mut room = [0xee; 4096];
        let ethertype = if from.is_ipv4() { 0x0800 } else { 0x86dd };
        let length = build(&mut room, &link(tags, ethertype), 1500, from, to, datagram)?;
        Some(room[..length].to_vec())
    }

    fn address() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        let v4 = any::<([u8; 4], u16, [u8; 4], u16)>()
            .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q))));
        let v6 = any::<([u8; 16], u16, [u8; 16], u16)>()
            .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q))));
        prop_oneof![v4, v6]
    }

    proptest! {
        /// What is built is found again, with the way back turned around, and its checksums are right.
        #[test]
        fn frames_are_read_as_they_were_built(
            (from, to) in address(),
            tags in prop::collection::vec(any::<u16>(), 0..=2),
            datagram in prop::collection::vec(any::<u8>(), 0..1400),
            padding in 0_usize..20,
        ) {
            let mut frame = build_one(&tags, from, to, &datagram).expect("it fits");
            let ip = ETHERNET_BYTES + tags.len() * TAG_BYTES;
            let ip_bytes = if from.is_ipv4() { IPV4_BYTES } else { IPV6_BYTES };
            let udp = frame[ip + ip_bytes..].to_vec();
            let addresses = if from.is_ipv4() { ip + 12..ip + 20 } else { ip + 8..ip + 40 };
            if from.is_ipv4() {
                prop_assert_eq!(slow_checksum(&frame[ip..ip + IPV4_BYTES]), 0xffff);
            }
            prop_assert_ne!(&udp[6..8], &[0, 0]);
            let mut summed = frame[addresses].to_vec();
            summed.extend([0, 17]);
            summed.extend((udp.len() as u16).to_be_bytes());
            summed.extend(&udp);
            prop_assert_eq!(slow_checksum(&summed), 0xffff);

            frame.extend(vec![0xaa; padding]);
            let found = parse(&frame).expect("a datagram");
            prop_assert_eq!((found.from, found.to), (from, to));
            prop_assert_eq!(&frame[found.place.clone()], &datagram[..]);
            prop_assert_eq!(&found.link.bytes()[..12], &[US, CLIENT].concat()[..]);
            prop_assert_eq!(&found.link.bytes()[12..], &frame[12..ip]);
        }

        /// No frame makes it read beyond its end, or find a datagram that reaches beyond it.
        #[test]
        fn any_bytes_are_read_within_bounds(
            (from, to) in address(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            keep in 0_usize..120,
        ) {
            let mut frame = build_one(&[7], from, to, &[5; 60]).expect("it fits");
            frame.truncate(keep);
            for (at, octet) in changes {
                if !frame.is_empty() {
                    let at = at.index(frame.len());
                    frame[at] = octet;
                }
            }
            if let Some(found) = parse(&frame) {
                prop_assert!(frame.get(found.place).is_some());
            }
        }
    }

    #[test]
    fn fragments_groups_and_cut_datagrams_are_none() {
        let (from, to) = (SocketAddr::from(([192, 0, 2, 1], 4000)), SocketAddr::from(([192, 0, 2, 2], 443)));
        let whole = build_one(&[], from, to, &[1; 40]).expect("it fits");
        let changed = |at: usize, octet: u8| {
            let mut frame = whole.clone();
            frame[at] = octet;
            parse(&frame)
        };
        assert!(parse(&whole).is_some());
        assert!(parse(&whole[..whole.len() - 1]).is_none(), "cut");
        assert!(changed(20, 0x20).is_none(), "the first of several fragments");
        assert!(changed(21, 1).is_none(), "a later fragment");
        assert!(changed(23, 6).is_none(), "TCP");
        assert!(changed(0, 3).is_none(), "to a group");
        assert!(changed(6, 3).is_none(), "from a group");
        assert!(changed(39, 7).is_none(), "a length below that of the header");
        assert!(changed(39, 49).is_none(), "longer than its packet");
        assert!(changed(38, 255).is_none(), "longer than the frame");
    }

    #[test]
    fn what_the_link_does_not_carry_is_not_built() {
        let to = SocketAddr::from(([192, 0, 2, 2], 443));
        let other = SocketAddr::from(([0; 16], 443));
        assert_eq!(build_one(&[], to, to, &[0; 1472]).map(|frame| frame.len()), Some(1514));
        assert!(build_one(&[], to, to, &[0; 1473]).is_none());
        assert!(build_one(&[], other, other, &[0; 1453]).is_none());
        assert!(build_one(&[], to, other, &[0; 20]).is_none());
        let mut small = [0; 60];
        assert!(build(&mut small, &link(&[], 0x0800), 1500, to, to, &[0; 19]).is_none());
        assert!(build(&mut small[..10], &link(&[], 0x0800), 1500, to, to, &[]).is_none());
    }
}
