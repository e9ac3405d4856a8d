//! Accepting connections and giving each a task.
//!
//! Owns: the accept loop, the bound on connections, what goes before HTTP, what is counted when one ends.
//! Does not own: the registry (`connections.rs`), PROXY protocol headers (`relay.rs`), or the codecs that serve the
//! connection (`http1/server.rs`, `http2/server.rs`).
#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use blitz_config::model::Plain;

use super::Proxy;
use super::connections::{Carrier, Connection, Ended, HandshakePermit, Listener, Relay};
use super::relay;
use crate::exchange::stream::Service;
use crate::exchange::{ErrorKind, ProxyError};
use crate::http1::{Unread, server};
use crate::http2;
use crate::http2::detect::{Detected, detect};
use crate::metrics::names::Metric;
use crate::runtime::{Chunk, Deadline, Pooled, TcpListener, TcpStream, Transport};
use crate::tls::{Acceptor, Handshaken, TlsStream};

/// Connections beyond the bound (count), for those that were asked to leave and still send.
const LEAVING_MAX: usize = 64;

/// How long an ending connection waits for the kernel to take its close_notify.
const CLOSE_NOTIFY: Duration = Duration::from_secs(1);

/// Accepts for ever. Dropped when the listener goes; the connections stay.
pub async fn accept(proxy: Rc<Proxy>, listener: TcpListener, info: Rc<Listener>) {
    loop {
        match listener.accept().await {
            Ok(stream) => admit(&proxy, stream, &info),
            Err(error) => log::warn!("{}: a connection could not be registered: {error}", info.address),
        }
    }
}

/// Gives a connection its task, within the bound.
pub fn admit(proxy: &Rc<Proxy>, stream: TcpStream, info: &Rc<Listener>) {
    proxy.rows.add(Metric::DownstreamAccepted, 1);
    let peer = stream.peer_address().ok();
    let relay = info.proxy_protocol(peer.map(|peer| peer.ip()));
    if relay == Relay::Untrusted {
        // Before anything is held or closed for it: whoever is not believed costs no place.
        let closed = match peer {
            Some(peer) => {
                relay::refuse_untrusted(proxy, &stream, peer);
                Metric::DownstreamClosedError
            }
            // The kernel knows no peer any more: it has reset the connection, as some health checks do.
            None => Metric::DownstreamClosedByClient,
        };
        proxy.rows.add(closed, 1);
        return;
    }
    if !make_room(proxy) {
        // The newcomer goes, with a reset, so that it costs no state here.
        stream.reset_on_close();
        return;
    }
    let connection = proxy.connections.open(info, proxy.handle.now_ms());
    proxy.rows.gauge_add(Metric::DownstreamActive, 1);
    if let (Some(peer), Ok(local)) = (peer, stream.local_address()) {
        connection.set_addresses(peer, local);
    }
    let open = Open { proxy: Rc::clone(proxy), connection, ended: None };
    // Each in a task of its own kind: an idle connection shall not carry the room for what it is not.
    match (relay, info.tls()) {
        (Relay::Trusted, _) => {
            open.connection.set_relayed();
            proxy.handle.spawn(begin_relayed(open, stream));
        }
        (_, None) => proxy.handle.spawn(run(open, stream)),
        (_, Some(tls)) => proxy.handle.spawn(begin_tls(open, stream, tls, None)),
    }
}

/// Gives a QUIC connection its place, within the bound.
pub(crate) fn admit_quic(
    proxy: &Rc<Proxy>,
    info: &Rc<Listener>,
    peer: SocketAddr,
    local: SocketAddr,
) -> Option<Open> {
    proxy.rows.add(Metric::DownstreamAccepted, 1);
    if !make_room(proxy) {
        return None;
    }
    let connection = proxy.connections.open(info, proxy.handle.now_ms());
    proxy.rows.gauge_add(Metric::DownstreamActive, 1);
    connection.set_addresses(peer, local);
    Some(Open { proxy: Rc::clone(proxy), connection, ended: None })
}

/// Whether there is room for one more connection; an idle one may have to go for it.
fn make_room(proxy: &Proxy) -> bool {
    let most = proxy.live().snapshot.config.http.connections_per_worker_max;
    let open = proxy.connections.len();
    if open < most || (open < most.saturating_add(LEAVING_MAX) && proxy.connections.shed_idle()) {
        return true;
    }
    // Everybody is busy, or those asked to leave do not.
    proxy.note(&ProxyError::new(ErrorKind::Overload));
    proxy.rows.add(Metric::DownstreamClosedOverload, 1);
    false
}

