//! The registry of a worker's downstream connections.
//!
//! Owns: who is connected, since when, and the wish that a connection should end. Does not own: the
//! connections themselves (each is a task; see `http1/server.rs`).

use std::cell::{Cell, OnceCell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use blitz_config::model::Cidr;

use crate::exchange::{Forwarding, Scheme};
use crate::fields::Fields;
use crate::http3;
use crate::runtime::Handle;
use crate::tls::Acceptor;

/// How a downstream connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The client closed it between two requests.
    ByClient,
    /// The last answer said so.
    AfterAnswer,
    /// No request came in time.
    Idle,
    /// A deadline of an exchange passed.
    Deadline,
    /// Broken framing, a broken connection, a cut answer.
    Error,
    /// Room was needed for another.
    Overload,
    /// The worker is draining.
    Drain,
}

/// Idle connections that are looked at when one has to go (count). The longest idle of them goes:
/// near the oldest of all, at a cost that does not grow with their number.
const SAMPLE: usize = 64;

/// What a connection's [`Forwarding`] depends on: the generation of the configuration (who is trusted)
/// and the received protocol version (for `Via`).
pub type ForwardingKey = (u64, &'static str);

/// What connections know of the listener that accepted them.
pub struct Listener {
    /// Its address as configured.
    pub address: SocketAddr,
    /// Whether it gives the built-in answers; follows the configuration.
    pub builtins: Cell<bool>,
    /// What is spoken here in clear, and offered by ALPN; follows the configuration.
    pub protocols: Cell<Protocols>,
    /// Who sends PROXY protocol headers, and nobody else may connect; follows the configuration.
    proxy_protocol: RefCell<Option<Rc<[Cidr]>>>,
    tls: RefCell<Option<Rc<Acceptor>>>,
    quic: RefCell<Option<Rc<http3::listener::Acceptor>>>,
    /// What answers over TLS say of other ways to reach the same (RFC 7838).
    alternatives: RefCell<Option<Rc<Fields>>>,
    /// Handshakes under way.
    handshakes: Cell<u32>,
}

impl Listener {
    /// A listener without TLS.
    pub fn new(address: SocketAddr, builtins: bool) -> Self {
        Self {
            address,
            builtins: Cell::new(builtins),
            protocols: Cell::new(Protocols::H1),
            proxy_protocol: RefCell::new(None),
            tls: RefCell::new(None),
            quic: RefCell::new(None),
            alternatives: RefCell::new(None),
            handshakes: Cell::new(0),
        }
    }

    /// Whose PROXY protocol headers connections from now on begin with; `None`: there is no header.
    pub fn set_proxy_protocol(&self, from: Option<&[Cidr]>) {
        *self.proxy_protocol.borrow_mut() = from.map(Rc::from);
    }

    /// Whether a new connection begins with a PROXY protocol header, and if so, whether `peer` may send one.
    pub fn proxy_protocol(&self, peer: Option<IpAddr>) -> Relay {
        match &*self.proxy_protocol.borrow() {
            None => Relay::None,
            Some(from) if peer.is_some_and(|peer| from.iter().any(|prefix| prefix.contains(peer))) => {
                Relay::Trusted
            }
            Some(_) => Relay::Untrusted,
        }
    }

    /// The TLS for connections from now on; `None`: they speak in clear.
    pub fn set_tls(&self, tls: Option<Acceptor>) {
        *self.tls.borrow_mut() = tls.map(Rc::new);
    }

    /// The TLS in use.
    pub fn tls(&self) -> Option<Rc<Acceptor>> {
        self.tls.borrow().clone()
    }

    /// What QUIC connections from now on get; `None`: there are no new ones.
    pub fn set_quic(&self, quic: Option<http3::listener::Acceptor>) {
        *self.quic.borrow_mut() = quic.map(Rc::new);
    }

    /// What new QUIC connections get.
    pub fn quic(&self) -> Option<Rc<http3::listener::Acceptor>> {
        self.quic.borrow().clone()
    }

    /// The fields that answers over TLS have in addition.
    pub fn set_alternatives(&self, fields: Option<Fields>) {
        *self.alternatives.borrow_mut() = fields.map(Rc::new);
    }

    /// Handshakes under way (count).
    pub fn handshakes(&self) -> u32 {
        self.handshakes.get()
    }

    /// Counts a handshake as under way until the permit is dropped; `None` when there are as many as may be.
    pub fn begin_handshake(self: &Rc<Self>, most: u32) -> Option<HandshakePermit> {
        let under_way = self.handshakes.get();
        (under_way < most).then(|| {
            self.handshakes.set(under_way + 1);
            HandshakePermit(Rc::clone(self))
        })
    }
}

/// What stands between us and the client of a new connection, by the listener's rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relay {
    /// Nothing: the peer is the client.
    None,
    /// The peer names the client in a PROXY protocol header.
    Trusted,
    /// A header would be needed, and this peer's is not believed.
    Untrusted,
}

