//! Authority syntax: `host [":" port]` (RFC 3986 section 3.2, RFC 9110 section 7.2).
//!
//! Owns: the check and the split into host and port. Does not own: routing by host.

/// Longest authority in bytes: a DNS name of 253, a colon and a port.
pub const BYTES_MAX: usize = 253 + 1 + 5;

/// Whether the bytes are a host name, an IPv4 address or a bracketed IPv6 address, with an optional port up to 65535.
///
/// Stricter than RFC 3986 by choice: no user information (RFC 9110 section 4.2.4), no percent-encoding, no
/// sub-delimiters, no zone and no `IPvFuture`, because hosts that two parsers could read differently decide routes.
#[must_use]
pub fn is_valid(authority: &[u8]) -> bool {
    let (host, port) = split(authority);
    if host.is_empty() || authority.len() > BYTES_MAX {
        return false;
    }
    let is_host = match host {
        [b'[', inner @ .., b']'] => is_ipv6(inner),
        _ => host.iter().all(|byte| HOST_BYTES[usize::from(*byte)]),
    };
    is_host && port.is_none_or(|digits| parse_port(digits).is_some())
}

/// The host (brackets kept) and the digits after its colon. Any input is split; validity is [`is_valid`]'s.
#[must_use]
pub fn split(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    // The first colon outside brackets: a valid host has none. Hosts are short, so a plain loop beats a call.
    let from = match authority {
        [b'[', ..] => authority.iter().position(|byte| *byte == b']').unwrap_or(0),
        _ => 0,
    };
    let colon = authority.get(from..).and_then(|rest| rest.iter().position(|byte| *byte == b':'));
    match colon {
        Some(at) => {
            let (host, rest) = authority.split_at_checked(from + at).unwrap_or((authority, &[]));
            (host, rest.get(1..))
        }
        None => (authority, None),
    }
}

/// The port; an empty one (`host:`) is refused although RFC 3986 allows it.
#[must_use]
pub fn parse_port(digits: &[u8]) -> Option<u16> {
    if digits.is_empty() || digits.len() > 5 {
        return None;
    }
    let value = digits.iter().try_fold(0_u32, |value, digit| {
        digit.is_ascii_digit().then(|| value * 10 + u32::from(digit - b'0'))
    })?;
    u16::try_from(value).ok()
}

/// By the standard library's parser, which follows RFC 4291.
fn is_ipv6(inner: &[u8]) -> bool {
    std::str::from_utf8(inner).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok())
}

/// Bytes of a registered name or IPv4 address: the unreserved ones of RFC 3986 section 2.3.
static HOST_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
        byte += 1;
    }
    table
};
