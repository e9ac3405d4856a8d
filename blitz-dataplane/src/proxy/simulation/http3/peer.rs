//! One end of a QUIC connection in the hands of a script: quiche as a client, over sockets of the simulated network.
//!
//! Owns: its sockets, its time, what came on each stream. Does not own: what it asks for (`script.rs`), the verdict
//! (`oracle.rs`).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use quiche::h3::{self, NameValue};

use super::super::Env;
use super::super::oracle::{Answer, Got};
use super::super::plan::{Request, Upload, pattern};
use super::super::wire::{Fault, Head};
use crate::runtime::sim::Rng;
use crate::runtime::{Deadline, ReceiveBuffer, Transmit, UdpSocket};

/// Sends that one socket may have in flight (count).
const LANES: usize = 8;

/// H3_REQUEST_CANCELLED.
pub(super) const CANCELLED: u64 = 0x10c;

/// A client's end of a connection.
pub(super) struct Peer {
    env: Rc<Env>,
    pub(super) quic: quiche::Connection,
    pub(super) h3: Option<h3::Connection>,
    pub(super) streams: BTreeMap<u64, Stream>,
    ports: Vec<Port>,
    /// The socket by which everything leaves, whatever it should be.
    pub(super) leaves_by: Option<usize>,
    /// It does not read what comes.
    pub(super) is_deaf: bool,
    /// Datagrams that came.
    pub(super) received: u64,
    /// Paths that were proven.
    pub(super) validated: Vec<SocketAddr>,
    deadline: Deadline,
    buffer: ReceiveBuffer,
    rng: Rng,
}

/// A socket with the address that its owner knows.
struct Port {
    local: SocketAddr,
    socket: UdpSocket,
    free: Vec<usize>,
    spare: Box<[u8]>,
}

/// A request on its way.
pub(super) struct Stream {
    pub(super) request: Request,
    pub(super) began_ns: u64,
    /// What is left of the body, unless it waits for 100.
    upload: Vec<u8>,
    trailers: Option<String>,
    waits: bool,
    is_sent: bool,
    /// The body will never end.
    is_stalled: bool,
    interims: Vec<u16>,
    head: Option<(u16, Head)>,
    body: Vec<u8>,
    fields_behind: Vec<(String, String)>,
    pub(super) end: Option<Result<(), Fault>>,
    /// Its body is left unread.
    pub(super) is_held: bool,
    /// The code that it was reset with.
    pub(super) code: Option<u64>,
}

impl Stream {
    /// What the client can say of it.
    pub(super) fn got(&self) -> Got {
        let end = self.end.clone().unwrap_or(Err(Fault::Ended));
        match &self.head {
            None => Err(end.err().unwrap_or(Fault::Ended)),
            Some((status, head)) => Ok(Answer {
                status: *status,
                head: head.clone(),
                body: self.body.clone(),
                trailers: self.fields_behind.clone(),
                interims: self.interims.clone(),
                end,
            }),
        }
    }

    pub(super) fn has_head(&self) -> bool {
        self.head.is_some()
    }

    pub(super) fn body_len(&self) -> usize {
        self.body.len()
    }
}

/// The configuration of a client that trusts anybody.
pub(super) fn config(rng: &Rng) -> quiche::Config {
    let mut config = quiche::Config::new(quiche::PROTOCOL_VERSION).expect("version 1");
    let windows = [64 * 1024, 256 * 1024, 1 << 20];
    config.verify_peer(false);
    config.set_application_protos(h3::APPLICATION_PROTOCOL).expect("a name");
    config.set_max_idle_timeout(120_000);
    config.set_initial_max_data(windows[rng.below(3) as usize]);
    config.set_initial_max_stream_data_bidi_local(windows[rng.below(3) as usize]);
    config.set_initial_max_stream_data_uni(64 * 1024);
    config.set_initial_max_streams_uni(8);
    config.set_active_connection_id_limit(8);
    config.set_max_connection_window(1 << 20);
    config.set_max_stream_window(1 << 20);
    config.grease(false);
    config.set_max_recv_udp_payload_size(1452);
    config
}

