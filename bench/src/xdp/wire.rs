//! Drops on a veth pair: processor time of the receiving kernel thread for each packet.
//!
//! Owns: the pairs, their receive threads, the rounds, the ratios. Does not own: the filters (see
//! `filters.rs`) or sending (see `flood.rs`).
//!
//! Each filter has a pair of its own, made alike: one queue, GRO on as on a card (and so that there is
//! receive work without an XDP program), that work in a kernel thread pinned to one processor, the sender
//! pinned to the other. On veth, what a socket sent is copied once before an XDP program may see it, and is
//! a packet buffer already when nftables sees it: a network card's driver is the other way round. So the
//! figures of XDP are higher here, and that of nftables lower, than on a card.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use blitz_config::{Format, Overrides};
use blitz_ctl::image::{Image, InForce, RULE_DENY_CONFIG};
use blitz_ctl::rehearsal::{Options as Load, Rehearsal};
use blitz_ebpf_common::layout::Deny;
use serde_json::{Value, json};

use super::bare::Bare;
use super::filters::Filter;
use super::flood::{Flooder, Offered, PORT};
use super::lists::Draw;
use super::{command, frames, sys};
use crate::stats::Quartiles;
use crate::{Options, Result, account};

/// Below this share of its processor the receiver waited for packets, and pays for wake-ups too.
const BUSY_MIN: f64 = 0.95;
/// Processor seconds per second used by anything else; beyond it a round is flagged.
const FOREIGN_MAX: f64 = 0.15;
/// Share by which what was sent and what was dropped may differ.
const MISSING_MAX: f64 = 0.001;
/// The flood before each measured one.
const WARM_UP: Duration = Duration::from_millis(200);
/// How long the receive thread may take to appear and to become idle.
const PATIENCE: Duration = Duration::from_secs(5);
const DESTINATION: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

struct Subject {
    filter: Filter,
    pair: Pair,
    runs: Vec<Run>,
}

/// One round of one filter.
struct Run {
    ns: f64,
    dropped: u64,
    refused: u64,
    busy: f64,
    foreign: f64,
}

impl Run {
    fn flags(&self) -> String {
        let idle = if self.busy < BUSY_MIN { " receiver-not-busy" } else { "" };
        let foreign = if self.foreign > FOREIGN_MAX { " foreign-load" } else { "" };
        format!("{idle}{foreign}")
    }
}

pub(super) fn run(
    options: &Options,
    object: &[u8],
    (receive_cpu, send_cpu): (usize, usize),
) -> Result<Value> {
    println!("\n== wire: ns of the receiving thread for each dropped packet, on veth");
    let image = image()?;
    let list = &image.denied;
    let source = Draw::new(5).inside(list, false, 1).first().copied().ok_or("the list is empty")?;
    let stage = Rehearsal::new(object, &image, &HashMap::new(), Load::default())
        .map_err(|error| format!("the stage does not load: {error}"))?;
    let mut flooder = Flooder::start(send_cpu)?;
    let filters =
        [Filter::Stage(Box::new(stage)), Filter::Nftables, Filter::OfXdpTools, Filter::Bare(Bare::new()?)];
    let mut subjects = Vec::new();
    for (number, mut filter) in filters.into_iter().enumerate() {
        let mut pair = Pair::make(number, flooder.pid())?;
        filter.put(&pair.host, source, list)?;
        pair.pin(receive_cpu)?;
        subjects.push(Subject { filter, pair, runs: Vec::new() });
    }
    let duration = Duration::from_secs(options.seconds);
    for round in 1..=options.pairs {
        for subject in &mut subjects {
            let run = measure(subject, &mut flooder, source, duration)?;
            println!(
                "round {round:>2} {:<35} {:>6.1} ns  busy {:>3.0} %  foreign {:.2}{}",
                subject.filter.name(),
                run.ns,
                run.busy * 100.0,
                run.foreign,
                run.flags()
            );
            subject.runs.push(run);
        }
    }
    Ok(report(&subjects))
}

