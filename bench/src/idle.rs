//! What an idle kept-alive connection costs in memory, beside nginx.
//!
//! Owns: opening the connections, one request on each, and the growth of the server's memory. Does not
//! own: the kernel's socket memory, which is the same for both and is printed beside.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::servers::{Scratch, Server};
use crate::{Options, Result, account, machine};

/// Descriptors that this program needs beside the connections.
const OTHER_DESCRIPTORS: usize = 64;

pub(crate) fn run(options: &Options) -> Result<Value> {
    let (core, _) = machine::two_cores()?;
    raise_descriptor_limit(options.connections + OTHER_DESCRIPTORS)?;
    let facts = machine::facts(&options.programs);
    println!("{facts:#}");
    let scratch = Scratch::new()?;
    let mut servers = Vec::new();
    if !options.without_blitz {
        servers.push(scratch.blitz_direct(core, &options.programs)?);
    }
    servers.push(scratch.nginx_direct(core, 13)?);
    println!(
        "\n{:<8} {:>12} {:>16} {:>16} {:>18}",
        "server", "connections", "RSS bytes each", "PSS bytes each", "kernel TCP bytes"
    );
    let mut peers = serde_json::Map::new();
    for server in &servers {
        let figures = grow(server, options.connections)?;
        println!(
            "{:<8} {:>12} {:>16} {:>16} {:>18}",
            server.name,
            options.connections,
            figures["rss_bytes_each"],
            figures["pss_bytes_each"],
            figures["kernel_tcp_bytes"]
        );
        peers.insert(server.name.clone(), figures);
    }
    Ok(json!({ "machine": facts, "connections": options.connections, "peers": peers }))
}

fn grow(server: &Server, count: usize) -> Result<Value> {
    // The first requests fill what is allocated once.
    for _ in 0..64 {
        one_request(server, &mut connect(server)?)?;
    }
    let (before, tcp_before) = (settled(server), account::tcp_memory_bytes());
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = connect(server)?;
        one_request(server, &mut stream)?;
        connections.push(stream);
    }
    let (after, tcp_after) = (settled(server), account::tcp_memory_bytes());
    // Those that the server closed meanwhile would make it look cheap.
    let closed = connections.iter().filter(|stream| is_closed(stream)).count();
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

fn connect(server: &Server) -> Result<TcpStream> {
    let stream =
        TcpStream::connect(authority(server)).map_err(|error| format!("{}: {error}", server.name))?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|error| error.to_string())?;
    Ok(stream)
}

fn authority(server: &Server) -> &str {
    server.url["http://".len()..].split('/').next().unwrap_or_default()
}

fn one_request(server: &Server, stream: &mut TcpStream) -> Result<()> {
    let failed = |error: std::io::Error| format!("{}: {error}", server.name);
    let path = &server.url["http://".len() + authority(server).len()..];
    let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut bytes = [0; 4096];
    let n = stream.read(&mut bytes).map_err(failed)?;
    // The answers are far smaller than a segment, so one read has them whole.
    if bytes[..n].starts_with(b"HTTP/1.1 200") {
        Ok(())
    } else {
        Err(format!("{} answered otherwise", server.name))
    }
}

fn is_closed(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    !matches!(peeked, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
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
