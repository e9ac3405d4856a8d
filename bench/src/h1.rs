//! HTTP/1.1 beside the peers and the floors, in interleaved rounds.
//!
//! Owns: the scenarios, the rounds, the ratios, the table. Does not own: starting programs
//! (`servers.rs`), making load (`load.rs`).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::servers::{Scratch, Server};
use crate::stats::Quartiles;
use crate::{Options, Result, account, load, machine};

/// Below this share of its core the server waited for the generator, and the RPS is not its limit.
const BUSY_MIN: f64 = 0.95;
/// CPU-seconds per second used by anything else; beyond it a round is flagged.
const FOREIGN_MAX: f64 = 0.15;

/// One server's run in one round.
struct Run {
    per_cpu_second: f64,
    rps: f64,
    p50_us: f64,
    p99_us: f64,
    busy: f64,
    foreign: f64,
    bad: f64,
}

impl Run {
    fn flags(&self) -> String {
        let idle = if self.busy < BUSY_MIN { " server-not-busy" } else { "" };
        let foreign = if self.foreign > FOREIGN_MAX { " foreign-load" } else { "" };
        format!("{idle}{foreign}")
    }
}

pub(crate) fn run(options: &Options) -> Result<Value> {
    let cores = machine::two_cores()?;
    let facts = machine::facts(&options.programs);
    println!("{facts:#}");
    let mut scenarios = serde_json::Map::new();
    for name in ["direct", "proxied"] {
        if options.scenario.as_deref().is_none_or(|wanted| wanted == name) {
            scenarios.insert(name.to_owned(), scenario(name, options, cores)?);
        }
    }
    if scenarios.is_empty() {
        return Err("--scenario is direct or proxied".to_owned());
    }
    Ok(json!({
        "machine": facts, "pairs": options.pairs, "seconds": options.seconds, "connections": load::CONNECTIONS,
        "server_core": cores.0, "load_core": cores.1, "scenarios": scenarios,
    }))
}

fn scenario(name: &str, options: &Options, (server_core, load_core): (usize, usize)) -> Result<Value> {
    println!("\n== {name}");
    let scratch = Scratch::new()?;
    let script = load::script(&scratch.dir)?;
    let programs = &options.programs;
    let mut servers = Vec::new();
    // Lives until the last round.
    let _upstream;
    if name == "direct" {
        // The others answer with as many body bytes as the gateway does.
        let mut body = 13;
        if !options.without_blitz {
            let blitz = scratch.blitz_direct(server_core, programs)?;
            body = body_bytes(&blitz.url)?;
            servers.push(blitz);
        }
        servers.push(scratch.nginx_direct(server_core, body)?);
        servers.push(scratch.haproxy_direct(server_core, body)?);
        servers.push(scratch.floor_respond(server_core, programs, body)?);
    } else {
        let (server, port) = scratch.upstream(load_core)?;
        _upstream = server;
        if !options.without_blitz {
            servers.push(scratch.blitz_proxy(server_core, programs, port)?);
        }
        servers.push(scratch.nginx_proxy(server_core, port)?);
        servers.push(scratch.haproxy_proxy(server_core, port)?);
        servers.push(scratch.floor_forward(server_core, programs, port)?);
    }
    for server in &servers {
        println!("{:<8} answers with {} body bytes", server.name, body_bytes(&server.url)?);
    }

    let mut runs: Vec<Vec<Run>> = servers.iter().map(|_| Vec::new()).collect();
    for round in 1..=options.pairs {
        for (server, runs) in servers.iter().zip(&mut runs) {
            load::run(&server.url, options.warm_up_seconds, load_core, &script)?;
            let run = measure(server, options.seconds, load_core, &script)?;
            println!(
                "round {round:>2} {:<8} {:>9.0} req/CPU-s {:>9.0} RPS  busy {:>3.0} %  foreign {:.2}{}",
                server.name,
                run.per_cpu_second,
                run.rps,
                run.busy * 100.0,
                run.foreign,
                run.flags()
            );
            runs.push(run);
        }
    }
    Ok(report(name, &servers, &runs))
}

