//! The configuration file as it is written: names and strings, nothing resolved.
//!
//! Owns: the keys, their documentation, defaults and ranges; reading them from text. Does not own:
//! what the values mean together (see [`mod@crate::validate`]) or the types that the rest of Blitz
//! reads (see [`crate::model`]).
//!
//! One definition serves three ends. The structs below are what serde reads; the schema derived
//! from them is what `--print-schema` prints, and what a file is checked against key by key
//! (`shape`), so that every wrong key is reported at once and in the same words.
#![forbid(unsafe_code)]

mod bounded;
mod http2;
mod http3;
mod policy;
mod release;
mod shape;
mod syntax;
mod tls;

pub use bounded::Bounded;
pub use http2::Http2File;
pub use http3::{CongestionControlFile, Http3File, RetryFile};
pub use policy::{
    AfXdpFile, BadPacketsFile, BlocklistFile, CopyingFile, DenyFile, DenyScopeFile, DenyTableFile,
    LIMITS_MAX, LimitByFile, LimitFile, PerSecond, TransportFile, XDP_ALLOW_MAX, XDP_DENY_MAX,
    XDP_INTERFACES_MAX, XDP_SERVICES_MAX, XdpFile, XdpModeFile, XdpQuicFile, XdpServiceFile,
};
pub(crate) use shape::key_text;
pub use syntax::{Format, TEXT_BYTES_MAX, parse};
pub use tls::{
    CERTIFICATES_MAX, CertificateFile, ClientAuthFile, ClientAuthModeFile, PlainFile, TlsFile,
    TlsVersionFile, UpstreamTlsFile,
};