fn port(env: &Env, local: SocketAddr) -> Port {
    let socket = UdpSocket::simulated(&env.handle, local, LANES).expect("an address of its own");
    Port { local, socket, free: (0..LANES).collect(), spare: Box::default() }
}

impl Peer {
    /// Begins a connection from `local`.
    pub(super) fn new(env: &Rc<Env>, local: SocketAddr, rng: &Rng, config: &mut quiche::Config) -> Self {
        let scid: Vec<u8> = (0..2).flat_map(|_| rng.next().to_be_bytes()).collect();
        let scid = quiche::ConnectionId::from_ref(&scid);
        let quic =
            quiche::connect(Some("sim.test"), &scid, local, env.gateway, config).expect("a connection");
        Self {
            env: Rc::clone(env),
            quic,
            h3: None,
            streams: BTreeMap::new(),
            ports: vec![port(env, local)],
            leaves_by: None,
            is_deaf: false,
            received: 0,
            validated: Vec::new(),
            deadline: Deadline::new(&env.handle),
            buffer: ReceiveBuffer::new(),
            rng: Rng::new(rng.next()),
        }
    }

    /// One more address.
    pub(super) fn add_port(&mut self, local: SocketAddr) -> usize {
        self.ports.push(port(&self.env, local));
        self.ports.len() - 1
    }

