//! Field values as the crate wants them, shared where they repeat.
//!
//! The crate's type owns its bytes: a value is an allocation, a copy and a check. Most answers of a worker say the same
//! in a few fields, so the last value of each of these is kept, and given out again by reference.
//!
//! Owns: that memory, one short value for each of these fields and worker. Does not own: which fields a head has
//! (`head.rs`). Nothing that could be a secret is kept.

use std::cell::RefCell;
use std::io::Write;

use http::header::{HeaderValue, InvalidHeaderValue};

use crate::fields::{Known, KnownSet};

/// Fields whose values repeat from answer to answer.
const REPEATING: KnownSet = KnownSet::of(&[
    Known::Date,
    Known::Server,
    Known::Via,
    Known::ContentType,
    Known::ContentLength,
    Known::ContentEncoding,
    Known::CacheControl,
    Known::Vary,
]);

/// Bytes of a value that is kept, at most. A longer one is made anew each time.
const KEPT_BYTES_MAX: usize = 64;

/// Digits of the largest length.
const LENGTH_DIGITS_MAX: usize = 20;

thread_local! {
    static LAST: RefCell<[Option<HeaderValue>; Known::ALL.len() + 1]> =
        const { RefCell::new([const { None }; Known::ALL.len() + 1]) };
}

/// The value of a field.
///
/// # Errors
/// A byte that no value may have.
pub(super) fn value(known: Known, bytes: &[u8]) -> Result<HeaderValue, InvalidHeaderValue> {
    if !REPEATING.contains(known) || bytes.len() > KEPT_BYTES_MAX {
        return HeaderValue::from_bytes(bytes);
    }
    LAST.with_borrow_mut(|last| {
        let Some(kept) = last.get_mut(known as usize) else { return HeaderValue::from_bytes(bytes) };
        if let Some(value) = kept.as_ref().filter(|value| value.as_bytes() == bytes) {
            return Ok(value.clone());
        }
        let value = HeaderValue::from_bytes(bytes)?;
        *kept = Some(value.clone());
        Ok(value)
    })
}

/// The value of Content-Length.
pub(super) fn length(length: u64) -> HeaderValue {
    let mut digits = [0; LENGTH_DIGITS_MAX];
    let mut rest = &mut digits[..];
    // It has room for any number.
    let _always = write!(rest, "{length}");
    let unused = rest.len();
    let digits = digits.get(..LENGTH_DIGITS_MAX - unused).unwrap_or_default();
    value(Known::ContentLength, digits).unwrap_or_else(|_| HeaderValue::from(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_repeats_is_the_same_memory() {
        let first = value(Known::Server, b"nginx").expect("a value");
        let second = value(Known::Server, b"nginx").expect("a value");
        assert_eq!(first.as_bytes().as_ptr(), second.as_bytes().as_ptr());
        let other = value(Known::Server, b"caddy").expect("a value");
        assert_eq!((other.as_bytes(), first.as_bytes()), (&b"caddy"[..], &b"nginx"[..]));
        value(Known::Server, b"a\nb").expect_err("a line break");
    }

    #[test]
    fn what_is_long_or_secret_is_not_kept() {
        let long = [b'x'; KEPT_BYTES_MAX + 1];
        for (known, bytes) in [(Known::Server, &long[..]), (Known::SetCookie, b"a=b")] {
            let (first, second) =
                (value(known, bytes).expect("a value"), value(known, bytes).expect("a value"));
            assert_ne!(first.as_bytes().as_ptr(), second.as_bytes().as_ptr());
        }
    }

    #[test]
    fn lengths_are_written_whole() {
        for number in [0, 9, 10, 1024, u64::MAX] {
            assert_eq!(length(number).as_bytes(), number.to_string().as_bytes());
        }
    }
}
