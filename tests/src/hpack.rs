//! Reading HPACK field blocks (RFC 7541), as far as peers of a test write them.
//!
//! Owns: the decoder with its dynamic table. Does not own: writing blocks, which [`crate::h2raw`] does byte by byte,
//! right or wrong. Huffman codes of other characters than those of printable ASCII are not known: whoever wants to see
//! such a value has it sent plain.

use std::collections::VecDeque;

/// Names and values in their order.
pub type List = Vec<(String, String)>;

/// The value of the first field of this name.
pub fn find<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Decoder {
    /// Newest first.
    table: VecDeque<(String, String)>,
    bytes: usize,
    bytes_max: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { table: VecDeque::new(), bytes: 0, bytes_max: 4096 }
    }
}

impl Decoder {
    /// Reads a whole block; `None` when it is malformed.
    pub fn block(&mut self, block: &[u8]) -> Option<List> {
        let mut fields = Vec::new();
        let mut at = 0;
        while let Some(&first) = block.get(at) {
            if first & 0x80 != 0 {
                fields.push(self.entry(integer(block, &mut at, 7)?)?.clone());
            } else if first & 0xe0 == 0x20 {
                self.bytes_max = integer(block, &mut at, 5)?;
                self.evict();
            } else {
                let is_indexed = first & 0xc0 == 0x40;
                let name = match integer(block, &mut at, if is_indexed { 6 } else { 4 })? {
                    0 => string(block, &mut at)?,
                    index => self.entry(index)?.0.clone(),
                };
                let field = (name, string(block, &mut at)?);
                if is_indexed {
                    self.bytes += size(&field);
                    self.table.push_front(field.clone());
                    self.evict();
                }
                fields.push(field);
            }
        }
        Some(fields)
    }

    fn entry(&self, index: usize) -> Option<&(String, String)> {
        thread_local! {
            static ENTRIES: &'static [(String, String)] = STATIC_TABLE
                .lines()
                .map(|line| line.split_once('=').unwrap_or((line, "")))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect::<Vec<_>>()
                .leak();
        }
        let entries = ENTRIES.with(|entries| *entries);
        let index = index.checked_sub(1)?;
        entries.get(index).or_else(|| self.table.get(index - entries.len()))
    }

    /// RFC 7541 section 4.4.
    fn evict(&mut self) {
        while self.bytes > self.bytes_max {
            let Some(field) = self.table.pop_back() else { break };
            self.bytes -= size(&field);
        }
    }
}

/// RFC 7541 section 4.1.
fn size((name, value): &(String, String)) -> usize {
    name.len() + value.len() + 32
}

/// RFC 7541 section 5.1.
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let most = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & most;
    *at += 1;
    let mut shift = 0;
    if value == most {
        loop {
            let byte = usize::from(*block.get(*at)?);
            *at += 1;
            value += (byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    Some(value)
}

/// RFC 7541 section 5.2.
fn string(block: &[u8], at: &mut usize) -> Option<String> {
    let is_huffman = block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let bytes = block.get(*at..*at + length)?;
    *at += length;
    if is_huffman { huffman(bytes) } else { Some(String::from_utf8_lossy(bytes).into_owned()) }
}

/// The characters by the length of their codes (RFC 7541 appendix B). The code is canonical: among codes of one length
/// the order is that of the characters, and they follow on those of the lengths before.
const CODES: &[(u32, &str)] = &[
    (5, "012aceiost"),
    (6, " %-./3456789=A_bdfghlmnpru"),
    (7, ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, "&*,;XZ"),
    (10, "!\"()?"),
    (11, "'+|"),
    (12, "#>"),
    (13, "\0$@[]~"),
    (14, "^}"),
    (15, "<`{"),
    (19, "\\"),
];

fn huffman(bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| u32::from(byte >> bit & 1)));
    'characters: loop {
        let (mut code, mut length, mut first) = (0, 0, 0);
        let mut is_padding = true;
        for &(of_length, characters) in CODES {
            while length < of_length {
                // What is left must be the beginning of the code of EOS, all ones, and less than a byte.
                let Some(bit) = bits.next() else { return (is_padding && length < 8).then_some(text) };
                is_padding &= bit == 1;
                (code, first, length) = (code << 1 | bit, first << 1, length + 1);
            }
            let character = usize::try_from(code - first).ok().and_then(|nth| characters.chars().nth(nth));
            if let Some(character) = character {
                text.push(character);
                continue 'characters;
            }
            first += characters.chars().count() as u32;
        }
        return None;
    }
}

/// RFC 7541 appendix A.
const STATIC_TABLE: &str = "\
:authority
:method=GET
:method=POST
:path=/
:path=/index.html
:scheme=http
:scheme=https
:status=200
:status=204
:status=206
:status=304
:status=400
:status=404
:status=500
accept-charset
accept-encoding=gzip, deflate
accept-language
accept-ranges
accept
access-control-allow-origin
age
allow
authorization
cache-control
content-disposition
content-encoding
content-language
content-length
content-location
content-range
content-type
cookie
date
etag
expect
expires
from
host
if-match
if-modified-since
if-none-match
if-range
if-unmodified-since
last-modified
link
location
max-forwards
proxy-authenticate
proxy-authorization
range
referer
refresh
retry-after
server
set-cookie
strict-transport-security
transfer-encoding
user-agent
vary
via
www-authenticate";

#[cfg(test)]
mod tests {
    use super::{Decoder, List};

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap_or_default(), 16);
        digits.chunks(2).map(|two| pair(two).expect("hexadecimal digits")).collect()
    }

    fn list(fields: &[(&str, &str)]) -> Option<List> {
        Some(fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn appendix_c_4_requests_with_huffman_code() {
        let mut decoder = Decoder::default();
        let common =
            [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
        assert_eq!(decoder.block(&bytes("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff")), list(&common));
        let second = [&common[..], &[("cache-control", "no-cache")]].concat();
        assert_eq!(decoder.block(&bytes("8286 84be 5886 a8eb 1064 9cbf")), list(&second));
        let third = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ];
        let block = bytes("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf");
        assert_eq!(decoder.block(&block), list(&third));
        assert_eq!(decoder.bytes, 164);
    }

    #[test]
    fn appendix_c_6_responses_that_evict() {
        let mut decoder = Decoder { bytes_max: 256, ..Decoder::default() };
        let first = "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d \
                     29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3";
        let location = ("location", "https://www.example.com");
        let date = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
        let expected = [(":status", "302"), ("cache-control", "private"), date, location];
        assert_eq!(decoder.block(&bytes(first)), list(&expected));
        let expected = [(":status", "307"), ("cache-control", "private"), date, location];
        assert_eq!(decoder.block(&bytes("4883 640e ffc1 c0bf")), list(&expected));
        assert_eq!(decoder.bytes, 222, "one was displaced");
    }

    #[test]
    fn malformed_blocks_are_refused() {
        let mut decoder = Decoder::default();
        for block in [&b"\xff"[..], b"\x80", b"\xbe", b"\x00\x05ab", b"\x00\x81\x00\x00"] {
            assert_eq!(decoder.block(block), None, "{block:x?}");
        }
    }
}
