//! The part of the quickstart that needs root: the kernel stage on a veth pair.
//!
//! Owns: the pair and its namespace, the stage on it, requests and a flood through it, and taking all
//! of it away whatever happens: a small shell waits on a pipe that closes with this program. Does not
//! own: the gateway that answers (see [`super`]).

use std::io::Write;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::sh::{self, Result};

/// The host's end; the addresses are those that RFC 2544 sets aside for tests.
const HOST: &str = "198.18.0.1";
/// Who floods.
const FLOODER: &str = "198.18.0.2";
/// Who makes requests meanwhile.
const CLIENT: &str = "198.18.0.3";
/// How many octets of the addresses' prefix are the link's.
const LENGTH: u8 = 29;
/// What the stage lets each source send, in packets a second, and in the first burst.
const PACKETS_PER_SECOND: u64 = 10_000;
/// Requests that are made during the flood.
const REQUESTS: usize = 100;
/// The first kernel with what the program uses.
const KERNEL: (u32, u32) = (5, 18);

/// Detaches the stage and removes the pair and the namespace when the pipe says so or closes.
const CLEANER: &str = r#"
trap '' INT TERM HUP
read word
"$1" detach "$2" >/dev/null 2>&1
ip link del "$2" 2>/dev/null
ip netns del "$3" 2>/dev/null
exit 0
"#;

/// What keeps this machine from having the stage; `None` when nothing does.
pub(super) fn missing() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lacking = lacking_capabilities(&status);
    if !lacking.is_empty() {
        return Some(format!("root, or a container with {}", lacking.join(", ")));
    }
    if sh::find_program("ip").is_none() {
        return Some("the program ip (package iproute2)".to_owned());
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if version(&release).is_some_and(|version| version < KERNEL) {
        return Some(format!("Linux {}.{} or newer; this is {}", KERNEL.0, KERNEL.1, release.trim()));
    }
    None
}

/// What namespaces, a veth pair and an XDP program need and the process with this `/proc/self/status` lacks.
fn lacking_capabilities(status: &str) -> Vec<&'static str> {
    // Numbers from linux/capability.h.
    const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN"), (39, "CAP_BPF")];
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    NEEDED.iter().filter(|(number, _)| set & (1 << number) == 0).map(|&(_, name)| name).collect()
}

/// Major and minor number of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The stage on its pair. Dropping it takes both away.
pub(super) struct Stage {
    ctl: PathBuf,
    interface: String,
    space: String,
    cleaner: Child,
}

impl Stage {
    /// Makes the pair and attaches the stage in front of the gateway on `port`. `dir` holds the programs
    /// and takes the stage's configuration.
    pub(super) fn attach(dir: &Path, port: u16) -> Result<(Self, Sink)> {
        let id = std::process::id();
        let (interface, peer, space) = (format!("beq{id}h"), format!("beq{id}p"), format!("beq{id}"));
        let ctl = dir.join("blitz-ctl");
        // Before anything is made, so that there is no moment at which nobody would remove it. Its group is
        // its own: Ctrl-C must not reach it.
        let cleaner = Command::new("sh")
            .args(["-c", CLEANER, "cleaner"])
            .args([ctl.as_os_str(), interface.as_ref(), space.as_ref()])
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("sh: {error}"))?;
        let stage = Self { ctl, interface, space, cleaner };
        let (interface, space) = (stage.interface.as_str(), stage.space.as_str());
        let (host, length) = (format!("{HOST}/{LENGTH}"), format!("/{LENGTH}"));
        ip(&["netns", "add", space])?;
        ip(&["link", "add", interface, "type", "veth", "peer", "name", &peer, "netns", space])?;
        ip(&["address", "add", &host, "dev", interface])?;
        ip(&["link", "set", interface, "up"])?;
        ip(&["-n", space, "address", "add", &format!("{FLOODER}{length}"), "dev", &peer])?;
        ip(&["-n", space, "address", "add", &format!("{CLIENT}{length}"), "dev", &peer])?;
        ip(&["-n", space, "link", "set", &peer, "up"])?;

