//! The defaults of Blitz, each with its reason.
//!
//! Owns: the numbers that apply when a file is silent. Does not own: accepted ranges (see
//! [`crate::file`]).
#![forbid(unsafe_code)]

use crate::model::{Admin, HttpLimits, PassiveHealth, Timeouts, Upstream};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

impl Timeouts {
    /// The deadlines that apply when a file names none.
    pub const RECOMMENDED: Self = Self {
        // A head fits into a few packets. Ten seconds allow a phone on a bad link several
        // retransmissions, and end a client that feeds one byte at a time.
        request_head: Duration::from_secs(10),
        // Progress, not a total: a 1 GiB upload over a slow link is honest traffic, half a minute
        // without one byte is not. Half of what nginx allows (60 s).
        request_body_progress: Duration::from_secs(30),
        // As nginx. Longer than the 60 s for which load balancers in front of a gateway commonly
        // keep a connection, so that they close first and never send into a closing one.
        keep_alive: Duration::from_secs(75),
        // A reader that takes nothing for this long keeps upstream data waiting in our buffers.
        send_progress: Duration::from_secs(30),
        // Linux sends a lost SYN again after 1 s (RFC 6298 section 2.1): two seconds survive one
        // loss, and a dead endpoint costs a request no more than that before the next is tried.
        upstream_connect: Duration::from_secs(2),
        // As nginx's proxy_read_timeout: reports and exports do compute for most of a minute.
        upstream_first_byte: Duration::from_secs(60),
        // As above, between two bytes: streams with a heartbeat every 30 s live.
        upstream_body_progress: Duration::from_secs(60),
        // Below the keep-alive of an nginx upstream (75 s), so that we close first. One that closes
        // sooner is noticed, or costs a retry on a fresh connection.
        upstream_idle: Duration::from_secs(60),
        // As the grace period after which container platforms kill a process.
        drain: Duration::from_secs(30),
    };
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::RECOMMENDED
    }
}

impl HttpLimits {
    /// The bounds that apply when a file names none.
    pub const RECOMMENDED: Self = Self {
        // Twice the 8 KiB that servers commonly take for one field: large cookies and tokens pass.
        request_head_bytes_max: 16 * 1024,
        // As HAProxy (101 with the start line) and Envoy.
        request_fields_max: 100,
        // RFC 9110 section 4.1 asks for at least 8,000 octets.
        target_bytes_max: 8 * 1024,
        // A body is streamed and never collected, so this bounds time and disk behind us, not our
        // memory. 16 GiB let a disk image through and still end an endless body.
        request_body_bytes_max: 16 * 1024 * 1024 * 1024,
        // Upstreams are ours, and set many cookies; twice what a client may send.
        response_head_bytes_max: 32 * 1024,
        // One connection needs up to two descriptors (itself and its upstream): 40,000 of the
        // 524,288 that current distributions allow a service, per worker.
        connections_per_worker_max: 20_000,
    };
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self::RECOMMENDED
    }
}

impl PassiveHealth {
    /// The passive health that applies when a file names none.
    pub const RECOMMENDED: Self = Self {
        // One failure is noise, two can be one restart seen twice; three in a row are a pattern.
        consecutive_failures: 3,
        // One success can be luck.
        consecutive_successes: 2,
        // As nginx's fail_timeout: about what a service takes to restart.
        ejection: Duration::from_secs(10),
    };
}

impl Default for PassiveHealth {
    fn default() -> Self {
        Self::RECOMMENDED
    }
}

impl Admin {
    /// Loopback, port 9900: the admin API has no authentication of its own.
    pub const RECOMMENDED: Self = Self { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9900) };
}

impl Default for Admin {
    fn default() -> Self {
        Self::RECOMMENDED
    }
}

impl Upstream {
    /// Idle connections kept per worker and endpoint address: enough for the swings of a busy
    /// endpoint (nginx operators configure 16 to 128), small beside the connection limit.
    pub const IDLE_CONNECTIONS_RECOMMENDED: u32 = 256;

    /// Port 443 asks for TLS to the endpoint.
    pub const TLS_PORT: u16 = 443;
}
