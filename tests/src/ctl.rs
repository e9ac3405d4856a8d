//! `blitz-ctl` as a process, and a stage that it attached to a wire.
//!
//! Owns: finding the binary, running its verbs where the host end is, reading its counters. Does not own:
//! the wire, which takes the stage with it (see [`crate::wire`]), or the packets (see [`crate::flood`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use tempfile::TempDir;

use crate::wire::Wire;
use crate::{Client, PATIENCE, sys, wait_until};

/// Where the binary is: `BLITZ_CTL_BIN`, else beside the test's own.
///
/// # Panics
/// When it is not there.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("BLITZ_CTL_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "BLITZ_CTL_BIN is {}, where no file is", path.display());
        return path;
    }
    // target/debug/deps/test-1234 -> target/debug/blitz-ctl
    let test = std::env::current_exe().expect("the test's own path is known");
    let path = test.parent().and_then(Path::parent).map(|dir| dir.join("blitz-ctl")).unwrap_or_default();
    assert!(
        path.is_file(),
        "{} is not built: run `cargo xtask test`, or `cargo build -p blitz-ctl`, or set BLITZ_CTL_BIN",
        path.display()
    );
    path
}

/// How a run of `blitz-ctl` ended and what it said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its end.
    pub status: ExitStatus,
    /// On stdout.
    pub stdout: String,
    /// On stderr.
    pub stderr: String,
}