        let sink = Sink::start()?;
        let config = dir.join("quickstart-stage.toml");
        let text = configuration(interface, port, sink.port);
        std::fs::write(&config, &text).map_err(|error| format!("{}: {error}", config.display()))?;
        println!("{}:\n\n{text}", config.display());
        let mut attach = Command::new(&stage.ctl);
        attach.args(["attach", interface, "--config"]).arg(&config);
        sh::run(&mut attach)?;
        Ok((stage, sink))
    }

    /// Requests over the pair, then a flood of a second with requests from another source meanwhile.
    pub(super) fn try_it(&self, port: u16, sink: &Sink) -> Result<String> {
        let url = format!("http://{HOST}:{port}");
        let first = self.curl(&[&format!("{url}/over-the-wire")])?;
        super::expect(first.contains("GET /over-the-wire"), "a request over the wire was answered")?;

        let before = self.dropped()?;
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut flood = Command::new("ip");
        flood.args(["netns", "exec", &self.space]).arg(program);
        flood.args(["quickstart", FLOOD_FLAG, &format!("{HOST}:{}", sink.port)]);
        println!("+ {} &", sh::line(&flood));
        let flood = flood.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let flood = flood.map_err(|error| format!("the flood did not start: {error}"))?;
        let answers = self.curl(&[&format!("{url}/during-the-flood-[1-{REQUESTS}]")])?;
        let answered = answers.matches("GET /during-the-flood-").count();
        let flood = flood.wait_with_output().map_err(|error| error.to_string())?;
        let offered = String::from_utf8_lossy(&flood.stdout).trim().parse::<u64>().unwrap_or(0);
        let dropped = self.dropped()?.saturating_sub(before);
        let summary = format!(
            "one source offered {offered} packets in a second, {dropped} were dropped before the kernel made a \
             buffer for them; {answered} of {REQUESTS} requests of another source were answered meanwhile",
        );
        println!("{summary}");
        sh::run(Command::new(&self.ctl).args(["counters", "--interface", &self.interface]))?;
        super::expect(answered == REQUESTS, "every request during the flood was answered")?;
        super::expect(dropped > 0, "the stage dropped packets of the flood")?;
        Ok(summary)
    }

    /// Where the operator can look on.
    pub(super) fn hint(&self) -> String {
        format!(
            "The stage is on {0}: {1} status, {1} counters; requests through it: ip netns exec {2} curl ...",
            self.interface,
            self.ctl.display(),
            self.space
        )
    }

    /// Takes all of it away now; an error when something is left.
    pub(super) fn remove(self) -> Result<()> {
        let (interface, space) = (self.interface.clone(), self.space.clone());
        drop(self);
        let left = [format!("/sys/class/net/{interface}"), format!("/run/netns/{space}")]
            .into_iter()
            .chain([format!("/sys/fs/bpf/blitz/{interface}")])
            .filter(|path| Path::new(path).exists())
            .collect::<Vec<_>>();
        if left.is_empty() { Ok(()) } else { Err(format!("not removed: {}", left.join(", "))) }
    }

    fn curl(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space, "curl", "-sS", "--fail", "--noproxy", "*", "-m", "20"]);
        sh::read(command.args(["--interface", CLIENT]).args(args))
    }

    /// What the stage has dropped so far, in packets.
    fn dropped(&self) -> Result<u64> {
        let mut counters = Command::new(&self.ctl);
        let text = sh::output(counters.args(["counters", "--json", "--interface", &self.interface]))?;
        Ok(dropped_packets(&String::from_utf8_lossy(&text.stdout)))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(pipe) = self.cleaner.stdin.as_mut() {
            let _ = pipe.write_all(b"done\n");
        }
        let _ = self.cleaner.wait();
    }
}

/// Takes what the stage lets through of the flood, so that nothing is answered to it.
pub(super) struct Sink {
    port: u16,
    stop: Arc<AtomicBool>,
}

impl Sink {
    fn start() -> Result<Self> {
        let failed = |error: std::io::Error| format!("the sink of the flood did not start: {error}");
        let socket = UdpSocket::bind((HOST, 0)).map_err(failed)?;
        socket.set_read_timeout(Some(Duration::from_millis(100))).map_err(failed)?;
        let port = socket.local_addr().map_err(failed)?.port();
        let sink = Self { port, stop: Arc::default() };
        let stop = Arc::clone(&sink.stop);
        std::thread::Builder::new()
            .name("sink".to_owned())
            .spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = socket.recv(&mut [0; 64]);
                }
            })
            .map_err(failed)?;
        Ok(sink)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Flag by which this program runs itself as the flooder.
pub(super) const FLOOD_FLAG: &str = "--flood";

/// Sends datagrams to `target` for a second, as fast as it can, and prints how many.
pub(super) fn flood(target: &str) -> Result<()> {
    let failed = |error: std::io::Error| format!("the flood: {error}");
    let socket = UdpSocket::bind((FLOODER, 0)).map_err(failed)?;
    let (begun, mut sent) = (Instant::now(), 0_u64);
    while begun.elapsed() < Duration::from_secs(1) {
        for _ in 0..32 {
            // A full ring is an error or not, as the kernel likes; only what it took is counted.
            sent += u64::from(socket.send_to(b"flood", target).is_ok());
        }
    }
    println!("{sent}");
    Ok(())
}

fn configuration(interface: &str, port: u16, sink: u16) -> String {
    format!(
        r#"[[listeners]]
name = "main"
address = "0.0.0.0:{port}"
protocols = ["h1"]
builtin_answers = true

[[limits]]
name = "per_source"
packets_per_second = {PACKETS_PER_SECOND}

[xdp]
interfaces = ["{interface}"]

[[xdp.services]]
name = "sink"
port = {sink}
protocol = "udp"
"#
    )
}

fn ip(args: &[&str]) -> Result<()> {
    sh::run(Command::new("ip").args(args))
}

/// The sum of the packets of all drop verdicts in what `counters --json` prints.
fn dropped_packets(json: &str) -> u64 {
    let json: String = json.split_whitespace().collect();
    let drops = json.split("\"verdict\":\"drop_").skip(1);
    let packets = drops.filter_map(|rest| {
        let digits = rest.split_once("\"packets\":")?.1;
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
    });
    packets.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_added_up() {
        let json = r#"{"interfaces": [{"interface": "x", "verdicts": [
            {"verdict": "pass_service", "packets": 7, "bytes": 9},
            {"verdict": "drop_denied", "packets": 40, "bytes": 9},
            {"verdict":"drop_blocked","packets":2,"bytes":9}]}]}"#;
        assert_eq!(dropped_packets(json), 42);
        assert_eq!(dropped_packets("{}"), 0);
    }

    #[test]
    fn kernels_and_capabilities_are_read() {
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert!(version("5.15.0-91-generic") < Some(KERNEL));
        assert_eq!(version("none"), None);
        assert_eq!(lacking_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), [""; 0]);
        assert_eq!(lacking_capabilities("CapEff:\t0000000000001000\n"), ["CAP_SYS_ADMIN", "CAP_BPF"]);
        assert_eq!(lacking_capabilities("").len(), 3);
    }
}
