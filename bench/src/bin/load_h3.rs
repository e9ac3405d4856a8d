//! The generator of HTTP/3: requests in a closed loop on many streams, and what became of them.
//!
//! `load_h3 ADDRESS PATH SECONDS CONNECTIONS STREAMS BYTES`. Each connection has a socket of its own and keeps STREAMS
//! requests under way. The transport is quiche; of HTTP/3 there is only what a load needs, so that a request costs the
//! generator less than its answer costs any server: the request is written once, and of an answer the status and the
//! number of bytes are looked at. What a look at a socket brings is handled before anything is sent, so that new
//! requests travel together.
//!
//! Prints `RESULT done bytes seconds p50_us p99_us bad busy received sent`. `bad`: another status than 200, fewer than
//! BYTES bytes, or reset; `busy`: the share of its core that the generator used; then datagrams. Owns: that. Does not
//! own: the socket (`udp.rs`).

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use blitz_bench::tls::thread_cpu_time;
use blitz_bench::udp::{BYTES_MAX, Datagrams, SEGMENTS_MAX};
use blitz_bench::{floor, qpack};

/// A handshake that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(5);
/// Between looks at the timers.
const TICK: Duration = Duration::from_millis(1);
/// The first bidirectional stream that a client opens, and the step to its next (RFC 9000 section 2.1).
const STREAM_STEP: u64 = 4;
/// The client's control stream.
const CONTROL: u64 = 2;
/// Latencies are counted in steps of so many microseconds, up to this many of them.
const STEP_US: u64 = 20;
const STEPS: usize = 100_000;

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let address: SocketAddr = floor::argument(1, "address of the server")?;
    let path: String = floor::argument(2, "path")?;
    let seconds: u64 = floor::argument(3, "number of seconds")?;
    let connections: usize = floor::argument(4, "number of connections")?;
    let streams: usize = floor::argument(5, "number of streams")?;
    let bytes: u64 = floor::argument(6, "number of bytes")?;
    let request = qpack::request(&format!("localhost:{}", address.port()), &path);
    let mut config = config()?;
    let mut buffer = vec![0; BYTES_MAX];
    let mut all = Vec::new();
    for _ in 0..connections {
        all.push(Client::connect(address, &mut config, &mut buffer)?);
    }
    let mut polled: Vec<_> = all
        .iter()
        .map(|client| libc::pollfd { fd: client.socket.descriptor(), events: libc::POLLIN, revents: 0 })
        .collect();
    let mut counts = Counts { latencies: vec![0; STEPS], bytes_min: bytes, ..Counts::default() };
    let (begun, busy_before) = (Instant::now(), thread_cpu_time());
    let mut now = begun;
    for client in &mut all {
        client.ask(&request, streams, now)?;
        client.flush(&mut buffer, &mut counts)?;
    }
    let mut ticked = now;
    while now.duration_since(begun) < Duration::from_secs(seconds) {
        wait(&mut polled, TICK)?;
        now = Instant::now();
        let is_tick = now.duration_since(ticked) >= TICK;
        if is_tick {
            ticked = now;
        }
        for (client, polled) in all.iter_mut().zip(&polled) {
            let has_come = polled.revents != 0;
            if has_come {
                client.receive(&mut buffer, &mut counts)?;
                client.read(&mut buffer, now, &mut counts);
                client.ask(&request, streams, now)?;
            }
            if is_tick && client.quic.timeout().is_some_and(|left| left.is_zero()) {
                client.quic.on_timeout();
            }
            if has_come || is_tick {
                client.flush(&mut buffer, &mut counts)?;
            }
        }
    }
    let (elapsed, busy) = (now.duration_since(begun), thread_cpu_time().saturating_sub(busy_before));
    for client in &mut all {
        // So that the server forgets it at once.
        client.quic.close(true, 0x100, b"")?;
        client.flush(&mut buffer, &mut counts)?;
    }
    counts.print(elapsed, busy);
    Ok(())
}

