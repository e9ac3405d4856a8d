//! Hosts, ports and prefixes as an operator writes them.
//!
//! Owns: the syntax of names (RFC 1123 section 2.1), `host:port` and CIDR prefixes, and the words
//! for what is wrong with one. Does not own: resolution of names (the data plane's control thread).
#![forbid(unsafe_code)]

use crate::error::quoted;
use crate::model::{Cidr, Endpoint, EndpointHost, Upstream};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// What is accepted as `host:port`, for messages.
const HOST_PORT: &str = "accepted: host:port such as localhost:9001, 192.0.2.1:80 or [::1]:80";

/// Bytes of a DNS name as text (RFC 1035 section 2.3.4: 255 octets on the wire).
const NAME_BYTES_MAX: usize = 253;
/// Bytes of one label (RFC 1035 section 2.3.4).
const LABEL_BYTES_MAX: usize = 63;

/// Parses `host:port` of an endpoint.
pub(crate) fn endpoint(text: &str, weight: u32) -> Result<Endpoint, String> {
    let refuse = |why: &str| format!("{} {why}; {HOST_PORT}", quoted(text));
    if text.contains("://") {
        return Err(refuse("has a scheme"));
    }
    if text.contains(['/', '?', '#', '@']) {
        return Err(refuse("has more than a host and a port"));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => return Err(refuse("has no port")),
    };
    if host.contains(':') && !host.starts_with('[') {
        return Err(refuse("has an IPv6 address without brackets, or two ports"));
    }
    let host = endpoint_host(host).map_err(|why| format!("{} {why}; {HOST_PORT}", quoted(text)))?;
    let port = decimal::<u16>(port)
        .filter(|&port| port != 0)
        .ok_or_else(|| format!("{} has the port {}; accepted: 1 to 65535", quoted(text), quoted(port)))?;
    Ok(Endpoint { host, port, weight, is_tls: port == Upstream::TLS_PORT })
}

/// Parses host and port of the short form.
pub(crate) fn backend(host: &str, port: u16, weight: u32) -> Result<Endpoint, String> {
    let bare =
        host.parse::<Ipv6Addr>().map(|address| EndpointHost::Address(IpAddr::V6(address).to_canonical()));
    let host = bare.or_else(|_| endpoint_host(host)).map_err(|why| {
        format!("{} {why}; accepted: a host such as localhost, 192.0.2.1 or ::1", quoted(host))
    })?;
    Ok(Endpoint { host, port, weight, is_tls: port == Upstream::TLS_PORT })
}

/// Parses the name that a certificate has to be for.
pub(crate) fn server_name(text: &str) -> Result<EndpointHost, String> {
    let bare =
        text.parse::<Ipv6Addr>().map(|address| EndpointHost::Address(IpAddr::V6(address).to_canonical()));
    bare.or_else(|_| endpoint_host(text))
        .map_err(|why| format!("{} {why}; accepted: a name such as example.com, or an address", quoted(text)))
}

/// A host without port: an IPv4 address, an IPv6 address in brackets, or a name.
fn endpoint_host(host: &str) -> Result<EndpointHost, String> {
    if let Some(inner) = host.strip_prefix('[') {
        let address = inner.strip_suffix(']').and_then(|inner| inner.parse::<Ipv6Addr>().ok());
        // A mapped address is the IPv4 address: one endpoint has one spelling.
        return address
            .map(|address| EndpointHost::Address(IpAddr::V6(address).to_canonical()))
            .ok_or_else(|| "has brackets around what is not an IPv6 address".to_owned());
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok(EndpointHost::Address(address.into()));
    }
    host_name(host).map(EndpointHost::Name)
}

