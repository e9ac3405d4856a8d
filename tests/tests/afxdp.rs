//! HTTP/3 past the kernel's UDP: a stage on a veth pair of two queues, two workers, and clients at the other end.
//!
//! Which queue a packet takes on veth is a hash of its addresses and ports: a client stays on its queue until it
//! changes its port, and then may be on the queue of another worker, where its packets go to the kernel.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use blitz_tests::bypass::{DATAGRAMS, FRAMES, PORT, RECEIVED, SENT, WORKERS, no_frame_leaks};
use blitz_tests::gateway::one_upstream;
use blitz_tests::h3bundle::{MOVES_EACH, moves_wanted, octet_at};
use blitz_tests::wire::{HOST4, HOST6, PEER4, Wire, WireSetup};
use blitz_tests::{
    Bundle, Bypass, Cell, Gateway, H3, Io, Mode, PATIENCE, Signal, Upstream, beside, lose_lent_frames,
    matrix, process, require, require_netns, wait_until,
};

/// Bytes of a large transfer.
const LARGE: usize = 2 << 20;
/// Moves of the socket in the ordinary test; `BLITZ_H3_MOVES` asks for more.
const MOVES: usize = 30;
/// Connections over one socket.
const CONNECTIONS: u8 = 8;
/// Addresses that clients move to.
const SOURCES: usize = 8;
/// Connections that are tried until one is a certain worker's: each is with one chance in two.
const TRIES: usize = 40;

/// A gateway behind a stage, with an endpoint that answers with what it gets.
struct World {
    gateway: Gateway,
    config: String,
    _upstream: Upstream,
    bypass: Bypass,
}

