//! HTTP/3 past the kernel's UDP: a stage on a veth pair of two queues, two workers, and clients that stay on one queue.
//!
//! Which queue a packet takes on veth is the processor that sends it, so a client pinned to a processor has a queue, and
//! one that is moved to another changes it.

use std::net::SocketAddr;

use blitz_tests::ctl::Daemon;
use blitz_tests::h3::H3;
use blitz_tests::tls::Algorithm;
use blitz_tests::wire::{HOST4, HOST6, Wire, WireSetup};
use blitz_tests::{
    Cell, Gateway, PATIENCE, Pki, Setup, Signal, Stage, Upstream, matrix, process, require, require_netns,
    wait_until,
};

const PORT: u16 = 8443;
const WORKERS: usize = 2;
/// Frames of each queue: two queues of them are within the 8 MiB of locked memory that machines have at least.
const FRAMES: u64 = 512;
/// Bytes of a large transfer.
const LARGE: usize = 8 << 20;

/// A gateway behind a stage, with an endpoint that answers with what it gets.
struct World {
    stage: Stage,
    daemon: Daemon,
    gateway: Gateway,
    _upstream: Upstream,
    _pki: Pki,
    // The last to go: the stage is on it.
    wire: Wire,
}

impl World {
    fn new(cell: Cell, mode: &str) -> Self {
        let wire = WireSetup::default().queues(WORKERS as u32).make();
        let upstream = wire.host.run(|| {
            Upstream::start(|conn| {
                loop {
                    let request = conn.request()?;
                    let body = if request.body.is_empty() { vec![b'd'; LARGE] } else { request.body };
                    conn.answer("200 OK", body)?;
                }
            })
        });
        let pki = Pki::new();
        let toml = config(&wire, &pki, &upstream, &format!("mode = \"{mode}\""), FRAMES);
        let stage = Stage::prepare(&wire, &toml);
        let daemon = Daemon::start(&wire, &stage);
        let gateway = setup(cell, &wire, &daemon, &toml).start();
        let world = Self { stage, daemon, gateway, _upstream: upstream, _pki: pki, wire };
        world.is_bound();
        world
    }

    /// The process of a worker.
    fn worker(&self, number: usize) -> Option<u32> {
        let name = format!("blitz-w{number}\n");
        let is_it =
            |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == name);
        self.gateway.workers().into_iter().find(is_it)
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from((HOST4, PORT))
    }

    /// Waits until every queue is bound, and the stage sends them what is theirs.
    #[track_caller]
    fn is_bound(&self) {
        wait_until("the queues are bound", PATIENCE, || {
            self.metric("blitz_afxdp_queues") == WORKERS as u64
                && self.metric("blitz_afxdp_frames") == WORKERS as u64 * FRAMES
        });
        let seated = "belongs to worker";
        wait_until("they are in the stage", PATIENCE, || {
            self.daemon.log().matches(seated).count() >= WORKERS
        });
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

    /// Every frame that the stage has redirected was read, and none was lost.
    #[track_caller]
    fn nothing_is_lost(&self) {
        wait_until("what was redirected is read", PATIENCE, || {
            self.stage.counters(&self.wire).verdict("redirected")
                == self.metric("blitz_afxdp_frames_received_total")
        });
        assert_eq!(self.metric("blitz_afxdp_drops_total"), 0);
    }
}

fn config(wire: &Wire, pki: &Pki, upstream: &Upstream, xdp: &str, frames: u64) -> String {
    pki.certificate("edge", &["edge.test"], Algorithm::Ecdsa);
    let listener = pki.listener(&["edge"], "").replace("[\"h1\"]", "[\"h1\", \"h3\"]");
    let listener = listener.replace("127.0.0.1:@PORT@", &format!("{HOST4}:{PORT}"));
    let second = listener
        .replace(&format!("{HOST4}:{PORT}"), &format!("[{HOST6}]:{PORT}"))
        .replace("\"edge\"\naddress", "\"edge6\"\naddress");
    let routes = blitz_tests::gateway::one_upstream(&[upstream.address], "");
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
        for queue in 0..WORKERS {
            let (frames, sent) =
                (world.metric("blitz_afxdp_frames_received_total"), world.metric("blitz_afxdp_frames_sent_total"));
            let received = world.metric("blitz_quic_datagrams_received_total");
            world.wire.on_queue(queue, || exchange(&mut H3::connect(world.address(), "edge.test")));
            let frames = world.metric("blitz_afxdp_frames_received_total") - frames;
            let sent = world.metric("blitz_afxdp_frames_sent_total") - sent;
            // All of it, in both directions: a client that stays on its queue never meets the kernel's UDP.
            assert_eq!(world.metric("blitz_quic_datagrams_received_total") - received, frames);
            assert!(frames >= (LARGE / 4 / 1350) as u64 && sent >= (LARGE / 1350) as u64, "{frames} {sent}");
        }
        world.wire.on_queue(0, || exchange(&mut H3::connect(SocketAddr::from((HOST6, PORT)), "edge.test")));
        world.nothing_is_lost();
        assert_eq!(world.metric("blitz_afxdp_frames"), WORKERS as u64 * FRAMES, "no frame leaks");
        world.gateway.stop();
    }
}

