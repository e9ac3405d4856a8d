//! The validated configuration: what the rest of Blitz reads.
//!
//! Owns: types in which nothing is optional that has a default, and nothing is a string that has a
//! type. Does not own: the file's shape (see [`crate::file`]), or the steps between two
//! configurations (see [`crate::plan`]).

mod policy;
mod tls;

pub use policy::{
    AfXdp, Blocklist, Copying, DenyPrefix, Limit, LimitBy, Transport, Xdp, XdpMode, XdpQuic, XdpService,
};
pub use tls::{Certificate, ClientAuth, Plain, Tls, UpstreamTls};

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A whole configuration, checked: every reference resolves, every number is in range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where clients reach us. At least one; names and addresses are unique.
    pub listeners: Vec<Listener>,
    /// Named groups of endpoints. [`Route::upstream`] indexes this list.
    pub upstreams: Vec<Upstream>,
    /// Routes in file order. No two have the same host, path and an overlapping method.
    pub routes: Vec<Route>,
    /// Peers whose `Forwarded` and `X-Forwarded-*` fields are believed.
    pub trusted_proxies: Vec<Cidr>,
    /// One deadline for each phase of a connection and of an exchange.
    pub timeouts: Timeouts,
    /// Bounds on what a peer may make us hold.
    pub http: HttpLimits,
    /// Bounds on an HTTP/2 connection.
    pub http2: Http2Limits,
    /// Bounds on an HTTP/3 connection, and on what goes before it.
    pub http3: Http3Limits,
    /// The admin API.
    pub admin: Admin,
    /// Limits in file order, at most 255. At most one packet limit by source and one by service
    /// covers a service.
    pub limits: Vec<Limit>,
    /// The kernel stage.
    pub xdp: Xdp,
}

/// One address that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Unique name, used in logs and metric labels.
    pub name: String,
    /// The address to bind.
    pub address: SocketAddr,
    /// Protocols spoken here.
    pub protocols: Vec<Protocol>,
    /// Whether `/hello`, `/health` and `/echo/*` are answered when no route takes them.
    pub builtin_answers: bool,
    /// Who sends PROXY protocol headers here, at least one prefix; nobody else may connect. `None`:
    /// connections begin without such a header.
    pub proxy_protocol_from: Option<Vec<Cidr>>,
    /// TLS; `None`: clients speak in clear.
    pub tls: Option<Tls>,
}

/// A downstream protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 (and 1.0), RFC 9112.
    H1,
    /// HTTP/2, RFC 9113.
    H2,
    /// HTTP/3, RFC 9114.
    H3,
}

impl Protocol {
    /// As files write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H2 => "h2",
            Self::H3 => "h3",
        }
    }
}

impl Listener {
    /// Whether `protocol` is spoken here.
    pub fn speaks(&self, protocol: Protocol) -> bool {
        self.protocols.contains(&protocol)
    }
}

/// A named group of endpoints that serve the same thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Unique name.
    pub name: String,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// At least one endpoint.
    pub endpoints: Vec<Endpoint>,
    /// How its endpoints are spoken to.
    pub link: Link,
    /// When an endpoint is taken out after failed exchanges, and when it comes back.
    pub passive: PassiveHealth,
    /// Idle connections kept per worker and endpoint address (count). Beyond it the oldest is closed.
    pub idle_connections_max: u32,
}

/// How the endpoints of an upstream are spoken to. Connections of another link are not used again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Link {
    /// What is spoken.
    pub protocol: UpstreamProtocol,
    /// Whether a connection begins with a PROXY protocol header of version 2 that names the client. Then it carries
    /// one request, over HTTP/1.1.
    pub names_client: bool,
    /// How TLS is spoken to those of its endpoints that have it ([`Endpoint::is_tls`]); `None` when none has.
    pub tls: Option<UpstreamTls>,
}

/// What is spoken to the endpoints of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    /// The best that both sides speak (ALPN); HTTP/1.1 on a connection without TLS.
    #[default]
    Auto,
    /// HTTP/1.1.
    H1,
    /// HTTP/2; with prior knowledge (RFC 9113 section 3.3) on a connection without TLS.
    H2,
}

