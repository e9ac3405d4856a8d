//! Clients that move in mid-download, many connections to a socket: nothing is lost to a stranger, and who has moved too
//! often is told so.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blitz_tests::h3bundle::{Move, octet_at};
use blitz_tests::tls::Algorithm;
use blitz_tests::wire::{HOST4, Wire};
use blitz_tests::{
    Bundle, Cell, Gateway, PATIENCE, Pki, Setup, Signal, Upstream, matrix, require_netns, wait_until,
};

/// Moves of the socket in the ordinary test; `BLITZ_H3_MOVES` asks for more.
const MOVES: usize = 30;
/// Moves of one connection.
const MOVES_EACH: usize = 30;
/// Connections over one socket.
const CONNECTIONS: u8 = 8;
/// Bytes that each connection takes between two moves.
const BETWEEN_BYTES: u64 = 64 << 10;
/// Bytes of one download.
const BODY_BYTES: u64 = 1 << 20;
/// Where the gateway listens.
const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(HOST4), 4433);
/// Where clients move to.
const SOURCES: u8 = 8;

fn source(nth: usize) -> IpAddr {
    Ipv4Addr::new(10, 77, 0, 1 + (nth % usize::from(SOURCES)) as u8).into()
}

/// A wire with merging at both ends, and the gateway with an upstream behind it.
struct Place {
    wire: Wire,
    _pki: Pki,
    _upstream: Upstream,
    gateway: Gateway,
    config: String,
}

fn place(cell: Cell, workers: usize, more: &str) -> Place {
    let wire = Wire::new();
    wire.host.merge_received();
    wire.peer.merge_received();
    (0..SOURCES).for_each(|nth| wire.peer.source(source(nth.into())));
    let upstream = wire.host.run(|| {
        let body: Vec<u8> = (0..BODY_BYTES).map(octet_at).collect();
        Upstream::start(move |conn| {
            loop {
                conn.request()?;
                conn.answer("200 OK", &body)?;
            }
        })
    });
    let pki = Pki::new();
    pki.certificate("edge", &["edge.test"], Algorithm::Ecdsa);
    let listener = pki.listener(&["edge"], "").replace("[\"h1\"]", "[\"h1\", \"h3\"]");
    let toml = blitz_tests::gateway::one_upstream(&[upstream.address], more);
    let toml = toml.replace(blitz_tests::gateway::LISTENER, &listener);
    let config = toml.replace("127.0.0.1:@PORT@", &ADDRESS.to_string());
    let network = wire.host.space.as_ref().expect("it is in a namespace").network();
    let gateway = Setup::new(cell).workers(workers).config(&config).inside(network, ADDRESS).start();
    Place { wire, _pki: pki, _upstream: upstream, gateway, config }
}

impl Place {
    fn bundle(&self, count: u8) -> Bundle {
        let network = self.wire.peer.space.as_ref().expect("it is in a namespace").network();
        Bundle::connect(Some(network), source(0), ADDRESS, count)
    }

    /// Moves one bundle of connections, with all of them in mid-download; datagrams sent.
    fn moves(&self, moves: usize) -> u64 {
        let mut bundle = self.bundle(CONNECTIONS);
        bundle.download(BODY_BYTES);
        for nth in 0..moves {
            let before: Vec<_> = bundle.connections.iter().map(|connection| connection.taken).collect();
            let t = std::time::Instant::now();
            bundle.until("every download goes on", |bundle| {
                if t.elapsed() > Duration::from_secs(6) {
                    eprintln!("MOVE {nth} before {before:?} {}", bundle.state());
                    for (c, b) in bundle.connections.iter().zip(&before) {
                        if c.taken < b + BETWEEN_BYTES {
                            eprintln!("{:?}", c.quic.stats());
                            for p in c.quic.path_stats() {
                                eprintln!("   {p:?}");
                            }
                        }
                    }
                    for l in self
                        .gateway
                        .admin("/metrics")
                        .text()
                        .lines()
                        .filter(|l| l.contains("quic") && !l.starts_with('#'))
                    {
                        eprintln!("{l}");
                    }
                    std::fs::write("/tmp/h3sv.gwlog", self.gateway.log()).unwrap();
                    std::process::exit(1);
                }
                let mut connections = bundle.connections.iter().zip(&before);
                assert!(
                    bundle.connections.iter().all(|connection| connection.is_well()),
                    "{}",
                    bundle.state()
                );
                connections.all(|(connection, before)| connection.taken >= before + BETWEEN_BYTES)
            });
            bundle.go(source(nth), if nth % 2 == 0 { Move::Rebinding } else { Move::Migration });
        }
        let before: Vec<_> = bundle.connections.iter().map(|connection| connection.downloads).collect();
        bundle.until("every download is whole", |bundle| {
            let mut connections = bundle.connections.iter().zip(&before);
            connections.all(|(connection, before)| connection.downloads > *before)
        });
        assert!(bundle.connections.iter().all(|connection| connection.is_well()), "{}", bundle.state());
        bundle.close()
    }

