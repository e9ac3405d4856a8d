//! New connections to endpoints.
//!
//! Owns: connecting within the time that a configuration gives, TLS included, which protocols are offered on it, and
//! what a failure is called. Does not own: the handshake (`tls::connector`), idle connections (`pool.rs`), or which
//! address is used (`balance.rs`).
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use blitz_config::model::{self, UpstreamProtocol};
use rustls::pki_types::ServerName;

use super::Proxy;
use super::balance::Member;
use super::carrier::Carrier;
use super::connections::Connection;
use crate::exchange::{ErrorKind, Protocol, ProxyError, Scheme};
use crate::metrics::names::Metric;
use crate::proxy_protocol;
use crate::runtime::{Deadline, TcpStream};
use crate::tls::Connector;

/// HTTP/2 and HTTP/1.1 as ALPN names them (RFC 9113 section 3.2, RFC 7301 section 6).
const ALPN_H2: &[u8] = b"h2";
const ALPN_H1: &[u8] = b"http/1.1";

/// How connections to an endpoint are made. Two that are equal make the same connections, so that one made by either
/// can be used by both.
#[derive(Default, PartialEq, Eq)]
pub struct Link {
    protocol: UpstreamProtocol,
    /// A connection begins with a PROXY protocol header that names one client: nobody else can use it.
    names_client: bool,
    /// `None`: in clear.
    tls: Option<Tls>,
}

/// TLS to an endpoint.
#[derive(Clone, PartialEq, Eq)]
pub struct Tls {
    /// What the endpoints of the upstream share.
    pub connector: Rc<Connector>,
    /// What its certificate has to be for.
    pub name: ServerName<'static>,
}

impl Link {
    /// What a configuration says, and how TLS is spoken where it is.
    pub fn new(model: &model::Link, tls: Option<Tls>) -> Self {
        Self { protocol: model.protocol, names_client: model.names_client, tls }
    }

    /// What the endpoint's certificate has to be for; `None`: it is spoken to in clear.
    pub fn name(&self) -> Option<Cow<'_, str>> {
        self.tls.as_ref().map(|tls| tls.name.to_str())
    }

    /// The names of the protocols that are offered within TLS, the preferred first.
    fn offered(&self, offer: Offer) -> &'static [&'static [u8]] {
        match (self.protocol, offer) {
            (UpstreamProtocol::H2, _) => &[ALPN_H2],
            (UpstreamProtocol::Auto, Offer::Any) => &[ALPN_H2, ALPN_H1],
            (UpstreamProtocol::Auto | UpstreamProtocol::H1, _) => &[ALPN_H1],
        }
    }

    /// What is spoken after the endpoint has chosen `alpn` of what was offered.
    ///
    /// # Errors
    /// It has not chosen the one protocol that the link is for.
    fn agreed(&self, alpn: Option<&[u8]>) -> Result<Protocol, ProxyError> {
        match (self.protocol, alpn == Some(ALPN_H2)) {
            (_, true) => Ok(Protocol::H2),
            (UpstreamProtocol::H2, false) => {
                Err(ProxyError::new(ErrorKind::UpstreamTlsHandshake).with_detail("upstream_speaks_no_h2"))
            }
            (UpstreamProtocol::Auto | UpstreamProtocol::H1, false) => Ok(Protocol::H1),
        }
    }

    /// Whether a connection is for one client and one request.
    pub(super) fn names_client(&self) -> bool {
        self.names_client
    }

    /// Whether many requests may share a connection, as far as can be told before there is one.
    pub(super) fn may_be_shared(&self) -> bool {
        match self.protocol {
            _ if self.names_client => false,
            UpstreamProtocol::H2 => true,
            // The endpoint may choose it.
            UpstreamProtocol::Auto => self.tls.is_some(),
            UpstreamProtocol::H1 => false,
        }
    }

    /// The scheme of requests over such connections (RFC 9110 section 4.2).
    pub(super) fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::Https } else { Scheme::Http }
    }
}

/// What may be spoken on a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// What the link says.
    Any,
    /// HTTP/1.1, where the link allows it: for what only that can carry.
    H1,
}

/// A new connection.
pub(super) struct Connected {
    pub(super) carrier: Carrier,
    /// What is spoken on it.
    pub(super) protocol: Protocol,
}

