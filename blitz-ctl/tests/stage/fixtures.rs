//! One line for each way a packet can go.

use blitz_ebpf_common::layout::Steered;
use blitz_ebpf_common::layout::Verdict::{self, *};

use super::packets::{
    ACK, AUTHENTICATION, DESTINATION_OPTIONS, FRAGMENT, Frame, HOP_BY_HOP, ROUTING, RST, SYN,
};
use super::quic;

/// A packet, and what must become of it.
pub(crate) struct Fixture {
    /// What it shows.
    pub(crate) about: &'static str,
    /// The frame.
    pub(crate) frame: Vec<u8>,
    /// How often it is sent before it counts.
    pub(crate) before: u32,
    /// The verdict.
    pub(crate) verdict: Verdict,
    /// The rule that counts it; empty for none.
    pub(crate) rule: &'static str,
    /// The rule in shadow that would have dropped it; empty for none.
    pub(crate) shadow: &'static str,
    /// What was found out about a datagram of QUIC; `None` for everything else.
    pub(crate) steered: Option<Steered>,
}

pub(crate) fn f(
    about: &'static str,
    frame: impl Into<Built>,
    verdict: Verdict,
    rule: &'static str,
) -> Fixture {
    Fixture { about, frame: frame.into().0, before: 0, verdict, rule, shadow: "", steered: None }
}

impl Fixture {
    pub(crate) fn steered(mut self, found: Steered) -> Self {
        self.steered = Some(found);
        self
    }

    pub(crate) fn after(mut self, before: u32) -> Self {
        self.before = before;
        self
    }

    fn shadow(mut self, rule: &'static str) -> Self {
        self.shadow = rule;
        self
    }
}

/// A frame, built or cut or changed.
pub(crate) struct Built(Vec<u8>);

impl From<Frame> for Built {
    fn from(frame: Frame) -> Self {
        Self(frame.build())
    }
}

impl From<Vec<u8>> for Built {
    fn from(frame: Vec<u8>) -> Self {
        Self(frame)
    }
}

const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;

/// The first octets of a frame that is built.
fn short(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.truncate(length);
    frame
}

/// Every fixture. Sources are different wherever a bucket is asked.
pub(crate) fn all() -> Vec<Fixture> {
    [parsing(), services(), lists(), hosts(), limits(), quic::fixtures()].into_iter().flatten().collect()
}