    /// The NAT in between forgets the address of the socket in use and gives it another.
    pub(super) fn rebind(&mut self, seen_as: SocketAddr) {
        if let Some(port) = self.ports.last() {
            port.socket.rebind_simulated(seen_as).expect("an address of its own");
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.quic.is_closed() || self.quic.is_draining()
    }

    /// Why the connection is over, in a word for the counts; `None`: nobody has said.
    pub(super) fn reason(&self) -> Option<String> {
        if let Some(error) = self.quic.peer_error() {
            return Some(format!("closed by the gateway {:#x}", error.error_code));
        }
        if let Some(error) = self.quic.local_error() {
            return Some(format!("closed by the client {:#x}", error.error_code));
        }
        if self.quic.is_timed_out() {
            return Some("timed out".to_owned());
        }
        // quiche tells a stateless reset by closing without an error of either side.
        self.is_over().then(|| "reset".to_owned())
    }

    /// Sends what there is, waits for something to come, for quiche's time or for `most`, and takes what came.
    pub(super) async fn turn(&mut self, most: Duration) {
        self.flush();
        let quic = self.quic.timeout().unwrap_or(most);
        self.deadline.set_after(quic.min(most));
        let Self { ports, deadline, quic, buffer, received, is_deaf, .. } = self;
        poll_fn(|cx| {
            let mut has_news = false;
            for port in ports.iter_mut() {
                has_news |= port.reap(cx);
                while !*is_deaf && let Poll::Ready(Ok(came)) = port.socket.poll_receive(cx, buffer) {
                    has_news = true;
                    let Some(from) = came.source else { continue };
                    for datagram in buffer.datagrams(&came) {
                        *received += 1;
                        // What is late, doubled or spoilt is no matter.
                        let _ignored = quic.recv(datagram, quiche::RecvInfo { from, to: port.local });
                    }
                }
            }
            if has_news { Poll::Ready(()) } else { deadline.poll_expired(cx).map(drop) }
        })
        .await;
        if self.quic.timeout().is_some_and(|left| left.is_zero()) {
            self.quic.on_timeout();
        }
        self.take();
        self.push();
        self.flush();
    }

    /// Turns until `is_done`, the connection is over, or the time is up; whether it is done.
    pub(super) async fn until(&mut self, most: Duration, is_done: impl Fn(&Self) -> bool) -> bool {
        let until_ns = self.env.handle.now_ns() + most.as_nanos() as u64;
        while !is_done(self) {
            let now_ns = self.env.handle.now_ns();
            if self.quic.is_closed() || now_ns >= until_ns {
                return false;
            }
            self.turn(Duration::from_nanos(until_ns - now_ns)).await;
        }
        true
    }

    /// Shakes hands; whether that came to a good end.
    pub(super) async fn establish(&mut self, most: Duration) -> bool {
        if !self.until(most, |peer| peer.quic.is_established()).await {
            return false;
        }
        let config = h3::Config::new().expect("a configuration");
        self.h3 = h3::Connection::with_transport(&mut self.quic, &config).ok();
        self.give_connection_ids();
        self.h3.is_some()
    }

    fn give_connection_ids(&mut self) {
        while self.quic.is_established() && self.quic.scids_left() > 0 {
            let cid: Vec<u8> = (0..2).flat_map(|_| self.rng.next().to_be_bytes()).collect();
            let token = u128::from(self.rng.next()) << 64 | u128::from(self.rng.next());
            if self.quic.new_scid(&quiche::ConnectionId::from_ref(&cid), token, false).is_err() {
                return;
            }
        }
    }

    /// Sends what quiche has to say, as far as sends are free.
    pub(super) fn flush(&mut self) {
        loop {
            // Where it goes out is known only when it is written: every socket needs a free lane.
            if self.ports.iter().any(|port| port.free.is_empty()) {
                return;
            }
            let mut out = [0; 1500];
            let Ok((len, info)) = self.quic.send(&mut out) else { return };
            let by = self.ports.iter().position(|port| port.local == info.from);
            let Some(by) = self.leaves_by.or(by) else { continue };
            self.ports[by].send(&out[..len], info.to);
        }
    }

    /// Begins a request; `None` when that is not possible now.
    pub(super) fn begin(&mut self, request: &Request, fields: &[h3::Header]) -> Option<u64> {
        let has_body = request.upload.len() > 0 || matches!(request.upload, Upload::Trailers(_));
        let h3 = self.h3.as_mut()?;
        let id = h3.send_request(&mut self.quic, fields, !has_body).ok()?;
        let trailers = matches!(request.upload, Upload::Trailers(_)).then(|| format!("{:016x}", request.id));
        let stream = Stream {
            request: request.clone(),
            began_ns: self.env.handle.now_ns(),
            upload: pattern(request.id, request.upload.len()),
            trailers,
            waits: request.expects_continue,
            is_sent: !has_body,
            is_stalled: false,
            interims: Vec::new(),
            head: None,
            body: Vec::new(),
            fields_behind: Vec::new(),
            end: None,
            is_held: false,
            code: None,
        };
        self.streams.insert(id, stream);
        Some(id)
    }

    /// Stops sending a body in the middle, for good.
    pub(super) fn stall(&mut self, id: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.upload.truncate(stream.upload.len() / 2);
            stream.is_stalled = true;
            stream.is_sent = stream.upload.is_empty();
        }
    }

    /// Gives a request up in both directions.
    pub(super) fn cancel(&mut self, id: u64) {
        for direction in [quiche::Shutdown::Write, quiche::Shutdown::Read] {
            // It may be over already.
            let _over = self.quic.stream_shutdown(id, direction, CANCELLED);
        }
    }

