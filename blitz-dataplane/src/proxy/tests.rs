//! The proxy between a scripted client and a scripted endpoint, on a calm simulated network.

mod limits;
mod misconduct;
mod relay;
mod tunnel;

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use blitz_config::{Format, Overrides};

use super::Proxy;
use super::accept::accept;
use super::connections::Listener;
use super::snapshot::Snapshot;
use crate::metrics::names::Metric;
use crate::process::Reports;
use crate::process::endpoints::{EndpointAddresses, RowTable};
use crate::process::messages::FromWorker;
use crate::runtime::sim::{Profile, World};
use crate::runtime::{Handle, Runtime, TcpListener, TcpStream};
use crate::segment::{Segment, Shape};
use crate::tls::Diagnosis;

const GATEWAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9)), 80);
const ENDPOINT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 1)), 8001);

const GET: &str = "GET /up/ HTTP/1.1\r\nHost: h\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Milliseconds of the deadlines: request head, request body, keep-alive, first byte, tunnels.
const HEAD: u64 = 200;
const BODY: u64 = 300;
const KEEP_ALIVE: u64 = 10_000;
const FIRST_BYTE: u64 = 500;
const TUNNEL_IDLE: u64 = 2_000;
const TUNNEL_LIFETIME: u64 = 30_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

struct Bench {
    handle: Handle,
    proxy: Rc<Proxy>,
    segment: Segment,
    listener: Rc<Listener>,
    /// What the worker tells the supervisor.
    outgoing: std::sync::mpsc::Receiver<FromWorker>,
}

impl Bench {
    fn value(&self, metric: Metric) -> u64 {
        self.segment.value(0, metric)
    }

    async fn connect(&self) -> Peer {
        Peer { stream: TcpStream::connect(&self.handle, GATEWAY).await.unwrap(), text: String::new() }
    }

    /// Serves every connection to the endpoint with `script`.
    fn endpoint<F: Future<Output = ()> + 'static>(&self, script: impl Fn(Peer, Handle) -> F + 'static) {
        let listener = TcpListener::simulated(&self.handle, ENDPOINT).unwrap();
        let handle = self.handle.clone();
        self.handle.spawn(async move {
            while let Ok(stream) = listener.accept().await {
                handle.spawn(script(Peer { stream, text: String::new() }, handle.clone()));
            }
        });
    }
}

/// One end of a connection that speaks text.
struct Peer {
    stream: TcpStream,
    text: String,
}

impl Peer {
    fn say(&self, text: &str) {
        let _gone = self.stream.write_with(|out| out.extend_from_slice(text.as_bytes()));
    }

    /// Reads until `end` was seen, and takes everything up to it; what came before an end or a reset.
    async fn hear(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.text.find(end) {
                let rest = self.text.split_off(at + end.len());
                return std::mem::replace(&mut self.text, rest);
            }
            match self.stream.receive().await {
                Ok(Some(chunk)) => self.text.push_str(std::str::from_utf8(&chunk).unwrap()),
                _ => return std::mem::take(&mut self.text),
            }
        }
    }
}

fn run<F: Future<Output = ()>>(profile: Profile, http: &str, test: impl FnOnce(Rc<Bench>) -> F) {
    run_with(profile, "", http, test);
}

/// As [`run`], with `first` before every table of the configuration and `http` in its last.
fn run_with<F: Future<Output = ()>>(
    profile: Profile,
    first: &str,
    http: &str,
    test: impl FnOnce(Rc<Bench>) -> F,
) {
    let mut runtime = Runtime::simulated(&World::with_profile(7, profile));
    let handle = runtime.handle().clone();
    let text = format!(
        "{first}[[listeners]]\nname = \"edge\"\naddress = \"{GATEWAY}\"\nbuiltin_answers = true\n\
         [upstreams.up]\nendpoints = [{{ address = \"{ENDPOINT}\" }}]\n\
         [[routes]]\npath = \"/up/*rest\"\nupstream = \"up\"\n\
         [timeouts]\nrequest_head_ms = {HEAD}\nrequest_body_progress_ms = {BODY}\nkeep_alive_ms = {KEEP_ALIVE}\n\
         upstream_first_byte_ms = {FIRST_BYTE}\n\
         tunnel_idle_ms = {TUNNEL_IDLE}\ntunnel_lifetime_ms = {TUNNEL_LIFETIME}\n[http]\n{http}\n"
    );
    let config = blitz_config::load(&text, Format::Toml, "test", &Overrides::default()).unwrap();
    let addresses = vec![EndpointAddresses { endpoint: ENDPOINT.to_string(), addresses: vec![ENDPOINT] }];
    let resolved = RowTable::new(4).assign(&[("up".to_owned(), addresses)], 1).unwrap();
    let segment = Segment::create(Shape { workers: 1, endpoints: 4 }).unwrap();
    let snapshot = Snapshot::compile(&config, &Default::default(), &resolved, 1).unwrap();
    let (outbox, outgoing) = std::sync::mpsc::channel();
    let proxy = Proxy::new(
        handle.clone(),
        segment.worker(0).unwrap(),
        snapshot,
        false,
        Reports::new(outbox),
        Diagnosis::default(),
    );
    let listener = Rc::new(Listener::new(GATEWAY, true));
    let info = Rc::clone(&listener);
    let bench =
        Rc::new(Bench { handle: handle.clone(), proxy: Rc::clone(&proxy), segment, listener, outgoing });
    runtime.block_on_stepped(
        async {
            let listener = TcpListener::simulated(&handle, GATEWAY).unwrap();
            handle.spawn(accept(proxy, listener, info));
            test(bench).await;
        },
        |handle| handle.check_invariants().unwrap(),
    );
}