/// How an endpoint is chosen among those that are healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Each in turn, in proportion to its weight.
    RoundRobin,
}

/// One host and port of an upstream. A name may stand for several addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Name or address.
    pub host: EndpointHost,
    /// TCP port.
    pub port: u16,
    /// Share of the traffic relative to its siblings, 1..=1000.
    pub weight: u32,
    /// Whether it is spoken to over TLS: the upstream says so, or its port is 443.
    pub is_tls: bool,
}

/// How an endpoint names its machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointHost {
    /// A literal address.
    Address(IpAddr),
    /// A DNS name, lower case, without a final dot.
    Name(String),
}

/// Passive health: what live traffic says about an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassiveHealth {
    /// Failed exchanges in a row after which the endpoint is taken out.
    pub consecutive_failures: u32,
    /// Successful exchanges in a row, after its return, until it counts as healthy again.
    pub consecutive_successes: u32,
    /// How long it stays out.
    pub ejection: Duration,
}

/// Which requests go to which upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Hosts this route answers for.
    pub host: HostPattern,
    /// Paths this route answers for.
    pub path: PathPattern,
    /// Methods, upper case; empty means all.
    pub methods: Vec<String>,
    /// Index into [`Config::upstreams`].
    pub upstream: usize,
}

/// A host to match, without port, lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// Every host, and requests that name none.
    Any,
    /// Exactly this host.
    Exact(String),
    /// `*.example.com`: any host that ends with the stored `.example.com` and has more before it.
    Suffix(String),
}

/// A path to match, split at its slashes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathPattern {
    /// The text as written, such as `/users/{id}/*rest`.
    pub text: String,
    /// Its segments in order; a rest segment is last.
    pub segments: Vec<PathSegment>,
}

/// One segment of a path pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathSegment {
    /// These bytes exactly. An empty literal is what a trailing slash leaves: `/a/` is `["a", ""]`.
    Literal(String),
    /// `{name}`: one non-empty segment.
    Param(String),
    /// `*name`: everything that is left, which may be empty. `/*rest` takes every path.
    Rest(String),
}

/// An address prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// Network address; host bits are zero.
    pub address: IpAddr,
    /// Prefix length in bits, 0..=32 or 0..=128.
    pub prefix_len: u8,
}

impl Cidr {
    /// Whether `ip` lies in the prefix. An IPv4-mapped IPv6 address counts as its IPv4 address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let shift = 32_u32.saturating_sub(self.prefix_len.into());
                shift == 32 || (u32::from(net) ^ u32::from(ip)) >> shift == 0
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let shift = 128_u32.saturating_sub(self.prefix_len.into());
                shift == 128 || (u128::from(net) ^ u128::from(ip)) >> shift == 0
            }
            _ => false,
        }
    }
}

/// One deadline per phase. Every phase of a connection has one; none can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From accept to the end of the TLS handshake.
    pub tls_handshake: Duration,
    /// From the first byte of a request (or from accept) to the end of its head.
    pub request_head: Duration,
    /// Between two bytes of a request body.
    pub request_body_progress: Duration,
    /// A kept-alive downstream connection without a request.
    pub keep_alive: Duration,
    /// The peer takes no byte of what we have to send.
    pub send_progress: Duration,
    /// TCP connect to an endpoint, and the TLS handshake with it.
    pub upstream_connect: Duration,
    /// From the end of the request to the first byte of the final answer's head.
    pub upstream_first_byte: Duration,
    /// Between two bytes of an answer's body.
    pub upstream_body_progress: Duration,
    /// An idle pooled upstream connection.
    pub upstream_idle: Duration,
    /// Neither side of a tunnel sends a byte.
    pub tunnel_idle: Duration,
    /// From the switch of protocols to the end of the tunnel.
    pub tunnel_lifetime: Duration,
    /// From SIGTERM to the end of the last connection.
    pub drain: Duration,
}

