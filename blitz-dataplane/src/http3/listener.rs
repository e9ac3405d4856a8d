//! A UDP socket of a listener: each datagram to its connection, first ones to new connections.
//!
//! What belongs to another worker goes there (`relay.rs`). What belongs to nobody is dropped and counted, never
//! answered but in three cases: a version that is not spoken is told those that are (RFC 9000 section 6), a client that
//! has to prove its address is told how (Retry), and whoever still speaks to a connection that this worker had, and has
//! no more, is told so (stateless reset, section 10.3).
//!
//! Owns: the socket's task, the table of connection IDs, who may become a connection. Does not own: a connection's task
//! (`server.rs`), which worker a datagram reaches (the kernel, by `blitz_ebpf_common::steer`).

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use blitz_config::Config;
use blitz_config::model::{CongestionControl, Http3Limits, Retry};
use blitz_ebpf_common::cid::CID_BYTES;

use super::QuicKeys;
use super::allowance::Allowance;
use super::connection::Conn;
use super::early::{self, Early};
use super::error::failure;
use super::keys::{Cids, Owner, Place};
use super::outlet::{LANES, Outlet};
use super::paths::{PATHS_MAX, Paths, WorkerPaths};
use super::qlog::Recorder;
use super::relay::{Addresses, Relay};
use super::retry;
use super::server::{DATAGRAM_BYTES_MAX, Handshaken, Session};
use crate::afxdp::port::Hop;
use crate::exchange::stream::Service;
use crate::exchange::{ErrorKind, ProxyError};
use crate::metrics::names::Metric;
use crate::proxy::Proxy;
use crate::proxy::accept::{self, Open};
use crate::proxy::connections::{Carrier, Listener};
use crate::runtime::{Lull, ReceiveBuffer, Received, Transmit, UdpSocket};
use crate::tls::quic::{self, QuicMaterial};
use crate::tls::{self, TlsMaterial};

/// The least bytes of a datagram that begins a connection (RFC 9000 section 14.1).
const INITIAL_BYTES_MIN: usize = 1200;

/// Bytes of the shortest stateless reset (RFC 9000 section 10.3), and of the longest that is sent.
const RESET_BYTES_MIN: usize = 21;
const RESET_BYTES_MAX: usize = 43;

/// Stateless resets per second (count). Beyond: dropped.
const RESETS_PER_SECOND: u32 = 1000;

/// Bytes of a connection ID in version 1, at most.
const VERSION_1_CID_BYTES_MAX: usize = 20;

/// The least bytes of the connection ID that a client chooses for its first packet (RFC 9000 section 7.2), so that
/// nobody can guess it. Those that Retry gives are longer.
const CHOSEN_CID_BYTES_MIN: usize = 8;

/// A connection ID as the table knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Cid {
    length: u8,
    bytes: [u8; VERSION_1_CID_BYTES_MAX],
}

impl Cid {
    /// `None` beyond 20 bytes.
    pub(super) fn new(cid: &[u8]) -> Option<Self> {
        let mut bytes = [0; VERSION_1_CID_BYTES_MAX];
        bytes.get_mut(..cid.len())?.copy_from_slice(cid);
        Some(Self { length: u8::try_from(cid.len()).ok()?, bytes })
    }
}

/// Connections of one socket by their connection IDs; `None`: of a connection that is there, whose client has retired
/// it. Bounded by the bound on connections.
#[derive(Default)]
pub(super) struct Table(RefCell<HashMap<Cid, Option<Rc<Conn>>>>);

impl Table {
    pub(super) fn insert(&self, cid: Cid, conn: &Rc<Conn>) {
        self.0.borrow_mut().insert(cid, Some(Rc::clone(conn)));
    }

    /// What comes late under `cid` is dropped from now on: a stateless reset would end the connection for those clients
    /// that still heed its token.
    pub(super) fn retire(&self, cid: Cid) {
        self.0.borrow_mut().insert(cid, None);
    }

    pub(super) fn remove(&self, cid: &Cid) {
        self.0.borrow_mut().remove(cid);
    }

    fn find(&self, cid: &Cid) -> Option<Option<Rc<Conn>>> {
        self.0.borrow().get(cid).cloned()
    }

    /// The connection of this number in the registry. Looks at all of them.
    fn numbered(&self, number: u64) -> Option<Rc<Conn>> {
        self.0.borrow().values().flatten().find(|conn| conn.number == number).cloned()
    }

    fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

/// What new connections get.
pub struct Acceptor {
    config: RefCell<quiche::Config>,
    material: Arc<TlsMaterial>,
    limits: Http3Limits,
    /// Early data is taken.
    is_early: bool,
    is_tracing: bool,
}

impl Acceptor {
    /// Puts a listener's certificates to use. `table` names the table of flights.
    ///
    /// # Errors
    /// BoringSSL refuses something; the words are its own.
    pub fn new(
        material: &Arc<TlsMaterial>,
        quic: &Arc<QuicMaterial>,
        tls: &tls::Context,
        config: &Config,
        table: u64,
    ) -> Result<Self, String> {
        let limits = config.http3;
        // Whose certificate has to be looked at again when a session is resumed has to wait for it.
        let is_early = limits.early_data && material.client_verifier().is_none();
        let promises = is_early.then(|| format!("{limits:?} {}", config.http.request_head_bytes_max));
        let builder = quic::context(material, quic, tls, table, promises.as_deref())?;
        let mut config = configure(builder, &limits).map_err(|error| error.to_string())?;
        if is_early {
            config.enable_early_data();
        }
        let (material, is_tracing) = (Arc::clone(material), tls.diagnosis.is_tracing);
        Ok(Self { config: RefCell::new(config), material, limits, is_early, is_tracing })
    }

    /// Whether a client has to prove its address now.
    fn asks(&self, handshakes: u32) -> bool {
        match self.limits.retry {
            Retry::Always => true,
            Retry::Never => false,
            Retry::UnderPressure => handshakes > self.material.handshakes_max / 4,
        }
    }
}

fn configure(
    builder: boring::ssl::SslContextBuilder,
    limits: &Http3Limits,
) -> Result<quiche::Config, quiche::Error> {
    let mut config = quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, builder)?;
    config.set_application_protos(quiche::h3::APPLICATION_PROTOCOL)?;
    config.set_max_idle_timeout(u64::try_from(limits.idle_timeout.as_millis()).unwrap_or(u64::MAX));
    let (stream, connection) =
        (u64::from(limits.stream_window_bytes), u64::from(limits.connection_window_bytes));
    config.set_initial_max_data(connection.min(stream * 2));
    config.set_initial_max_stream_data_bidi_remote(stream);
    // Control and QPACK streams, which carry little.
    config.set_initial_max_stream_data_uni(16 * 1024);
    config.set_initial_max_streams_uni(8);
    config.set_initial_max_streams_bidi(limits.concurrent_streams_max.into());
    config.set_max_connection_window(connection);
    config.set_max_stream_window(stream);
    config.set_active_connection_id_limit(PATHS_MAX);
    // From 1200 bytes, which every path carries, to as many as this one does (RFC 9000 section 14.3).
    let largest = if limits.pmtu_discovery { DATAGRAM_BYTES_MAX } else { INITIAL_BYTES_MIN };
    config.set_max_send_udp_payload_size(largest);
    config.discover_pmtu(limits.pmtu_discovery);
    config.set_cc_algorithm(match limits.congestion_control {
        CongestionControl::Cubic => quiche::CongestionControlAlgorithm::CUBIC,
        CongestionControl::Reno => quiche::CongestionControlAlgorithm::Reno,
        CongestionControl::Bbr2 => quiche::CongestionControlAlgorithm::Bbr2Gcongestion,
    });
    // The timer wheel is coarser than what pacing asks for.
    config.enable_pacing(false);
    Ok(config)
}

/// How a datagram came to this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way<'a> {
    /// Chosen for it by the kernel.
    Steered,
    /// In a frame of its own, chosen for it by the XDP program; the way back.
    Framed(&'a Hop),
    /// Merged with others, which the kernel has steered by the first.
    Merged,
    /// Passed on by another worker.
    Relayed,
}

impl<'a> Way<'a> {
    /// The way back; `None`: by the socket.
    fn hop(self) -> Option<&'a Hop> {
        match self {
            Self::Framed(hop) => Some(hop),
            Self::Steered | Self::Merged | Self::Relayed => None,
        }
    }
}

/// What the listeners of a worker share.
pub struct Shared {
    /// All keys.
    pub keys: QuicKeys,
    /// The worker among the others.
    pub place: Place,
    /// The way to them.
    pub relay: Rc<Relay>,
    /// Paths of all connections.
    pub paths: Rc<WorkerPaths>,
}