impl World {
    fn new(cell: Cell, mode: &str) -> Self {
        let bypass = Bypass::new(mode);
        let upstream = upstream(&bypass.wire);
        let config = bypass.config(&one_upstream(&[upstream.address], ""));
        let gateway = bypass.start(bypass.setup(cell, &config));
        Self { gateway, config, _upstream: upstream, bypass }
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
        self.gateway.sum(name)
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
        self.bypass.connect()
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

    /// Moves bundles of connections, with all of them in mid-download, while `meanwhile` is done again and again. What
    /// was sent is what was received, by the one way or the other, and all of it by its owner.
    fn campaign(&self, meanwhile: impl Fn(usize) + Sync) {
        let (wire, begun) = (&self.bypass.wire, Instant::now());
        (0..SOURCES).for_each(|nth| wire.peer.source(source(nth)));
        let network = wire.peer.space.as_ref().expect("a namespace").network();
        let moves = moves_wanted(MOVES);
        let travel = |at: usize| {
            let bundle = Bundle::connect(Some(network), source(0), (HOST4, PORT).into(), CONNECTIONS);
            bundle.travel(MOVES_EACH.min(moves - at), LARGE as u64, source)
        };
        let sent: u64 = beside(meanwhile, || (0..moves).step_by(MOVES_EACH).map(travel).sum());
        let of = |fate: &str| self.metric(&format!("{DATAGRAMS}{{fate=\"{fate}\"}}"));
        wait_until("all that was sent is accounted for", PATIENCE, || {
            let received: u64 = ["delivered", "new", "forwarded"].into_iter().map(of).sum();
            received + wire.dropped() + self.overrun() == sent
        });
        let strangers =
            ["other_worker", "unknown", "malformed", "refused", "reset"].map(|fate| (fate, of(fate)));
        assert!(strangers.iter().all(|(_, count)| *count == 0), "{strangers:?}");
        let frames = self.metric(RECEIVED);
        println!(
            "{moves} moves of a socket with {CONNECTIONS} connections in {:?}: {sent} datagrams, {frames} of them in \
             frames, {} passed on to their owner, {} dropped before; {} migrations, {} reloads",
            begun.elapsed(),
            of("forwarded"),
            wire.dropped() + self.overrun(),
            self.metric("blitz_quic_migrations_total"),
            self.metric("blitz_config_reloads_total"),
        );
        assert!(frames > 0 && frames < sent, "both ways were used: {frames} of {sent}");
        assert_eq!(self.metric("blitz_afxdp_fallbacks_total"), 0);
        self.nothing_is_lost();
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
            let counters = self.bypass.stage.counters(&self.bypass.wire);
            counters.verdict("redirected") == self.metric(RECEIVED) + self.overrun()
        });
        no_frame_leaks(&self.gateway);
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
        world.bypass.wire.peer.run(|| exchange(&mut H3::connect((HOST6, PORT).into(), "edge.test")));
        world.nothing_is_lost();
        world.gateway.stop();
    }

    fn no_download_fails_when_clients_move(cell) {
        require_netns!();
        let _alone = require::alone();
        World::new(cell, "native").campaign(|_| std::thread::sleep(Duration::from_millis(10)));
    }

    /// A reload that changes nothing of the queues leaves them alone.
    fn nor_while_the_configuration_is_reloaded(cell) {
        require_netns!();
        let _alone = require::alone();
        let world = World::new(cell, "native");
        let seated = world.bypass.seated();
        world.campaign(|nth| {
            let more = format!("[http]\nconnections_per_worker_max = {}\n", 5000 + nth);
            world.gateway.write_config(&format!("{}\n{more}", world.config));
            world.gateway.signal(Signal::Hup);
            // The stage is of the same file.
            process::send(world.bypass.daemon.pid(), Signal::Hup);
            std::thread::sleep(Duration::from_millis(100));
        });
        assert!(world.metric("blitz_config_reloads_total") > 0);
        assert_eq!(world.bypass.seated(), seated, "no queue was bound again");
    }

    fn a_killed_workers_queue_is_bound_again(cell) {
        require_netns!();
        let _alone = require::alone();
        let world = World::new(cell, "native");
        let mut other = world.connect_to(1);
        let (victim, seated) = (world.worker(0).expect("it runs"), world.bypass.seated());
        process::send(victim, Signal::Kill);
        wait_until("the worker is replaced", PATIENCE, || world.worker(0).is_some_and(|pid| pid != victim));
        // It serves at once, by the kernel's UDP until the queue is its own; and nobody else has noticed.
        exchange(&mut world.connect());
        exchange(&mut other);
        world.bypass.is_bound(&world.gateway, seated + 1);
        let (mut client, frames) = (world.connect_to(0), world.metric(RECEIVED));
        exchange(&mut client);
        assert!(world.metric(RECEIVED) - frames > (LARGE / 4 / 1350) as u64, "the queue is its successor's");
    }

    /// Nothing comes by it any more: no fault of a worker does that, but a driver's may.
    fn a_queue_that_cannot_be_read_is_given_up(cell) {
        require_netns!();
        let _alone = require::alone();
        let world = World::new(cell, "native");
        let mut client = world.connect_to(0);
        exchange(&mut client);
        // What is still to be read would be lent again.
        world.nothing_is_lost();
        let (worker, seated) = (world.worker(0).expect("it runs"), world.bypass.seated());
        assert!(lose_lent_frames(worker, FRAMES as usize / 2).expect("its sockets") > 0);
        // The same connection, by the kernel's UDP once the worker has noticed, and then by the queue again.
        exchange(&mut client);
        assert_eq!(world.metric("blitz_afxdp_fallbacks_total{reason=\"stalled\"}"), 1);
        world.bypass.is_bound(&world.gateway, seated + 1);
        let frames = world.metric(RECEIVED);
        exchange(&mut client);
        assert!(world.metric(RECEIVED) - frames > (LARGE / 4 / 1350) as u64, "the queue is bound again");
        assert_eq!(world.metric("blitz_afxdp_fallbacks_total"), 1);
    }

    /// Under traffic: what is in mid-download when the stage goes ends by the kernel's UDP, and frames come again with
    /// the stage.
    fn the_stage_may_go_and_come_back(cell) {
        require_netns!();
        let _alone = require::alone();
        for mode in ["native", "generic"] {
            let world = World::new(cell, mode);
            let Bypass { stage, wire, daemon, .. } = &world.bypass;
            let (interface, config) = (&wire.host.interface, stage.config().to_string_lossy().into_owned());
            // More than an exchange has: each of those that are cut in two has its end behind the change.
            let goes_on = |what: &str, name: &str| {
                let before = world.metric(name);
                wait_until(what, 3 * PATIENCE, || world.metric(name) >= before + (LARGE / 1350) as u64);
            };
            let client = Mutex::new(world.connect());
            let traffic = |_| exchange(&mut client.lock().expect("the exchange before was whole"));
            beside(traffic, || {
                goes_on("frames come", RECEIVED);
                stage.must(wire, &["detach", interface]);
                goes_on("it goes on by the kernel's UDP", DATAGRAMS);
                let frames = world.metric(RECEIVED);
                goes_on("it goes on by the kernel's UDP", DATAGRAMS);
                assert_eq!(world.metric(RECEIVED), frames);
                stage.must(wire, &["attach", interface, "--config", &config, "--mode", mode]);
                // Else it would find the stage by itself, and take its time. The gateway says every few seconds
                // how to steer, and nothing is redirected before.
                process::send(daemon.pid(), Signal::Hup);
                goes_on("frames come again", RECEIVED);
            });
            no_frame_leaks(&world.gateway);
            assert_eq!(world.metric("blitz_afxdp_fallbacks_total"), 0);
        }
    }
}

#[test]
fn what_is_in_the_way_is_said() {
    require_netns!();
    let _alone = require::alone();
    // 2 MiB for the one queue, and the gateway may lock 1 MiB.
    let bypass = Bypass::on(WireSetup::default(), "", 1024);
    let upstream = upstream(&bypass.wire);
    let toml = bypass.config(&one_upstream(&[upstream.address], ""));
    let with = |frames: u64| toml.replace("= 1024", &format!("= {frames}"));
    let cell = Cell { io: Io::Epoll, mode: Mode::Mp };
    let gateway = bypass.setup(cell, &toml).locked_memory(1 << 20).start();
    let said = |what: &str| wait_until(what, PATIENCE, || gateway.log().contains(what));
    said("RLIMIT_MEMLOCK is 1024 KiB; raise LimitMEMLOCK=");
    said("has fewer receive queues (1) than there are workers (2)");
    exchange(&mut bypass.connect());
    // Half a MiB, and it goes.
    gateway.write_config(&with(256));
    gateway.signal(Signal::Hup);
    said("receive queues 0 are bound");
    // Nobody to ask.
    process::send(bypass.daemon.pid(), Signal::Kill);
    gateway.write_config(&with(512));
    gateway.signal(Signal::Hup);
    said("blitz-ctl does not answer on ");
    exchange(&mut bypass.connect());
}