fn parsing() -> Vec<Fixture> {
    let tcp = || Frame::tcp("172.16.0.1", "10.9.9.9", 443);
    let udp = || Frame::udp("172.16.0.1", "10.9.9.9", 53);
    let tcp6 = || Frame::tcp("2001:db8:5::1", "2001:db8:9::9", 443);
    let udp6 = || Frame::udp("2001:db8:5::1", "2001:db8:9::9", 53);
    let edge = "service:edge";
    let edge6 = "service:edge6";
    let raw = |ethertype: u16, content: &[u8]| {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend(ethertype.to_be_bytes());
        frame.extend(content);
        frame
    };
    vec![
        f("TCP over IPv4 to a service", tcp(), PassService, edge),
        f("TCP over IPv6 to a service", tcp6(), PassService, edge6),
        f("UDP over IPv4 to a service", udp(), PassService, "service:dns"),
        f("UDP over IPv6 to a service", udp6(), PassService, "service:dns"),
        f("with payload", tcp().payload(1000), PassService, edge),
        f("with a full frame of payload", tcp().payload(1446), PassService, edge),
        f("one VLAN tag", tcp().vlan(VLAN), PassService, edge),
        f("two VLAN tags", tcp().vlan(QINQ).vlan(VLAN), PassService, edge),
        f("two VLAN tags of one kind", tcp().vlan(VLAN).vlan(VLAN), PassService, edge),
        f("one service tag", tcp().vlan(QINQ), PassService, edge),
        f("three VLAN tags are not followed", tcp().vlan(QINQ).vlan(VLAN).vlan(VLAN), PassNotUnderstood, ""),
        f("VLAN tag before IPv6", tcp6().vlan(VLAN), PassService, edge6),
        f("cut within the VLAN tag", tcp().vlan(VLAN).cut(15), PassNotUnderstood, ""),
        f("an unknown ethertype", raw(0x88cc, &[0; 46]), PassNotUnderstood, ""),
        f("ARP, without which nothing connects", raw(0x0806, &[0; 28]), PassNotUnderstood, ""),
        f("an 802.3 length instead of a type", raw(0x0040, &[0; 64]), PassNotUnderstood, ""),
        f("Ethernet header and nothing else", raw(0x0800, &[]), PassNotUnderstood, ""),
        f("IPv4 cut in its header", tcp().cut(33), PassNotUnderstood, ""),
        f("IPv4 cut before TCP", tcp().cut(34), PassNotUnderstood, ""),
        f("IPv4 with 4 octets of options", tcp().options(1), PassService, edge),
        f("IPv4 with 40 octets of options", tcp().options(10), PassService, edge),
        f("UDP behind IPv4 options", udp().options(3), PassService, "service:dns"),
        f("IPv4 header length below 20", tcp().with(14, 0x44), PassNotUnderstood, ""),
        f("IPv4 header length of zero", tcp().with(14, 0x40), PassNotUnderstood, ""),
        f("IPv4 header longer than the frame", tcp().with(14, 0x4f), PassNotUnderstood, ""),
        f("IPv4 with the version of IPv6", tcp().with(14, 0x65), PassNotUnderstood, ""),
        f("IPv4 with version 0", tcp().with(14, 0x05), PassNotUnderstood, ""),
        f("IPv4 total length below its header", tcp().with(17, 19), PassNotUnderstood, ""),
        f("IPv4 total length beyond the frame", tcp().with(16, 0xff), PassService, edge),
        f("Ethernet padding after IPv4", [tcp().build(), vec![0; 6]].concat(), PassService, edge),
        f("TCP cut in its ports", tcp().cut(37), PassNotUnderstood, ""),
        f("TCP cut before its flags", tcp().cut(46), PassNotUnderstood, ""),
        f("TCP cut one octet short", tcp().cut(53), PassNotUnderstood, ""),
        f("UDP cut one octet short", udp().cut(41), PassNotUnderstood, ""),
        f("IPv6 cut in its header", tcp6().cut(53), PassNotUnderstood, ""),
        f("IPv6 cut before TCP", tcp6().cut(54), PassNotUnderstood, ""),
        f("IPv6 with the version of IPv4", tcp6().with(14, 0x45), PassNotUnderstood, ""),
        f("IPv6 hop-by-hop options", tcp6().extension(HOP_BY_HOP, 6), PassService, edge6),
        f("IPv6 long hop-by-hop options", tcp6().extension(HOP_BY_HOP, 254), PassService, edge6),
        f("IPv6 routing header", tcp6().extension(ROUTING, 22), PassService, edge6),
        f("IPv6 destination options", tcp6().extension(DESTINATION_OPTIONS, 14), PassService, edge6),
        f("IPv6 authentication header", tcp6().extension(AUTHENTICATION, 22), PassService, edge6),
        f("IPv6 atomic fragment has its ports", tcp6().fragment(0, false), PassService, edge6),
        f(
            "IPv6 three extension headers",
            tcp6().extension(HOP_BY_HOP, 6).extension(ROUTING, 6).extension(DESTINATION_OPTIONS, 6),
            PassService,
            edge6,
        ),
        f(
            "IPv6 six extension headers",
            (0..6).fold(udp6(), |frame, _| frame.extension(DESTINATION_OPTIONS, 6)),
            PassService,
            "service:dns",
        ),
        f(
            "IPv6 seven extension headers hide a service of the address",
            (0..7).fold(udp6(), |frame, _| frame.extension(DESTINATION_OPTIONS, 6)),
            PassService,
            edge6,
        ),
        f(
            "IPv6 extension headers beyond 1023 octets hide a service of the address",
            (0..5).fold(udp6(), |frame, _| frame.extension(DESTINATION_OPTIONS, 254)),
            PassService,
            edge6,
        ),
        f(
            "IPv6 TCP that begins where its flags are not read any more",
            (0..3).fold(tcp6(), |frame, _| frame.extension(DESTINATION_OPTIONS, 318)),
            PassService,
            edge6,
        ),
        f(
            "IPv6 seven extension headers do not hide a denied source",
            (0..7).fold(Frame::tcp("2001:db8:dead::9", "2001:db8:1::1", 80), |frame, _| {
                frame.extension(DESTINATION_OPTIONS, 6)
            }),
            DropDenied,
            "deny:config",
        ),
        f(
            "IPv6 a denied source's TCP that begins where its flags are not read any more",
            (0..3).fold(Frame::tcp("2001:db8:dead::9", "2001:db8:1::1", 80), |frame, _| {
                frame.extension(DESTINATION_OPTIONS, 318)
            }),
            DropDenied,
            "deny:config",
        ),
        f(
            "IPv6 a denied source's later fragment that names another extension header",
            Frame::other("2001:db8:dead::9", "2001:db8:1::1", DESTINATION_OPTIONS).fragment(1448, false),
            DropDenied,
            "deny:config",
        ),
        f("IPv6 cut in an extension header", tcp6().extension(ROUTING, 22).cut(55), PassNotUnderstood, ""),
        f(
            "IPv6 cut behind an extension header",
            tcp6().extension(ROUTING, 22).cut(80),
            PassNotUnderstood,
            "",
        ),
        f("IPv6 cut in a fragment header", tcp6().fragment(0, true).cut(57), PassNotUnderstood, ""),
        f("IPv6 fragment header by hand", tcp6().extension(FRAGMENT, 6), PassService, edge6),
        f("IPv6 no next header", Frame::other("2001:db8:5::1", "2001:db8:9::9", 59), PassNoService, ""),
        f("TCP first fragment of IPv4 has ports", tcp().fragment(0, true), PassService, edge),
        f("UDP first fragment of IPv6 has ports", udp6().fragment(0, true), PassService, "service:dns"),
        f("a frame of zeros", vec![0; 60], PassNotUnderstood, ""),
        f("a frame of ones", vec![0xff; 60], PassNotUnderstood, ""),
        f("the smallest frame", vec![0; 14], PassNotUnderstood, ""),
    ]
}

