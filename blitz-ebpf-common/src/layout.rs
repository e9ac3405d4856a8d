//! Layout of the maps: names, keys, values, sizes, verdicts, and the layout's version.
//!
//! Owns: every byte that the kernel programs and user space both read. A change of any key, value or
//! meaning here raises [`LAYOUT_VERSION`]. Does not own: creating and filling maps (`blitz-ctl`).
//!
//! All values are `repr(C)` of fixed-width integers in host byte order without padding, so that two
//! builds agree on every byte. Times are CLOCK_MONOTONIC, as `bpf_ktime_get_ns` reads it.

mod steering;

use crate::gcra::Rate;
use crate::packet::{Family, Words};

pub use steering::{QUEUES_MAX, SEATS, STEER_VERSION, Seat, Steer, Steered};

/// Version of this layout. Pinned maps of another version are refused, never reinterpreted.
pub const LAYOUT_VERSION: u32 = 2;
/// First word of [`Layout`]: "BLTZ".
pub const LAYOUT_MAGIC: u32 = 0x424c_545a;

/// Names of the maps, as in the object, as pinned, and as the kernel shows them (at most 15 octets).
pub mod maps {
    /// Array of one [`super::Layout`].
    pub const LAYOUT: &str = "LAYOUT";
    /// Array of one [`super::Settings`].
    pub const SETTINGS: &str = "SETTINGS";
    /// Array of 65,536 [`super::Ports`] by destination port.
    pub const PORTS: &str = "PORTS";
    /// Hash from [`super::ServiceKey`] to a service number (`u32`): services with an own address.
    pub const SERVICE_AT: &str = "SERVICE_AT";
    /// Array of [`super::Service`] by service number; number 0 is no service.
    pub const SERVICES: &str = "SERVICES";
    /// LPM trie of IPv4 prefixes to `ALLOW_*` flags (`u32`); data is the address in network order.
    pub const ALLOW4: &str = "ALLOW4";
    /// LPM trie of IPv6 prefixes to `ALLOW_*` flags (`u32`); data is the address in network order.
    pub const ALLOW6: &str = "ALLOW6";
    /// Hash from [`super::BlockKey`] to [`super::Block`]: the blocklist.
    pub const BLOCKED: &str = "BLOCKED";
    /// Hash from [`super::Prefix4`] to [`super::Deny`]. Both deny slots live here, told apart by the key.
    pub const DENY4: &str = "DENY4";
    /// Hash from [`super::Prefix6`] to [`super::Deny`], likewise.
    pub const DENY6: &str = "DENY6";
    /// Array of [`super::Lengths`] by `slot * 65,536 + first 16 bits of the address`.
    pub const DENY_INDEX4: &str = "DENY_INDEX4";
    /// Array of [`super::Lengths`] by `slot * 16,384 + `[`super::index6`].
    pub const DENY_INDEX6: &str = "DENY_INDEX6";
    /// Array of two [`super::Everywhere`], by deny slot.
    pub const DENY_LENGTHS: &str = "DENY_LENGTHS";
    /// Array of [`super::Limit`] by limit number; number 0 is no limit.
    pub const LIMITS: &str = "LIMITS";
    /// Array of [`crate::sources::Set`]: the buckets of sources. Mapped by pages (`BPF_F_MMAPABLE`), so
    /// that a set begins with a cache line.
    pub const SOURCES: &str = "SOURCES";
    /// Array of [`super::Buckets`] by limit number: the shared buckets of service limits.
    pub const SERVICE_WORDS: &str = "SERVICE_WORDS";
    /// Per-CPU array of [`super::Buckets`] by limit number: bucket time drawn and not yet spent.
    pub const SERVICE_CREDIT: &str = "SERVICE_CREDIT";
    /// Array of one [`super::Steer`].
    pub const STEER: &str = "STEER";
    /// Array of [`super::Seat`] by [`super::Seat::index`]: the workers that live.
    pub const WORKERS: &str = "WORKERS";
    /// Array of [`super::Seat`] by receive queue: whose AF_XDP socket is bound there.
    pub const QUEUES: &str = "QUEUES";
    /// AF_XDP sockets by receive queue. Each entry goes by itself when its socket is closed.
    pub const XSKS: &str = "XSKS";
    /// Array of one word of [`crate::gcra`]: the bucket of unknown versions of QUIC.
    pub const VERSIONS: &str = "VERSIONS";
    /// Per-CPU array of `u64` by [`super::Steered`].
    pub const STEERED: &str = "STEERED";
    /// Per-CPU array of [`super::Count`] by [`super::Verdict`].
    pub const VERDICTS: &str = "VERDICTS";
    /// Per-CPU array of [`super::RuleCount`] by rule number; number 0 is no rule.
    pub const RULES: &str = "RULES";
    /// Per-CPU array of `u64` by [`super::Fault`].
    pub const FAULTS: &str = "FAULTS";
    /// Array of [`super::RuleName`] by rule number. Only user space reads it.
    pub const RULE_NAMES: &str = "RULE_NAMES";
    /// Hash from [`super::Prefix6`] to [`super::Note`]: why a prefix is denied. Only user space reads it.
    pub const DENY_NOTES: &str = "DENY_NOTES";

