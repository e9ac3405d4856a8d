//! The packets and tables whose cost is measured, each with the verdict that it must get.
//!
//! Owns: the cases and their marks. Does not own: measuring them (see `stage.rs`).

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, OwnedFd};

use blitz_config::{Format, Overrides};
use blitz_ctl::image::{Image, InForce, RULE_BLOCK_OPERATOR, RULE_DENY_CONFIG};
use blitz_ctl::prefixes::{Prefix, address, wire};
use blitz_ctl::rehearsal::{Options, Rehearsal};
use blitz_ebpf_common::cid::{Codec, Keys, Parity, Routing};
use blitz_ebpf_common::gcra::Rate;
use blitz_ebpf_common::layout::{ALLOW_SERVICE, Block, BlockKey, Deny, STEER_VERSION, Seat, Steer, Verdict};

use super::frames;
use super::lists::{Draw, PREFIXES};
use crate::Result;

/// Runs of a case in one round.
pub(super) const PACKETS: u64 = 1 << 21;
/// Different packets of a case that has several, each repeated for one slice of a round. Few: each slice is
/// a call of BPF_PROG_TEST_RUN, during which the kernel exchanges a trampoline and waits for all processors,
/// so that it begins with cold caches. In slices of 65,536 packets the large tables cost 60 % more than in
/// one go, and a flood is one go.
pub(super) const FRAMES: usize = 8;
/// Sources of the limiter's large cases: the power of two above a million, twice a round.
const MANY_SOURCES: u32 = 1 << 20;
/// Entries on the blocklist.
const BLOCKED: usize = 16_384;

/// Nanoseconds over the bare drop.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    pub(super) pass: f64,
    pub(super) aim: f64,
}

/// One case, loaded.
pub(super) struct Case {
    /// For the table.
    pub(super) name: &'static str,
    /// What it must stay below; `None` for lines beside.
    pub(super) mark: Option<Mark>,
    pub(super) rehearsal: Rehearsal,
    pub(super) frames: Vec<Vec<u8>>,
    /// What every packet must get.
    pub(super) verdict: Verdict,
    /// How many packets of a round may get another verdict.
    pub(super) strays: u64,
    /// How many faults a round may meet.
    pub(super) faults_max: u64,
    /// The number of sources in the table afterwards, at least and at most.
    pub(super) sources: Option<(usize, usize)>,
    /// The AF_XDP socket of the receive queue, where there is one.
    _socket: Option<OwnedFd>,
}

const HOST4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1));
const SOURCE4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
const SOURCE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 7));
/// First of the rotated sources; the rotation stays below it for 2^24 addresses.
const ROTATED: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 0);

const LISTENERS: &str = r#"
[[listeners]]
name = "edge"
address = "0.0.0.0:443"
[[listeners]]
name = "edge6"
address = "[::]:443"
[[listeners]]
name = "exact"
address = "10.0.0.1:80"
[[listeners]]
name = "quic"
address = "0.0.0.0:4443"
protocols = ["h3"]
tls = { certificates = [{ cert_path = "edge.crt", key_path = "edge.key" }] }
[upstreams.app]
endpoints = [{ address = "127.0.0.1:9001" }]
[[routes]]
path = "/*rest"
upstream = "app"
"#;
/// So high that no measured rate reaches it.
const HIGH_LIMIT: &str = r#"
[[limits]]
name = "per_source"
by = "source_prefix"
packets_per_second = 1000000000
"#;
const ORDINARY_LIMIT: &str = r#"
[[limits]]
name = "per_source"
by = "source_prefix"
packets_per_second = 20000
"#;
const LOW_LIMIT: &str = r#"
[[limits]]
name = "per_source"
by = "source_prefix"
packets_per_second = 1
"#;
const SERVICE_LIMIT: &str = r#"
[[limits]]
name = "edge_in_all"
by = "service"
packets_per_second = 1000000000
"#;

fn image(limits: &[&str]) -> Result<Image> {
    let text = format!("{LISTENERS}{}", limits.concat());
    let config = blitz_config::load(&text, Format::Toml, "bench.toml", &Overrides::default())
        .map_err(|e| e.to_string())?;
    // One processor runs the program.
    Image::from_config(&config, 1, &InForce::default()).map_err(|refusal| refusal.to_string())
}

