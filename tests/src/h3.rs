//! A client of HTTP/3 that does as it is told.
//!
//! Owns: a connection over one UDP socket, what came on each of its streams. Does not own: what is expected. The
//! protocol is quiche's, which has no checks of what a request may say, so that wrong ones can be sent.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use boring::ssl::{SslContextBuilder, SslMethod};
use quiche::h3::{self, NameValue};

use crate::PATIENCE;
use crate::hpack::List;

/// Bodies above this many bytes are counted and not kept.
const KEPT_BODY_BYTES_MAX: usize = 64 << 20;

/// Codes of HTTP/3 (RFC 9114 section 8.1).
pub mod code {
    /// H3_NO_ERROR.
    pub const NO_ERROR: u64 = 0x100;
    /// H3_STREAM_CREATION_ERROR.
    pub const STREAM_CREATION_ERROR: u64 = 0x103;
    /// H3_CLOSED_CRITICAL_STREAM.
    pub const CLOSED_CRITICAL_STREAM: u64 = 0x104;
    /// H3_FRAME_UNEXPECTED.
    pub const FRAME_UNEXPECTED: u64 = 0x105;
    /// H3_FRAME_ERROR.
    pub const FRAME_ERROR: u64 = 0x106;
    /// H3_EXCESSIVE_LOAD.
    pub const EXCESSIVE_LOAD: u64 = 0x107;
    /// H3_ID_ERROR.
    pub const ID_ERROR: u64 = 0x108;
    /// H3_SETTINGS_ERROR.
    pub const SETTINGS_ERROR: u64 = 0x109;
    /// H3_MISSING_SETTINGS.
    pub const MISSING_SETTINGS: u64 = 0x10a;
    /// H3_REQUEST_REJECTED.
    pub const REQUEST_REJECTED: u64 = 0x10b;
    /// H3_REQUEST_CANCELLED.
    pub const REQUEST_CANCELLED: u64 = 0x10c;
    /// H3_REQUEST_INCOMPLETE.
    pub const REQUEST_INCOMPLETE: u64 = 0x10d;
    /// H3_MESSAGE_ERROR.
    pub const MESSAGE_ERROR: u64 = 0x10e;
    /// QPACK_DECOMPRESSION_FAILED (RFC 9204 section 6).
    pub const DECOMPRESSION_FAILED: u64 = 0x200;
    /// QPACK_ENCODER_STREAM_ERROR.
    pub const ENCODER_STREAM_ERROR: u64 = 0x201;
}

/// Fields, pseudo-header fields among them.
pub type Fields<'a> = &'a [(&'a str, &'a str)];

/// What came on a stream.
#[derive(Clone, Debug, Default)]
pub struct Got {
    /// The statuses of its heads, in order.
    pub statuses: Vec<u16>,
    /// Its heads, in order.
    pub heads: Vec<List>,
    /// The body, as far as it is kept.
    pub body: Vec<u8>,
    /// Bytes of the body.
    pub body_bytes: u64,
    /// Fields behind the body.
    pub trailers: List,
    /// It has ended in order.
    pub is_whole: bool,
    /// It was reset, with this code.
    pub reset: Option<u64>,
}

impl Got {
    /// The final status.
    #[track_caller]
    pub fn status(&self) -> u16 {
        *self.statuses.last().expect("a head has come")
    }

    /// A field of the last head.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.heads.last().and_then(|head| crate::hpack::find(head, name))
    }
}

/// A connection.
pub struct H3 {
    socket: UdpSocket,
    /// Where the transport believes itself to be.
    local: SocketAddr,
    /// The transport.
    pub quic: quiche::Connection,
    /// The protocol on it, once the handshake is done.
    pub h3: Option<h3::Connection>,
    streams: HashMap<u64, Got>,
    /// Streams whose body is left unread.
    held: HashSet<u64>,
    /// What GOAWAY said.
    pub goaway: Option<u64>,
    /// Datagrams received.
    pub datagrams: u64,
    /// Bytes of bodies received.
    body_bytes: u64,
    /// Datagrams sent, where they are kept.
    pub record: Option<Vec<Vec<u8>>>,
}

/// The usual client: trusts anybody, takes much at once.
///
/// # Panics
/// Never.
pub fn config() -> quiche::Config {
    config_with(|_| {})
}