fn services() -> Vec<Fixture> {
    let from = "172.16.1.1";
    let from6 = "2001:db8:5::2";
    vec![
        f("ssh is nobody's service and passes", Frame::tcp(from, "10.9.9.9", 22), PassNoService, ""),
        f("UDP to a port that is TCP's", Frame::udp(from, "10.9.9.9", 443), PassNoService, ""),
        f("TCP to a port that is UDP's", Frame::tcp(from, "10.9.9.9", 53), PassNoService, ""),
        f("ICMP", Frame::other(from, "10.9.9.9", 1), PassNoService, ""),
        f(
            "ICMPv6, neighbour discovery among it",
            Frame::other(from6, "2001:db8:9::9", 58),
            PassNoService,
            "",
        ),
        f("GRE", Frame::other(from, "10.9.9.9", 47), PassNoService, ""),
        f("ESP", Frame::other(from6, "2001:db8:9::9", 50), PassNoService, ""),
        f("port 0 is no service", Frame::tcp(from, "10.9.9.9", 0).flags(ACK), PassService, "service:edge"),
        f("a service's own address", Frame::udp(from, "10.0.0.2", 7777), PassService, "service:game"),
        f("another address than the service's", Frame::udp(from, "10.0.0.9", 7777), PassNoService, ""),
        f(
            "a service's own address, IPv6",
            Frame::udp(from6, "2001:db8:1::2", 7777),
            PassService,
            "service:game6",
        ),
        f("another address, IPv6", Frame::udp(from6, "2001:db8:1::9", 7777), PassNoService, ""),
        f(
            "an own address comes before all addresses",
            Frame::tcp(from, "10.0.0.3", 443),
            PassService,
            "service:own",
        ),
        f("all addresses beside an own one", Frame::tcp(from, "10.0.0.4", 443), PassService, "service:edge"),
        f("a listener's own address", Frame::tcp(from, "10.0.0.1", 80), PassService, "service:http"),
        f("the same port elsewhere", Frame::tcp(from, "10.0.0.5", 80), PassNoService, ""),
        f("IPv6 to a port of an IPv4 listener", Frame::tcp(from6, "2001:db8:9::9", 80), PassNoService, ""),
        f("IPv6 to an IPv6 listener", Frame::tcp(from6, "2001:db8:1::1", 80), PassService, "service:http6"),
        f(
            "an IPv4-mapped destination on the wire is looked up as IPv6",
            Frame::tcp(from6, "::ffff:10.0.0.4", 80),
            PassNoService,
            "",
        ),
        f(
            "a later fragment goes by its address",
            Frame::udp(from, "10.0.0.2", 7777).fragment(1480, false).payload(64),
            PassService,
            "service:game",
        ),
        f(
            "a later fragment to the first service of all addresses",
            Frame::udp(from, "10.9.9.9", 1).fragment(1480, true).payload(64),
            PassService,
            "service:quic",
        )
        .steered(Steered::Fragment),
        f(
            "a later fragment of IPv6",
            Frame::udp(from6, "2001:db8:1::2", 1).fragment(1448, false).payload(64),
            PassService,
            "service:game6",
        ),
        f(
            "a later fragment of another protocol",
            Frame::other(from, "10.0.0.2", 1).fragment(1480, false),
            PassNoService,
            "",
        ),
        f(
            "a later fragment needs no transport header",
            Frame::udp(from, "10.0.0.2", 7777).fragment(8, false).cut(36),
            PassService,
            "service:game",
        ),
    ]
}

