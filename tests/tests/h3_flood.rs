//! First packets of QUIC from addresses that nobody has, by the hundred thousand: nobody is sent more than three times
//! what came from there, memory is bounded, and good clients do not notice.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use blitz_tests::backscatter::{Seen, sources};
use blitz_tests::flood::Offered;
use blitz_tests::initial::DATAGRAM_BYTES_MIN;
use blitz_tests::tls::Algorithm;
use blitz_tests::wire::{HOST4, Wire};
use blitz_tests::{
    Backscatter, Cell, Flood, Gateway, H3, Initial, Io, Mode, PATIENCE, Pki, Setup, Upstream, gateway,
    matrix, process, require, require_netns, wait_until,
};

/// First packets in the ordinary test; `BLITZ_H3_INITIALS` asks for more, up to 2^22.
const INITIALS: u32 = 100_000;
/// Of them a second.
const PER_SECOND: u64 = 10_000;
/// First packets a second beside good requests; `BLITZ_H3_PER_SECOND` asks for more.
const PER_SECOND_BESIDE: u32 = 5_000;
/// How much of that has to be reached, in percent.
const PER_SECOND_REACHED: u64 = 90;
/// How long good clients are beside a flood in a round of the ordinary test; `BLITZ_H3_FLOOD_S` asks for more. Longer
/// than a handshake that nobody goes on with is kept.
const LENGTH: Duration = Duration::from_secs(7);

/// Bytes of UDP payload that an address may get: three times those of the one datagram that comes from there.
const ALLOWED: u64 = 3 * DATAGRAM_BYTES_MIN as u64;

/// Where the gateway listens.
const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(HOST4), 4433);
const WORKERS: usize = 2;
/// `tls.handshakes_max`, as it is by default: of each worker.
const HANDSHAKES_MAX: u64 = 1000;
/// As long as it takes to send twice again what is not acknowledged: a second, and two more.
const HANDSHAKE: Duration = Duration::from_millis(3500);

/// Bytes of a worker for each handshake under way.
const HANDSHAKE_BYTES_MAX: u64 = 100 << 10;
/// Bytes of a worker's pools: buffers for receiving and sending, all of which are in use in a flood.
const POOLS_BYTES_MAX: u64 = 8 << 20;
/// How much larger a worker may be in the second half of a flood than in the first, in percent.
const GROWTH_MAX: u64 = 5;

/// Good clients, one after the other, before a flood and behind it.
const VISITS: u64 = 9;
/// Good requests a second: on connections that are there, and on one for each.
const GOOD_PER_SECOND: [u32; 2] = [480, 20];
/// Connections that are there.
const CONNECTIONS: u32 = 8;
/// Clients that make new ones in turn.
const COMERS: u32 = 4;
/// What all but one in a hundred good requests may take. Under pressure a worker begins a quarter of
/// `tls.handshakes_max` handshakes at one go, in a debug build at a millisecond each.
const P99_MAX: Duration = Duration::from_millis(250);
/// In one of so many rounds.
const ROUNDS_MAX: u32 = 3;

struct Place {
    wire: Wire,
    _pki: Pki,
    _upstream: Upstream,
    gateway: Gateway,
}

fn place(retry: &str, pki: Pki) -> Place {
    let io = if Cell::available(Io::Uring, Mode::Mp).is_some() { Io::Uring } else { Io::Epoll };
    let wire = Wire::new();
    let upstream = wire.host.run(|| {
        Upstream::start(|conn| {
            loop {
                conn.request()?;
                conn.answer("200 OK", "fine")?;
            }
        })
    });
    let more =
        format!("[timeouts]\ntls_handshake_ms = {}\n[http3]\nretry = \"{retry}\"\n", HANDSHAKE.as_millis());
    let listener = pki.h3_listener("").replace("127.0.0.1:@PORT@", &ADDRESS.to_string());
    let config = gateway::one_upstream(&[upstream.address], &more).replace(gateway::LISTENER, &listener);
    let network = wire.host.space.as_ref().expect("it is in a namespace").network();
    let setup = Setup::new(Cell { io, mode: Mode::Mp }).workers(WORKERS).config(&config);
    let gateway = setup.inside(network, ADDRESS).start();
    Place { wire, _pki: pki, _upstream: upstream, gateway }
}

/// A certificate with so many names that a server's first flight is larger than what may go to an address that is not
/// proven.
fn certificate_for_many() -> Pki {
    let pki = Pki::new();
    let names: Vec<_> = (0..200).map(|n| format!("name-{n:03}.of-many.test")).collect();
    let names: Vec<_> = std::iter::once("edge.test").chain(names.iter().map(String::as_str)).collect();
    pki.certificate("edge", &names, Algorithm::Ecdsa);
    pki
}

