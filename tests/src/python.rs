//! Peers in Python: scripts of `tests/python/`, run by an interpreter that has their modules.
//!
//! Owns: finding the interpreter, starting, their output, their end. Does not own: what a script does.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::{process, sys};

/// Returns from the test, with the reason printed, unless an interpreter has these modules.
#[macro_export]
macro_rules! require_python {
    ($($module:literal),+ $(,)?) => {
        if $crate::python::interpreter(&[$($module),+]).is_none() {
            $crate::require::skip(concat!("python3 lacks one of ", $($module, " "),+));
            return;
        }
    };
}

/// An interpreter that has these modules: the one of the PATH, or the system's, for which packages install them.
pub fn interpreter(modules: &[&str]) -> Option<&'static str> {
    let import = format!("import {}", modules.join(", "));
    let has = |program: &&str| {
        let mut command = Command::new(program);
        command.args(["-c", &import]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    ["python3", "/usr/bin/python3"].into_iter().find(has)
}

fn command(script: &str, modules: &[&str], args: &[&str]) -> Command {
    let program = interpreter(modules).expect("require_python! stands before");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(script);
    let mut command = Command::new(program);
    // Nothing is left beside the scripts.
    command.arg("-B").arg(path).args(args).process_group(0);
    sys::die_with_thread(&mut command);
    command
}

/// Runs a script to its end; what it wrote.
#[track_caller]
pub fn run(script: &str, modules: &[&str], args: &[&str]) -> String {
    let output =
        command(script, modules, args).stdin(Stdio::null()).output().expect("python3 can be executed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{script}: {}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// A script that serves until it is dropped. The first line that it prints is its port on 127.0.0.1.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
}

impl Server {
    /// Starts it and waits for its port.
    #[track_caller]
    pub fn start(script: &str, modules: &[&str], args: &[&str]) -> Self {
        let mut command = command(script, modules, args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("python3 can be executed");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        let _ = BufReader::new(stdout).read_line(&mut line);
        let port: u16 = line.trim().parse().unwrap_or_else(|_| panic!("{script} printed no port: {line:?}"));
        Self { address: SocketAddr::from(([127, 0, 0, 1], port)), child }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        process::kill_group(self.child.id());
        let _ = self.child.wait();
    }
}
