//! Properties of the codec that hold for all bytes; the fuzz targets are one call each.
//!
//! Owns: the properties. Does not own: the targets and seeds (`fuzz/` at the top of the workspace). Each hook panics
//! when a property is broken, and only then: nothing here is reachable from a connection.

use super::replay::{Head, Kind, Transcript, replay, wire};
use super::{
    BodyFraming, ConnectionField, HeadLimits, ResponseBody, Version, write_chunk_end, write_chunk_head,
    write_last_chunk, write_request_head, write_response_head,
};
use crate::exchange::{Forwarding, Method, RequestHead, Scheme, add_forwarding, authority, strip_hop_by_hop};
use crate::fields::Fields;

/// Limits small enough that a fuzzer reaches them.
const LIMITS: HeadLimits = HeadLimits { head_bytes_max: 4096, fields_max: 32, target_bytes_max: 1024 };

/// A request: the first byte chooses the pieces, the rest is the connection's bytes.
///
/// Properties: every split gives the same transcript; what is accepted is unambiguous (re-encoded, it parses to the
/// same head and framing); forwarding leaves a head that parses again.
///
/// # Panics
/// When a property is broken.
pub fn request_head(data: &[u8]) {
    let Some((seed, bytes)) = data.split_first() else {
        return;
    };
    let transcript = every_split(Kind::Request, *seed, bytes);
    let Some(Head::Request(head, framing)) = &transcript.head else {
        return;
    };
    assert!(head.authority.is_empty() || authority::is_valid(&head.authority));
    if head.method == Method::Connect {
        return;
    }
    assert!(matches!(head.path.first(), Some(b'/' | b'*')));
    let mut bytes = Vec::new();
    let sent = write_request_head(&mut bytes, head, framing.body_length());
    if !head.authority.is_empty() {
        let (again, again_framing) = parse_again(&bytes, &head.authority);
        assert_eq!(wire(&again.fields), wire(&head.fields));
        assert_eq!((again.method, &again.path), (head.method, &head.path));
        assert_eq!(again_framing, sent);
    }
    forwarding_keeps_a_valid_head(head, framing.version);
}

/// A response: the first byte chooses the pieces, the second the request's method, the rest is the connection's bytes.
///
/// Properties: every split gives the same transcript; what is accepted parses to the same fields and framing when it is
/// encoded for an HTTP/1.1 client.
///
/// # Panics
/// When a property is broken.
pub fn response_head(data: &[u8]) {
    let [seed, method, bytes @ ..] = data else {
        return;
    };
    let method = if method & 1 == 1 { Method::Head } else { Method::Get };
    let transcript = every_split(Kind::Response(method), *seed, bytes);
    let Some(Head::Response(head, framing)) = &transcript.head else {
        return;
    };
    assert!((100..=599).contains(&head.status));
    if head.status < 200 {
        return;
    }
    let body =
        ResponseBody::choose(head.status, method == Method::Head, framing.body_length(), Version::Http11);
    let mut bytes = Vec::new();
    let date = b"Thu, 01 Jan 1970 00:00:00 GMT";
    write_response_head(&mut bytes, head.status, &head.fields, body, ConnectionField::Silent, date, None);
    let roomy =
        HeadLimits { head_bytes_max: 2 * LIMITS.head_bytes_max, fields_max: 2 * LIMITS.fields_max, ..LIMITS };
    let again = replay(Kind::Response(method), &roomy, &bytes, &mut || usize::MAX);
    let Some(Head::Response(again, again_framing)) = &again.head else {
        panic!("our own head is refused: {again:?}")
    };
    assert_eq!(again.status, head.status);
    let expected = match framing.body {
        BodyFraming::UntilClose => BodyFraming::Chunked,
        other => other,
    };
    assert_eq!(again_framing.body, expected);
    let mut fields = again.fields.clone();
    if !head.fields.contains(crate::fields::Known::Date) {
        fields.remove(crate::fields::Known::Date);
    }
    assert_eq!(wire(&fields), wire(&head.fields));
}

/// A chunked body: the first byte chooses the pieces, the rest is the connection's bytes.
///
/// Properties: every split gives the same transcript; content and trailers that were accepted come out again when they
/// are encoded and decoded; and the bytes themselves, taken as content, survive encoding in any pieces.
///
/// # Panics
/// When a property is broken.
pub fn chunked(data: &[u8]) {
    let Some((seed, bytes)) = data.split_first() else {
        return;
    };
    let transcript = every_split(Kind::Chunked, *seed, bytes);
    survives_encoding(bytes, *seed, &[]);
    if transcript.complete {
        survives_encoding(&transcript.content, *seed, &transcript.trailers);
    }
}

