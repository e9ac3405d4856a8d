//! Chromium without a screen, over HTTP/3 only.
//!
//! Owns: its command line, its end. Does not own: pages, or what they tell (they send it to an upstream).

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use aws_lc_rs::digest;
use rcgen::{KeyPair, PublicKeyData};
use tempfile::TempDir;

use crate::tls::Pair;
use crate::{process, require, sys};

/// A running browser. Dropping it ends it.
#[derive(Debug)]
pub struct Chromium {
    child: Child,
    profile: TempDir,
}

impl Chromium {
    /// Opens a path of the gateway at `address`, which shows `pair`. Call `require!("chromium")` before.
    #[track_caller]
    pub fn open(address: SocketAddr, path: &str, pair: &Pair) -> Self {
        let program = require::program("chromium").expect("require!(\"chromium\") stands before");
        // A fresh one, which knows nothing of any server.
        let profile = tempfile::tempdir().expect("a scratch folder can be made");
        let key = KeyPair::from_pem(&pair.key).expect("PEM").subject_public_key_info();
        let pin = crate::websocket::base64(digest::digest(&digest::SHA256, &key).as_ref());
        let mut command = Command::new(program);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]);
        command.args(["--disable-background-networking", "--disable-component-update", "--no-proxy-server"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.arg(format!("--origin-to-force-quic-on={address}"));
        command.arg(format!("--ignore-certificate-errors-spki-list={pin}"));
        // Else it prints the page and ends.
        command.arg("--remote-debugging-port=0").arg(format!("https://{address}{path}"));
        let log = File::create(profile.path().join("log")).expect("a log can be made");
        command.env("HOME", profile.path()).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        sys::die_with_thread(&mut command);
        let child = command.spawn().expect("chromium can be executed");
        Self { child, profile }
    }

    /// What it has written on stderr so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.profile.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        process::kill_group(self.child.id());
        let _ = self.child.wait();
    }
}
