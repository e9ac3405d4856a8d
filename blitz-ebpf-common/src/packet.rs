//! The packet parser: Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with extension headers,
//! TCP and UDP.
//!
//! Owns: finding the addresses, ports and flags of one frame, with every loop and offset bounded.
//! Does not own: what is decided from them ([`crate::decide`]), or checksums: the host's stack
//! verifies those, and a sender of bad ones can only use up its own share of a limit.
//!
//! A sender chooses how to hide the transport header: in the second of two fragments, or behind more
//! extension headers than are followed. The kernel's stack would still deliver such a packet, so it is not
//! "not understood": it counts for the address that it goes to, as later fragments do.
//!
//! The parser reads through [`Bytes`], so that one text serves the kernel (a pair of packet pointers)
//! and the host (a slice). What it does not understand it reports as `None`; the stage passes that.

/// Where octets come from: a frame, from its Ethernet header on.
pub trait Bytes {
    /// The `N` octets at offset `at`, or `None` when the frame's linear part ends before them.
    /// Implementations may refuse any `at` above [`OFFSET_MAX`].
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    #[inline(always)]
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        if at > OFFSET_MAX {
            return None;
        }
        self.get(at..at + N)?.first_chunk().copied()
    }
}

/// The largest offset the parser reads at. Headers that reach beyond are "not understood". It keeps a
/// packet pointer's offset within what the verifier can follow.
pub const OFFSET_MAX: usize = 1023;
/// The largest offset of a transport header: its 20 octets are read up to [`OFFSET_MAX`].
pub const TRANSPORT_MAX: usize = OFFSET_MAX - 12;
/// VLAN tags that are stepped over.
pub const VLAN_TAGS_MAX: usize = 2;
/// IPv6 extension headers that are stepped over.
pub const EXTENSIONS_MAX: usize = 6;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// TCP flag: no more data from the sender.
pub const FIN: u8 = 0x01;
/// TCP flag: synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// TCP flag: reset.
pub const RST: u8 = 0x04;
/// TCP flag: the acknowledgement field counts.
pub const ACK: u8 = 0x10;

const ETHERNET: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

/// In the fragment word of IPv4: more follow.
const MORE_FRAGMENTS: u16 = 0x2000;
/// In the fragment word of IPv4: where this one begins, in units of eight octets.
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// Where the flags lie in a TCP header.
const TCP_FLAGS_AT: usize = 13;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// An address of either family, as the four 32-bit words of its IPv6 form, in host byte order, first
/// word first. IPv4 is `[0, 0, 0xffff, address]` (RFC 4291 section 2.5.5.2).
pub type Words = [u32; 4];

/// Version of the Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4, RFC 791.
    V4,
    /// IPv6, RFC 8200.
    V6,
}

/// What the stage needs to know of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Version of IP.
    pub family: Family,
    /// Source address.
    pub source: Words,
    /// Destination address.
    pub destination: Words,
    /// IP protocol, after any extension headers; that of the last one seen when it is `hidden`.
    pub protocol: u8,
    /// Source port, host order; 0 for other protocols than TCP and UDP and for later fragments.
    pub source_port: u16,
    /// Destination port, host order; 0 as above. No service has port 0, so 0 stands for "any port".
    pub destination_port: u16,
    /// The TCP flags (octet 13 of the header); 0 for everything else.
    pub tcp_flags: u8,
    /// Where the transport's header begins; 0 for other protocols than TCP and UDP and for later fragments.
    pub transport_at: usize,
    /// Whether this is a fragment, of which the first has its ports and not all of its datagram.
    pub fragment: bool,
    /// Whether this is a fragment that does not hold the start of its datagram, so has no ports.
    pub later_fragment: bool,
    /// Whether extension headers go on beyond what is followed: it may be TCP or UDP, and has no ports here.
    pub hidden: bool,
}

impl Packet {
    /// Whether the packet opens a TCP connection: SYN without ACK.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.tcp_flags & (SYN | ACK) == SYN
    }
}

/// Words of an IPv4 address given in host order.
#[inline(always)]
pub const fn words4(address: u32) -> Words {
    [0, 0, 0xffff, address]
}

/// Reads the frame's headers. `None`: not IP, or cut short, or beyond what this parser follows.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(frame: &B) -> Option<Packet> {
    let mut ethertype = u16::from_be_bytes(frame.array(ETHERNET - 2)?);
    let mut at = ETHERNET;
    for _ in 0..VLAN_TAGS_MAX {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_SERVICE_VLAN {
            break;
        }
        ethertype = u16::from_be_bytes(frame.array(at + 2)?);
        at += 4;
    }
    match ethertype {
        ETHERTYPE_IPV4 => parse4(frame, at),
        ETHERTYPE_IPV6 => parse6(frame, at),
        _ => None,
    }
}