/// Reads the PROXY protocol header and gives what follows to what the listener speaks.
async fn begin_relayed(mut open: Open, stream: TcpStream) {
    let handle = open.proxy.handle.clone();
    match relay::client(&open.proxy, &open.connection, &stream).await {
        Ok(behind) => match open.connection.listener().tls() {
            None => handle.spawn(run_relayed(open, stream, behind)),
            Some(tls) => handle.spawn(begin_tls(open, stream, tls, behind)),
        },
        Err(ended) => open.ended = Some(ended),
    }
}

async fn run(mut open: Open, stream: TcpStream) {
    open.ended = Some(serve(&open.proxy, &stream, &open.connection, || None).await);
}

async fn run_relayed(mut open: Open, stream: TcpStream, behind: Option<Chunk>) {
    open.ended = Some(serve(&open.proxy, &stream, &open.connection, || behind).await);
}

/// Finds out what a connection in clear speaks, and serves it. `received` gives bytes that have come, if any have: a
/// function, so that a connection without them carries no room for them.
async fn serve(
    proxy: &Rc<Proxy>,
    stream: &TcpStream,
    connection: &Rc<Connection>,
    received: impl FnOnce() -> Option<Chunk>,
) -> Ended {
    let protocols = connection.listener().protocols.get();
    if !protocols.h2 {
        let unread = received().map(Unread::from).unwrap_or_default();
        return server::serve(&**proxy, stream, connection, unread).await;
    }
    // In a block of its own: an idle connection shall not carry the room for it.
    let detected = Pooled::new(detect(stream, connection, received(), proxy.limits().request_head)).await;
    match detected {
        Ok(Detected::Http2(chunk)) => serve_h2(proxy, stream, connection, Some(chunk)).await,
        Ok(Detected::Other(chunk)) if protocols.h1 => {
            server::serve(&**proxy, stream, connection, Unread::from(chunk)).await
        }
        Ok(Detected::Other(_)) => http2::server::refuse(&**proxy, stream).await,
        Err(ended) => ended,
    }
}

async fn serve_h2<T: Transport>(
    proxy: &Rc<Proxy>,
    stream: &T,
    connection: &Rc<Connection>,
    received: Option<Chunk>,
) -> Ended {
    proxy.rows.add(Metric::H2Connections, 1);
    Pooled::new(http2::server::serve(proxy, stream, connection, received)).await
}

/// Serves a connection in clear, where TLS is spoken too, of which some has been read: HTTP/1.
async fn run_begun(mut open: Open, stream: TcpStream, received: Chunk) {
    let ended = server::serve(&*open.proxy, &stream, &open.connection, Unread::from(received)).await;
    open.ended = Some(ended);
}

async fn run_tls(mut open: Open, stream: Box<TlsStream>) {
    let protocols = open.connection.listener().protocols.get();
    // Without ALPN (RFC 7301) it is HTTP/1 where that is spoken.
    let is_h2 = stream.with_alpn(|name| name.map_or(!protocols.h1, |name| name == b"h2"));
    let ended = if is_h2 {
        serve_h2(&open.proxy, &*stream, &open.connection, None).await
    } else {
        server::serve(&*open.proxy, &*stream, &open.connection, Unread::default()).await
    };
    open.ended = Some(ended);
    if stream.close_notify() {
        // In a block of its own, as above.
        Pooled::new(flush(&stream)).await;
    }
}

async fn begin_tls(mut open: Open, stream: TcpStream, tls: Rc<Acceptor>, received: Option<Chunk>) {
    let handle = open.proxy.handle.clone();
    match secure(&open.proxy, &open.connection, stream, tls, received).await {
        Ok(Carried::Tls(stream)) => handle.spawn(run_tls(open, stream)),
        Ok(Carried::Plain(stream, received)) => handle.spawn(run_begun(open, stream, received)),
        Err(ended) => open.ended = Some(ended),
    }
}

/// A connection once it is known what carries it.
enum Carried {
    Tls(Box<TlsStream>),
    Plain(TcpStream, Chunk),
}

