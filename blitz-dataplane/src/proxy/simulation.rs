//! The proxy in a simulated world: scripted clients, the gateway, scripted upstreams, one runtime,
//! virtual time, a network that is kind or unkind. One seed decides everything.
//!
//! `BLITZ_SIM_SEED=n` replays one seed and says what it saw; `BLITZ_SIM_SEEDS=count` runs more of
//! them than the ordinary run does.
//!
//! Owns: the worlds, the invariants between two turns, the end of a run, the coverage over all seeds.
//! Does not own: the scripts (`simulation/client.rs`, `simulation/upstream.rs`), the verdict on an
//! answer (`simulation/oracle.rs`), the network (`runtime::driver::sim`).
#![forbid(unsafe_code)]

mod client;
mod http3;
mod oracle;
mod plan;
mod regressions;
mod upstream;
mod wire;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use blitz_config::{Format, Overrides};

use super::Proxy;
use super::accept::accept;
use super::connections::Listener;
use super::snapshot::Snapshot;
use crate::exchange::ErrorKind;
use crate::metrics::names::{Kind, Metric};
use crate::process::Reports;
use crate::process::endpoints::{EndpointAddresses, ResolvedEndpoints, RowTable};
use crate::runtime::sim::{BLACK_HOLE_PORT, Rng, UNREACHABLE_PORT, World};
use crate::runtime::{Handle, Runtime, TcpListener};
use crate::segment::{Segment, Shape};
use crate::tls::Diagnosis;
use client::Client;
use oracle::Ledger;
use wire::Trace;

/// Seeds of the ordinary run.
const SEEDS: u64 = 256;

/// Virtual time within which every client must be done. The longest script waits for a handful of
/// deadlines, none of which exceeds six seconds.
const HANG: Duration = Duration::from_secs(300);

/// Rows of endpoints in the segment.
const ROWS: u32 = 32;

/// How often the pools are swept, as in the worker's loop.
const TICK: Duration = Duration::from_millis(250);

/// Bytes that one connection may hold unread: the pooled bound and one bulk buffer.
const UNREAD_BYTES_MAX: usize = 16 * 1024 + 64 * 1024;

/// Bytes that one connection may hold unsent: writers wait at 64 KiB, then add at most a piece of
/// 64 KiB and heads.
const UNSENT_BYTES_MAX: usize = 64 * 1024 + 64 * 1024 + 16 * 1024;

/// The deadlines of a world.
#[derive(Clone, Copy, Debug)]
struct Times {
    head: Duration,
    body: Duration,
    keep_alive: Duration,
    send: Duration,
    connect: Duration,
    first_byte: Duration,
    upstream_body: Duration,
    upstream_idle: Duration,
    drain: Duration,
}

/// What the scripts of one world share.
struct Env {
    handle: Handle,
    ledger: Ledger,
    trace: Trace,
    gateway: SocketAddr,
    times: Times,
    /// The network resets connections.
    resets: bool,
    /// The gateway has room for few connections.
    sheds: bool,
    /// The gateway is draining.
    drains: Cell<bool>,
    window_bytes: usize,
    /// Virtual milliseconds that a KiB takes at worst.
    ms_per_kib: u64,
    size_max: usize,
    target_bytes_max: usize,
    head_bytes_max: usize,
    fields_max: usize,
    body_bytes_max: usize,
    response_head_bytes_max: usize,
    /// Clients begin within this time.
    span_ms: u64,
    /// The script that every client plays.
    script: Option<u64>,
}

impl Env {
    /// Connections may end for reasons that no request is to blame for.
    fn is_lenient(&self) -> bool {
        self.resets || self.sheds || self.drains.get()
    }
}

/// What a run has shown.
struct Report {
    seed: u64,
    trace: u64,
    violations: Vec<String>,
    errors: Vec<u64>,
    metrics: Vec<u64>,
    seen: BTreeMap<String, u64>,
    virtual_ms: u64,
    world: String,
}