/// A DNS name in lower case without its final dot, checked by RFC 1123 section 2.1, underscores allowed.
///
/// A name whose last label is numeric is refused: it is a mistyped IPv4 address, and resolvers
/// differ in what they make of one.
pub(crate) fn host_name(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty() {
        return Err("has an empty host".to_owned());
    }
    if !name.is_ascii() {
        return Err("is not ASCII: write an internationalised name in its xn-- form".to_owned());
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("is longer than the {NAME_BYTES_MAX} bytes of a DNS name"));
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err("has an empty label between its dots".to_owned());
        }
        if label.len() > LABEL_BYTES_MAX {
            return Err(format!("has a label longer than {LABEL_BYTES_MAX} bytes"));
        }
        // Container networks name their services with underscores, which DNS itself allows (RFC 2181 section 11).
        if let Some(odd) = label.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_')) {
            return Err(format!(
                "has {} in its host, where letters, digits, -, _ and . may stand",
                quoted(&odd.to_string())
            ));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("has a label that starts or ends with -".to_owned());
        }
    }
    if name.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit())) {
        return Err("has a host that is neither an IPv4 address nor a name".to_owned());
    }
    Ok(name.to_ascii_lowercase())
}

/// Parses an address to bind.
pub(crate) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<SocketAddr>().map_err(|_| {
        format!(
            "{} is not an address with a port; accepted: such as 0.0.0.0:8080, 127.0.0.1:8080 or [::]:8080",
            quoted(text)
        )
    })?;
    if address.ip() != address.ip().to_canonical() {
        let plain = SocketAddr::new(address.ip().to_canonical(), address.port());
        return Err(format!("{} is an IPv4 address in IPv6 form; accepted: {plain}", quoted(text)));
    }
    if address.ip().is_multicast() || address.ip() == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(format!(
            "{} is a multicast or broadcast address; accepted: one of this machine",
            quoted(text)
        ));
    }
    Ok(address)
}

/// Whether two sockets of these addresses get in each other's way: the same port, and the same
/// address or, within one family, every address. Port 0 stands for a different port each time.
pub(crate) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let same_family = a.is_ipv4() == b.is_ipv4();
    let either_is_any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || (same_family && either_is_any))
}

/// Digits only: `parse` alone would take a sign.
fn decimal<T: FromStr>(text: &str) -> Option<T> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) { None } else { text.parse().ok() }
}

impl Cidr {
    /// The prefix of `prefix_len` bits at `address`; `None` when it is longer than the address, when
    /// host bits are set, or when it lies in the IPv4-mapped range and so would match nothing (an
    /// address is compared in its IPv4 form).
    pub fn new(address: IpAddr, prefix_len: u8) -> Option<Self> {
        let is_whole = prefix_len <= width(address) && network(address, prefix_len) == address;
        (is_whole && address.to_canonical() == address).then_some(Self { address, prefix_len })
    }
}

impl FromStr for Cidr {
    type Err = String;

    /// Parses `192.0.2.0/24`, `2001:db8::/32`, or an address alone, which is a prefix of full length.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix_len) = match text.split_once('/') {
            Some((address, prefix_len)) => (address, Some(prefix_len)),
            None => (text, None),
        };
        let address = address.parse::<IpAddr>().map_err(|_| {
            format!(
                "{} is not a prefix; accepted: such as 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7",
                quoted(text)
            )
        })?;
        if address.to_canonical() != address {
            let plain = address.to_canonical();
            return Err(format!(
                "{} is an IPv4 prefix in IPv6 form; accepted: as IPv4, such as {plain}",
                quoted(text)
            ));
        }
        let width = width(address);
        let prefix_len = match prefix_len {
            None => width,
            Some(digits) => decimal::<u8>(digits).filter(|&bits| bits <= width).ok_or_else(|| {
                format!("{} has the prefix length {}; accepted: 0 to {width}", quoted(text), quoted(digits))
            })?,
        };
        Self::new(address, prefix_len).ok_or_else(|| {
            let network = network(address, prefix_len);
            format!("{} has bits set beyond its prefix; accepted: {network}/{prefix_len}", quoted(text))
        })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl fmt::Display for EndpointHost {
    /// As it stands in front of `:port`: an IPv6 address has its brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Endpoint {
    /// `host:port`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with all bits after the first `prefix_len` cleared.
fn network(address: IpAddr, prefix_len: u8) -> IpAddr {
    let bits = u32::from(prefix_len);
    match address {
        // A shift by the whole width, for length 0, gives no bits at all.
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}