impl Place {
    /// First packets, one from each of `from`.
    fn flood(&self, flow: u32, from: &[IpAddr], per_second: u64) -> Flood {
        let flood = Flood::new(from[0], ADDRESS).flow(flow).sources(from.to_vec());
        // A clean stop comes long before.
        flood.initials(Initial::new("edge.test")).rate(per_second).duration(60 * PATIENCE)
    }

    fn received(&self, fate: &str) -> u64 {
        self.gateway.metric(&format!("blitz_quic_datagrams_received_total{{fate=\"{fate}\"}}"))
    }

    /// The most that a worker has, in bytes.
    fn memory(&self) -> u64 {
        self.gateway.workers().into_iter().map(process::own_bytes).max().unwrap_or_default()
    }

    /// A client that comes, is served and goes; how long that took.
    fn visit(&self) -> Duration {
        let begun = Instant::now();
        self.wire.peer.run(|| {
            let mut client = H3::connect(ADDRESS, "edge.test");
            assert_eq!(client.get("/hello").status(), 200);
        });
        begun.elapsed()
    }

    /// Every datagram has one of the fates that it may have here.
    fn nothing_is_strange(&self) {
        for fate in ["malformed", "unknown", "version", "other_worker", "reset"] {
            assert_eq!(self.received(fate), 0, "{fate}");
        }
    }
}

fn number(variable: &str) -> Option<u32> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

#[track_caller]
fn is_as_fast_as_it_says(offered: Offered, per_second: u64) {
    let least = per_second * PER_SECOND_REACHED / 100;
    assert!(offered.rate() >= least as f64, "{:.0} a second and not {least}", offered.rate());
}

/// First packets, each from another address and to another connection ID.
fn spoofed(retry: &str) {
    require_netns!();
    let _alone = require::alone();
    let place = place(retry, certificate_for_many());
    let count = number("BLITZ_H3_INITIALS").unwrap_or(INITIALS);
    let from = sources(count);
    let watch = Backscatter::watch(&place.wire, count, ALLOWED);
    for _ in 1..VISITS {
        place.visit();
    }
    let fresh = place.memory();
    let flood = |flow, from: &[IpAddr]| {
        let flood = place.flood(flow, from, PER_SECOND).packets(from.len() as u64);
        place.gateway.peak_memory(|| flood.run(&place.wire))
    };
    let (first, second) = from.split_at(from.len() / 2);
    let (offered, peak) = flood(1, first);
    is_as_fast_as_it_says(offered, PER_SECOND);
    let (offered, later_peak) = flood(2, second);
    is_as_fast_as_it_says(offered, PER_SECOND);
    let at_end = watch.seen();
    let late = (retry != "never").then(|| place.visit());
    // What is not acknowledged is sent again, and again, and then the connection is closed.
    wait_until("no handshake is under way", 2 * PATIENCE, || {
        place.gateway.metric("blitz_tls_handshakes_active") == 0
    });
    let late = late.unwrap_or_else(|| place.visit());
    let seen = watch.seen();
    let (new, refused, retried) = (place.received("new"), place.received("refused"), place.received("retry"));
    println!(
        "retry = {retry}: {count} first packets from as many addresses, {:.0} a second; begun {new}, asked for proof \
         {retried}, refused {refused}; {} addresses got {} bytes, {} after the last first packet, one at most {}; a \
         client behind them was served within {late:?}",
        offered.rate(),
        seen.addresses,
        seen.bytes,
        seen.bytes - at_end.bytes,
        seen.most_bytes
    );
    let Seen { excess, addresses, most_bytes, .. } = seen;
    assert_eq!(excess, None);
    place.nothing_is_strange();
    assert_eq!(place.gateway.metric("blitz_tls_handshake_failures_total{reason=\"limit\"}"), refused);
    assert!(late < Duration::from_secs(1), "{late:?}");
    // How many are under way at most, and that as many are.
    let under_way = WORKERS as u64
        * match retry {
            "never" => HANDSHAKES_MAX,
            "under_pressure" => HANDSHAKES_MAX / 4 + 1,
            _ => 0,
        };
    assert!(new >= under_way, "{new} begun");
    assert_eq!(retry == "never", refused > 0, "{refused} refused");
    assert_eq!(retry == "never", retried == 0, "{retried} asked for proof");
    if retry == "never" {
        assert!(most_bytes > ALLOWED - 100, "{most_bytes} bytes are so few that the bound was not met");
    }
    assert!(addresses >= u64::from(count).min(under_way.max(1)), "{addresses} addresses were answered");
    // The first flight of a good client is two datagrams, each of which is asked for proof; and one may be lost.
    assert!(
        addresses + 4 * VISITS >= retried,
        "{addresses} addresses were answered, {retried} were asked for proof"
    );
    // Memory: bounded, flat, and there again.
    let of_worker = under_way / WORKERS as u64;
    let bound = fresh + POOLS_BYTES_MAX + of_worker * HANDSHAKE_BYTES_MAX;
    let after = || place.memory() <= fresh + POOLS_BYTES_MAX;
    let begun = Instant::now();
    while !after() && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
    }
    let kib = [fresh, peak, later_peak, place.memory()].map(|bytes| bytes >> 10);
    println!(
        "retry = {retry}: KiB of a worker before, at most in each half, after: {kib:?}; {} for each of {of_worker} \
         handshakes",
        (peak.max(later_peak) - fresh).checked_div(of_worker).unwrap_or_default() >> 10
    );
    assert!(peak.max(later_peak) <= bound, "{kib:?}, and may have {}", bound >> 10);
    assert!(later_peak <= peak + peak * GROWTH_MAX / 100, "{kib:?}: it grows");
    assert!(after(), "{kib:?}: it is not there again");
    place.gateway.stop();
}

