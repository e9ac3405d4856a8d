//! What happens to a request, whatever protocol it came by.
//!
//! Owns: routing ([`router`]), balancing ([`balance`]), pools ([`pool`]), the exchange with an
//! endpoint ([`forward`]), tunnels (`tunnel`), built-in answers ([`builtin`]), limits on requests ([`limiter`]), who
//! is reported for the kernel's blocklist ([`misconduct`]), whom a PROXY
//! protocol header names (`relay`), the registry of connections
//! ([`connections`]). Does not own: codecs (`http1/`), the loop (`worker.rs`).
#![forbid(unsafe_code)]

pub mod accept;
mod acquire;
pub mod balance;
pub mod builtin;
pub mod carrier;
mod connect;
pub mod connections;
pub mod forward;
pub mod limiter;
pub mod misconduct;
pub mod pool;
mod relay;
mod replay;
pub mod router;
mod shared;
pub mod snapshot;
mod tunnel;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::date::{DateCache, IMF_FIXDATE_BYTES};
use crate::exchange::refusal::{Form, refuse};
use crate::exchange::stream::{Answer, BodySource, Origin, ServerLimits, Service};
use crate::exchange::{
    ErrorKind, Method, Protocol, ProxyError, RequestHead, ResponseHead, authority, grpc, path,
};
use crate::http2::Abuse;
use crate::logging::TRACE_TARGET;
use crate::metrics::names::{Histogram, Metric};
use crate::process::Reports;
use crate::runtime::{Deadline, Expired, Handle, Pooled};
use crate::segment::WorkerRows;
use crate::tls::Diagnosis;

use connections::{Carrier, Connection, Connections};
use pool::Pools;
use router::Match;
use snapshot::{Live, Snapshot};
use tunnel::Tunnel;

/// Heads a worker keeps for reuse (count). A head holds some kilobytes; beyond it they are freed.
const HEADS_KEPT: usize = 256;

/// A head that has grown beyond this many bytes is freed rather than kept.
const HEAD_KEPT_BYTES: usize = 16 * 1024;

/// Everything that the connections of one worker share.
pub struct Proxy {
    /// The runtime.
    pub handle: Handle,
    /// This worker's counters.
    pub rows: WorkerRows,
    /// The downstream connections.
    pub connections: Connections,
    /// The idle upstream connections.
    pub pools: Pools,
    live: RefCell<Rc<Live>>,
    date: RefCell<DateCache>,
    is_draining: Cell<bool>,
    #[allow(clippy::vec_box, reason = "heads travel boxed: moving one is moving a pointer")]
    requests: RefCell<Vec<Box<RequestHead>>>,
    #[allow(clippy::vec_box, reason = "as above")]
    responses: RefCell<Vec<Box<ResponseHead>>>,
    /// Heads and sizes of exchanges go to the log, secrets redacted.
    is_tracing: bool,
    /// The way to report sources for the kernel's blocklist.
    reports: Reports,
    /// What is told of TLS connections to endpoints.
    diagnosis: Diagnosis,
}

impl Proxy {
    /// A proxy with its first configuration.
    pub fn new(
        handle: Handle,
        rows: WorkerRows,
        snapshot: Snapshot,
        is_tracing: bool,
        reports: Reports,
        diagnosis: Diagnosis,
    ) -> Rc<Self> {
        let pools = Pools::new(rows.clone());
        let live = Live::new(snapshot, &pools, &rows, &diagnosis);
        let date = DateCache::new(handle.unix_seconds());
        Rc::new(Self {
            handle,
            rows,
            connections: Connections::default(),
            pools,
            live: RefCell::new(live),
            date: RefCell::new(date),
            is_draining: Cell::new(false),
            requests: RefCell::new(Vec::new()),
            responses: RefCell::new(Vec::new()),
            is_tracing,
            reports,
            diagnosis,
        })
    }

    /// The configuration in use. An exchange keeps the one it began with.
    pub fn live(&self) -> Rc<Live> {
        Rc::clone(&self.live.borrow())
    }

    /// Uses another configuration from the next exchange on.
    pub fn swap(&self, snapshot: Snapshot) {
        let next = Live::new(snapshot, &self.pools, &self.rows, &self.diagnosis);
        // The old one may own the last hold on pools, whose end touches other cells: drop it last.
        let old = self.live.replace(next);
        drop(old);
    }

    /// Lets connections end after their exchange, idle ones at once.
    pub fn drain(&self) {
        self.is_draining.set(true);
        self.connections.drain();
    }

    /// Closes idle upstream connections that are too old or were closed by their endpoint.
    pub fn sweep(&self) {
        let idle_ms_max = u64::try_from(self.live().upstream_idle().as_millis()).unwrap_or(u64::MAX);
        self.pools.sweep(self.handle.now_ms(), idle_ms_max);
    }

