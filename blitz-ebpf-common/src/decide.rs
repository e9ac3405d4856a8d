//! The decision: from a frame to a verdict, over whatever holds the tables.
//!
//! Owns: the order of the steps, what each reads, and the direction in which each fails. Does not own:
//! map access ([`Tables`] is implemented over BPF maps in `blitz-ebpf` and over hash maps in
//! `blitz-ctl`), or counting: the caller counts one [`Decision`] per packet.

pub mod quic;

use core::ops::Deref;

use self::quic::Found;
use crate::gcra::{self, Take, Word};
use crate::layout::{
    ALLOW_MANAGEMENT, ALLOW_SERVICE, Block, BlockKey, Buckets, DENY_HOST, DENY_SHADOW, Deny, Dimension,
    EVERYWHERE_MAX, Fault, LENGTHS_MAX, LIMIT_SHADOW, Lengths, Limit, PORT_EXACT, Ports, Prefix4, Prefix6,
    SERVICE_QUIC, SETTING_ALLOW, SETTING_BLOCK, SETTING_DENY, SETTING_HOST, SETTING_SHADOW, Seat, Service,
    ServiceKey, Settings, SourceKey, Steer, Verdict, index4, index6, port_column,
};
use crate::packet::{Bytes, Family, Packet, TCP, UDP, Words, parse};
use crate::sources::{self, Set};

/// Which way each step fails, and why. `docs/xdp.md` prints this table and the fixtures test it.
pub const FAIL_DIRECTIONS: [(&str, &str, &str); 16] = [
    (
        "parse",
        "the frame is not IP, is cut short, or has more tags than are followed",
        "pass: the kernel's stack knows more protocols than this program, and refuses what is broken",
    ),
    (
        "parse",
        "the transport header is behind more extension headers than are followed, or in a later fragment",
        "go on by the address: it counts for the services there, since the kernel's stack would deliver it",
    ),
    (
        "service",
        "the address, port and protocol belong to no service",
        "pass, untouched: a stage in front of a web server must not cut off ssh",
    ),
    ("allow", "the trie has no entry", "go on: not allowed is not denied"),
    (
        "block",
        "the entry has expired and nobody has removed it yet",
        "go on: a block ends on time without the daemon",
    ),
    ("deny", "the entry has expired and nobody has removed it yet", "go on, as for blocks"),
    (
        "QUIC",
        "the datagram is a fragment, or behind more extension headers than are followed",
        "go on to the kernel's stack, which puts fragments together",
    ),
    (
        "QUIC",
        "the header is cut, or a connection ID has a wrong tag",
        "go on, unless the policy is to drop it: a mistake costs filtering first, and a flood meets the limits",
    ),
    (
        "QUIC",
        "the policy is to drop it, and nobody has stood by the keys for a minute",
        "go on: a gateway may have been started with other keys, and the daemon is not there to say so",
    ),
    (
        "QUIC",
        "a version that is not spoken here, over its rate",
        "drop: an answer is owed to few, and a flood would have as many",
    ),
    (
        "source limit",
        "all four places of the source's set are taken by sources in debt",
        "the one with the least debt is forgotten, counted as `sources_full`: strangers are limited, not refused",
    ),
    (
        "any limit",
        "other CPUs change the word eight times in a row",
        "over the limit, counted as `contended`: only a flood does that",
    ),
    (
        "steer",
        "nobody has said how to read connection IDs, or an entry is half written",
        "pass: the kernel's stack steers by its bank of sockets",
    ),
    (
        "steer",
        "the connection ID names a worker that nobody is",
        "pass, counted as `unknown_worker`: the worker that took its place answers with a reset",
    ),
    (
        "steer",
        "a worker owns the queue, and its socket is gone",
        "pass, counted as `no_socket`: the worker's other socket, or its successor's, gets it",
    ),
    ("any step", "a map entry that must exist does not", "go on without it, counted as `no_entry`"),
];

/// The tables of the stage.
pub trait Tables {
    /// A bucket word as several CPUs share it.
    type Word: Word;
    /// The three words of a limit, by [`Dimension`].
    type Words: Deref<Target = [Self::Word; 3]>;
    /// A set of sources.
    type Set: Deref<Target = Set<Self::Word>>;

