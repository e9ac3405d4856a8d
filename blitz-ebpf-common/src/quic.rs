//! What every version of QUIC has in common (RFC 8999): where the connection IDs of a packet are.
//!
//! Owns: the long header, and the short header with a destination connection ID of our length; apart from these the
//! little of version 1 that the stage looks at ([`v1`]). Does not own: what a connection ID means ([`crate::cid`]).
//!
//! The fixed bit (RFC 9000 section 17.2) belongs to a version, and may be greased (RFC 9287), so it is not looked at.

use crate::cid::CID_BYTES;
use crate::packet::Bytes;

/// The bit of the first octet that long headers have.
pub const LONG: u8 = 0x80;
/// Where the destination connection ID of a short header begins.
pub const SHORT_DCID_AT: usize = 1;
/// Where that of a long header begins: first octet, version, its length.
pub const LONG_DCID_AT: usize = 1 + 4 + 1;
/// The version of a Version Negotiation packet, which only servers send (RFC 8999 section 6).
pub const VERSION_NEGOTIATION: u32 = 0;

/// Where a connection ID lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset of its first octet, counted as the packet's own offset is.
    pub at: usize,
    /// Its length, octets.
    pub length: u8,
}

/// The header of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// RFC 8999 section 5.1. Both connection IDs lie within the packet; either has 0 to 255 octets. That version 1
    /// allows 20 is for those to check who speak version 1.
    Long {
        /// The first octet, whose lower seven bits belong to the version.
        first: u8,
        /// The version, of any value.
        version: u32,
        /// Destination connection ID.
        dcid: Span,
        /// Source connection ID.
        scid: Span,
    },
    /// RFC 8999 section 5.2. The destination connection ID has [`CID_BYTES`], as all that we issue, and lies within
    /// the packet.
    Short {
        /// Where it begins.
        dcid_at: usize,
    },
}

/// Why a datagram holds no packet of QUIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It has no octets.
    Empty,
    /// It ends within its header.
    Cut,
}

/// Reads the header of the packet at the start of the datagram of `length` octets at `at`.
///
/// `length` is what UDP says: behind it a frame may hold padding.
///
/// # Errors
/// The header is not whole, or `bytes` does not hold it.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(bytes: &B, at: usize, length: usize) -> Result<Header, Malformed> {
    if length == 0 {
        return Err(Malformed::Empty);
    }
    // The least that either header has: a long one has the length of the source connection ID, too.
    if length < LONG_DCID_AT + 1 {
        return Err(Malformed::Cut);
    }
    let [first, a, b, c, d, dcid_length, _] = octets(bytes, at)?;
    if first & LONG == 0 {
        if length < SHORT_DCID_AT + CID_BYTES {
            return Err(Malformed::Cut);
        }
        return Ok(Header::Short { dcid_at: at + SHORT_DCID_AT });
    }
    let scid_length_at = LONG_DCID_AT + usize::from(dcid_length);
    if length < scid_length_at + 1 {
        return Err(Malformed::Cut);
    }
    let [scid_length] = octets(bytes, at + scid_length_at)?;
    if length < scid_length_at + 1 + usize::from(scid_length) {
        return Err(Malformed::Cut);
    }
    Ok(Header::Long {
        first,
        version: u32::from_be_bytes([a, b, c, d]),
        dcid: Span { at: at + LONG_DCID_AT, length: dcid_length },
        scid: Span { at: at + scid_length_at + 1, length: scid_length },
    })
}

#[inline(always)]
fn octets<B: Bytes + ?Sized, const N: usize>(bytes: &B, at: usize) -> Result<[u8; N], Malformed> {
    bytes.array(at).ok_or(Malformed::Cut)
}

/// Version 1 (RFC 9000), the one that we speak.
pub mod v1 {
    /// Its number.
    pub const VERSION: u32 = 1;
    /// The longest connection ID (section 17.2), octets. A longer one has to be dropped.
    pub const CID_MAX: u8 = 20;
    /// The least that a datagram with an Initial has (section 14.1), octets. A smaller one has to be dropped.
    pub const INITIAL_DATAGRAM_MIN: usize = 1200;

    /// Whether a long header with this first octet is an Initial (section 17.2).
    #[inline(always)]
    pub const fn is_initial(first: u8) -> bool {
        first & 0x30 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn long(version: u32, dcid: &[u8], scid: &[u8], rest: usize) -> Vec<u8> {
        let mut packet = Vec::from([0xc3]);
        packet.extend(version.to_be_bytes());
        packet.push(dcid.len() as u8);
        packet.extend(dcid);
        packet.push(scid.len() as u8);
        packet.extend(scid);
        packet.resize(packet.len() + rest, 0x55);
        packet
    }

    #[test]
    fn a_long_header_and_every_cut_of_it() {
        let packet = long(1, &[7; 9], &[8; 5], 3);
        let header = Header::Long {
            first: 0xc3,
            version: 1,
            dcid: Span { at: 6, length: 9 },
            scid: Span { at: 16, length: 5 },
        };
        for length in 0..=packet.len() {
            let expected = match length {
                0 => Err(Malformed::Empty),
                1..21 => Err(Malformed::Cut),
                _ => Ok(header),
            };
            assert_eq!(parse(&packet[..length], 0, length), expected, "{length}");
            // What lies behind the datagram does not make it whole.
            assert_eq!(parse(&packet[..], 0, length), expected, "{length}");
        }
    }

    #[test]
    fn connection_ids_of_any_length_lie_where_they_are() {
        for (d, s) in [(0, 0), (0, 255), (20, 20), (21, 0), (255, 255)] {
            let mut frame = Vec::from([0xee; 42]);
            frame.extend(long(0xdead_beef, &std::vec![1; d], &std::vec![2; s], 0));
            let Ok(Header::Long { first: 0xc3, version, dcid, scid }) =
                parse(&frame[..], 42, frame.len() - 42)
            else {
                panic!("{d} {s}")
            };
            assert_eq!(version, 0xdead_beef);
            assert_eq!(frame[dcid.at..][..usize::from(dcid.length)], std::vec![1; d]);
            assert_eq!(frame[scid.at..][..usize::from(scid.length)], std::vec![2; s]);
        }
    }

    #[test]
    fn a_short_header_has_a_whole_connection_id() {
        let packet = [0x40; 18];
        assert_eq!(parse(&packet[..], 0, 16), Err(Malformed::Cut));
        assert_eq!(parse(&packet[..], 0, 17), Ok(Header::Short { dcid_at: 1 }));
        assert_eq!(parse(&packet[..], 1, 17), Ok(Header::Short { dcid_at: 2 }));
    }
}