const ENDPOINT_A: ([u8; 4], u16) = ([10, 1, 0, 1], 8001);
const ENDPOINT_B: ([u8; 4], u16) = ([10, 1, 0, 2], 8002);
const REFUSED: ([u8; 4], u16) = ([10, 1, 0, 3], 8003);
const GATEWAY: ([u8; 4], u16) = ([10, 0, 0, 9], 80);

fn text_of((ip, port): ([u8; 4], u16)) -> String {
    SocketAddr::from((ip, port)).to_string()
}

/// The upstreams in the order of the configuration (by name), with their addresses.
fn upstreams() -> Vec<(&'static str, Vec<String>)> {
    vec![
        ("blackhole", vec![text_of(([10, 1, 0, 4], BLACK_HOLE_PORT))]),
        ("main", vec![text_of(ENDPOINT_A), text_of(ENDPOINT_B)]),
        ("mixed", vec![text_of(REFUSED), text_of(ENDPOINT_A)]),
        ("nameless", vec!["nowhere.test:80".to_owned()]),
        ("refused", vec![text_of(REFUSED)]),
        ("unreachable", vec![text_of(([10, 1, 0, 5], UNREACHABLE_PORT))]),
    ]
}

fn resolved() -> ResolvedEndpoints {
    let addresses = |endpoint: &String| EndpointAddresses {
        endpoint: endpoint.clone(),
        addresses: endpoint.parse().into_iter().collect(),
    };
    let all: Vec<_> = upstreams()
        .into_iter()
        .map(|(name, endpoints)| (name.to_owned(), endpoints.iter().map(addresses).collect::<Vec<_>>()))
        .collect();
    RowTable::new(ROWS).assign(&all, 1).expect("fewer endpoints than rows")
}

fn config_text(rng: &Rng, env: &Env, connections_max: u64) -> String {
    let mut text = format!(
        "[[listeners]]\nname = \"edge\"\naddress = \"{}\"\nbuiltin_answers = true\n",
        text_of(GATEWAY)
    );
    for (name, endpoints) in upstreams() {
        let weight = if rng.chance(300) { 3 } else { 1 };
        let mut list = String::new();
        for (index, address) in endpoints.iter().enumerate() {
            let weight = if index == 0 { weight } else { 1 };
            let _ = write!(list, "{{ address = \"{address}\", weight = {weight} }}, ");
        }
        let idle_max = [0, 1, 64][rng.below(3) as usize];
        let _ = writeln!(
            text,
            "[upstreams.{name}]\nendpoints = [{list}]\nhealth.passive.ejection_ms = {}\n\
             pool.idle_connections_max = {idle_max}\n[[routes]]\npath = \"/{name}/*rest\"\nupstream = \"{name}\"",
            500 + rng.below(3_000),
        );
    }
    text += "[[routes]]\npath = \"/readonly/*rest\"\nmethods = [\"GET\", \"HEAD\"]\nupstream = \"main\"\n";
    let t = &env.times;
    for (key, value) in [
        ("request_head", t.head),
        ("request_body_progress", t.body),
        ("keep_alive", t.keep_alive),
        ("send_progress", t.send),
        ("upstream_connect", t.connect),
        ("upstream_first_byte", t.first_byte),
        ("upstream_body_progress", t.upstream_body),
        ("upstream_idle", t.upstream_idle),
        ("drain", t.drain),
    ] {
        let _ = writeln!(text, "[timeouts]\n{key}_ms = {}", value.as_millis());
    }
    let limit = client::REQUESTS_PER_SECOND;
    let limit = format!(
        "[[limits]]\nname = \"often\"\nby = \"source_prefix_and_path\"\nrequests_per_second = {limit}\n"
    );
    // One table header is allowed only once.
    let (before, after) = text.split_once("[timeouts]\n").unwrap_or((&text, ""));
    let mut text = format!("{before}[timeouts]\n{}", after.replace("[timeouts]\n", ""));
    let _ = writeln!(
        text,
        "[http]\nrequest_head_bytes_max = {}\nrequest_fields_max = {}\ntarget_bytes_max = {}\n\
         request_body_bytes_max = {}\nresponse_head_bytes_max = {}\nconnections_per_worker_max = {connections_max}",
        env.head_bytes_max,
        env.fields_max,
        env.target_bytes_max,
        env.body_bytes_max,
        env.response_head_bytes_max,
    );
    text + &limit
}