use crate::model::{Admin, HttpLimits, PassiveHealth, Timeouts, Upstream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Listeners in one file (count).
pub const LISTENERS_MAX: usize = 64;
/// Upstreams in one file (count).
pub const UPSTREAMS_MAX: usize = 16_384;
/// Endpoints of one upstream (count).
pub const UPSTREAM_ENDPOINTS_MAX: usize = 1_024;
/// Endpoints of all upstreams together (count): each has a row per worker in shared memory.
pub const ENDPOINTS_MAX: usize = 16_384;
/// Routes in one file (count): ten times what is usual in a large installation.
pub const ROUTES_MAX: usize = 100_000;
/// Methods of one route (count).
pub const ROUTE_METHODS_MAX: usize = 32;
/// Prefixes in `trusted_proxies` (count): the list is searched for each connection.
pub const TRUSTED_PROXIES_MAX: usize = 1_024;
/// Prefixes in `proxy_protocol_from` of one listener (count): the list is searched for each connection.
pub const PROXY_PROTOCOL_FROM_MAX: usize = 1_024;

/// A duration in milliseconds, from 1 ms to one day. No deadline can be switched off.
pub type Milliseconds = Bounded<1, 86_400_000>;

/// The configuration file of Blitz, in JSON or TOML. Unknown keys are errors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Blitz configuration")]
pub struct FileConfig {
    /// Addresses that clients connect to. Default: none, in which case the command line gives one
    /// with `-p PORT`. Names and addresses are unique. At most 64. Reloadable: only a listener whose
    /// address changes gets a new socket.
    #[schemars(length(max = LISTENERS_MAX))]
    pub listeners: Vec<ListenerFile>,
    /// Groups of endpoints that serve the same thing, by name. Names are 1 to 64 letters, digits,
    /// `.`, `_` and `-`. Default: none. At most 16384, with at most 16384 endpoints in all.
    /// Reloadable: endpoints that stay keep their connections and health.
    #[schemars(extend("maxProperties" = UPSTREAMS_MAX))]
    pub upstreams: BTreeMap<String, UpstreamFile>,
    /// Which requests go to which upstream; the most specific route wins, whatever the order here.
    /// Default: none. At most 100000. Reloadable.
    #[schemars(length(max = ROUTES_MAX))]
    pub routes: Vec<RouteFile>,
    /// Short form: the endpoints of one upstream named `default`, and a route that takes every
    /// request to it. Excludes `upstreams` and `routes`. Default: absent. 1 to 1024. Reloadable.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = UPSTREAM_ENDPOINTS_MAX))]
    pub backends: Vec<BackendFile>,
    /// Peers whose `Forwarded` and `X-Forwarded-*` fields are believed: addresses and prefixes such
    /// as `10.0.0.0/8` or `2001:db8::/32`, host bits zero. Default: none, so that no peer is
    /// believed. At most 1024. Reloadable, for new connections.
    #[schemars(length(max = TRUSTED_PROXIES_MAX))]
    pub trusted_proxies: Vec<String>,
    /// One deadline for each phase of a connection and of an exchange. Reloadable: a running phase
    /// keeps the deadline that it started with.
    pub timeouts: TimeoutsFile,
    /// Bounds on what a peer may make the gateway hold. Reloadable, for new requests.
    pub http: HttpFile,
    /// Bounds on an HTTP/2 connection. Reloadable, for new connections.
    pub http2: Http2File,
    /// Bounds on an HTTP/3 connection, and on what goes before it. Reloadable, for new connections.
    pub http3: Http3File,
    /// The admin API. Not reloadable.
    pub admin: AdminFile,
    /// Limits on packets and requests: one policy from the network card to the request. Default:
    /// none. At most 255. Reloadable.
    #[schemars(length(max = LIMITS_MAX))]
    pub limits: Vec<LimitFile>,
    /// The kernel stage, which `blitz-ctl` loads and attaches. Reloadable.
    pub xdp: XdpFile,
}

/// One address that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerFile {
    /// Name used in logs and metric labels: 1 to 64 letters, digits, `.`, `_` and `-`; unique.
    /// Required. Reloadable.
    pub name: String,
    /// Address and port to bind, such as `0.0.0.0:8080` or `[::]:8080`; unique. Port 0 lets the
    /// kernel choose. Required. Reloadable: a changed address closes the old socket and opens a new
    /// one.
    pub address: String,
    /// Protocols spoken here. Without TLS, `h2` is HTTP/2 with prior knowledge; beside `h1`, the first
    /// bytes of a connection tell which it is. `h3` needs TLS, and is spoken on the UDP port of the same
    /// number, which answers over the TCP port announce (`Alt-Svc`). Default: `["h1"]`. Reloadable, for new
    /// connections.
    #[serde(default = "default_protocols")]
    #[schemars(length(min = 1, max = 3))]
    pub protocols: Vec<ProtocolFile>,
    /// Whether `/hello`, `/health` and `/echo/*` are answered here when no route takes them.
    /// Default: false. Reloadable.
    #[serde(default)]
    pub builtin_answers: bool,
    /// Whether connections begin with a PROXY protocol header, version 1 or 2, that names the client.
    /// Default: `off`. Reloadable, for new connections.
    #[serde(default)]
    pub proxy_protocol: ProxyProtocolFile,
    /// Who may connect when `proxy_protocol` is `required`, and is believed: addresses and prefixes such
    /// as `10.0.0.0/8` or `2001:db8::/32`, host bits zero. A connection from elsewhere is reset at once
    /// and counted. Required then, and refused otherwise. 1 to 1024. Reloadable, for new connections.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = PROXY_PROTOCOL_FROM_MAX))]
    pub proxy_protocol_from: Vec<String>,
    /// TLS. Default: absent, so that clients speak in clear. Reloadable, for new connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "TlsFile")]
    pub tls: Option<TlsFile>,
}

/// Whether connections begin with a PROXY protocol header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProxyProtocolFile {
    /// They do not: what looks like one is a broken request or handshake.
    #[default]
    Off,
    /// Each does; one without is closed.
    Required,
}

/// A protocol that clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProtocolFile {
    /// HTTP/1.1 and 1.0.
    #[serde(rename = "h1")]
    H1,
    /// HTTP/2 (RFC 9113).
    #[serde(rename = "h2")]
    H2,
    /// HTTP/3 (RFC 9114), over QUIC.
    #[serde(rename = "h3")]
    H3,
}

