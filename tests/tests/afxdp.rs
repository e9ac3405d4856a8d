//! HTTP/3 past the kernel's UDP: a stage on a veth pair of two queues, two workers, and clients at the other end.
//!
//! Which queue a packet takes on veth is a hash of its addresses and ports: a client stays on its queue until it
//! changes its port, and then may be on the queue of another worker, where its packets go to the kernel.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use blitz_tests::ctl::Daemon;
use blitz_tests::h3::{H3, request};
use blitz_tests::h3bundle::{Carried, FIRST_BYTES, Move, octet_at};
use blitz_tests::pair::{Call, H3Call, Http, Length, Pair};
use blitz_tests::wire::{HOST4, HOST6, PEER4, Wire, WireSetup};
use blitz_tests::{
    Bundle, Cell, Gateway, Io, Mode, PATIENCE, Pki, Setup, Signal, Stage, Upstream, matrix, process, require,
    require_netns, wait_until,
};

const PORT: u16 = 8443;
const WORKERS: usize = 2;
/// Frames of each queue: two queues of them are within the 8 MiB of locked memory that machines have at least.
const FRAMES: u64 = 512;
/// Bytes of a large transfer.
const LARGE: usize = 2 << 20;
/// Moves of the socket in the ordinary test; `BLITZ_H3_MOVES` asks for more.
const MOVES: usize = 30;
/// Moves of one connection.
const MOVES_EACH: usize = 30;
/// Connections over one socket.
const CONNECTIONS: u8 = 8;
/// Bytes that each connection takes between two moves.
const BETWEEN_BYTES: u64 = 64 << 10;
/// Addresses that clients move to.
const SOURCES: usize = 8;
/// Connections that are tried until one is a certain worker's: each is with one chance in two.
const TRIES: usize = 40;

const RECEIVED: &str = "blitz_afxdp_frames_received_total";
const SENT: &str = "blitz_afxdp_frames_sent_total";
const DATAGRAMS: &str = "blitz_quic_datagrams_received_total";

/// A gateway behind a stage, with an endpoint that answers with what it gets.
struct World {
    gateway: Gateway,
    daemon: Daemon,
    stage: Stage,
    _endpoint: Box<dyn std::any::Any>,
    _pki: Pki,
    // The last to go: the stage is on it.
    wire: Wire,
}

impl World {
    fn new(cell: Cell, mode: &str) -> Self {
        let wire = WireSetup::default().queues(WORKERS as u32).make();
        let upstream = upstream(&wire);
        Self::before(cell, mode, wire, upstream.address, "h1", Box::new(upstream))
    }

    /// Before an endpoint that speaks `protocol`.
    fn before(
        cell: Cell,
        mode: &str,
        wire: Wire,
        address: SocketAddr,
        protocol: &str,
        endpoint: Box<dyn std::any::Any>,
    ) -> Self {
        let pki = Pki::edge();
        let toml = config(&wire, &pki, address, &format!("mode = \"{mode}\""), FRAMES);
        let toml = toml.replace("[upstreams.pool]", &format!("[upstreams.pool]\nprotocol = \"{protocol}\""));
        let stage = Stage::prepare(&wire, &toml);
        let daemon = Daemon::start(&wire, &stage);
        let gateway = setup(cell, &wire, &daemon, &toml).start();
        let world = Self { gateway, daemon, stage, _endpoint: endpoint, _pki: pki, wire };
        world.is_bound();
        world
    }

    /// Waits until every queue is bound, and the stage sends it what is its worker's.
    #[track_caller]
    fn is_bound(&self) {
        wait_until("the queues are bound", PATIENCE, || {
            self.metric("blitz_afxdp_queues") == WORKERS as u64
                && self.metric("blitz_afxdp_frames") == WORKERS as u64 * FRAMES
                && self.daemon.log().matches("belongs to worker").count() >= WORKERS
                && self.gateway.log().contains("XDP steers QUIC on ")
        });
    }

