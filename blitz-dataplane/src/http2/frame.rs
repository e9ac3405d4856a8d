//! The 9-byte frame header and what else of RFC 9113 section 6 can be told from the outside of a frame.
//!
//! Owns: types, flags, error codes, the header's layout. Does not own: what frames mean (the h2 crate), or how many
//! of them are too many (`meter.rs`).

/// Bytes of a frame header (RFC 9113 section 4.1).
pub const HEADER_BYTES: usize = 9;

/// The client connection preface (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Most bytes of a frame's payload that the gateway takes: the value that every endpoint starts with and the gateway
/// does not change (RFC 9113 section 6.5.2).
pub const FRAME_BYTES_MAX: u32 = 16 * 1024;

/// Frame types (RFC 9113 section 6, RFC 9218 section 7.1).
pub mod kind {
    /// RFC 9113 section 6.1.
    pub const DATA: u8 = 0x0;
    /// Section 6.2.
    pub const HEADERS: u8 = 0x1;
    /// Section 6.3.
    pub const PRIORITY: u8 = 0x2;
    /// Section 6.4.
    pub const RST_STREAM: u8 = 0x3;
    /// Section 6.5.
    pub const SETTINGS: u8 = 0x4;
    /// Section 6.6.
    pub const PUSH_PROMISE: u8 = 0x5;
    /// Section 6.7.
    pub const PING: u8 = 0x6;
    /// Section 6.8.
    pub const GOAWAY: u8 = 0x7;
    /// Section 6.9.
    pub const WINDOW_UPDATE: u8 = 0x8;
    /// Section 6.10.
    pub const CONTINUATION: u8 = 0x9;
    /// RFC 9218 section 7.1.
    pub const PRIORITY_UPDATE: u8 = 0x10;
}

/// Flags (RFC 9113 section 6).
pub mod flag {
    /// DATA and HEADERS: the last of the stream.
    pub const END_STREAM: u8 = 0x1;
    /// SETTINGS and PING: an acknowledgement.
    pub const ACK: u8 = 0x1;
    /// HEADERS and CONTINUATION: the field block ends here.
    pub const END_HEADERS: u8 = 0x4;
    /// DATA and HEADERS: the payload begins with a pad length.
    pub const PADDED: u8 = 0x8;
    /// HEADERS: priority fields follow.
    pub const PRIORITY: u8 = 0x20;
}

/// Error codes (RFC 9113 section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// No error.
    NoError = 0x0,
    /// A rule was broken and no other code fits.
    ProtocolError = 0x1,
    /// The endpoint made a mistake.
    InternalError = 0x2,
    /// More was sent than the window allows, or a window grew beyond its largest size.
    FlowControlError = 0x3,
    /// A frame for a stream that is closed.
    StreamClosed = 0x5,
    /// A frame of a size that its type does not have.
    FrameSizeError = 0x6,
    /// The stream was refused before any work was done on it.
    RefusedStream = 0x7,
    /// The stream is not wanted any more.
    Cancel = 0x8,
    /// A field block could not be decompressed.
    CompressionError = 0x9,
    /// The peer does what may burden the endpoint.
    EnhanceYourCalm = 0xb,
}

/// A frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the payload.
    pub length: u32,
    /// The type; see [`kind`].
    pub kind: u8,
    /// See [`flag`].
    pub flags: u8,
    /// The stream, without the reserved bit.
    pub stream: u32,
}

impl Header {
    /// Reads a header.
    #[must_use]
    pub const fn parse(bytes: [u8; HEADER_BYTES]) -> Self {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff,
        }
    }

    /// Whether any of the flags is set.
    #[must_use]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}