/// Runs a verb where the host end of `wire` is, on the stages of this wire.
#[track_caller]
pub fn run(wire: &Wire, args: &[&str]) -> Said {
    let output = command(wire).args(args).stdin(Stdio::null()).output().expect("blitz-ctl can be executed");
    Said {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// `blitz-ctl` where the host end of `wire` is, to be given its verb. It ends with the thread that starts
/// it. Its pins are the wire's own: a verb about every stage must not touch that of another test.
pub fn command(wire: &Wire) -> Command {
    let mut command = Command::new(binary());
    if let Some(space) = &wire.host.space {
        space.network().contain(&mut command);
    }
    sys::die_with_thread(&mut command);
    command.arg("--pins").arg(&wire.pins);
    command
}

/// A stage on the host end of a wire. It goes when the wire goes.
#[derive(Debug)]
pub struct Stage {
    interface: String,
    config: PathBuf,
    scratch: TempDir,
}

impl Stage {
    /// Attaches the stage, filled from `config` (TOML), in native mode.
    ///
    /// # Panics
    /// When `blitz-ctl attach` fails, with what it said.
    #[track_caller]
    pub fn attach(wire: &Wire, config: &str) -> Self {
        let stage = Self::prepare(wire, config);
        stage.attach_again(wire);
        stage
    }

    /// Writes the configuration (TOML), for a daemon that attaches the stage as it says.
    #[track_caller]
    pub fn prepare(wire: &Wire, config: &str) -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder can be made");
        let path = scratch.path().join("blitz.toml");
        std::fs::write(&path, config).expect("the file can be written");
        Self { interface: wire.host.interface.clone(), config: path, scratch }
    }

    /// Runs the same `attach` once more: it replaces the program; what it said.
    #[track_caller]
    pub fn attach_again(&self, wire: &Wire) -> String {
        let config = self.config.to_string_lossy();
        self.must(wire, &["attach", &self.interface, "--config", &config, "--mode", "native"])
    }

    /// Writes another configuration; nothing reads it by itself.
    pub fn write_config(&self, config: &str) {
        std::fs::write(&self.config, config).expect("the file can be written");
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// A folder that lives as long as the stage.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Runs a verb that must succeed; its stdout.
    #[track_caller]
    pub fn must(&self, wire: &Wire, args: &[&str]) -> String {
        let said = run(wire, args);
        assert!(
            said.status.success(),
            "blitz-ctl {} ended with {}:\n{}{}",
            args.join(" "),
            said.status,
            said.stdout,
            said.stderr
        );
        said.stdout
    }

    /// The counters now.
    #[track_caller]
    pub fn counters(&self, wire: &Wire) -> Counters {
        let text = self.must(wire, &["counters", "--json"]);
        Counters::parse(&text, &self.interface)
    }
}

/// Packets by verdict and by rule.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// By the label of the verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// By the name of the rule: what it decided.
    pub rules: BTreeMap<String, u64>,
    /// By the name of the rule: what it would have dropped without `shadow`.
    pub shadow: BTreeMap<String, u64>,
    /// Datagrams of QUIC, by the label of the reason.
    pub quic: BTreeMap<String, u64>,
    /// By the label of the fault.
    pub faults: BTreeMap<String, u64>,
}

impl Counters {
    /// Packets with this verdict.
    pub fn verdict(&self, label: &str) -> u64 {
        self.verdicts.get(label).copied().unwrap_or(0)
    }

    /// Packets that this rule decided.
    pub fn rule(&self, name: &str) -> u64 {
        self.rules.get(name).copied().unwrap_or(0)
    }

    /// Datagrams of QUIC about which this was found out.
    pub fn quic(&self, reason: &str) -> u64 {
        self.quic.get(reason).copied().unwrap_or(0)
    }

    /// Packets in all: each gets one verdict.
    pub fn packets(&self) -> u64 {
        self.verdicts.values().sum()
    }

    /// Packets that were dropped.
    pub fn dropped(&self) -> u64 {
        self.verdicts.iter().filter(|(label, _)| label.starts_with("drop_")).map(|(_, count)| count).sum()
    }
}

impl Counters {
    /// From what `counters --json` prints.
    ///
    /// # Panics
    /// When it has another shape.
    #[track_caller]
    pub fn parse(text: &str, interface: &str) -> Self {
        let value: serde_json::Value = serde_json::from_str(text).expect("counters --json prints JSON");
        let stages = value["interfaces"].as_array().into_iter().flatten();
        let Some(stage) = stages.into_iter().find(|stage| stage["interface"] == interface) else {
            panic!("counters --json has no {interface}: {text}")
        };
        let list = |key: &str| stage[key].as_array().cloned().unwrap_or_else(|| panic!("no {key}: {text}"));
        let mut counters = Self::default();
        for sum in list("verdicts") {
            counters.verdicts.insert(word(&sum["verdict"]), number(&sum["packets"]));
        }
        for rule in list("rules") {
            counters.rules.insert(word(&rule["name"]), number(&rule["decided"]["packets"]));
            counters.shadow.insert(word(&rule["name"]), number(&rule["shadow"]["packets"]));
        }
        for steered in list("quic") {
            counters.quic.insert(word(&steered["reason"]), number(&steered["packets"]));
        }
        for (fault, count) in stage["faults"].as_object().into_iter().flatten() {
            counters.faults.insert(fault.clone(), number(count));
        }
        counters
    }
}

#[track_caller]
fn word(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string")).to_owned()
}

#[track_caller]
fn number(value: &serde_json::Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// A running `blitz-ctl run`. Dropping it kills it; the stage stays.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
    /// Its control socket.
    pub socket: PathBuf,
}

impl Daemon {
    /// Starts it with the stage's configuration and waits until it says that it is ready.
    #[track_caller]
    pub fn start(wire: &Wire, stage: &Stage) -> Self {
        let (log, socket) = (stage.scratch().join("daemon.log"), stage.scratch().join("ctl.sock"));
        let mut command = command(wire);
        command.arg("run").arg("--config").arg(stage.config()).arg("--socket").arg(&socket);
        let file = File::options().create(true).append(true).open(&log).expect("a log can be made");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().expect("blitz-ctl can be executed");
        let mut daemon = Self { child, log, socket };
        let ready = format!("ready: control socket {}, process {}", daemon.socket.display(), daemon.pid());
        wait_until("the daemon is ready", PATIENCE, || {
            let ended = daemon.child.try_wait().expect("the daemon is our child");
            assert!(ended.is_none(), "the daemon ended with {ended:?}:\n{}", daemon.log());
            daemon.log().contains(&ready)
        });
        daemon
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it and those before it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What its exporter says.
    #[track_caller]
    pub fn metrics(&self, wire: &Wire) -> String {
        let stream = wire.host.run(|| TcpStream::connect(METRICS)).expect("the exporter takes connections");
        let mut client = Client::from(stream);
        client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        client.response().text()
    }

    /// Kills it, as a crash would.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("--- log of blitz-ctl run\n{}---", self.log());
        }
    }
}

/// Where the exporter listens, in the namespace of the host end.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);
