//! HTTP/3 behind a stage: the supervisor has it steer, it may come and go, and so may the daemon.
//!
//! Datagrams take the kernel's UDP here; those that go to a worker's own socket are in `afxdp.rs`.

use std::net::{SocketAddr, UdpSocket};

use blitz_tests::ctl::Daemon;
use blitz_tests::tls::Algorithm;
use blitz_tests::wire::{HOST4, PEER4, Wire};
use blitz_tests::{
    Cell, Gateway, H3, Io, Mode, PATIENCE, Pki, Setup, Signal, Stage, process, require_netns, wait_until,
};

const PORT: u16 = 8443;
const WORKERS: usize = 2;
const CELL: Cell = Cell { io: Io::Epoll, mode: Mode::Mp };

/// A gateway with built-in answers, and where its stage is.
struct World {
    gateway: Gateway,
    stage: Stage,
    socket: std::path::PathBuf,
    _pki: Pki,
    // The last to go: the stage is on it.
    wire: Wire,
}

impl World {
    /// With a stage, and no daemon yet. `more` goes into the file.
    fn new(more: &str) -> Self {
        let wire = Wire::new();
        let pki = Pki::new();
        pki.certificate("edge", &["edge.test"], Algorithm::Ecdsa);
        let listener = pki.listener(&["edge"], "").replace("[\"h1\"]", "[\"h1\", \"h3\"]");
        let toml = format!("{listener}\n[xdp]\ninterfaces = [\"{}\"]\n{more}\n", wire.host.interface)
            .replace("127.0.0.1:@PORT@", &format!("{HOST4}:{PORT}"));
        let stage = Stage::attach(&wire, &toml);
        let socket = stage.scratch().join("ctl.sock");
        let network = wire.host.space.as_ref().expect("a namespace of its own").network();
        let gateway = Setup::new(CELL)
            .workers(WORKERS)
            .config(&toml)
            .inside(network, SocketAddr::from((HOST4, PORT)))
            .flag("--ctl-socket")
            .flag(&socket.display().to_string())
            .start();
        Self { gateway, stage, socket, _pki: pki, wire }
    }

    fn connect(&self) -> H3 {
        self.wire.peer.run(|| H3::connect((HOST4, PORT).into(), "edge.test"))
    }

    /// What `status` says about steering: the generation, and how many workers live.
    fn steering(&self) -> (Option<u64>, u64) {
        let text = self.stage.must(&self.wire, &["status", "--json"]);
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let steering = &value["interfaces"][0]["steering"];
        (steering["generation"].as_u64(), steering["workers"].as_u64().expect("a count"))
    }

    #[track_caller]
    fn is_steered(&self) {
        wait_until("the stage is told how to steer", PATIENCE, || {
            self.steering() == (Some(0), WORKERS as u64)
        });
    }

    #[track_caller]
    fn logs(&self, what: &str) {
        wait_until(what, PATIENCE, || self.gateway.log().contains(what));
    }
}

#[test]
fn connections_go_on_while_stage_and_daemon_come_and_go() {
    require_netns!();
    let world = World::new("");
    // Without the daemon: classic BPF, and a stage that passes everything.
    world.logs("QUIC is steered by classic BPF until blitz-ctl answers");
    assert_eq!(world.steering(), (None, 0));
    let mut clients: Vec<H3> = (0..8).map(|_| world.connect()).collect();
    let asks = |clients: &mut Vec<H3>| {
        for client in clients {
            let got = client.get("/hello");
            assert_eq!((got.status(), got.is_whole), (200, true));
        }
    };
    asks(&mut clients);
    let counters = world.stage.counters(&world.wire);
    assert_ne!(counters.quic("unset"), 0, "{counters:?}");
    assert_eq!(counters.quic("elsewhere") + counters.quic("fresh_elsewhere"), 0, "{counters:?}");

    // With it: another program for the bank under the same connections, and a stage that knows them.
    let mut daemon = Daemon::start(&world.wire, &world.stage);
    assert_eq!(daemon.socket, world.socket);
    world.is_steered();
    world.logs("is steered by the sk_reuseport program of blitz-ctl");
    asks(&mut clients);
    clients.push(world.connect());
    let counters = world.stage.counters(&world.wire);
    assert_ne!(counters.quic("elsewhere"), 0, "{counters:?}");
    assert_ne!(counters.quic("fresh_elsewhere"), 0, "{counters:?}");
    assert_eq!(counters.quic("bad_cid") + counters.quic("unknown_worker"), 0, "{counters:?}");
    assert_eq!(counters.verdict("redirected") + counters.verdict("drop_quic"), 0, "{counters:?}");

    // The stage goes and comes back under them, empty; the daemon finds it and it is told again.
    for _ in 0..2 {
        world.stage.must(&world.wire, &["detach", &world.wire.host.interface]);
        asks(&mut clients);
        world.stage.attach_again(&world.wire);
        asks(&mut clients);
        // It looks around every ten seconds; a reload makes it look now.
        process::send(daemon.pid(), Signal::Hup);
        world.is_steered();
        asks(&mut clients);
    }

    // The daemon goes without a word, and what it wrote stays in force; the next one is told again.
    daemon.kill();
    asks(&mut clients);
    assert_eq!(world.steering(), (Some(0), WORKERS as u64));
    daemon = Daemon::start(&world.wire, &world.stage);
    wait_until("it was told again", PATIENCE, || {
        daemon.metrics(&world.wire).contains("blitz_ctl_steered_total 1")
    });
    asks(&mut clients);
    let counters = world.stage.counters(&world.wire);
    assert_eq!(counters.quic("bad_cid") + counters.quic("unknown_worker"), 0, "{counters:?}");
}

