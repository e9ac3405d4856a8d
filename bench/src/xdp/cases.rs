//! The packets and tables whose cost is measured, each with the verdict that it must get.
//!
//! Owns: the cases and their marks. Does not own: measuring them (see `stage.rs`).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use blitz_config::{Format, Overrides};
use blitz_ctl::image::{Image, InForce, RULE_BLOCK_OPERATOR, RULE_DENY_CONFIG};
use blitz_ctl::prefixes::{Prefix, wire};
use blitz_ctl::rehearsal::{Options, Rehearsal};
use blitz_ebpf_common::layout::{ALLOW_SERVICE, Block, BlockKey, Deny, Verdict};

use super::frames;
use super::lists::{Draw, PREFIXES};
use crate::Result;

/// Different packets of a case, each repeated for one slice of a round.
pub(super) const SLICES: usize = 32;
/// Repeats in one slice: a slice of the slowest case takes about 20 ms.
pub(super) const REPEATS: u32 = 65_536;
/// Runs of a case in one round.
pub(super) const PACKETS: u64 = SLICES as u64 * REPEATS as u64;
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
}

const HOST4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1));
const SOURCE4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
const SOURCE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 7));
/// First of the rotated sources; the rotation stays below it for 2^24 addresses.
const ROTATED: IpAddr = IpAddr::V4(Ipv4Addr::new(11, 0, 0, 0));

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

/// Builds, loads and fills all cases.
pub(super) fn all(object: &[u8]) -> Result<Vec<Case>> {
    let build = Build { object };
    let plain = image(&[])?;
    let limited = image(&[HIGH_LIMIT])?;
    let deny = Deny { expires: 0, rule: rule(&plain, RULE_DENY_CONFIG)?, flags: 0 };
    let mut draw = Draw::new(3);
    let mut listed = plain.clone();
    draw.mix(&mut listed.denied, false, deny)?;
    draw.mix(&mut listed.denied, true, deny)?;
    listed.denied.order_by_use();
    let mut dense = plain.clone();
    for number in 0..PREFIXES as u32 {
        let IpAddr::V4(first) = ROTATED else { continue };
        let network = Ipv4Addr::from_bits(first.to_bits() + (number << 8));
        dense
            .denied
            .insert(Prefix::new(network.into(), 24), deny)
            .map_err(|_| "the dense list finds no room")?;
    }
    let to = |sources: Vec<IpAddr>| -> Vec<Vec<u8>> { sources.into_iter().map(to_edge).collect() };
    let inside4 = to(draw.inside(&listed.denied, false, SLICES));
    let inside6 = to(draw.inside(&listed.denied, true, SLICES));
    let outside4 = to(draw.outside(&listed.denied, false, SLICES));
    let outside6 = to(draw.outside(&listed.denied, true, SLICES));
    let blocked = blocklist(&plain, &mut draw)?;
    let mut endless = blocked.clone();
    endless.values_mut().for_each(|block| block.expires = 0);
    let blocked_sources = blocked.keys().filter(|key| key.family == 4).take(SLICES);
    let blocked_frames = to(blocked_sources.map(|key| Ipv4Addr::from_bits(key.first).into()).collect());

    let mut everything = image(&[HIGH_LIMIT, SERVICE_LIMIT])?;
    everything.denied = listed.denied.clone();
    everything.allow.insert(Prefix::new([198, 51, 100, 0].into(), 24), ALLOW_SERVICE);

    let mut large = limited.clone();
    large.sources_max = 2 * MANY_SOURCES;
    let none = HashMap::new();
    let pass = Verdict::PassService;
    let mut cases = vec![
        build.case("pass, TCP to a service", &plain, &none, vec![to_edge(SOURCE4)], pass)?.mark(60.0, 40.0),
        build.case("  over IPv6", &plain, &none, vec![to_edge(SOURCE6)], pass)?,
        build.case(
            "  to a service with an own address",
            &plain,
            &none,
            vec![frames::tcp(SOURCE4, HOST4, 80)],
            pass,
        )?,
        build.case(
            "  to no service",
            &plain,
            &none,
            vec![frames::tcp(SOURCE4, HOST4, 22)],
            Verdict::PassNoService,
        )?,
        build
            .case("deny hit, 100,000 prefixes", &listed, &none, inside4, Verdict::DropDenied)?
            .mark(60.0, 35.0),
        build.case("  over IPv6, 100,000 more prefixes", &listed, &none, inside6, Verdict::DropDenied)?,
        build.rotated(
            "  100,000 /24, another one with each packet",
            &dense,
            // 2^16 networks of the 100,000.
            1 << 24,
            Verdict::DropDenied,
        )?,
        build.case("  miss in the same list, passes", &listed, &none, outside4, pass)?,
        build.case("  miss over IPv6, passes", &listed, &none, outside6, pass)?,
        build
            .case(
                "block hit, 16,384 sources",
                &plain,
                &blocked,
                blocked_frames.clone(),
                Verdict::DropBlocked,
            )?
            .mark(30.0, 25.0),
        build.case("  blocked without an end", &plain, &endless, blocked_frames, Verdict::DropBlocked)?,
        build.case("limiter, one source", &limited, &none, vec![to_edge(SOURCE4)], pass)?.mark(70.0, 60.0),
    ];
    let mut over = build.case(
        "  over its limit, drops",
        &image(&[LOW_LIMIT])?,
        &none,
        vec![to_edge(SOURCE4)],
        Verdict::DropSourcePackets,
    )?;
    // One packet a second is within the limit.
    over.strays = PACKETS / 100_000;
    cases.push(over);
    let mut million = build.rotated("limiter, 2^20 sources", &large, MANY_SOURCES, pass)?.mark(150.0, 120.0);
    // A set of four may have to hold five at a time: some sources are made anew each time.
    million.sources = Some((1_000_000, MANY_SOURCES as usize));
    million.faults_max = PACKETS / 10_000;
    cases.push(million);
    let mut evicting = build.rotated("  in the default table of 2^18", &limited, MANY_SOURCES, pass)?;
    evicting.sources = Some((1, limited.sources_max as usize));
    // Sources that are still in debt make room too.
    evicting.faults_max = PACKETS;
    cases.push(evicting);
    let outside = outside_both(&mut draw, &listed, &blocked);
    cases.push(build.case(
        "all steps: allow, block and deny missed, both limits",
        &everything,
        &blocked,
        outside,
        pass,
    )?);
    Ok(cases)
}