/// What the maps hold.
#[derive(Clone)]
struct World {
    image: Image,
    blocked: HashMap<BlockKey, Block>,
}

impl World {
    fn new(limits: &[&str]) -> Result<Self> {
        Ok(Self { image: image(limits)?, blocked: HashMap::new() })
    }
}

/// Builds, loads and fills all cases.
pub(super) fn all(object: &[u8]) -> Result<Vec<Case>> {
    let mut draw = Draw::new(3);
    let plain = World::new(&[])?;
    let deny = Deny { expires: 0, rule: rule(&plain.image, RULE_DENY_CONFIG)?, flags: 0 };
    let mut listed = plain.clone();
    draw.mix(&mut listed.image.denied, false, deny)?;
    draw.mix(&mut listed.image.denied, true, deny)?;
    listed.image.denied.order_by_use();
    let mut inside = |is_v6| frames_of(draw.inside(&listed.image.denied, is_v6, FRAMES));
    let (inside4, inside6) = (inside(false), inside(true));
    let mut outside = |is_v6| frames_of(draw.outside(&listed.image.denied, is_v6, FRAMES));
    let (outside4, outside6) = (outside(false), outside(true));
    let mut blocking = plain.clone();
    blocking.blocked = blocklist(&plain.image, &mut draw)?;
    let mut endless = blocking.clone();
    endless.blocked.values_mut().for_each(|block| block.expires = 0);
    let blocked = blocked_sources(&blocking.blocked);
    let limited = World::new(&[HIGH_LIMIT])?;
    let mut everything = World::new(&[HIGH_LIMIT, SERVICE_LIMIT])?;
    everything.image.denied = listed.image.denied.clone();
    everything.image.allow.insert(Prefix::new([198, 51, 100, 0].into(), 24), ALLOW_SERVICE);
    everything.blocked = blocking.blocked.clone();
    let stranger = frames_of(strangers(&mut draw, &everything));

    let (one4, one6) = (vec![to_edge(SOURCE4)], vec![to_edge(SOURCE6)]);
    let (pass, denied) = (Verdict::PassService, Verdict::DropDenied);
    let mut build = Build { object, cases: Vec::new() };
    build.add("pass, TCP to a service", &plain, one4.clone(), pass)?.mark(60.0, 40.0);
    build.add("  over IPv6", &plain, one6, pass)?;
    build.add("  to a service with an own address", &plain, vec![frames::tcp(SOURCE4, HOST4, 80)], pass)?;
    let ssh = vec![frames::tcp(SOURCE4, HOST4, 22)];
    build.add("  to no service", &plain, ssh, Verdict::PassNoService)?;
    build.add("deny hit, 100,000 prefixes", &listed, inside4, denied)?.mark(60.0, 35.0);
    build.add("  over IPv6, 100,000 more prefixes", &listed, inside6, denied)?;
    // 2^16 of the 100,000 networks.
    build.rotated("  100,000 /24, another one with each packet", &dense(&plain, deny)?, 1 << 24, denied)?;
    build.add("  miss in the same list, passes", &listed, outside4, pass)?;
    build.add("  miss over IPv6, passes", &listed, outside6, pass)?;
    let block = Verdict::DropBlocked;
    build.add("block hit, 16,384 sources", &blocking, blocked.clone(), block)?.mark(30.0, 25.0);
    build.add("  blocked without an end", &endless, blocked, block)?;
    build.add("limiter, one source", &limited, one4.clone(), pass)?.mark(70.0, 60.0);
    let over = World::new(&[LOW_LIMIT])?;
    // One packet a second is within the limit.
    build.add("  over its limit, drops", &over, one4, Verdict::DropSourcePackets)?.strays = PACKETS / 100_000;
    let mut large = World::new(&[HIGH_LIMIT])?;
    large.image.sources_max = 2 * MANY_SOURCES;
    let mut small = limited;
    for world in [&mut large, &mut small] {
        remember(&mut world.image);
    }
    // Each sends ten packets a second or so, and owes for 50 us, or until the kernel's next tick. The default
    // table forgets next to none that owe.
    let ordinary = World::new(&[ORDINARY_LIMIT])?;
    let many = build.rotated("limiter, 2^20 sources within their limit", &ordinary, MANY_SOURCES, pass)?;
    many.mark(150.0, 120.0);
    many.faults_max = PACKETS / 500;
    // The worst case: nobody may be forgotten, so the table is large, and memory is what costs.
    let many =
        build.rotated("limiter, 2^20 sources that all owe, table of 2^21", &large, MANY_SOURCES, pass)?;
    many.mark(150.0, 120.0);
    // With two sources for four places on average, one source in seven is in a set that has more than
    // four: those forget each other, which counts as a fault each time.
    many.sources = Some((1_000_000, MANY_SOURCES as usize));
    many.faults_max = PACKETS / 6;
    let evicting = build.rotated(
        "  the same in the default table of 2^18, each forgets one",
        &small,
        MANY_SOURCES,
        pass,
    )?;
    evicting.sources = Some((1, small.image.sources_max as usize));
    evicting.faults_max = PACKETS;
    build.add("all steps: allow, block and deny missed, both limits", &everything, stranger, pass)?;
    quic(&mut build, &plain)?;
    Ok(build.cases)
}

