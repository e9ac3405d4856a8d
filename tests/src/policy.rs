//! Configuration files of the stage's tests.
//!
//! Owns: one way to write them, for `blitz` and `blitz-ctl` alike. Does not own: what the keys mean
//! (`docs/configuration.md`).

use std::fmt::Write;

use crate::wire::{HOST4, Wire};

/// UDP port that is a service on every address of the host.
pub const SERVICE_PORT: u16 = 4433;
/// TCP port of the listener.
pub const LISTENER_PORT: u16 = 8080;

/// A configuration with the listener `edge` and the service `udp`, built up key by key.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    limits: String,
    xdp: String,
    tables: String,
}

impl Policy {
    /// Nothing is limited and nobody denied.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry of `[[limits]]` with these lines.
    pub fn limit(mut self, name: &str, lines: &str) -> Self {
        let _ = write!(self.limits, "\n[[limits]]\nname = \"{name}\"\n{lines}\n");
        self
    }

    /// Adds lines to `[xdp]`.
    pub fn xdp(mut self, lines: &str) -> Self {
        self.xdp += lines;
        self.xdp.push('\n');
        self
    }

    /// Adds tables at the end of the file.
    pub fn tables(mut self, lines: &str) -> Self {
        self.tables += lines;
        self.tables.push('\n');
        self
    }

    /// As TOML, for the host end of `wire`.
    pub fn toml(&self, wire: &Wire) -> String {
        format!(
            r#"[[listeners]]
name = "edge"
address = "{HOST4}:{LISTENER_PORT}"
protocols = ["h1"]
builtin_answers = true
{limits}
[xdp]
interfaces = ["{interface}"]
{xdp}
[[xdp.services]]
name = "udp"
port = {SERVICE_PORT}
protocol = "udp"

{tables}"#,
            limits = self.limits,
            interface = wire.host.interface,
            xdp = self.xdp,
            tables = self.tables,
        )
    }
}
