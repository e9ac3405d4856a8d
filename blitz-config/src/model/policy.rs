//! Limits and the kernel stage, validated.
//!
//! Owns: what one limit counts and covers, and what the XDP stage is told. Does not own: the maps
//! that the packet side becomes (`blitz-ctl`), or the buckets of the request side (the data plane).

use super::Cidr;
use std::net::IpAddr;
use std::time::Duration;

/// One limit: the packet rates hold in the kernel, the request rate holds in the workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Unique name: rule `limit:NAME`, metric label, and what keeps its buckets over a reload.
    pub name: String,
    /// Who shares a bucket.
    pub by: LimitBy,
    /// Indices into [`super::Config::listeners`], ascending, each once. Empty: every listener and
    /// every [`Xdp::services`].
    pub listeners: Vec<usize>,
    /// Bits of an IPv4 source that make one bucket, 1..=32.
    pub prefix_v4: u8,
    /// Bits of an IPv6 source that make one bucket, 1..=64.
    pub prefix_v6: u8,
    /// Packets per second, in the kernel.
    pub packets_per_second: Option<u64>,
    /// Octets of frames per second, in the kernel. With [`Self::burst`] at least one frame of 64 KiB.
    pub bytes_per_second: Option<u64>,
    /// TCP connection attempts (SYN without ACK) per second, in the kernel.
    pub syns_per_second: Option<u64>,
    /// HTTP requests per second, over all workers together.
    pub requests_per_second: Option<u64>,
    /// Depth of each bucket: what may come at once is what the rate gives in this time.
    pub burst: Duration,
    /// Count what is over the limit, and let it through.
    pub shadow: bool,
}

impl Limit {
    /// Whether the limit has a rate that holds in the kernel.
    pub fn limits_packets(&self) -> bool {
        self.packets_per_second.is_some() || self.bytes_per_second.is_some() || self.syns_per_second.is_some()
    }

    /// Whether the limit covers the listener at `index`.
    pub fn covers_listener(&self, index: usize) -> bool {
        self.listeners.is_empty() || self.listeners.contains(&index)
    }

    /// Whether the limit covers what is listed in [`Xdp::services`].
    pub fn covers_xdp_services(&self) -> bool {
        self.listeners.is_empty()
    }

    /// What a rate gives in the time of [`Self::burst`]: the tokens that may be taken at once.
    pub fn burst_of(&self, per_second: u64) -> u64 {
        per_second.saturating_mul(self.burst.as_secs())
    }
}

/// Who shares a bucket of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitBy {
    /// Each source prefix has its own.
    SourcePrefix,
    /// Each pair of source prefix and normalised path has its own. Requests only.
    SourcePrefixAndPath,
    /// Each service (listener) has one, whoever sends.
    Service,
}

/// The kernel stage in front of the listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// Network interfaces that the daemon attaches to. Empty: the stage is off unless it is attached
    /// by hand, and workers report nobody.
    pub interfaces: Vec<String>,
    /// How the program is attached.
    pub mode: XdpMode,
    /// Count what would be dropped, and drop nothing.
    pub shadow: bool,
    /// Sources that pass the block, deny and source-limit steps.
    pub allow: Vec<Cidr>,
    /// Sources that no host-wide deny entry touches.
    pub management: Vec<Cidr>,
    /// Denied sources; no prefix is there twice.
    pub deny: Vec<DenyPrefix>,
    /// Services besides the listeners.
    pub services: Vec<XdpService>,
    /// Sources whose buckets the kernel keeps (count).
    pub sources_max: u32,
    /// Denied prefixes the kernel holds, of each family (count).
    pub deny_max: u32,
    /// When the workers have a source blocked.
    pub blocklist: Blocklist,
    /// What becomes of datagrams to listeners with HTTP/3.
    pub quic: XdpQuic,
    /// HTTP/3 past the kernel's UDP; `None`: it is off.
    pub afxdp: Option<AfXdp>,
}

/// AF_XDP sockets of the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AfXdp {
    /// Frames of each receive queue (count), a power of two: half of them for each direction.
    pub frames_per_queue: u32,
    /// Whether frames are copied between the driver and the worker.
    pub copying: Copying,
}

/// Whether frames are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copying {
    /// They are.
    Always,
    /// They are not, or the queue is not bound.
    Never,
    /// Only where the driver cannot do without.
    IfNeeded,
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver where it can, else generic.
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's generic hook, which every interface has.
    Generic,
}

/// One denied prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenyPrefix {
    /// The sources.
    pub prefix: Cidr,
    /// Whether everything to this host is denied, not only what goes to a service.
    pub host: bool,
    /// Count what would be dropped, and let it through.
    pub shadow: bool,
}

/// A service besides the listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpService {
    /// Name, unique among listeners and services: rule `service:NAME`.
    pub name: String,
    /// The one address, or `None` for every address of both families.
    pub address: Option<IpAddr>,
    /// The port, 1 or more.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Transport,
}

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

/// Datagrams to listeners with HTTP/3 that no connection of ours can want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpQuic {
    /// Whether those with a bad header or a connection ID that is not ours are dropped, or only counted.
    pub drop_bad: bool,
    /// Those of unknown versions that pass in a second, to be answered with the versions that are spoken here.
    pub unknown_versions_per_second: u32,
}

/// When the workers have a source blocked in the kernel. A source is the peer of an established
/// connection: an IPv4 address, or the /64 of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocklist {
    /// Requests with bad framing from one source in a minute that it takes to block it; 0: never.
    pub framing_violations_per_minute: u32,
    /// Requests of one source refused by a limit in a minute that it takes to block it; 0: never.
    pub limit_refusals_per_minute: u32,
    /// How long a source stays blocked.
    pub ttl: Duration,
    /// Sources blocked by reports at the same time (count). Beyond it a report blocks nobody.
    pub entries_max: u32,
}
