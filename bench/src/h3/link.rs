//! The same gateway behind the same stage on a link, three times: datagrams by io_uring, by epoll, by AF_XDP.
//!
//! Each has a veth pair of its own with one queue, whose receive work is a kernel thread on the gateway's core. Its
//! time is counted with the gateway's: what AF_XDP spares the gateway may otherwise only have moved.
//!
//! Owns: the links and what runs on them. Does not own: load (`h3load.rs`), the pairs (`blitz_tests::wire`).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use blitz_tests::ctl::{Daemon, Stage};
use blitz_tests::wire::{HOST4, Wire, WireSetup};
use serde_json::Value;

use crate::h3load::{self, Shape};
use crate::peers::{self, BODY_BYTES};
use crate::rounds::{Contestant, compete, measure};
use crate::servers::{Scratch, Server};
use crate::{Options, Result, h2load};

const PORT: u16 = 8443;
/// Where the admin API is, in the namespace of the gateway.
const ADMIN: &str = "127.0.0.1:9900";

/// A gateway behind a stage. Dropped in this order.
struct Gateway {
    server: Server,
    is_framed: bool,
    _daemon: Daemon,
    _stage: Stage,
    wire: Wire,
}

pub(super) fn run(options: &Options, (server_core, load_core): (usize, usize)) -> Result<Value> {
    println!("\n== link");
    let scratch = Scratch::new()?;
    peers::certificate(&scratch)?;
    let shape = Shape {
        connections: h2load::CONNECTIONS,
        streams: h2load::STREAMS,
        bytes: BODY_BYTES as u64,
        is_bulk: false,
    };
    let start = |name, io, is_framed| start(&scratch, options, server_core, name, io, is_framed);
    let gateways = [
        start("blitz", "uring", false)?,
        start("blitz-epoll", "epoll", false)?,
        start("blitz-afxdp", "uring", true)?,
    ];
    let mut contestants = Vec::new();
    for Gateway { server, wire, .. } in &gateways {
        let space = wire.peer.space.as_ref().ok_or("the peer has no namespace")?;
        let run = move || {
            let (path, programs) = (server.path(), &options.programs);
            let network = Some(space.network());
            let load = |seconds| {
                let run = h3load::run(server, path, shape, seconds, load_core, programs, network);
                run.map(|(load, _)| load)
            };
            load(options.warm_up_seconds)?;
            measure(server, || load(options.seconds))
        };
        contestants.push(Contestant { name: server.name.clone(), run: Box::new(run) });
    }
    let report = compete("link", "requests", &mut contestants, options.pairs)?;
    drop(contestants);
    for gateway in &gateways {
        let (received, sent) = (gateway.frames("received")?, gateway.frames("sent")?);
        println!("{}: {received} frames received and {sent} sent by AF_XDP", gateway.server.name);
        if gateway.is_framed != (received > 0 && sent > 0) {
            return Err(format!("{}: {received} frames came by AF_XDP", gateway.server.name));
        }
    }
    Ok(report)
}

fn start(
    scratch: &Scratch,
    options: &Options,
    core: usize,
    name: &str,
    io: &str,
    is_framed: bool,
) -> Result<Gateway> {
    let wire = WireSetup::default().queues(1).make();
    // As NICs do.
    wire.host.merge_received();
    wire.peer.merge_received();
    let dir = scratch.dir.display();
    let mut toml = format!(
        "[[listeners]]\nname = \"bench\"\naddress = \"{HOST4}:{PORT}\"\nprotocols = [\"h3\", \"h2\", \"h1\"]\n\
         builtin_answers = true\n[[listeners.tls.certificates]]\ncert_path = \"{dir}/tls.crt\"\n\
         key_path = \"{dir}/tls.key\"\n[xdp]\ninterfaces = [\"{}\"]\nmode = \"native\"\n",
        wire.host.interface
    );
    if is_framed {
        toml += "[xdp.afxdp]\n";
    }
    let stage = Stage::prepare(&wire, &toml);
    let daemon = Daemon::start(&wire, &stage);
    let receiving = wire.pin_receive_work(&[core]);
    let (program, conf) = (options.programs.join("blitz"), scratch.write(&format!("{name}.toml"), &toml)?);
    let words = [
        &*program.to_string_lossy(),
        "-c",
        &conf.to_string_lossy(),
        "-w",
        "1",
        "--io",
        io,
        "--admin",
        ADMIN,
        "--ctl-socket",
        &daemon.socket.to_string_lossy(),
    ];
    let url = format!("https://{HOST4}:{PORT}/hello");
    let host = wire.host.space.as_ref().ok_or("the host has no namespace")?;
    let mut server = scratch.start_in(host.network(), name, core, url, &words, "XDP steers QUIC on ")?;
    server.beside = receiving.into_iter().filter_map(|thread| u32::try_from(thread).ok()).collect();
    if is_framed {
        blitz_tests::wait_until("the queue is bound", blitz_tests::PATIENCE, || {
            daemon.log().contains("belongs to worker")
        });
    }
    Ok(Gateway { server, is_framed, _daemon: daemon, _stage: stage, wire })
}

impl Gateway {
    /// Frames of its AF_XDP socket so far.
    fn frames(&self, direction: &str) -> Result<u64> {
        let asked = self.wire.host.run(|| {
            let mut stream = TcpStream::connect(ADMIN)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        });
        let text = asked.map_err(|error| format!("{}: its metrics: {error}", self.server.name))?;
        let name = format!("blitz_afxdp_frames_{direction}_total");
        let value = text.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok());
        value.ok_or_else(|| format!("{}: no {name}", self.server.name))
    }
}