/// A group of endpoints that serve the same thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamFile {
    /// How an endpoint is chosen among the healthy ones. Default: `round_robin`. Reloadable.
    #[serde(default)]
    pub balance: BalanceFile,
    /// What is spoken to the endpoints. Default: `auto`. Reloadable, for new connections.
    #[serde(default)]
    pub protocol: UpstreamProtocolFile,
    /// What connections to the endpoints begin with, to say whose they are. Default: `off`. Reloadable, for new
    /// connections.
    #[serde(default)]
    pub proxy_protocol: UpstreamProxyProtocolFile,
    /// TLS to all its endpoints. Default: absent, so that only endpoints on port 443 are spoken to over
    /// TLS, with the defaults of this table. Reloadable, for new connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "UpstreamTlsFile")]
    pub tls: Option<UpstreamTlsFile>,
    /// Where the upstream is reached; host and port are unique within it. Required. 1 to 1024.
    /// Reloadable.
    #[schemars(length(min = 1, max = UPSTREAM_ENDPOINTS_MAX))]
    pub endpoints: Vec<EndpointFile>,
    /// When an endpoint is taken out, and when it comes back. Reloadable.
    #[serde(default)]
    pub health: HealthFile,
    /// Connections kept open between requests. Reloadable.
    #[serde(default)]
    pub pool: PoolFile,
}

/// How an endpoint is chosen. Both values mean the same: each endpoint in turn, in proportion to
/// its weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BalanceFile {
    /// Each in turn, in proportion to its weight; with equal weights plain round robin.
    #[default]
    RoundRobin,
    /// Another word for `round_robin`.
    Weighted,
}

/// What is spoken to the endpoints of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocolFile {
    /// The best that both sides speak; HTTP/1.1 on a connection without TLS.
    #[default]
    Auto,
    /// HTTP/1.1.
    H1,
    /// HTTP/2; with prior knowledge on a connection without TLS. One connection carries many requests.
    H2,
}

/// What a connection to an endpoint says of the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProxyProtocolFile {
    /// Nothing.
    #[default]
    Off,
    /// A PROXY protocol header of version 2. Such a connection carries one request, since it names one client.
    V2,
}

/// One host and port of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointFile {
    /// `host:port`: an IPv4 address, an IPv6 address in brackets or an ASCII name, and a port from 1
    /// to 65535. Port 443 means TLS. A name may stand for several addresses. Required. Reloadable.
    pub address: String,
    /// Share of the requests relative to the siblings. Default: 1. Range: 1 to 1000. Reloadable.
    #[serde(default = "default_weight")]
    pub weight: Weight,
}

/// A share of the requests.
pub type Weight = Bounded<1, 1_000>;

/// When an endpoint is taken out, and when it comes back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HealthFile {
    /// Health as live traffic shows it. Reloadable.
    pub passive: PassiveFile,
}

/// Health as live traffic shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PassiveFile {
    /// Failed exchanges in a row after which an endpoint is taken out. Default: 3. Range: 1 to
    /// 1000. Reloadable.
    pub consecutive_failures: Bounded<1, 1_000>,
    /// Successful exchanges in a row, after its return, until an endpoint counts as healthy again.
    /// Default: 2. Range: 1 to 1000. Reloadable.
    pub consecutive_successes: Bounded<1, 1_000>,
    /// How long an endpoint stays out, in milliseconds. Default: 10000. Range: 1 to 86400000.
    /// Reloadable, for the next ejection.
    pub ejection_ms: Milliseconds,
}

/// Connections kept open between requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PoolFile {
    /// Idle connections kept per worker and endpoint address (count). Beyond it the oldest is
    /// closed; 0 keeps none. Default: 256. Range: 0 to 65535. Reloadable.
    pub idle_connections_max: Bounded<0, 65_535>,
}