/// Datagrams of QUIC, for worker 0 of generation 0, whose socket has the receive queue.
fn quic(build: &mut Build<'_>, plain: &World) -> Result<()> {
    let codec = Codec::new(Keys { even: [1, 2, 3, 4], odd: [5, 6, 7, 8], issues: Parity::Even });
    let steer = Steer { drop_until: u64::MAX / 2, version: STEER_VERSION, generation: 0, codec, reserved: 0 };
    let seat = |worker| Seat::new(0, worker).ok_or("no such worker");
    let workers = BTreeSet::from([seat(0)?, seat(1)?]);
    let short = |nonce, worker| -> Result<Vec<u8>> {
        let routing = Routing::new(0, 0, worker).ok_or("no such worker")?;
        Ok([&[0x41][..], &codec.encode(routing, nonce), &[0; 30]].concat())
    };
    let few = |worker| (0..FRAMES as u64).map(|n| short(n << 40 | n, worker)).collect::<Result<Vec<_>>>();
    let initial = |length| {
        let mut datagram = [&[0xc0, 0, 0, 0, 1, 8][..], &[9; 8], &[0]].concat();
        datagram.resize(length, 0);
        datagram
    };
    let mut invented = few(0)?;
    invented.iter_mut().filter_map(|datagram| datagram.get_mut(16)).for_each(|octet| *octet ^= 1);
    let mut dropping = plain.clone();
    dropping.image.drop_bad = true;
    let to_us = |datagrams: Vec<Vec<u8>>| -> Vec<Vec<u8>> {
        datagrams.iter().map(|datagram| frames::datagram(SOURCE4, HOST4, 4443, datagram)).collect()
    };
    let cases = [
        (
            "QUIC, short header: parse, check the tag, steer to its queue's socket",
            plain,
            few(0)?,
            Verdict::Redirected,
        ),
        ("  to a worker without this queue, passes", plain, few(1)?, Verdict::PassService),
        ("  invented connection IDs, drops", &dropping, invented, Verdict::DropQuic),
        ("  Initial of a new client, to the queue's socket", plain, vec![initial(1200)], Verdict::Redirected),
        ("  Initial that is too small, drops", plain, vec![initial(1199)], Verdict::DropQuic),
    ];
    for (number, (name, world, datagrams, verdict)) in cases.into_iter().enumerate() {
        let case = build.add(name, world, to_us(datagrams), verdict)?;
        let failed = |error| format!("{name}: {error}");
        let socket = blitz_tests::xdp_socket().map_err(|error| format!("an AF_XDP socket: {error}"))?;
        case.rehearsal.steer(&steer, &workers, seat(0)?).map_err(failed)?;
        case.rehearsal.place(socket.as_fd()).map_err(failed)?;
        case._socket = Some(socket);
        if number == 0 {
            case.mark(150.0, 100.0);
        }
    }
    Ok(())
}

struct Build<'a> {
    object: &'a [u8],
    cases: Vec<Case>,
}