#[inline(always)]
fn parse4<B: Bytes + ?Sized>(frame: &B, at: usize) -> Option<Packet> {
    let header: [u8; 20] = frame.array(at)?;
    let length = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || length < 20 || total < length {
        return None;
    }
    let source = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
    let destination = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let later_fragment = fragment & FRAGMENT_OFFSET != 0;
    // RFC 1858 section 3: a first fragment that ends before the flags of TCP hides whether it opens a
    // connection, so it counts as if it did. What follows it in the frame is padding, which lies.
    let is_tiny = fragment & MORE_FRAGMENTS != 0
        && !later_fragment
        && header[9] == TCP
        && total - length <= TCP_FLAGS_AT;
    let packet = Packet {
        family: Family::V4,
        source: words4(source),
        destination: words4(destination),
        protocol: header[9],
        source_port: 0,
        destination_port: 0,
        tcp_flags: if is_tiny { SYN } else { 0 },
        transport_at: 0,
        fragment: fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0,
        later_fragment,
        hidden: false,
    };
    if is_tiny { ports(frame, at + length, packet) } else { transport(frame, at + length, packet) }
}

#[inline(always)]
fn parse6<B: Bytes + ?Sized>(frame: &B, at: usize) -> Option<Packet> {
    let [version, ..] = frame.array::<1>(at)?;
    if version >> 4 != 6 {
        return None;
    }
    let [mut protocol] = frame.array::<1>(at + 6)?;
    let source = words(frame.array(at + 8)?);
    let destination = words(frame.array(at + 24)?);
    let (mut fragment, mut later_fragment) = (false, false);
    let mut at = at + 40;
    for _ in 0..EXTENSIONS_MAX {
        match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let [next, length] = frame.array(at)?;
                protocol = next;
                at += (usize::from(length) + 1) * 8;
            }
            AUTHENTICATION => {
                // RFC 4302 section 2.2: counted in 32-bit words, minus two.
                let [next, length] = frame.array(at)?;
                protocol = next;
                at += (usize::from(length) + 2) * 4;
            }
            FRAGMENT => {
                let header: [u8; 4] = frame.array(at)?;
                protocol = header[0];
                at += 8;
                let place = u16::from_be_bytes([header[2], header[3]]);
                // An atomic fragment (RFC 6946) is whole: offset 0, and no more to come.
                fragment |= place & 0xfff9 != 0;
                if place & 0xfff8 != 0 {
                    later_fragment = true;
                    break;
                }
            }
            _ => break,
        }
        if at > TRANSPORT_MAX {
            break;
        }
    }
    let is_extension =
        matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT);
    let hidden = is_extension || (at > TRANSPORT_MAX && !later_fragment);
    let packet = Packet {
        family: Family::V6,
        source,
        destination,
        protocol,
        source_port: 0,
        destination_port: 0,
        // It may open a connection, and a limit on those must not be passed by hiding that.
        tcp_flags: if hidden && !later_fragment { SYN } else { 0 },
        transport_at: 0,
        fragment,
        later_fragment,
        hidden,
    };
    if hidden { Some(packet) } else { transport(frame, at, packet) }
}

/// Adds ports and flags. A TCP or UDP header that is cut short makes the whole packet "not understood".
#[inline(always)]
fn transport<B: Bytes + ?Sized>(frame: &B, at: usize, packet: Packet) -> Option<Packet> {
    if packet.later_fragment || (packet.protocol != TCP && packet.protocol != UDP) {
        return Some(packet);
    }
    let mut packet = ports(frame, at, packet)?;
    if packet.protocol == TCP {
        // The flags lie in octet 13; octet 19 is read so that a cut header is noticed.
        let [_, flags, .., _] = frame.array::<8>(at + 12)?;
        packet.tcp_flags = flags;
    } else {
        frame.array::<4>(at + 4)?;
    }
    Some(packet)
}

#[inline(always)]
fn ports<B: Bytes + ?Sized>(frame: &B, at: usize, mut packet: Packet) -> Option<Packet> {
    let [s0, s1, d0, d1] = frame.array(at)?;
    packet.source_port = u16::from_be_bytes([s0, s1]);
    packet.destination_port = u16::from_be_bytes([d0, d1]);
    packet.transport_at = at;
    Some(packet)
}

#[inline(always)]
fn words(octets: [u8; 16]) -> Words {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
    [
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]),
        u32::from_be_bytes([i, j, k, l]),
        u32::from_be_bytes([m, n, o, p]),
    ]
}
