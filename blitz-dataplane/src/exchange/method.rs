//! Request methods (RFC 9110 section 9).
//!
//! Owns: names and the safe and idempotent properties. Does not own: which methods the gateway serves (the codec's
//! policy function and the routes).

use std::fmt;

/// A request method. Names are case-sensitive.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Method {
    /// RFC 9110 section 9.3.1.
    #[default]
    Get,
    /// RFC 9110 section 9.3.2.
    Head,
    /// RFC 9110 section 9.3.3.
    Post,
    /// RFC 9110 section 9.3.4.
    Put,
    /// RFC 9110 section 9.3.5.
    Delete,
    /// RFC 9110 section 9.3.6.
    Connect,
    /// RFC 9110 section 9.3.7.
    Options,
    /// RFC 9110 section 9.3.8.
    Trace,
    /// RFC 5789.
    Patch,
    /// Any other token.
    Other(MethodToken),
}

/// The name of a method outside RFC 9110 and RFC 5789, held inline.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MethodToken {
    len: u8,
    bytes: [u8; MethodToken::BYTES_MAX],
}

impl MethodToken {
    /// Longest name in bytes; the longest registered one, `UPDATEREDIRECTREF`, has 17. A longer one is refused.
    pub const BYTES_MAX: usize = 31;

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl Method {
    /// The method with this name; none when it is empty, longer than [`MethodToken::BYTES_MAX`] or not a token.
    #[must_use]
    pub fn from_bytes(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"CONNECT" => Self::Connect,
            b"OPTIONS" => Self::Options,
            b"TRACE" => Self::Trace,
            b"PATCH" => Self::Patch,
            _ => {
                let mut bytes = [0; MethodToken::BYTES_MAX];
                bytes.get_mut(..name.len())?.copy_from_slice(name);
                if name.is_empty() || !name.iter().all(|b| crate::fields::is_token_byte(*b)) {
                    return None;
                }
                Self::Other(MethodToken { len: u8::try_from(name.len()).ok()?, bytes })
            }
        })
    }

    /// The name on the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Get => b"GET",
            Self::Head => b"HEAD",
            Self::Post => b"POST",
            Self::Put => b"PUT",
            Self::Delete => b"DELETE",
            Self::Connect => b"CONNECT",
            Self::Options => b"OPTIONS",
            Self::Trace => b"TRACE",
            Self::Patch => b"PATCH",
            Self::Other(token) => token.as_bytes(),
        }
    }

    /// Whether the method only reads (RFC 9110 section 9.2.1 and the IANA registry); unknown ones are not safe.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        match self {
            Self::Get | Self::Head | Self::Options | Self::Trace => true,
            Self::Other(token) => matches!(token.as_bytes(), b"PROPFIND" | b"REPORT" | b"SEARCH" | b"QUERY"),
            Self::Post | Self::Put | Self::Delete | Self::Connect | Self::Patch => false,
        }
    }

    /// Whether doing it twice is like doing it once (RFC 9110 section 9.2.2 and the IANA registry); unknown ones are
    /// not idempotent.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        const IDEMPOTENT: &[&[u8]] = &[
            b"ACL",
            b"BASELINE-CONTROL",
            b"BIND",
            b"CHECKIN",
            b"CHECKOUT",
            b"COPY",
            b"LABEL",
            b"LINK",
            b"MERGE",
            b"MKACTIVITY",
            b"MKCALENDAR",
            b"MKCOL",
            b"MKREDIRECTREF",
            b"MKWORKSPACE",
            b"MOVE",
            b"ORDERPATCH",
            b"PROPPATCH",
            b"REBIND",
            b"UNBIND",
            b"UNCHECKOUT",
            b"UNLINK",
            b"UNLOCK",
            b"UPDATE",
            b"UPDATEREDIRECTREF",
            b"VERSION-CONTROL",
        ];
        match self {
            Self::Put | Self::Delete => true,
            Self::Other(token) => self.is_safe() || IDEMPOTENT.contains(&token.as_bytes()),
            _ => self.is_safe(),
        }
    }

    /// Whether a request with this method and without a body still says so by `Content-Length: 0`
    /// (RFC 9110 section 8.6: methods that anticipate content).
    #[must_use]
    pub const fn anticipates_content(&self) -> bool {
        matches!(self, Self::Post | Self::Put | Self::Patch)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_bytes().escape_ascii())
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
