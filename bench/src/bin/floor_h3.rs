//! The HTTP/3 floor: quiche over memory.
//!
//! `floor_h3 direct|proxied SECONDS CERTIFICATE KEY`. A client and a server take turns on 16 connections with 32
//! requests each; only the server's turns are timed, by the thread's own clock: opening datagrams, HTTP/3, sealing
//! answers. There is no socket, no timer, no request of ours: what the gateway needs beyond this is the kernel's or its
//! own. The memory that quiche asks for in those turns is counted.
//!
//! Prints `RESULT ` and requests per CPU-second, allocations per request and datagrams per request.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::VecDeque;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blitz_bench::tls::thread_cpu_time;
use blitz_bench::{floor, qpack};
use mimalloc::MiMalloc;
use quiche::h3;

const CONNECTIONS: usize = 16;
const STREAMS: usize = 32;
/// Bytes of a datagram, as the gateway sends them.
const DATAGRAM_BYTES: usize = 1200;

type Failure = Box<dyn Error>;

/// Counts what is asked of the allocator, which is the gateway's.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { MiMalloc.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { MiMalloc.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> Result<(), Failure> {
    let scenario: String = floor::argument(1, "scenario, direct or proxied")?;
    let seconds: u64 = floor::argument(2, "number of seconds")?;
    let certificate: String = floor::argument(3, "certificate")?;
    let key: String = floor::argument(4, "key")?;
    let answer = Answer::new(&scenario).ok_or("the scenario is direct or proxied")?;
    let mut config = config()?;
    config.load_cert_chain_from_pem_file(&certificate)?;
    config.load_priv_key_from_pem_file(&key)?;
    let mut pairs = Vec::new();
    for _ in 0..CONNECTIONS {
        pairs.push(Pair::new(&mut config)?);
    }
    let mut counts = Counts::default();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        for pair in &mut pairs {
            pair.turn(&answer, &mut counts)?;
        }
    }
    let Counts { used, requests, allocations, datagrams } = counts;
    let per_request = |count: u64| count as f64 / requests as f64;
    println!(
        "RESULT {:.0} {:.2} {:.3}",
        requests as f64 / used.as_secs_f64(),
        per_request(allocations),
        per_request(datagrams)
    );
    Ok(())
}

fn config() -> Result<quiche::Config, quiche::Error> {
    let mut config = quiche::Config::new(quiche::PROTOCOL_VERSION)?;
    config.verify_peer(false);
    config.set_application_protos(h3::APPLICATION_PROTOCOL)?;
    config.set_max_idle_timeout(30_000);
    config.set_initial_max_data(1 << 24);
    config.set_initial_max_stream_data_bidi_local(1 << 18);
    config.set_initial_max_stream_data_bidi_remote(1 << 18);
    config.set_initial_max_stream_data_uni(1 << 14);
    config.set_initial_max_streams_uni(8);
    config.set_initial_max_streams_bidi(128);
    config.enable_pacing(false);
    Ok(config)
}

/// What the server answers with.
struct Answer {
    head: Vec<h3::Header>,
    body: Vec<u8>,
}

impl Answer {
    fn new(scenario: &str) -> Option<Self> {
        let mut fields = vec![
            (":status", "200"),
            ("content-type", "text/plain"),
            ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ];
        let body = match scenario {
            "direct" => b"Hello from Blitz\n".to_vec(),
            "proxied" => {
                fields.extend([("server", "nginx/1.22.1"), ("via", "1.1 blitz")]);
                vec![b'x'; 1024]
            }
            _ => return None,
        };
        let length = body.len().to_string();
        fields.push(("content-length", &length));
        let head = fields.iter().map(|(name, value)| h3::Header::new(name.as_bytes(), value.as_bytes()));
        Some(Self { head: head.collect(), body })
    }
}

#[derive(Default)]
struct Counts {
    used: Duration,
    requests: u64,
    allocations: u64,
    datagrams: u64,
}

/// A client and a server of one connection.
struct Pair {
    client: quiche::Connection,
    server: quiche::Connection,
    h3: h3::Connection,
    next: u64,
    /// Requests whose answer has not been sent whole, and the bytes of its body that were; `None`: nor its head.
    open: VecDeque<(u64, Option<usize>)>,
    buffer: Vec<u8>,
}

/// Where the two ends are not.
const CLIENT: ([u8; 4], u16) = ([127, 0, 0, 1], 1);
const SERVER: ([u8; 4], u16) = ([127, 0, 0, 1], 2);

