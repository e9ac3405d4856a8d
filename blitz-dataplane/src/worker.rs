//! The loop of a worker: the runtime, the proxy on it, and the orders from outside.
//!
//! Owns: what a worker does from boot to end. Does not own: how workers are started
//! (`process::supervisor`), or what happens to a connection (`proxy`).
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use blitz_config::Config;
use blitz_config::model::Protocol;

use crate::afxdp::{Queues, Take};
use crate::exchange::ErrorKind;
use crate::fields::Fields;
use crate::heap::Heap;
use crate::http3::listener::{Acceptor as QuicAcceptor, QuicListener, Shared};
use crate::http3::relay::Relay;
use crate::http3::{Place, QuicKeys};
use crate::metrics::names::Metric;
use crate::process::endpoints::ResolvedEndpoints;
use crate::process::messages::ListenerAddress;
use crate::process::{
    BankPlace, Boot, BoundListener, ConnectionRow, IoMode, Order, Orders, SocketKind, WorkerCode, WorkerError,
};
use crate::proxy::Proxy;
use crate::proxy::accept;
use crate::proxy::connections::{Listener, Protocols};
use crate::proxy::snapshot::Snapshot;
use crate::runtime::{self, Handle, Runtime, Sizes, Stats, TcpListener};
use crate::segment::{WorkerRows, WorkerState};
use crate::tls::key_log::KeyLogFile;
use crate::tls::tickets::TicketRoot;
use crate::tls::{self, Acceptor, Diagnosis, Files, KeyLog, TlsMaterial};

/// How often counters are published, idle pools swept and the sign of life given.
const TICK: Duration = Duration::from_millis(250);

/// How often a draining worker looks whether it is done.
const DRAIN_TICK: Duration = Duration::from_millis(10);

/// How long connections that were queued before are still taken from a listener that is to close.
const DRAIN_ACCEPT: Duration = Duration::from_millis(20);

/// The data plane, as the process model starts it.
pub struct DataPlane;

impl WorkerCode for DataPlane {
    type Snapshot = Snapshot;

    const ERROR_LABELS: &'static [&'static str] = &{
        let mut labels = [""; ErrorKind::ALL.len()];
        let mut at = 0;
        while at < labels.len() {
            labels[at] = ErrorKind::ALL[at].label();
            at += 1;
        }
        labels
    };

    fn compile(
        config: &Config,
        files: &Files,
        endpoints: &ResolvedEndpoints,
        generation: u64,
    ) -> Result<Snapshot, String> {
        Snapshot::compile(config, files, endpoints, generation)
    }

    fn run(boot: Boot<Snapshot>, orders: Orders<Snapshot>) -> Result<(), WorkerError> {
        let mode = match boot.io {
            IoMode::Auto => runtime::IoMode::Auto,
            IoMode::Uring => runtime::IoMode::Uring,
            IoMode::Epoll => runtime::IoMode::Epoll,
        };
        let mut runtime = Runtime::new(mode, Sizes::RECOMMENDED)
            .map_err(|error| WorkerError(format!("the runtime cannot start: {error}")))?;
        if boot.worker == 0 && boot.incarnation == 1 {
            match runtime.fallback_reason() {
                Some(reason) => log::warn!("io: {} ({reason})", runtime.io_name()),
                None => log::info!("io: {}", runtime.io_name()),
            }
        }
        let handle = runtime.handle().clone();
        runtime.block_on(work(handle, boot, orders))
    }
}

