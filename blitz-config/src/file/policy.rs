//! `[[limits]]` and `[xdp]` as they are written.
//!
//! Owns: the keys, their documentation, defaults and ranges. Does not own: what they mean together
//! (see `validate`).
#![forbid(unsafe_code)]

use super::{Bounded, Milliseconds, milliseconds};
use crate::model::{AfXdp, Blocklist, Limit, Xdp, XdpQuic};
use blitz_ebpf_common::{gcra, layout};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Limits in one file (count): number 0 of the kernel's table means none.
pub const LIMITS_MAX: usize = layout::LIMITS_MAX as usize - 1;
/// Interfaces of one stage (count).
pub const XDP_INTERFACES_MAX: usize = 16;
/// Prefixes in `xdp.allow`, and in `xdp.management` (count): a quarter of the kernel's table each, so
/// that half of it is left to what is added at run time.
pub const XDP_ALLOW_MAX: usize = layout::ALLOW_MAX as usize / 4;
/// Services besides the listeners (count): half of the kernel's table.
pub const XDP_SERVICES_MAX: usize = layout::SERVICES_MAX as usize / 2;
/// The most that `xdp.deny_max` may be (count).
pub const XDP_DENY_MAX: usize = 4_194_304;

/// A rate per second.
pub type PerSecond = Bounded<1, { gcra::RATE_MAX }>;

/// A limit. The packet rates hold in the kernel, the request rate in the workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitFile {
    /// Name used in counters and metric labels: 1 to 56 letters, digits, `.`, `_` and `-`; unique.
    /// Required. Reloadable: a limit that keeps its name keeps its buckets.
    pub name: String,
    /// Who shares a bucket. Default: `source_prefix`. Reloadable.
    #[serde(default)]
    pub by: LimitByFile,
    /// Names of the listeners it holds on. Default: empty, which is every listener and every service
    /// of `xdp.services`. At most 64. Reloadable.
    #[serde(default)]
    #[schemars(length(max = super::LISTENERS_MAX))]
    pub listeners: Vec<String>,
    /// Bits of an IPv4 source that share a bucket. Default: 32. Range: 1 to 32. Reloadable.
    #[serde(default = "default_prefix_v4")]
    pub prefix_v4: Bounded<1, 32>,
    /// Bits of an IPv6 source that share a bucket; what a network hands to one site is a /64.
    /// Default: 64. Range: 1 to 64. Reloadable.
    #[serde(default = "default_prefix_v6")]
    pub prefix_v6: Bounded<1, 64>,
    /// Packets per second. Default: none. Range: 1 to 50000000000. Reloadable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PerSecond")]
    pub packets_per_second: Option<PerSecond>,
    /// Bytes of frames per second. Together with `burst_seconds` it must hold one frame of 65536
    /// bytes. Default: none. Range: 1 to 50000000000. Reloadable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PerSecond")]
    pub bytes_per_second: Option<PerSecond>,
    /// TCP connection attempts per second. Default: none. Range: 1 to 50000000000. Reloadable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PerSecond")]
    pub syns_per_second: Option<PerSecond>,
    /// HTTP requests per second, over all workers together. Beyond: 429. Default: none. Range: 1 to
    /// 50000000000. Reloadable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PerSecond")]
    pub requests_per_second: Option<PerSecond>,
    /// What may come at once, as seconds of each rate. Default: 1. Range: 1 to 3600. Reloadable.
    #[serde(default = "default_burst")]
    pub burst_seconds: Bounded<1, 3_600>,
    /// Whether what is over the limit is only counted and let through. Default: false. Reloadable.
    #[serde(default)]
    pub shadow: bool,
}

/// Who shares a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitByFile {
    /// Each source prefix has its own.
    #[default]
    SourcePrefix,
    /// Each pair of source prefix and path has its own; for requests only.
    SourcePrefixAndPath,
    /// Each listener or service has one, whoever sends.
    Service,
}

