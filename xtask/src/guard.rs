//! A child that cannot outlive this program.
//!
//! Owns: starting a server in its own process group, and ending it on return, on failure, on Ctrl-C
//! and even when this program is killed: a small shell waits on a pipe that closes with us.
//! Does not own: when the server is ready (see [`crate::quickstart`]).

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::sh::{self, Result};

/// A running server and its watcher. Dropping it ends both.
pub(crate) struct Guarded {
    child: Child,
    watcher: Child,
}

/// Reads one line. `done` means that the server was ended in order; the end of the file means that we
/// died, and then the server is asked to stop, and its whole group is killed if it has not within 5 s.
const WATCHER: &str = r#"
read word && [ "$word" = done ] && exit 0
kill -INT "$1" 2>/dev/null
tries=0
while grep -qs '^State:[[:space:]]*[RSDTt]' "/proc/$1/status" && [ $tries -lt 50 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
kill -KILL "-$1" 2>/dev/null
"#;

impl Guarded {
    /// Prints and starts `command`. Its group is its own, so that Ctrl-C reaches only this program.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let line = sh::line(command);
        println!("+ {line} &");
        let failed = |error| format!("{line}: {error}");
        let mut child = command.stdin(Stdio::null()).process_group(0).spawn().map_err(failed)?;
        let watcher = Command::new("sh")
            .args(["-c", WATCHER, "watcher"])
            .arg(child.id().to_string())
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn();
        match watcher {
            Ok(watcher) => Ok(Self { child, watcher }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(format!("sh: {error}"))
            }
        }
    }

    /// The process id of the server.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for it to end by itself.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().map_err(|error| error.to_string())
    }

    /// Asks it to drain (SIGTERM) and waits; an error when it does not end in time or not with 0.
    pub(crate) fn stop(mut self, within: Duration) -> Result<()> {
        sh::run(Command::new("kill").args(["-TERM", &self.child.id().to_string()]))?;
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            match self.ended() {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(format!("the server ended with {status} after SIGTERM"));
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        Err(format!("the server was still there {} s after SIGTERM", within.as_secs()))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let group = format!("-{}", self.child.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            let _ = self.child.wait();
        }
        if let Some(pipe) = self.watcher.stdin.as_mut() {
            let _ = pipe.write_all(b"done\n");
        }
        let _ = self.watcher.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_alive(pid: u32) -> bool {
        std::path::Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn dropping_ends_the_child() {
        let guarded = Guarded::start(Command::new("sleep").arg("60")).unwrap();
        let pid = guarded.pid();
        assert!(is_alive(pid));
        drop(guarded);
        assert!(!is_alive(pid));
    }

    #[test]
    fn a_closed_pipe_ends_the_child() {
        // What happens when this program dies: nobody writes `done`, the pipe closes.
        let mut guarded = Guarded::start(Command::new("sleep").arg("60")).unwrap();
        drop(guarded.watcher.stdin.take());
        let status = guarded.wait().unwrap();
        guarded.watcher.wait().unwrap();
        assert!(!status.success());
    }
}