/// Which requests go to which upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteFile {
    /// Host to match, without port: `example.com`, `*.example.com` for every name below it, or `*`
    /// for all. ASCII only: write an internationalised name in its `xn--` form. Default: `*`.
    /// Reloadable.
    #[serde(default = "default_host")]
    pub host: String,
    /// Path to match, as segments: literal text, `{name}` for one non-empty segment, and in last
    /// place `*name` for all that is left. At most 1024 bytes and 64 segments. Default: `/*rest`,
    /// which takes every path. Reloadable.
    #[serde(default = "default_path")]
    pub path: String,
    /// Methods to match, in upper case. Default: empty, which takes all. At most 32. Reloadable.
    #[serde(default)]
    #[schemars(length(max = ROUTE_METHODS_MAX))]
    pub methods: Vec<String>,
    /// Name of the upstream that answers. Required. Reloadable.
    pub upstream: String,
}

/// One endpoint of the short form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendFile {
    /// Address or ASCII name, without port; an IPv6 address with or without brackets. Required.
    /// Reloadable.
    pub host: String,
    /// TCP port. 443 means TLS, verified against the system's authorities. Required. Range: 1 to
    /// 65535. Reloadable.
    pub port: Bounded<1, 65_535>,
    /// Share of the requests relative to the siblings. Default: 1. Range: 1 to 1000. Reloadable.
    #[serde(default = "default_weight")]
    pub weight: Weight,
}

/// One deadline per phase, in milliseconds. None can be switched off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutsFile {
    /// From accept to the end of the TLS handshake, in milliseconds. Default: 10000. Range: 1 to
    /// 86400000. Reloadable.
    pub tls_handshake_ms: Milliseconds,
    /// From the first byte of a request (or from accept) to the end of its head, in milliseconds.
    /// Then 408. Default: 10000. Range: 1 to 86400000. Reloadable.
    pub request_head_ms: Milliseconds,
    /// Between two bytes of a request body, in milliseconds. Default: 30000. Range: 1 to 86400000.
    /// Reloadable.
    pub request_body_progress_ms: Milliseconds,
    /// How long a client's connection may idle between requests, in milliseconds. Default: 75000.
    /// Range: 1 to 86400000. Reloadable.
    pub keep_alive_ms: Milliseconds,
    /// How long a peer may take no byte of what is to be sent, in milliseconds. Default: 30000.
    /// Range: 1 to 86400000. Reloadable.
    pub send_progress_ms: Milliseconds,
    /// TCP connect to an endpoint and the TLS handshake with it, in milliseconds. Default: 2000.
    /// Range: 1 to 86400000. Reloadable.
    pub upstream_connect_ms: Milliseconds,
    /// From the end of the request to the first byte of the final answer's head, in milliseconds.
    /// Then 504. Default: 60000. Range: 1 to 86400000. Reloadable.
    pub upstream_first_byte_ms: Milliseconds,
    /// Between two bytes of an answer's body, in milliseconds. Default: 60000. Range: 1 to 86400000.
    /// Reloadable.
    pub upstream_body_progress_ms: Milliseconds,
    /// How long a pooled connection to an endpoint may idle, in milliseconds. Default: 60000. Range:
    /// 1 to 86400000. Reloadable.
    pub upstream_idle_ms: Milliseconds,
    /// How long neither side of a tunnel (a WebSocket) may send a byte, in milliseconds. Default: 300000. Range: 1 to
    /// 86400000. Reloadable; a tunnel keeps what it began with.
    pub tunnel_idle_ms: Milliseconds,
    /// How long a tunnel (a WebSocket) may live, in milliseconds. Default: 86400000. Range: 1 to 86400000. Reloadable;
    /// a tunnel keeps what it began with.
    pub tunnel_lifetime_ms: Milliseconds,
    /// From SIGTERM to the end of the last connection, in milliseconds. Default: 30000. Range: 1 to
    /// 86400000. Reloadable.
    pub drain_ms: Milliseconds,
}