    /// Every map, in the order of this list.
    pub const ALL: [&str; 28] = [
        LAYOUT,
        SETTINGS,
        PORTS,
        SERVICE_AT,
        SERVICES,
        ALLOW4,
        ALLOW6,
        BLOCKED,
        DENY4,
        DENY6,
        DENY_INDEX4,
        DENY_INDEX6,
        DENY_LENGTHS,
        LIMITS,
        SOURCES,
        SERVICE_WORDS,
        SERVICE_CREDIT,
        STEER,
        WORKERS,
        QUEUES,
        XSKS,
        VERSIONS,
        STEERED,
        VERDICTS,
        RULES,
        FAULTS,
        RULE_NAMES,
        DENY_NOTES,
    ];
}

/// Name of the XDP program in the object.
pub const PROGRAM: &str = "blitz_xdp";

/// Entries of [`maps::PORTS`].
pub const PORTS: u32 = 65_536;
/// Services, number 0 included.
pub const SERVICES_MAX: u32 = 1024;
/// Entries of [`maps::SERVICE_AT`].
pub const SERVICE_AT_MAX: u32 = 4096;
/// Prefixes in each allow trie.
pub const ALLOW_MAX: u32 = 4096;
/// Sources on the blocklist.
pub const BLOCKED_MAX: u32 = 65_536;
/// Entries of [`maps::DENY4`] and of [`maps::DENY6`], unless the loader sets another size: twice the
/// prefixes that may be in force, since a new list is written beside the old one.
pub const DENY_MAX: u32 = 2 * 131_072;
/// Buckets of the IPv4 deny index in one slot.
pub const INDEX4: u32 = 65_536;
/// Buckets of the IPv6 deny index in one slot.
pub const INDEX6: u32 = 16_384;
/// Limits, number 0 included.
pub const LIMITS_MAX: u32 = 256;
/// Sources whose buckets are kept, unless the loader sets another size; 32 octets each. See
/// [`crate::sources`] for what happens when there are more.
pub const SOURCES_MAX: u32 = 262_144;
/// Rules, number 0 included.
pub const RULES_MAX: u32 = 2048;
/// Entries of [`maps::DENY_NOTES`].
pub const NOTES_MAX: u32 = 65_536;
/// Length of the IPv6 prefix that stands for one source on the blocklist: one site's subnet.
pub const SOURCE_PREFIX6: u32 = 64;

/// What was loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// [`LAYOUT_MAGIC`].
    pub magic: u32,
    /// [`LAYOUT_VERSION`] of the loader.
    pub version: u32,
    /// Sources the limiter holds.
    pub sources_max: u32,
    /// Prefixes of each family that may be in force: half the entries of its hash.
    pub deny_max: u32,
}

