//! The `Date` field's value, formatted once a second (RFC 9110 section 5.6.7).
//!
//! Owns: the cached text. Does not own: the clock; the caller passes the time in.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::time::{Duration, UNIX_EPOCH};

/// Bytes of an IMF-fixdate, such as `Sun, 06 Nov 1994 08:49:37 GMT`.
pub const IMF_FIXDATE_BYTES: usize = 29;

/// Latest second that an IMF-fixdate can say: its year has four digits (9999-12-31T23:59:59Z).
const UNIX_SECONDS_MAX: u64 = 253_402_300_799;

/// Formats the wall-clock second as IMF-fixdate and keeps the text until the second changes.
#[derive(Clone, Debug)]
pub struct DateCache {
    unix_seconds: u64,
    text: [u8; IMF_FIXDATE_BYTES],
}

impl DateCache {
    /// A cache that holds the date of `unix_seconds`, seconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn new(unix_seconds: u64) -> Self {
        Self { unix_seconds, text: format(unix_seconds) }
    }

    /// The date of `unix_seconds`, seconds since 1970-01-01T00:00:00Z. Costs a comparison unless the second changed;
    /// a clock that goes back is followed too. Times after the year 9999 give its last second.
    pub fn at(&mut self, unix_seconds: u64) -> &[u8; IMF_FIXDATE_BYTES] {
        if unix_seconds != self.unix_seconds {
            *self = Self::new(unix_seconds);
        }
        &self.text
    }
}

fn format(unix_seconds: u64) -> [u8; IMF_FIXDATE_BYTES] {
    let time = UNIX_EPOCH + Duration::from_secs(unix_seconds.min(UNIX_SECONDS_MAX));
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    // The text has exactly this length for every four-digit year, so the write cannot come up short.
    let written = write!(&mut text[..], "{}", httpdate::HttpDate::from(time));
    debug_assert!(written.is_ok(), "an IMF-fixdate is longer than {IMF_FIXDATE_BYTES} bytes");
    text
}

#[cfg(test)]
mod tests {
    use super::DateCache;

    #[test]
    fn formats_known_seconds() {
        assert_eq!(&DateCache::new(0).text, b"Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(DateCache::new(0).at(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn follows_the_clock_in_both_directions() {
        let mut cache = DateCache::new(784_111_777);
        assert_eq!(cache.at(784_111_778), b"Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(cache.at(784_111_776), b"Sun, 06 Nov 1994 08:49:36 GMT");
    }

    #[test]
    fn stays_within_four_digit_years() {
        assert_eq!(DateCache::new(0).at(u64::MAX), b"Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