fn snapshot(text: &str, generation: u64) -> Snapshot {
    let config = blitz_config::load(text, Format::Toml, "simulation", &Overrides::default())
        .unwrap_or_else(|errors| panic!("the simulation's configuration: {errors:?}\n{text}"));
    let names: Vec<_> = config.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
    assert!(names.iter().eq(upstreams().iter().map(|(name, _)| name)), "{names:?}");
    Snapshot::compile(&config, &Default::default(), &resolved(), generation).expect("validated")
}

/// Plays one seed.
fn run(seed: u64) -> Report {
    run_in(seed, &World::from_seed(seed), None)
}

/// Plays one seed in a world of the caller's; `script` is the one that every client plays, and then
/// nothing else happens: no drain, no other configuration, room for everybody.
fn run_in(seed: u64, world: &World, script: Option<u64>) -> Report {
    let profile = world.profile;
    // The scripts draw from a generator of their own: what they do does not move the network's dice.
    let rng = Rng::new(seed ^ 0x5EED_0000_0000_0001);
    let mut runtime = Runtime::simulated(world);
    let handle = runtime.handle().clone();
    let step = |base: u64| Duration::from_millis(base + rng.below(base / 2));
    let times = Times {
        head: step(2_400),
        body: step(1_500),
        keep_alive: step(3_000),
        send: step(1_700),
        connect: step(1_000),
        first_byte: step(2_200),
        upstream_body: step(1_600),
        upstream_idle: step(2_000),
        drain: step(1_000),
    };
    let is_narrow = profile.window_bytes < 1024 || profile.pool_slot_bytes < 100;
    let env = Rc::new(Env {
        handle: handle.clone(),
        ledger: Ledger::default(),
        trace: Trace::default(),
        gateway: SocketAddr::from(GATEWAY),
        times,
        resets: profile.reset_per_mille > 0,
        sheds: rng.chance(150) && script.is_none(),
        drains: Cell::new(false),
        window_bytes: profile.window_bytes,
        ms_per_kib: 1 + profile.delay_us_max * 8 * 1024 / profile.window_bytes as u64 / 1000,
        size_max: if is_narrow { 6_000 } else { 60_000 },
        target_bytes_max: 256 + rng.below(300) as usize,
        head_bytes_max: 1_024 + rng.below(2_000) as usize,
        fields_max: 12 + rng.below(20) as usize,
        body_bytes_max: 110_000 + profile.window_bytes,
        response_head_bytes_max: 1_024 + rng.below(3_000) as usize,
        span_ms: 1 + rng.below(6_000),
        script,
    });
    let connections_max = if env.sheds { 2 + rng.below(4) } else { 1_000 };
    let text = config_text(&rng, &env, connections_max);
    let segment = Segment::create(Shape { workers: 1, endpoints: ROWS }).expect("a segment");
    let rows = segment.worker(0).expect("the first worker");
    let (outbox, _) = std::sync::mpsc::channel();
    let proxy = Proxy::new(
        handle.clone(),
        rows,
        snapshot(&text, 1),
        false,
        Reports::new(outbox),
        Diagnosis::default(),
    );

    let drains_at_ms = (rng.chance(200) && script.is_none()).then(|| rng.below(8_000));
    let swaps_at_ms = (rng.chance(300) && script.is_none()).then(|| rng.below(5_000));
    let watched = Rc::clone(&proxy);
    let broken: RefCell<Option<String>> = RefCell::new(None);
    let check = |handle: &Handle| {
        if broken.borrow().is_none()
            && let Err(what) = invariants(handle, &watched, &segment, connections_max)
        {
            *broken.borrow_mut() = Some(what);
        }
    };
    let main = play(Rc::clone(&env), proxy, text.clone(), rng, segment.clone(), drains_at_ms, swaps_at_ms);
    runtime.block_on_stepped(main, check);
    if let Some(what) = broken.borrow_mut().take() {
        env.ledger.violation(format!("invariant: {what}"));
    }
    if runtime.panics() > 0 {
        env.ledger.violation(format!("{} tasks panicked", runtime.panics()));
    }
    let virtual_ms = handle.now_ms();
    drop(watched);
    drop(runtime);
    let stats = handle.stats();
    let left = (stats.operations_outstanding, stats.pool_slots_taken, stats.sockets);
    if left != (0, 0, 0) {
        env.ledger.violation(format!("{left:?} operations, slots and sockets outlive the runtime"));
    }
    for (name, value) in gauges(&segment) {
        if value != 0 {
            env.ledger.violation(format!("{name} is {value} after the runtime's end"));
        }
    }
    Report {
        seed,
        trace: env.trace.hash(),
        violations: env.ledger.violations(),
        errors: ErrorKind::ALL.iter().map(|kind| segment.sum_errors(*kind as u8)).collect(),
        metrics: Metric::ALL.iter().map(|metric| segment.value(0, *metric)).collect(),
        seen: env.ledger.seen(),
        virtual_ms,
        world: format!("{profile:?}\n{times:?}\ndrains {drains_at_ms:?} swaps {swaps_at_ms:?}\n{text}"),
    }
}