matrix! {
    mp only:
    fn a_client_that_changes_its_queue_goes_on(cell) {
        require_netns!();
        let _alone = require::alone();
        let world = World::new(cell, "native");
        let mut client = world.wire.on_queue(0, || H3::connect(world.address(), "edge.test"));
        let id = client.begin_get("/");
        for round in 0..8 {
            let (queue, enough) = (round % WORKERS, (round + 1) * (LARGE / 8));
            // The other queue is another worker's: there its packets go to the kernel, and find their worker by UDP.
            client = world.wire.on_queue(queue, || {
                client.rebind();
                client.until("a part has come", |client| client.got(id).body.len() >= enough);
                client
            });
        }
        let got = world.wire.on_queue(0, || client.outcome(id));
        assert_eq!((got.status(), got.body.len(), got.is_whole), (200, LARGE, true), "{:?}", got.reset);
        assert!(world.metric("blitz_quic_datagrams_received_total") > world.metric("blitz_afxdp_frames_received_total"));
        world.nothing_is_lost();
    }

    fn a_killed_workers_queue_is_bound_again(cell) {
        require_netns!();
        let _alone = require::alone();
        let world = World::new(cell, "native");
        let mut other = world.wire.on_queue(1, || H3::connect(world.address(), "edge.test"));
        let victim = world.worker(0).expect("it runs");
        process::send(victim, Signal::Kill);
        wait_until("the worker is replaced", PATIENCE, || world.worker(0).is_some_and(|pid| pid != victim));
        // It serves at once, by the kernel's UDP until the queue is its own.
        world.wire.on_queue(0, || exchange(&mut H3::connect(world.address(), "edge.test")));
        // Nobody else has noticed.
        world.wire.on_queue(1, || exchange(&mut other));
        world.is_bound();
        let frames = world.metric("blitz_afxdp_frames_received_total");
        wait_until("frames come to the successor", PATIENCE, || {
            world.wire.on_queue(0, || assert_eq!(H3::connect(world.address(), "edge.test").get("/hello").status(), 200));
            world.metric("blitz_afxdp_frames_received_total") > frames
        });
    }

    fn the_stage_may_go_and_come_back(cell) {
        require_netns!();
        let _alone = require::alone();
        let world = World::new(cell, "generic");
        let mut client = world.wire.on_queue(1, || H3::connect(world.address(), "edge.test"));
        world.wire.on_queue(1, || exchange(&mut client));
        for _ in 0..3 {
            world.stage.must(&world.wire, &["detach", &world.wire.host.interface]);
            let frames = world.metric("blitz_afxdp_frames_received_total");
            world.wire.on_queue(1, || exchange(&mut client));
            assert_eq!(world.metric("blitz_afxdp_frames_received_total"), frames, "it goes by the kernel's UDP");
            let config = world.stage.config().to_string_lossy().into_owned();
            let words = ["attach", &world.wire.host.interface, "--config", &config, "--mode", "generic"];
            world.stage.must(&world.wire, &words);
            wait_until("frames come again", PATIENCE, || {
                world.wire.on_queue(1, || assert_eq!(client.get("/hello").status(), 200));
                world.metric("blitz_afxdp_frames_received_total") > frames
            });
            world.wire.on_queue(1, || exchange(&mut client));
        }
        assert_eq!(world.metric("blitz_afxdp_frames"), WORKERS as u64 * FRAMES, "no frame leaks");
        assert_eq!(world.metric("blitz_afxdp_fallbacks_total"), 0);
    }
}

#[test]
fn what_is_in_the_way_is_said() {
    require_netns!();
    let _alone = require::alone();
    let wire = Wire::new();
    let upstream = wire.host.run(|| Upstream::start(|_| Some(())));
    let pki = Pki::new();
    // 2 MiB for the one queue, and the gateway may lock 1 MiB.
    let toml = |frames| config(&wire, &pki, &upstream, "", frames);
    let stage = Stage::prepare(&wire, &toml(1024));
    let cell = Cell { io: blitz_tests::Io::Epoll, mode: blitz_tests::Mode::Mp };
    let daemon = Daemon::start(&wire, &stage);
    let gateway = setup(cell, &wire, &daemon, &toml(1024)).locked_memory(1 << 20).start();
    let said = |what: &str| wait_until(what, PATIENCE, || gateway.log().contains(what));
    said("RLIMIT_MEMLOCK is 1024 KiB; raise LimitMEMLOCK=");
    said("has fewer receive queues (1) than there are workers (2)");
    let hello = || wire.on_queue(0, || H3::connect((HOST4, PORT).into(), "edge.test").get("/hello").status());
    assert_eq!(hello(), 200, "by the kernel's UDP");
    // Half a MiB, and it goes.
    gateway.write_config(&toml(256));
    gateway.signal(Signal::Hup);
    said("receive queues 0 are bound");
    // Nobody to ask.
    drop(daemon);
    gateway.write_config(&toml(512));
    gateway.signal(Signal::Hup);
    said("blitz-ctl does not answer on ");
    assert_eq!(hello(), 200);
}
