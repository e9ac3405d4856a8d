//! Bytes of HTTP/3 (RFC 9114) as a client may send them, right or wrong.
//!
//! Owns: frames, integers, a field section without a dynamic table. Does not own: streams and packets ([`crate::h3`]).

/// Types of frames (RFC 9114 section 7.2).
pub mod kind {
    /// DATA.
    pub const DATA: u64 = 0x0;
    /// HEADERS.
    pub const HEADERS: u64 = 0x1;
    /// CANCEL_PUSH.
    pub const CANCEL_PUSH: u64 = 0x3;
    /// SETTINGS.
    pub const SETTINGS: u64 = 0x4;
    /// PUSH_PROMISE.
    pub const PUSH_PROMISE: u64 = 0x5;
    /// GOAWAY.
    pub const GOAWAY: u64 = 0x7;
    /// MAX_PUSH_ID.
    pub const MAX_PUSH_ID: u64 = 0xd;
}

/// Types of unidirectional streams (RFC 9114 section 6.2, RFC 9204 section 4.2).
pub mod stream {
    /// Control.
    pub const CONTROL: u64 = 0x0;
    /// Push.
    pub const PUSH: u64 = 0x1;
    /// What QPACK's encoder says.
    pub const ENCODER: u64 = 0x2;
}

/// An integer of variable length (RFC 9000 section 16).
pub fn integer(value: u64) -> Vec<u8> {
    match value {
        0..=0x3f => vec![value as u8],
        0x40..=0x3fff => (value as u16 | 0x4000).to_be_bytes().to_vec(),
        0x4000..=0x3fff_ffff => (value as u32 | 0x8000_0000).to_be_bytes().to_vec(),
        _ => (value | 0xc000_0000_0000_0000).to_be_bytes().to_vec(),
    }
}

/// A frame.
pub fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    [integer(kind), integer(payload.len() as u64), payload.to_vec()].concat()
}

/// A frame whose payload is integers.
pub fn integers(kind: u64, values: &[u64]) -> Vec<u8> {
    frame(kind, &values.iter().flat_map(|value| integer(*value)).collect::<Vec<_>>())
}

/// A field section without references (RFC 9204 section 4.5.6).
pub fn section(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0, 0];
    for (name, value) in fields {
        block.extend(crate::h2raw::integer(name.len(), 3, 0x20));
        block.extend(name.as_bytes());
        block.extend(crate::h2raw::string(value.as_bytes()));
    }
    block
}

/// HEADERS.
pub fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(kind::HEADERS, &section(fields))
}