/// Connects to a member, for a request on `client`'s connection; at the end of `limit` it has failed.
///
/// # Errors
/// Why there is no connection; each allows another try, since nothing was sent.
pub(super) async fn connect(
    proxy: &Proxy,
    member: &Member,
    client: &Connection,
    offer: Offer,
    limit: Duration,
) -> Result<Connected, ProxyError> {
    if member.pool.link.protocol == UpstreamProtocol::H2 && offer == Offer::H1 {
        return Err(ProxyError::new(ErrorKind::Configuration).with_detail("upgrade_needs_h1"));
    }
    let mut deadline = Deadline::new(&proxy.handle);
    deadline.set_after(limit);
    let offer = if member.pool.link.names_client { Offer::H1 } else { offer };
    let outcome = establish(proxy, member, client, offer, &mut deadline).await;
    let metric = if outcome.is_ok() { Metric::UpstreamConnectsOk } else { Metric::UpstreamConnectsFailed };
    proxy.rows.add(metric, 1);
    outcome
}

async fn establish(
    proxy: &Proxy,
    member: &Member,
    client: &Connection,
    offer: Offer,
    deadline: &mut Deadline,
) -> Result<Connected, ProxyError> {
    let (address, link) = (member.pool.address, &member.pool.link);
    let tcp = match deadline.limit(TcpStream::connect(&proxy.handle, address)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(explain(&error)),
        Err(_) => return Err(ProxyError::new(ErrorKind::UpstreamConnectTimeout)),
    };
    if link.names_client {
        // Before anything else, TLS included.
        tcp.write_with(|out| proxy_protocol::write_v2(out, client.client_and_local()))
            .map_err(|error| explain(&error))?;
    }
    let Some(tls) = &link.tls else {
        let protocol = if link.protocol == UpstreamProtocol::H2 { Protocol::H2 } else { Protocol::H1 };
        return Ok(Connected { carrier: Carrier::Plain(tcp), protocol });
    };
    match tls.connector.connect(tcp, &tls.name, link.offered(offer), address, deadline).await {
        Ok((stream, metric)) => {
            proxy.rows.add(metric, 1);
            let protocol = stream.with_alpn(|alpn| link.agreed(alpn))?;
            Ok(Connected { carrier: Carrier::Tls(stream), protocol })
        }
        Err(failure) => {
            proxy.rows.add(failure.metric, 1);
            Err(failure.error)
        }
    }
}

fn explain(error: &io::Error) -> ProxyError {
    let kind = match error.kind() {
        io::ErrorKind::ConnectionRefused => ErrorKind::UpstreamConnectRefused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => ErrorKind::UpstreamUnreachable,
        io::ErrorKind::TimedOut => ErrorKind::UpstreamConnectTimeout,
        _ => ErrorKind::UpstreamConnectFailed,
    };
    ProxyError::new(kind).with_os_error(error.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(protocol: UpstreamProtocol) -> Link {
        Link { protocol, ..Link::default() }
    }

    #[test]
    fn http2_is_preferred_where_both_may_be_spoken() {
        let (auto, h1, h2) =
            (link(UpstreamProtocol::Auto), link(UpstreamProtocol::H1), link(UpstreamProtocol::H2));
        assert_eq!(auto.offered(Offer::Any), [ALPN_H2, ALPN_H1]);
        assert_eq!(auto.offered(Offer::H1), [ALPN_H1]);
        assert_eq!(h1.offered(Offer::Any), [ALPN_H1]);
        assert_eq!(h1.offered(Offer::H1), [ALPN_H1]);
        assert_eq!(h2.offered(Offer::Any), [ALPN_H2]);
    }

    #[test]
    fn an_endpoint_that_picks_nothing_speaks_http1_unless_that_is_ruled_out() {
        for (protocol, alpn, expected) in [
            (UpstreamProtocol::Auto, Some(ALPN_H2), Ok(Protocol::H2)),
            (UpstreamProtocol::Auto, Some(ALPN_H1), Ok(Protocol::H1)),
            (UpstreamProtocol::Auto, None, Ok(Protocol::H1)),
            (UpstreamProtocol::H1, Some(ALPN_H1), Ok(Protocol::H1)),
            (UpstreamProtocol::H1, None, Ok(Protocol::H1)),
            (UpstreamProtocol::H2, Some(ALPN_H2), Ok(Protocol::H2)),
            (UpstreamProtocol::H2, None, Err("upstream_speaks_no_h2")),
        ] {
            let agreed = link(protocol).agreed(alpn).map_err(|error| error.detail);
            assert_eq!(agreed, expected, "{protocol:?} {alpn:?}");
        }
    }
}
