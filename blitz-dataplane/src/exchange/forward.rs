//! The rules of forwarding (RFC 9110 section 7.6, RFC 7239).
//!
//! Owns: which fields end at this hop, and the fields by which the gateway says for whom it forwards. Does not own: who
//! is trusted (the configuration's `trusted_proxies`), or the decision to pass an upgrade on (the proxy).

use std::net::IpAddr;

use super::{Method, RequestHead, Scheme};
use crate::fields::{FieldError, Fields, Known, KnownSet, Occurrence, has_token, list_members};

/// Fields that end at each hop whether or not Connection names them.
///
/// RFC 9110 section 7.6.1 names Connection, Proxy-Connection, Keep-Alive, TE, Transfer-Encoding and Upgrade. Added:
/// the proxy authentication fields, which are for the next proxy only and a gateway is not one (section 11.7), and
/// HTTP2-Settings (RFC 7540 section 3.2.1). Trailer stays: trailers are forwarded.
pub const HOP_BY_HOP: KnownSet = KnownSet::of(&[
    Known::Connection,
    Known::KeepAlive,
    Known::ProxyConnection,
    Known::ProxyAuthenticate,
    Known::ProxyAuthorization,
    Known::ProxyAuthenticationInfo,
    Known::Te,
    Known::TransferEncoding,
    Known::Upgrade,
    Known::Http2Settings,
]);

/// Everything by which a client could claim to be forwarded from elsewhere.
const FORWARDING_CLAIMS: KnownSet = KnownSet::of(&[
    Known::Forwarded,
    Known::XForwardedFor,
    Known::XForwardedProto,
    Known::XForwardedHost,
    Known::XForwardedPort,
    Known::XRealIp,
]);

/// What [`strip_hop_by_hop`] took away and the proxy may have to say again to the next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HopByHop {
    /// The sender takes trailers (`TE: trailers`, RFC 9110 section 10.1.4).
    pub accepts_trailers: bool,
}

/// Removes the fields that end at this hop: [`HOP_BY_HOP`] and those that Connection nominates (RFC 9110 section 7.6.1).
///
/// A nomination of a field that the gateway knows to be end-to-end (every [`Known`] one outside [`HOP_BY_HOP`]: Host,
/// Content-Length, Authorization, Cookie, X-Forwarded-For, ...) is ignored. Obeying it would let a client take away what
/// the next hop relies on for framing, authentication or attribution, and the RFC forbids senders to nominate such
/// fields; refusing the message would punish clients that nominate harmless ones by mistake. Costs nothing but a word
/// compare when no such field is present.
pub fn strip_hop_by_hop(fields: &mut Fields) -> HopByHop {
    let mut found = HopByHop::default();
    if !fields.contains_any(HOP_BY_HOP) {
        return found;
    }
    if fields.contains(Known::Te) {
        found.accepts_trailers = fields.get_all(Known::Te).any(|value| has_token(value, b"trailers"));
    }
    // Field names cannot be borrowed while lines are removed: one name at a time is copied here. No allocation, since
    // a nomination longer than this cannot be a field that anybody uses; it is left alone like any unknown token.
    let mut name = [0_u8; NOMINATION_BYTES_MAX];
    let mut nth = 0;
    while let Some(len) = nth_nomination(fields, &mut nth, &mut name) {
        fields.remove_named(name.get(..len).unwrap_or_default());
    }
    fields.remove_set(HOP_BY_HOP);
    found
}

/// Longest field name that a Connection field can nominate, in bytes; longer nominations are ignored.
const NOMINATION_BYTES_MAX: usize = 128;