/// The same with something of its own about TLS.
///
/// # Panics
/// Never.
pub fn config_with(change: impl FnOnce(&mut SslContextBuilder)) -> quiche::Config {
    let mut builder = SslContextBuilder::new(SslMethod::tls()).expect("a context");
    change(&mut builder);
    let mut config =
        quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, builder).expect("version 1");
    config.verify_peer(false);
    config.set_application_protos(h3::APPLICATION_PROTOCOL).expect("a name");
    config.set_max_idle_timeout(60_000);
    config.set_initial_max_data(16 << 20);
    config.set_initial_max_stream_data_bidi_local(4 << 20);
    config.set_initial_max_stream_data_uni(1 << 20);
    config.set_initial_max_streams_uni(16);
    config.set_initial_max_streams_bidi(16);
    config.set_active_connection_id_limit(4);
    config
}

impl H3 {
    /// Connects and asks for `name`.
    ///
    /// # Panics
    /// When the handshake does not end well.
    #[track_caller]
    pub fn connect(address: SocketAddr, name: &str) -> Self {
        Self::try_connect(address, name, &mut config()).expect("a handshake")
    }

    /// Connects as `config` has it.
    ///
    /// # Errors
    /// How the handshake ended.
    ///
    /// # Panics
    /// When there is no socket.
    pub fn try_connect(address: SocketAddr, name: &str, config: &mut quiche::Config) -> Result<Self, String> {
        let mut client = Self::start(address, name, config, None);
        client.shake_hands()?;
        Ok(client)
    }

    /// A connection that has sent nothing yet, and comes back to a session.
    ///
    /// # Panics
    /// When there is no socket, or the session is none.
    #[track_caller]
    pub fn start(
        address: SocketAddr,
        name: &str,
        config: &mut quiche::Config,
        session: Option<&[u8]>,
    ) -> Self {
        let socket = UdpSocket::bind((own(address.ip()), 0)).expect("a socket");
        let local = socket.local_addr().expect("it is bound");
        let scid: Vec<u8> = local.port().to_be_bytes().into_iter().chain(*b"a-test's-client").collect();
        let scid = quiche::ConnectionId::from_ref(&scid);
        let mut quic = quiche::connect(Some(name), &scid, local, address, config).expect("a connection");
        if let Some(session) = session {
            quic.set_session(session).expect("a session");
        }
        Self {
            socket,
            local,
            quic,
            h3: None,
            streams: HashMap::new(),
            held: HashSet::new(),
            goaway: None,
            datagrams: 0,
            body_bytes: 0,
            record: None,
        }
    }

    /// Goes on until the handshake is done, and begins to speak HTTP/3.
    ///
    /// # Errors
    /// How it ended.
    pub fn shake_hands(&mut self) -> Result<(), String> {
        self.handshake()?;
        if self.h3.is_none() {
            self.open()?;
        }
        Ok(())
    }

    /// Goes on until the handshake is done.
    ///
    /// # Errors
    /// How it ended.
    pub fn handshake(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        while !self.quic.is_established() {
            if self.quic.is_closed() || begun.elapsed() > PATIENCE {
                return Err(format!("{:?} {:?}", self.quic.peer_error(), self.quic.local_error()));
            }
            self.turn();
        }
        Ok(())
    }

    /// The port that it sends from.
    ///
    /// # Panics
    /// Never.
    pub fn port(&self) -> u16 {
        self.socket.local_addr().expect("it is bound").port()
    }

    /// Goes on from another port, as behind an address translation that has forgotten: the transport is not told.
    ///
    /// # Panics
    /// When there is no socket.
    pub fn rebind(&mut self) {
        self.socket = UdpSocket::bind((self.local.ip(), 0)).expect("a socket");
    }