async fn work(handle: Handle, boot: Boot<Snapshot>, orders: Orders<Snapshot>) -> Result<(), WorkerError> {
    let generation = boot.generation;
    let diagnosis = Diagnosis {
        is_tracing: boot.tls.trace,
        key_log: boot.tls.key_log.as_deref().map(key_log).transpose()?,
    };
    let tls = tls::Context { tickets: TicketRoot::new(&boot.secret), diagnosis: diagnosis.clone() };
    let quic = Shared {
        keys: QuicKeys::new(&boot.secret, boot.cid_epoch_seconds),
        place: Place { worker: boot.worker, workers: boot.workers },
        relay: Relay::adopt(boot.relays),
        paths: Rc::default(),
    };
    drop(boot.secret);
    let proxy = Proxy::new(handle.clone(), boot.rows, *boot.snapshot, boot.trace, boot.reports, diagnosis);
    handle.spawn(Rc::clone(&quic.relay).serve(handle.clone(), proxy.rows.clone()));
    let mut listeners = Listeners { proxy: Rc::clone(&proxy), tls, quic, open: Vec::new() };
    for listener in boot.listeners {
        listeners.open(listener)?;
    }
    let queues = Queues::new(&handle, &proxy.rows, boot.worker, boot.workers, boot.ctl_socket);
    let take = framed(&listeners.quic.relay, &proxy.rows);
    queues.follow(&proxy.live().snapshot.config, &take);
    orders.applied(generation);
    log::debug!("serving: worker {} of {}", boot.worker, boot.workers);

    let mut published = Stats::default();
    let mut heap = Heap::default();
    let mut mail = handle.readiness(orders.as_fd().as_raw_fd());
    loop {
        let Some(arrived) = first(mail.ready(), handle.sleep(TICK)).await else {
            tick(&proxy, &mut published);
            heap.tick(&handle);
            continue;
        };
        arrived.map_err(|error| WorkerError(format!("the mailbox cannot be watched: {error}")))?;
        for order in orders.take() {
            match order {
                Order::Snapshot { generation, snapshot } => {
                    proxy.swap(*snapshot);
                    listeners.follow_configuration();
                    queues.follow(&proxy.live().snapshot.config, &take);
                    orders.applied(generation);
                }
                Order::Listeners { added, removed } => {
                    removed.iter().for_each(|place| listeners.close(*place));
                    for listener in added {
                        listeners.open(listener)?;
                    }
                }
                Order::ListConnections(reply) => {
                    let rows = proxy.connections.rows(reply.rows_max(), handle.now_ms());
                    reply.send(rows.into_iter().map(connection_row).collect());
                }
                Order::Record { connection, pipe } => listeners.record(connection, pipe),
                Order::Stop => return Ok(()),
                Order::Drain { deadline } => {
                    drain(&proxy, &mut listeners, &orders, deadline, &mut published).await;
                    return Ok(());
                }
            }
        }
    }
}

/// Gives what comes by AF_XDP to its listener.
fn framed(relay: &Rc<Relay>, rows: &WorkerRows) -> Take {
    let (relay, rows) = (Rc::clone(relay), rows.clone());
    Rc::new(move |datagram, from, to, hop| {
        if !relay.take_framed(datagram, from, to, hop) {
            rows.add(Metric::AfxdpDropNoListener, 1);
        }
    })
}

/// The result of `a`, or nothing when `b` is done first.
async fn first<T>(a: impl Future<Output = T>, b: impl Future<Output = ()>) -> Option<T> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| match a.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => b.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// Stops accepting, ends connections after their exchange, and returns when none is left or the time is up.
async fn drain(
    proxy: &Rc<Proxy>,
    listeners: &mut Listeners,
    orders: &Orders<Snapshot>,
    deadline: Instant,
    published: &mut Stats,
) {
    proxy.rows.status().set_state(WorkerState::Draining);
    // New connections are told to close after their first answer.
    proxy.drain();
    proxy.handle.sleep(DRAIN_ACCEPT).await;
    listeners.close_all();
    while !proxy.connections.is_empty() {
        if Instant::now() >= deadline {
            log::warn!("drain: {} connections were cut at the deadline", proxy.connections.len());
            proxy.rows.add(Metric::DeadlineDrain, proxy.connections.len() as u64);
            break;
        }
        proxy.handle.sleep(DRAIN_TICK).await;
        tick(proxy, published);
        if orders.take().iter().any(|order| matches!(order, Order::Stop)) {
            break;
        }
    }
    tick(proxy, published);
}