fn measure(server: &Server, seconds: u64, load_core: usize, script: &std::path::Path) -> Result<Run> {
    // All that we started is below us; wrk has ended when we look again, and its time is in ours.
    let ours = || account::cpu_seconds(std::process::id());
    let busy_before = account::machine_busy_seconds();
    let (server_before, ours_before) = (account::cpu_seconds(server.pid()), ours());
    let load = load::run(&server.url, seconds, load_core, script)?;
    let cpu = account::cpu_seconds(server.pid()) - server_before;
    let known = ours() - ours_before;
    let busy = account::machine_busy_seconds() - busy_before;
    if load.requests < 1.0 || cpu <= 0.0 {
        return Err(format!("{} answered {} requests in {cpu} CPU-seconds", server.name, load.requests));
    }
    Ok(Run {
        per_cpu_second: load.requests / cpu,
        rps: load.requests / load.seconds,
        p50_us: load.p50_us,
        p99_us: load.p99_us,
        busy: cpu / load.seconds,
        foreign: ((busy - known) / load.seconds).max(0.0),
        bad: load.bad,
    })
}

fn report(name: &str, servers: &[Server], runs: &[Vec<Run>]) -> Value {
    let column = |runs: &[Run], of: fn(&Run) -> f64| {
        let values: Vec<f64> = runs.iter().map(of).collect();
        Quartiles::of(&values).unwrap_or(Quartiles { lower: 0.0, median: 0.0, upper: 0.0 })
    };
    println!(
        "\n{name:<9} {:>30} {:>9} {:>8} {:>8} {:>6} {:>5} {:>7}",
        "requests/CPU-second [q1..q3]", "RPS", "p50 us", "p99 us", "busy %", "bad", "flagged"
    );
    let mut peers = serde_json::Map::new();
    for (server, runs) in servers.iter().zip(runs) {
        let rate = column(runs, |run| run.per_cpu_second);
        let (rps, busy) = (column(runs, |run| run.rps), column(runs, |run| run.busy));
        let (p50, p99) = (column(runs, |run| run.p50_us), column(runs, |run| run.p99_us));
        let bad: f64 = runs.iter().map(|run| run.bad).sum();
        let flagged = runs.iter().filter(|run| !run.flags().is_empty()).count();
        let rates = format!("{:.0} [{:.0}..{:.0}]", rate.median, rate.lower, rate.upper);
        println!(
            "{:<9} {rates:>30} {:>9.0} {:>8.0} {:>8.0} {:>6.0} {bad:>5.0} {flagged:>7}",
            server.name,
            rps.median,
            p50.median,
            p99.median,
            busy.median * 100.0
        );
        let rounds = runs.iter().map(|run| {
            json!({
                "requests_per_cpu_second": run.per_cpu_second, "rps": run.rps, "p50_us": run.p50_us,
                "p99_us": run.p99_us, "busy": run.busy, "foreign": run.foreign, "bad": run.bad,
                "flags": run.flags().trim(),
            })
        });
        let rounds: Vec<Value> = rounds.collect();
        peers.insert(server.name.clone(), json!({
            "requests_per_cpu_second": rate.json(), "rps": rps.json(), "p50_us": p50.json(), "p99_us": p99.json(),
            "busy": busy.json(), "bad": bad, "rounds": rounds,
        }));
    }

    let mut ratios = serde_json::Map::new();
    if servers.first().is_some_and(|server| server.name == "blitz") {
        println!("\nratio of requests/CPU-second in one round    q1      median  q3");
        for (peer, theirs) in servers.iter().zip(runs).skip(1) {
            let pairs = runs[0].iter().zip(theirs);
            let values: Vec<f64> =
                pairs.map(|(ours, theirs)| ours.per_cpu_second / theirs.per_cpu_second).collect();
            if let Some(ratio) = Quartiles::of(&values) {
                let label = format!("blitz / {}", peer.name);
                println!("{label:<43} {:>6.3}  {:>6.3}  {:>6.3}", ratio.lower, ratio.median, ratio.upper);
                ratios.insert(peer.name.clone(), ratio.json());
            }
        }
    }
    json!({ "peers": peers, "blitz_over": ratios })
}

/// Asks once, requires 200, and returns the length of the body.
fn body_bytes(url: &str) -> Result<usize> {
    let failed = |error: std::io::Error| format!("{url}: {error}");
    let (authority, path) = url["http://".len()..].split_once('/').ok_or("a URL without a path")?;
    let mut stream = TcpStream::connect(authority).map_err(failed)?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(failed)?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            let length: usize = length.ok_or_else(|| format!("{url} answers without a length: {head}"))?;
            if !head.starts_with("http/1.1 200") {
                return Err(format!("{url} answers {head}"));
            }
            if body.len() >= length {
                return Ok(length);
            }
        }
        let n = stream.read(&mut bytes).map_err(failed)?;
        if n == 0 {
            return Err(format!("{url} closed after {} bytes", answer.len()));
        }
        answer.extend_from_slice(&bytes[..n]);
    }
}
