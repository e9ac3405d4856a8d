//! The gateway as a process.
//!
//! Owns: finding the binary, its command line, waiting until it is ready, its log, its end. Does not own:
//! what it proxies to (see [`crate::upstream`], [`crate::nginx`]).

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::netns::Network;
use crate::process::{self, Signal};
use crate::{Cell, Client, PATIENCE, Pki, Response, beside, free_port, sys, wait_until};

/// Where the binary is: `BLITZ_BIN`, else beside the test's own.
///
/// # Panics
/// When it is not there.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("BLITZ_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "BLITZ_BIN is {}, where no file is", path.display());
        return path;
    }
    // target/debug/deps/test-1234 -> target/debug/blitz
    let test = std::env::current_exe().expect("the test's own path is known");
    let path = test.parent().and_then(Path::parent).map(|dir| dir.join("blitz")).unwrap_or_default();
    assert!(
        path.is_file(),
        "{} is not built: run `cargo xtask test`, or `cargo build -p blitz-dataplane`, or set BLITZ_BIN",
        path.display()
    );
    path
}

/// What the gateway is started with.
#[derive(Clone, Debug)]
pub struct Setup {
    cell: Cell,
    backends: Vec<SocketAddr>,
    workers: usize,
    config: Option<String>,
    flags: Vec<String>,
    place: Option<(Network, SocketAddr)>,
    secret: Option<PathBuf>,
    environment: Vec<(String, PathBuf)>,
    locked_memory: Option<u64>,
    at_stop: Option<fn(&Gateway)>,
}

impl Setup {
    /// One worker, no upstream.
    pub fn new(cell: Cell) -> Self {
        Self {
            cell,
            backends: Vec::new(),
            workers: 1,
            config: None,
            flags: Vec::new(),
            place: None,
            secret: None,
            environment: Vec::new(),
            locked_memory: None,
            at_stop: None,
        }
    }

    /// Runs it in another network. `address` is where its configuration has it listen.
    pub fn inside(mut self, network: &Network, address: SocketAddr) -> Self {
        self.place = Some((network.clone(), address));
        self
    }

    /// Adds `-b`.
    pub fn backend(mut self, address: SocketAddr) -> Self {
        self.backends.push(address);
        self
    }

    /// Sets `-w`.
    pub fn workers(mut self, count: usize) -> Self {
        self.workers = count;
        self
    }

    /// Starts from a file of this TOML instead of flags; `@PORT@` becomes the listener's port.
    pub fn config(mut self, toml: &str) -> Self {
        self.config = Some(toml.to_owned());
        self
    }

    /// A file with one listener, one upstream of these endpoints that takes every path, and `more` after it.
    pub fn config_for(self, endpoints: &[SocketAddr], more: &str) -> Self {
        let toml = one_upstream(endpoints, more);
        self.config(&toml)
    }

    /// Keeps the master secret in this file, for a start after this one.
    pub fn secret(mut self, path: &Path) -> Self {
        self.secret = Some(path.to_owned());
        self
    }

    /// Lets it lock so many bytes of memory (RLIMIT_MEMLOCK).
    pub fn locked_memory(mut self, bytes: u64) -> Self {
        self.locked_memory = Some(bytes);
        self
    }

    /// Has [`Gateway::stop`] look at something before.
    pub fn at_stop(mut self, look: fn(&Gateway)) -> Self {
        self.at_stop = Some(look);
        self
    }

    /// Sets a variable of its environment to a path.
    pub fn environment(mut self, name: &str, path: &Path) -> Self {
        self.environment.push((name.to_owned(), path.to_owned()));
        self
    }

    /// A file with one listener that speaks HTTP/1 and HTTP/2, an upstream of these endpoints (none: built-in answers
    /// only), and `more` after it.
    pub fn h2(self, endpoints: &[SocketAddr], more: &str) -> Self {
        let toml = if endpoints.is_empty() {
            format!("{LISTENER}\n{more}\n")
        } else {
            one_upstream(endpoints, more)
        };
        self.config(&toml.replace("[\"h1\"]", "[\"h1\", \"h2\"]"))
    }

    /// The same with endpoints that speak HTTP/2 (prior knowledge).
    pub fn h2_to_h2(self, endpoints: &[SocketAddr], more: &str) -> Self {
        let toml = one_upstream(endpoints, more).replace("[\"h1\"]", "[\"h1\", \"h2\"]");
        self.config(&toml.replace("[upstreams.pool]", "[upstreams.pool]\nprotocol = \"h2\""))
    }

