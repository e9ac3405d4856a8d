//! Headers of the PROXY protocol: versions 1 and 2 as a load balancer sends them in front of a connection, version 2
//! as endpoints are sent it (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>; sections are those of
//! that text).
//!
//! Owns: the syntax, its bounds, and whose address a header names. Does not own: who may send one, the
//! deadline, what becomes of the address (`proxy::accept`), when one is sent (`proxy::connect`). Reading is a pure
//! function of the bytes so far: any split of them gives the same answer, and what lies behind the header is left
//! where it is.
//!
//! Of the records behind the addresses of version 2 (TLVs, section 2.2.7) only their framing and the checksum
//! are looked at. What the sender says of TLS, names or namespaces is not used.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of a header, at most. Addresses take 232; the rest is room for records, the largest of which in use
/// are certificates of clients. Section 2.2 asks for 536 at least.
pub const HEADER_BYTES_MAX: usize = 4096;

/// Bytes of a line of version 1 with its CRLF, at most (section 2.1).
const LINE_BYTES_MAX: usize = 107;

/// What a line of version 1 begins with.
const LINE_START: &[u8] = b"PROXY ";

/// What a header of version 2 begins with (section 2.2).
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes of version 2 before the addresses: signature, version and command, family and transport, length.
const FIXED_BYTES: usize = 16;

/// The record that holds a CRC32C of the header (section 2.2.3).
const TLV_CRC32C: u8 = 0x03;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its version.
    pub version: Version,
    /// The client that it names. `None`: it names none that could be used (LOCAL, UNKNOWN, no stream over IP), and
    /// the sender stands for itself.
    pub client: Option<SocketAddr>,
    /// Its bytes; what is behind them belongs to what the connection carries.
    pub bytes: usize,
}

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Why bytes are no header. Whatever follows them, they stay none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// They begin like neither version.
    NoHeader,
    /// Version 1: no CRLF among the first 107 bytes.
    LineTooLong,
    /// Version 1: not the six words of section 2.1, each separated by one space.
    Line,
    /// Version 1: no address of the family that was named.
    Address,
    /// Version 1: no port in decimal without leading zeros.
    Port,
    /// Version 2: another version in the version's place.
    Version,
    /// Version 2: neither LOCAL nor PROXY.
    Command,
    /// Version 2: a family or transport that section 2.2 does not name.
    Family,
    /// Version 2: shorter than the addresses of its family.
    Length,
    /// Version 2: longer than [`HEADER_BYTES_MAX`].
    TooLong,
    /// Version 2: records that do not end where the header does, or two checksums, or one of another size.
    Record,
    /// Version 2: the checksum is not that of the header.
    Checksum,
}

impl Refusal {
    /// A word for it, for logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoHeader => "no_header",
            Self::LineTooLong => "line_too_long",
            Self::Line => "line",
            Self::Address => "address",
            Self::Port => "port",
            Self::Version => "version",
            Self::Command => "command",
            Self::Family => "family",
            Self::Length => "length",
            Self::TooLong => "too_long",
            Self::Record => "record",
            Self::Checksum => "checksum",
        }
    }
}

/// Reads the header that `bytes`, the first ones of a connection, begin with. `None`: more are needed, which never
/// happens with [`HEADER_BYTES_MAX`] bytes or more.
///
/// # Errors
/// See [`Refusal`]. Section 2: whoever gets anything else must close the connection.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, Refusal> {
    if is_beginning(bytes, SIGNATURE) {
        binary(bytes)
    } else if is_beginning(bytes, LINE_START) {
        line(bytes)
    } else {
        Err(Refusal::NoHeader)
    }
}

/// Writes a header of version 2 for a connection from `client` to `destination`: PROXY over TCP, or LOCAL when nobody
/// is known (section 2.2). Addresses are told in one family: IPv4 when both are, be it within IPv6, else IPv6.
pub fn write_v2(out: &mut Vec<u8>, addresses: Option<(SocketAddr, SocketAddr)>) {
    out.extend_from_slice(SIGNATURE);
    let Some((client, destination)) = addresses else {
        out.extend_from_slice(&[0x20, 0x00, 0, 0]);
        return;
    };
    let ports = [client.port().to_be_bytes(), destination.port().to_be_bytes()];
    match (client.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[0x21, 0x11, 0, 4 + 4 + 2 + 2]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            out.extend_from_slice(&[0x21, 0x21, 0, 16 + 16 + 2 + 2]);
            out.extend_from_slice(&in_v6(from).octets());
            out.extend_from_slice(&in_v6(to).octets());
        }
    }
    out.extend_from_slice(ports.as_flattened());
}

fn in_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// Whether `bytes` begin with `start`, as far as either goes.
fn is_beginning(bytes: &[u8], start: &[u8]) -> bool {
    bytes.iter().zip(start).all(|(byte, expected)| byte == expected)
}

