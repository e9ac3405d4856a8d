//! TLS handshakes beside the peers.
//!
//! Owns: the scenarios. Does not own: the generator (`bin/handshakes.rs`), configurations (`peers.rs`), rounds
//! (`rounds.rs`).

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::peers::{self, BODY_BYTES, Back};
use crate::rounds::{Contestant, Load, compete, measure};
use crate::servers::{Scratch, Server, die_with_us};
use crate::{Options, Result, h2, machine};

/// Names on the command line, group, kind of handshake.
const SCENARIOS: [(&str, &str, &str); 4] = [
    ("full", "X25519", "full"),
    ("resumed", "X25519", "resumed"),
    ("full-mlkem", "X25519MLKEM768", "full"),
    ("resumed-mlkem", "X25519MLKEM768", "resumed"),
];

pub(crate) fn run(options: &Options) -> Result<Value> {
    let (server_core, load_core) = machine::two_cores()?;
    let facts = machine::facts_of_tls_peers(&options.programs);
    println!("{facts:#}");
    let mut scenarios = serde_json::Map::new();
    for (name, group, kind) in SCENARIOS {
        if options.scenario.as_deref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        println!("\n== {name}: {kind} handshakes, {group}");
        let scratch = Scratch::new()?;
        peers::certificate(&scratch)?;
        let servers = h2::start(&scratch, options, server_core, Back::Fixed(BODY_BYTES))?;
        let generate = |server: &Server, seconds| generate(options, server, group, kind, seconds, load_core);
        let mut contestants = Vec::new();
        for server in &servers {
            if let Err(why) = generate(server, 1) {
                if server.name == "blitz" {
                    return Err(why);
                }
                println!("{} is left out of {group}, {kind}: {why}", server.name);
                continue;
            }
            contestants.push(Contestant {
                name: server.name.clone(),
                run: Box::new(move || measure(server, || generate(server, options.seconds))),
            });
        }
        let title = format!("{kind}, {group}");
        scenarios.insert(name.to_owned(), compete(&title, "handshakes", &mut contestants, options.pairs)?);
    }
    if scenarios.is_empty() {
        return Err("--scenario is full, resumed, full-mlkem or resumed-mlkem".to_owned());
    }
    Ok(json!({
        "machine": facts, "pairs": options.pairs, "seconds": options.seconds,
        "server_core": server_core, "load_core": load_core, "scenarios": scenarios,
    }))
}

fn generate(
    options: &Options,
    server: &Server,
    group: &str,
    kind: &str,
    seconds: u64,
    core: usize,
) -> Result<Load> {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(options.programs.join("handshakes"));
    command.args([server.authority(), group, kind, &seconds.to_string()]).stdin(Stdio::null());
    die_with_us(&mut command);
    let output = command.output().map_err(|error| format!("handshakes: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    parse(&said).ok_or_else(|| {
        let why = String::from_utf8_lossy(&output.stderr);
        format!("the generator said {:?}", format!("{said}{why}").trim())
    })
}

fn parse(said: &str) -> Option<Load> {
    let line = said.lines().find_map(|line| line.strip_prefix("RESULT "))?;
    let n: Vec<f64> = line.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    let [done, seconds, bad, mean] = n[..] else { return None };
    (done > 0.0).then_some(Load { done, seconds, p50_us: mean, p99_us: mean, bad })
}

#[cfg(test)]
mod tests {
    use super::{Load, parse};

    #[test]
    fn figures_are_read_in_order() {
        let load = Load { done: 100.0, seconds: 2.0, p50_us: 800.0, p99_us: 800.0, bad: 3.0 };
        assert_eq!(parse("RESULT 100 2.000 3 800\n"), Some(load));
        // A server that does none of them takes no part.
        assert_eq!(parse("RESULT 0 2.000 16 0\n"), None);
    }
}
