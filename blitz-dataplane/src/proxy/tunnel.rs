//! Tunnels: what flows between a client and an endpoint after both have switched protocols.
//!
//! Two directions, neither of which knows of the other: each passes bytes on as they come, as fast as the receiver
//! takes them, and ends when its sender does. The tunnel ends when both have. Anything else cuts both: a reset, never
//! an end, so that no peer takes what it got for all.
//!
//! Owns: the relay and the two deadlines of a tunnel. Does not own: the switch (`forward.rs`), what an end or a cut
//! looks like on the wire (`http1/`, `http2/`), what the bytes mean.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use blitz_config::model::Timeouts;

use super::Proxy;
use super::acquire::OpenConnection;
use super::balance::InFlight;
use super::carrier::Carrier;
use super::forward::send;
use crate::exchange::stream::{Answer, BodySink, BodySource, Origin};
use crate::exchange::{ErrorKind, ProxyError};
use crate::http1::client::ClientConnection;
use crate::logging::TRACE_TARGET;
use crate::metrics::names::Metric;
use crate::runtime::{Deadline, Handle};

/// A connection to an endpoint that has switched protocols, and what counts it as in use. It never returns to the pool.
pub(super) struct Tunnel<'a> {
    connection: ClientConnection<Carrier>,
    _open: OpenConnection<'a>,
    _in_flight: InFlight<'a>,
    idle: Duration,
    lifetime: Duration,
}

impl<'a> Tunnel<'a> {
    /// A tunnel that has yet to be run. It keeps the deadlines that it began with.
    pub(super) fn new(
        connection: ClientConnection<Carrier>,
        open: OpenConnection<'a>,
        in_flight: InFlight<'a>,
        timeouts: &Timeouts,
    ) -> Self {
        let (idle, lifetime) = (timeouts.tunnel_idle, timeouts.tunnel_lifetime);
        Self { connection, _open: open, _in_flight: in_flight, idle, lifetime }
    }

    /// Passes bytes both ways until both sides have ended.
    ///
    /// # Errors
    /// What cut it: a reset on either side, a peer that takes nothing, a deadline.
    ///
    /// # Cancel safety
    /// A drop cuts the tunnel.
    pub(super) async fn run<B: BodySource, A: Answer>(
        mut self,
        proxy: &Proxy,
        origin: &Origin<'_>,
        body: &mut B,
        answer: &mut A,
    ) -> Result<(), ProxyError> {
        let begun = match origin.protocol {
            "2" => Metric::TunnelsH2,
            "3" => Metric::TunnelsH3,
            _ => Metric::TunnelsH1,
        };
        proxy.rows.add(begun, 1);
        proxy.rows.gauge_add(Metric::TunnelsActive, 1);
        let _active = Active(proxy);
        let handle = &proxy.handle;
        let (began_ms, last_ms) = (handle.now_ms(), Cell::new(handle.now_ms()));
        let (up_bytes, down_bytes) = (Cell::new(0), Cell::new(0));
        let (mut sink, mut source) = self.connection.tunnel();
        let outcome = {
            let up =
                Flow { handle, last_ms: &last_ms, bytes: &up_bytes, proxy, metric: Metric::TunnelBytesUp };
            let down = Flow { bytes: &down_bytes, metric: Metric::TunnelBytesDown, ..up };
            let mut up = pin!(up.pass(body, &mut sink));
            let mut down = pin!(down.pass(&mut source, answer));
            let (mut has_up_ended, mut has_down_ended) = (false, false);
            let (mut idle, mut life) = (Deadline::new(handle), Deadline::new(handle));
            idle.set_after(self.idle);
            life.set_after(self.lifetime);
            poll_fn(|cx| {
                if !has_up_ended && let Poll::Ready(outcome) = up.as_mut().poll(cx) {
                    outcome?;
                    has_up_ended = true;
                }
                if !has_down_ended && let Poll::Ready(outcome) = down.as_mut().poll(cx) {
                    outcome?;
                    has_down_ended = true;
                }
                if has_up_ended && has_down_ended {
                    return Poll::Ready(Ok(()));
                }
                if (origin.poll_gone)(cx).is_ready() {
                    return Poll::Ready(Err(ProxyError::new(ErrorKind::DownstreamClosed)));
                }
                if life.poll_expired(cx).is_ready() {
                    return Poll::Ready(Err(ProxyError::new(ErrorKind::TunnelLifetime)));
                }
                while idle.poll_expired(cx).is_ready() {
                    let quiet = Duration::from_millis(handle.now_ms().saturating_sub(last_ms.get()));
                    if quiet >= self.idle {
                        return Poll::Ready(Err(ProxyError::new(ErrorKind::TunnelIdle)));
                    }
                    idle.set_after(self.idle - quiet);
                }
                Poll::Pending
            })
            .await
        };
        let outcome = outcome.map_err(named);
        if proxy.is_tracing {
            let (up, down) = (up_bytes.get(), down_bytes.get());
            let ended = outcome.as_ref().err().map_or("whole", ProxyError::label);
            let took_ms = handle.now_ms().saturating_sub(began_ms);
            log::info!(target: TRACE_TARGET, "| tunnel up={up} down={down} ms={took_ms} ended={ended}");
        }
        outcome
    }
}

/// What an error of the endpoint's connection is called in a tunnel, where no answer is owed.
fn named(error: ProxyError) -> ProxyError {
    match error.kind {
        ErrorKind::UpstreamClosedBeforeAnswer | ErrorKind::UpstreamClosedMidAnswer => {
            let number = error.os_error.map_or(0, std::num::NonZeroI32::get);
            ProxyError::new(ErrorKind::UpstreamTunnelReset).with_os_error(number)
        }
        _ => error,
    }
}

/// One direction.
#[derive(Clone, Copy)]
struct Flow<'a> {
    handle: &'a Handle,
    proxy: &'a Proxy,
    metric: Metric,
    /// When the last byte came, in either direction.
    last_ms: &'a Cell<u64>,
    bytes: &'a Cell<u64>,
}

impl Flow<'_> {
    /// Passes bytes on until the sender ends.
    async fn pass<B: BodySource, S: BodySink>(self, from: &mut B, to: &mut S) -> Result<(), ProxyError> {
        while let Some(chunk) = from.next().await? {
            self.last_ms.set(self.handle.now_ms());
            self.bytes.set(self.bytes.get() + chunk.len() as u64);
            self.proxy.rows.add(self.metric, chunk.len() as u64);
            send(chunk, to, from).await?;
        }
        to.finish().await
    }
}

/// Counts a tunnel as open until it is dropped, however it ends.
struct Active<'a>(&'a Proxy);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.rows.gauge_sub(Metric::TunnelsActive, 1);
    }
}