/// A handshake under way.
pub struct HandshakePermit(Rc<Listener>);

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        self.0.handshakes.set(self.0.handshakes.get().saturating_sub(1));
    }
}

/// What carries a connection's bytes, and what follows from it for requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// TCP in clear.
    #[default]
    Plain,
    /// TLS.
    Tls,
    /// TCP in clear where TLS is spoken: every request is refused.
    PlainRefused,
    /// TCP in clear where TLS is spoken: every request is sent there.
    PlainRedirected,
}

/// The protocols of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    /// HTTP/1.
    pub h1: bool,
    /// HTTP/2 with prior knowledge.
    pub h2: bool,
}

impl Protocols {
    /// HTTP/1 alone, as a configuration that says nothing has it.
    pub const H1: Self = Self { h1: true, h2: false };
}

/// One downstream connection. Small: an idle connection consists of this, its task and its socket.
pub struct Connection {
    id: u64,
    /// Where it stands in the registry.
    place: Cell<usize>,
    opened_ms: u64,
    listener: Rc<Listener>,
    /// When it became idle; `u64::MAX` during an exchange.
    idle_since_ms: Cell<u64>,
    requests: Cell<u32>,
    /// Exchanges under way.
    active: Cell<u32>,
    asked: Cell<Option<Ended>>,
    waker: RefCell<Option<Waker>>,
    addresses: Cell<Option<(SocketAddr, SocketAddr)>>,
    /// The client, when the peer has named one. In a box of its own: most connections have none.
    named: OnceCell<Box<SocketAddr>>,
    /// The peer speaks for others.
    is_relayed: Cell<bool>,
    carrier: Cell<Carrier>,
    forwarding: RefCell<Option<(ForwardingKey, Box<Forwarding>)>>,
}

impl Connection {
    /// Its number among those of the worker.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What carries its bytes.
    pub fn carrier(&self) -> Carrier {
        self.carrier.get()
    }

    /// Notes what carries its bytes, once that is known.
    pub fn set_carrier(&self, carrier: Carrier) {
        self.carrier.set(carrier);
    }

    /// The scheme of requests on it.
    pub fn scheme(&self) -> Scheme {
        if self.carrier.get() == Carrier::Tls { Scheme::Https } else { Scheme::Http }
    }

    /// The listener that accepted it.
    pub fn listener(&self) -> &Rc<Listener> {
        &self.listener
    }

    /// Notes that a request has begun.
    pub fn begin_exchange(&self) {
        self.active.set(self.active.get() + 1);
        self.idle_since_ms.set(u64::MAX);
    }

    /// Notes that an exchange has begun, and its end when what is given is dropped.
    pub fn under_way(self: &Rc<Self>, handle: &Handle) -> UnderWay {
        self.begin_exchange();
        UnderWay { connection: Rc::clone(self), handle: handle.clone() }
    }

    /// What its answers say of other ways to reach the same, where there are any.
    pub fn alternatives(&self) -> Option<Rc<Fields>> {
        (self.carrier.get() == Carrier::Tls).then(|| self.listener.alternatives.borrow().clone()).flatten()
    }

