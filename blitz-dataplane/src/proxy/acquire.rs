//! A connection to an endpoint for one exchange: pooled, shared or new.
//!
//! Owns: the order in which these are tried. Does not own: pools (`pool.rs`, `shared.rs`), how a connection is made
//! (`connect.rs`), or which address is used (`balance.rs`).
#![forbid(unsafe_code)]

use super::Proxy;
use super::balance::Member;
use super::carrier::Carrier;
use super::connect::{Connected, Offer, connect};
use super::connections::Connection;
use super::shared::{Opener, Place};
use super::snapshot::Live;
use crate::exchange::{ErrorKind, Protocol, ProxyError, Scheme};
use crate::http1::client::ClientConnection;
use crate::http2;
use crate::metrics::names::Metric;
use crate::segment::WorkerRows;

/// What an exchange runs on.
pub(super) enum Acquired<'a> {
    /// HTTP/1.1: the connection is the exchange's own.
    Own {
        connection: ClientConnection<Carrier>,
        /// It counts as open until this is dropped.
        open: OpenConnection<'a>,
        is_reused: bool,
    },
    /// HTTP/2: a stream of a connection that others use too.
    Shared { place: Place, scheme: Scheme },
}

impl Acquired<'_> {
    /// Whether the connection has served an exchange before.
    pub(super) fn is_reused(&self) -> bool {
        match self {
            Self::Own { is_reused, .. } => *is_reused,
            Self::Shared { place, .. } => place.is_reused,
        }
    }
}

/// Gives a connection to `member` that can carry one more exchange, for a request on `client`. Unless `may_reuse`, none
/// that has been idle in the pool; a shared one notices by itself when its endpoint closes it.
///
/// # Errors
/// Why there is no connection; nothing was sent.
///
/// # Cancel safety
/// Safe: a connection that is being made for others too is made by the next of them.
pub(super) async fn acquire<'a>(
    proxy: &'a Proxy,
    live: &Live,
    member: &Member,
    client: &Connection,
    offer: Offer,
    may_reuse: bool,
) -> Result<Acquired<'a>, ProxyError> {
    let pool = &member.pool;
    let may_share = offer == Offer::Any && pool.link.may_be_shared();
    loop {
        if may_share && let Some(place) = pool.shared.take(&proxy.handle) {
            return Ok(Acquired::Shared { place, scheme: pool.link.scheme() });
        }
        if may_reuse && let Some(mut connection) = pool.take() {
            connection.set_limits(live.client);
            let open = OpenConnection(&proxy.rows);
            return Ok(Acquired::Own { connection, open, is_reused: true });
        }
        if !may_share || pool.shared.is_unshared() {
            let connected = make(proxy, live, member, client, offer).await?;
            return begin(proxy, live, member, connected, None).await;
        }
        match Opener::begin(pool) {
            Ok(opener) => match make(proxy, live, member, client, offer).await {
                Ok(connected) => return begin(proxy, live, member, connected, Some(opener)).await,
                Err(error) => {
                    opener.failed(error);
                    return Err(error);
                }
            },
            // Then there is room on it, or it has turned out that each needs a connection of its own.
            Err(waiting) => waiting.ended().await?,
        }
    }
}

async fn make(
    proxy: &Proxy,
    live: &Live,
    member: &Member,
    client: &Connection,
    offer: Offer,
) -> Result<Connected, ProxyError> {
    connect(proxy, member, client, offer, live.snapshot.config.timeouts.upstream_connect).await
}

/// Puts a new connection to use. Those who wait for `opener` learn of it when it is known what the connection can
/// carry beside this exchange.
async fn begin<'a>(
    proxy: &'a Proxy,
    live: &Live,
    member: &Member,
    connected: Connected,
    opener: Option<Opener>,
) -> Result<Acquired<'a>, ProxyError> {
    let Connected { carrier, protocol } = connected;
    if let Some(opener) = &opener {
        opener.speaks(protocol);
    }
    match protocol {
        Protocol::H1 => {
            let connection = ClientConnection::new(carrier, live.client);
            Ok(Acquired::Own { connection, open: OpenConnection::new(&proxy.rows), is_reused: false })
        }
        // No endpoint is spoken to over QUIC.
        Protocol::H3 => Err(ProxyError::new(ErrorKind::Internal)),
        Protocol::H2 => {
            let (requests, mut driver) = http2::client::handshake(carrier, &live.client.head).await?;
            let (rows, limit) = (proxy.rows.clone(), live.snapshot.config.timeouts.upstream_connect);
            proxy.handle.spawn(async move {
                let _open = OpenConnection::new(&rows);
                if let (Err(error), Some(opener)) = (driver.greeted(limit).await, opener) {
                    opener.failed(error);
                }
                driver.run().await;
            });
            let place = member.pool.shared.add(requests, &proxy.rows, &proxy.handle);
            Ok(Acquired::Shared { place, scheme: member.pool.link.scheme() })
        }
    }
}

/// An upstream connection that counts as open until dropped.
pub(super) struct OpenConnection<'a>(&'a WorkerRows);

impl<'a> OpenConnection<'a> {
    fn new(rows: &'a WorkerRows) -> Self {
        rows.gauge_add(Metric::UpstreamActive, 1);
        Self(rows)
    }

    /// It stays open, in the pool.
    pub(super) fn keep(self) {
        let _kept = std::mem::ManuallyDrop::new(self);
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.gauge_sub(Metric::UpstreamActive, 1);
    }
}