/// The main task: starts everybody, waits, drains, and looks at what is left.
async fn play(
    env: Rc<Env>,
    proxy: Rc<Proxy>,
    text: String,
    rng: Rng,
    segment: Segment,
    drains_at_ms: Option<u64>,
    swaps_at_ms: Option<u64>,
) {
    let handle = &env.handle;
    for (number, (ip, port)) in [ENDPOINT_A, ENDPOINT_B].into_iter().enumerate() {
        let listener = TcpListener::simulated(handle, SocketAddr::from((ip, port))).expect("a free address");
        handle.spawn(upstream::listen(Rc::clone(&env), listener, 2 + number as u64));
    }
    let listener = TcpListener::simulated(handle, env.gateway).expect("a free address");
    let info = Rc::new(Listener::new(env.gateway, true));
    let accepts = Rc::new(Cell::new(true));
    let (accepting, open) = (accept(Rc::clone(&proxy), listener, info), Rc::clone(&accepts));
    let ticker = handle.clone();
    handle.spawn(async move {
        let mut accepting = pin!(accepting);
        while open.get() {
            let mut pause = pin!(ticker.sleep(Duration::from_millis(10)));
            poll_fn(|cx| match accepting.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => pause.as_mut().poll(cx),
            })
            .await;
        }
    });
    let sweeper = Rc::downgrade(&proxy);
    let ticker = handle.clone();
    handle.spawn(async move {
        while let Some(proxy) = sweeper.upgrade() {
            proxy.sweep();
            drop(proxy);
            ticker.sleep(TICK).await;
        }
    });

    let clients = 6 + rng.below(9);
    let left = Rc::new(Cell::new(clients));
    let mut doing = Vec::new();
    for number in 0..clients {
        let client = Client {
            env: Rc::clone(&env),
            rng: Rng::new(rng.next()),
            number,
            doing: Rc::new(RefCell::new(String::new())),
        };
        doing.push(Rc::clone(&client.doing));
        let (left, done) = (Rc::clone(&left), Rc::clone(&client.doing));
        handle.spawn(async move {
            client.run().await;
            done.borrow_mut().clear();
            left.set(left.get() - 1);
        });
    }

    let began_ms = handle.now_ms();
    let mut drain_ends_ms = None;
    let mut swap = swaps_at_ms;
    while left.get() > 0 {
        handle.sleep(Duration::from_millis(20)).await;
        let now_ms = handle.now_ms() - began_ms;
        if swap.is_some_and(|at_ms| now_ms >= at_ms) {
            swap = None;
            proxy.swap(snapshot(&text, 2));
        }
        match (drains_at_ms, drain_ends_ms) {
            (Some(at_ms), None) if now_ms >= at_ms => {
                env.drains.set(true);
                proxy.drain();
                handle.sleep(Duration::from_millis(20)).await;
                accepts.set(false);
                drain_ends_ms = Some(now_ms + env.times.drain.as_millis() as u64);
            }
            (_, Some(ends_ms)) if proxy.connections.is_empty() => {
                env.ledger.count(if now_ms <= ends_ms { "drain in time" } else { "drain late" });
                return;
            }
            (_, Some(ends_ms)) if now_ms >= ends_ms => {
                // As the worker does: what is left is cut, here by the end of the runtime.
                env.ledger.count("drain deadline");
                return;
            }
            _ => {}
        }
        if now_ms > HANG.as_millis() as u64 {
            for (number, doing) in doing.iter().enumerate() {
                if !doing.borrow().is_empty() {
                    env.ledger.violation(format!("client {number} hangs: {}", doing.borrow()));
                }
            }
            return;
        }
    }
    at_rest(&env, &proxy, &segment).await;
}

