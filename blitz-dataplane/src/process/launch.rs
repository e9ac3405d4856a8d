//! Starting a worker as a process or as a thread.
//!
//! Owns: the two launchers and the end of what they started. Does not own: what a worker does first (see
//! [`super::worker`]) or when one is started (see [`super::supervisor`]).
//!
//! A process gets its end of the channel as standard input: the one descriptor that crosses exec without a
//! moment in which another child could inherit it too. Its environment holds [`WORKER_VARIABLE`] and nothing
//! else but `RUST_BACKTRACE`, since the environment of a gateway may carry secrets.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::worker::{Place, WorkerError, panic_text};
use crate::sys::{privilege, signal};

/// Environment variable that makes this program a worker. Its value is the process id of the supervisor.
pub const WORKER_VARIABLE: &str = "BLITZ_WORKER_OF";

/// How workers are started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Worker processes: a crash ends one of them.
    #[default]
    Mp,
    /// Worker threads of one process: for sidecars and debugging.
    Sp,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mp => "mp",
            Self::Sp => "sp",
        })
    }
}

/// Starts workers.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// Processes or threads.
    pub mode: Mode,
    /// The worker's code, for threads: [`super::worker::worker_main`].
    pub entry: fn(UnixStream, Place) -> Result<(), WorkerError>,
    /// Arguments of a worker process.
    pub arguments: Vec<OsString>,
}

/// A started worker.
#[derive(Debug)]
pub enum Running {
    /// A process.
    Process(Child),
    /// A thread.
    Thread(Option<JoinHandle<Result<(), WorkerError>>>),
}

/// How a worker ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By order.
    Clean,
    /// Otherwise; the words fit after "it".
    Died(String),
}

impl Launcher {
    /// Starts worker `index`. Returns our end of its channel, not blocking.
    ///
    /// # Errors
    /// No descriptor, process or memory left.
    pub fn start(&self, index: u32) -> io::Result<(UnixStream, Running)> {
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        let running = match self.mode {
            Mode::Mp => {
                let mut command = Command::new("/proc/self/exe");
                command.arg0(format!("blitz: worker {index}")).args(&self.arguments).env_clear();
                command.env(WORKER_VARIABLE, std::process::id().to_string());
                if let Some(value) = std::env::var_os("RUST_BACKTRACE") {
                    command.env("RUST_BACKTRACE", value);
                }
                Running::Process(command.stdin(Stdio::from(OwnedFd::from(far))).spawn()?)
            }
            Mode::Sp => {
                let entry = self.entry;
                let builder = std::thread::Builder::new().name(format!("worker-{index}"));
                Running::Thread(Some(builder.spawn(move || entry(far, Place::Thread))?))
            }
        };
        Ok((near, running))
    }
}

impl Running {
    /// Ends a process at once. A thread cannot be ended from outside.
    pub fn kill(&mut self) {
        if let Self::Process(child) = self {
            // It may have ended by itself meanwhile.
            let _ended = child.kill();
        }
    }

    /// Waits until the worker, whose channel has ended, is gone. A process that lingers is killed.
    pub async fn ended(mut self) -> Exit {
        let since = Instant::now();
        let mut has_warned = false;
        loop {
            if let Some(exit) = self.exit() {
                return exit;
            }
            if since.elapsed() > LINGER && !has_warned {
                has_warned = true;
                match &self {
                    Self::Process(_) => self.kill(),
                    Self::Thread(_) => {
                        log::error!("a worker thread has closed its channel and does not end")
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn exit(&mut self) -> Option<Exit> {
        match self {
            Self::Process(child) => match child.try_wait() {
                Ok(None) => None,
                Ok(Some(status)) => Some(describe(status)),
                Err(error) => Some(Exit::Died(format!("is gone: {error}"))),
            },
            Self::Thread(thread) => {
                let finished = thread.take_if(|thread| thread.is_finished())?;
                Some(match finished.join() {
                    Ok(Ok(())) => Exit::Clean,
                    Ok(Err(error)) => Exit::Died(format!("ended: {error}")),
                    Err(panic) => Exit::Died(format!("panicked: {}", panic_text(&*panic))),
                })
            }
        }
    }
}

/// How long a process may live after its channel has ended: exit handlers, freeing of memory.
const LINGER: Duration = Duration::from_millis(500);

fn describe(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(0), _) => Exit::Clean,
        (Some(code), _) => Exit::Died(format!("exited with status {code}")),
        (None, Some(number)) => {
            Exit::Died(format!("was killed by signal {number} ({})", signal::name(number)))
        }
        (None, None) => Exit::Died("ended without a status".to_owned()),
    }
}

/// The channel of this process when it was started as a worker, with the process id of its supervisor.
///
/// # Errors
/// A sentence: the variable is set, but standard input is no channel.
pub fn inherited_channel() -> Option<Result<(UnixStream, u32), String>> {
    let value = std::env::var(WORKER_VARIABLE).ok()?;
    let Ok(supervisor) = value.parse() else {
        return Some(Err(format!("{WORKER_VARIABLE} is set by Blitz for its workers; unset it")));
    };
    let channel = std::io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    let channel = channel.and_then(|channel| {
        privilege::close_stdin()?;
        channel.peer_addr().map(|_| channel)
    });
    Some(match channel {
        Ok(channel) => Ok((channel, supervisor)),
        Err(error) => Err(format!("{WORKER_VARIABLE} is set, but standard input is no channel: {error}")),
    })
}