/// Copies the next nomination of an unknown field, starting at member `nth` of all Connection fields. Known fields need
/// no copy: the hop-by-hop ones go anyway and the others stay.
fn nth_nomination(fields: &Fields, nth: &mut usize, name: &mut [u8; NOMINATION_BYTES_MAX]) -> Option<usize> {
    // A message without fields unknown to the gateway has nothing to nominate; neither has a Connection field of the
    // options that everybody sends.
    if !fields.contains(Known::Other) {
        return None;
    }
    let members =
        fields.get_all(Known::Connection).flat_map(list_members).skip(*nth).take(NOMINATIONS_MAX - *nth);
    for member in members {
        *nth += 1;
        let is_option = member.eq_ignore_ascii_case(b"close") || member.eq_ignore_ascii_case(b"keep-alive");
        if is_option || Known::lookup(member) != Known::Other {
            continue;
        }
        if let Some(target) = name.get_mut(..member.len()) {
            target.copy_from_slice(member);
            return Some(member.len());
        }
    }
    None
}

/// Most members of Connection that are looked at; bounds the work of a hostile list, which is quadratic in this.
const NOMINATIONS_MAX: usize = 32;

/// Says `Connection: upgrade` and the protocol again, after [`strip_hop_by_hop`], for an upgrade that the proxy passes on.
///
/// # Errors
/// As [`Fields::push`]; `protocol` comes from a field value, so only a full section is to be expected.
pub fn restore_upgrade(fields: &mut Fields, protocol: &[u8]) -> Result<(), FieldError> {
    fields.push_known(Known::Connection, b"upgrade")?;
    fields.push_known(Known::Upgrade, protocol)
}

/// For whom the requests of one connection are forwarded. Made once per connection, so that no address is formatted per
/// request.
#[derive(Clone, Copy, Debug)]
pub struct Forwarding {
    scheme: Scheme,
    is_trusted: bool,
    received_protocol: &'static str,
    /// The peer's address as text.
    peer: Text,
    /// `for=<node>;proto=<scheme>`, IPv6 bracketed and quoted (RFC 7239 section 6).
    element: Text,
}

/// The name of this gateway in Via (RFC 9110 section 7.6.3): a pseudonym, since host names are nobody's business.
pub const VIA_PSEUDONYM: &str = "blitz";

impl Forwarding {
    /// What is said of requests that `peer` sends over a connection of `scheme`.
    ///
    /// `is_trusted`: the peer is one of the `trusted_proxies`, so what it says of those before it is kept.
    /// `received_protocol`: the version for Via, such as `1.1` (RFC 9110 section 7.6.3).
    #[must_use]
    pub fn new(peer: IpAddr, scheme: Scheme, is_trusted: bool, received_protocol: &'static str) -> Self {
        // A v4 client on a v6 socket is a v4 client.
        let peer = peer.to_canonical();
        let scheme_name = scheme.as_str();
        let element = match peer {
            IpAddr::V4(v4) => Text::of(format_args!("for={v4};proto={scheme_name}")),
            IpAddr::V6(v6) => Text::of(format_args!("for=\"[{v6}]\";proto={scheme_name}")),
        };
        Self { scheme, is_trusted, received_protocol, peer: Text::of(format_args!("{peer}")), element }
    }

    /// The same for a request of another version: on one connection each request says its own.
    #[must_use]
    pub const fn received_by(mut self, protocol: &'static str) -> Self {
        self.received_protocol = protocol;
        self
    }
}

/// Writes Via, X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host and Forwarded.
///
/// From a trusted peer, chains are continued (X-Forwarded-For, Forwarded) and what it said of scheme and host is kept.
/// From any other peer all claims of that kind are replaced, X-Forwarded-Port and X-Real-IP removed. Via is always
/// continued. The `by` parameter of Forwarded is not sent: it would publish the inner topology.
///
/// # Errors
/// [`FieldError::SectionFull`] when the section has no room for them; the head may hold some of the fields then.
pub fn add_forwarding(head: &mut RequestHead, from: &Forwarding) -> Result<(), FieldError> {
    let fields = &mut head.fields;
    let host = head.authority.as_slice();
    fields
        .push_known_parts(Known::Via, &[from.received_protocol.as_bytes(), b" ", VIA_PSEUDONYM.as_bytes()])?;
    if !from.is_trusted {
        fields.remove_set(FORWARDING_CLAIMS);
    }
    continue_chain(fields, Known::XForwardedFor, &[from.peer.as_bytes()])?;
    if !fields.contains(Known::XForwardedProto) {
        fields.push_known(Known::XForwardedProto, from.scheme.as_str().as_bytes())?;
    }
    if host.is_empty() {
        return continue_chain(fields, Known::Forwarded, &[from.element.as_bytes()]);
    }
    if !fields.contains(Known::XForwardedHost) {
        fields.push_known(Known::XForwardedHost, host)?;
    }
    // A port or brackets make the host no token, so it is quoted (RFC 7239 section 4). A valid authority holds neither
    // quotes nor backslashes.
    let needs_quotes = host.iter().any(|byte| matches!(byte, b':' | b'['));
    let (open, close): (&[u8], &[u8]) = if needs_quotes { (b";host=\"", b"\"") } else { (b";host=", b"") };
    continue_chain(fields, Known::Forwarded, &[from.element.as_bytes(), open, host, close])
}