/// With every client gone, everything must come to rest within the deadlines.
async fn at_rest(env: &Env, proxy: &Proxy, segment: &Segment) {
    let times = &env.times;
    let longest =
        [times.keep_alive, times.head, times.body, times.send, times.first_byte, times.upstream_body];
    let most = longest.iter().max().copied().unwrap_or_default() * 4 + Duration::from_secs(10);
    let until_ms = env.handle.now_ms() + most.as_millis() as u64;
    while !proxy.connections.is_empty() && env.handle.now_ms() < until_ms {
        env.handle.sleep(Duration::from_millis(20)).await;
    }
    if !proxy.connections.is_empty() {
        for row in proxy.connections.rows(10, env.handle.now_ms()) {
            env.ledger.violation(format!("still open {most:?} after the last client: {row:?}"));
        }
        return;
    }
    let value = |metric: Metric| segment.value(0, metric);
    if value(Metric::UpstreamActive) != value(Metric::UpstreamIdle) {
        env.ledger.violation("upstream connections are in use by nobody".to_owned());
    }
    env.handle.sleep(times.upstream_idle + TICK * 2).await;
    for (name, value) in gauges(segment) {
        if value != 0 {
            env.ledger.violation(format!("{name} is {value} at rest"));
        }
    }
}

/// Every gauge of the worker and the sum of requests in flight.
fn gauges(segment: &Segment) -> Vec<(String, u64)> {
    let gauges = Metric::ALL.iter().filter(|metric| metric.description().kind == Kind::Gauge);
    let mut all: Vec<_> =
        gauges.map(|metric| (metric.description().name.to_owned(), segment.value(0, *metric))).collect();
    all.push(("in_flight".to_owned(), in_flight(segment)));
    all
}

fn in_flight(segment: &Segment) -> u64 {
    let rows = (0..ROWS as u16).filter_map(|row| segment.endpoint(0, row));
    rows.map(|row| u64::from(row.in_flight.load(Relaxed))).sum()
}

