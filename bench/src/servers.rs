//! The programs that are measured.
//!
//! Owns: starting them on a core, waiting until they answer, ending them. Does not own: their configurations
//! (`peers.rs`), load and figures. Every child asks the kernel to be told when this program ends, however it ends.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use blitz_tests::netns::Network;

use crate::Result;

/// A running server.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) url: String,
    /// Kernel threads that work for it, whose time is counted with its own.
    pub(crate) beside: Vec<u32>,
    child: Child,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Host and port of the URL.
    pub(crate) fn authority(&self) -> &str {
        let behind = self.url.split_once("://").map_or("", |(_, rest)| rest);
        behind.split('/').next().unwrap_or_default()
    }

    /// Path of the URL.
    pub(crate) fn path(&self) -> &str {
        let behind = self.url.split_once("://").map_or("", |(_, rest)| rest);
        behind.find('/').and_then(|at| behind.get(at..)).unwrap_or("/")
    }

    pub(crate) fn port(&self) -> Result<u16> {
        let port = self.authority().rsplit(':').next().and_then(|text| text.parse().ok());
        port.ok_or_else(|| format!("{} has no port", self.url))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM first: a master ends its workers, which a killed one cannot.
        signal(self.child.id(), libc::SIGTERM);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        for pid in crate::account::tree(self.child.id()) {
            signal(pid, libc::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// Asks the kernel to send SIGTERM to the child when the thread that starts it ends: the main thread, always.
pub(crate) fn die_with_us(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe system call.
    unsafe { command.pre_exec(ask_for_sigterm) };
}

fn ask_for_sigterm() -> std::io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and no pointer.
    let status = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
    if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: kill takes no pointer; the process is our child, or its child, and not yet reaped.
    unsafe { libc::kill(pid.cast_signed(), signal) };
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    let bound = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    bound.map(|address| address.port()).map_err(|error| format!("no free port: {error}"))
}

/// Where configurations and logs of one run lie. Removed at the end.
pub(crate) struct Scratch {
    pub(crate) dir: PathBuf,
}

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("blitz-bench-{}", std::process::id()));
        fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(Self { dir })
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    /// Starts a program on a core and waits until the port of its URL takes connections.
    pub(crate) fn start(&self, name: &str, core: usize, url: String, program: &[&str]) -> Result<Server> {
        self.start_when(name, core, url, program, None, |server, _| {
            TcpStream::connect(server.authority()).is_ok()
        })
    }

    /// The same in another network, until its log says `ready`.
    pub(crate) fn start_in(
        &self,
        network: &Network,
        name: &str,
        core: usize,
        url: String,
        program: &[&str],
        ready: &str,
    ) -> Result<Server> {
        self.start_when(name, core, url, program, Some(network), |_, log| log.contains(ready))
    }

    fn start_when(
        &self,
        name: &str,
        core: usize,
        url: String,
        program: &[&str],
        network: Option<&Network>,
        is_ready: impl Fn(&Server, &str) -> bool,
    ) -> Result<Server> {
        let log_path = self.dir.join(format!("{name}.log"));
        let log = File::create(&log_path).map_err(|error| format!("{}: {error}", log_path.display()))?;
        let log_too = log.try_clone().map_err(|error| error.to_string())?;
        let mut command = Command::new("taskset");
        command.args(["-c", &core.to_string()]).args(program);
        command.stdin(Stdio::null()).stdout(log).stderr(log_too).current_dir(&self.dir);
        if let Some(network) = network {
            network.contain(&mut command);
        }
        die_with_us(&mut command);
        println!("+ taskset -c {core} {}", program.join(" "));
        let child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
        let mut server = Server { name: name.to_owned(), url, beside: Vec::new(), child };
        let begun = Instant::now();
        let said = || fs::read_to_string(&log_path).unwrap_or_default();
        while !is_ready(&server, &said()) {
            let ended = server.child.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > Duration::from_secs(10) {
                let url = &server.url;
                return Err(format!("{name} takes no connections at {url} ({ended:?}): {}", said().trim()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