/// One UDP socket of a listener, and its connections.
pub struct QuicListener {
    proxy: Rc<Proxy>,
    info: Rc<Listener>,
    outlet: Rc<Outlet>,
    relay: Rc<Relay>,
    paths: Rc<WorkerPaths>,
    table: Rc<Table>,
    cids: Rc<Cids>,
    is_closing: Cell<bool>,
    /// Stateless resets in this second.
    resets: Cell<(u64, u32)>,
}

impl QuicListener {
    /// Takes over a bound socket.
    ///
    /// # Errors
    /// The kernel lacks something, or the worker has too high a number.
    pub fn adopt(
        proxy: &Rc<Proxy>,
        info: &Rc<Listener>,
        fd: OwnedFd,
        shared: &Shared,
    ) -> std::io::Result<Rc<Self>> {
        let cids = Cids::new(shared.keys.clone(), shared.place).ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(Self::over(proxy, info, UdpSocket::adopt(&proxy.handle, fd, LANES)?, cids, shared))
    }

    fn over(
        proxy: &Rc<Proxy>,
        info: &Rc<Listener>,
        socket: UdpSocket,
        cids: Cids,
        shared: &Shared,
    ) -> Rc<Self> {
        let listener = Rc::new(Self {
            proxy: Rc::clone(proxy),
            info: Rc::clone(info),
            outlet: Rc::new(Outlet::new(socket, proxy.rows.clone())),
            relay: Rc::clone(&shared.relay),
            paths: Rc::clone(&shared.paths),
            table: Rc::default(),
            cids: Rc::new(cids),
            is_closing: Cell::new(false),
            resets: Cell::default(),
        });
        shared.relay.add(&listener);
        listener
    }

    /// On the simulated network, at the listener's address.
    #[cfg(test)]
    pub(crate) fn simulated(proxy: &Rc<Proxy>, info: &Rc<Listener>, shared: &Shared) -> Rc<Self> {
        let socket = UdpSocket::simulated(&proxy.handle, info.address, LANES).expect("a free address");
        let cids = Cids::new(shared.keys.clone(), shared.place).expect("a worker");
        Self::over(proxy, info, socket, cids, shared)
    }

    /// Connection IDs in the table, lanes with a send, and connections that wait for one (counts).
    #[cfg(test)]
    pub(crate) fn census(&self) -> (usize, usize, usize) {
        let (busy, waiting) = self.outlet.census();
        (self.table.0.borrow().len(), busy, waiting)
    }

    /// Records what the connection of this number does, from now on; `pipe` comes back when it is none of this
    /// listener's. A recording that was under way ends.
    pub fn record(&self, number: u64, pipe: OwnedFd) -> Option<OwnedFd> {
        let Some(conn) = self.table.numbered(number) else { return Some(pipe) };
        conn.record(Recorder::new(pipe, self.proxy.rows.clone()));
        None
    }

    /// Whether its socket is bound to `address`.
    pub(super) fn is_bound_to(&self, address: SocketAddr) -> bool {
        self.outlet.local_address().is_ok_and(|bound| bound == address)
    }

    /// Whether what is sent to `address` is for it.
    pub(super) fn is_for(&self, address: SocketAddr) -> bool {
        self.outlet.local_address().is_ok_and(|bound| {
            let is_any = bound.ip().is_unspecified() && bound.is_ipv4() == address.is_ipv4();
            bound.port() == address.port() && (is_any || bound.ip() == address.ip())
        })
    }

    /// Takes a datagram that came in a frame, past the socket.
    pub(super) fn take_framed(
        self: &Rc<Self>,
        datagram: &mut [u8],
        from: SocketAddr,
        to: SocketAddr,
        hop: &Hop,
    ) {
        let Ok(bound) = self.outlet.local_address() else { return };
        self.proxy.rows.add(Metric::DownstreamReceivedBytes, datagram.len() as u64);
        let fate = self.datagram(datagram, &Addresses { from, to, bound }, Way::Framed(hop));
        self.proxy.rows.add(fate, 1);
    }

    /// No new connections from now on, and those that are there end after their requests: nobody else can have the
    /// address before. [`Self::serve`] ends with the last one.
    pub fn close(&self) {
        self.is_closing.set(true);
        self.proxy.connections.close_of(&self.info);
    }