    /// What holds for all packets. A missing entry is all zero.
    fn settings(&self) -> Settings;
    /// The services of a destination port.
    fn ports(&self, port: u16) -> Option<Ports>;
    /// The number of the service with its own address.
    fn service_at(&self, key: &ServiceKey) -> Option<u32>;
    /// A service by its number.
    fn service(&self, number: u32) -> Option<Service>;
    /// The `ALLOW_*` flags of the longest allow prefix that holds `source`, or 0.
    fn allowed(&self, family: Family, source: &Words) -> u32;
    /// The blocklist.
    fn blocked(&self, key: &BlockKey) -> Option<Block>;
    /// A bucket of the IPv4 deny index.
    fn lengths4(&self, bucket: u32) -> Option<Lengths>;
    /// A bucket of the IPv6 deny index.
    fn lengths6(&self, bucket: u32) -> Option<Lengths>;
    /// One word of the IPv4 list of [`Everywhere`] of a deny slot.
    fn everywhere4(&self, slot: u32, word: usize) -> u64;
    /// One word of the IPv6 list of [`Everywhere`] of a deny slot.
    fn everywhere6(&self, slot: u32, word: usize) -> u64;
    /// A deny entry of IPv4.
    fn deny4(&self, prefix: &Prefix4) -> Option<Deny>;
    /// A deny entry of IPv6.
    fn deny6(&self, prefix: &Prefix6) -> Option<Deny>;
    /// A limit by its number.
    fn limit(&self, number: u32) -> Option<&Limit>;
    /// A set of the table of sources.
    fn sources(&self, set: u32) -> Option<Self::Set>;
    /// The words of a service limit's shared buckets.
    fn shared(&self, limit: u32) -> Option<Self::Words>;
    /// What this CPU has drawn from a service limit's shared buckets and not yet spent.
    fn credit(&self, limit: u32) -> Option<Buckets>;
    /// Stores one word of the credit.
    fn set_credit(&self, limit: u32, dimension: Dimension, value: u64);
    /// How connection IDs are read.
    fn steer(&self) -> Option<&Steer>;
    /// Who lives at a place of [`crate::layout::maps::WORKERS`].
    fn worker(&self, place: u32) -> Seat;
    /// Who owns the receive queue of this packet.
    fn queue(&self) -> Seat;
    /// The bucket of unknown versions of QUIC.
    fn versions(&self) -> Option<&Self::Word>;
    /// Something was found out about a datagram of QUIC: the number of a [`crate::layout::Steered`].
    fn steered(&self, reason: u32);
    /// [`quic::examine`]. In the kernel it is a function of its own, at which the verifier looks once.
    fn examine<B: Bytes + ?Sized>(&self, frame: &B, udp_at: usize, length: u32) -> Found;
    /// CLOCK_MONOTONIC in nanoseconds. It may stand still for a tick of the kernel (1 to 10 ms): every
    /// bucket is far deeper, and a rate is kept all the same, since words hold absolute times.
    fn now(&self) -> u64;
    /// A rule in `shadow` would have dropped the packet.
    fn shadow(&self, rule: u32);
    /// A step could not do its work.
    fn fault(&self, fault: Fault);
}

/// What happens to a packet and which rule says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What happens.
    pub verdict: Verdict,
    /// The rule that decided; 0 for none.
    pub rule: u32,
}

impl Decision {
    #[inline(always)]
    const fn new(verdict: Verdict, rule: u32) -> Self {
        Self { verdict, rule }
    }
}

/// Decides about one frame of `length` octets.
#[inline(always)]
pub fn decide<B: Bytes + ?Sized, T: Tables>(frame: &B, length: u32, tables: &T) -> Decision {
    match parse(frame) {
        Some(packet) => decide_packet(frame, &packet, length, tables),
        None => Decision::new(Verdict::PassNotUnderstood, 0),
    }
}