struct Build<'a> {
    object: &'a [u8],
}

impl Build<'_> {
    fn case(
        &self,
        name: &'static str,
        image: &Image,
        blocked: &HashMap<BlockKey, Block>,
        frames: Vec<Vec<u8>>,
        verdict: Verdict,
    ) -> Result<Case> {
        self.load(name, image, blocked, frames, verdict, Options::default())
    }

    fn rotated(&self, name: &'static str, image: &Image, sources: u32, verdict: Verdict) -> Result<Case> {
        let options = Options { rotate_sources: sources };
        self.load(name, image, &HashMap::new(), vec![to_edge(ROTATED)], verdict, options)
    }

    fn load(
        &self,
        name: &'static str,
        image: &Image,
        blocked: &HashMap<BlockKey, Block>,
        frames: Vec<Vec<u8>>,
        verdict: Verdict,
        options: Options,
    ) -> Result<Case> {
        let rehearsal = Rehearsal::new(self.object, image, blocked, options)
            .map_err(|error| format!("the stage does not load for {name:?}: {error}"))?;
        Ok(Case { name, mark: None, rehearsal, frames, verdict, strays: 0, faults_max: 0, sources: None })
    }
}

impl Case {
    fn mark(mut self, pass: f64, aim: f64) -> Self {
        self.mark = Some(Mark { pass, aim });
        self
    }
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

/// Sources that are neither denied nor blocked.
fn outside_both(draw: &mut Draw, image: &Image, blocked: &HashMap<BlockKey, Block>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while frames.len() < SLICES {
        let fresh = draw.outside(&image.denied, false, 1).into_iter().filter(|source| {
            let (family, words) = wire(*source);
            !blocked.contains_key(&BlockKey::new(family, &words))
        });
        frames.extend(fresh.map(to_edge));
    }
    frames
}

fn rule(image: &Image, name: &str) -> Result<u32> {
    image.rule(name).ok_or_else(|| format!("the image has no rule {name}"))
}