    /// Sends bodies on.
    fn push(&mut self) {
        let Some(h3) = &mut self.h3 else { return };
        for (id, stream) in &mut self.streams {
            if stream.is_sent || stream.waits {
                continue;
            }
            let is_last = !stream.is_stalled && stream.trailers.is_none();
            let (mut sent, mut failed) = (0, false);
            loop {
                match h3.send_body(&mut self.quic, *id, &stream.upload[sent..], is_last) {
                    Ok(0) | Err(h3::Error::Done) => break,
                    Ok(count) => sent += count,
                    Err(_) => {
                        failed = true;
                        break;
                    }
                }
                if sent == stream.upload.len() {
                    break;
                }
            }
            stream.upload.drain(..sent);
            stream.is_sent = failed || stream.upload.is_empty();
            if stream.is_sent
                && !failed
                && !stream.is_stalled
                && let Some(sum) = &stream.trailers
            {
                let trailers = [h3::Header::new(b"x-sum", sum.as_bytes())];
                // Else there is no room yet.
                stream.is_sent =
                    h3.send_additional_headers(&mut self.quic, *id, &trailers, true, true).is_ok();
            }
        }
    }

    /// Takes what came.
    fn take(&mut self) {
        while let Some(event) = self.quic.path_event_next() {
            if let quiche::PathEvent::Validated(local, _) = event {
                self.validated.push(local);
            }
        }
        self.give_connection_ids();
        let Some(h3) = &mut self.h3 else { return };
        events(h3, &mut self.quic, &mut self.streams);
        let mut piece = [0; 16 * 1024];
        for (id, stream) in self.streams.iter_mut().filter(|(_, stream)| !stream.is_held) {
            loop {
                match h3.recv_body(&mut self.quic, *id, &mut piece) {
                    Ok(count) => stream.body.extend_from_slice(&piece[..count]),
                    Err(h3::Error::TransportError(quiche::Error::StreamReset(code))) => {
                        stream.is_reset(code);
                        break;
                    }
                    Err(_) => break,
                }
            }
        }
        // The end of a body may show only once it is read.
        events(h3, &mut self.quic, &mut self.streams);
        if self.quic.is_closed() || self.quic.is_draining() {
            for stream in self.streams.values_mut().filter(|stream| stream.end.is_none()) {
                stream.end = Some(Err(Fault::Ended));
            }
        }
    }
}

fn events(h3: &mut h3::Connection, quic: &mut quiche::Connection, streams: &mut BTreeMap<u64, Stream>) {
    while let Ok((id, event)) = h3.poll(quic) {
        let Some(stream) = streams.get_mut(&id) else { continue };
        match event {
            h3::Event::Headers { list, .. } => stream.headers(&list),
            // quiche may say so of a stream that was reset.
            h3::Event::Finished if stream.code.is_none() => stream.end = Some(Ok(())),
            h3::Event::Reset(code) => stream.is_reset(code),
            _ => {}
        }
    }
}

impl Stream {
    fn is_reset(&mut self, code: u64) {
        self.code = Some(code);
        self.end = Some(Err(Fault::Reset));
    }

    fn headers(&mut self, list: &[h3::Header]) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let fields: Vec<_> = list.iter().map(|field| (text(field.name()), text(field.value()))).collect();
        let status = fields.iter().find(|(name, _)| name == ":status");
        match status.map(|(_, status)| status.parse().unwrap_or(0)) {
            None => self.fields_behind = fields,
            Some(interim @ 100..=199) => {
                self.waits &= interim != 100;
                self.interims.push(interim);
            }
            Some(status) => self.head = Some((status, Head { start: String::new(), fields })),
        }
    }
}

impl Port {
    fn reap(&mut self, cx: &Context<'_>) -> bool {
        let before = self.free.len();
        for lane in 0..self.socket.lanes() {
            if !self.free.contains(&lane) && self.socket.poll_sent(lane, cx).is_ready() {
                self.free.push(lane);
            }
        }
        self.free.len() > before
    }

    fn send(&mut self, bytes: &[u8], to: SocketAddr) {
        let Some(lane) = self.free.pop() else { return };
        if self.spare.len() < bytes.len() {
            self.spare = vec![0; 1500].into_boxed_slice();
        }
        self.spare[..bytes.len()].copy_from_slice(bytes);
        let transmit = Transmit { to, from: None, segment: None };
        self.socket.start_send(lane, &mut self.spare, bytes.len(), transmit).expect("the lane was free");
    }
}