fn lists() -> Vec<Fixture> {
    let to = "10.9.9.9";
    let to6 = "2001:db8:9::9";
    let web = |from| Frame::tcp(from, to, 443);
    let web6 = |from| Frame::tcp(from, to6, 443);
    let denied = "deny:config";
    vec![
        f("denied /24", web("192.0.2.1"), DropDenied, denied),
        f("denied /24, last address", web("192.0.2.255"), DropDenied, denied),
        f("beside a denied /24", web("192.0.3.1"), PassService, "service:edge"),
        f("before a denied /24", web("192.0.1.255"), PassService, "service:edge"),
        f("denied /32 inside a denied /24", web("192.0.2.77"), DropDenied, denied),
        f("denied /17 in a bucket with longer ones", web("192.0.200.1"), DropDenied, denied),
        f("denied /10, shorter than the index", web("100.127.255.255"), DropDenied, denied),
        f("beside a denied /10", web("100.128.0.1"), PassService, "service:edge"),
        f("denied UDP", Frame::udp("192.0.2.1", to, 53), DropDenied, denied),
        f("denied behind a VLAN tag", web("192.0.2.1").vlan(VLAN), DropDenied, denied),
        f("denied SYN", web("192.0.2.1").flags(SYN), DropDenied, denied),
        f(
            "denied later fragment",
            Frame::udp("192.0.2.1", "10.0.0.2", 7777).fragment(1480, false),
            DropDenied,
            denied,
        ),
        f("denied IPv6 /48", web6("2001:db8:dead:ffff::1"), DropDenied, denied),
        f("denied IPv6 /64 inside it", web6("2001:db8:dead:1::1"), DropDenied, denied),
        f("beside the IPv6 /48", web6("2001:db8:deae::1"), PassService, "service:edge6"),
        f("denied IPv6 /128", web6("2001:db8:beef::1"), DropDenied, denied),
        f("beside the IPv6 /128", web6("2001:db8:beef::2"), PassService, "service:edge6"),
        f("denied IPv6 /7, shorter than the index", web6("fd00::1"), DropDenied, denied),
        f("denied only towards services", Frame::tcp("192.0.2.1", to, 22), PassNoService, ""),
        f("denied in shadow", web("198.18.0.1"), PassService, "service:edge").shadow(denied),
        f("blocked for ever", web("192.168.7.1"), DropBlocked, "block:operator"),
        f("blocked until later", web("192.168.7.2"), DropBlocked, "block:framing"),
        f("a block that has ended", web("192.168.7.3"), PassService, "service:edge"),
        f("blocked in shadow", web("192.168.7.4"), PassService, "service:edge").shadow("block:limit"),
        f("beside a blocked source", web("192.168.7.5"), PassService, "service:edge"),
        f("blocked only towards services", Frame::tcp("192.168.7.1", to, 22), PassNoService, ""),
        f("blocked IPv6 source", web6("2001:db8:b:b::1"), DropBlocked, "block:limit"),
        f("an IPv6 block holds for the /64", web6("2001:db8:b:b:1:2:3:4"), DropBlocked, "block:limit"),
        f("beside the blocked /64", web6("2001:db8:b:c::1"), PassService, "service:edge6"),
        f("an ended block does not cover a denied source", web("192.0.2.9"), DropDenied, denied),
        f("allowed", web("198.51.100.1"), PassAllowed, "service:edge"),
        f("allowed and denied", web("198.51.100.3"), PassAllowed, "service:edge"),
        f("allowed and blocked", web("198.51.100.4"), PassAllowed, "service:edge"),
        f("allowed IPv6", web6("2001:db8:a::1"), PassAllowed, "service:edge6"),
        f("beside the allowed IPv6", web6("2001:db8:9::1"), PassService, "service:edge6"),
        f("allowed, to nobody's service", Frame::tcp("198.51.100.1", to, 22), PassNoService, ""),
        f("management is not allowed to services", web("198.51.100.17"), DropDenied, denied),
    ]
}