/// What must hold between two turns.
fn invariants(handle: &Handle, proxy: &Proxy, segment: &Segment, connections_max: u64) -> Result<(), String> {
    handle.check_invariants()?;
    let value = |metric: Metric| segment.value(0, metric);
    let (active, idle) = (value(Metric::UpstreamActive), value(Metric::UpstreamIdle));
    let (requests, downstream) = (value(Metric::RequestsActive), value(Metric::DownstreamActive));
    let in_flight = in_flight(segment);
    let open = proxy.connections.len() as u64;
    let same = |what: &str, a: u64, b: u64| if a == b { Ok(()) } else { Err(format!("{what}: {a} and {b}")) };
    same("upstream connections that are not idle, requests in flight", active.wrapping_sub(idle), in_flight)?;
    same("downstream connections counted and registered", downstream, open)?;
    let bound =
        |what: &str, a: u64, b: u64| if a <= b { Ok(()) } else { Err(format!("{what}: {a} beyond {b}")) };
    bound("requests in flight, active", in_flight, requests)?;
    bound("active requests, connections", requests, open)?;
    // Who was asked to close may still be there when the next comes in.
    bound("downstream connections", open, connections_max * 2)?;
    let (unread, unsent, held) = handle.largest_queues();
    same("pool slots held by tasks that wait, none", held as u64, 0)?;
    bound("unread bytes of a connection", unread as u64, UNREAD_BYTES_MAX as u64)?;
    bound("unsent bytes of a connection", unsent as u64, UNSENT_BYTES_MAX as u64)
}

/// Error kinds that no seed can reach, each with its reason.
const UNREACHED: &[(ErrorKind, &str)] = &[
    (ErrorKind::PlainOnTls, "the simulated listener has no TLS"),
    (ErrorKind::TlsHandshake, "as above"),
    (ErrorKind::TlsHandshakeTimeout, "as above"),
    (ErrorKind::GrpcTimeout, "simulated clients do not speak gRPC"),
    (ErrorKind::Denied, "no policy of this release denies requests"),
    (ErrorKind::DnsFailure, "names are resolved beside the workers; here an upstream has no address"),
    (ErrorKind::DnsTimeout, "as above"),
    (ErrorKind::UpstreamConnectFailed, "the simulated network refuses, is silent, or has no route"),
    (ErrorKind::UpstreamTlsHandshake, "the simulated endpoints have no TLS; see `tls::connector`"),
    (ErrorKind::UpstreamCertificate, "as above"),
    (ErrorKind::UpstreamTlsAlert, "as above"),
    (
        ErrorKind::UpstreamTunnelReset,
        "the scripts ask for no switch; tunnels have tests in virtual time, `tests::tunnel`",
    ),
    (ErrorKind::TunnelIdle, "as above"),
    (ErrorKind::TunnelLifetime, "as above"),
    (ErrorKind::UpstreamConnectionLimit, "upstreams have no connection limit in this release"),
    (ErrorKind::Draining, "a draining worker answers and closes; it refuses nobody"),
    (ErrorKind::Loop, "loops are not detected in this release"),
    (
        ErrorKind::Configuration,
        "routes have their upstreams, and no script asks one of HTTP/2 alone for a switch",
    ),
    (ErrorKind::Internal, "a mistake in the gateway"),
];

/// Metrics that must have counted over all seeds: the deadline of each phase, the ways in which
/// connections end, and what the pools and retries are for.
const REACHED: &[Metric] = &[
    Metric::DeadlineRequestHead,
    Metric::DeadlineRequestBody,
    Metric::DeadlineKeepAlive,
    Metric::DeadlineSend,
    Metric::DeadlineUpstreamConnect,
    Metric::DeadlineUpstreamFirstByte,
    Metric::DeadlineUpstreamBody,
    Metric::DeadlineUpstreamIdle,
    Metric::DownstreamClosedByClient,
    Metric::DownstreamClosedAfterAnswer,
    Metric::DownstreamClosedIdle,
    Metric::DownstreamClosedDeadline,
    Metric::DownstreamClosedError,
    Metric::DownstreamClosedOverload,
    Metric::DownstreamClosedDrain,
    Metric::UpstreamReuses,
    Metric::UpstreamRetries,
    Metric::UpstreamEjections,
    Metric::UpstreamUnavailable,
    Metric::PoolClosedStale,
    Metric::PoolClosedIdle,
    Metric::PoolClosedFull,
    Metric::PoolClosedRemoved,
];

/// The sum over all seeds.
#[derive(Default)]
struct Coverage {
    errors: Vec<u64>,
    metrics: Vec<u64>,
    seen: BTreeMap<String, u64>,
    virtual_ms: u64,
}

