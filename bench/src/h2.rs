//! HTTP/2 over TLS 1.3 beside the peers and the floor.
//!
//! Owns: the scenarios. Does not own: configurations (`peers.rs`), load (`h2load.rs`), rounds (`rounds.rs`).

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::peers::{self, BODY_BYTES, Back, Front};
use crate::rounds::{Contestant, Run, compete, measure};
use crate::servers::{Scratch, Server, die_with_us};
use crate::{Options, Result, h2load, machine};

/// How often h2load is tried in one round.
const TRIES: usize = 4;

pub(crate) fn run(options: &Options) -> Result<Value> {
    let cores = machine::two_cores()?;
    let facts = machine::facts_of_tls_peers(&options.programs);
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
        "machine": facts, "pairs": options.pairs, "seconds": options.seconds, "connections": h2load::CONNECTIONS,
        "streams": h2load::STREAMS, "server_core": cores.0, "load_core": cores.1, "scenarios": scenarios,
    }))
}

fn scenario(name: &str, options: &Options, (server_core, load_core): (usize, usize)) -> Result<Value> {
    println!("\n== {name}");
    let scratch = Scratch::new()?;
    peers::certificate(&scratch)?;
    // Lives until the last round.
    let upstream = if name == "direct" { None } else { Some(peers::upstream(&scratch, load_core)?) };
    let back = match &upstream {
        Some(upstream) => Back::Upstream(upstream.port()?),
        None => Back::Fixed(BODY_BYTES),
    };
    let servers = start(&scratch, options, server_core, back)?;
    let mut contestants: Vec<_> = servers
        .iter()
        .map(|server| Contestant {
            name: server.name.clone(),
            run: Box::new(|| run_warm(server, options, load_core)),
        })
        .collect();
    for (label, kind) in [("floor: h2 crate", "clear"), ("floor: h2 crate, rustls", "sealed")] {
        let run = move || floor(options, server_core, name, kind);
        contestants.push(Contestant { name: label.to_owned(), run: Box::new(run) });
    }
    compete(name, "requests", &mut contestants, options.pairs)
}

/// A measured run after one that is not.
pub(crate) fn run_warm(server: &Server, options: &Options, core: usize) -> Result<Run> {
    run_once(server, options.warm_up_seconds, core)?;
    run_once(server, options.seconds, core)
}

/// One measured run of h2load; again where it did not end.
fn run_once(server: &Server, seconds: u64, core: usize) -> Result<Run> {
    for _ in 0..TRIES {
        let mut ended = true;
        let run = measure(server, || {
            h2load::run(&server.url, seconds, core)?.ok_or_else(|| {
                ended = false;
                String::new()
            })
        });
        if ended {
            return run;
        }
        println!("h2load on {} did not end in time, again", server.name);
    }
    Err(format!("h2load on {} did not end in time, {TRIES} times", server.name))
}

/// The gateway and every peer that is installed.
pub(crate) fn start(scratch: &Scratch, options: &Options, core: usize, back: Back) -> Result<Vec<Server>> {
    let (front, programs) = (Front::Tls, &options.programs);
    let mut servers = Vec::new();
    let wanted = |name: &str| {
        let is_asked_for = options.only.is_empty() || options.only.iter().any(|only| only == name);
        let is_here = match name {
            "blitz" => !options.without_blitz,
            "envoy" => peers::find_envoy(programs).is_some(),
            name => peers::find_program(name).is_some(),
        };
        if is_asked_for && !is_here && name != "blitz" {
            println!("{name} is not installed, and is left out (cargo xtask setup --bench)");
        }
        is_asked_for && is_here
    };
    if wanted("blitz") {
        servers.push(peers::blitz(scratch, core, programs, front, back)?);
    }
    if wanted("nginx") {
        servers.push(peers::nginx(scratch, core, front, back)?);
    }
    if wanted("haproxy") {
        servers.push(peers::haproxy(scratch, core, front, back)?);
    }
    if wanted("h2o") {
        servers.push(peers::h2o(scratch, core, front, back)?);
    }
    if wanted("envoy") {
        servers.push(peers::envoy(scratch, core, programs, front, back)?);
    }
    Ok(servers)
}

/// The h2 crate over memory: it counts its own processor time.
fn floor(options: &Options, core: usize, scenario: &str, kind: &str) -> Result<Run> {
    let program = options.programs.join("floor_h2");
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command.args([scenario, kind, &options.seconds.to_string()]).stdin(Stdio::null());
    die_with_us(&mut command);
    let output = command.output().map_err(|error| format!("floor_h2: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let rate = said.strip_prefix("RESULT ").and_then(|text| text.trim().parse().ok());
    let rate =
        rate.ok_or_else(|| format!("floor_h2 said {said:?} {:?}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(Run::alone(rate))
}