/// Appends a member to a list field as one line: several lines would mean the same, but many applications read one only.
fn continue_chain(fields: &mut Fields, known: Known, member: &[&[u8]]) -> Result<(), FieldError> {
    if !fields.contains(known) {
        return fields.push_known_parts(known, member);
    }
    // Rare (a trusted proxy in front), so an allocation is affordable here.
    let mut value = Vec::new();
    for old in fields.get_all(known).filter(|old| !old.is_empty()) {
        value.extend_from_slice(old);
        value.extend_from_slice(b", ");
    }
    for part in member {
        value.extend_from_slice(part);
    }
    fields.push_known(known, &value)?;
    // The new line is the last; the older ones go.
    fields.keep_last(known);
    Ok(())
}

/// What Max-Forwards says of a request (RFC 9110 section 7.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxForwards {
    /// The method is not TRACE or OPTIONS, or there is no such field: it is forwarded.
    Unlimited,
    /// It may be forwarded; the field has been decremented.
    Decremented,
    /// It must be answered here.
    Exhausted,
    /// The field is not a number, or there are two: the request is bad.
    Malformed,
}

/// Applies Max-Forwards to a TRACE or OPTIONS request before it is forwarded.
///
/// # Errors
/// [`FieldError::SectionFull`] when the section has no room for the new value.
pub fn max_forwards(head: &mut RequestHead) -> Result<MaxForwards, FieldError> {
    if !matches!(head.method, Method::Trace | Method::Options) || !head.fields.contains(Known::MaxForwards) {
        return Ok(MaxForwards::Unlimited);
    }
    let Occurrence::Once(value) = head.fields.occurrence(Known::MaxForwards) else {
        return Ok(MaxForwards::Malformed);
    };
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Ok(MaxForwards::Malformed);
    }
    // More hops than anybody has: a larger number says the same.
    let left = value
        .iter()
        .fold(0_u32, |left, digit| left.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
    let Some(left) = left.checked_sub(1) else {
        return Ok(MaxForwards::Exhausted);
    };
    let text = Text::of(format_args!("{left}"));
    head.fields.remove(Known::MaxForwards);
    head.fields.push_known(Known::MaxForwards, text.as_bytes())?;
    Ok(MaxForwards::Decremented)
}

/// A short text held inline. 64 bytes take the longest: `for="[` + 39 bytes of IPv6 + `]";proto=https`.
#[derive(Clone, Copy)]
struct Text {
    len: u8,
    bytes: [u8; 64],
}

impl Text {
    fn of(arguments: std::fmt::Arguments<'_>) -> Self {
        let mut text = Self { len: 0, bytes: [0; 64] };
        let written = std::fmt::write(&mut text, arguments);
        debug_assert!(written.is_ok(), "a forwarding text is longer than its room");
        text
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl std::fmt::Write for Text {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        let start = usize::from(self.len);
        let room = self.bytes.get_mut(start..start + part.len()).ok_or(std::fmt::Error)?;
        room.copy_from_slice(part.as_bytes());
        self.len += part.len() as u8;
        Ok(())
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.as_bytes().escape_ascii().to_string())
    }
}