/// Shows that the harness works: fails on an input that only a search guided by coverage finds.
///
/// # Panics
/// On the planted input.
pub fn canary(data: &[u8]) {
    let mut depth = 0;
    for (byte, planted) in data.iter().zip(b"BLITZ") {
        if byte != planted {
            return;
        }
        depth += 1;
    }
    assert!(depth < 5, "the canary is found, as it must be");
}

/// Replays in one piece, in single bytes and in the pieces of the seed; all must agree.
fn every_split(kind: Kind, seed: u8, bytes: &[u8]) -> Transcript {
    let whole = replay(kind, &LIMITS, bytes, &mut || usize::MAX);
    let by_byte = replay(kind, &LIMITS, bytes, &mut || 1);
    assert_eq!(whole, by_byte, "one piece and single bytes disagree");
    let mut pieces = Pieces::new(seed);
    let by_seed = replay(kind, &LIMITS, bytes, &mut || pieces.next_len());
    assert_eq!(whole, by_seed, "one piece and several disagree");
    whole
}

/// Encodes content and trailers as chunks of the seed's lengths and decodes them.
fn survives_encoding(content: &[u8], seed: u8, trailers: &[u8]) {
    let mut fields = Fields::new();
    for line in trailers.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':').expect("a line in wire form has a colon");
        fields.push(&line[..colon], line[colon + 1..].trim_ascii()).expect("a line in wire form is valid");
    }
    let mut pieces = Pieces::new(seed);
    let mut bytes = Vec::new();
    let mut rest = content;
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(pieces.next_len().min(rest.len()));
        write_chunk_head(&mut bytes, chunk.len());
        bytes.extend_from_slice(chunk);
        write_chunk_end(&mut bytes);
        rest = after;
    }
    write_last_chunk(&mut bytes, Some(&fields));
    let decoded = replay(Kind::Chunked, &LIMITS, &bytes, &mut || usize::MAX);
    assert!(decoded.complete && decoded.left == 0, "our own chunks are refused: {decoded:?}");
    assert_eq!(decoded.content, content);
    assert_eq!(decoded.trailers, wire(&fields));
}

/// Applies the forwarding rules and parses what would be sent.
fn forwarding_keeps_a_valid_head(head: &RequestHead, version: Version) {
    for is_trusted in [false, true] {
        let mut head = head.clone();
        strip_hop_by_hop(&mut head.fields);
        assert!(!head.fields.contains_any(crate::exchange::HOP_BY_HOP));
        let peer = std::net::IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
        let from = Forwarding::new(peer, Scheme::Https, is_trusted, version.via_token())
            .expect("a version is field text");
        add_forwarding(&mut head, &from).expect("a head within the limits has room");
        let mut bytes = Vec::new();
        write_request_head(&mut bytes, &head, crate::exchange::BodyLength::Empty);
        if !head.authority.is_empty() {
            let (again, _) = parse_again(&bytes, &head.authority);
            assert_eq!(wire(&again.fields), wire(&head.fields));
        }
    }
}

/// Parses a head that the encoder wrote; it must be accepted.
fn parse_again(bytes: &[u8], authority: &[u8]) -> (RequestHead, BodyFraming) {
    let roomy = HeadLimits {
        head_bytes_max: 3 * LIMITS.head_bytes_max,
        fields_max: 2 * LIMITS.fields_max,
        target_bytes_max: LIMITS.target_bytes_max + 1,
    };
    let mut again = RequestHead::new(Scheme::Http);
    let framing = super::parse_request(bytes, &roomy, &mut again)
        .unwrap_or_else(|error| panic!("our own head is refused: {error}: {}", bytes.escape_ascii()));
    assert_eq!(again.authority, authority);
    (again, framing.body)
}

/// Lengths of pieces, 1 to 16 bytes, by a small generator (xorshift), so that one byte chooses the whole split.
struct Pieces(u32);

impl Pieces {
    fn new(seed: u8) -> Self {
        // Never zero, or the generator would stay there.
        Self(u32::from(seed) | 0x9e37_7900)
    }

    fn next_len(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        (self.0 & 15) as usize + 1
    }
}
