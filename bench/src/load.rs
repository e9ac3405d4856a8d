//! The load generator: wrk with a script that prints figures.
//!
//! Owns: one run of wrk and what it counted. Does not own: what the server used meanwhile (see `rounds.rs`).

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::rounds::Load;
use crate::{Result, servers};

/// Connections of one run.
pub(crate) const CONNECTIONS: usize = 64;

/// Prints what wrk counted, in fixed order, so that no table for people has to be read.
const SCRIPT: &str = r#"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d %d %d %d %d\n",
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect, e.read, e.write, e.timeout, e.status))
end
"#;

/// Writes the script once.
pub(crate) fn script(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("figures.lua");
    std::fs::write(&path, SCRIPT).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

/// Runs wrk for `seconds` on one core with one thread.
pub(crate) fn run(url: &str, seconds: u64, core: usize, script: &Path) -> Result<Load> {
    let mut command = Command::new("taskset");
    command.args([
        "-c",
        &core.to_string(),
        "wrk",
        "-t1",
        &format!("-c{CONNECTIONS}"),
        &format!("-d{seconds}s"),
    ]);
    command.arg("-s").arg(script).arg(url).stdin(Stdio::null());
    servers::die_with_us(&mut command);
    let output = command.output().map_err(|error| format!("wrk: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if let Some(signal) = output.status.signal() {
        return Err(format!("wrk was ended by signal {signal}"));
    }
    parse(&said)
        .ok_or_else(|| format!("wrk on {url} said {said:?} {:?}", String::from_utf8_lossy(&output.stderr)))
}

fn parse(said: &str) -> Option<Load> {
    let line = said.lines().find_map(|line| line.strip_prefix("RESULT "))?;
    let n: Vec<f64> = line.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    let [done, duration_us, p50_us, p99_us, connect, read, write, timeout, status] = n[..] else {
        return None;
    };
    let bad = connect + read + write + timeout + status;
    Some(Load { done, seconds: duration_us / 1e6, p50_us, p99_us, bad })
}

#[cfg(test)]
mod tests {
    use super::{Load, parse};

    #[test]
    fn figures_are_read_in_order() {
        let said = "Running 1s test\nRESULT 1000 2000000 50 900 1 2 3 4 5\n";
        let load = Load { done: 1000.0, seconds: 2.0, p50_us: 50.0, p99_us: 900.0, bad: 15.0 };
        assert_eq!(parse(said), Some(load));
        assert_eq!(parse("RESULT 1 2"), None);
    }
}