/// Publishes what the runtime has counted, sweeps the pools, gives the sign of life.
fn tick(proxy: &Proxy, published: &mut Stats) {
    let rows = &proxy.rows;
    let stats = proxy.handle.stats();
    let since = |now: u64, before: u64| now.saturating_sub(before);
    rows.add(Metric::BufferPoolExhausted, since(stats.pool_exhausted, published.pool_exhausted));
    rows.add(
        Metric::CompletionQueueOverflows,
        since(stats.completion_overflows, published.completion_overflows),
    );
    let accepts = (stats.accept_errors, published.accept_errors);
    rows.add(Metric::AcceptErrorDescriptors, since(accepts.0.descriptors, accepts.1.descriptors));
    rows.add(Metric::AcceptErrorMemory, since(accepts.0.memory, accepts.1.memory));
    rows.add(Metric::AcceptErrorOther, since(accepts.0.other, accepts.1.other));
    rows.add(
        Metric::DownstreamReceivedBytes,
        since(stats.accepted_received_bytes, published.accepted_received_bytes),
    );
    rows.add(Metric::DownstreamSentBytes, since(stats.accepted_sent_bytes, published.accepted_sent_bytes));
    rows.add(Metric::Panics, since(stats.panics, published.panics));
    *published = stats;
    proxy.sweep();
    let status = rows.status();
    let connections = u32::try_from(proxy.connections.len()).unwrap_or(u32::MAX);
    status.connections.store(connections, Ordering::Relaxed);
    status.heartbeat_ms.store(proxy.handle.now_ms(), Ordering::Relaxed);
}

fn connection_row(row: crate::proxy::connections::Row) -> ConnectionRow {
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    let (peer, local) = row.addresses.unwrap_or((unknown, unknown));
    ConnectionRow {
        id: row.id,
        peer,
        local,
        state: row.state.to_owned(),
        requests: u64::from(row.requests),
        age_ms: row.age_ms,
    }
}

fn key_log(path: &Path) -> Result<Arc<dyn KeyLog>, WorkerError> {
    match KeyLogFile::open(path) {
        Ok(file) => Ok(Arc::new(file)),
        Err(error) => Err(WorkerError(format!("--tls-key-log: cannot write {}: {error}", path.display()))),
    }
}

/// The listening sockets of the worker.
struct Listeners {
    proxy: Rc<Proxy>,
    tls: tls::Context,
    quic: Shared,
    open: Vec<OpenListener>,
}

/// A listening socket that is in use.
struct OpenListener {
    address: ListenerAddress,
    info: Rc<Listener>,
    socket: Socket,
}

enum Socket {
    Stream(Rc<Stop>),
    Datagram(Rc<QuicListener>),
}

impl OpenListener {
    /// Takes no new connections.
    fn close(&self) {
        match &self.socket {
            Socket::Stream(stop) => stop.ask(),
            Socket::Datagram(listener) => listener.close(),
        }
    }
}

impl Listeners {
    fn open(&mut self, listener: BoundListener) -> Result<(), WorkerError> {
        let BoundListener { address, fd } = listener;
        let failed = |error| WorkerError(format!("the listener {address} cannot be used: {error}"));
        let handle = &self.proxy.handle;
        let info = Rc::new(Listener::new(address.configured, false));
        let socket = match address.kind {
            SocketKind::Stream => {
                let socket = TcpListener::adopt(handle, fd).map_err(failed)?;
                let stop = Rc::new(Stop::default());
                let accepting = accept::accept(Rc::clone(&self.proxy), socket, Rc::clone(&info));
                let stopped = Rc::clone(&stop);
                handle.spawn(async move {
                    let _stopped = first(accepting, stopped.asked()).await;
                });
                Socket::Stream(stop)
            }
            SocketKind::Datagram => {
                let listener = QuicListener::adopt(&self.proxy, &info, fd, &self.quic).map_err(failed)?;
                handle.spawn(Rc::clone(&listener).serve());
                Socket::Datagram(listener)
            }
        };
        self.open.push(OpenListener { address, info, socket });
        self.follow_configuration();
        Ok(())
    }

