//! The little of HTTP/3 that a load needs (RFC 9114 section 7, RFC 9204 section 4.5): a request out of the static
//! table and literals, and whether an answer begins with status 200.
//!
//! Owns: those bytes. Does not own: streams (`bin/load_h3.rs`).

/// What a client's control stream begins with: its type, and SETTINGS without any (so no dynamic table).
pub const CONTROL: &[u8] = &[0x00, 0x04, 0x00];

/// The type of a HEADERS frame.
const HEADERS_TYPE: u64 = 0x01;
/// A whole field of the static table; a field whose name is in it.
const INDEXED: u8 = 0xc0;
const NAMED: u8 = 0x50;
/// Numbers in the static table (RFC 9204 appendix A).
const AUTHORITY: u8 = 0;
const PATH: u8 = 1;
const METHOD_GET: u8 = 17;
const SCHEME_HTTPS: u8 = 23;
const STATUS_200: u8 = 25;
const USER_AGENT: u8 = 95;

/// A GET request without a body.
#[must_use]
pub fn request(authority: &str, path: &str) -> Vec<u8> {
    // The prefix: nothing of the dynamic table is referred to.
    let mut block = vec![0, 0, INDEXED | METHOD_GET, INDEXED | SCHEME_HTTPS];
    for (number, value) in [(AUTHORITY, authority), (PATH, path), (USER_AGENT, "load_h3")] {
        // Four bits of number, then the rest of it; the bits of a length are seven.
        match number.checked_sub(15) {
            None => block.push(NAMED | number),
            Some(rest) => block.extend([NAMED | 15, rest]),
        }
        block.push(u8::try_from(value.len()).unwrap_or(u8::MAX).min(126));
        block.extend(value.bytes().take(126));
    }
    let mut frame = vec![HEADERS_TYPE as u8];
    // As a two-byte integer (RFC 9000 section 16).
    frame.extend((0x4000 | block.len() as u16).to_be_bytes());
    frame.extend(block);
    frame
}

/// Whether an answer that begins like this has status 200. Frames of other types may come first: a server shows by them
/// that its clients have to bear unknown ones (RFC 9114 section 9).
#[must_use]
pub fn is_ok(mut bytes: &[u8]) -> bool {
    loop {
        let Some((kind, rest)) = integer(bytes) else { return false };
        let Some((length, rest)) = integer(rest) else { return false };
        match kind {
            HEADERS_TYPE => return rest.starts_with(&[0, 0, INDEXED | STATUS_200]),
            // DATA without a head.
            0 => return false,
            _ => bytes = rest.get(length as usize..).unwrap_or_default(),
        }
    }
}

/// An integer (RFC 9000 section 16), and what follows it.
fn integer(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (first, _) = bytes.split_first()?;
    let (integer, rest) = bytes.split_at_checked(1 << (first >> 6))?;
    let mut value = u64::from(first & 0x3f);
    for byte in integer.get(1..)? {
        value = value << 8 | u64::from(*byte);
    }
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use quiche::h3::NameValue;

    use super::*;

    #[test]
    fn a_request_is_what_quiche_reads() {
        let bytes = request("localhost:1", "/hello");
        assert_eq!(bytes.len(), 3 + usize::from(u16::from_be_bytes([bytes[1] & 0x3f, bytes[2]])));
        let list = quiche::h3::qpack::Decoder::new().decode(&bytes[3..], 1000).expect("a head");
        let pairs: Vec<_> = list.iter().map(|field| (field.name(), field.value())).collect();
        let expected: [(&[u8], &[u8]); 5] = [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":authority", b"localhost:1"),
            (b":path", b"/hello"),
            (b"user-agent", b"load_h3"),
        ];
        assert_eq!(pairs, expected);
    }

    #[test]
    fn a_status_is_read() {
        assert!(is_ok(&[1, 3, 0, 0, 0xd9]));
        assert!(is_ok(&[1, 0x40, 3, 0, 0, 0xd9, 7]));
        assert!(!is_ok(&[1, 3, 0, 0, 0xda]));
        assert!(!is_ok(&[0, 3, 0, 0, 0xd9]));
        assert!(is_ok(&[0x21, 2, 7, 7, 1, 3, 0, 0, 0xd9]));
        assert!(!is_ok(&[0x21, 2, 7, 7]));
        assert!(!is_ok(&[0x21, 9, 7, 7, 1, 3, 0, 0, 0xd9]));
        assert!(!is_ok(&[1, 3, 0]));
        assert!(!is_ok(&[]));
    }
}