/// A service on the flood's port and the deny list of the mix.
fn image() -> Result<Image> {
    let text = format!(
        "[[listeners]]\nname = \"edge\"\naddress = \"0.0.0.0:443\"\n\
         [upstreams.app]\nendpoints = [{{ address = \"127.0.0.1:9001\" }}]\n\
         [[routes]]\npath = \"/*rest\"\nupstream = \"app\"\n\
         [[xdp.services]]\nname = \"flooded\"\nport = {PORT}\nprotocol = \"udp\"\n"
    );
    let config = blitz_config::load(&text, Format::Toml, "bench.toml", &Overrides::default())
        .map_err(|e| e.to_string())?;
    let mut image =
        Image::from_config(&config, 1, &InForce::default()).map_err(|refusal| refusal.to_string())?;
    let rule = image.rule(RULE_DENY_CONFIG).ok_or("the image has no rule for denied prefixes")?;
    Draw::new(3).mix(&mut image.denied, false, Deny { expires: 0, rule, flags: 0 })?;
    image.denied.order_by_use();
    Ok(image)
}

fn measure(subject: &Subject, flooder: &mut Flooder, source: IpAddr, duration: Duration) -> Result<Run> {
    let pair = &subject.pair;
    flooder.run(&pair.peer, source, DESTINATION, WARM_UP)?;
    let ours = || account::cpu_seconds(std::process::id());
    let used_before = pair.settled()?;
    let dropped_before = subject.filter.dropped()?;
    let (machine, own) = (account::machine_busy_seconds(), ours());
    let Offered { sent, refused, seconds } = flooder.run(&pair.peer, source, DESTINATION, duration)?;
    let used = pair.settled()?.saturating_sub(used_before).as_secs_f64();
    let known = ours() - own + used;
    let foreign = ((account::machine_busy_seconds() - machine - known) / seconds).max(0.0);
    let name = subject.filter.name();
    let dropped = match (dropped_before, subject.filter.dropped()?) {
        (Some(before), Some(after)) => after - before,
        // The bare drop counts nothing; it drops whatever it is given.
        _ => sent,
    };
    if sent == 0 || (dropped as f64 / sent as f64 - 1.0).abs() > MISSING_MAX {
        return Err(format!(
            "{name}: {sent} packets were sent and {dropped} were dropped by it: no figure is given"
        ));
    }
    Ok(Run { ns: used * 1e9 / dropped as f64, dropped, refused, busy: used / seconds, foreign })
}

fn report(subjects: &[Subject]) -> Value {
    println!(
        "\n{:<35} {:>6} {:>6} {:>6}  {:>16} {:>9} {:>6} {:>7}",
        "ns per dropped packet", "q1", "median", "q3", "per CPU-second", "offered/s", "busy %", "flagged"
    );
    let mut lines = serde_json::Map::new();
    for Subject { filter, runs, .. } in subjects {
        let column = |of: &dyn Fn(&Run) -> f64| {
            let values: Vec<f64> = runs.iter().map(of).collect();
            Quartiles::of(&values).unwrap_or(Quartiles { lower: 0.0, median: 0.0, upper: 0.0 })
        };
        let (ns, busy) = (column(&|run| run.ns), column(&|run| run.busy));
        let offered = column(&|run| {
            (run.dropped + run.refused) as f64 * run.busy / (run.ns * run.dropped as f64) * 1e9
        });
        let flagged = runs.iter().filter(|run| !run.flags().is_empty()).count();
        println!(
            "{:<35} {:>6.1} {:>6.1} {:>6.1}  {:>16.0} {:>9.0} {:>6.0} {flagged:>7}",
            filter.name(),
            ns.lower,
            ns.median,
            ns.upper,
            1e9 / ns.median,
            offered.median,
            busy.median * 100.0
        );
        let rounds: Vec<Value> = runs
            .iter()
            .map(|run| {
                json!({
                    "ns": run.ns, "dropped": run.dropped, "refused": run.refused, "busy": run.busy,
                    "foreign": run.foreign, "flags": run.flags().trim(),
                })
            })
            .collect();
        lines.insert(
            filter.name().to_owned(),
            json!({ "ns": ns.json(), "busy": busy.json(), "rounds": rounds }),
        );
    }
    let mut ratios = serde_json::Map::new();
    if let Some((ours, others)) = subjects.split_first() {
        println!("\npackets per CPU-second in one round             q1      median  q3");
        for other in others {
            let values: Vec<f64> =
                ours.runs.iter().zip(&other.runs).map(|(ours, theirs)| theirs.ns / ours.ns).collect();
            if let Some(ratio) = Quartiles::of(&values) {
                let label = format!("blitz / {}", other.filter.name());
                println!("{label:<45} {:>6.3}  {:>6.3}  {:>6.3}", ratio.lower, ratio.median, ratio.upper);
                ratios.insert(other.filter.name().to_owned(), ratio.json());
            }
        }
    }
    json!({ "filters": lines, "blitz_over": ratios })
}

