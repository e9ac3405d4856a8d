//! The sending end: a process of its own, in a network namespace of its own.
//!
//! Owns: both ends of the talk with that process, and sending. A line to its stdin starts a flood, a line
//! from its stdout says what was sent; when its stdin closes, it ends.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::IpAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::{frames, sys};
use crate::{Result, servers};

/// The word by which the runner starts itself as the sending end; the next one is its processor.
pub(crate) const FLOOD: &str = "xdp-flood";
/// Port of the datagrams.
pub(super) const PORT: u16 = 443;

/// The running process.
pub(super) struct Flooder {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// What a flood handed over.
pub(super) struct Offered {
    /// Frames that the device took.
    pub(super) sent: u64,
    /// Frames that found the receiver's ring full.
    pub(super) refused: u64,
    pub(super) seconds: f64,
}

impl Flooder {
    /// Starts it on the processor `cpu`.
    pub(super) fn start(cpu: usize) -> Result<Self> {
        let program = std::env::current_exe().map_err(|error| format!("the runner's own path: {error}"))?;
        let mut command = Command::new("unshare");
        command.args(["--net", "--"]).arg(program).args([FLOOD, &cpu.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        servers::die_with_us(&mut command);
        let mut child = command.spawn().map_err(|error| format!("unshare (util-linux): {error}"))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the sending end has no pipes".to_owned());
        };
        let mut flooder = Self { child, stdin, stdout: BufReader::new(stdout) };
        match flooder.line()?.trim() {
            "ready" => Ok(flooder),
            other => Err(format!("the sending end says {other:?}")),
        }
    }

    /// Its process id, which also names its network namespace.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends from `source` to `destination` through an interface of its namespace.
    pub(super) fn run(
        &mut self,
        interface: &str,
        source: IpAddr,
        destination: IpAddr,
        duration: Duration,
    ) -> Result<Offered> {
        let order = format!("{interface} {source} {destination} {}\n", duration.as_millis());
        self.stdin.write_all(order.as_bytes()).map_err(|error| format!("the sending end: {error}"))?;
        let answer = self.line()?;
        let mut words = answer.split_whitespace().map(str::parse::<u64>);
        match (words.next(), words.next(), words.next()) {
            (Some(Ok(sent)), Some(Ok(refused)), Some(Ok(micros))) => {
                Ok(Offered { sent, refused, seconds: micros as f64 / 1e6 })
            }
            _ => Err(format!("the sending end says {answer:?}")),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.stdout.read_line(&mut line) {
            Ok(0) => Err("the sending end has ended".to_owned()),
            Ok(_) => Ok(line),
            Err(error) => Err(format!("the sending end: {error}")),
        }
    }
}

impl Drop for Flooder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process itself.
pub(crate) fn run(cpu: Option<&str>) -> Result<()> {
    let cpu = cpu.and_then(|cpu| cpu.parse().ok()).ok_or("which processor?")?;
    sys::pin(0, cpu).map_err(|error| format!("processor {cpu}: {error}"))?;
    let say = |line: String| -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| error.to_string())
    };
    say("ready".to_owned())?;
    for order in std::io::stdin().lock().lines() {
        let order = order.map_err(|error| error.to_string())?;
        let [interface, source, destination, millis] = order.split(' ').collect::<Vec<_>>()[..] else {
            return Err(format!("{order:?} is no order"));
        };
        let (Ok(source), Ok(destination), Ok(millis)) = (source.parse(), destination.parse(), millis.parse())
        else {
            return Err(format!("{order:?} is no order"));
        };
        let frame = frames::udp(source, destination, PORT);
        let offered = send(interface, &frame, Duration::from_millis(millis))
            .map_err(|error| format!("{interface}: {error}"))?;
        say(format!("{} {} {:.0}", offered.sent, offered.refused, offered.seconds * 1e6))?;
    }
    Ok(())
}

fn send(interface: &str, frame: &[u8], duration: Duration) -> std::io::Result<Offered> {
    let socket = sys::FrameSocket::open(sys::interface_number(interface)?)?;
    let mut offered = Offered { sent: 0, refused: 0, seconds: 0.0 };
    let begun = Instant::now();
    while begun.elapsed() < duration {
        match socket.send(frame, sys::BATCH_MAX) {
            Ok(count) => offered.sent += count as u64,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => offered.refused += 1,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    offered.seconds = begun.elapsed().as_secs_f64();
    Ok(offered)
}
