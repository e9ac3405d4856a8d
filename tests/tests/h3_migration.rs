//! Clients that move in mid-download, many connections to a socket: nothing is lost to a stranger, and who has moved
//! too often is told so.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use blitz_tests::h3::code::NO_ERROR;
use blitz_tests::h3bundle::{BETWEEN_BYTES, MOVES_EACH, Move, moves_wanted, octet_at};
use blitz_tests::tls::Algorithm;
use blitz_tests::wire::{HOST4, Wire};
use blitz_tests::{
    Bundle, Cell, Gateway, PATIENCE, Pki, Setup, Signal, Upstream, beside, matrix, require, require_netns,
    wait_until,
};

/// Moves of the socket in the ordinary test; `BLITZ_H3_MOVES` asks for more.
const MOVES: usize = 8;
/// Connections over one socket.
const CONNECTIONS: u8 = 8;
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
        let (bundle, sent_before) = self.bundle_of_both_workers();
        sent_before + bundle.travel(moves, BODY_BYTES, source)
    }

    /// A bundle whose connections are not all of one worker, and the datagrams that were sent in vain before.
    fn bundle_of_both_workers(&self) -> (Bundle, u64) {
        let mut sent = 0;
        loop {
            let bundle = self.bundle(CONNECTIONS);
            let shown = self.gateway.admin("/connections");
            let shown: serde_json::Value = serde_json::from_slice(&shown.body).expect("it is JSON");
            let local = bundle.local().to_string();
            let rows = shown["connections"].as_array().into_iter().flatten();
            let workers: Vec<_> =
                rows.filter(|row| row["peer"] == local.as_str()).map(|row| &row["worker"]).collect();
            if workers.iter().any(|worker| *worker != workers[0]) {
                return (bundle, sent);
            }
            sent += bundle.close();
        }
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

/// So many moves, in bundles of at most [`MOVES_EACH`], while `meanwhile` runs again and again.
fn campaign(place: &Place, moves: usize, meanwhile: impl Fn(usize) + Sync) {
    let begun = Instant::now();
    let travel = |at: usize| place.moves(MOVES_EACH.min(moves - at));
    let sent: u64 = beside(meanwhile, || (0..moves).step_by(MOVES_EACH).map(travel).sum());
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
        let _alone = require::alone();
        let place = place(cell, 2, "");
        campaign(&place, moves_wanted(MOVES), |_| std::thread::sleep(Duration::from_millis(10)));
        place.gateway.stop();
    }
}

matrix! { mp only:
    fn nor_while_the_configuration_is_reloaded(cell) {
        require_netns!();
        let _alone = require::alone();
        let place = place(cell, 2, "");
        campaign(&place, moves_wanted(MOVES), |nth| {
            place.gateway.write_config(&format!("{}\n[http]\nconnections_per_worker_max = {}\n", place.config, 5000 + nth));
            place.gateway.signal(Signal::Hup);
            std::thread::sleep(Duration::from_millis(100));
        });
        assert!(place.metric("blitz_config_reloads_total") > 0);
        place.gateway.stop();
    }

    /// The connection that has used up its paths is closed plainly, and its client can come anew from where it is.
    fn who_has_moved_too_often_is_told_so(cell) {
        require_netns!();
        let _alone = require::alone();
        let place = place(cell, 2, "");
        let mut bundle = place.bundle(1);
        bundle.download(BODY_BYTES);
        for nth in 0..MOVES_EACH {
            bundle.allow(BETWEEN_BYTES);
            bundle.go(source(nth), Move::Rebinding);
            bundle.until("the download goes on", Bundle::has_taken);
        }
        bundle.go(source(0), Move::Rebinding);
        let told = told(&mut bundle, 1);
        assert_eq!(told, [Some(NO_ERROR)]);
        assert_eq!(place.metric("blitz_quic_paths_used_up_total{of=\"connection\"}"), 1);
        place.moves(1);
        place.gateway.stop();
    }

    /// Nor does a worker keep more paths than it may, over all its connections.
    fn a_worker_keeps_no_more_paths_than_it_may(cell) {
        require_netns!();
        let _alone = require::alone();
        let place = place(cell, 1, "[http3]\nmoves_per_worker_max = 5\n");
        let mut bundle = place.bundle(CONNECTIONS);
        bundle.download(BODY_BYTES);
        bundle.go(source(1), Move::Rebinding);
        let closed = usize::from(CONNECTIONS) - 5;
        let told = told(&mut bundle, closed);
        assert_eq!(told.iter().filter(|code| **code == Some(NO_ERROR)).count(), closed, "{told:?}");
        assert_eq!(told.iter().filter(|code| code.is_none()).count(), 5, "{told:?}");
        assert_eq!(place.metric("blitz_quic_paths_used_up_total{of=\"worker\"}"), closed as u64);
        // The memory is there again when their connections have ended.
        bundle.close();
        wait_until("the connections have ended", PATIENCE, || {
            place.metric("blitz_downstream_connections_active") == 0
        });
        place.gateway.stop();
    }
}

/// Waits until so many connections have been closed; what each was told.
fn told(bundle: &mut Bundle, closed: usize) -> Vec<Option<u64>> {
    let codes = |bundle: &Bundle| -> Vec<_> {
        let errors = bundle.connections.iter().map(|connection| connection.quic.peer_error());
        errors.map(|error| error.filter(|error| error.is_app).map(|error| error.error_code)).collect()
    };
    bundle.until("connections are closed", |bundle| codes(bundle).iter().flatten().count() >= closed);
    codes(bundle)
}