#[test]
fn spoofed_addresses_get_no_more_than_three_times_what_came() {
    spoofed("never");
}

#[test]
fn nor_where_proof_is_asked_for_under_pressure() {
    spoofed("under_pressure");
}

#[test]
fn nor_where_proof_is_asked_for_always() {
    spoofed("always");
}

/// What became of the good requests of one kind: the times of those that were answered since they were due, and a word
/// for each other.
#[derive(Default)]
struct Good {
    took: Vec<Duration>,
    failed: Vec<String>,
}

impl Good {
    fn of_all(all: impl IntoIterator<Item = Self>) -> Self {
        let mut together = Self::default();
        for good in all {
            together.took.extend(good.took);
            together.failed.extend(good.failed);
        }
        together.took.sort_unstable();
        together
    }

    fn note(&mut self, due: Instant, got: Result<u16, String>) {
        match got {
            Ok(200) => self.took.push(due.elapsed()),
            Ok(status) => self.failed.push(format!("answered with {status}")),
            Err(error) => self.failed.push(error),
        }
    }

    /// Median, 99th percentile, most.
    fn latency(&self) -> [Duration; 3] {
        [0.5, 0.99, 1.0].map(|share| {
            let place = (self.took.len().saturating_sub(1) as f64 * share) as usize;
            self.took.get(place).copied().unwrap_or_default()
        })
    }
}

fn path(nth: u32) -> &'static str {
    if nth.is_multiple_of(3) { "/good" } else { "/hello" }
}

/// Requests on one connection, each when it is due, whatever becomes of the ones before.
fn stays(mut client: H3, due: impl Iterator<Item = Instant>) -> Good {
    let mut good = Good::default();
    let mut due = (0..).zip(due).peekable();
    let mut under_way: Vec<(u64, Instant)> = Vec::new();
    while due.peek().is_some() || !under_way.is_empty() {
        while let Some((nth, at)) = due.next_if(|(_, at)| *at <= Instant::now()) {
            under_way.push((client.begin_get(path(nth)), at));
        }
        client.glance();
        under_way.retain(|(id, at)| {
            if !client.is_over(*id) && at.elapsed() < PATIENCE {
                return true;
            }
            let got = client.take_got(*id);
            let error = || format!("no whole answer: {:?} {:?}", got.reset, client.quic.peer_error());
            good.note(*at, got.is_whole.then(|| got.status()).ok_or_else(error));
            false
        });
        std::thread::sleep(Duration::from_millis(1));
    }
    good
}

/// Requests on a connection of its own each.
fn comes(due: impl Iterator<Item = Instant>) -> Good {
    let mut good = Good::default();
    for (nth, at) in (0..).zip(due) {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        let connected = H3::try_connect(ADDRESS, "edge.test", &mut blitz_tests::h3::config());
        good.note(at, connected.map(|mut client| client.get(path(nth)).status()));
    }
    good
}

/// Good requests for so long, on connections that are there and on new ones. To be called in the network of a client.
fn good_clients(length: Duration) -> [Good; 2] {
    let clients: Vec<H3> = (0..CONNECTIONS).map(|_| H3::connect(ADDRESS, "edge.test")).collect();
    let begun = Instant::now();
    let schedule = |per_second: u32, nth: u32, of: u32| {
        let every = Duration::from_secs(1) / per_second;
        (nth..)
            .step_by(of as usize)
            .map(move |n| begun + every * n)
            .take_while(move |at| *at < begun + length)
    };
    std::thread::scope(|scope| {
        let [there, new] = GOOD_PER_SECOND;
        let there: Vec<_> = (0..)
            .zip(clients)
            .map(|(nth, client)| scope.spawn(move || stays(client, schedule(there, nth, CONNECTIONS))))
            .collect();
        let new: Vec<_> =
            (0..COMERS).map(|nth| scope.spawn(move || comes(schedule(new, nth, COMERS)))).collect();
        [there, new].map(|threads| {
            Good::of_all(threads.into_iter().map(|thread| thread.join().expect("a client does not panic")))
        })
    })
}

