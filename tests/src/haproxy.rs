//! HAProxy as it stands in front of a gateway: it passes on TCP and says whose connection it was.
//!
//! Owns: its configuration, its start and end. Does not own: what the gateway makes of it.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::{PATIENCE, free_port, process, require, sys, wait_until};

/// A running HAProxy. Dropping it kills it.
#[derive(Debug)]
pub struct Haproxy {
    /// Where clients reach it.
    pub address: SocketAddr,
    child: Child,
    _dir: TempDir,
}

impl Haproxy {
    /// Passes TCP on to `server`, with the options `options` on its `server` line, of which `check` asks for
    /// `/check` now and then. Call `require!("haproxy")`
    /// before.
    #[track_caller]
    pub fn start(server: SocketAddr, options: &str) -> Self {
        let program = require::program("haproxy").expect("require!(\"haproxy\") stands before");
        let dir = tempfile::tempdir().expect("a scratch folder can be made");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let conf = dir.path().join("haproxy.cfg");
        let text = format!(
            "global\n  nbthread 1\n  maxconn 100\n\
             defaults\n  mode tcp\n  option httpchk GET /check\n\
             \x20 timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             listen front\n  bind {address}\n  server gateway {server} {options}\n"
        );
        fs::write(&conf, text).expect("can be written");
        let log = File::create(dir.path().join("stderr.log")).expect("a log can be made");
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(&conf);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        sys::die_with_thread(&mut command);
        let mut child = command.spawn().expect("haproxy can be executed");
        wait_until("haproxy takes connections", PATIENCE, || {
            let said = || fs::read_to_string(dir.path().join("stderr.log")).unwrap_or_default();
            assert!(matches!(child.try_wait(), Ok(None)), "haproxy ended: {}", said());
            TcpStream::connect(address).is_ok()
        });
        Self { address, child, _dir: dir }
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        process::kill_group(self.child.id());
        let _ = self.child.wait();
    }
}