    /// Notes that it is over.
    pub fn end_exchange(&self, now_ms: u64) {
        self.requests.set(self.requests.get().saturating_add(1));
        self.active.set(self.active.get().saturating_sub(1));
        if self.active.get() == 0 {
            self.idle_since_ms.set(now_ms);
        }
    }

    /// Exchanges that are over (count).
    pub fn requests(&self) -> u32 {
        self.requests.get()
    }

    /// Since when there has been none; `u64::MAX` during an exchange.
    pub fn idle_since_ms(&self) -> u64 {
        self.idle_since_ms.get()
    }

    /// Exchanges under way (count): one at most over HTTP/1.
    pub fn active(&self) -> u32 {
        self.active.get()
    }

    /// Notes that it is idle, without a request having ended.
    pub fn set_idle(&self, now_ms: u64) {
        self.active.set(self.active.get().saturating_sub(1));
        if self.active.get() == 0 {
            self.idle_since_ms.set(now_ms);
        }
    }

    /// Whether somebody wants this connection to end; asked while it is idle.
    pub fn poll_asked_to_close(&self, cx: &Context<'_>) -> Poll<Ended> {
        if let Some(ended) = self.asked.get() {
            return Poll::Ready(ended);
        }
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            other => *other = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn ask_to_close(&self, ended: Ended) {
        self.asked.set(Some(ended));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// The client: whom the peer has named in a PROXY protocol header, else the peer. For what is said and
    /// decided about requests; what is done to a peer's packets goes by [`Self::addresses`].
    pub fn client(&self) -> Option<SocketAddr> {
        self.named.get().map(|named| **named).or_else(|| self.addresses.get().map(|(peer, _)| peer))
    }

    /// The client and the address of ours that it came to; `None` when the kernel did not say.
    pub fn client_and_local(&self) -> Option<(SocketAddr, SocketAddr)> {
        let (_, local) = self.addresses.get()?;
        Some((self.client()?, local))
    }

    /// Notes that the peer speaks for others, from a trusted address.
    pub fn set_relayed(&self) {
        self.is_relayed.set(true);
    }

    /// Whether the peer speaks for others, also when it has not named one.
    pub fn is_relayed(&self) -> bool {
        self.is_relayed.get()
    }

    /// Notes the client that the peer has named; once, before the first request.
    pub fn set_named(&self, client: SocketAddr) {
        let twice = self.named.set(Box::new(client));
        debug_assert!(twice.is_ok(), "a connection has one header");
    }

    /// Peer and local address; asked of the kernel once, when first needed.
    pub fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.addresses.get()
    }

    /// Stores what the kernel said.
    pub fn set_addresses(&self, peer: SocketAddr, local: SocketAddr) {
        self.addresses.set(Some((peer, local)));
    }

    /// What is said of requests from here; lent to `use_it`, and made by `make` when the key is new.
    pub fn with_forwarding<T, E>(
        &self,
        key: ForwardingKey,
        make: impl FnOnce() -> Result<Forwarding, E>,
        use_it: impl FnOnce(&Forwarding) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut cached = self.forwarding.borrow_mut();
        let current = match cached.take() {
            Some(current) if current.0 == key => current,
            _ => (key, Box::new(make()?)),
        };
        let (_, forwarding) = cached.insert(current);
        use_it(forwarding)
    }

    fn is_idle(&self) -> bool {
        self.idle_since_ms.get() != u64::MAX
    }
}

/// An exchange on a connection that carries several.
pub struct UnderWay {
    connection: Rc<Connection>,
    handle: Handle,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.connection.end_exchange(self.handle.now_ms());
    }
}

/// A row of the list that the admin API shows.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Number of the connection within its worker.
    pub id: u64,
    /// Client and local address, when they were needed so far.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// `idle` or `exchange`.
    pub state: &'static str,
    /// Exchanges so far.
    pub requests: u32,
    /// Milliseconds since accept.
    pub age_ms: u64,
}