impl Coverage {
    fn add(&mut self, report: &Report) {
        self.errors.resize(report.errors.len(), 0);
        self.metrics.resize(report.metrics.len(), 0);
        self.errors.iter_mut().zip(&report.errors).for_each(|(sum, count)| *sum += count);
        self.metrics.iter_mut().zip(&report.metrics).for_each(|(sum, count)| *sum += count);
        for (what, count) in &report.seen {
            *self.seen.entry(what.clone()).or_default() += count;
        }
        self.virtual_ms += report.virtual_ms;
    }

    fn metric(&self, metric: Metric) -> u64 {
        self.metrics.get(metric.slot()).copied().unwrap_or(0)
    }

    fn table(&self) -> String {
        let mut table = String::from("error kind\n");
        for (kind, count) in ErrorKind::ALL.iter().zip(&self.errors) {
            let why = UNREACHED.iter().find(|(other, _)| other == kind).map_or("", |(_, why)| *why);
            let _ = writeln!(table, "  {:34}{count:8}  {why}", kind.label());
        }
        table += "phase, connection, pool\n";
        for metric in REACHED {
            let _ = writeln!(table, "  {:34}{:8}", format!("{metric:?}"), self.metric(*metric));
        }
        table += "seen\n";
        for (what, count) in &self.seen {
            let _ = writeln!(table, "  {what:34}{count:8}");
        }
        table
    }

    /// What the seeds have not shown.
    fn missing(&self) -> Vec<String> {
        let is_excused = |kind: &ErrorKind| UNREACHED.iter().any(|(other, _)| other == kind);
        let kinds = ErrorKind::ALL.iter().zip(&self.errors);
        let mut missing: Vec<String> = kinds
            .filter(|(kind, count)| (**count == 0) != is_excused(kind))
            .map(|(kind, count)| format!("{kind:?}: {count}"))
            .collect();
        missing.extend(
            REACHED.iter().filter(|metric| self.metric(**metric) == 0).map(|metric| format!("{metric:?}")),
        );
        let faults = plan::Behaviour::BAD.iter().chain(&plan::Behaviour::GOOD);
        let seen = faults.map(|behaviour| format!("upstream {behaviour:?}"));
        let seen = seen.chain(["upstream NeverReads", "drain deadline", "drain in time"].map(str::to_owned));
        missing.extend(seen.filter(|what| !self.seen.contains_key(what)));
        missing
    }
}

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: no number")))
}

#[test]
fn every_seed_keeps_the_rules_and_together_they_reach_every_phase() {
    if let Some(seed) = number_from_environment("BLITZ_SIM_SEED") {
        let report = run(seed);
        println!("seed {seed}: {} virtual ms, trace {:016x}", report.virtual_ms, report.trace);
        println!("{}", report.world);
        let mut coverage = Coverage::default();
        coverage.add(&report);
        println!("{}", coverage.table());
        assert!(report.violations.is_empty(), "seed {seed}:\n  {}", report.violations.join("\n  "));
        return;
    }
    let seeds = number_from_environment("BLITZ_SIM_SEEDS").unwrap_or(SEEDS);
    let mut coverage = Coverage::default();
    let mut failed = Vec::new();
    for seed in 0..seeds {
        let report = run(seed);
        coverage.add(&report);
        if !report.violations.is_empty() {
            failed.push(format!("BLITZ_SIM_SEED={}:\n  {}", report.seed, report.violations.join("\n  ")));
        }
    }
    println!("{seeds} seeds, {} virtual seconds\n{}", coverage.virtual_ms / 1000, coverage.table());
    assert!(failed.is_empty(), "{} of {seeds} seeds failed\n{}", failed.len(), failed.join("\n"));
    if seeds >= SEEDS {
        assert!(coverage.missing().is_empty(), "never reached: {}", coverage.missing().join(", "));
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 11, 42, 1001] {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.virtual_ms, second.virtual_ms, "seed {seed}");
    }
    assert_ne!(run(3).trace, run(4).trace);
}