impl Build<'_> {
    fn add(
        &mut self,
        name: &'static str,
        world: &World,
        frames: Vec<Vec<u8>>,
        verdict: Verdict,
    ) -> Result<&mut Case> {
        self.load(name, world, frames, verdict, Options::default())
    }

    /// A case in which each packet has the next of `sources` addresses.
    fn rotated(
        &mut self,
        name: &'static str,
        world: &World,
        sources: u32,
        verdict: Verdict,
    ) -> Result<&mut Case> {
        let options = Options { rotate_sources: sources };
        self.load(name, world, vec![to_edge(ROTATED.into())], verdict, options)
    }

    fn load(
        &mut self,
        name: &'static str,
        world: &World,
        frames: Vec<Vec<u8>>,
        verdict: Verdict,
        options: Options,
    ) -> Result<&mut Case> {
        let rehearsal = Rehearsal::new(self.object, &world.image, &world.blocked, options)
            .map_err(|error| format!("the stage does not load for {name:?}: {error}"))?;
        Ok(self.cases.push_mut(Case {
            name,
            mark: None,
            rehearsal,
            frames,
            verdict,
            strays: 0,
            faults_max: 0,
            sources: None,
            _socket: None,
        }))
    }
}

impl Case {
    fn mark(&mut self, pass: f64, aim: f64) {
        self.mark = Some(Mark { pass, aim });
    }
}

/// Lets every source owe something for the whole run: a token takes 69 s, and there are a thousand. A source
/// that owes nothing may be forgotten at any time, so that a table of such sources is never full.
fn remember(image: &mut Image) {
    for rate in image.limits.iter_mut().flat_map(|limit| &mut limit.rates).filter(|rate| rate.limits()) {
        // 2^42 units of 1/64 ns, and ten bits of fraction.
        *rate = Rate { interval: 1 << 52, depth: 1000 << 42 };
    }
}

/// 100,000 networks side by side.
fn dense(plain: &World, deny: Deny) -> Result<World> {
    let mut world = plain.clone();
    for number in 0..PREFIXES as u32 {
        let network = Ipv4Addr::from_bits(ROTATED.to_bits() + (number << 8));
        let prefix = Prefix::new(network.into(), 24);
        world
            .image
            .denied
            .insert(prefix, deny)
            .map_err(|_| format!("{prefix} finds no room in the index"))?;
    }
    Ok(world)
}

fn frames_of(sources: Vec<IpAddr>) -> Vec<Vec<u8>> {
    sources.into_iter().map(to_edge).collect()
}

/// A TCP segment to port 443 from `source`.
fn to_edge(source: IpAddr) -> Vec<u8> {
    frames::tcp(source, if source.is_ipv6() { HOST6 } else { HOST4 }, 443)
}

fn blocklist(image: &Image, draw: &mut Draw) -> Result<HashMap<BlockKey, Block>> {
    let entry = Block { expires: u64::MAX, since: 1, rule: rule(image, RULE_BLOCK_OPERATOR)?, flags: 0 };
    let none = Image::default().denied;
    let keys = draw.outside(&none, false, BLOCKED).into_iter().map(|source| {
        let (family, words) = wire(source);
        BlockKey::new(family, &words)
    });
    Ok(keys.map(|key| (key, entry)).collect())
}

/// Packets of some sources on the blocklist, the same in every run.
fn blocked_sources(blocked: &HashMap<BlockKey, Block>) -> Vec<Vec<u8>> {
    let mut keys: Vec<&BlockKey> = blocked.keys().collect();
    keys.sort();
    let few = keys.into_iter().step_by(BLOCKED / FRAMES).take(FRAMES);
    few.map(|key| to_edge(address(key.source()))).collect()
}

/// Sources that are neither denied nor blocked.
fn strangers(draw: &mut Draw, world: &World) -> Vec<IpAddr> {
    let mut sources = draw.outside(&world.image.denied, false, 2 * FRAMES);
    sources.retain(|source| {
        let (family, words) = wire(*source);
        !world.blocked.contains_key(&BlockKey::new(family, &words))
    });
    sources.truncate(FRAMES);
    sources
}

fn rule(image: &Image, name: &str) -> Result<u32> {
    image.rule(name).ok_or_else(|| format!("the image has no rule {name}"))
}
