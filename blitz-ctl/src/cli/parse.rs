//! Values on the command line: prefixes, durations.
//!
//! Owns: their spelling and what is refused. Does not own: their meaning.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use crate::prefixes::Prefix;

/// Longest time to live: beyond it an entry without one says it better.
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// `192.0.2.1`, `192.0.2.0/24`, `2001:db8::/32`. Bits beyond the length must be zero.
pub(super) fn prefix(text: &str) -> Result<Prefix, String> {
    let accepted = "accepted: an address or a prefix such as 192.0.2.0/24 or 2001:db8::/32";
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| accepted)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => most,
        Some(digits) if !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()) => digits
            .parse()
            .ok()
            .filter(|length| *length <= most)
            .ok_or_else(|| format!("the length of this prefix lies in 0..={most}; {accepted}"))?,
        Some(_) => return Err(accepted.to_owned()),
    };
    let prefix = Prefix::new(address, length);
    if prefix.address() != address.to_canonical() && prefix.address() != address {
        return Err(format!("bits beyond the prefix length are set; the network is {prefix}"));
    }
    Ok(prefix)
}

/// `90`, `90s`, `10m`, `12h`, `7d`: 1 second to a year.
pub(super) fn ttl(text: &str) -> Result<Duration, String> {
    let accepted = "accepted: a number with s, m, h or d, such as 10m, from 1s to 365d";
    let (digits, unit) = match text.find(|letter: char| !letter.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(accepted.to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| accepted)?;
    let ttl = Duration::from_secs(number.saturating_mul(seconds));
    match ttl.is_zero() || ttl > TTL_MAX {
        true => Err(accepted.to_owned()),
        false => Ok(ttl),
    }
}

/// A name of a limit as configurations accept it.
pub(super) fn name(text: &str) -> Result<String, String> {
    let good = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.');
    match !text.is_empty() && text.len() <= 48 && text.chars().all(good) {
        true => Ok(text.to_owned()),
        false => Err("accepted: 1 to 48 letters, digits, `_`, `-` and `.`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        for (text, shown) in [
            ("192.0.2.1", "192.0.2.1/32"),
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ] {
            assert_eq!(prefix(text).expect(text).to_string(), shown);
        }
        for text in
            ["", "/", "192.0.2.0/33", "192.0.2.1/24", "192.0.2.0/+8", "::/129", "example.org", "192.0.2.0/"]
        {
            assert!(prefix(text).is_err(), "{text}");
        }
        assert!(prefix("192.0.2.1/24").expect_err("host bits").contains("192.0.2.0/24"));
    }

    #[test]
    fn times_to_live() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("10m", 600), ("12h", 43_200), ("365d", 31_536_000)]
        {
            assert_eq!(ttl(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "0", "0s", "m", "-1s", "1w", "366d", "99999999999999999999d", "1.5h"] {
            assert!(ttl(text).is_err(), "{text}");
        }
    }
}