    /// A file with one listener that speaks all protocols with the certificate of [`Pki::edge`], an upstream of these
    /// endpoints (none: built-in answers only), and `more` after it.
    pub fn h3(self, pki: &Pki, endpoints: &[SocketAddr], more: &str) -> Self {
        let listener = pki.h3_listener("");
        let toml = if endpoints.is_empty() {
            format!("{listener}\n{more}\n")
        } else {
            one_upstream(endpoints, more).replace(LISTENER, &listener)
        };
        self.config(&toml)
    }

    /// Adds a flag or its value.
    pub fn flag(mut self, word: &str) -> Self {
        self.flags.push(word.to_owned());
        self
    }

    /// Starts it and waits until `/readyz` says yes.
    #[track_caller]
    pub fn start(self) -> Gateway {
        let mut gateway = self.spawn();
        let begun = Instant::now();
        loop {
            if let Some(status) = gateway.ended() {
                panic!("the gateway ended with {status} before it was ready:\n{}", gateway.log());
            }
            // Connecting first: while the admin API is not up yet, that is no failure.
            if gateway.admin_listens() && gateway.admin("/readyz").status == 200 {
                return gateway;
            }
            assert!(begun.elapsed() < PATIENCE, "/readyz never said 200:\n{}", gateway.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Starts it and waits for nothing.
    pub fn spawn(self) -> Gateway {
        let scratch = tempfile::tempdir().expect("a scratch folder can be made");
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (mut address, admin) = (loopback(free_port()), loopback(free_port()));
        let mut command = Command::new(binary());
        if let Some(config) = &self.config {
            let path = scratch.path().join("blitz.toml");
            write_config(&path, config, address);
            command.arg("-c").arg(path);
        } else {
            for backend in &self.backends {
                command.args(["-b", &backend.to_string()]);
            }
            command.args(["-p", &address.port().to_string()]);
        }
        command.args(["-w", &self.workers.to_string(), "--admin", &admin.to_string()]);
        // Its own, so that no test leaves a secret in the state folder of whoever runs it.
        let secret = self.secret.clone().unwrap_or_else(|| scratch.path().join("master.secret"));
        command.arg("--secret-file").arg(secret);
        command.args(self.cell.flags()).args(&self.flags);
        command.envs(self.environment);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        sys::die_with_thread(&mut command);
        if let Some(bytes) = self.locked_memory {
            sys::limit_locked_memory(&mut command, bytes);
        }
        let network = self.place.map(|(network, listens)| {
            address = listens;
            network.contain(&mut command);
            network
        });
        let mut child = command.spawn().expect("the gateway can be executed");
        let log = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    log.push_str(&line);
                    log.push('\n');
                }
            });
        }
        Gateway { cell: self.cell, address, admin, network, at_stop: self.at_stop, child, log, scratch }
    }
}

/// TOML with one listener, one upstream of these endpoints that takes every path, and `more` after it.
pub fn one_upstream(endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<_> =
        endpoints.iter().map(|address| format!("{{ address = \"{address}\" }}")).collect();
    let endpoints = endpoints.join(", ");
    format!(
        r#"{LISTENER}
[upstreams.pool]
endpoints = [{endpoints}]

[[routes]]
path = "/*rest"
upstream = "pool"

{more}
"#
    )
}

/// The table of the one listener that tests use.
pub const LISTENER: &str = r#"
[[listeners]]
name = "edge"
address = "127.0.0.1:@PORT@"
protocols = ["h1"]
builtin_answers = true
"#;

fn write_config(path: &Path, text: &str, address: SocketAddr) {
    std::fs::write(path, text.replace("@PORT@", &address.port().to_string()))
        .expect("the file can be written");
}

/// A running gateway. Dropping it kills it with all its workers; its log is shown when the test failed.
#[derive(Debug)]
pub struct Gateway {
    cell: Cell,
    /// Where clients reach it.
    pub address: SocketAddr,
    /// Where its admin API listens.
    pub admin: SocketAddr,
    network: Option<Network>,
    at_stop: Option<fn(&Gateway)>,
    child: Child,
    log: Arc<Mutex<String>>,
    scratch: TempDir,
}

impl Gateway {
    /// A connection to it.
    #[track_caller]
    pub fn connect(&self) -> Client {
        self.connect_to(self.address)
    }

    /// A connection from where it runs.
    #[track_caller]
    fn connect_to(&self, address: SocketAddr) -> Client {
        match &self.network {
            Some(network) => network.run(|| Client::connect(address)),
            None => Client::connect(address),
        }
    }

    fn admin_listens(&self) -> bool {
        match &self.network {
            Some(network) => network.run(|| TcpStream::connect(self.admin).is_ok()),
            None => TcpStream::connect(self.admin).is_ok(),
        }
    }