    fn metric(&self, line: &str) -> u64 {
        metric(&self.gateway, line)
    }

    fn received(&self, fate: &str) -> u64 {
        self.metric(&format!("blitz_quic_datagrams_received_total{{fate=\"{fate}\"}}"))
    }

    fn relayed(&self, fate: &str) -> u64 {
        self.metric(&format!("blitz_quic_datagrams_relayed_total{{fate=\"{fate}\"}}"))
    }

    /// What was sent is what was received; what has a connection ID of ours reached its owner, directly or passed on.
    fn nothing_went_to_strangers(&self, sent: u64) {
        let fates = ["delivered", "new", "forwarded", "reset"];
        wait_until("all that was sent is accounted for", PATIENCE, || {
            fates.iter().map(|fate| self.received(fate)).sum::<u64>() + self.wire.dropped() == sent
        });
        let others = ["other_worker", "forward_full", "unknown", "malformed", "refused", "retry", "version"];
        let others = others.map(|fate| (fate, self.received(fate)));
        assert!(others.iter().all(|(_, count)| *count == 0), "{others:?}");
        let forwarded = self.received("forwarded");
        wait_until("what was passed on has been taken", PATIENCE, || {
            ["delivered", "new", "answered", "dropped"].iter().map(|fate| self.relayed(fate)).sum::<u64>()
                == forwarded
        });
        assert_eq!((self.relayed("dropped"), self.relayed("answered")), (0, 0));
        assert!(forwarded > 0, "nothing was merged across workers, so nothing was shown");
    }
}

fn metric(gateway: &Gateway, line: &str) -> u64 {
    let text = gateway.admin("/metrics").text();
    let found = text.lines().find_map(|it| it.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("no {line} in {text}"))
}

fn moves_wanted() -> usize {
    std::env::var("BLITZ_H3_MOVES").ok().and_then(|text| text.parse().ok()).unwrap_or(MOVES)
}

/// So many moves, in bundles of at most [`MOVES_EACH`], while `meanwhile` runs again and again.
fn campaign(place: &Place, moves: usize, meanwhile: impl Fn(usize) + Sync) {
    let begun = Instant::now();
    let done = AtomicBool::new(false);
    let sent: u64 = std::thread::scope(|scope| {
        scope.spawn(|| {
            for nth in 0.. {
                if done.load(Ordering::SeqCst) {
                    return;
                }
                meanwhile(nth);
            }
        });
        let bundles = (0..moves).step_by(MOVES_EACH);
        let sent = bundles.map(|at| place.moves(MOVES_EACH.min(moves - at))).sum();
        done.store(true, Ordering::SeqCst);
        sent
    });
    place.nothing_went_to_strangers(sent);
    println!(
        "{moves} moves of a socket with {CONNECTIONS} connections in {:?}: {sent} datagrams, {} delivered, {} passed on \
         to their owner; {} migrations, {} reloads",
        begun.elapsed(),
        place.received("delivered"),
        place.received("forwarded"),
        place.metric("blitz_quic_migrations_total"),
        place.metric("blitz_config_reloads_total"),
    );
}

matrix! {
    fn no_download_fails_when_clients_move(cell) {
        require_netns!();
        let place = place(cell, 2, "");
        campaign(&place, moves_wanted(), |_| std::thread::sleep(Duration::from_millis(10)));
        place.gateway.stop();
    }
}

matrix! { mp only:
    fn nor_while_the_configuration_is_reloaded(cell) {
        require_netns!();
        let place = place(cell, 2, "");
        campaign(&place, moves_wanted(), |nth| {
            place.gateway.write_config(&format!("{}\n[http]\nconnections_per_worker_max = {}\n", place.config, 5000 + nth));
            place.gateway.signal(Signal::Hup);
            std::thread::sleep(Duration::from_millis(100));
        });
        assert!(place.metric("blitz_config_reloads_total") > 0);
        place.gateway.stop();
    }
}
