//! Walks along a byte stream from frame header to frame header, however the bytes are split.
//!
//! Owns: where in a frame the stream stands. Does not own: what a frame says (`meter.rs`).

use super::frame::{HEADER_BYTES, Header, kind};

/// Bytes of a payload's start that are kept for whoever judges the frame: the longest that is looked at is a PRIORITY
/// (5 bytes), or a WINDOW_UPDATE or an error code (4), behind a pad length (1).
pub(super) const PREFIX_BYTES: usize = 6;

/// What the walk comes upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A header is complete.
    Header(Header),
    /// The first bytes of a payload are complete: all of a short one. Of a SETTINGS frame, one setting after the
    /// other (RFC 9113 section 6.5.1: 6 bytes each).
    Prefix(Header, [u8; PREFIX_BYTES]),
    /// A frame is complete.
    End(Header),
}

/// Where the walk stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walk {
    header: [u8; HEADER_BYTES],
    /// Bytes of `header` that are there.
    header_len: u8,
    prefix: [u8; PREFIX_BYTES],
    prefix_len: u8,
    /// The frame whose payload is being passed.
    frame: Option<Header>,
    /// Bytes of its payload that are still to come.
    left: u32,
    /// Its prefix has been reported.
    is_reported: bool,
}

impl Walk {
    /// Goes on over `bytes` to the next step. Says how many bytes it took; without a step, all of them.
    pub fn next(&mut self, bytes: &[u8]) -> (usize, Option<Step>) {
        let mut taken = 0;
        let Some(frame) = self.frame else {
            for byte in bytes {
                let Some(place) = self.header.get_mut(usize::from(self.header_len)) else { break };
                *place = *byte;
                self.header_len += 1;
                taken += 1;
                if usize::from(self.header_len) == HEADER_BYTES {
                    let frame = Header::parse(self.header);
                    (self.header_len, self.prefix_len, self.prefix) = (0, 0, [0; PREFIX_BYTES]);
                    (self.frame, self.left, self.is_reported) = (Some(frame), frame.length, false);
                    return (taken, Some(Step::Header(frame)));
                }
            }
            return (taken, None);
        };
        if !self.is_reported {
            while usize::from(self.prefix_len) < PREFIX_BYTES && self.left > 0 {
                let Some(byte) = bytes.get(taken) else { return (taken, None) };
                if let Some(place) = self.prefix.get_mut(usize::from(self.prefix_len)) {
                    *place = *byte;
                }
                self.prefix_len += 1;
                self.left -= 1;
                taken += 1;
            }
            self.is_reported = true;
            return (taken, Some(Step::Prefix(frame, self.prefix)));
        }
        if frame.kind == kind::SETTINGS && self.left >= PREFIX_BYTES as u32 {
            // The next setting.
            (self.is_reported, self.prefix_len) = (false, 0);
            return self.next(bytes);
        }
        let rest = bytes.len() - taken;
        let skipped = rest.min(self.left as usize);
        self.left -= skipped as u32;
        taken += skipped;
        if self.left == 0 {
            self.frame = None;
            return (taken, Some(Step::End(frame)));
        }
        (taken, None)
    }

    /// Whether the stream stands within a frame, its header included.
    #[must_use]
    pub const fn is_within_frame(&self) -> bool {
        self.frame.is_some() || self.header_len > 0
    }
}