/// What the program reads first. Each word is written whole; a packet sees either value of each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `SETTING_*` flags.
    pub flags: u32,
    /// The deny slot in force, 0 or 1.
    pub deny_slot: u32,
    /// Entries of [`maps::SOURCES`]; zero limits no source.
    pub source_sets: u32,
    /// Zero.
    pub reserved: u32,
    /// Secret of the hash over sources. It stays as long as the table does.
    pub seed: u64,
    /// How many datagrams of unknown versions of QUIC pass.
    pub versions: Rate,
}

/// The allow tries hold something.
pub const SETTING_ALLOW: u32 = 1;
/// The blocklist holds something.
pub const SETTING_BLOCK: u32 = 2;
/// The deny slot in force holds something.
pub const SETTING_DENY: u32 = 4;
/// Some deny entry has [`DENY_HOST`].
pub const SETTING_HOST: u32 = 8;
/// Nothing is dropped: every drop is counted as what it would have been and passes.
pub const SETTING_SHADOW: u32 = 16;
/// Datagrams of QUIC with a bad header or connection ID are dropped, not only counted.
pub const SETTING_DROP_BAD: u32 = 32;

/// Sources that pass the block, deny and source-limit steps of a service.
pub const ALLOW_SERVICE: u32 = 1;
/// Sources that host-wide deny entries do not touch.
pub const ALLOW_MANAGEMENT: u32 = 2;

/// The services of one port: a number for all addresses of a family, or zero, and [`PORT_EXACT`] when
/// [`maps::SERVICE_AT`] may have an entry for the port that comes first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Four 16-bit columns, the lowest first; see [`port_column`]. One word, so that it is picked by a
    /// shift: the verifier allows no address that is computed from the packet.
    pub packed: u64,
}

impl Ports {
    /// One column.
    #[inline(always)]
    pub const fn get(self, column: u32) -> u16 {
        (self.packed >> ((column & 3) * 16)) as u16
    }

    /// The same with one column set.
    pub const fn with(self, column: u32, service: u16) -> Self {
        let shift = (column & 3) * 16;
        Self { packed: self.packed & !(0xffff << shift) | ((service as u64) << shift) }
    }
}

/// See [`Ports`].
pub const PORT_EXACT: u16 = 0x8000;

/// The column of [`Ports`] for a family and protocol; `None` for other protocols than TCP and UDP.
#[inline(always)]
pub const fn port_column(family: Family, protocol: u8) -> Option<u32> {
    let family = match family {
        Family::V4 => 0,
        Family::V6 => 1,
    };
    match protocol {
        crate::packet::TCP => Some(family),
        crate::packet::UDP => Some(2 + family),
        _ => None,
    }
}

/// Key of [`maps::SERVICE_AT`]. Port 0 is the entry for later fragments to the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Destination address.
    pub address: Words,
    /// Destination port, host order.
    pub port: u16,
    /// IP protocol.
    pub protocol: u16,
}

/// What applies to the packets of a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Rule that counts what passes.
    pub rule: u32,
    /// Limit per source, or 0.
    pub source_limit: u32,
    /// Limit of the service as a whole, or 0.
    pub service_limit: u32,
    /// `SERVICE_*` flags.
    pub flags: u32,
}

/// What comes over UDP is QUIC, for workers of the gateway.
pub const SERVICE_QUIC: u32 = 1;

/// One source as a limit sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey {
    /// The first 64 bits of an IPv6 address, or an IPv4 address, masked.
    pub prefix: u64,
    /// 4 or 6.
    pub family: u32,
    /// Number of the limit that the bucket belongs to.
    pub limit: u32,
}

impl SourceKey {
    /// The key of `source` under `limit`, with the bits outside the masks cleared.
    #[inline(always)]
    pub const fn new(family: Family, source: &Words, mask4: u32, mask6: u64, limit: u32) -> Self {
        match family {
            Family::V4 => Self { prefix: (source[3] & mask4) as u64, family: 4, limit },
            Family::V6 => {
                let prefix = ((source[0] as u64) << 32) | source[1] as u64;
                Self { prefix: prefix & mask6, family: 6, limit }
            }
        }
    }
}

