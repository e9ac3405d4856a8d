//! Which answer of a connection goes first (RFC 9218).
//!
//! A client says it in the `Priority` field of a request, and anew in PRIORITY_UPDATE frames; an endpoint may change it
//! by the field of its answer. quiche keeps the order: a lower urgency goes first, within one urgency one answer after
//! the other, then those that are of use in parts, in turn.
//!
//! Owns: reading the field. Does not own: when it is read (`connection.rs`, `stream.rs`).

use crate::fields::trim_ows;

/// Where quiche has the urgencies of HTTP/3 among its own: around 127, that of all other streams.
const URGENCY_OFFSET: u8 = 124;

/// The field's name.
pub(super) const NAME: &[u8] = b"priority";

/// How soon an answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Priority {
    urgency: u8,
    pub(super) is_incremental: bool,
}

impl Default for Priority {
    /// Section 4.
    fn default() -> Self {
        Self { urgency: 3, is_incremental: false }
    }
}

impl Priority {
    /// What a field says, and of what it does not say, or not rightly, the default.
    pub(super) fn of(value: &[u8]) -> Self {
        let mut priority = Self::default();
        priority.change(value);
        priority
    }

    /// Takes over what a field says (a dictionary of RFC 8941 section 3.2); unknown members and wrong values are passed
    /// over.
    pub(super) fn change(&mut self, value: &[u8]) {
        for member in value.split(|byte| *byte == b',') {
            let mut parts = member.split(|byte| *byte == b';');
            match trim_ows(parts.next().unwrap_or_default()) {
                [b'u', b'=', digit @ b'0'..=b'7'] => self.urgency = digit - b'0',
                b"i" | b"i=?1" => self.is_incremental = true,
                b"i=?0" => self.is_incremental = false,
                _ => {}
            }
        }
    }
}

impl Priority {
    /// Puts a stream in its place among the others.
    pub(super) fn apply(self, quic: &mut quiche::Connection, id: u64) {
        // Its answer may be over.
        let _over = quic.stream_priority(id, URGENCY_OFFSET + self.urgency, self.is_incremental);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read_as_far_as_it_is_understood() {
        let cases: &[(&[u8], u8, bool)] = &[
            (b"", 3, false),
            (b"u=0", 0, false),
            (b"u=7, i", 7, true),
            (b"i=?1 ,\tu=1", 1, true),
            (b"i, i=?0, u=2, u=5", 5, false),
            (b"u=1;x=2, i;y, z=\"q\"", 1, true),
            (b"u=8, i=1", 3, false),
            (b"u=-1, u= 1, u, I, u=10, i=?2, =, ;, ,", 3, false),
        ];
        for (value, urgency, is_incremental) in cases {
            let expected = Priority { urgency: *urgency, is_incremental: *is_incremental };
            assert_eq!(Priority::of(value), expected, "{}", String::from_utf8_lossy(value));
        }
        let mut priority = Priority::of(b"u=1, i");
        priority.change(b"u=5");
        assert_eq!(
            priority,
            Priority { urgency: 5, is_incremental: true },
            "what an answer does not say stays"
        );
    }
}