/// A worker that dies is nobody until its successor is there, and then everything is as before.
#[test]
fn a_dead_worker_is_nobody_for_as_long_as_it_is_dead() {
    require_netns!();
    let world = World::new("");
    let _daemon = Daemon::start(&world.wire, &world.stage);
    world.is_steered();
    let before = world.gateway.workers();
    for pid in &before {
        process::send(*pid, Signal::Kill);
    }
    wait_until("the workers are replaced", PATIENCE, || {
        let now = world.gateway.workers();
        now.len() == WORKERS && now.iter().all(|pid| !before.contains(pid))
    });
    world.is_steered();
    assert_eq!(world.connect().get("/hello").status(), 200);
}

#[test]
fn what_is_bad_is_dropped_where_the_policy_says_so() {
    require_netns!();
    let world = World::new("[xdp.quic]\nbad_packets = \"drop\"");
    let _daemon = Daemon::start(&world.wire, &world.stage);
    world.is_steered();
    let mut client = world.connect();
    assert_eq!(client.get("/hello").status(), 200);
    let flooder = world.wire.peer.run(|| UdpSocket::bind((PEER4, 0)).expect("a socket"));
    let bad: Vec<u8> = [0x41].into_iter().chain([0x55; 60]).collect();
    for _ in 0..100 {
        flooder.send_to(&bad, (HOST4, PORT)).expect("sent");
    }
    wait_until("they are dropped", PATIENCE, || {
        world.stage.counters(&world.wire).verdict("drop_quic") == 100
    });
    assert_eq!(client.get("/hello").status(), 200);
    let counters = world.stage.counters(&world.wire);
    assert_eq!((counters.quic("bad_cid"), counters.verdict("drop_quic")), (100, 100), "{counters:?}");
}

/// Keys change by halves twice in an epoch. The stage, which drops what has a wrong tag, follows, and so do the banks.
#[test]
fn keys_change_and_nothing_of_a_live_connection_is_bad() {
    require_netns!();
    let world = World::new(
        "[xdp.quic]\nbad_packets = \"drop\"\n[http3]\nconnection_id_epoch_s = 4\nidle_timeout_ms = 2000",
    );
    let _daemon = Daemon::start(&world.wire, &world.stage);
    world.is_steered();
    let mut clients: Vec<H3> = (0..4).map(|_| world.connect()).collect();
    let offered =
        || world.gateway.log().matches("is steered by the sk_reuseport program of blitz-ctl").count();
    let before = offered();
    wait_until("each bank has its better program again, twice", 2 * PATIENCE, || {
        for client in &mut clients {
            assert_eq!(client.get("/hello").status(), 200);
        }
        offered() >= before + 2
    });
    let counters = world.stage.counters(&world.wire);
    assert_eq!(counters.quic("bad_cid") + counters.quic("unknown_worker"), 0, "{counters:?}");
    assert_eq!(counters.verdict("drop_quic"), 0, "{counters:?}");
    assert_ne!(counters.quic("elsewhere"), 0, "{counters:?}");
}

/// Who has no daemon, or one that may not, serves all the same and is told so.
#[test]
fn without_a_daemon_classic_bpf_steers() {
    let pki = Pki::new();
    pki.certificate("edge", &["edge.test"], Algorithm::Ecdsa);
    let listener = pki.listener(&["edge"], "").replace("[\"h1\"]", "[\"h1\", \"h3\"]");
    let setup = Setup::new(CELL).workers(WORKERS).config(&listener);
    let gateway = setup.flag("--ctl-socket").flag("/nonexistent/ctl.sock").start();
    wait_until("it says so", PATIENCE, || {
        gateway
            .log()
            .contains("QUIC is steered by classic BPF until blitz-ctl answers on /nonexistent/ctl.sock")
    });
    for _ in 0..8 {
        assert_eq!(H3::connect(gateway.address, "edge.test").get("/hello").status(), 200);
    }
}