/// The downstream connections of a worker. At most `connections_per_worker_max` of them.
#[derive(Default)]
pub struct Connections {
    open: RefCell<Vec<Rc<Connection>>>,
    next_id: Cell<u64>,
    /// Where the last sample ended.
    hand: Cell<usize>,
}

impl Connections {
    /// Adds a connection.
    pub fn open(&self, listener: &Rc<Listener>, now_ms: u64) -> Rc<Connection> {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let mut open = self.open.borrow_mut();
        let connection = Rc::new(Connection {
            id,
            place: Cell::new(open.len()),
            opened_ms: now_ms,
            listener: Rc::clone(listener),
            idle_since_ms: Cell::new(now_ms),
            requests: Cell::new(0),
            active: Cell::new(0),
            asked: Cell::new(None),
            waker: RefCell::new(None),
            addresses: Cell::new(None),
            named: OnceCell::new(),
            is_relayed: Cell::new(false),
            carrier: Cell::default(),
            forwarding: RefCell::new(None),
        });
        open.push(Rc::clone(&connection));
        connection
    }

    /// Removes a connection in constant time: the last one takes its place.
    pub fn close(&self, connection: &Rc<Connection>) {
        let mut open = self.open.borrow_mut();
        let place = connection.place.get();
        if open.get(place).is_some_and(|other| Rc::ptr_eq(other, connection)) {
            open.swap_remove(place);
            if let Some(moved) = open.get(place) {
                moved.place.set(place);
            }
        }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.borrow().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.borrow().is_empty()
    }

    /// Asks a long idle connection to end. `false` when none of those looked at is idle.
    pub fn shed_idle(&self) -> bool {
        let open = self.open.borrow();
        let start = self.hand.get();
        self.hand.set(start.wrapping_add(SAMPLE));
        let sample = (0..SAMPLE.min(open.len())).map(|offset| &open[start.wrapping_add(offset) % open.len()]);
        let oldest = sample
            .filter(|connection| connection.is_idle() && connection.asked.get().is_none())
            .min_by_key(|connection| connection.idle_since_ms.get());
        match oldest {
            Some(connection) => {
                connection.ask_to_close(Ended::Overload);
                true
            }
            None => false,
        }
    }

    /// Asks the connections of a listener to end after their exchanges.
    pub fn close_of(&self, listener: &Rc<Listener>) {
        let open = self.open.borrow();
        let of = open.iter().filter(|connection| Rc::ptr_eq(&connection.listener, listener));
        of.for_each(|connection| connection.ask_to_close(Ended::Drain));
    }

    /// Asks every idle connection to end; the others do so after their exchange.
    pub fn drain(&self) {
        for connection in self.open.borrow().iter() {
            connection.ask_to_close(Ended::Drain);
        }
    }

    /// Up to `most` connections, in no order.
    pub fn rows(&self, most: usize, now_ms: u64) -> Vec<Row> {
        let open = self.open.borrow();
        let row = |connection: &Rc<Connection>| Row {
            id: connection.id,
            addresses: connection.client().zip(connection.addresses.get().map(|(_, local)| local)),
            state: if connection.is_idle() { "idle" } else { "exchange" },
            requests: connection.requests.get(),
            age_ms: now_ms.saturating_sub(connection.opened_ms),
        };
        open.iter().take(most).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_of_the_sample_goes_and_busy_ones_stay() {
        let connections = Connections::default();
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let listener = Rc::new(Listener::new(address, false));
        let all: Vec<_> = (0..10).map(|i| connections.open(&listener, 100 - i)).collect();
        all[9].begin_exchange();
        assert!(connections.shed_idle());
        assert_eq!(all[8].asked.get(), Some(Ended::Overload));
        assert_eq!(all[9].asked.get(), None);
        all.iter().for_each(|connection| connection.begin_exchange());
        assert!(!connections.shed_idle());
        for index in [3, 9, 0, 0, 5] {
            connections.close(&all[index]);
        }
        assert_eq!(connections.len(), 6, "closing twice removes nobody else");
        all.iter().for_each(|connection| connections.close(connection));
        assert!(connections.is_empty());
    }
}
