//! Paths that two readers could take for different ones (RFC 3986 sections 6.2.2 and 6.2.3).
//!
//! A route decides by the path, and the endpoint decides again. So both must read the same: escapes of
//! unreserved characters are undone (they mean the same by RFC 3986), and what servers disagree on is
//! refused rather than repaired: dot segments, in whatever spelling, backslashes, NUL, and escapes
//! that are none. `%2F` is left as it is: it is data, not a separator.
//!
//! Owns: the path of a request target. Does not own: its query, which routes do not look at.

use super::{ErrorKind, ProxyError};

/// Brings the path of `target` (path and query) into its normal form, in place.
///
/// # Errors
/// [`ErrorKind::BadRequestHead`] with a detail of `path_escape`, `path_dot_segment` or `path_byte`.
pub fn normalise(target: &mut Vec<u8>) -> Result<(), ProxyError> {
    // Nearly every path has none of the four and is done here.
    let end = memchr::memchr(b'?', target).unwrap_or(target.len());
    let path = &target[..end];
    if memchr::memchr3(b'%', b'.', b'\\', path).is_none() {
        return Ok(());
    }
    if memchr::memchr(b'%', path).is_some() {
        unescape(target, end)?;
    }
    let end = memchr::memchr(b'?', target).unwrap_or(target.len());
    let path = &target[..end];
    if memchr::memchr(b'\\', path).is_some() {
        return Err(refused("path_byte"));
    }
    let is_dots = |segment: &[u8]| matches!(segment, b"." | b"..");
    if path.split(|byte| *byte == b'/').any(is_dots) {
        return Err(refused("path_dot_segment"));
    }
    Ok(())
}

/// Undoes escapes of unreserved characters in the first `end` bytes and writes the others in capitals.
fn unescape(target: &mut Vec<u8>, end: usize) -> Result<(), ProxyError> {
    let mut out = Vec::with_capacity(target.len());
    let mut rest = &target[..end];
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            out.push(*byte);
            continue;
        }
        let (Some(high), Some(low)) = (digit(after.first()), digit(after.get(1))) else {
            return Err(refused("path_escape"));
        };
        rest = after.get(2..).unwrap_or_default();
        match high << 4 | low {
            0 => return Err(refused("path_byte")),
            // An escaped backslash is a separator to some servers, too.
            b'\\' => return Err(refused("path_byte")),
            plain if plain.is_ascii_alphanumeric() || matches!(plain, b'-' | b'.' | b'_' | b'~') => {
                out.push(plain)
            }
            escaped => {
                const CAPITALS: &[u8; 16] = b"0123456789ABCDEF";
                out.extend([b'%', CAPITALS[usize::from(escaped >> 4)], CAPITALS[usize::from(escaped & 15)]]);
            }
        }
    }
    out.extend_from_slice(&target[end..]);
    *target = out;
    Ok(())
}

fn digit(byte: Option<&u8>) -> Option<u8> {
    char::from(*byte?).to_digit(16).map(|digit| digit as u8)
}

const fn refused(detail: &'static str) -> ProxyError {
    ProxyError::new(ErrorKind::BadRequestHead).with_detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_meaning_one_spelling_and_what_has_two_is_refused() {
        let normal = |text: &str| {
            let mut path = text.as_bytes().to_vec();
            normalise(&mut path).map(|()| String::from_utf8(path).unwrap()).map_err(|error| error.detail)
        };
        for same in ["/", "/a/b", "/a//b", "/a.b/..c/d..", "/%2F", "/a?x=%zz&y=../..", "*", "/...", "/a%20b"]
        {
            assert_eq!(normal(same).as_deref(), Ok(same));
        }
        assert_eq!(normal("/%61dmin/%7Euser?q=%61").as_deref(), Ok("/admin/~user?q=%61"));
        assert_eq!(normal("/%c3%a9").as_deref(), Ok("/%C3%A9"));
        for dots in ["/.", "/..", "/a/../b", "/a/./b", "/a/%2e%2E/b", "/a/.%2e", "/a/..?x"] {
            assert_eq!(normal(dots), Err("path_dot_segment"), "{dots}");
        }
        for escape in ["/%", "/%4", "/%zz", "/a%2?x"] {
            assert_eq!(normal(escape), Err("path_escape"), "{escape}");
        }
        for byte in ["/a\\b", "/a%5Cb", "/a%00b"] {
            assert_eq!(normal(byte), Err("path_byte"), "{byte}");
        }
    }
}