fn hosts() -> Vec<Fixture> {
    let denied = "deny:config";
    let (bad, bad6) = ("203.0.113.1", "2001:db8:cafe::1");
    vec![
        f("host-wide deny, to a service", Frame::tcp(bad, "10.9.9.9", 443), DropDenied, denied),
        f("host-wide deny, to ssh", Frame::tcp(bad, "10.9.9.9", 22), DropDenied, denied),
        f("host-wide deny, ICMP", Frame::other(bad, "10.9.9.9", 1), DropDenied, denied),
        f("host-wide deny, IPv6", Frame::tcp(bad6, "2001:db8:9::9", 22), DropDenied, denied),
        f("host-wide deny, ICMPv6", Frame::other(bad6, "2001:db8:9::9", 58), DropDenied, denied),
        f(
            "host-wide deny, later fragment",
            Frame::other(bad, "10.9.9.9", 1).fragment(1480, false),
            DropDenied,
            denied,
        ),
        f(
            "a management address keeps its ssh",
            Frame::tcp("203.0.113.129", "10.9.9.9", 22),
            PassNoService,
            "",
        ),
        f(
            "a management address is denied at services",
            Frame::tcp("203.0.113.129", "10.9.9.9", 443),
            DropDenied,
            denied,
        ),
        f(
            "a service-wide deny is not host-wide",
            Frame::other("192.0.2.1", "10.9.9.9", 1),
            PassNoService,
            "",
        ),
    ]
}

