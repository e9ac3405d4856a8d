//! What was measured, and on what.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Kernel, processor, versions: without them a figure means nothing.
pub(crate) fn facts(programs: &Path) -> Value {
    let blitz = programs.join("blitz");
    facts_with(&[
        ("blitz", &blitz.to_string_lossy(), "--version"),
        ("nginx", "nginx", "-v"),
        ("haproxy", "haproxy", "-v"),
        ("wrk", "wrk", "-v"),
    ])
}

/// The same with the peers that speak TLS.
pub(crate) fn facts_of_tls_peers(programs: &Path) -> Value {
    let blitz = programs.join("blitz");
    let envoy = crate::peers::find_envoy(programs).unwrap_or_default();
    facts_with(&[
        ("blitz", &blitz.to_string_lossy(), "--version"),
        ("nginx", "nginx", "-v"),
        ("haproxy", "haproxy", "-v"),
        ("h2o", "h2o", "-v"),
        ("envoy", &envoy.to_string_lossy(), "--version"),
        ("h2load", "h2load", "--version"),
    ])
}

/// The same with the peers that speak HTTP/3.
pub(crate) fn facts_of_quic_peers(programs: &Path) -> Value {
    let blitz = programs.join("blitz");
    let envoy = crate::peers::find_envoy(programs).unwrap_or_default();
    let caddy = crate::peers::find_caddy(programs).unwrap_or_default();
    facts_with(&[
        ("blitz", &blitz.to_string_lossy(), "--version"),
        ("envoy", &envoy.to_string_lossy(), "--version"),
        ("caddy", &caddy.to_string_lossy(), "version"),
        ("nginx", "nginx", "-v"),
        ("h2load", "h2load", "--version"),
    ])
}

/// The same with the versions of other programs: name, program, and the words that make it print its version.
pub(crate) fn facts_with(versions: &[(&str, &str, &str)]) -> Value {
    let first_line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let commit = says("git", &["rev-parse", "--short", "HEAD"]);
    let mut facts = json!({
        "kernel": first_line("/proc/sys/kernel/osrelease"),
        "processor": model.unwrap_or("unknown"),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "commit": commit,
    });
    for (name, program, words) in versions {
        facts[*name] = says(program, &words.split(' ').collect::<Vec<_>>()).into();
    }
    facts
}

/// The first line that a program prints and that says something.
fn says(program: &str, args: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(args).output() else {
        return "absent".to_owned();
    };
    let bytes = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&bytes);
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// The first two processors that this process may use: servers run on one, load on the other.
pub(crate) fn two_cores() -> Result<(usize, usize), String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let mut cores = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            cores.extend(first..=last);
        }
    }
    match cores[..] {
        [first, second, ..] => Ok((first, second)),
        _ => Err(format!(
            "two processors are needed, one for the server and one for the load; allowed are {list}"
        )),
    }
}