    fn take_response(&self) -> Box<ResponseHead> {
        self.responses.borrow_mut().pop().unwrap_or_default()
    }

    fn put_response(&self, mut head: Box<ResponseHead>) {
        let mut kept = self.responses.borrow_mut();
        if kept.len() < HEADS_KEPT && head.fields.bytes_len() <= HEAD_KEPT_BYTES {
            head.clear();
            kept.push(head);
        }
    }

    /// Routes a request and answers it. What an endpoint has switched protocols on is returned.
    async fn serve<B: BodySource, A: Answer>(
        &self,
        origin: &Origin<'_>,
        request: &mut RequestHead,
        body: &mut B,
        answer: &mut A,
    ) -> Result<Option<Tunnel<'_>>, ProxyError> {
        match origin.connection.carrier() {
            Carrier::Plain | Carrier::Tls => {}
            Carrier::PlainRefused => return Err(ProxyError::new(ErrorKind::PlainOnTls)),
            Carrier::PlainRedirected => return redirect_to_tls(request, answer).map(|()| None),
        }
        path::normalise(&mut request.path)?;
        let live = self.live();
        if !live.limits.is_empty()
            && let Some(over) = self.over_limit(&live, origin.connection, request)
        {
            if over.is_the_sources_own() {
                misconduct::refused(self, origin.connection, over.name());
            }
            return limiter::refuse(self, over, Form::of(&request.fields), answer).await.map(|()| None);
        }
        let (host, _) = authority::split(&request.authority);
        match live.snapshot.router.find(host, request.path_only(), request.method) {
            Match::Route(route) => {
                let upstream = live.snapshot.config.routes.get(route).map(|route| route.upstream);
                let group = upstream.and_then(|upstream| live.groups.get(upstream));
                let Some(group) = group else { return Err(ProxyError::new(ErrorKind::Configuration)) };
                let timeout_ms = grpc::timeout_ms(&request.fields);
                // In a block of its own: an idle connection shall not carry the room for an exchange.
                let exchange =
                    Pooled::new(forward::forward(self, &live, group, origin, request, body, answer));
                match timeout_ms {
                    None => exchange.await,
                    Some(limit_ms) => self.within(limit_ms, exchange).await,
                }
            }
            Match::MethodNotAllowed => {
                let allowed = live.snapshot.router.allowed(host, request.path_only());
                self.refuse_method(&allowed, Form::of(&request.fields), answer).await.map(|()| None)
            }
            Match::None => match builtin::find(origin.connection, request) {
                Some(builtin) => builtin::answer(self, builtin, request, body, answer).await.map(|()| None),
                None => Err(ProxyError::new(ErrorKind::NoRoute)),
            },
        }
    }

    /// Runs an exchange for as long as its gRPC client waits for it. All other deadlines hold as ever: a long time
    /// that a client gives extends none of them.
    async fn within<T>(
        &self,
        limit_ms: u64,
        exchange: impl Future<Output = Result<T, ProxyError>>,
    ) -> Result<T, ProxyError> {
        let mut deadline = Deadline::new(&self.handle);
        deadline.set_after(Duration::from_millis(limit_ms));
        let outcome = deadline.limit(exchange).await;
        outcome.unwrap_or_else(|Expired| Err(ProxyError::new(ErrorKind::GrpcTimeout)))
    }

    /// The limit that refuses the request, if one does.
    fn over_limit<'a>(
        &self,
        live: &'a Live,
        connection: &Connection,
        request: &RequestHead,
    ) -> Option<limiter::Over<'a>> {
        let from = limiter::From {
            listener: connection.listener().address,
            peer: connection.client().map(|client| client.ip()),
            path: request.path_only(),
        };
        live.limits.check(&self.rows, &live.limit_rows, from, self.handle.now_ns())
    }

    /// 405 with the `Allow` that RFC 9110 section 15.5.6 asks for.
    async fn refuse_method<A: Answer>(
        &self,
        allowed: &[Method],
        form: Form,
        answer: &mut A,
    ) -> Result<(), ProxyError> {
        let error = ProxyError::new(ErrorKind::MethodNotAllowed);
        let mut allow = Vec::new();
        for method in allowed {
            if !allow.is_empty() {
                allow.extend_from_slice(b", ");
            }
            allow.extend_from_slice(method.as_bytes());
        }
        self.note(&error);
        let mut head = ResponseHead { status: error.status(), ..ResponseHead::default() };
        if form == Form::Grpc || head.fields.push(b"Allow", &allow).is_err() {
            // More methods than a field section holds, or a client that knows one only: the plain answer must do.
            return refuse(answer, &error, form).await;
        }
        answer.head(&head, crate::exchange::BodyLength::Empty)?;
        answer.end(None)
    }

    fn trace_request(&self, connection: &Connection, request: &RequestHead) {
        if self.is_tracing {
            log::info!(target: TRACE_TARGET, "> {}", trace::request(connection, request));
        }
    }
}