/// Bounds on what a peer may make us hold. All per connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Bytes of a request head, start line included. Beyond: 431 (414 when the target alone is too long).
    pub request_head_bytes_max: usize,
    /// Fields in a request head. Beyond: 431.
    pub request_fields_max: usize,
    /// Bytes of a request target. Beyond: 414.
    pub target_bytes_max: usize,
    /// Bytes of a request body. Beyond: 413.
    pub request_body_bytes_max: u64,
    /// Bytes of an answer head. Beyond: 502.
    pub response_head_bytes_max: usize,
    /// Downstream connections per worker. Beyond: the oldest idle one is closed, else the new one.
    pub connections_per_worker_max: usize,
}

/// Bounds on an HTTP/2 connection. Rates are per connection, in events per second; four times as many may
/// come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Limits {
    /// Requests at a time on one connection (count), announced as SETTINGS_MAX_CONCURRENT_STREAMS. Beyond:
    /// the stream is refused (REFUSED_STREAM).
    pub concurrent_streams_max: u32,
    /// Bytes of one request body that a client may send before the upstream has taken them. Beyond: the
    /// client waits.
    pub stream_window_bytes: u32,
    /// The same for all streams of a connection together: the most that a connection buffers of request
    /// bodies. Beyond: the client waits.
    pub connection_window_bytes: u32,
    /// CONTINUATION frames behind one HEADERS frame (count). Beyond: `continuation_flood`.
    pub continuations_max: u32,
    /// Streams that the client resets. Beyond: `rapid_reset`.
    pub resets_per_second: u32,
    /// Streams that the client makes the gateway reset or refuse. Beyond: `made_you_reset`.
    pub faults_per_second: u32,
    /// Request heads larger than `http.request_head_bytes_max`. Beyond: `hpack_bomb`.
    pub oversize_heads_per_second: u32,
    /// PING frames; each DATA frame sent allows one more. Beyond: `ping_flood`.
    pub pings_per_second: u32,
    /// SETTINGS frames. Beyond: `settings_flood`.
    pub settings_per_second: u32,
    /// PRIORITY and PRIORITY_UPDATE frames; each request allows two more. Beyond: `priority_flood`.
    pub priorities_per_second: u32,
    /// WINDOW_UPDATE frames; each DATA frame sent allows four more. Beyond: `window_update_flood`.
    pub window_updates_per_second: u32,
    /// DATA frames that carry nothing and end nothing. Beyond: `empty_data_flood`.
    pub empty_data_per_second: u32,
    /// Frames of unknown types. Beyond: `unknown_frame_flood`.
    pub unknown_frames_per_second: u32,
    /// Streams of one connection that were ended because the client opened no window for
    /// `timeouts.send_progress_ms` (count). Beyond: `stalled_window`.
    pub stalled_streams_max: u32,
}

/// Bounds on an HTTP/3 connection, and on what goes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http3Limits {
    /// Requests at a time on one connection (count).
    pub concurrent_streams_max: u32,
    /// Bytes of one request body that a client may send before the upstream has taken them.
    pub stream_window_bytes: u32,
    /// The same for all streams of a connection together.
    pub connection_window_bytes: u32,
    /// How long a connection may be without a packet of its client.
    pub idle_timeout: Duration,
    /// When a client has to prove its address first.
    pub retry: Retry,
    /// Whether requests are taken before the handshake is done (0-RTT).
    pub early_data: bool,
    /// Seconds of an epoch of connection IDs.
    pub cid_epoch_seconds: u32,
    /// Requests that the client resets; four times as many may come at once.
    pub resets_per_second: u32,
    /// Addresses that the clients of one worker have moved to (count), over all its connections.
    pub moves_per_worker_max: u32,
    /// How much is sent before it is known what has arrived.
    pub congestion_control: CongestionControl,
    /// Whether datagrams of more than 1200 bytes are tried.
    pub pmtu_discovery: bool,
}

/// How much a connection sends before it hears of what has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CongestionControl {
    /// RFC 9438.
    Cubic,
    /// RFC 9002 section 7.
    Reno,
    /// By bandwidth and delay instead of loss (draft-cardwell-iccrg-bbr-congestion-control).
    Bbr2,
}

/// When a client has to show that it receives at its address before anything is kept for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Always.
    Always,
    /// Never.
    Never,
    /// While many handshakes are under way.
    UnderPressure,
}

/// The admin API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens; loopback unless the operator says otherwise.
    pub address: SocketAddr,
}