/// One source as the blocklist sees it: an IPv4 address, or the [`SOURCE_PREFIX6`] of an IPv6 address.
///
/// One word, since the kernel compares and hashes keys of eight octets fastest. An IPv4 address stands
/// below 32 ones: as an IPv6 prefix that is multicast, which is never a source (RFC 4291 section 2.7).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey {
    /// The first 64 bits of the IPv6 address; or 32 ones and the IPv4 address.
    pub packed: u64,
}

impl BlockKey {
    /// The key of `source`.
    #[inline(always)]
    pub const fn new(family: Family, source: &Words) -> Self {
        match family {
            Family::V4 => Self { packed: (u32::MAX as u64) << 32 | source[3] as u64 },
            Family::V6 => Self { packed: (source[0] as u64) << 32 | source[1] as u64 },
        }
    }

    /// The source: the IPv4 address, or the first address of the IPv6 prefix.
    pub const fn source(self) -> (Family, Words) {
        let (first, second) = ((self.packed >> 32) as u32, self.packed as u32);
        if first == u32::MAX {
            (Family::V4, crate::packet::words4(second))
        } else {
            (Family::V6, [first, second, 0, 0])
        }
    }
}

/// One blocked source.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// When the block ends, CLOCK_MONOTONIC nanoseconds; 0 is never.
    pub expires: u64,
    /// When it began.
    pub since: u64,
    /// Rule that counts it; names the reason.
    pub rule: u32,
    /// `DENY_SHADOW` or nothing.
    pub flags: u32,
}

/// An IPv4 prefix in a deny slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix4 {
    /// Network address, host order, host bits zero.
    pub address: u32,
    /// Prefix length, 0 to 32.
    pub length: u16,
    /// The deny slot, 0 or 1.
    pub slot: u16,
}

/// An IPv6 prefix in a deny slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix6 {
    /// Network address, host bits zero.
    pub address: Words,
    /// Prefix length, 0 to 128.
    pub length: u16,
    /// The deny slot, 0 or 1; 0 in [`maps::DENY_NOTES`].
    pub slot: u16,
}

impl Prefix4 {
    /// The prefix of `length` that holds `address`, in `slot`.
    #[inline(always)]
    pub const fn of(address: u32, length: u32, slot: u32) -> Self {
        let length = if length > 32 { 32 } else { length };
        Self { address: address & mask(length), length: length as u16, slot: slot as u16 }
    }
}

impl Prefix6 {
    /// The prefix of `length` that holds `address`, in `slot`.
    #[inline(always)]
    pub const fn of(address: &Words, length: u32, slot: u32) -> Self {
        let length = if length > 128 { 128 } else { length };
        let address = [
            address[0] & mask(length),
            address[1] & mask(length.saturating_sub(32)),
            address[2] & mask(length.saturating_sub(64)),
            address[3] & mask(length.saturating_sub(96)),
        ];
        Self { address, length: length as u16, slot: slot as u16 }
    }
}

/// The first `length` bits of a word; more than 32 count as 32.
#[inline(always)]
const fn mask(length: u32) -> u32 {
    if length >= 32 { u32::MAX } else { !(u32::MAX >> length) }
}

/// One deny entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deny {
    /// When the entry ends, CLOCK_MONOTONIC nanoseconds; 0 is never.
    pub expires: u64,
    /// Rule that counts it.
    pub rule: u32,
    /// `DENY_*` flags.
    pub flags: u32,
}

/// The entry covers everything that comes to the host, not only services.
pub const DENY_HOST: u32 = 1;
/// Count what the entry would drop, and go on.
pub const DENY_SHADOW: u32 = 2;
/// The entry came from a configuration file, which replaces it as a whole.
pub const DENY_CONFIGURED: u32 = 4;