    /// Begins to speak HTTP/3: after the handshake, or before it as far as early data goes.
    ///
    /// # Errors
    /// What quiche says.
    pub fn open(&mut self) -> Result<(), String> {
        self.flush();
        let config = h3::Config::new().expect("a configuration");
        let h3 = h3::Connection::with_transport(&mut self.quic, &config);
        self.h3 = Some(h3.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// What a later connection comes back to.
    #[track_caller]
    pub fn session(&mut self) -> Vec<u8> {
        self.until("a ticket comes", |client| client.quic.session().is_some());
        self.quic.session().expect("it was there").to_vec()
    }

    /// Where it is.
    pub fn local(&self) -> SocketAddr {
        self.socket.local_addr().expect("it is bound")
    }

    /// Sends what there is to be sent, takes what has come or comes within a few milliseconds.
    pub fn turn(&mut self) {
        self.flush();
        let wait = self
            .quic
            .timeout()
            .unwrap_or(Duration::MAX)
            .clamp(Duration::from_millis(1), Duration::from_millis(5));
        self.socket.set_read_timeout(Some(wait)).expect("a timeout");
        let mut buffer = [0; 65_536];
        match self.socket.recv_from(&mut buffer) {
            Ok((length, from)) => self.receive(&mut buffer[..length], from),
            Err(_) if self.quic.timeout().is_some_and(|left| left.is_zero()) => self.quic.on_timeout(),
            Err(_) => {}
        }
        self.take();
        self.flush();
    }

    /// The same without waiting. A wait for what comes lasts up to two ticks of the kernel, which may be 20 ms.
    ///
    /// # Panics
    /// Never.
    pub fn glance(&mut self) {
        self.socket.set_nonblocking(true).expect("an option");
        let mut buffer = [0; 65_536];
        while let Ok((length, from)) = self.socket.recv_from(&mut buffer) {
            self.receive(&mut buffer[..length], from);
        }
        self.socket.set_nonblocking(false).expect("an option");
        if self.quic.timeout().is_some_and(|left| left.is_zero()) {
            self.quic.on_timeout();
        }
        self.take();
        self.flush();
    }

    fn receive(&mut self, datagram: &mut [u8], from: SocketAddr) {
        self.datagrams += 1;
        // What is not ours, or comes after the end, is no matter.
        let _ignored = self.quic.recv(datagram, quiche::RecvInfo { from, to: self.local });
    }

    /// Sends what there is to be sent.
    pub fn flush(&mut self) {
        let mut out = [0; 1500];
        while let Ok((length, info)) = self.quic.send(&mut out) {
            if let Some(record) = &mut self.record {
                record.push(out[..length].to_vec());
            }
            // The peer may be gone.
            let _refused = self.socket.send_to(&out[..length], info.to);
        }
    }

    fn take(&mut self) {
        let Some(h3) = &mut self.h3 else { return };
        while let Ok((id, event)) = h3.poll(&mut self.quic) {
            if let h3::Event::GoAway = event {
                self.goaway = Some(id);
                continue;
            }
            let got = self.streams.entry(id).or_default();
            match event {
                h3::Event::Headers { list, .. } => {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let list: Vec<_> =
                        list.iter().map(|field| (text(field.name()), text(field.value()))).collect();
                    match list.iter().find(|(name, _)| name == ":status") {
                        Some((_, status)) => {
                            got.statuses.push(status.parse().expect("a status is a number"));
                            got.heads.push(list);
                        }
                        None => got.trailers = list,
                    }
                }
                h3::Event::Finished => got.is_whole = true,
                h3::Event::Reset(code) => got.reset = Some(code),
                _ => {}
            }
        }
        for (id, got) in &mut self.streams {
            if self.held.contains(id) {
                continue;
            }
            let mut piece = [0; 65_536];
            while let Ok(count) = h3.recv_body(&mut self.quic, *id, &mut piece) {
                got.body_bytes += count as u64;
                self.body_bytes += count as u64;
                if got.body.len() + count <= KEPT_BODY_BYTES_MAX {
                    got.body.extend_from_slice(&piece[..count]);
                }
            }
        }
    }

    /// Begins a request; its stream.
    ///
    /// # Panics
    /// When it cannot be begun.
    #[track_caller]
    pub fn begin(&mut self, fields: Fields<'_>, is_end: bool) -> u64 {
        let begun = Instant::now();
        loop {
            let h3 = self.h3.as_mut().expect("the handshake is done");
            match h3.send_request(&mut self.quic, fields, is_end) {
                Ok(id) => {
                    self.streams.insert(id, Got::default());
                    self.flush();
                    return id;
                }
                Err(h3::Error::StreamBlocked | h3::Error::TransportError(quiche::Error::StreamLimit))
                    if begun.elapsed() < PATIENCE =>
                {
                    self.turn();
                }
                Err(error) => panic!("a request cannot be begun: {error}"),
            }
        }
    }

    /// Sends bytes on a stream, past HTTP/3, as far as the stream takes any.
    pub fn send_raw(&mut self, id: u64, bytes: &[u8], is_end: bool) {
        self.streams.entry(id).or_default();
        // The peer may have stopped it.
        let _stopped = self.quic.stream_send(id, bytes, is_end);
        self.flush();
    }

    /// Begins a GET; its stream.
    #[track_caller]
    pub fn begin_get(&mut self, path: &str) -> u64 {
        self.begin(&request("GET", path), true)
    }

    /// Sends a part of a body; false when the stream takes none any more.
    #[track_caller]
    pub fn send(&mut self, id: u64, mut body: &[u8], is_end: bool) -> bool {
        let begun = Instant::now();
        loop {
            let h3 = self.h3.as_mut().expect("the handshake is done");
            match h3.send_body(&mut self.quic, id, body, is_end) {
                Ok(count) => {
                    body = &body[count..];
                    if body.is_empty() {
                        self.flush();
                        return true;
                    }
                }
                Err(h3::Error::Done) => assert!(begun.elapsed() < 6 * PATIENCE, "the body is not taken"),
                Err(_) => return false,
            }
            self.turn();
        }
    }

    /// Sends as much of a body as is taken at once.
    pub fn send_some(&mut self, id: u64, body: &[u8]) -> usize {
        let h3 = self.h3.as_mut().expect("the handshake is done");
        let count = h3.send_body(&mut self.quic, id, body, false).unwrap_or(0);
        self.turn();
        count
    }

    /// Sends trailers.
    #[track_caller]
    pub fn send_trailers(&mut self, id: u64, fields: Fields<'_>) {
        let h3 = self.h3.as_mut().expect("the handshake is done");
        h3.send_additional_headers(&mut self.quic, id, fields, true, true).expect("room for trailers");
        self.flush();
    }

    /// Gives a request up, in both directions.
    pub fn cancel(&mut self, id: u64) {
        for direction in [quiche::Shutdown::Write, quiche::Shutdown::Read] {
            // It may be over already.
            let _over = self.quic.stream_shutdown(id, direction, code::REQUEST_CANCELLED);
        }
        self.flush();
    }

    /// Leaves the body of a stream unread, or reads on.
    pub fn hold(&mut self, id: u64, is_held: bool) {
        if is_held {
            self.held.insert(id)
        } else {
            self.held.remove(&id)
        };
    }

    /// Turns until `is_done`. What comes of bodies counts as going on.
    #[track_caller]
    pub fn until(&mut self, what: &str, is_done: impl Fn(&Self) -> bool) {
        let (mut begun, mut body_bytes) = (Instant::now(), self.body_bytes);
        while !is_done(self) {
            if self.body_bytes != body_bytes {
                (begun, body_bytes) = (Instant::now(), self.body_bytes);
            }
            assert!(
                begun.elapsed() < 6 * PATIENCE,
                "{what}: not within a minute; {:?} {:?}",
                self.quic.peer_error(),
                self.quic.local_error()
            );
            self.turn();
        }
    }

    /// What has come on a stream so far.
    pub fn got(&self, id: u64) -> &Got {
        &self.streams[&id]
    }

    /// What came on a stream until its end.
    #[track_caller]
    pub fn outcome(&mut self, id: u64) -> Got {
        self.until("the stream ends", |client| client.is_over(id));
        self.got(id).clone()
    }

    /// Whether nothing more comes on a stream.
    pub fn is_over(&self, id: u64) -> bool {
        let got = self.got(id);
        got.is_whole || got.reset.is_some() || self.quic.is_closed() || self.quic.is_draining()
    }

    /// Takes what came on a stream that is over; nothing is kept of it.
    ///
    /// # Panics
    /// When there is no such stream.
    pub fn take_got(&mut self, id: u64) -> Got {
        self.streams.remove(&id).expect("it was begun")
    }

    /// A GET and its answer.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Got {
        let id = self.begin_get(path);
        self.outcome(id)
    }

    /// A request with a body and its answer.
    #[track_caller]
    pub fn post(&mut self, path: &str, body: &[u8]) -> Got {
        let id = self.begin(&request("POST", path), false);
        self.send(id, body, true);
        self.outcome(id)
    }

    /// Closes the connection.
    ///
    /// # Panics
    /// When it is closed already.
    pub fn leave(&mut self) {
        self.quic.close(true, code::NO_ERROR, b"").expect("it was open");
        self.flush();
    }

    /// The code of the peer's CONNECTION_CLOSE, and whether it is HTTP/3's.
    #[track_caller]
    pub fn close_code(&mut self) -> (bool, u64) {
        self.closes().expect("the peer closes")
    }

    /// The same; `None` when the peer does not close.
    pub fn closes(&mut self) -> Option<(bool, u64)> {
        let begun = Instant::now();
        while self.quic.peer_error().is_none() && !self.quic.is_closed() && begun.elapsed() < PATIENCE {
            self.turn();
        }
        self.quic.peer_error().map(|error| (error.is_app, error.error_code))
    }
}

/// The gateway need not wait for what will not come.
impl Drop for H3 {
    fn drop(&mut self) {
        // It may be closed already.
        let _closed = self.quic.close(true, code::NO_ERROR, b"");
        self.flush();
    }
}

impl std::fmt::Debug for H3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.quic.trace_id())
    }
}

/// Where a client of `address` binds: any address that leads there.
fn own(address: IpAddr) -> IpAddr {
    match address {
        address if address.is_loopback() => address,
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The fields of a request.
pub fn request<'a>(method: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    [(":method", method), (":scheme", "https"), (":authority", "edge.test"), (":path", path)]
}
