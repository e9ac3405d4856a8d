//! New connections to endpoints.
//!
//! Owns: connecting within the time that a configuration gives, and what a failure is called. Does not own: idle
//! connections (`pool.rs`), or which address is used (`balance.rs`).
#![forbid(unsafe_code)]

use std::io;
use std::time::Duration;

use super::Proxy;
use super::balance::Member;
use super::carrier::Carrier;
use crate::exchange::{ErrorKind, ProxyError};
use crate::metrics::names::Metric;
use crate::runtime::{Deadline, TcpStream};

/// Connects to a member; at the end of `limit` it has failed.
///
/// # Errors
/// Why there is no connection; each allows another try, since nothing was sent.
pub(super) async fn connect(proxy: &Proxy, member: &Member, limit: Duration) -> Result<Carrier, ProxyError> {
    let mut deadline = Deadline::new(&proxy.handle);
    deadline.set_after(limit);
    let connect = TcpStream::connect(&proxy.handle, member.pool.address);
    let outcome = match deadline.limit(connect).await {
        Ok(Ok(stream)) => Ok(Carrier::Plain(stream)),
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