/// Lengths in a [`Lengths`].
pub const LENGTHS_MAX: usize = 8;
/// Lengths in an [`Everywhere`], of one family.
pub const EVERYWHERE_MAX: usize = 40;
/// Shortest IPv4 prefix that the index knows; shorter ones are in [`Everywhere`].
pub const PIVOT4: u32 = 16;
/// Shortest IPv6 prefix that the index knows; shorter ones are in [`Everywhere`].
pub const PIVOT6: u32 = 32;

/// The prefix lengths that occur below one bucket of a deny index, the most frequent first, one octet
/// each from the lowest on: the length plus one, and zero at the end. Most sources that no entry covers
/// meet a zero at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// The octets.
    pub packed: u64,
}

/// The prefix lengths that are tried for every source of a family: those shorter than the index's
/// pivot, and those that found no room in some [`Lengths`]. Packed like those, first word first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Everywhere {
    /// Lengths of IPv4 prefixes.
    pub v4: [u64; EVERYWHERE_MAX / 8],
    /// Lengths of IPv6 prefixes.
    pub v6: [u64; EVERYWHERE_MAX / 8],
}

/// Bucket of the IPv4 deny index.
#[inline(always)]
pub const fn index4(slot: u32, address: u32) -> u32 {
    (slot & 1) * INDEX4 + (address >> 16)
}

/// Bucket of the IPv6 deny index: the first 32 bits folded to 14. Two networks may share a bucket; they
/// then try each other's lengths, which costs time and decides nothing.
#[inline(always)]
pub const fn index6(slot: u32, first: u32) -> u32 {
    // Fibonacci hashing: the multiplier is 2^32 divided by the golden ratio.
    (slot & 1) * INDEX6 + (first.wrapping_mul(0x9e37_79b9) >> 18)
}

/// A limit on packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Rates by [`Dimension`].
    pub rates: [Rate; 3],
    /// Bucket time a CPU draws at once from the shared bucket of a service limit. With `n` CPUs at most
    /// `n` times this is let through beyond the rate, once.
    pub quantum: u64,
    /// Mask of the first 64 bits of IPv6 sources.
    pub mask6: u64,
    /// Mask of IPv4 sources.
    pub mask4: u32,
    /// Rule that counts what is over the limit.
    pub rule: u32,
    /// `LIMIT_*` flags.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// Count what is over the limit, and go on.
pub const LIMIT_SHADOW: u32 = 1;

/// What a limit counts.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// Packets.
    Packets = 0,
    /// Octets of the frame, from the Ethernet header on, without the frame check sequence.
    Bytes = 1,
    /// TCP segments with SYN and without ACK.
    Syns = 2,
}

impl Dimension {
    /// In the order in which they are asked.
    pub const ALL: [Self; 3] = [Self::Packets, Self::Bytes, Self::Syns];

    /// The element of this dimension. Constant indices only: no bounds check is left that could panic,
    /// which the verifier would refuse.
    #[inline(always)]
    pub const fn of<T>(self, three: &[T; 3]) -> &T {
        match self {
            Self::Packets => &three[0],
            Self::Bytes => &three[1],
            Self::Syns => &three[2],
        }
    }

    /// The element of this dimension, to change it.
    #[inline(always)]
    pub const fn of_mut<T>(self, three: &mut [T; 3]) -> &mut T {
        match self {
            Self::Packets => &mut three[0],
            Self::Bytes => &mut three[1],
            Self::Syns => &mut three[2],
        }
    }
}

/// The words of a limit, by [`Dimension`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buckets {
    /// Words of [`crate::gcra`].
    pub words: [u64; 3],
}

/// Packets and octets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Octets, as in [`Dimension::Bytes`].
    pub bytes: u64,
}

/// What a rule did.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCount {
    /// What it decided.
    pub decided: Count,
    /// What it would have dropped without `shadow`.
    pub shadow: Count,
}