fn limits() -> Vec<Fixture> {
    let http = |from| Frame::tcp(from, "10.0.0.1", 80);
    let http6 = |from| Frame::tcp(from, "2001:db8:1::1", 80);
    let at = |from, port| Frame::tcp(from, "10.9.9.9", port);
    let full = |from| at(from, 8001).payload(970);
    vec![
        f("the last packet of a burst", http("172.20.0.1"), PassService, "service:http").after(2),
        f("the first packet beyond", http("172.20.0.2"), DropSourcePackets, "limit:packets").after(3),
        f("far beyond", http("172.20.0.3"), DropSourcePackets, "limit:packets").after(50),
        f("another source has its own bucket", http("172.20.0.4"), PassService, "service:http"),
        f("IPv6, the last of a burst", http6("2001:db8:20:1::1"), PassService, "service:http6").after(2),
        f("IPv6, beyond", http6("2001:db8:20:2::1"), DropSourcePackets, "limit:packets").after(3),
        f("the same /64 shares its bucket", http6("2001:db8:20:2::2"), DropSourcePackets, "limit:packets"),
        f("another /64 does not", http6("2001:db8:20:3::1"), PassService, "service:http6"),
        f("a limit by /24", at("172.21.0.1", 8007), PassService, "service:wide").after(2),
        f("the /24 shares its bucket", at("172.21.0.2", 8007), DropSourcePackets, "limit:wide"),
        f("another /24 does not", at("172.21.1.2", 8007), PassService, "service:wide"),
        f("octets within the burst", full("172.22.0.1"), PassService, "service:bytes").after(63),
        f("octets beyond", full("172.22.0.2"), DropSourceBytes, "limit:bytes").after(64),
        f(
            "a small packet fits where a large one did not",
            at("172.22.0.3", 8001),
            PassService,
            "service:bytes",
        ),
        f("SYNs within the burst", at("172.23.0.1", 8002).flags(SYN), PassService, "service:syns").after(1),
        f("SYNs beyond", at("172.23.0.2", 8002).flags(SYN), DropSourceSyns, "limit:syns").after(2),
        f(
            "SYN with other flags is a SYN",
            at("172.23.0.2", 8002).flags(SYN | 0xc0),
            DropSourceSyns,
            "limit:syns",
        ),
        f(
            "SYNs in first fragments that end before the flags, with an ACK as padding",
            at("172.23.0.4", 8002).flags(ACK).fragment(0, true).with(17, 28),
            DropSourceSyns,
            "limit:syns",
        )
        .after(2),
        f(
            "SYNs in first fragments that end before the flags, without padding",
            short(at("172.23.0.5", 8002).fragment(0, true).with(17, 28), 42),
            DropSourceSyns,
            "limit:syns",
        )
        .after(2),
        f(
            "a denied source's first fragment that ends before the flags",
            short(Frame::tcp("192.0.2.9", "10.0.0.1", 80).fragment(0, true).with(17, 28), 42),
            DropDenied,
            "deny:config",
        ),
        f("an ACK is no SYN", at("172.23.0.2", 8002).flags(ACK), PassService, "service:syns").after(9),
        f("SYN with ACK opens nothing", at("172.23.0.2", 8002).flags(SYN | ACK), PassService, "service:syns"),
        f("RST is no SYN", at("172.23.0.2", 8002).flags(RST), PassService, "service:syns"),
        f("a service's burst, from many", at("172.24.0.1", 8003), PassService, "service:all_packets")
            .after(2),
        f(
            "a service's limit, from one more",
            at("172.24.0.2", 8003),
            DropServicePackets,
            "limit:all_packets",
        ),
        f(
            "an allowed source counts against the service",
            at("198.51.100.5", 8003),
            DropServicePackets,
            "limit:all_packets",
        ),
        f("an allowed source has no source limit", http("198.51.100.6"), PassAllowed, "service:http")
            .after(20),
        f("a service's octets", at("172.24.0.3", 8004).payload(970), DropServiceBytes, "limit:all_bytes")
            .after(64),
        f("a service's SYNs", at("172.24.0.4", 8005).flags(SYN), DropServiceSyns, "limit:all_syns").after(2),
        f("other segments of that service", at("172.24.0.4", 8005), PassService, "service:all_syns"),
        f("a limit in shadow", at("172.25.0.1", 8006), PassService, "service:shadowed")
            .after(1)
            .shadow("limit:shadowed"),
        f("a limit in shadow, not reached", at("172.25.0.2", 8006), PassService, "service:shadowed"),
    ]
}