impl Service for Proxy {
    async fn exchange<B: BodySource, A: Answer>(
        &self,
        origin: &Origin<'_>,
        request: &mut RequestHead,
        body: &mut B,
        answer: &mut A,
    ) -> Result<(), ProxyError> {
        self.trace_request(origin.connection, request);
        let began_ns = self.handle.now_ns();
        self.rows.gauge_add(Metric::RequestsActive, 1);
        let active = Active(self);
        let outcome = self.serve(origin, request, body, answer).await;
        let took_us = self.handle.now_ns().saturating_sub(began_ns) / 1000;
        self.rows.observe(Histogram::RequestDuration, took_us);
        // In a block of its own, for as long as it lasts; without that of the request before it.
        let outcome = match outcome {
            Ok(Some(tunnel)) => Box::pin(tunnel.run(self, origin, body, answer)).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        drop(active);
        outcome
    }

    fn limits(&self) -> ServerLimits {
        self.live.borrow().server
    }

    fn date(&self) -> [u8; IMF_FIXDATE_BYTES] {
        *self.date.borrow_mut().at(self.handle.unix_seconds())
    }

    fn is_draining(&self) -> bool {
        self.is_draining.get()
    }

    fn take_request(&self) -> Box<RequestHead> {
        self.requests.borrow_mut().pop().unwrap_or_default()
    }

    fn put_request(&self, mut request: Box<RequestHead>) {
        let mut kept = self.requests.borrow_mut();
        if kept.len() < HEADS_KEPT && request.fields.bytes_len() <= HEAD_KEPT_BYTES {
            request.clear();
            kept.push(request);
        }
    }

    fn note(&self, error: &ProxyError) {
        self.rows.error(error.kind as u8);
        let expired = match error.kind {
            ErrorKind::TlsHandshakeTimeout => Some(Metric::DeadlineTlsHandshake),
            ErrorKind::RequestHeadTimeout => Some(Metric::DeadlineRequestHead),
            ErrorKind::RequestBodyTimeout => Some(Metric::DeadlineRequestBody),
            ErrorKind::DownstreamSendTimeout | ErrorKind::UpstreamSendTimeout => Some(Metric::DeadlineSend),
            ErrorKind::UpstreamConnectTimeout => Some(Metric::DeadlineUpstreamConnect),
            ErrorKind::UpstreamFirstByteTimeout => Some(Metric::DeadlineUpstreamFirstByte),
            ErrorKind::UpstreamBodyTimeout => Some(Metric::DeadlineUpstreamBody),
            ErrorKind::TunnelIdle => Some(Metric::DeadlineTunnelIdle),
            ErrorKind::TunnelLifetime => Some(Metric::DeadlineTunnelLifetime),
            ErrorKind::GrpcTimeout => Some(Metric::DeadlineGrpc),
            _ => None,
        };
        if let Some(metric) = expired {
            self.rows.add(metric, 1);
        }
        log::debug!("{error}");
    }

    fn misconduct(&self, connection: &Connection, error: &ProxyError) {
        misconduct::erred(self, connection, error);
    }

    fn answered(&self, protocol: Protocol, status: u16) {
        self.rows.add(Metric::requests(protocol, status), 1);
    }

    fn abused(&self, connection: &Connection, abuse: Abuse) {
        self.rows.add(Metric::h2_abuse(abuse), 1);
        let peer = connection.addresses().map_or_else(|| "-".to_owned(), |(peer, _)| peer.to_string());
        log::debug!("{peer}: {}", abuse.label());
        misconduct::abused(self, connection, abuse);
    }
}

/// 308 to the same target under `https` (RFC 9110 section 15.4.9), for a client that came without TLS.
fn redirect_to_tls<A: Answer>(request: &RequestHead, answer: &mut A) -> Result<(), ProxyError> {
    if request.authority.is_empty() {
        // There is no name to send it to.
        return Err(ProxyError::new(ErrorKind::PlainOnTls));
    }
    let mut location = Vec::with_capacity(8 + request.authority.len() + request.path.len());
    location.extend_from_slice(b"https://");
    location.extend_from_slice(&request.authority);
    // `*` of OPTIONS is no path.
    if request.path.first() == Some(&b'/') {
        location.extend_from_slice(&request.path);
    }
    let mut head = ResponseHead { status: 308, ..ResponseHead::default() };
    let too_large = |_| ProxyError::new(ErrorKind::PlainOnTls);
    head.fields.push(b"Location", &location).map_err(too_large)?;
    answer.close_after();
    answer.head(&head, crate::exchange::BodyLength::Empty)?;
    answer.end(None)
}

/// Counts an exchange as active until it is dropped, however it ends.
struct Active<'a>(&'a Proxy);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.rows.gauge_sub(Metric::RequestsActive, 1);
    }
}

#[cfg(test)]
mod tests;
mod trace;

#[cfg(test)]
mod simulation;