/// Answers every request after a while.
async fn slow(mut peer: Peer, handle: Handle) {
    while !peer.hear("\r\n\r\n").await.is_empty() {
        handle.sleep(ms(100)).await;
        peer.say(OK);
    }
}

#[test]
fn a_head_that_trickles_ends_at_its_deadline_also_when_several_pieces_wait_already() {
    run(Profile::CALM, "", |bench| async move {
        bench.endpoint(slow);
        let mut client = bench.connect().await;
        client.say(GET);
        bench.handle.sleep(ms(50)).await;
        // Lies in three slots before the server looks at it.
        client.say(&format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\nY: ", "x".repeat(9_000)));
        assert!(client.hear("ok").await.starts_with("HTTP/1.1 200"));
        let began = bench.handle.now_ms();
        let answer = client.hear("head_timeout").await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        let took = bench.handle.now_ms() - began;
        assert!((HEAD..HEAD + 50).contains(&took), "{took} ms");
    });
}

#[test]
fn a_connection_that_closes_listens_for_two_seconds_and_no_longer() {
    run(Profile::CALM, "", |bench| async move {
        bench.endpoint(slow);
        let mut client = bench.connect().await;
        client.say(GET);
        bench.handle.sleep(ms(50)).await;
        client.say("GET / HTTP/1.1\r\nHost: h\r\nBad\r\n\r\n");
        client.say(&"x".repeat(9_000));
        assert!(client.hear("ok").await.starts_with("HTTP/1.1 200"));
        assert!(client.hear("\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        bench.handle.sleep(ms(1_900)).await;
        assert_eq!(bench.proxy.connections.len(), 1);
        bench.handle.sleep(ms(200)).await;
        assert_eq!(bench.proxy.connections.len(), 0);
    });
}

#[test]
fn the_wait_for_an_answer_begins_when_the_request_has_ended() {
    run(Profile::CALM, "", |bench| async move {
        bench.endpoint(|mut peer: Peer, _| async move {
            peer.hear("0123456789").await;
            peer.say(OK);
            // The second one is never answered.
            peer.hear("nothing more").await;
        });
        let mut client = bench.connect().await;
        for answer in ["HTTP/1.1 200", "HTTP/1.1 504"] {
            client.say("PUT /up/ HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n");
            for digit in 0..10 {
                bench.handle.sleep(ms(BODY - 50)).await;
                client.say(&digit.to_string());
            }
            let began = bench.handle.now_ms();
            let head = client.hear("\r\n\r\n").await;
            assert!(head.starts_with(answer), "{head}");
            let took = bench.handle.now_ms() - began;
            let expected = if answer.ends_with("504") { FIRST_BYTE } else { 0 };
            assert!((expected..expected + 50).contains(&took), "{took} ms");
            if expected == 0 {
                client.hear("ok").await;
            }
        }
        assert_eq!(bench.value(Metric::DeadlineUpstreamFirstByte), 1);
    });
}

#[test]
fn interim_answers_prolong_nothing_and_are_few() {
    run(Profile::CALM, "", |bench| async move {
        bench.endpoint(|mut peer: Peer, handle: Handle| async move {
            let request = peer.hear("\r\n\r\n").await;
            for _ in 0..200 {
                peer.say("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
                if request.contains("/slow") {
                    handle.sleep(ms(100)).await;
                }
            }
            let _gone = peer.stream.flushed().await;
            handle.sleep(ms(100)).await;
        });
        for (path, answer, interims) in [("slow", "HTTP/1.1 504", 5), ("fast", "HTTP/1.1 502", 64)] {
            let mut client = bench.connect().await;
            client.say(&format!("GET /up/{path} HTTP/1.1\r\nHost: h\r\n\r\n"));
            let mut seen = 0;
            let last = loop {
                let head = client.hear("\r\n\r\n").await;
                if !head.starts_with("HTTP/1.1 103") {
                    break head;
                }
                seen += 1;
            };
            assert!(last.starts_with(answer), "{last}");
            assert_eq!(seen, interims);
        }
    });
}

#[test]
fn a_request_whose_answer_has_begun_with_an_interim_one_is_not_sent_again() {
    run(Profile::CALM, "", |bench| async move {
        let requests = Rc::new(Cell::new(0));
        let count = Rc::clone(&requests);
        bench.endpoint(move |mut peer: Peer, _| {
            let count = Rc::clone(&count);
            async move {
                for answer in [OK, "HTTP/1.1 103 Early Hints\r\n\r\n"] {
                    if !peer.hear("\r\n\r\n").await.is_empty() {
                        count.set(count.get() + 1);
                        peer.say(answer);
                    }
                }
                let _gone = peer.stream.flushed().await;
            }
        });
        let mut client = bench.connect().await;
        client.say(GET);
        client.hear("ok").await;
        client.say(GET);
        assert!(client.hear("\r\n\r\n").await.starts_with("HTTP/1.1 103"));
        let last = client.hear("\r\n\r\n").await;
        assert!(last.starts_with("HTTP/1.1 502"), "{last}");
        assert_eq!(requests.get(), 2);
    });
}

#[test]
fn a_pooled_connection_is_watched_also_after_a_large_answer() {
    run(Profile::CALM, "", |bench| async move {
        bench.endpoint(|mut peer: Peer, handle: Handle| async move {
            peer.hear("\r\n\r\n").await;
            peer.say(&format!("HTTP/1.1 200 OK\r\nContent-Length: 600000\r\n\r\n{}end", "x".repeat(599_997)));
            peer.stream.flushed().await.unwrap();
            handle.sleep(ms(50)).await;
        });
        for _ in 0..3 {
            let mut client = bench.connect().await;
            // Not idempotent: it could not be sent again.
            client.say("POST /up/ HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
            let head = client.hear("\r\n\r\n").await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            // A slow reader: the gateway receives on demand from here on.
            bench.handle.sleep(ms(50)).await;
            client.hear("end").await;
            // The endpoint closes it while it is idle.
            bench.handle.sleep(ms(100)).await;
        }
        assert_eq!(bench.value(Metric::PoolClosedStale), 2);
    });
}

#[test]
fn a_drain_ends_connections_behind_their_answer_and_says_so() {
    run(Profile::CALM, "", |bench| async move {
        bench.endpoint(slow);
        let mut busy = bench.connect().await;
        let mut idle = bench.connect().await;
        busy.say(&format!("{GET}{GET}"));
        bench.handle.sleep(ms(50)).await;
        bench.proxy.drain();
        assert_eq!(idle.hear("never").await, "");
        let head = busy.hear("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("Connection: close\r\n"), "{head}");
        assert_eq!(busy.hear("never").await, "ok", "the request behind it is not begun");
        // One that came while the listener was still open gets one answer.
        let mut late = bench.connect().await;
        late.say(GET);
        let head = late.hear("\r\n\r\n").await;
        assert!(head.contains("Connection: close\r\n"), "{head}");
        assert_eq!(late.hear("never").await, "ok");
    });
}

#[test]
fn stale_pooled_connections_do_not_use_up_the_attempts() {
    run(Profile::CALM, "", |bench| async move {
        let is_down = Rc::new(Cell::new(false));
        let down = Rc::clone(&is_down);
        bench.endpoint(move |mut peer: Peer, handle: Handle| {
            let down = Rc::clone(&down);
            async move {
                let was_open = !down.get();
                while !peer.hear("\r\n\r\n").await.is_empty() {
                    if was_open && down.get() {
                        // An endpoint that ended its connections just before the request came.
                        return;
                    }
                    handle.sleep(ms(20)).await;
                    peer.say(OK);
                }
            }
        });
        let mut clients = Vec::new();
        for _ in 0..6 {
            let client = bench.connect().await;
            client.say(GET);
            clients.push(client);
        }
        for client in &mut clients {
            client.hear("ok").await;
        }
        assert_eq!(bench.value(Metric::UpstreamIdle), 6);
        is_down.set(true);
        clients[0].say(GET);
        let head = clients[0].hear("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    });
}

#[test]
fn the_bound_on_connections_holds_when_those_asked_to_leave_stay() {
    run(
        Profile { window_bytes: 700, ..Profile::CALM },
        "connections_per_worker_max = 4",
        |bench| async move {
            let mut clients = Vec::new();
            for _ in 0..200 {
                let client = bench.connect().await;
                // Asks for more than it takes: the connection is idle, and its answer never leaves.
                client.say(&format!("GET /echo/{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(4_000)));
                clients.push(client);
                bench.handle.sleep(ms(10)).await;
            }
            let open = bench.proxy.connections.len();
            assert!(open <= 4 + 64, "{open} connections are open");
        },
    );
}

#[test]
fn bytes_to_and_from_clients_and_idle_ends_are_counted() {
    run(Profile::CALM, "", |bench| async move {
        bench.endpoint(slow);
        let mut client = bench.connect().await;
        client.say(GET);
        client.hear("ok").await;
        let stats = bench.handle.stats();
        // Both ends of the simulation run here: the endpoint has accepted a connection as well.
        assert!(stats.accepted_received_bytes >= 2 * GET.len() as u64);
        assert!(stats.accepted_sent_bytes >= 2 * OK.len() as u64);
        bench.handle.sleep(Duration::from_secs(120)).await;
        bench.proxy.sweep();
        assert_eq!(bench.value(Metric::DeadlineUpstreamIdle), 1);
    });
}