/// The kernel stage: an XDP program in front of the listeners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct XdpFile {
    /// Network interfaces that `blitz-ctl run` attaches to. Default: none, and then workers report
    /// nobody for the blocklist. At most 16. Reloadable.
    #[schemars(length(max = XDP_INTERFACES_MAX))]
    pub interfaces: Vec<String>,
    /// Where the program runs. Default: `auto`. Reloadable, at the next attach.
    pub mode: XdpModeFile,
    /// Whether everything is counted and nothing dropped. Default: false. Reloadable.
    pub shadow: bool,
    /// Sources that are neither blocked nor denied nor limited by source: addresses and prefixes.
    /// Default: none. At most 1024. Reloadable.
    #[schemars(length(max = XDP_ALLOW_MAX))]
    pub allow: Vec<String>,
    /// Sources that no deny entry of scope `host` touches, and that are never blocked: addresses and
    /// prefixes. Default: none. At most 1024. Reloadable.
    #[schemars(length(max = XDP_ALLOW_MAX))]
    pub management: Vec<String>,
    /// Sources that are denied: addresses and prefixes, or tables with a prefix and its scope.
    /// Default: none. At most 4194304, and no more of one family than `deny_max`. Reloadable.
    #[schemars(length(max = XDP_DENY_MAX))]
    pub deny: Vec<DenyFile>,
    /// Services besides the listeners, which are services by themselves. Default: none. At most 512.
    /// Reloadable.
    #[schemars(length(max = XDP_SERVICES_MAX))]
    pub services: Vec<XdpServiceFile>,
    /// Sources whose buckets the kernel keeps (count). Beyond: the one that was not seen for the
    /// longest time makes room. Default: 262144. Range: 1024 to 4194304. Not reloadable: it holds
    /// from the next attach on.
    pub sources_max: Bounded<1_024, 4_194_304>,
    /// Denied prefixes the kernel holds, of each family (count). Default: 131072. Range: 1024 to
    /// 4194304. Not reloadable: it holds from the next attach on.
    pub deny_max: Bounded<1_024, { XDP_DENY_MAX as u64 }>,
    /// When workers have a source blocked in the kernel. Reloadable.
    pub blocklist: BlocklistFile,
    /// What becomes of datagrams to listeners with `h3` that no connection can want. Reloadable.
    pub quic: XdpQuicFile,
    /// HTTP/3 past the kernel's UDP (AF_XDP), on all of `interfaces`; needs `blitz-ctl run`. Default: none,
    /// which is off. Reloadable.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AfXdpFile")]
    pub afxdp: Option<AfXdpFile>,
}

/// Where the XDP program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum XdpModeFile {
    /// In the driver where it can, else generic.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's generic hook, which every interface has.
    Generic,
}

/// A denied prefix: the prefix alone, or a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum DenyFile {
    /// The sources, denied to services.
    Prefix(String),
    /// The sources with scope and shadow.
    Table(DenyTableFile),
}

/// A denied prefix with its scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DenyTableFile {
    /// The sources: an address or a prefix. Required. Reloadable.
    pub prefix: String,
    /// What is denied to them: the services, or everything on this host. Default: `service`.
    /// Reloadable.
    #[serde(default)]
    pub scope: DenyScopeFile,
    /// Whether they are only counted and let through. Default: false. Reloadable.
    #[serde(default)]
    pub shadow: bool,
}

/// What a deny entry covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DenyScopeFile {
    /// What goes to a listener or a service of `xdp.services`.
    #[default]
    Service,
    /// Everything that comes to this host, except from `xdp.management`.
    Host,
}

/// A service besides the listeners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct XdpServiceFile {
    /// Name used in counters: 1 to 56 letters, digits, `.`, `_` and `-`; unique, also among
    /// listeners. Default: `PROTOCOL-PORT`, such as `udp-53`. Reloadable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub name: Option<String>,
    /// Its address. Default: every address of both families. Reloadable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub address: Option<String>,
    /// Its port. Required. Range: 1 to 65535. Reloadable.
    pub port: Bounded<1, 65_535>,
    /// Its transport. Required. Reloadable.
    pub protocol: TransportFile,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransportFile {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// When workers have a source blocked in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BlocklistFile {
    /// Requests with bad framing from one source in a minute that it takes to block it; 0 never
    /// does. Default: 10. Range: 0 to 1000000. Reloadable.
    pub framing_violations_per_minute: Bounded<0, 1_000_000>,
    /// Requests of one source refused by a limit in a minute that it takes to block it; 0 never
    /// does. Default: 600. Range: 0 to 1000000. Reloadable.
    pub limit_refusals_per_minute: Bounded<0, 1_000_000>,
    /// How long a source stays blocked, in milliseconds. Default: 60000. Range: 1000 to 3600000.
    /// Reloadable, for the next block.
    pub ttl_ms: Bounded<1_000, 3_600_000>,
    /// Sources blocked by reports at the same time (count). Beyond: a report blocks nobody, and is
    /// counted. Default: 16384. Range: 1 to 65536. Reloadable.
    pub entries_max: Bounded<1, { layout::BLOCKED_MAX as u64 }>,
}

