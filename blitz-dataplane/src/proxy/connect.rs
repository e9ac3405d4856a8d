//! New connections to endpoints.
//!
//! Owns: connecting within the time that a configuration gives, and what a failure is called. Does not own: idle
//! connections (`pool.rs`), or which address is used (`balance.rs`).
#![forbid(unsafe_code)]

use std::io;
use std::time::Duration;

use blitz_config::model::{self, UpstreamProtocol};

use super::Proxy;
use super::balance::Member;
use super::carrier::Carrier;
use crate::exchange::{ErrorKind, Protocol, ProxyError, Scheme};
use crate::metrics::names::Metric;
use crate::runtime::{Deadline, TcpStream};

/// How connections to the endpoints of one upstream are made. Two that are equal make the same connections, so that
/// one made by either can be used by both.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Link {
    protocol: UpstreamProtocol,
}

impl Link {
    /// What a configuration says.
    pub fn new(model: &model::Link) -> Self {
        Self { protocol: model.protocol }
    }

    /// The scheme of requests over such connections (RFC 9110 section 4.2).
    pub(super) fn scheme(&self) -> Scheme {
        Scheme::Http
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

/// Connects to a member; at the end of `limit` it has failed.
///
/// # Errors
/// Why there is no connection; each allows another try, since nothing was sent.
pub(super) async fn connect(
    proxy: &Proxy,
    member: &Member,
    offer: Offer,
    limit: Duration,
) -> Result<Connected, ProxyError> {
    let protocol = match member.pool.link.protocol {
        UpstreamProtocol::H2 if offer == Offer::Any => Protocol::H2,
        UpstreamProtocol::H2 => {
            return Err(ProxyError::new(ErrorKind::Configuration).with_detail("upgrade_needs_h1"));
        }
        UpstreamProtocol::Auto | UpstreamProtocol::H1 => Protocol::H1,
    };
    let mut deadline = Deadline::new(&proxy.handle);
    deadline.set_after(limit);
    let connect = TcpStream::connect(&proxy.handle, member.pool.address);
    let outcome = match deadline.limit(connect).await {
        Ok(Ok(stream)) => Ok(Connected { carrier: Carrier::Plain(stream), protocol }),
        Ok(Err(error)) => Err(explain(&error)),
        Err(_) => Err(ProxyError::new(ErrorKind::UpstreamConnectTimeout)),
    };
    let metric = if outcome.is_ok() { Metric::UpstreamConnectsOk } else { Metric::UpstreamConnectsFailed };
    proxy.rows.add(metric, 1);
    outcome
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