    fn follow_configuration(&self) {
        let live = self.proxy.live();
        for OpenListener { address, info, .. } in &self.open {
            let snapshot = &live.snapshot;
            let configured = snapshot.config.listeners.iter().zip(&snapshot.tls);
            let mut configured = configured.filter(|(listener, _)| listener.address == info.address);
            let Some((configured, material)) = configured.next() else { continue };
            info.builtins.set(configured.builtin_answers);
            info.set_proxy_protocol(configured.proxy_protocol_from.as_deref());
            let speaks = |protocol| configured.speaks(protocol);
            info.protocols.set(Protocols { h1: speaks(Protocol::H1), h2: speaks(Protocol::H2) });
            if address.kind == SocketKind::Datagram {
                self.follow_quic(info, material.as_ref());
                continue;
            }
            info.set_alternatives(speaks(Protocol::H3).then(|| alternatives(address.bound.port())));
            match material.as_ref().map(|material| Acceptor::new(material, &self.tls)).transpose() {
                Ok(acceptor) => info.set_tls(acceptor),
                // The supervisor has tried the same; what was in use stays.
                Err(error) => log::error!("{}: TLS cannot be changed: {error}", info.address),
            }
        }
    }

    /// What new QUIC connections get. Those that are there keep what they have.
    fn follow_quic(&self, info: &Listener, material: Option<&Arc<TlsMaterial>>) {
        let live = self.proxy.live();
        let table = self.proxy.rows.segment().seen().map_or(0, |seen| seen.name());
        let acceptor = material.and_then(|material| {
            let quic = material.quic.as_ref()?;
            Some(QuicAcceptor::new(material, quic, &self.tls, &live.snapshot.config, table))
        });
        match acceptor.transpose() {
            Ok(acceptor) => info.set_quic(acceptor),
            // The supervisor has tried the same; what was in use stays.
            Err(error) => log::error!("{}: QUIC cannot be changed: {error}", info.address),
        }
    }

    /// Records what a connection over QUIC does; with none of that number the pipe is closed.
    fn record(&self, connection: u64, pipe: OwnedFd) {
        let quic = self.open.iter().filter_map(|open| match &open.socket {
            Socket::Datagram(listener) => Some(listener),
            Socket::Stream(_) => None,
        });
        let mut pipe = Some(pipe);
        for listener in quic {
            pipe = pipe.and_then(|pipe| listener.record(connection, pipe));
        }
    }

    /// Closes a listener once what was queued on it has been accepted.
    fn close(&mut self, place: BankPlace) {
        for listener in self.open.extract_if(.., |open| open.address.place() == place) {
            let handle = self.proxy.handle.clone();
            self.proxy.handle.spawn(async move {
                handle.sleep(DRAIN_ACCEPT).await;
                listener.close();
            });
        }
    }

    fn close_all(&mut self) {
        self.open.drain(..).for_each(|listener| listener.close());
    }
}

/// How long clients may remember that HTTP/3 is spoken (seconds): a day.
const ALTERNATIVES_SECONDS: u32 = 86_400;

/// Says that HTTP/3 is spoken on this UDP port (RFC 7838 section 3).
fn alternatives(port: u16) -> Fields {
    let mut fields = Fields::new();
    let value = format!("h3=\":{port}\"; ma={ALTERNATIVES_SECONDS}");
    let pushed = fields.push(b"Alt-Svc", value.as_bytes());
    debug_assert!(pushed.is_ok(), "a short line of letters fits");
    fields
}

/// Ends the task of a listener.
#[derive(Default)]
struct Stop {
    asked: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Stop {
    fn ask(&self) {
        self.asked.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    async fn asked(&self) {
        poll_fn(|cx| {
            if self.asked.get() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