/// Tells TLS from plain HTTP and shakes hands. `received` are bytes that have come, if any have.
async fn secure(
    proxy: &Rc<Proxy>,
    connection: &Connection,
    stream: TcpStream,
    tls: Rc<Acceptor>,
    received: Option<Chunk>,
) -> Result<Carried, Ended> {
    let mut deadline = Deadline::new(stream.handle());
    deadline.set_after(proxy.live().snapshot.config.timeouts.tls_handshake);
    let mut received = received;
    let received = poll_fn(|cx| {
        if let Some(chunk) = received.take() {
            return Poll::Ready(Ok(chunk));
        }
        match stream.poll_receive(cx) {
            Poll::Ready(Ok(Some(chunk))) => return Poll::Ready(Ok(chunk)),
            Poll::Ready(Ok(None) | Err(_)) => return Poll::Ready(Err(Ended::ByClient)),
            Poll::Pending => {}
        }
        if let Poll::Ready(ended) = connection.poll_asked_to_close(cx) {
            return Poll::Ready(Err(ended));
        }
        deadline.poll_expired(cx).map(|_| {
            proxy.rows.add(Metric::DeadlineTlsHandshake, 1);
            Err(Ended::Deadline)
        })
    })
    .await?;
    let material = tls.material();
    if Acceptor::is_plain(&received) {
        let (carrier, metric) = match material.plain {
            Plain::Refuse => (Carrier::PlainRefused, Metric::TlsPlainRefused),
            Plain::Redirect => (Carrier::PlainRedirected, Metric::TlsPlainRedirected),
            Plain::Serve => (Carrier::Plain, Metric::TlsPlainServed),
        };
        proxy.rows.add(metric, 1);
        connection.set_carrier(carrier);
        return Ok(Carried::Plain(stream, received));
    }
    let Some(permit) = connection.listener().begin_handshake(material.handshakes_max) else {
        stream.reset_on_close();
        proxy.note(&ProxyError::new(ErrorKind::Overload).with_detail("handshakes_max"));
        proxy.rows.add(Metric::TlsFailedLimit, 1);
        return Err(Ended::Overload);
    };
    proxy.rows.gauge_add(Metric::TlsHandshakesActive, 1);
    let handshake = Handshake { proxy, _permit: permit };
    connection.begin_exchange();
    let outcome = tls.accept(stream, received, connection.client(), &mut deadline).await;
    connection.set_idle(proxy.handle.now_ms());
    drop(handshake);
    match outcome {
        Ok(Handshaken { stream, metric }) => {
            proxy.rows.add(metric, 1);
            connection.set_carrier(Carrier::Tls);
            Ok(Carried::Tls(Box::new(stream)))
        }
        Err(error) => {
            proxy.rows.add(error.metric, 1);
            let kind =
                if error.is_timeout { ErrorKind::TlsHandshakeTimeout } else { ErrorKind::TlsHandshake };
            proxy.note(&ProxyError::new(kind).with_detail(error.label));
            Err(if error.is_timeout { Ended::Deadline } else { Ended::Error })
        }
    }
}

/// A handshake under way, taken out of the counts when its task ends, by a panic too.
struct Handshake<'a> {
    proxy: &'a Rc<Proxy>,
    _permit: HandshakePermit,
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        self.proxy.rows.gauge_sub(Metric::TlsHandshakesActive, 1);
    }
}

/// Waits a little until everything has left: what is left is the word that nothing follows.
async fn flush(stream: &TlsStream) {
    let mut deadline = Deadline::new(stream.handle());
    deadline.set_after(CLOSE_NOTIFY);
    poll_fn(|cx| match stream.poll_flushed(cx) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => deadline.poll_expired(cx).map(|_| ()),
    })
    .await;
}

/// A connection in the registry, taken out when its task ends, by a panic too.
pub(crate) struct Open {
    proxy: Rc<Proxy>,
    connection: Rc<Connection>,
    ended: Option<Ended>,
}

impl Open {
    /// The connection.
    pub(crate) fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }

    /// Takes it out, with the reason that is counted.
    pub(crate) fn end(mut self, ended: Ended) {
        self.ended = Some(ended);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.proxy.connections.close(&self.connection);
        let rows = &self.proxy.rows;
        rows.gauge_sub(Metric::DownstreamActive, 1);
        let reason = match self.ended {
            Some(Ended::ByClient) => Metric::DownstreamClosedByClient,
            Some(Ended::AfterAnswer) => Metric::DownstreamClosedAfterAnswer,
            Some(Ended::Idle) => {
                rows.add(Metric::DeadlineKeepAlive, 1);
                Metric::DownstreamClosedIdle
            }
            Some(Ended::Deadline) => Metric::DownstreamClosedDeadline,
            Some(Ended::Error) => Metric::DownstreamClosedError,
            Some(Ended::Overload) => Metric::DownstreamClosedOverload,
            Some(Ended::Drain) => Metric::DownstreamClosedDrain,
            // The task was dropped: by a panic, or because the worker is ending.
            None if std::thread::panicking() => Metric::DownstreamClosedPanic,
            None => Metric::DownstreamClosedDrain,
        };
        rows.add(reason, 1);
    }
}