/// AF_XDP sockets of the workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AfXdpFile {
    /// Frames of each receive queue, half of them for what comes and half for what goes (count), of 2 KiB,
    /// or 4 KiB where the MTU asks for it. They count against RLIMIT_MEMLOCK, over all queues and workers.
    /// What finds none is lost, and sent again. Default: 2048. Range: 256 to 65536, a power of two.
    /// Reloadable: the queues are bound anew.
    pub frames_per_queue: Bounded<256, 65_536>,
    /// Whether frames are copied between the driver and the worker. Default: `always`. Reloadable: the
    /// queues are bound anew.
    pub copying: CopyingFile,
}

/// Whether frames are copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CopyingFile {
    /// They are: every driver can, and nothing is lost when a worker comes or goes.
    #[default]
    Always,
    /// They are not; queues of a driver that cannot do without stay with the kernel's UDP. Most drivers
    /// reset the queue when a worker comes or goes.
    Never,
    /// Only where the driver cannot do without.
    IfNeeded,
}

impl Default for AfXdpFile {
    fn default() -> Self {
        let recommended = AfXdp::RECOMMENDED;
        Self {
            frames_per_queue: Bounded::clamped(recommended.frames_per_queue.into()),
            copying: CopyingFile::default(),
        }
    }
}

/// Datagrams to listeners with `h3`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct XdpQuicFile {
    /// What becomes of datagrams whose header is cut or whose connection ID the gateway has not made.
    /// Default: `count`. Reloadable.
    pub bad_packets: BadPacketsFile,
    /// Datagrams of unknown versions of QUIC that pass in a second, and at once, to be answered with
    /// the known ones. Default: 1000. Range: 1 to 1000000. Reloadable.
    pub unknown_versions_per_second: Bounded<1, 1_000_000>,
}

/// What becomes of a bad datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BadPacketsFile {
    /// It is counted, and goes to the kernel's socket, which refuses it or not.
    #[default]
    Count,
    /// It is counted and dropped.
    Drop,
}

impl Default for XdpFile {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            mode: XdpModeFile::default(),
            shadow: false,
            allow: Vec::new(),
            management: Vec::new(),
            deny: Vec::new(),
            services: Vec::new(),
            sources_max: Bounded::clamped(Xdp::SOURCES_RECOMMENDED.into()),
            deny_max: Bounded::clamped(Xdp::DENY_RECOMMENDED.into()),
            blocklist: BlocklistFile::default(),
            quic: XdpQuicFile::default(),
            afxdp: None,
        }
    }
}

impl Default for XdpQuicFile {
    fn default() -> Self {
        let unknown_versions = XdpQuic::RECOMMENDED.unknown_versions_per_second;
        Self {
            bad_packets: BadPacketsFile::default(),
            unknown_versions_per_second: Bounded::clamped(unknown_versions.into()),
        }
    }
}

impl Default for BlocklistFile {
    fn default() -> Self {
        let recommended = Blocklist::RECOMMENDED;
        let ttl: Milliseconds = milliseconds(recommended.ttl);
        Self {
            framing_violations_per_minute: Bounded::clamped(recommended.framing_violations_per_minute.into()),
            limit_refusals_per_minute: Bounded::clamped(recommended.limit_refusals_per_minute.into()),
            ttl_ms: Bounded::clamped(ttl.value()),
            entries_max: Bounded::clamped(recommended.entries_max.into()),
        }
    }
}

fn default_prefix_v4() -> Bounded<1, 32> {
    Bounded::clamped(Limit::PREFIX_V4_RECOMMENDED.into())
}

fn default_prefix_v6() -> Bounded<1, 64> {
    Bounded::clamped(Limit::PREFIX_V6_RECOMMENDED.into())
}

fn default_burst() -> Bounded<1, 3_600> {
    Bounded::clamped(Limit::BURST_RECOMMENDED.as_secs())
}