/// Version 1 (section 2.1).
fn line(bytes: &[u8]) -> Result<Option<Header>, Refusal> {
    let window = bytes.get(..LINE_BYTES_MAX).unwrap_or(bytes);
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if window.len() == LINE_BYTES_MAX { Err(Refusal::LineTooLong) } else { Ok(None) };
    };
    let header = |client| Ok(Some(Header { version: Version::V1, client, bytes: end + 2 }));
    let said = window.get(LINE_START.len()..end).unwrap_or_default();
    if let Some(rest) = said.strip_prefix(b"UNKNOWN") {
        // "The receiver must ignore anything presented before the CRLF is found."
        return if matches!(rest.first(), None | Some(b' ')) { header(None) } else { Err(Refusal::Line) };
    }
    let said = std::str::from_utf8(said).map_err(|_| Refusal::Line)?;
    let mut words = said.split(' ');
    let five = [words.next(), words.next(), words.next(), words.next(), words.next()];
    let ([Some(family), Some(source), Some(destination), Some(source_port), Some(port)], None) =
        (five, words.next())
    else {
        return Err(Refusal::Line);
    };
    let address: fn(&str) -> Option<IpAddr> = match family {
        "TCP4" => |word| word.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => |word| word.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => return Err(Refusal::Line),
    };
    let source = address(source).ok_or(Refusal::Address)?;
    address(destination).ok_or(Refusal::Address)?;
    let source_port = decimal_port(source_port).ok_or(Refusal::Port)?;
    decimal_port(port).ok_or(Refusal::Port)?;
    header(Some(SocketAddr::new(source.to_canonical(), source_port)))
}

/// A port of version 1: "Heading zeroes are not permitted" (section 2.1).
fn decimal_port(word: &str) -> Option<u16> {
    let is_canonical = word == "0" || !word.starts_with('0');
    (is_canonical && word.bytes().all(|byte| byte.is_ascii_digit())).then(|| word.parse().ok())?
}

/// Version 2 (section 2.2).
fn binary(bytes: &[u8]) -> Result<Option<Header>, Refusal> {
    let Some(&command) = bytes.get(12) else { return Ok(None) };
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        0x22..=0x2f => return Err(Refusal::Command),
        _ => return Err(Refusal::Version),
    };
    let Some(&family) = bytes.get(13) else { return Ok(None) };
    // The sizes of the addresses. For LOCAL the whole block is to be ignored, "including the family".
    let addresses_bytes = match family {
        _ if is_local => 0,
        0x00 => 0,
        0x11 | 0x12 => 4 + 4 + 2 + 2,
        0x21 | 0x22 => 16 + 16 + 2 + 2,
        0x31 | 0x32 => 108 + 108,
        _ => return Err(Refusal::Family),
    };
    let Some(&[high, low]) = bytes.get(14..FIXED_BYTES) else { return Ok(None) };
    let end = FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if end > HEADER_BYTES_MAX {
        return Err(Refusal::TooLong);
    }
    if end < FIXED_BYTES + addresses_bytes {
        return Err(Refusal::Length);
    }
    let Some(whole) = bytes.get(..end) else { return Ok(None) };
    let header = |client| Ok(Some(Header { version: Version::V2, client, bytes: end }));
    if is_local || family == 0x00 {
        return header(None);
    }
    check_records(whole, FIXED_BYTES + addresses_bytes)?;
    let addresses = whole.get(FIXED_BYTES..).unwrap_or_default();
    // Datagrams and UNIX sockets fall back to "unspecified", as section 2.2 has it for what is not supported.
    header(match family {
        0x11 => source::<4>(addresses),
        0x21 => source::<16>(addresses),
        _ => None,
    })
}

/// The source among addresses of `N` bytes each: source, destination, source port, destination port.
fn source<const N: usize>(addresses: &[u8]) -> Option<SocketAddr>
where
    IpAddr: From<[u8; N]>,
{
    let address: [u8; N] = *addresses.first_chunk()?;
    let port = *addresses.get(2 * N..)?.first_chunk()?;
    Some(SocketAddr::new(IpAddr::from(address).to_canonical(), u16::from_be_bytes(port)))
}

/// Whether the records from `start` to the end of the header are whole, and the checksum, where one is among them
/// (section 2.2.3), is right.
fn check_records(whole: &[u8], start: usize) -> Result<(), Refusal> {
    let mut at = start;
    let mut checksum = None;
    while at < whole.len() {
        let Some(&[kind, high, low]) = whole.get(at..).and_then(<[u8]>::first_chunk) else {
            return Err(Refusal::Record);
        };
        let value = at + 3;
        at = value + usize::from(u16::from_be_bytes([high, low]));
        let Some(content) = whole.get(value..at) else { return Err(Refusal::Record) };
        if kind == TLV_CRC32C {
            let content = <[u8; 4]>::try_from(content).map_err(|_| Refusal::Record)?;
            if checksum.replace((value, u32::from_be_bytes(content))).is_some() {
                return Err(Refusal::Record);
            }
        }
    }
    let Some((place, expected)) = checksum else { return Ok(()) };
    // The checksum counts as zero in its own calculation.
    let crc = crc32c(!0, whole.get(..place).unwrap_or_default());
    let crc = crc32c(crc, &[0; 4]);
    let crc = !crc32c(crc, whole.get(place + 4..).unwrap_or_default());
    if crc == expected { Ok(()) } else { Err(Refusal::Checksum) }
}

/// CRC32C (RFC 4960 appendix B) without its final inversion. Header sized input, now and then: no table.
fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests;