/// Bounds on what a peer may make the gateway hold. Each is per connection unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpFile {
    /// Bytes of a request head, start line included. Beyond: 431. Default: 16384. Range: 1024 to
    /// 262144. Reloadable.
    pub request_head_bytes_max: Bounded<1_024, 262_144>,
    /// Fields in a request head (count). Beyond: 431. Default: 100. Range: 8 to 256. Reloadable.
    pub request_fields_max: Bounded<8, 256>,
    /// Bytes of a request target. Beyond: 414. Default: 8192. Range: 64 to 65536. Reloadable.
    pub target_bytes_max: Bounded<64, 65_536>,
    /// Bytes of a request body. Beyond: 413. Bodies are streamed, so this costs no memory. Default:
    /// 17179869184 (16 GiB). Range: 1 to 1125899906842624 (1 PiB, in effect no limit). Reloadable.
    pub request_body_bytes_max: Bounded<1, 1_125_899_906_842_624>,
    /// Bytes of an answer head. Beyond: 502. Default: 32768. Range: 1024 to 262144. Reloadable.
    pub response_head_bytes_max: Bounded<1_024, 262_144>,
    /// Client connections per worker (count). Beyond: the oldest idle one is closed, and when none
    /// is idle the new one. Default: 20000. Range: 1 to 1000000. Reloadable; a lower limit closes no
    /// connection that is in use.
    pub connections_per_worker_max: Bounded<1, 1_000_000>,
}

/// The admin API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdminFile {
    /// Address and port of the admin API, which has no authentication: keep it on loopback or a
    /// management network. Port 0 lets the kernel choose. Default: `127.0.0.1:9900`. Not reloadable:
    /// a change needs a restart.
    pub address: String,
}

impl Default for PassiveFile {
    fn default() -> Self {
        let recommended = PassiveHealth::RECOMMENDED;
        Self {
            consecutive_failures: Bounded::clamped(recommended.consecutive_failures.into()),
            consecutive_successes: Bounded::clamped(recommended.consecutive_successes.into()),
            ejection_ms: milliseconds(recommended.ejection),
        }
    }
}

impl Default for PoolFile {
    fn default() -> Self {
        Self { idle_connections_max: Bounded::clamped(Upstream::IDLE_CONNECTIONS_RECOMMENDED.into()) }
    }
}

impl Default for TimeoutsFile {
    fn default() -> Self {
        let recommended = Timeouts::RECOMMENDED;
        Self {
            tls_handshake_ms: milliseconds(recommended.tls_handshake),
            request_head_ms: milliseconds(recommended.request_head),
            request_body_progress_ms: milliseconds(recommended.request_body_progress),
            keep_alive_ms: milliseconds(recommended.keep_alive),
            send_progress_ms: milliseconds(recommended.send_progress),
            upstream_connect_ms: milliseconds(recommended.upstream_connect),
            upstream_first_byte_ms: milliseconds(recommended.upstream_first_byte),
            upstream_body_progress_ms: milliseconds(recommended.upstream_body_progress),
            upstream_idle_ms: milliseconds(recommended.upstream_idle),
            tunnel_idle_ms: milliseconds(recommended.tunnel_idle),
            tunnel_lifetime_ms: milliseconds(recommended.tunnel_lifetime),
            drain_ms: milliseconds(recommended.drain),
        }
    }
}

impl Default for HttpFile {
    fn default() -> Self {
        let recommended = HttpLimits::RECOMMENDED;
        Self {
            request_head_bytes_max: Bounded::clamped(recommended.request_head_bytes_max as u64),
            request_fields_max: Bounded::clamped(recommended.request_fields_max as u64),
            target_bytes_max: Bounded::clamped(recommended.target_bytes_max as u64),
            request_body_bytes_max: Bounded::clamped(recommended.request_body_bytes_max),
            response_head_bytes_max: Bounded::clamped(recommended.response_head_bytes_max as u64),
            connections_per_worker_max: Bounded::clamped(recommended.connections_per_worker_max as u64),
        }
    }
}

impl Default for AdminFile {
    fn default() -> Self {
        Self { address: Admin::RECOMMENDED.address.to_string() }
    }
}

fn milliseconds(duration: Duration) -> Milliseconds {
    Bounded::clamped(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn default_protocols() -> Vec<ProtocolFile> {
    vec![ProtocolFile::H1]
}

fn default_weight() -> Weight {
    Bounded::clamped(1)
}

fn default_host() -> String {
    "*".to_owned()
}

fn default_path() -> String {
    "/*rest".to_owned()
}
