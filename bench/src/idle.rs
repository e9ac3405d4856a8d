//! What an idle connection costs in memory, beside nginx and haproxy: in clear, with TLS, with HTTP/2 over TLS.
//!
//! Owns: opening the connections and the growth of the server's memory. Does not own: the request on each
//! (`ask.rs`), the kernel's socket memory, which is the same for all and is printed beside.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::ask::{Asking, Kind};
use crate::peers::{self, BODY_BYTES, Back, Front};
use crate::rounds::grouped;
use crate::servers::{Scratch, Server};
use crate::{Options, Result, account, machine};

/// Descriptors that this program needs beside the connections.
const OTHER_DESCRIPTORS: usize = 64;

pub(crate) fn run(options: &Options) -> Result<Value> {
    let (core, _) = machine::two_cores()?;
    raise_descriptor_limit(options.connections + OTHER_DESCRIPTORS)?;
    let facts = machine::facts_of_tls_peers(&options.programs);
    println!("{facts:#}");
    let mut lines = Vec::new();
    let mut kinds = serde_json::Map::new();
    for kind in [Kind::Plain, Kind::Tls, Kind::Http2] {
        if options.scenario.as_deref().is_some_and(|wanted| wanted != kind.name()) {
            continue;
        }
        let scratch = Scratch::new()?;
        peers::certificate(&scratch)?;
        let front = if kind == Kind::Plain { Front::Plain } else { Front::Tls };
        let mut peers = serde_json::Map::new();
        for name in ["blitz", "nginx", "haproxy"] {
            let back = Back::Fixed(BODY_BYTES);
            let server = match name {
                "blitz" if options.without_blitz => continue,
                "blitz" => peers::blitz(&scratch, core, &options.programs, front, back)?,
                name if peers::find_program(name).is_none() => {
                    println!("{name} is not installed, and is left out (cargo xtask setup --bench)");
                    continue;
                }
                "nginx" => peers::nginx(&scratch, core, front, back)?,
                _ => peers::haproxy(&scratch, core, front, back)?,
            };
            let figures = grow(&server, kind, options.connections)?;
            let of = |key: &str| grouped(figures[key].as_f64().unwrap_or(0.0));
            lines.push(format!(
                "| {} | {name} | {} | {} | {} |",
                kind.name(),
                of("rss_bytes_each"),
                of("pss_bytes_each"),
                of("kernel_tcp_bytes")
            ));
            peers.insert(name.to_owned(), figures);
        }
        kinds.insert(kind.name().to_owned(), Value::Object(peers));
    }
    if kinds.is_empty() {
        return Err("--scenario is plain, tls or h2".to_owned());
    }
    println!("\n| {} idle connections | server | RSS bytes each | PSS bytes each | kernel's TCP bytes |", {
        options.connections
    });
    println!("|---|---|---|---|---|");
    lines.iter().for_each(|line| println!("{line}"));
    Ok(json!({ "machine": facts, "connections": options.connections, "kinds": kinds }))
}

fn grow(server: &Server, kind: Kind, count: usize) -> Result<Value> {
    let asking = Asking::new(kind)?;
    let ask = || asking.ask(server).map_err(|error| format!("{}: {error}", server.name));
    // The first requests fill what is allocated once.
    for _ in 0..64 {
        ask()?;
    }
    let (before, tcp_before) = (settled(server), account::tcp_memory_bytes());
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(ask()?);
    }
    let (after, tcp_after) = (settled(server), account::tcp_memory_bytes());
    // Those that the server closed meanwhile would make it look cheap.
    let closed = connections.iter_mut().filter_map(|stream| is_closed(stream).then_some(())).count();
    if closed > 0 {
        return Err(format!("{} closed {closed} of {count} idle connections", server.name));
    }
    let each = |before: u64, after: u64| (after as f64 - before as f64) / count as f64;
    Ok(json!({
        "rss_bytes_each": each(before.rss, after.rss).round(), "pss_bytes_each": each(before.pss, after.pss).round(),
        "rss_bytes_before": before.rss, "rss_bytes_after": after.rss,
        "kernel_tcp_bytes": tcp_after.saturating_sub(tcp_before),
    }))
}

/// Memory once two looks 100 ms apart agree.
fn settled(server: &Server) -> account::Memory {
    let begun = Instant::now();
    let mut last = account::memory(server.pid());
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = account::memory(server.pid());
        if now.rss == last.rss || begun.elapsed() > Duration::from_secs(5) {
            return now;
        }
        last = now;
    }
}

/// Reads what has come behind the answer, and sees whether an end is behind it.
fn is_closed(stream: &mut TcpStream) -> bool {
    if stream.set_nonblocking(true).is_err() {
        return true;
    }
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

fn raise_descriptor_limit(wanted: usize) -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer leads to a whole rlimit that lives across the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if (limit.rlim_max as usize) < wanted {
        return Err(format!(
            "{wanted} descriptors are needed, and the hard limit is {} (ulimit -Hn)",
            limit.rlim_max
        ));
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer leads to a whole rlimit that lives across the call.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    Ok(())
}