/// First packets at a rate, beside 500 good requests a second.
fn handshake_flood(retry: &str) {
    require_netns!();
    let _alone = require::alone();
    let place = place(retry, Pki::edge());
    let length = number("BLITZ_H3_FLOOD_S").map_or(LENGTH, |seconds| Duration::from_secs(seconds.into()));
    place.visit();
    let fresh = place.memory();
    let from = sources(INITIALS);
    let per_second = number("BLITZ_H3_PER_SECOND").unwrap_or(PER_SECOND_BESIDE).into();
    let flood = place.flood(1, &from, per_second).start(&place.wire);
    // It is under way, and pressure is felt.
    wait_until("proof is asked for", PATIENCE, || place.received("retry") > 0);
    let (p99, peak) = place.gateway.peak_memory(|| {
        // None fails in any round. What they take is looked at again when something else has had the machine.
        let mut p99s = (0..ROUNDS_MAX).map(|_| {
            let good = place.wire.peer.run(|| good_clients(length));
            for (what, good) in ["connections that are there", "new connections"].into_iter().zip(&good) {
                let (count, [p50, p99, most]) = (good.took.len() + good.failed.len(), good.latency());
                println!(
                    "retry = {retry}: {count} good requests on {what} take {p50:?}, {p99:?}, {most:?} (median, 99th \
                     percentile, most)"
                );
                assert!(good.failed.is_empty(), "{what}: {} of {count}: {:?}", good.failed.len(), good.failed);
            }
            let all = Good::of_all(good);
            let due = GOOD_PER_SECOND.iter().sum::<u32>() as f64 * length.as_secs_f64();
            assert!(all.took.len() as f64 >= due - 2.0, "{} good requests", all.took.len());
            all.latency()[1]
        });
        p99s.find(|p99| *p99 <= P99_MAX)
    });
    let offered = flood.stop();
    let retried = place.received("retry");
    println!(
        "retry = {retry}: {} first packets, {:.0} a second, {retried} asked for proof; KiB of a worker before and at \
         most: {} {}",
        offered.packets(),
        offered.rate(),
        fresh >> 10,
        peak >> 10
    );
    assert!(
        p99.is_some(),
        "one good request in a hundred took more than {P99_MAX:?} in each of {ROUNDS_MAX} rounds"
    );
    is_as_fast_as_it_says(offered, per_second);
    place.nothing_is_strange();
    assert!(retried >= offered.packets() / 2, "{retried} were asked for proof");
    let of_worker = if retry == "always" { 0 } else { HANDSHAKES_MAX / 4 + 1 };
    let bound = fresh + POOLS_BYTES_MAX + of_worker * HANDSHAKE_BYTES_MAX;
    assert!(peak <= bound, "{} KiB, and may have {}", peak >> 10, bound >> 10);
    place.gateway.stop();
}

#[test]
fn good_requests_are_unhurt_where_proof_is_asked_for_always() {
    handshake_flood("always");
}

#[test]
fn good_requests_are_unhurt_where_proof_is_asked_for_under_pressure() {
    handshake_flood("under_pressure");
}

matrix! { mp only:
    /// However many first packets a worker finds at once, everybody is asked for proof: a client that is not waits for
    /// a second before it says its own again.
    fn nobody_in_a_burst_is_forgotten(cell) {
        const BURST: u64 = 100;
        let pki = Pki::edge();
        let toml = pki.h3_listener("") + "[http3]\nretry = \"always\"\n";
        let gateway = Setup::new(cell).config(&toml).start();
        let socket = UdpSocket::bind((gateway.address.ip(), 0)).expect("a socket");
        let said = Initial::new("edge.test");
        process::halt(gateway.workers()[0], || {
            for number in 0..BURST {
                let dcid = number.to_be_bytes();
                socket.send_to(&said.sealed(&dcid, DATAGRAM_BYTES_MIN), gateway.address).expect("sent");
            }
        });
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        for number in 0..BURST {
            socket.recv(&mut [0; 1500]).unwrap_or_else(|error| panic!("{number} were answered: {error}"));
        }
        assert_eq!(gateway.metric("blitz_quic_datagrams_received_total{fate=\"retry\"}"), BURST);
        gateway.stop();
    }
}