/// Two connected interfaces: one here, one in the sender's namespace.
struct Pair {
    host: String,
    peer: String,
    /// The kernel thread that does the receive work of `host`.
    thread: i32,
}

impl Pair {
    fn make(number: usize, sender: u32) -> Result<Self> {
        // Thread names are seen by the whole machine, so the process id tells this run's from another's.
        let (host, peer) =
            (format!("xb{}h{number}", std::process::id()), format!("xb{}p{number}", std::process::id()));
        let mac = frames::HOST_MAC.map(|octet| format!("{octet:02x}")).join(":");
        let (sender, space) = (sender.to_string(), format!("--net=/proc/{sender}/ns/net"));
        command(
            "ip",
            &[
                "link",
                "add",
                &host,
                "address",
                &mac,
                "numrxqueues",
                "1",
                "numtxqueues",
                "1",
                "type",
                "veth",
                "peer",
                "name",
                &peer,
                "numrxqueues",
                "1",
                "numtxqueues",
                "1",
                "netns",
                &sender,
            ],
        )?;
        // Without addresses of their own the ends say nothing, and what is not dropped ends unanswered.
        command("ip", &["link", "set", &host, "addrgenmode", "none", "up"])?;
        command("nsenter", &[&space, "ip", "link", "set", &peer, "addrgenmode", "none", "up"])?;
        // A veth gives its receive thread only what GRO may join, and that is what a sender without
        // segmentation offload sends.
        command("ethtool", &["-K", &host, "gro", "on"])?;
        command("nsenter", &[&space, "ethtool", "-K", &peer, "tso", "off"])?;
        Ok(Self { host, peer, thread: 0 })
    }

    /// Moves the receive work to a kernel thread on `cpu`. Called when the filter is there, which may
    /// have begun the work anew.
    fn pin(&mut self, cpu: usize) -> Result<()> {
        let switch = format!("/sys/class/net/{}/threaded", self.host);
        fs::write(&switch, "1").map_err(|error| format!("{switch}: {error}"))?;
        let prefix = format!("napi/{}-", self.host);
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(thread) = thread_named(&prefix) {
                self.thread = thread;
                return sys::pin(thread, cpu).map_err(|error| format!("thread {thread}: {error}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(format!("{} has no receive thread", self.host))
    }

    /// Processor time of the receive thread so far, when it has become idle: while it runs, the kernel
    /// brings the figure up to date at its ticks only.
    fn settled(&self) -> Result<Duration> {
        let begun = Instant::now();
        let mut before = self.used()?;
        while begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(30));
            let used = self.used()?;
            if used == before {
                return Ok(used);
            }
            before = used;
        }
        Err(format!("the receive thread of {} does not become idle", self.host))
    }

    fn used(&self) -> Result<Duration> {
        let path = format!("/proc/{}/schedstat", self.thread);
        let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let nanos = text.split_whitespace().next().and_then(|text| text.parse().ok());
        nanos.map(Duration::from_nanos).ok_or(format!("{path} holds {text:?}"))
    }
}

/// The thread whose name begins with `prefix`.
fn thread_named(prefix: &str) -> Option<i32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        name.starts_with(prefix).then_some(pid)
    })
}
