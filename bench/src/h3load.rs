//! The load of HTTP/3: `load_h3` and what it counted.
//!
//! Owns: one run of it. Does not own: the generator (`bin/load_h3.rs`), what the server used meanwhile (`rounds.rs`).

use std::path::Path;
use std::process::{Command, Stdio};

use blitz_tests::netns::Network;

use crate::rounds::Load;
use crate::servers::Server;
use crate::{Result, servers};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) connections: usize,
    pub(crate) streams: usize,
    /// Bytes of an answer at least.
    pub(crate) bytes: u64,
    /// Count megabytes instead of requests, as far as they have come when time is up.
    pub(crate) is_bulk: bool,
}

/// What the generator says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Own {
    /// The share of its core that it used.
    pub(crate) busy: f64,
    /// Datagrams that it received and sent, for each request or megabyte.
    pub(crate) received: f64,
    pub(crate) sent: f64,
}

/// Runs it for `seconds` on one core, in another network where one is given.
#[allow(clippy::too_many_arguments, reason = "what a run is made of; a struct would only rename it")]
pub(crate) fn run(
    server: &Server,
    path: &str,
    shape: Shape,
    seconds: u64,
    core: usize,
    programs: &Path,
    network: Option<&Network>,
) -> Result<(Load, Own)> {
    let program = programs.join("load_h3");
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program).args([server.authority(), path]);
    command
        .args([seconds, shape.connections as u64, shape.streams as u64, shape.bytes].map(|n| n.to_string()));
    if let Some(network) = network {
        network.contain(&mut command);
    }
    servers::die_with_us(command.stdin(Stdio::null()));
    let output = command.output().map_err(|error| format!("load_h3: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    parse(&said, shape.is_bulk).ok_or_else(|| {
        format!("load_h3 on {} said {said:?} {:?}", server.url, String::from_utf8_lossy(&output.stderr))
    })
}

fn parse(said: &str, is_bulk: bool) -> Option<(Load, Own)> {
    let line = said.lines().find_map(|line| line.strip_prefix("RESULT "))?;
    let n: Vec<f64> = line.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    let [requests, bytes, seconds, p50_us, p99_us, bad, busy, received, sent] = n[..] else { return None };
    let done = if is_bulk { bytes / 1e6 } else { requests };
    let own = Own { busy, received: received / done.max(1.0), sent: sent / done.max(1.0) };
    Some((Load { done, seconds, p50_us, p99_us, bad }, own))
}

#[cfg(test)]
mod tests {
    use super::{Load, Own, parse};

    #[test]
    fn figures_are_read_in_order() {
        let said = "RESULT 1000 2000000 2.5 100 900 3 0.75 500 250\n";
        let load = Load { done: 1000.0, seconds: 2.5, p50_us: 100.0, p99_us: 900.0, bad: 3.0 };
        let own = Own { busy: 0.75, received: 0.5, sent: 0.25 };
        assert_eq!(parse(said, false), Some((load, own)));
        assert_eq!(
            parse(said, true),
            Some((Load { done: 2.0, ..load }, Own { received: 250.0, sent: 125.0, ..own }))
        );
        assert_eq!(parse("RESULT 1 2", false), None);
    }
}
