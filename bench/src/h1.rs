//! HTTP/1.1 beside the peers and the floors.
//!
//! Owns: the scenarios. Does not own: starting programs (`servers.rs`), making load (`load.rs`), rounds
//! (`rounds.rs`).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::peers::{self, BODY_BYTES, Back, Front};
use crate::rounds::{Contestant, compete, measure};
use crate::servers::{Scratch, Server, free_port};
use crate::{Options, Result, load, machine};

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
    let upstream = if name == "direct" { None } else { Some(peers::upstream(&scratch, load_core)?) };
    let back = match &upstream {
        Some(upstream) => Back::Upstream(upstream.port()?),
        None => Back::Fixed(BODY_BYTES),
    };
    if !options.without_blitz {
        servers.push(peers::blitz(&scratch, server_core, programs, Front::Plain, back)?);
    }
    servers.push(peers::nginx(&scratch, server_core, Front::Plain, back)?);
    servers.push(peers::haproxy(&scratch, server_core, Front::Plain, back)?);
    servers.push(floor(&scratch, server_core, programs, back)?);
    for server in &servers {
        println!("{:<8} answers with {} body bytes", server.name, body_bytes(server)?);
    }
    let mut contestants: Vec<_> = servers
        .iter()
        .map(|server| Contestant {
            name: server.name.clone(),
            run: Box::new(|| {
                load::run(&server.url, options.warm_up_seconds, load_core, &script)?;
                measure(server, || load::run(&server.url, options.seconds, load_core, &script))
            }),
        })
        .collect();
    compete(name, "requests", &mut contestants, options.pairs)
}

/// The floor that does the same.
fn floor(scratch: &Scratch, core: usize, programs: &Path, back: Back) -> Result<Server> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let (name, what) = match back {
        Back::Fixed(bytes) => ("floor_respond", bytes.to_string()),
        Back::Upstream(upstream) => ("floor_forward", format!("127.0.0.1:{upstream}")),
    };
    let program = programs.join(name);
    let words = [&*program.to_string_lossy(), &address, &what];
    scratch.start("floor", core, format!("http://{address}/"), &words)
}

/// Asks once, requires 200, and returns the length of the body.
fn body_bytes(server: &Server) -> Result<usize> {
    let (url, authority, path) = (&server.url, server.authority(), server.path());
    let failed = |error: std::io::Error| format!("{url}: {error}");
    let mut stream = TcpStream::connect(authority).map_err(failed)?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(failed)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
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