    /// One GET on a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        let mut client = self.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"));
        client.response()
    }

    /// One GET to the admin API.
    #[track_caller]
    pub fn admin(&self, path: &str) -> Response {
        let mut client = self.connect_to(self.admin);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        client.response()
    }

    /// The value of a metric, by its name and labels as `/metrics` shows them.
    #[track_caller]
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.admin("/metrics").text();
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        found.unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    /// The sum of a metric over workers and labels.
    #[track_caller]
    pub fn sum(&self, name: &str) -> u64 {
        let text = self.admin("/metrics").text();
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value =
                rest.strip_prefix('{').and_then(|labels| labels.split_once("} ")).map(|(_, value)| value);
            value.or_else(|| rest.strip_prefix(' '))?.trim().parse::<u64>().ok()
        });
        values.sum()
    }

    /// The sum of every number called `in_flight` in `/upstreams`. `None` when there is none.
    #[track_caller]
    pub fn in_flight(&self) -> Option<i64> {
        let answer = self.admin("/upstreams");
        let value = serde_json::from_slice(&answer.body).expect("/upstreams is JSON");
        let mut found = Vec::new();
        numbers(&value, "in_flight", &mut found);
        (!found.is_empty()).then(|| found.iter().sum())
    }

    /// Runs `work`, and samples the memory of the workers every 5 ms meanwhile: the most that one had.
    pub fn peak_memory<T>(&self, work: impl FnOnce() -> T) -> (T, u64) {
        let peak = AtomicU64::new(0);
        // To look for them takes longer than to look at them.
        let workers = self.workers();
        let sample = |_| {
            for &pid in &workers {
                peak.fetch_max(process::own_bytes(pid), Ordering::SeqCst);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let result = beside(sample, work);
        (result, peak.into_inner())
    }

    /// The processes that do the work: the supervisor's children in mode mp, itself in mode sp.
    pub fn workers(&self) -> Vec<u32> {
        match self.cell.mode {
            crate::Mode::Mp => process::children(self.child.id()),
            crate::Mode::Sp => vec![self.child.id()],
        }
    }

    /// Replaces the configuration file. The gateway is not told.
    pub fn write_config(&self, toml: &str) {
        let path = self.scratch.path().join("blitz.toml");
        // Written aside and renamed, as editors and deployment tools do.
        let aside = self.scratch.path().join("blitz.toml.new");
        write_config(&aside, toml, self.address);
        std::fs::rename(aside, path).expect("the file can be replaced");
    }

    /// Sends a signal to the supervisor.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        assert!(process::send(self.child.id(), signal), "the gateway is gone:\n{}", self.log());
    }

    /// What it has written on stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the gateway is our child")
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        wait_until("the gateway ends", limit, || self.ended().is_some());
        self.ended().expect("it has just ended")
    }

    /// SIGTERM, and the end that must follow: exit code 0, no worker left.
    #[track_caller]
    pub fn stop(mut self) {
        if let Some(look) = self.at_stop {
            look(&self);
        }
        let workers = self.workers();
        self.signal(Signal::Term);
        let status = self.wait(PATIENCE);
        assert!(status.success(), "the gateway ended with {status}:\n{}", self.log());
        for pid in workers {
            wait_until("workers end with the supervisor", PATIENCE, || !process::is_running(pid));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        process::kill_group(self.child.id());
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the gateway ({})\n{}---", self.cell, self.log());
        }
    }
}

/// Every number under a key of this name, at any depth.
fn numbers(value: &serde_json::Value, key: &str, found: &mut Vec<i64>) {
    match value {
        serde_json::Value::Array(values) => values.iter().for_each(|value| numbers(value, key, found)),
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                if name == key {
                    found.extend(value.as_i64());
                }
                numbers(value, key, found);
            }
        }
        _ => {}
    }
}

/// Runs the binary to its end, for command lines that end by themselves; its exit status and both outputs.
#[track_caller]
pub fn run(args: &[&str]) -> (ExitStatus, String) {
    let mut command = Command::new(binary());
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    sys::die_with_thread(&mut command);
    let child = command.spawn().expect("the gateway can be executed");
    let pid = child.id();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let watcher = std::thread::spawn(move || {
        let in_time = is_done.recv_timeout(PATIENCE).is_ok();
        if !in_time {
            process::kill_group(pid);
        }
        in_time
    });
    let output = child.wait_with_output().expect("the outputs can be read");
    let _ = done.send(());
    let in_time = watcher.join().expect("the watcher does not panic");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(in_time, "blitz {} was still running after {PATIENCE:?}:\n{text}", args.join(" "));
    (output.status, text)
}