    /// The process of a worker.
    fn worker(&self, number: usize) -> Option<u32> {
        let name = format!("blitz-w{number}\n");
        let is_it =
            |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == name);
        self.gateway.workers().into_iter().find(is_it)
    }

    /// The sum of a metric over workers and labels.
    #[track_caller]
    fn metric(&self, name: &str) -> u64 {
        let text = self.gateway.admin("/metrics").text();
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value =
                rest.strip_prefix('{').and_then(|labels| labels.split_once("} ")).map(|(_, value)| value);
            value.or_else(|| rest.strip_prefix(' '))?.trim().parse::<u64>().ok()
        });
        values.sum()
    }

    /// The worker that has a client's connection.
    #[track_caller]
    fn worker_of(&self, client: &H3) -> usize {
        let mut found = None;
        wait_until("the connection is listed", PATIENCE, || {
            let text = self.gateway.admin("/connections").text();
            let rows: serde_json::Value = serde_json::from_str(&text).expect("/connections is JSON");
            let peer = format!("{PEER4}:{}", client.port());
            let mut rows = rows["connections"].as_array().into_iter().flatten();
            found = rows.find(|row| row["peer"] == *peer).and_then(|row| row["worker"].as_u64());
            found.is_some()
        });
        found.expect("it was found") as usize
    }

    fn connect(&self) -> H3 {
        self.wire.peer.run(|| H3::connect((HOST4, PORT).into(), "edge.test"))
    }

    /// A connection of a certain worker.
    #[track_caller]
    fn connect_to(&self, worker: usize) -> H3 {
        for _ in 0..TRIES {
            let client = self.connect();
            if self.worker_of(&client) == worker {
                return client;
            }
        }
        panic!("{TRIES} connections, and none is with worker {worker}");
    }

    /// Moves a bundle of connections, with all of them in mid-download; datagrams sent.
    fn moves(&self, moves: usize) -> u64 {
        let network = self.wire.peer.space.as_ref().expect("a namespace").network();
        let mut bundle = Bundle::connect(Some(network), source(0), (HOST4, PORT).into(), CONNECTIONS);
        bundle.download(LARGE as u64);
        for nth in 0..moves {
            bundle.allow(BETWEEN_BYTES);
            // Something is on its way when the socket moves.
            (0..2).for_each(|_| bundle.turn());
            bundle.go(source(nth), if nth % 2 == 0 { Move::Rebinding } else { Move::Migration });
            bundle.until("every download goes on", Bundle::has_taken);
        }
        bundle.allow(LARGE as u64 - (FIRST_BYTES + moves as u64 * BETWEEN_BYTES) % LARGE as u64);
        bundle.until("every download is whole", |bundle| {
            bundle.has_taken() && bundle.connections.iter().all(Carried::is_between)
        });
        bundle.close()
    }

    /// Frames that the kernel has dropped because the worker had no time for those before.
    #[track_caller]
    fn overrun(&self) -> u64 {
        let of = |reason| self.metric(&format!("blitz_afxdp_drops_total{{reason=\"{reason}\"}}"));
        of("kernel") + of("ring_full")
    }

    /// Every frame that the stage has redirected was read, or came too fast.
    #[track_caller]
    fn nothing_is_lost(&self) {
        wait_until("what was redirected is read", PATIENCE, || {
            self.stage.counters(&self.wire).verdict("redirected") == self.metric(RECEIVED) + self.overrun()
        });
        self.no_frame_leaks();
    }

    /// Every frame is with somebody, none was dropped, and none is away for ever.
    #[track_caller]
    fn no_frame_leaks(&self) {
        let drops = ["malformed", "no_listener", "invalid", "too_large"]
            .map(|reason| (reason, self.metric(&format!("blitz_afxdp_drops_total{{reason=\"{reason}\"}}"))));
        assert!(drops.iter().all(|(_, count)| *count == 0), "{drops:?}");
        wait_until("no frame has leaked", PATIENCE, || {
            self.metric("blitz_afxdp_frames") == WORKERS as u64 * FRAMES
                && self.metric("blitz_afxdp_frames{holder=\"sending\"}") == 0
        });
    }
}

fn source(nth: usize) -> IpAddr {
    Ipv4Addr::new(10, 77, 0, 1 + (nth % SOURCES) as u8).into()
}

/// Answers with the body that it gets, or a large one.
fn upstream(wire: &Wire) -> Upstream {
    wire.host.run(|| {
        Upstream::start(|conn| {
            loop {
                let request = conn.request()?;
                let large = || (0..LARGE as u64).map(octet_at).collect();
                let body = if request.body.is_empty() { large() } else { request.body };
                conn.answer("200 OK", body)?;
            }
        })
    })
}

