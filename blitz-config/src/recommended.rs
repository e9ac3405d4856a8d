//! The defaults of Blitz, each with its reason.
//!
//! Owns: the numbers that apply when a file is silent. Does not own: accepted ranges (see
//! [`crate::file`]).
#![forbid(unsafe_code)]

use crate::model::{
    Admin, AfXdp, Blocklist, CongestionControl, Copying, Http2Limits, Http3Limits, HttpLimits, Limit,
    PassiveHealth, Retry, Timeouts, Tls, Upstream, Xdp, XdpMode, XdpQuic,
};
use blitz_ebpf_common::layout;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

impl Timeouts {
    /// The deadlines that apply when a file names none.
    pub const RECOMMENDED: Self = Self {
        // As long as a head may take: two round trips and a signature, with several retransmissions.
        tls_handshake: Duration::from_secs(10),
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
        // As Envoy's stream_idle_timeout. Whoever keeps a WebSocket open pings every 20 to 60 s, so that no NAT on
        // the way forgets it: five silent minutes mean that nobody is there.
        tunnel_idle: Duration::from_secs(300),
        // The longest that there is. A day ends what nobody remembers, and is longer than any token should live that
        // a tunnel began with.
        tunnel_lifetime: Duration::from_secs(24 * 60 * 60),
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

impl Http2Limits {
    /// The bounds that apply when a file names none.
    pub const RECOMMENDED: Self = Self {
        // As nginx; RFC 9113 section 6.5.2 recommends no fewer than 100.
        concurrent_streams_max: 128,
        // One stream over a path of 100 ms moves 20 Mbit/s; four of them fill the connection's window.
        stream_window_bytes: 256 * 1024,
        connection_window_bytes: 1024 * 1024,
        // A head of the largest default size needs one; clients fill their frames.
        continuations_max: 4,
        // A browser that leaves a page cancels what it had asked for: a burst of a few hundred, then nothing.
        resets_per_second: 100,
        // No correct client gives cause, but one that opens more streams than it may has not yet seen our
        // SETTINGS.
        faults_per_second: 50,
        // Each costs a decoding of up to four times the limit.
        oversize_heads_per_second: 10,
        // Keep-alive is one in many seconds; what measures bandwidth pings once a round trip while data flows,
        // and that is allowed for beside.
        pings_per_second: 100,
        // One at the start, rarely another.
        settings_per_second: 20,
        // Browsers send a tree of them at the start.
        priorities_per_second: 100,
        // One for the stream and one for the connection with each DATA frame is what clients send that are
        // careless, and is allowed for beside.
        window_updates_per_second: 1000,
        // Some libraries flush with them.
        empty_data_per_second: 100,
        // Frames sent to keep receivers honest (RFC 8701 in spirit), one or two with each request.
        unknown_frames_per_second: 100,
        // A page with that many paused downloads is none.
        stalled_streams_max: 16,
    };
}

impl Default for Http2Limits {
    fn default() -> Self {
        Self::RECOMMENDED
    }
}

impl Http3Limits {
    /// The bounds that apply when a file names none.
    pub const RECOMMENDED: Self = Self {
        // As for HTTP/2; RFC 9114 section 6.1 recommends no fewer than 100.
        concurrent_streams_max: 128,
        // As for HTTP/2.
        stream_window_bytes: 256 * 1024,
        connection_window_bytes: 1024 * 1024,
        // Longer than a connection is kept without a request, so that the end is said and not waited for; and than an
        // upstream may take for its first byte.
        idle_timeout: Duration::from_secs(90),
        // An honest client pays for it only while the gateway has more to do than usual.
        retry: Retry::UnderPressure,
        // Upstreams have to know of it (RFC 8470 section 6.1).
        early_data: false,
        // 2^24 connection IDs, which is what one key should make (`docs/quic.md`), are 4660 a second; and an address
        // that a client has kept for an hour tells less of when it came.
        cid_epoch_seconds: 3600,
        // As for HTTP/2.
        resets_per_second: 100,
        // 120 MB, where each was left in mid-download.
        moves_per_worker_max: 4096,
        // What TCP does on Linux: fair beside it.
        congestion_control: CongestionControl::Cubic,
        // Fewer datagrams for the same bytes, on nearly every path.
        pmtu_discovery: true,
    };
}

impl Default for Http3Limits {
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

impl Tls {
    /// Handshakes under way per worker: with at most 40 KiB each 40 MiB, and more than a processor completes
    /// in a quarter of a second.
    pub const HANDSHAKES_RECOMMENDED: u32 = 1_000;
}

impl Limit {
    /// One IPv4 address is one source.
    pub const PREFIX_V4_RECOMMENDED: u8 = 32;

    /// One IPv6 subnet is one source: whoever has one address of it has all 2^64.
    pub const PREFIX_V6_RECOMMENDED: u8 = 64;

    /// What a second gives may come at once: a page with its pictures is a burst.
    pub const BURST_RECOMMENDED: Duration = Duration::from_secs(1);
}

impl Blocklist {
    /// When a source is blocked, where a file says nothing.
    pub const RECOMMENDED: Self = Self {
        // A broken client sends one bad request and sees its 400; ten in a minute are tried on purpose.
        framing_violations_per_minute: 10,
        // Ten refusals a second for a minute: who reads 429 and `Retry-After` is far below.
        limit_refusals_per_minute: 600,
        // Long enough to end an attempt, short enough for whoever gets the address next.
        ttl: Duration::from_secs(60),
        // A quarter of the kernel's list; the rest is the operator's.
        entries_max: layout::BLOCKED_MAX / 4,
    };
}

impl Default for Blocklist {
    fn default() -> Self {
        Self::RECOMMENDED
    }
}

impl AfXdp {
    /// 4 MiB for each queue: some ten milliseconds of a gigabit in each direction.
    pub const RECOMMENDED: Self = Self { frames_per_queue: 2048, copying: Copying::Always };
}

impl XdpQuic {
    /// What becomes of datagrams to listeners with HTTP/3, where a file says nothing.
    pub const RECOMMENDED: Self = Self {
        // What is dropped by mistake is a connection that hangs. First look at what is counted.
        drop_bad: false,
        // Clients with a version of their own are few, and each sends one or two.
        unknown_versions_per_second: 1000,
    };
}

impl Xdp {
    /// Sources whose buckets the kernel keeps.
    pub const SOURCES_RECOMMENDED: u32 = layout::SOURCES_MAX;

    /// Denied prefixes of each family: several public lists together.
    pub const DENY_RECOMMENDED: u32 = 131_072;
}

impl Default for Xdp {
    /// No interface, nothing denied, nothing allowed.
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            mode: XdpMode::Auto,
            shadow: false,
            allow: Vec::new(),
            management: Vec::new(),
            deny: Vec::new(),
            services: Vec::new(),
            sources_max: Self::SOURCES_RECOMMENDED,
            deny_max: Self::DENY_RECOMMENDED,
            blocklist: Blocklist::RECOMMENDED,
            quic: XdpQuic::RECOMMENDED,
            afxdp: None,
        }
    }
}