/// The name of a rule, for people: `limit:per_source`, `deny:config`, `service:edge`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleName {
    /// UTF-8, filled up with zeros. All zero: the number is free.
    pub text: [u8; RULE_NAME_MAX],
}

/// Octets of a [`RuleName`].
pub const RULE_NAME_MAX: usize = 64;

/// Why a prefix is denied.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// When it was added, seconds since the Unix epoch.
    pub added: u64,
    /// UTF-8, filled up with zeros.
    pub reason: [u8; NOTE_MAX],
}

/// Octets of the reason in a [`Note`].
pub const NOTE_MAX: usize = 120;

/// What happened to a packet. Each packet gets exactly one.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Not IP, or cut short, or beyond the parser's bounds.
    PassNotUnderstood = 0,
    /// For no configured service.
    PassNoService = 1,
    /// To a service.
    PassService = 2,
    /// To a service, from an allowed source.
    PassAllowed = 3,
    /// To the AF_XDP socket of its receive queue.
    Redirected = 4,
    /// The source is in a deny prefix.
    DropDenied = 5,
    /// The source is on the blocklist.
    DropBlocked = 6,
    /// Over the source's packet rate.
    DropSourcePackets = 7,
    /// Over the source's octet rate.
    DropSourceBytes = 8,
    /// Over the source's rate of new connections.
    DropSourceSyns = 9,
    /// Over the service's packet rate.
    DropServicePackets = 10,
    /// Over the service's octet rate.
    DropServiceBytes = 11,
    /// Over the service's rate of new connections.
    DropServiceSyns = 12,
    /// No datagram of QUIC that anybody could want; [`Steered`] says why.
    DropQuic = 13,
}

impl Verdict {
    /// Every verdict, by its number.
    pub const ALL: [Self; 14] = [
        Self::PassNotUnderstood,
        Self::PassNoService,
        Self::PassService,
        Self::PassAllowed,
        Self::Redirected,
        Self::DropDenied,
        Self::DropBlocked,
        Self::DropSourcePackets,
        Self::DropSourceBytes,
        Self::DropSourceSyns,
        Self::DropServicePackets,
        Self::DropServiceBytes,
        Self::DropServiceSyns,
        Self::DropQuic,
    ];

    /// The value of the metric label `verdict`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::PassNotUnderstood => "pass_not_understood",
            Self::PassNoService => "pass_no_service",
            Self::PassService => "pass_service",
            Self::PassAllowed => "pass_allowed",
            Self::Redirected => "redirected",
            Self::DropDenied => "drop_denied",
            Self::DropBlocked => "drop_blocked",
            Self::DropSourcePackets => "drop_source_packets",
            Self::DropSourceBytes => "drop_source_bytes",
            Self::DropSourceSyns => "drop_source_syns",
            Self::DropServicePackets => "drop_service_packets",
            Self::DropServiceBytes => "drop_service_bytes",
            Self::DropServiceSyns => "drop_service_syns",
            Self::DropQuic => "drop_quic",
        }
    }

    /// Whether the packet ends here.
    #[inline(always)]
    pub const fn drops(self) -> bool {
        self as u32 >= Self::DropDenied as u32
    }
}

/// Conditions under which a step could not do its work. Each has its direction in
/// [`crate::decide::FAIL_DIRECTIONS`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// A map entry that must exist does not.
    NoEntry = 0,
    /// A new source took the place of one that had not yet paid back what it took; see
    /// [`crate::sources`].
    SourcesFull = 1,
    /// [`crate::gcra::take`] ran out of tries.
    Contended = 2,
    /// A worker owns the queue, and its socket is not there.
    NoSocket = 3,
}

impl Fault {
    /// Every fault, by its number.
    pub const ALL: [Self; 4] = [Self::NoEntry, Self::SourcesFull, Self::Contended, Self::NoSocket];

    /// The value of the metric label `fault`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoEntry => "no_entry",
            Self::SourcesFull => "sources_full",
            Self::Contended => "contended",
            Self::NoSocket => "no_socket",
        }
    }
}