fn config() -> Result<quiche::Config, quiche::Error> {
    let mut config = quiche::Config::new(quiche::PROTOCOL_VERSION)?;
    config.verify_peer(false);
    config.set_application_protos(quiche::h3::APPLICATION_PROTOCOL)?;
    config.set_max_idle_timeout(30_000);
    // Wide open: what is measured is the server's.
    config.set_initial_max_data(64 << 20);
    config.set_max_connection_window(64 << 20);
    config.set_initial_max_stream_data_bidi_local(16 << 20);
    config.set_max_stream_window(16 << 20);
    config.set_initial_max_stream_data_uni(1 << 16);
    config.set_initial_max_streams_uni(16);
    config.set_max_recv_udp_payload_size(BYTES_MAX);
    Ok(config)
}

/// Waits until a socket can be read, or for so long.
fn wait(polled: &mut [libc::pollfd], limit: Duration) -> io::Result<()> {
    let limit = libc::timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() };
    let count = polled.len() as libc::nfds_t;
    // SAFETY: the pointers lead to `count` entries and a timespec that live across the call; no mask is given.
    let status = unsafe { libc::ppoll(polled.as_mut_ptr(), count, &raw const limit, std::ptr::null()) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[derive(Default)]
struct Counts {
    done: u64,
    bytes: u64,
    bad: u64,
    received: u64,
    sent: u64,
    latencies: Vec<u64>,
    bytes_min: u64,
}

impl Counts {
    fn print(&self, elapsed: Duration, busy: Duration) {
        let Self { done, bytes, bad, received, sent, .. } = self;
        let at = |share: f64| {
            let mut left = (*done as f64 * share) as u64;
            let place = self.latencies.iter().position(|count| {
                let is_here = left < *count;
                left = left.saturating_sub(*count);
                is_here
            });
            place.map_or(0, |place| place as u64 * STEP_US)
        };
        let (seconds, busy) = (elapsed.as_secs_f64(), busy.as_secs_f64() / elapsed.as_secs_f64());
        let (p50, p99) = (at(0.5), at(0.99));
        println!("RESULT {done} {bytes} {seconds:.6} {p50} {p99} {bad} {busy:.3} {received} {sent}");
    }
}

/// An answer on its way.
struct Answer {
    id: u64,
    begun: Instant,
    bytes: u64,
    is_good: bool,
}

struct Client {
    socket: Datagrams,
    quic: quiche::Connection,
    info: quiche::RecvInfo,
    answers: Vec<Answer>,
    next: u64,
    /// Bytes of the last request that had no room yet.
    unsent: usize,
    /// A datagram that was longer than those before it, for the next send.
    odd: Vec<u8>,
}

impl Client {
    fn connect(to: SocketAddr, config: &mut quiche::Config, buffer: &mut [u8]) -> Result<Self, Failure> {
        let socket = Datagrams::connect(to)?;
        let local = socket.local_address()?;
        let mut name = *b"load-of-http/3..";
        name[14..].copy_from_slice(&local.port().to_be_bytes());
        let scid = quiche::ConnectionId::from_ref(&name);
        let quic = quiche::connect(Some("localhost"), &scid, local, to, config)?;
        let info = quiche::RecvInfo { from: to, to: local };
        let mut client =
            Self { socket, quic, info, answers: Vec::new(), next: 0, unsent: 0, odd: Vec::new() };
        let begun = Instant::now();
        let mut counts = Counts::default();
        while !client.quic.is_established() {
            if begun.elapsed() > LIMIT || client.quic.is_closed() {
                return Err(format!("no handshake with {to}: {:?}", client.quic.peer_error()).into());
            }
            client.flush(buffer, &mut counts)?;
            let mut polled =
                [libc::pollfd { fd: client.socket.descriptor(), events: libc::POLLIN, revents: 0 }];
            wait(&mut polled, TICK)?;
            client.receive(buffer, &mut counts)?;
            if client.quic.timeout().is_some_and(|left| left.is_zero()) {
                client.quic.on_timeout();
            }
        }
        client.quic.stream_send(CONTROL, qpack::CONTROL, false)?;
        client.flush(buffer, &mut counts)?;
        Ok(client)
    }

    fn receive(&mut self, buffer: &mut [u8], counts: &mut Counts) -> Result<(), Failure> {
        let (count, segment) = match self.socket.receive(buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for datagram in buffer[..count].chunks_mut(segment) {
            counts.received += 1;
            // What it cannot open it drops.
            let _opened = self.quic.recv(datagram, self.info);
        }
        if self.quic.is_draining() || self.quic.is_closed() {
            let error = self.quic.peer_error().or(self.quic.local_error());
            return Err(format!("the connection ended: {error:?}").into());
        }
        Ok(())
    }

    /// Takes what has come of the answers.
    fn read(&mut self, buffer: &mut [u8], now: Instant, counts: &mut Counts) {
        while let Some(id) = self.quic.stream_readable_next() {
            let place = self.answers.iter().position(|answer| answer.id == id);
            loop {
                let read = self.quic.stream_recv(id, buffer);
                // The server's control stream and its kin say nothing that a load heeds.
                let Some(place) = place else {
                    if read.is_err() {
                        break;
                    }
                    continue;
                };
                let answer = &mut self.answers[place];
                let is_over = match read {
                    Ok((count, is_over)) => {
                        if answer.bytes == 0 {
                            answer.is_good = qpack::is_ok(&buffer[..count]);
                        }
                        answer.bytes += count as u64;
                        counts.bytes += count as u64;
                        is_over
                    }
                    Err(quiche::Error::Done) => break,
                    Err(_) => {
                        answer.is_good = false;
                        true
                    }
                };
                if is_over {
                    let answer = self.answers.swap_remove(place);
                    let us = now.duration_since(answer.begun).as_micros() as u64;
                    counts.latencies[((us / STEP_US) as usize).min(STEPS - 1)] += 1;
                    counts.done += 1;
                    counts.bad += u64::from(!answer.is_good || answer.bytes < counts.bytes_min);
                    break;
                }
            }
        }
    }

    /// Asks until so many requests are under way.
    fn ask(&mut self, request: &[u8], streams: usize, now: Instant) -> Result<(), Failure> {
        while self.unsent > 0 || (self.answers.len() < streams && self.quic.peer_streams_left_bidi() > 0) {
            let is_new = self.unsent == 0;
            let id = if is_new { self.next } else { self.next - STREAM_STEP };
            let left = if is_new { request } else { &request[request.len() - self.unsent..] };
            match self.quic.stream_send(id, left, true) {
                Ok(count) => self.unsent = left.len() - count,
                Err(quiche::Error::Done | quiche::Error::StreamLimit) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if !is_new {
                if self.unsent > 0 {
                    return Ok(());
                }
                continue;
            }
            self.answers.push(Answer { id: self.next, begun: now, bytes: 0, is_good: false });
            self.next += STREAM_STEP;
        }
        Ok(())
    }

    /// Sends all that there is, many datagrams at once.
    fn flush(&mut self, buffer: &mut [u8], counts: &mut Counts) -> Result<(), Failure> {
        let largest = self.quic.max_send_udp_payload_size();
        loop {
            let (mut len, mut segment, mut count) = (0, usize::MAX, 0);
            if !self.odd.is_empty() {
                len = self.odd.len();
                buffer[..len].copy_from_slice(&self.odd);
                (segment, count) = (len, 1);
                self.odd.clear();
            }
            let mut is_done = false;
            while len + largest <= buffer.len() && count < SEGMENTS_MAX {
                let written = match self.quic.send(&mut buffer[len..len + largest]) {
                    Ok((written, _)) => written,
                    Err(quiche::Error::Done) => {
                        is_done = true;
                        break;
                    }
                    Err(error) => return Err(error.into()),
                };
                if written > segment {
                    self.odd.extend_from_slice(&buffer[len..len + written]);
                    break;
                }
                if count == 0 {
                    segment = written;
                }
                (len, count) = (len + written, count + 1);
                if written < segment {
                    break;
                }
            }
            if count > 0 {
                counts.sent += count as u64;
                match self.socket.send(&buffer[..len], segment) {
                    // QUIC sends again what does not fit.
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if is_done && self.odd.is_empty() {
                return Ok(());
            }
        }
    }
}