impl Pair {
    fn new(config: &mut quiche::Config) -> Result<Self, Failure> {
        let (here, there) = (SocketAddr::from(SERVER), SocketAddr::from(CLIENT));
        let scid = quiche::ConnectionId::from_ref(b"the-server's-end");
        let mut server = quiche::accept(&scid, None, here, there, config)?;
        let scid = quiche::ConnectionId::from_ref(b"the-client's-end");
        let mut client = quiche::connect(Some("localhost"), &scid, there, here, config)?;
        let mut buffer = Vec::new();
        while !client.is_established() || !server.is_established() {
            deliver(&mut client, &mut server, &mut buffer)?;
            deliver(&mut server, &mut client, &mut buffer)?;
        }
        client.stream_send(2, qpack::CONTROL, false)?;
        let h3 = h3::Connection::with_transport(&mut server, &h3::Config::new()?)?;
        Ok(Self { client, server, h3, next: 0, open: VecDeque::new(), buffer })
    }

    /// 32 requests and their answers.
    fn turn(&mut self, answer: &Answer, counts: &mut Counts) -> Result<(), Failure> {
        let request = qpack::request("localhost:443", "/hello");
        for _ in 0..STREAMS {
            self.client.stream_send(self.next, &request, true)?;
            self.next += 4;
        }
        let mut answered = 0;
        // Answers that do not fit into the congestion window wait for acknowledgements.
        while answered < STREAMS {
            let mut lengths = write(&mut self.client, &mut self.buffer)?;
            let (begun, before) = (thread_cpu_time(), ALLOCATIONS.load(Ordering::Relaxed));
            read(&mut self.server, &mut self.buffer, &lengths)?;
            self.answer(answer)?;
            lengths = write(&mut self.server, &mut self.buffer)?;
            counts.used += thread_cpu_time().saturating_sub(begun);
            counts.allocations += ALLOCATIONS.load(Ordering::Relaxed) - before;
            counts.datagrams += lengths.len() as u64;
            read(&mut self.client, &mut self.buffer, &lengths)?;
            answered += self.take()?;
        }
        counts.requests += STREAMS as u64;
        Ok(())
    }

    /// What a server does with the requests that have come.
    fn answer(&mut self, answer: &Answer) -> Result<(), Failure> {
        loop {
            match self.h3.poll(&mut self.server) {
                Ok((id, h3::Event::Headers { .. })) => self.open.push_back((id, None)),
                Ok(_) => {}
                Err(h3::Error::Done) => break,
                Err(error) => return Err(error.into()),
            }
        }
        while let Some((id, sent)) = self.open.front_mut() {
            let step = match sent {
                None => self.h3.send_response(&mut self.server, *id, &answer.head, false).map(|()| 0),
                Some(at) => self.h3.send_body(&mut self.server, *id, &answer.body[*at..], true),
            };
            match step {
                Ok(count) => *sent = Some(sent.unwrap_or(0) + count),
                Err(h3::Error::Done | h3::Error::StreamBlocked) => break,
                Err(error) => return Err(error.into()),
            }
            if *sent == Some(answer.body.len()) {
                self.open.pop_front();
            }
        }
        Ok(())
    }

    /// Takes the answers; how many have ended.
    fn take(&mut self) -> Result<usize, Failure> {
        let mut buffer = [0; 4096];
        let mut ended = 0;
        while let Some(id) = self.client.stream_readable_next() {
            loop {
                match self.client.stream_recv(id, &mut buffer) {
                    Ok((_, is_over)) => ended += usize::from(is_over),
                    Err(quiche::Error::Done | quiche::Error::InvalidStreamState(_)) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(ended)
    }
}

/// Writes what there is to be sent, one datagram behind the other; their lengths.
fn write(from: &mut quiche::Connection, buffer: &mut Vec<u8>) -> Result<Vec<usize>, Failure> {
    let mut lengths = Vec::with_capacity(64);
    let mut at = 0;
    loop {
        if buffer.len() < at + DATAGRAM_BYTES {
            buffer.resize(at + 64 * DATAGRAM_BYTES, 0);
        }
        match from.send(&mut buffer[at..at + DATAGRAM_BYTES]) {
            Ok((written, _)) => {
                lengths.push(written);
                at += written;
            }
            Err(quiche::Error::Done) => return Ok(lengths),
            Err(error) => return Err(error.into()),
        }
    }
}

fn read(to: &mut quiche::Connection, buffer: &mut [u8], lengths: &[usize]) -> Result<(), Failure> {
    let (from, here) = if to.is_server() { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
    let info = quiche::RecvInfo { from: from.into(), to: here.into() };
    let mut at = 0;
    for length in lengths {
        to.recv(&mut buffer[at..at + length], info)?;
        at += length;
    }
    Ok(())
}

fn deliver(
    from: &mut quiche::Connection,
    to: &mut quiche::Connection,
    buffer: &mut Vec<u8>,
) -> Result<(), Failure> {
    let lengths = write(from, buffer)?;
    read(to, buffer, &lengths)
}
