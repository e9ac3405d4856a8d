//! The HTTP/2 load generator: h2load.
//!
//! Owns: one run of it and what it counted. Does not own: what the server used meanwhile (see `rounds.rs`).

use std::process::{Command, Stdio};

use crate::rounds::Load;
use crate::{Result, servers};

/// Connections of one run, and requests under way on each.
pub(crate) const CONNECTIONS: usize = 16;
pub(crate) const STREAMS: usize = 32;

/// Seconds beyond its time after which h2load is ended: 1.52 now and then misses its own end and goes on for ever.
const OVERTIME: u64 = 5;

/// What `timeout` exits with when the time was up.
const TIMED_OUT: i32 = 124;

/// Runs h2load for `seconds` on one core: HTTP/2 over TLS 1.3, AES-128-GCM, X25519. `None`: it did not end in time.
pub(crate) fn run(url: &str, seconds: u64, core: usize) -> Result<Option<Load>> {
    let mut command = Command::new("timeout");
    command.args([&(seconds + OVERTIME).to_string(), "taskset", "-c", &core.to_string(), "h2load", "-t1"]);
    command.args([&format!("-c{CONNECTIONS}"), &format!("-m{STREAMS}"), &format!("-D{seconds}")]);
    command.args(["--tls13-ciphers=TLS_AES_128_GCM_SHA256", "--groups=X25519", url]).stdin(Stdio::null());
    servers::die_with_us(&mut command);
    let output = command.output().map_err(|error| format!("h2load: {error}"))?;
    if output.status.code() == Some(TIMED_OUT) {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stdout);
    parse(&said, seconds as f64)
        .map(Some)
        .ok_or_else(|| format!("h2load on {url} said {said:?} {:?}", String::from_utf8_lossy(&output.stderr)))
}

fn parse(said: &str, seconds: f64) -> Option<Load> {
    let line = |begin: &str| said.lines().find_map(|line| line.trim_start().strip_prefix(begin));
    if !line("TLS Protocol:")?.contains("TLSv1.3") || !line("Application protocol:")?.contains("h2") {
        return None;
    }
    let requests = line("requests:")?;
    let (done, ok) = (before(requests, "done")?, before(requests, "succeeded")?);
    let failed = before(requests, "failed")? + before(requests, "timeout")?;
    let status = line("status codes:")?;
    let other = before(status, "4xx")? + before(status, "5xx")?;
    let mut times = line("time for request:")?.split_whitespace().filter_map(microseconds);
    let (_min, _max, mean) = (times.next()?, times.next()?, times.next()?);
    // Those under way when time was up are cut off by h2load and counted as failed by it: not by us.
    let cut = (CONNECTIONS * STREAMS) as f64;
    let bad = if failed > cut { failed } else { 0.0 } + other;
    Some(Load { done: ok.min(done), seconds, p50_us: mean, p99_us: mean, bad })
}

/// The number in front of a word.
fn before(text: &str, word: &str) -> Option<f64> {
    text.split(',').find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
}

/// `1.23ms` and the like.
fn microseconds(text: &str) -> Option<f64> {
    let number = text.trim_end_matches(char::is_alphabetic);
    let scale = match text.get(number.len()..)? {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::{Load, parse};

    const SAID: &str = "TLS Protocol: TLSv1.3\nCipher: TLS_AES_128_GCM_SHA256\nApplication protocol: h2\n\n\
        finished in 1.00s, 1000.00 req/s, 1.0MB/s\n\
        requests: 1000 total, 1512 started, 1000 done, 990 succeeded, 10 failed, 0 errored, 0 timeout\n\
        status codes: 990 2xx, 0 3xx, 4 4xx, 3 5xx\n\
        time for request:     1.00ms    50.00ms      2.50ms       1.00ms    90.00%\n";

    #[test]
    fn figures_are_read() {
        let load = Load { done: 990.0, seconds: 2.0, p50_us: 2500.0, p99_us: 2500.0, bad: 7.0 };
        assert_eq!(parse(SAID, 2.0), Some(load));
        let many = SAID.replace("10 failed", "513 failed");
        assert_eq!(parse(&many, 2.0).map(|load| load.bad), Some(520.0));
        assert_eq!(parse(&SAID.replace("TLSv1.3", "TLSv1.2"), 2.0), None);
    }
}
