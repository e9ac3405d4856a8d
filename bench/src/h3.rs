//! HTTP/3 beside the peers that speak it, our own HTTP/2, both ways of talking to the kernel, and the floor.
//!
//! Owns: the scenarios. Does not own: configurations (`peers.rs`), load (`h3load.rs`, `h2load.rs`), rounds
//! (`rounds.rs`).

mod link;

use std::cell::RefCell;
use std::process::{Command, Stdio};
use std::rc::Rc;

use blitz_tests::Netns;
use serde_json::{Value, json};

use crate::h3load::{Own, Shape};
use crate::peers::{self, BODY_BYTES, Back, Front};
use crate::rounds::{Contestant, Run, compete, measure};
use crate::servers::{Scratch, Server, die_with_us};
use crate::stats::Quartiles;
use crate::{Options, Result, h2, h2load, h3load, machine};

/// Bytes of the file that bulk downloads fetch again and again: at no rate is one of them a run.
const BULK_BYTES: u64 = 64 << 20;

pub(crate) fn run(options: &Options) -> Result<Value> {
    let cores = machine::two_cores()?;
    let facts = machine::facts_of_quic_peers(&options.programs);
    println!("{facts:#}");
    let mut scenarios = serde_json::Map::new();
    for name in ["direct", "proxied", "bulk"] {
        if options.scenario.as_deref().is_none_or(|wanted| wanted == name) {
            scenarios.insert(name.to_owned(), scenario(name, options, cores)?);
        }
    }
    if options.scenario.as_deref().is_none_or(|wanted| wanted == "link") && !options.without_blitz {
        if Netns::available() {
            scenarios.insert("link".to_owned(), link::run(options, cores)?);
        } else if options.scenario.is_some() {
            return Err(
                "--scenario link needs root: it makes network namespaces and attaches a stage".to_owned()
            );
        } else {
            println!("\nlink is left out: it needs root, for network namespaces and the stage");
        }
    }
    if scenarios.is_empty() {
        return Err("--scenario is direct, proxied, bulk or link".to_owned());
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
    let many = Shape { connections: h2load::CONNECTIONS, streams: h2load::STREAMS, bytes: 0, is_bulk: false };
    let (upstream, shape, path) = match name {
        "direct" => (None, Shape { bytes: BODY_BYTES as u64, ..many }, None),
        "proxied" => (Some(peers::upstream(&scratch, load_core)?), Shape { bytes: 1024, ..many }, None),
        _ => {
            let shape = Shape { connections: 4, streams: 1, bytes: BULK_BYTES, is_bulk: true };
            (Some(peers::file_upstream(&scratch, load_core, BULK_BYTES)?), shape, Some("/bulk"))
        }
    };
    let back = match &upstream {
        Some(upstream) => Back::Upstream(upstream.port()?),
        None => Back::Fixed(BODY_BYTES),
    };
    let servers = start(&scratch, options, server_core, back)?;
    let own: Rc<RefCell<Vec<(String, Own)>>> = Rc::default();
    let mut contestants = Vec::new();
    for server in &servers {
        let own = Rc::clone(&own);
        let run = move || {
            let path = path.unwrap_or(server.path());
            let load =
                |seconds| h3load::run(server, path, shape, seconds, load_core, &options.programs, None);
            load(options.warm_up_seconds)?;
            measure(server, || {
                let (load, said) = load(options.seconds)?;
                own.borrow_mut().push((server.name.clone(), said));
                Ok(load)
            })
        };
        contestants.push(Contestant { name: server.name.clone(), run: Box::new(run) });
        if server.name == "blitz" && !shape.is_bulk {
            let run = move || h2::run_warm(server, options, load_core);
            contestants.push(Contestant { name: "blitz, HTTP/2".to_owned(), run: Box::new(run) });
        }
    }
    if !shape.is_bulk {
        let run = || floor(&scratch, options, server_core, name);
        contestants.push(Contestant { name: "floor: quiche".to_owned(), run: Box::new(run) });
    }
    let unit = if shape.is_bulk { "MB" } else { "requests" };
    let report = compete(name, unit, &mut contestants, options.pairs)?;
    drop(contestants);
    Ok(json!({ "figures": report, "generator": generator(&servers, &own.borrow(), shape) }))
}

/// The gateway in both ways, and every peer that is installed.
fn start(scratch: &Scratch, options: &Options, core: usize, back: Back) -> Result<Vec<Server>> {
    let programs = &options.programs;
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let mut servers = Vec::new();
    for (name, io) in [("blitz", "uring"), ("blitz-epoll", "epoll")] {
        if wanted(name) && !options.without_blitz {
            servers.push(peers::blitz_as(scratch, name, core, programs, Front::Quic, back, io)?);
        }
    }
    for (name, program) in [("envoy", peers::find_envoy(programs)), ("caddy", peers::find_caddy(programs))] {
        if !wanted(name) {
            continue;
        }
        if program.is_none() {
            println!("{name} is not installed, and is left out (cargo xtask setup --bench)");
        } else if name == "envoy" {
            servers.push(peers::envoy(scratch, core, programs, Front::Quic, back)?);
        } else {
            servers.push(peers::caddy(scratch, core, programs, back)?);
        }
    }
    Ok(servers)
}

/// Prints what the generator did at each server, so that nobody has to believe that it was not the limit.
fn generator(servers: &[Server], own: &[(String, Own)], shape: Shape) -> Value {
    println!("\n| generator at | its core busy | datagrams received | and sent |");
    println!("|---|---|---|---|");
    let per = if shape.is_bulk { "MB" } else { "request" };
    let mut report = serde_json::Map::new();
    for server in servers {
        let column = |of: fn(&Own) -> f64| {
            let values: Vec<f64> =
                own.iter().filter(|(name, _)| *name == server.name).map(|(_, own)| of(own)).collect();
            Quartiles::of(&values).map_or(0.0, |quartiles| quartiles.median)
        };
        let (busy, received, sent) =
            (column(|own| own.busy), column(|own| own.received), column(|own| own.sent));
        println!("| {} | {:.0} % | {received:.3} a {per} | {sent:.3} |", server.name, busy * 100.0);
        report.insert(server.name.clone(), json!({ "busy": busy, "received": received, "sent": sent }));
    }
    report.into()
}

/// quiche over memory: it counts its own processor time.
fn floor(scratch: &Scratch, options: &Options, core: usize, scenario: &str) -> Result<Run> {
    let program = options.programs.join("floor_h3");
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command.args([scenario, &options.seconds.to_string(), "tls.crt", "tls.key"]).current_dir(&scratch.dir);
    die_with_us(command.stdin(Stdio::null()));
    let output = command.output().map_err(|error| format!("floor_h3: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<f64> = said.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    let [rate, allocations, datagrams] = figures[..] else {
        return Err(format!("floor_h3 said {said:?} {:?}", String::from_utf8_lossy(&output.stderr)));
    };
    println!("floor: {allocations} allocations and {datagrams} datagrams a request");
    Ok(Run::alone(rate))
}
