//! The file of session secrets (SSLKEYLOGFILE) that lets a packet dump be read.
//!
//! Owns: its lines. Does not own: the decision to have one: only `--tls-key-log` makes one, whatever the environment
//! says, because whoever reads it reads the traffic.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustls::KeyLog;

/// Appends a line for each secret, in the NSS key log format. Several workers may write one file.
#[derive(Debug)]
pub struct KeyLogFile(File);

impl KeyLogFile {
    /// Opens or creates the file, with mode 0600.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(OpenOptions::new().append(true).create(true).mode(0o600).open(path)?))
    }
}

impl KeyLog for KeyLogFile {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let mut line = String::with_capacity(label.len() + 2 * (client_random.len() + secret.len()) + 3);
        line.push_str(label);
        for bytes in [client_random, secret] {
            line.push(' ');
            for byte in bytes {
                // Writing to a string cannot fail.
                let _infallible = write!(line, "{byte:02x}");
            }
        }
        line.push('\n');
        // One write appends as a whole; a full disk loses lines of a log that is for debugging.
        if let Err(error) = (&self.0).write_all(line.as_bytes()) {
            log::warn!("the key log cannot be written: {error}");
        }
    }
}
