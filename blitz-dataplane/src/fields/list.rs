//! Comma-separated lists in field values (RFC 9110 section 5.6.1).
//!
//! Owns: the iteration over list members and the search for a token. Does not own: what a token means.

use super::trim_ows;

/// The members of a list-based field value, empty ones left out, outer whitespace dropped.
///
/// A comma inside a quoted string (RFC 9110 section 5.6.4) does not separate. An unterminated quoted string takes the
/// rest of the value.
#[must_use]
pub const fn list_members(value: &[u8]) -> ListMembers<'_> {
    ListMembers { rest: value }
}

/// Whether the list names the token, compared without case.
#[must_use]
pub fn has_token(value: &[u8], token: &[u8]) -> bool {
    // Nearly every list has one member.
    value.eq_ignore_ascii_case(token) || list_members(value).any(|member| member.eq_ignore_ascii_case(token))
}

/// Iterator of [`list_members`].
#[derive(Clone, Debug)]
pub struct ListMembers<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for ListMembers<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.rest.is_empty() {
            let (member, rest) = match end_of_member(self.rest) {
                Some(comma) => self.rest.split_at_checked(comma).unwrap_or((self.rest, &[])),
                None => (self.rest, &[][..]),
            };
            self.rest = rest.get(1..).unwrap_or_default();
            let member = trim_ows(member);
            if !member.is_empty() {
                return Some(member);
            }
        }
        None
    }
}

/// Offset of the comma that ends the first member.
fn end_of_member(bytes: &[u8]) -> Option<usize> {
    match bytes.iter().position(|byte| matches!(byte, b',' | b'"'))? {
        at if bytes.get(at) == Some(&b',') => Some(at),
        quote => end_of_quoted_member(bytes, quote),
    }
}

/// The same when a quoted string begins at `from`, before any comma.
fn end_of_quoted_member(bytes: &[u8], from: usize) -> Option<usize> {
    let mut is_quoted = false;
    let mut is_escaped = false;
    for (at, byte) in bytes.iter().enumerate().skip(from) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => return Some(at),
            _ => {}
        }
    }
    None
}