/// Decides about a packet, whose frame has `length` octets.
#[inline(always)]
pub fn decide_packet<B: Bytes + ?Sized, T: Tables>(
    frame: &B,
    packet: &Packet,
    length: u32,
    tables: &T,
) -> Decision {
    let settings = tables.settings();
    let dry = settings.flags & SETTING_SHADOW != 0;
    let number = find_service(packet, tables);
    let for_service = number != 0;
    // What is for no service meets host-wide deny entries only, and never from a management address.
    let (exempt, denies, needed) = if for_service {
        (ALLOW_SERVICE, SETTING_DENY, 0)
    } else if settings.flags & SETTING_HOST == 0 {
        return Decision::new(Verdict::PassNoService, 0);
    } else {
        (ALLOW_MANAGEMENT, SETTING_HOST, DENY_HOST)
    };
    let allowed =
        settings.flags & SETTING_ALLOW != 0 && tables.allowed(packet.family, &packet.source) & exempt != 0;
    if !allowed {
        if for_service
            && settings.flags & SETTING_BLOCK != 0
            && let Some(rule) = blocked(packet, dry, tables)
        {
            return Decision::new(Verdict::DropBlocked, rule);
        }
        if settings.flags & denies != 0
            && let Some(rule) = denied(packet, settings.deny_slot, needed, dry, tables)
        {
            return Decision::new(Verdict::DropDenied, rule);
        }
    }
    if !for_service {
        return Decision::new(Verdict::PassNoService, 0);
    }
    // Only now: a packet that a list drops does not pay for this lookup.
    let Some(service) = tables.service(number) else {
        tables.fault(Fault::NoEntry);
        return Decision::new(Verdict::PassNoService, 0);
    };
    let mut steered = None;
    if service.flags & SERVICE_QUIC != 0 && (packet.protocol == UDP || packet.hidden) {
        let found = tables.examine(frame, quic::udp_at(packet), length);
        if found.drops() {
            tables.steered(found.reason());
            if !dry {
                return Decision::new(Verdict::DropQuic, 0);
            }
            tables.shadow(service.rule);
        } else {
            steered = Some(found);
        }
    }
    if !allowed
        && service.source_limit != 0
        && let Some(over) = source_limit(packet, length, service.source_limit, dry, tables)
    {
        return over;
    }
    if service.service_limit != 0
        && let Some(over) = service_limit(packet, length, service.service_limit, dry, tables)
    {
        return over;
    }
    // Counted here: a datagram that a limit has dropped went nowhere.
    if let Some(found) = steered {
        tables.steered(found.reason());
        if found.is_for_socket() {
            return Decision::new(Verdict::Redirected, service.rule);
        }
    }
    Decision::new(if allowed { Verdict::PassAllowed } else { Verdict::PassService }, service.rule)
}

/// The number of the service a packet is for, or 0. Later fragments have port 0, under which every address
/// is listed that has a service of that protocol. What hides its protocol is for a service of either.
#[inline(always)]
fn find_service<T: Tables>(packet: &Packet, tables: &T) -> u32 {
    let number = service_of(packet, if packet.hidden { TCP } else { packet.protocol }, tables);
    if number == 0 && packet.hidden { service_of(packet, UDP, tables) } else { number }
}

/// The number of the service of `protocol` at the packet's destination, or 0.
#[inline(always)]
fn service_of<T: Tables>(packet: &Packet, protocol: u8, tables: &T) -> u32 {
    let Some(column) = port_column(packet.family, protocol) else { return 0 };
    let Some(ports) = tables.ports(packet.destination_port) else { return 0 };
    let listed = ports.get(column);
    if listed & PORT_EXACT != 0 {
        let key = ServiceKey {
            address: packet.destination,
            port: packet.destination_port,
            protocol: u16::from(protocol),
        };
        if let Some(exact) = tables.service_at(&key) {
            return exact;
        }
    }
    u32::from(listed & !PORT_EXACT)
}

/// The rule that has the source on the blocklist.
#[inline(always)]
fn blocked<T: Tables>(packet: &Packet, dry: bool, tables: &T) -> Option<u32> {
    let block = tables.blocked(&BlockKey::new(packet.family, &packet.source))?;
    if block.expires != 0 && tables.now() >= block.expires {
        return None;
    }
    if dry || block.flags & DENY_SHADOW != 0 {
        tables.shadow(block.rule);
        return None;
    }
    Some(block.rule)
}

/// The rule of a deny prefix in force that holds the source and has all flags of `needed`. When there are
/// several, the first in the index's order is the one that counts; one in `shadow` only counts.
#[inline(always)]
fn denied<T: Tables>(packet: &Packet, slot: u32, needed: u32, dry: bool, tables: &T) -> Option<u32> {
    let bucket = match packet.family {
        Family::V4 => tables.lengths4(index4(slot, packet.source[3])),
        Family::V6 => tables.lengths6(index6(slot, packet.source[0])),
    };
    if bucket.is_none() {
        tables.fault(Fault::NoEntry);
    }
    // The index's word first, then the words of the lengths that are tried for everybody.
    let mut listed = bucket.map_or(0, |lengths| lengths.packed);
    for word in 0..=EVERYWHERE_MAX / LENGTHS_MAX {
        for _ in 0..LENGTHS_MAX {
            if listed == 0 {
                break;
            }
            if let Some(rule) = denied_at(packet, slot, (listed & 0xff) as u32, needed, dry, tables) {
                return Some(rule);
            }
            listed >>= 8;
        }
        listed = match packet.family {
            Family::V4 => tables.everywhere4(slot, word),
            Family::V6 => tables.everywhere6(slot, word),
        };
        if listed == 0 {
            break;
        }
    }
    None
}

