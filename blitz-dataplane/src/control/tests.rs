//! The whole control side with a small loop of its own: start, serve, kill, reload, names, drain.
//!
//! The loop answers each line of a client with one line about itself. In mode mp the workers are processes of
//! this test program, which the test `worker_process` turns into.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blitz_config::{Config, Overrides};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ProtocolConfig};
use tokio::sync::oneshot;

use super::load::ConfigOrigin;
use super::names::{Lookup, Schedule, Sources};
use super::*;
use crate::metrics::Metric;
use crate::process::endpoints::ResolvedEndpoints;
use crate::process::launch::{Mode, inherited_channel};
use crate::process::messages::{IoMode, LogLevel};
use crate::process::worker::{Boot, Place, WorkerCode, WorkerError, worker_main};
use crate::process::{BoundListener, Order, Orders};
use crate::secret::Secret;
use crate::segment::{WorkerState, add_u32};

/// A loop that does what the tests need.
struct Echo;

struct EchoSnapshot {
    generation: u64,
    endpoints: Vec<SocketAddr>,
    routes: usize,
}

impl WorkerCode for Echo {
    type Snapshot = EchoSnapshot;
    const ERROR_LABELS: &'static [&'static str] = &["none"];

    fn compile(
        config: &Config,
        _files: &crate::tls::Files,
        endpoints: &ResolvedEndpoints,
        generation: u64,
    ) -> Result<EchoSnapshot, String> {
        let has = |name: &str| config.upstreams.iter().any(|upstream| upstream.name == name);
        if has("uncompilable") {
            return Err("this upstream cannot be compiled".to_owned());
        }
        // The supervisor's test compile has generation 0, the boot of the first worker 1.
        if has("uncompilable-later") && generation > 1 {
            return Err("this worker cannot compile it".to_owned());
        }
        if has("slow") && generation > 1 {
            std::thread::sleep(Duration::from_millis(300));
        }
        let endpoints = endpoints.iter().map(|(_, resolved)| resolved.address).collect();
        Ok(EchoSnapshot { generation, endpoints, routes: config.routes.len() })
    }

    fn run(boot: Boot<EchoSnapshot>, orders: Orders<EchoSnapshot>) -> Result<(), WorkerError> {
        let Boot { worker, incarnation, rows, mut snapshot, generation, listeners, .. } = boot;
        let listen = |bound: BoundListener| {
            let listener = TcpListener::from(bound.fd);
            listener.set_nonblocking(true).expect("nonblocking");
            (bound.address, listener)
        };
        let mut listeners: Vec<_> = listeners.into_iter().map(listen).collect();
        assert_eq!(snapshot.generation, generation);
        orders.applied(generation);
        let mut draining = None;
        loop {
            for order in orders.take() {
                match order {
                    Order::Snapshot { generation, snapshot: new } => {
                        snapshot = new;
                        orders.applied(generation);
                    }
                    Order::Listeners { added, removed } => {
                        listeners.retain(|(address, _)| !removed.contains(&address.place()));
                        listeners.extend(added.into_iter().map(listen));
                    }
                    Order::Drain { deadline } => {
                        rows.status().set_state(WorkerState::Draining);
                        draining = Some(deadline);
                    }
                    Order::Stop => return Ok(()),
                    // It speaks no HTTP/3: there is nothing to record.
                    Order::Record { .. } => {}
                    Order::ListConnections(reply) => {
                        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
                        let row = ConnectionRow {
                            id: 1,
                            peer: address,
                            local: address,
                            state: "idle".to_owned(),
                            requests: 2,
                            age_ms: 3,
                        };
                        reply.send(vec![row]);
                    }
                }
            }
            let mut is_idle = true;
            for (address, listener) in &listeners {
                let Ok((mut client, _)) = listener.accept() else {
                    continue;
                };
                is_idle = false;
                rows.add(Metric::DownstreamAccepted, 1);
                client.set_nonblocking(false).expect("blocking");
                client.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
                let mut line = String::new();
                let _lost = BufReader::new(client.try_clone().expect("dup")).read_line(&mut line);
                match line.trim() {
                    "panic" => panic!("as asked"),
                    "in flight" => add_u32(&rows.endpoint(0).expect("row").in_flight, 1),
                    "has no rights" => {
                        let sets = crate::sys::privilege::capabilities().expect("capget");
                        assert_eq!(sets, (0, 0));
                    }
                    _ => {}
                }
                let (pid, g, routes) = (std::process::id(), snapshot.generation, snapshot.routes);
                let _lost = writeln!(
                    client,
                    "worker={worker} incarnation={incarnation} pid={pid} generation={g} routes={routes} \
                     port={} endpoints={:?}",
                    address.configured.port(),
                    snapshot.endpoints
                );
            }
            if is_idle {
                if draining.is_some() {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Not a test of its own: what worker processes of the other tests execute.
#[test]
fn worker_process() {
    let Some(channel) = inherited_channel() else {
        return;
    };
    logging_for_tests();
    let (channel, supervisor): (UnixStream, u32) = channel.expect("channel");
    let result = worker_main::<Echo>(channel, Place::Process { supervisor });
    std::process::exit(i32::from(result.is_err()));
}

fn logging_for_tests() {
    if std::env::var_os("BLITZ_TEST_LOG").is_some() {
        crate::logging::install(log::LevelFilter::Debug);
    }
}

struct Gateway {
    startup: Startup,
    thread: Option<JoinHandle<Result<Outcome, String>>>,
}

fn options(mode: Mode, workers: usize, origin: ConfigOrigin, on_ready: oneshot::Sender<Startup>) -> Options {
    Options {
        origin,
        mode,
        worker_arguments: ["--exact", "control::tests::worker_process", "--nocapture"].map(Into::into).into(),
        cores: vec![None; workers],
        io: IoMode::Auto,
        log_level: LogLevel::Info,
        trace: false,
        tls: Default::default(),
        admin: AdminChoice::Configured,
        secret: Secret::generate().expect("secret"),
        ctl_socket: "/nonexistent/ctl.sock".into(),
        names: (Sources::default(), Schedule::RECOMMENDED),
        on_ready: Some(on_ready),
    }
}

fn command_line(backends: &[&str]) -> ConfigOrigin {
    let overrides = Overrides {
        backends: backends.iter().map(|backend| (*backend).to_owned()).collect(),
        port: Some(0),
        admin: Some("127.0.0.1:0".to_owned()),
        ..Overrides::default()
    };
    ConfigOrigin { path: None, overrides }
}

impl Gateway {
    fn start(mode: Mode, workers: usize, origin: ConfigOrigin) -> Self {
        Self::with(|on_ready| options(mode, workers, origin, on_ready))
    }

    fn with(options: impl FnOnce(oneshot::Sender<Startup>) -> Options) -> Self {
        logging_for_tests();
        let (on_ready, ready) = oneshot::channel();
        let options = options(on_ready);
        let thread = std::thread::spawn(move || run(options, Code::of::<Echo>()));
        match ready.blocking_recv() {
            Ok(startup) => Self { startup, thread: Some(thread) },
            Err(_) => panic!("no start: {:?}", thread.join()),
        }
    }

    fn address(&self) -> SocketAddr {
        let mut address = self.startup.listeners[0].bound;
        address.set_ip(Ipv4Addr::LOCALHOST.into());
        address
    }

    fn ask(&self, line: &str) -> Answer {
        ask(self.address(), line).expect("answer")
    }

    fn admin(&self, method: &str, path: &str) -> (u16, String) {
        admin(self.startup.admin.expect("admin"), method, path)
    }

    fn end(mut self) -> Outcome {
        assert_eq!(self.admin("POST", "/drain").0, 202);
        self.thread.take().expect("thread").join().expect("no panic").expect("clean end")
    }
}

#[derive(Debug)]
struct Answer(String);

impl Answer {
    fn number(&self, key: &str) -> u64 {
        let value = self.0.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{key} in {}", self.0))
    }
}

fn ask(address: SocketAddr, line: &str) -> Option<Answer> {
    let mut stream =
        TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("the address never refuses");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    writeln!(stream, "{line}").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(Answer(answer))
}

fn admin(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("admin");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        .expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head");
    (head[9..12].parse().expect("status"), body.to_owned())
}

/// Waits until `condition` gives a value.
fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn send_signal(pid: u64, name: &str) {
    let status = std::process::Command::new("kill").args([format!("-{name}"), pid.to_string()]).status();
    assert!(status.expect("kill(1)").success());
}

#[test]
fn both_modes_start_serve_report_and_drain() {
    for mode in [Mode::Mp, Mode::Sp] {
        let gateway = Gateway::start(mode, 2, command_line(&["127.0.0.1:9001"]));
        let workers: BTreeSet<u64> = (0..64).map(|_| gateway.ask("hello").number("worker")).collect();
        assert_eq!(workers, BTreeSet::from([0, 1]), "the kernel spreads connections over the bank");
        let line = if mode == Mode::Mp { "has no rights" } else { "x" };
        let is_own_process = gateway.ask(line).number("pid") != u64::from(std::process::id());
        assert_eq!(is_own_process, mode == Mode::Mp);
        assert_eq!(gateway.admin("GET", "/healthz").0, 200);
        assert_eq!(gateway.admin("GET", "/readyz"), (200, "ready\n".to_owned()));
        let (status, text) = gateway.admin("GET", "/metrics");
        assert_eq!(status, 200);
        assert!(text.contains("blitz_downstream_connections_total 65"), "{text}");
        assert!(
            text.contains("blitz_endpoint_in_flight{upstream=\"default\",address=\"127.0.0.1:9001\"} 0"),
            "{text}"
        );
        let (_, connections) = gateway.admin("GET", "/connections");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&connections).expect("JSON")["count"], 2);
        let (_, config) = gateway.admin("GET", "/config");
        let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
        assert_eq!((&config["state"], &config["generation"]), (&"serving".into(), &1.into()));
        assert_eq!(config["workers"].as_array().map(Vec::len), Some(2));
        let (status, text) = gateway.admin("GET", "/nothing");
        assert!(status == 404 && text.contains("/upstreams"), "{text}");
        assert_eq!(gateway.admin("GET", "/reload").0, 405);
        let (status, upstreams) = gateway.admin("GET", "/upstreams");
        assert!(status == 200 && upstreams.contains("127.0.0.1:9001"), "{upstreams}");
        assert!(gateway.admin("GET", "/").1.contains("<title>Blitz</title>"));
        let address = gateway.address();
        assert_eq!(gateway.end(), Outcome::Ended);
        assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    }
}

#[test]
fn a_killed_worker_is_replaced_and_leaks_nothing() {
    let gateway = Gateway::start(Mode::Mp, 2, command_line(&["127.0.0.1:9001"]));
    let segment = gateway.startup.segment.clone();
    let pid = |worker| u64::from(segment.status(worker).expect("row").pid.load(Ordering::Acquire));
    let other = pid(1);
    let mut slowest = Duration::ZERO;
    for round in 1..=12u64 {
        for _ in 0..8 {
            gateway.ask("in flight");
        }
        let victim = pid(0);
        let accepted = segment.value(0, Metric::DownstreamAccepted);
        let killed = Instant::now();
        send_signal(victim, "KILL");
        let status = segment.status(0).expect("row");
        eventually("a successor serves", || {
            (u64::from(status.pid.load(Ordering::Acquire)) != victim
                && status.state() == WorkerState::Serving)
                .then_some(())
        });
        slowest = slowest.max(killed.elapsed());
        assert!(segment.value(0, Metric::DownstreamAccepted) >= accepted, "counters survive");
        let row = segment.endpoint(0, 0).expect("row");
        assert_eq!(row.in_flight.load(Ordering::Relaxed), 0, "round {round}");
        assert_eq!(pid(1), other, "the other worker notices nothing");
    }
    // 100 ms is the promise for release builds on an idle machine; here the test program boots, unoptimized,
    // beside other tests.
    println!("slowest replacement: {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    eventually("all restarts are counted", || (segment.sum(Metric::WorkerRestarts) == 12).then_some(()));
    // Connections that the dead worker had not accepted are served by its successor: none is refused, none is
    // lost.
    let address = gateway.address();
    let victim = pid(0);
    send_signal(victim, "STOP");
    let clients: Vec<_> = (0..16).map(|_| std::thread::spawn(move || ask(address, "patient"))).collect();
    std::thread::sleep(Duration::from_millis(50));
    send_signal(victim, "KILL");
    let answers: Vec<_> = clients.into_iter().filter_map(|client| client.join().expect("client")).collect();
    assert_eq!(answers.len(), 16, "{answers:?}");
    assert_eq!(gateway.end(), Outcome::Ended);
}

#[test]
fn a_panicking_thread_is_replaced() {
    let gateway = Gateway::start(Mode::Sp, 2, command_line(&[]));
    let segment = gateway.startup.segment.clone();
    assert!(ask(gateway.address(), "panic").is_none());
    eventually("the thread is replaced", || (segment.sum(Metric::WorkerRestarts) == 1).then_some(()));
    eventually("all serve again", || (gateway.admin("GET", "/readyz").0 == 200).then_some(()));
    let incarnations: BTreeSet<u64> = (0..64).map(|_| gateway.ask("hello").number("incarnation")).collect();
    assert_eq!(incarnations, BTreeSet::from([1, 2]));
    assert_eq!(gateway.end(), Outcome::Ended);
}

/// A configuration file with listeners on `ports` and endpoints on `endpoints`.
fn write_config(path: &Path, ports: &[u16], endpoints: std::ops::Range<u16>, routes: usize) {
    let listeners: Vec<_> = ports
        .iter()
        .map(|port| serde_json::json!({ "name": format!("l{port}"), "address": format!("127.0.0.1:{port}") }))
        .collect();
    let endpoints: Vec<_> =
        endpoints.map(|port| serde_json::json!({ "address": format!("127.0.0.1:{port}") })).collect();
    // One upstream may have 1024 endpoints, so more rows than there are take two.
    let (api, rest) = endpoints.split_at(endpoints.len().min(1024));
    let mut upstreams = serde_json::json!({ "api": { "endpoints": api } });
    if !rest.is_empty() {
        upstreams["rest"] = serde_json::json!({ "endpoints": rest });
    }
    let routes: Vec<_> = (0..routes)
        .map(|n| serde_json::json!({ "path": format!("/r{n}/*rest"), "upstream": "api" }))
        .collect();
    let config = serde_json::json!({
        "listeners": listeners, "upstreams": upstreams, "routes": routes,
    });
    std::fs::write(path, config.to_string()).expect("write");
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port()
}

fn file_origin(path: &Path) -> ConfigOrigin {
    let overrides = Overrides { admin: Some("127.0.0.1:0".to_owned()), ..Overrides::default() };
    ConfigOrigin { path: Some(path.to_owned()), overrides }
}

#[test]
fn a_reload_is_all_or_nothing() {
    for mode in [Mode::Mp, Mode::Sp] {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("edge.json");
        let (first, second) = (free_port(), free_port());
        write_config(&path, &[first], 9001..9003, 1);
        let gateway = Gateway::start(mode, 2, file_origin(&path));
        let segment = gateway.startup.segment.clone();
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        assert_eq!(ask(local(first), "x").expect("answer").number("generation"), 1);

        write_config(&path, &[first, second], 9002..9005, 5000);
        let (status, report) = gateway.admin("POST", "/reload");
        assert_eq!(status, 200, "{report}");
        for port in [first, second] {
            let answer = ask(local(port), "x").expect("answer");
            assert_eq!((answer.number("generation"), answer.number("routes")), (2, 5000));
            assert_eq!(answer.number("port"), u64::from(port));
            assert!(
                answer.0.contains("endpoints=[127.0.0.1:9002, 127.0.0.1:9003, 127.0.0.1:9004]"),
                "{}",
                answer.0
            );
        }

        let refused = |why: &str| {
            let (status, report) = gateway.admin("POST", "/reload");
            assert!(status == 422 && report.contains(why), "{report}");
            assert_eq!(ask(local(second), "x").expect("answer").number("generation"), 2);
            assert!(gateway.admin("GET", "/config").1.contains(why));
        };
        std::fs::write(&path, "{\"listeners\": [{\"nam").expect("write");
        refused("edge.json");
        std::fs::write(&path, r#"{"listners": []}"#).expect("write");
        refused("listners");
        let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
        let taken_port = taken.local_addr().expect("address").port();
        write_config(&path, &[first, taken_port], 9001..9002, 1);
        refused("the address is in use");
        write_config(&path, &[first], 9001..10_026, 1);
        refused("room for 1024");
        let text = std::fs::read_to_string(&path).expect("read").replace("api", "uncompilable");
        std::fs::write(&path, text).expect("write");
        refused("cannot be compiled");
        write_config(&path, &[first], 9001..9002, 1);
        let text = std::fs::read_to_string(&path).expect("read");
        let later = text.replace("api", "uncompilable-later");
        std::fs::write(&path, later).expect("write");
        refused("this worker cannot compile it");
        assert_eq!(segment.sum(Metric::ConfigReloadFailures), 6);

        // The second listener goes; the kernel then refuses connections to it.
        write_config(&path, &[first], 9002..9003, 1);
        assert_eq!(gateway.admin("POST", "/reload").0, 200);
        let latest = ask(local(first), "x").expect("answer").number("generation");
        assert!(latest > 2, "{latest}");
        eventually("the removed listener is closed", || {
            TcpStream::connect(local(second)).is_err().then_some(())
        });

        // A worker that starts later begins with the configuration in effect.
        if mode == Mode::Mp {
            let victim = segment.status(0).expect("row").pid.load(Ordering::Acquire);
            send_signal(u64::from(victim), "KILL");
            eventually("the successor uses the latest generation", || {
                let status = segment.status(0).expect("row");
                let is_new = status.pid.load(Ordering::Acquire) != victim;
                (is_new && status.snapshot_generation.load(Ordering::Acquire) == latest).then_some(())
            });
        }
        assert_eq!(segment.sum(Metric::ConfigReloads), 2);
        assert_eq!(gateway.end(), Outcome::Ended);
    }
}

#[test]
fn a_worker_that_dies_while_others_compile_is_replaced_and_swaps_with_them() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("edge.json");
    let port = free_port();
    write_config(&path, &[port], 9001..9002, 1);
    let gateway = Gateway::start(Mode::Mp, 2, file_origin(&path));
    let segment = gateway.startup.segment.clone();
    let text = std::fs::read_to_string(&path).expect("read").replace("api", "slow");
    std::fs::write(&path, text).expect("write");
    let admin_address = gateway.startup.admin.expect("admin");
    let reload = std::thread::spawn(move || admin(admin_address, "POST", "/reload"));
    std::thread::sleep(Duration::from_millis(100));
    let victim = segment.status(0).expect("row").pid.load(Ordering::Acquire);
    send_signal(u64::from(victim), "KILL");
    let (status, report) = reload.join().expect("reload");
    assert_eq!(status, 200, "{report}");
    let is_done =
        |worker| segment.status(worker).expect("row").snapshot_generation.load(Ordering::Acquire) == 2;
    eventually("both use generation 2", || (is_done(0) && is_done(1)).then_some(()));
    assert_ne!(segment.status(0).expect("row").pid.load(Ordering::Acquire), victim);
    assert_eq!(gateway.end(), Outcome::Ended);
}

#[test]
fn a_start_that_cannot_be_fails_with_the_reason() {
    let taken = TcpListener::bind("0.0.0.0:0").expect("bind");
    let port = taken.local_addr().expect("address").port();
    let fail = |origin: ConfigOrigin| {
        let (on_ready, _ready) = oneshot::channel();
        run(options(Mode::Sp, 1, origin, on_ready), Code::of::<Echo>()).expect_err("no start")
    };
    let mut origin = command_line(&[]);
    origin.overrides.port = Some(port);
    let error = fail(origin);
    assert!(
        error.contains(&format!("cannot listen on 0.0.0.0:{port}")) && error.contains("ss -ltnp"),
        "{error}"
    );
    let mut origin = command_line(&[]);
    origin.overrides.admin = Some(format!("127.0.0.1:{port}"));
    let error = fail(origin);
    assert!(error.contains("--admin") && error.contains("off"), "{error}");
    let error =
        fail(ConfigOrigin { path: Some(PathBuf::from("/nowhere.toml")), overrides: Overrides::default() });
    assert!(error.contains("/nowhere.toml"), "{error}");
}

/// A name server on loopback that answers A queries for `name` with what it is told, and AAAA with nothing.
struct NameServer {
    address: SocketAddr,
    answer: Arc<Mutex<Option<Ipv4Addr>>>,
    ttl_s: Arc<AtomicU32>,
    queries: Arc<AtomicU64>,
}

impl NameServer {
    fn start(answer: Ipv4Addr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let server = Self {
            address: socket.local_addr().expect("address"),
            answer: Arc::new(Mutex::new(Some(answer))),
            ttl_s: Arc::new(AtomicU32::new(1)),
            queries: Arc::default(),
        };
        let (answer, ttl_s, queries) =
            (Arc::clone(&server.answer), Arc::clone(&server.ttl_s), Arc::clone(&server.queries));
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((len, peer)) = socket.recv_from(&mut query) {
                queries.fetch_add(1, Ordering::Relaxed);
                let reply =
                    reply(&query[..len], *answer.lock().expect("lock"), ttl_s.load(Ordering::Relaxed));
                let _lost = socket.send_to(&reply, peer);
            }
        });
        server
    }

    fn sources(&self) -> Sources {
        let mut connection = ConnectionConfig::new(ProtocolConfig::Udp);
        connection.port = self.address.port();
        let server = NameServerConfig::new(self.address.ip(), true, vec![connection]);
        Sources {
            hosts: "/nowhere/hosts".into(),
            resolv_conf: "/nowhere/resolv.conf".into(),
            servers: Some(server),
        }
    }
}

/// An answer to a query with one question (RFC 1035 section 4.1): the header, the question as it came, at
/// most one record.
fn reply(query: &[u8], answer: Option<Ipv4Addr>, ttl_s: u32) -> Vec<u8> {
    let labels_end = 12 + query[12..].iter().position(|byte| *byte == 0).expect("root label") + 1;
    let question = &query[12..labels_end + 4];
    let is_a = query[labels_end..labels_end + 2] == [0, 1];
    let (rcode, record) = match answer {
        None => (2, None),
        Some(answer) => (0, is_a.then_some(answer)),
    };
    let mut reply =
        vec![query[0], query[1], 0x81, 0x80 | rcode, 0, 1, 0, u8::from(record.is_some()), 0, 0, 0, 0];
    reply.extend_from_slice(question);
    if let Some(address) = record {
        // A pointer to the name in the question, type A, class IN.
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        reply.extend_from_slice(&ttl_s.to_be_bytes());
        reply.extend_from_slice(&[0, 4]);
        reply.extend_from_slice(&address.octets());
    }
    reply
}

const QUICK: Schedule = Schedule {
    min: Duration::from_millis(20),
    max: Duration::from_millis(500),
    retry: Duration::from_millis(20),
    timeout: Duration::from_secs(2),
};

#[test]
fn a_changed_answer_reaches_the_workers_and_a_failed_lookup_keeps_the_last() {
    let server = NameServer::start(Ipv4Addr::new(127, 0, 0, 7));
    let gateway = Gateway::with(|on_ready| {
        let mut options = options(Mode::Sp, 2, command_line(&["api.example:9001"]), on_ready);
        options.names = (server.sources(), QUICK);
        options
    });
    assert!(gateway.ask("x").0.contains("endpoints=[127.0.0.7:9001]"));
    let segment = gateway.startup.segment.clone();
    *server.answer.lock().expect("lock") = Some(Ipv4Addr::new(127, 0, 0, 8));
    eventually("the new address", || gateway.ask("x").0.contains("endpoints=[127.0.0.8:9001]").then_some(()));
    assert!(segment.sum(Metric::DnsChanges) >= 1);

    *server.answer.lock().expect("lock") = None;
    eventually("a failure is counted", || (segment.sum(Metric::DnsLookupsFailed) > 0).then_some(()));
    assert!(gateway.ask("x").0.contains("endpoints=[127.0.0.8:9001]"), "the last good address stays");
    eventually("the failure is shown", || {
        gateway
            .admin("GET", "/metrics")
            .1
            .contains("blitz_dns_lookups_total{result=\"failed\"}")
            .then_some(())
    });
    *server.answer.lock().expect("lock") = Some(Ipv4Addr::new(127, 0, 0, 9));
    eventually("names recover", || gateway.ask("x").0.contains("127.0.0.9:9001").then_some(()));
    assert_eq!(gateway.end(), Outcome::Ended);
}

#[test]
fn an_unresolvable_name_does_not_stop_the_start() {
    let server = NameServer::start(Ipv4Addr::LOCALHOST);
    *server.answer.lock().expect("lock") = None;
    let gateway = Gateway::with(|on_ready| {
        let mut options =
            options(Mode::Sp, 1, command_line(&["gone.example:9001", "127.0.0.1:9002"]), on_ready);
        options.names = (server.sources(), QUICK);
        options
    });
    assert!(gateway.ask("x").0.contains("endpoints=[127.0.0.1:9002]"));
    assert_eq!(gateway.end(), Outcome::Ended);
}

#[test]
fn hosts_localhost_and_a_missing_resolv_conf() {
    let directory = tempfile::tempdir().expect("directory");
    let hosts = directory.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.5 box box.example # a comment\n::5 box\n").expect("write");
    let sources = Sources { hosts, resolv_conf: directory.path().join("absent"), servers: None };
    let lookup = Lookup::new(sources, QUICK);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let addresses = |name: &str| {
        let outcome = runtime.block_on(lookup.one(name));
        let addresses = outcome.addresses(&[]);
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(addresses("box"), ["127.0.0.5", "::5"]);
    assert_eq!(addresses("box.example"), ["127.0.0.5"]);
    assert_eq!(addresses("localhost"), ["127.0.0.1", "::1"]);
    assert_eq!(addresses("app.localhost"), ["127.0.0.1", "::1"]);
    assert!(addresses("nobody.invalid").is_empty());
}