    /// Takes what comes, until it was closed and no connection is left.
    pub async fn serve(self: Rc<Self>) {
        let mut buffer = ReceiveBuffer::new();
        let mut ticks = crate::runtime::Deadline::new(&self.proxy.handle);
        let mut lull = Lull::default();
        loop {
            let received = poll_fn(|cx| self.poll(cx, &mut buffer, &mut ticks)).await;
            match received {
                Some(Ok(received)) => self.take(&mut buffer, &received),
                // An ICMP error of somebody's path; QUIC finds out by itself.
                Some(Err(error)) => log::debug!("{}/udp: {error}", self.info.address),
                None => return,
            }
            if self.outlet.has_answers() {
                // What comes may have to be answered too, and a turn of the loop ends sends. One: who floods must not
                // keep this from reading.
                poll_fn(|cx| lull.poll(cx, 1)).await;
            }
        }
    }

    fn poll(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut ReceiveBuffer,
        ticks: &mut crate::runtime::Deadline,
    ) -> Poll<Option<std::io::Result<Received>>> {
        self.outlet.reap(cx);
        if let Poll::Ready(received) = self.outlet.poll_receive(cx, buffer) {
            return Poll::Ready(Some(received));
        }
        if self.is_closing.get() && self.table.is_empty() {
            return Poll::Ready(None);
        }
        // The end of the last connection does not wake this task.
        ticks.set_after(std::time::Duration::from_millis(100));
        if ticks.poll_expired(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn take(self: &Rc<Self>, buffer: &mut ReceiveBuffer, received: &Received) {
        let Some(from) = received.source else { return };
        let Ok(bound) = self.outlet.local_address() else { return };
        let to = SocketAddr::new(received.destination.unwrap_or(bound.ip()), bound.port());
        let (addresses, way) = (
            Addresses { from, to, bound },
            if received.segment.is_some() { Way::Merged } else { Way::Steered },
        );
        self.proxy.rows.add(Metric::DownstreamReceivedBytes, received.len as u64);
        for datagram in buffer.datagrams(received) {
            let fate = self.datagram(datagram, &addresses, way);
            self.proxy.rows.add(fate, 1);
        }
        self.proxy.rows.add(Metric::QuicConnectionIds, self.cids.made());
    }

    /// Gives a datagram to its connection, or to the worker that has it; what became of it.
    pub(super) fn datagram(
        self: &Rc<Self>,
        datagram: &mut [u8],
        addresses: &Addresses,
        way: Way<'_>,
    ) -> Metric {
        let Addresses { from, to, .. } = *addresses;
        let Some(dcid) = destination(datagram) else { return Metric::QuicMalformed };
        let Some(cid) = Cid::new(dcid) else { return self.long_cid(datagram, from, to, way) };
        if let Some(conn) = self.table.find(&cid) {
            let Some(conn) = conn else { return Metric::QuicUnknown };
            conn.hops.note(from, to.ip(), way.hop());
            let info = quiche::RecvInfo { from, to };
            // A panic in here must end this connection only, and not the socket's task.
            let outcome = catch_unwind(AssertUnwindSafe(|| conn.receive(datagram, info)));
            match outcome {
                Ok(Ok(_) | Err(quiche::Error::Done)) => {}
                Ok(Err(error)) => log::debug!("quic: {from}: {error}"),
                Err(_) => {
                    self.proxy.rows.add(Metric::Panics, 1);
                    conn.is_broken.set(true);
                }
            }
            if conn.early.get() == Early::Unknown && !conn.is_broken.get() {
                conn.early.set(self.judge(&mut conn.state.borrow_mut().quic));
            }
            conn.wake();
            return Metric::QuicDelivered;
        }
        let is_long = datagram.first().is_some_and(|first| first & LONG != 0);
        let owner = match self.cids.owner(dcid) {
            // It stood behind another, so that the kernel has not chosen for it.
            Owner::Nobody if is_long && way == Way::Merged => self.cids.chosen(datagram),
            owner => owner,
        };
        match owner {
            Owner::Beside(worker) => self.pass_on(worker, datagram, addresses, way),
            Owner::Elsewhere => Metric::QuicStranger,
            Owner::Own | Owner::Nobody if is_long => self.begin(datagram, from, to, way),
            Owner::Own => self.reset(&cid, datagram.len(), from, to, way),
            Owner::Nobody => Metric::QuicUnknown,
        }
    }

    /// A datagram of another worker's connection goes there, once.
    fn pass_on(&self, worker: u32, datagram: &[u8], addresses: &Addresses, way: Way<'_>) -> Metric {
        match way {
            Way::Steered | Way::Framed(_) | Way::Merged => self.relay.pass_on(worker, addresses, datagram),
            Way::Relayed => Metric::QuicStranger,
        }
    }

    /// A version in which connection IDs may be longer is told which one is spoken.
    fn long_cid(&self, datagram: &mut [u8], from: SocketAddr, to: SocketAddr, way: Way<'_>) -> Metric {
        match quiche::Header::from_slice(datagram, CID_BYTES) {
            Ok(header) if !quiche::version_is_supported(header.version) => {
                self.negotiate(&header, datagram.len(), from, to, way)
            }
            _ => Metric::QuicMalformed,
        }
    }

    /// A datagram with a long header of no connection that is known.
    fn begin(self: &Rc<Self>, datagram: &mut [u8], from: SocketAddr, to: SocketAddr, way: Way<'_>) -> Metric {
        let Ok(header) = quiche::Header::from_slice(datagram, CID_BYTES) else {
            return Metric::QuicMalformed;
        };
        if header.ty == quiche::Type::VersionNegotiation {
            return Metric::QuicMalformed;
        }
        if !quiche::version_is_supported(header.version) {
            return self.negotiate(&header, datagram.len(), from, to, way);
        }
        if header.ty != quiche::Type::Initial || datagram.len() < INITIAL_BYTES_MIN {
            return Metric::QuicUnknown;
        }
        if !may_be_chosen(&header.dcid) {
            return Metric::QuicMalformed;
        }
        let Some(acceptor) = self.info.quic().filter(|_| !self.is_closing.get() && !self.proxy.is_draining())
        else {
            return Metric::QuicRefused;
        };
        let (handshakes, now) = (self.info.handshakes(), self.proxy.handle.unix_seconds());
        let key = self.cids.keys.retry();
        let token = header.token.as_deref().unwrap_or_default();
        let original = retry::check(key, now, from, &header.dcid, token);
        if original.is_none() && acceptor.asks(handshakes) {
            return self.ask(&header, now, from, to, way);
        }
        let original = original.map(|original| quiche::ConnectionId::from_ref(original).into_owned());
        self.accept(datagram, &header, original, &acceptor, (from, to), way)
    }

    fn accept(
        self: &Rc<Self>,
        datagram: &mut [u8],
        header: &quiche::Header<'_>,
        original: Option<quiche::ConnectionId<'static>>,
        acceptor: &Rc<Acceptor>,
        (from, to): (SocketAddr, SocketAddr),
        way: Way<'_>,
    ) -> Metric {
        let proxy = &self.proxy;
        let Some(permit) = self.info.begin_handshake(acceptor.material.handshakes_max) else {
            proxy.note(&ProxyError::new(ErrorKind::Overload).with_detail("handshakes_max"));
            proxy.rows.add(Metric::TlsFailedLimit, 1);
            return Metric::QuicRefused;
        };
        let (Some(drawn), Some(chosen)) = (self.cids.draw(), Cid::new(&header.dcid)) else {
            return Metric::QuicRefused;
        };
        let Some(own) = Cid::new(&drawn) else { return Metric::QuicRefused };
        let scid = quiche::ConnectionId::from_ref(&drawn);
        let mut config = acceptor.config.borrow_mut();
        config.set_stateless_reset_token(Some(u128::from_be_bytes(self.cids.keys.reset_token(&drawn))));
        let accepted = match &original {
            None => quiche::accept(&scid, None, to, from, &mut config),
            Some(original) => {
                let cids = quiche::RetryConnectionIds {
                    original_destination_cid: original,
                    retry_source_cid: &header.dcid,
                };
                quiche::accept_with_retry(&scid, cids, to, from, &mut config)
            }
        };
        drop(config);
        let mut quic = match accepted {
            Ok(quic) => quic,
            Err(error) => {
                log::debug!("quic: {from}: {error}");
                return Metric::QuicRefused;
            }
        };
        // Nothing is kept for what only looks like the begin of a connection: a packet that quiche cannot open is
        // none of a client of version 1.
        let info = quiche::RecvInfo { from, to };
        let length = datagram.len();
        let received = catch_unwind(AssertUnwindSafe(|| quic.recv(datagram, info)));
        if !matches!(received, Ok(Ok(_))) {
            return Metric::QuicMalformed;
        }
        let Some(open) = accept::admit_quic(proxy, &self.info, from, to) else { return Metric::QuicRefused };
        let early = if acceptor.is_early { self.judge(&mut quic) } else { Early::Waits };
        let allowance = original.is_none().then(|| Allowance::new(from, length));
        let conn = Rc::new(Conn::new(open.connection().id(), quic, allowance, early));
        conn.hops.note(from, to.ip(), way.hop());
        // Until the client has heard of ours it goes on to use the one that it chose.
        self.table.insert(chosen, &conn);
        self.table.insert(own, &conn);
        let session = Session {
            service: Rc::clone(proxy),
            conn,
            connection: Rc::clone(open.connection()),
            handle: proxy.handle.clone(),
            outlet: Rc::clone(&self.outlet),
            table: Rc::clone(&self.table),
            cids: Rc::clone(&self.cids),
            limits: acceptor.limits,
            handshake: proxy.live().snapshot.config.timeouts.tls_handshake,
            known_as: vec![chosen, own],
            retired: VecDeque::new(),
            paths: Paths::new(&self.paths),
            rows: proxy.rows.clone(),
        };
        session.connection.set_carrier(Carrier::Tls);
        session.connection.begin_exchange();
        let handshaken = self.handshaken(permit, from, acceptor);
        proxy.handle.spawn(run(open, session, handshaken));
        Metric::QuicNew
    }

    fn judge(&self, quic: &mut quiche::Connection) -> Early {
        early::judge(quic, &self.proxy.rows, self.proxy.handle.unix_seconds())
    }

    /// Counts a handshake as under way until it is known how it ended.
    fn handshaken(
        &self,
        permit: crate::proxy::connections::HandshakePermit,
        client: SocketAddr,
        acceptor: &Acceptor,
    ) -> Handshaken {
        let (material, is_tracing) = (Arc::clone(&acceptor.material), acceptor.is_tracing);
        let rows = self.proxy.rows.clone();
        rows.gauge_add(Metric::TlsHandshakesActive, 1);
        let under_way = HandshakeUnderWay { rows, _permit: permit };
        Box::new(move |quic| {
            let rows = &under_way.rows;
            if !quic.is_established() {
                let (metric, label) = failure(quic);
                rows.add(metric, 1);
                log::debug!("tls: {client} protocol=h3 failed: {label}");
                return false;
            }
            if !quic::still_admits(&material, quic) {
                rows.add(Metric::TlsFailedClientCertificate, 1);
                log::debug!("tls: {client} quic failed=client_certificate_of_session");
                return false;
            }
            let is_resumed = quic.is_resumed();
            rows.add(if is_resumed { Metric::Tls13Resumed } else { Metric::Tls13Full }, 1);
            rows.add(Metric::H3Connections, 1);
            let level = if is_tracing { log::Level::Info } else { log::Level::Debug };
            let (name, resumed) = (quic.server_name().unwrap_or("-"), if is_resumed { "yes" } else { "no" });
            log::log!(level, "tls: {client} sni={name} protocol=h3 resumed={resumed}");
            true
        })
    }

    fn negotiate(
        &self,
        header: &quiche::Header<'_>,
        length: usize,
        from: SocketAddr,
        to: SocketAddr,
        way: Way<'_>,
    ) -> Metric {
        // Not for what is too short to begin a connection: the answer would be larger than the question.
        if length >= INITIAL_BYTES_MIN {
            self.answer(from, to, way, |out| quiche::negotiate_version(&header.scid, &header.dcid, out).ok());
        }
        Metric::QuicVersion
    }

    /// Asks for proof of the client's address (RFC 9000 section 8.1.2).
    fn ask(
        &self,
        header: &quiche::Header<'_>,
        now: u64,
        from: SocketAddr,
        to: SocketAddr,
        way: Way<'_>,
    ) -> Metric {
        // None of ours: a flood of them must not use up what one key may make.
        let Some(drawn) = self.cids.draw_foreign() else { return Metric::QuicRefused };
        let token = retry::make(self.cids.keys.retry(), now, from, &drawn, &header.dcid);
        let scid = quiche::ConnectionId::from_ref(&drawn);
        let is_told = self.answer(from, to, way, |out| {
            quiche::retry(&header.scid, &header.dcid, &scid, &token, header.version, out).ok()
        });
        if is_told { Metric::QuicRetry } else { Metric::QuicRefused }
    }

    /// Tells whoever speaks to a connection that is not there any more (RFC 9000 section 10.3). Shorter than what it
    /// answers, so that two such ends cannot go on for ever.
    fn reset(&self, cid: &Cid, length: usize, from: SocketAddr, to: SocketAddr, way: Way<'_>) -> Metric {
        let second = self.proxy.handle.now_ms() / 1000;
        let (then, count) = self.resets.get();
        let count = if then == second { count } else { 0 };
        let length = (length.saturating_sub(1)).min(RESET_BYTES_MAX);
        if length < RESET_BYTES_MIN || count >= RESETS_PER_SECOND {
            return Metric::QuicUnknown;
        }
        self.resets.set((second, count + 1));
        let token = self.cids.keys.reset_token(cid.bytes.get(..usize::from(cid.length)).unwrap_or_default());
        let is_told = self.answer(from, to, way, |out| {
            let (random, tail) = out.get_mut(..length)?.split_at_mut(length - token.len());
            for bytes in random.chunks_mut(8) {
                let drawn = self.cids.random()?;
                bytes.copy_from_slice(drawn.get(..bytes.len())?);
            }
            // A short header with its fixed bit.
            *random.first_mut()? = random.first()? & 0x3f | 0x40;
            tail.copy_from_slice(&token);
            Some(length)
        });
        if is_told { Metric::QuicReset } else { Metric::QuicUnknown }
    }

    /// Sends one datagram that no connection stands behind, unless too many wait. Whether it will be sent.
    fn answer(
        &self,
        to: SocketAddr,
        from: SocketAddr,
        way: Way<'_>,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> bool {
        let from = Some(from.ip()).filter(|ip| !ip.is_unspecified());
        self.outlet.answer(Transmit { to, from, segment: None }, way.hop(), write)
    }
}

/// Taken out of the counts when it is over, however it ended.
struct HandshakeUnderWay {
    rows: crate::segment::WorkerRows,
    _permit: crate::proxy::connections::HandshakePermit,
}

impl Drop for HandshakeUnderWay {
    fn drop(&mut self) {
        self.rows.gauge_sub(Metric::TlsHandshakesActive, 1);
    }
}

async fn run(open: Open, session: Session<Proxy>, handshaken: Handshaken) {
    let ended = session.run(handshaken).await;
    open.end(ended);
}

/// The first bit of a long header (RFC 8999 section 5.1).
const LONG: u8 = 0x80;

/// The destination connection ID of a datagram's first packet, as all versions have it (RFC 8999).
fn destination(datagram: &[u8]) -> Option<&[u8]> {
    let (first, rest) = datagram.split_first()?;
    if first & LONG == 0 {
        return rest.get(..CID_BYTES);
    }
    let (length, rest) = rest.get(4..)?.split_first()?;
    rest.get(..usize::from(*length))
}

/// Whether a client may begin a connection with this connection ID.
fn may_be_chosen(cid: &[u8]) -> bool {
    (CHOSEN_CID_BYTES_MIN..=VERSION_1_CID_BYTES_MAX).contains(&cid.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_begins_with_a_connection_id_of_eight_to_twenty_bytes() {
        let lengths: Vec<_> = (0..=30).filter(|&length| may_be_chosen(&vec![7; length])).collect();
        assert_eq!(lengths, (8..=20).collect::<Vec<_>>());
    }

    #[test]
    fn the_destination_is_found_in_every_version() {
        let mut short = vec![0x40];
        short.extend(0..20_u8);
        assert_eq!(destination(&short), Some(&short[1..17]));
        assert_eq!(destination(&short[..16]), None);
        let long = [0xc0, 0xfa, 0xfa, 0xfa, 0xfa, 3, 7, 8, 9, 0];
        assert_eq!(destination(&long), Some(&[7, 8, 9][..]));
        for at in 0..8 {
            assert_eq!(destination(&long[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn connection_ids_of_other_lengths_are_other_ids() {
        assert_ne!(Cid::new(&[0; 8]), Cid::new(&[0; 9]));
        assert_eq!(Cid::new(&[0; 21]), None);
    }
}
