//! One HTTP exchange as everything above a codec sees it: heads, body length, errors, forwarding rules.
//!
//! Owns: the version-neutral request and response head, methods, schemes, authority syntax, the error table and the
//! rules of forwarding (RFC 9110 section 7.6). Does not own: any wire format (`http1/` and its siblings), field storage
//! (`fields.rs`), bodies (streamed by the proxy). Nothing here knows the HTTP version of either side.

#![forbid(unsafe_code)]

pub mod authority;
mod error;
mod forward;
pub mod grpc;
pub mod head;
mod method;
pub mod path;
pub mod refusal;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod upgrade;

pub use error::{ErrorKind, ErrorRow, ProxyError, Retry, Side};
pub use forward::{
    Forwarding, HOP_BY_HOP, HopByHop, MaxForwards, VIA_PSEUDONYM, add_forwarding, max_forwards,
    restore_upgrade, strip_hop_by_hop,
};
pub use method::{Method, MethodToken};
pub use upgrade::Upgrade;

use crate::fields::Fields;

/// The scheme of the target URI (RFC 9110 section 4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// Plain TCP.
    #[default]
    Http,
    /// TLS or QUIC.
    Https,
}

impl Scheme {
    /// The scheme as written in a URI.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The protocol that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 or HTTP/1.1.
    H1,
    /// HTTP/2.
    H2,
    /// HTTP/3.
    H3,
}

/// How long a message body is, as the message says before the body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyLength {
    /// There is no body.
    #[default]
    Empty,
    /// Exactly so many bytes; zero is a body that is present and empty.
    Exact(u64),
    /// Known only at its end.
    Unknown,
}

/// The head of a request. Reused from request to request by [`Self::clear`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// The scheme of the connection the request came on. Set by the owner of the connection; `clear` keeps it.
    pub scheme: Scheme,
    /// `host` or `host:port`, valid by [`authority::is_valid`]; empty only for an HTTP/1.0 request that named none.
    pub authority: Vec<u8>,
    /// Path and query in origin-form (starts with `/`), or `*` for `OPTIONS *`.
    pub path: Vec<u8>,
    /// The fields without Host, Content-Length and Transfer-Encoding: those live in `authority` and in the body
    /// length, and each codec writes its own.
    pub fields: Fields,
    /// The client waits for a 100 before it sends the body (RFC 9110 section 10.1.1).
    pub expects_continue: bool,
    /// The client asks to switch to this protocol. The message has no body then.
    pub upgrade: Option<Upgrade>,
}

impl RequestHead {
    /// A head without storage, for connections of this scheme.
    #[must_use]
    pub fn new(scheme: Scheme) -> Self {
        Self { scheme, ..Self::default() }
    }

    /// Forgets the request; keeps the storage and the scheme.
    pub fn clear(&mut self) {
        self.method = Method::Get;
        self.authority.clear();
        self.path.clear();
        self.fields.clear();
        self.expects_continue = false;
        self.upgrade = None;
    }

    /// The path without the query.
    #[must_use]
    pub fn path_only(&self) -> &[u8] {
        let end = memchr::memchr(b'?', &self.path).unwrap_or(self.path.len());
        self.path.get(..end).unwrap_or_default()
    }

    /// The query without its `?`, when there is one.
    #[must_use]
    pub fn query(&self) -> Option<&[u8]> {
        let at = memchr::memchr(b'?', &self.path)?;
        self.path.get(at + 1..)
    }
}

/// The head of a response. Reused from response to response by [`Self::clear`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status code, 100 to 599.
    pub status: u16,
    /// The fields without Transfer-Encoding; Content-Length stays only where it describes a body that is not sent
    /// (HEAD, 304).
    pub fields: Fields,
}

impl ResponseHead {
    /// Forgets the response; keeps the storage.
    pub fn clear(&mut self) {
        self.status = 0;
        self.fields.clear();
    }

    /// Whether another head follows this one (RFC 9110 section 15.2); 101 is final for HTTP.
    #[must_use]
    pub const fn is_interim(&self) -> bool {
        matches!(self.status, 100 | 102..=199)
    }
}