fn config(wire: &Wire, pki: &Pki, endpoint: SocketAddr, xdp: &str, frames: u64) -> String {
    let listener = pki.h3_listener("");
    let listener = listener.replace("127.0.0.1:@PORT@", &format!("{HOST4}:{PORT}"));
    let second = listener
        .replace(&format!("{HOST4}:{PORT}"), &format!("[{HOST6}]:{PORT}"))
        .replace("\"edge\"\naddress", "\"edge6\"\naddress");
    let routes = blitz_tests::gateway::one_upstream(&[endpoint], "");
    let routes = routes.replace(blitz_tests::gateway::LISTENER, "");
    format!(
        "{listener}\n{second}\n{routes}\n[xdp]\ninterfaces = [\"{}\"]\n{xdp}\n\
         [xdp.afxdp]\nframes_per_queue = {frames}\n",
        wire.host.interface
    )
}

fn setup(cell: Cell, wire: &Wire, daemon: &Daemon, toml: &str) -> Setup {
    let network = wire.host.space.as_ref().expect("a namespace").network();
    let setup = Setup::new(cell).config(toml).workers(WORKERS).inside(network, (HOST4, PORT).into());
    setup.flag("--ctl-socket").flag(&daemon.socket.to_string_lossy())
}

/// A download and an upload.
#[track_caller]
fn exchange(client: &mut H3) {
    let got = client.get("/");
    assert_eq!((got.status(), got.body.len(), got.is_whole), (200, LARGE, true), "{:?}", got.reset);
    let body = vec![b'u'; LARGE / 4];
    let got = client.post("/", &body);
    assert_eq!((got.status(), got.body == body), (200, true));
}

matrix! {
    mp only:
    fn exchanges_go_by_af_xdp(cell) {
        require_netns!();
        let _alone = require::alone();
        let world = World::new(cell, "native");
        for worker in 0..WORKERS {
            let (frames, sent, received) = (world.metric(RECEIVED), world.metric(SENT), world.metric(DATAGRAMS));
            let mut client = world.connect_to(worker);
            exchange(&mut client);
            // All of it, in both directions: a client that stays on its queue never meets the kernel's UDP. A late
            // acknowledgement may come between two looks.
            wait_until("all of it came by the socket", PATIENCE, || {
                world.metric(DATAGRAMS) - received == world.metric(RECEIVED) - frames
            });
            let (frames, sent) = (world.metric(RECEIVED) - frames, world.metric(SENT) - sent);
            assert!(frames >= (LARGE / 4 / 1350) as u64 && sent >= (LARGE / 1350) as u64, "{frames} {sent}");
        }
        world.wire.peer.run(|| exchange(&mut H3::connect((HOST6, PORT).into(), "edge.test")));
        world.nothing_is_lost();
        world.gateway.stop();
    }

    /// A part of the matrix that has most of an exchange in it; the rest does not know by which way a datagram came.
    fn exchanges_are_whole_over_either_protocol_of_endpoints(cell) {
        require_netns!();
        let _alone = require::alone();
        for (up, protocol) in [(Http::H1, "h1"), (Http::H2, "h2")] {
            let pair = Pair { cell, down: Http::H3, up };
            let wire = WireSetup::default().queues(WORKERS as u32).make();
            let endpoint = wire.host.run(|| {
                pair.endpoint(|served| {
                    served.interim(103, &[("link", "</a>; rel=preload")])?;
                    let (body, trailers) = served.body()?;
                    served.head(200, &[("trailer", "x-back")], Length::Unknown)?;
                    served.data(&body)?;
                    served.data(trailers.as_bytes())?;
                    served.end(&[("x-back", "2")])
                })
            });
            let world = World::before(cell, "native", wire, endpoint.address(), protocol, Box::new(endpoint));
            for _ in 0..8 {
                let client = Box::new(world.connect());
                let fields = [&request("POST", "/x")[..], &[("te", "trailers")]].concat();
                let mut call = Call::H3(H3Call::begin(client, &fields, false));
                let body = vec![b'b'; 40_000];
                assert_eq!(call.head().0, 103);
                call.data(&body);
                call.end(&[("x-forth", "1")]);
                let answer = call.answer();
                assert_eq!((answer.status, answer.is_whole), (200, true));
                assert_eq!(answer.body, [&body[..], b"x-forth: 1\r\n"].concat());
                assert_eq!(answer.trailers, "x-back: 2\r\n");
            }
            assert!(world.metric(RECEIVED) > 8 * 30);
            world.nothing_is_lost();
        }
    }

    fn no_download_fails_when_clients_move(cell) {
        require_netns!();
        let _alone = require::alone();
        let world = World::new(cell, "native");
        (0..SOURCES).for_each(|nth| world.wire.peer.source(source(nth)));
        let moves = std::env::var("BLITZ_H3_MOVES").ok().and_then(|text| text.parse().ok()).unwrap_or(MOVES);
        let bundles = (0..moves).step_by(MOVES_EACH);
        let sent: u64 = bundles.map(|at| world.moves(MOVES_EACH.min(moves - at))).sum();
        // What was sent is what was received, by the one way or the other, and all of it by its owner.
        let of = |fate: &str| world.metric(&format!("{DATAGRAMS}{{fate=\"{fate}\"}}"));
        wait_until("all that was sent is accounted for", PATIENCE, || {
            let received: u64 = ["delivered", "new", "forwarded"].into_iter().map(of).sum();
            received + world.wire.dropped() + world.overrun() == sent
        });
        let strangers = ["other_worker", "unknown", "malformed", "refused", "reset"].map(|fate| (fate, of(fate)));
        assert!(strangers.iter().all(|(_, count)| *count == 0), "{strangers:?}");
        let frames = world.metric(RECEIVED);
        println!("{moves} moves of {CONNECTIONS} connections: {sent} datagrams, {frames} of them in frames");
        assert!(frames > 0 && frames < sent, "both ways were used: {frames} of {sent}");
        world.nothing_is_lost();
    }

    fn a_killed_workers_queue_is_bound_again(cell) {
        require_netns!();
        let _alone = require::alone();
        let world = World::new(cell, "native");
        let mut other = world.connect_to(1);
        let victim = world.worker(0).expect("it runs");
        process::send(victim, Signal::Kill);
        wait_until("the worker is replaced", PATIENCE, || world.worker(0).is_some_and(|pid| pid != victim));
        // It serves at once, by the kernel's UDP until the queue is its own; and nobody else has noticed.
        exchange(&mut world.connect());
        exchange(&mut other);
        world.is_bound();
        let (mut client, frames) = (world.connect_to(0), world.metric(RECEIVED));
        exchange(&mut client);
        assert!(world.metric(RECEIVED) - frames > (LARGE / 4 / 1350) as u64, "the queue is its successor's");
    }

    fn the_stage_may_go_and_come_back(cell) {
        require_netns!();
        let _alone = require::alone();
        let world = World::new(cell, "generic");
        let mut client = world.connect();
        exchange(&mut client);
        world.stage.must(&world.wire, &["detach", &world.wire.host.interface]);
        let frames = world.metric(RECEIVED);
        exchange(&mut client);
        assert_eq!(world.metric(RECEIVED), frames, "it goes by the kernel's UDP");
        let config = world.stage.config().to_string_lossy().into_owned();
        let words = ["attach", &world.wire.host.interface, "--config", &config, "--mode", "generic"];
        world.stage.must(&world.wire, &words);
        // Else it would find the stage by itself, and take its time.
        process::send(world.daemon.pid(), Signal::Hup);
        // The gateway says every few seconds how to steer, and nothing is redirected before.
        wait_until("frames come again", 3 * PATIENCE, || {
            assert_eq!(client.get("/").status(), 200);
            world.metric(RECEIVED) > frames
        });
        exchange(&mut client);
        world.no_frame_leaks();
        assert_eq!(world.metric("blitz_afxdp_fallbacks_total"), 0);
    }
}