/// Looks at one prefix length, given as the length plus one.
#[inline(always)]
fn denied_at<T: Tables>(
    packet: &Packet,
    slot: u32,
    listed: u32,
    needed: u32,
    dry: bool,
    tables: &T,
) -> Option<u32> {
    let length = listed.wrapping_sub(1);
    let entry = match packet.family {
        Family::V4 => tables.deny4(&Prefix4::of(packet.source[3], length, slot)),
        Family::V6 => tables.deny6(&Prefix6::of(&packet.source, length, slot)),
    }?;
    if entry.flags & needed != needed || (entry.expires != 0 && tables.now() >= entry.expires) {
        return None;
    }
    if dry || entry.flags & DENY_SHADOW != 0 {
        tables.shadow(entry.rule);
        return None;
    }
    Some(entry.rule)
}

/// Tokens of `packet` in one dimension; `None` when the limit does not ask about it.
#[inline(always)]
fn tokens(limit: &Limit, dimension: Dimension, packet: &Packet, length: u32) -> Option<u32> {
    if !dimension.of(&limit.rates).limits() {
        return None;
    }
    match dimension {
        Dimension::Packets => Some(1),
        Dimension::Bytes => Some(length),
        Dimension::Syns => packet.opens().then_some(1),
    }
}

/// What becomes of a packet over `limit`: `verdict`, or it goes on, counted, in shadow.
#[inline(always)]
fn over<T: Tables>(limit: &Limit, verdict: Verdict, dry: bool, tables: &T) -> Option<Decision> {
    if dry || limit.flags & LIMIT_SHADOW != 0 {
        tables.shadow(limit.rule);
        return None;
    }
    Some(Decision::new(verdict, limit.rule))
}

/// The buckets of the packet's source. A packet that one dimension refuses has been counted by the
/// dimensions before it; the next dimension is not asked.
#[inline(always)]
fn source_limit<T: Tables>(
    packet: &Packet,
    length: u32,
    number: u32,
    dry: bool,
    tables: &T,
) -> Option<Decision> {
    let Some(limit) = tables.limit(number) else {
        tables.fault(Fault::NoEntry);
        return None;
    };
    let key = SourceKey::new(packet.family, &packet.source, limit.mask4, limit.mask6, number);
    // Read here and not with the flags: packets that are not limited keep their registers.
    let settings = tables.settings();
    let place = sources::place(&key, settings.source_sets, settings.seed);
    let Some(set) = tables.sources(place.set) else {
        tables.fault(Fault::NoEntry);
        return None;
    };
    let now = gcra::units(tables.now());
    let found = sources::find(&*set, place.tag, now);
    if found.forgot {
        tables.fault(Fault::SourcesFull);
    }
    for dimension in Dimension::ALL {
        let Some(tokens) = tokens(limit, dimension, packet, length) else { continue };
        let rate = dimension.of(&limit.rates);
        match gcra::take(*dimension.of(&found.words), now, rate.cost(tokens), rate.depth) {
            Take::Granted => continue,
            Take::Refused { .. } => {}
            Take::Contended => tables.fault(Fault::Contended),
        }
        let verdict = match dimension {
            Dimension::Packets => Verdict::DropSourcePackets,
            Dimension::Bytes => Verdict::DropSourceBytes,
            Dimension::Syns => Verdict::DropSourceSyns,
        };
        return over(limit, verdict, dry, tables);
    }
    None
}

/// The buckets of a service. Each CPU spends bucket time that it has drawn from the shared bucket, a
/// [`Limit::quantum`] at a time, so that the shared word is touched once in many packets.
#[inline(always)]
fn service_limit<T: Tables>(
    packet: &Packet,
    length: u32,
    number: u32,
    dry: bool,
    tables: &T,
) -> Option<Decision> {
    let (Some(limit), Some(words), Some(credit)) =
        (tables.limit(number), tables.shared(number), tables.credit(number))
    else {
        tables.fault(Fault::NoEntry);
        return None;
    };
    for dimension in Dimension::ALL {
        let Some(tokens) = tokens(limit, dimension, packet, length) else { continue };
        let rate = dimension.of(&limit.rates);
        let cost = rate.cost(tokens);
        let left = *dimension.of(&credit.words);
        if left >= cost {
            tables.set_credit(number, dimension, left - cost);
            continue;
        }
        // What is left is spent first, so that a quantum below one packet's cost is never stuck.
        let draw = if limit.quantum > cost { limit.quantum } else { cost };
        match gcra::take(dimension.of(&words), gcra::units(tables.now()), draw, rate.depth) {
            Take::Granted => {
                tables.set_credit(number, dimension, left + draw - cost);
                continue;
            }
            Take::Refused { .. } => {}
            Take::Contended => tables.fault(Fault::Contended),
        }
        let verdict = match dimension {
            Dimension::Packets => Verdict::DropServicePackets,
            Dimension::Bytes => Verdict::DropServiceBytes,
            Dimension::Syns => Verdict::DropServiceSyns,
        };
        return over(limit, verdict, dry, tables);
    }
    None
}