#[test]
fn what_is_in_the_way_is_said() {
    require_netns!();
    let _alone = require::alone();
    let wire = Wire::new();
    let upstream = upstream(&wire);
    let pki = Pki::edge();
    // 2 MiB for the one queue, and the gateway may lock 1 MiB.
    let toml = |frames| config(&wire, &pki, upstream.address, "", frames);
    let stage = Stage::prepare(&wire, &toml(1024));
    let daemon = Daemon::start(&wire, &stage);
    let cell = Cell { io: Io::Epoll, mode: Mode::Mp };
    let gateway = setup(cell, &wire, &daemon, &toml(1024)).locked_memory(1 << 20).start();
    let said = |what: &str| wait_until(what, PATIENCE, || gateway.log().contains(what));
    said("RLIMIT_MEMLOCK is 1024 KiB; raise LimitMEMLOCK=");
    said("has fewer receive queues (1) than there are workers (2)");
    let works = || wire.peer.run(|| exchange(&mut H3::connect((HOST4, PORT).into(), "edge.test")));
    works();
    // Half a MiB, and it goes.
    gateway.write_config(&toml(256));
    gateway.signal(Signal::Hup);
    said("receive queues 0 are bound");
    // Nobody to ask.
    drop(daemon);
    gateway.write_config(&toml(512));
    gateway.signal(Signal::Hup);
    said("blitz-ctl does not answer on ");
    works();
}
