//! Accepting connections and giving each a task.
//!
//! Owns: the accept loop, the bound on connections, what is counted when one ends. Does not own: the
//! registry (`connections.rs`), or the codec that serves the connection (`http1/server.rs`).
#![forbid(unsafe_code)]

use std::rc::Rc;

use super::Proxy;
use super::connections::{Connection, Ended, Listener};
use crate::exchange::stream::Service;
use crate::exchange::{ErrorKind, ProxyError};
use crate::http1::server;
use crate::http2;
use crate::http2::detect::{Detected, detect};
use crate::metrics::names::Metric;
use crate::runtime::{Pooled, TcpListener, TcpStream};

/// Connections beyond the bound (count), for those that were asked to leave and still send.
const LEAVING_MAX: usize = 64;

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
    let most = proxy.live().snapshot.config.http.connections_per_worker_max;
    let open = proxy.connections.len();
    if open >= most && (open >= most.saturating_add(LEAVING_MAX) || !proxy.connections.shed_idle()) {
        // Everybody is busy, or those asked to leave do not: the newcomer goes, with a reset, so that it
        // costs no state here.
        stream.reset_on_close();
        proxy.note(&ProxyError::new(ErrorKind::Overload));
        proxy.rows.add(Metric::DownstreamClosedOverload, 1);
        return;
    }
    let connection = proxy.connections.open(info, proxy.handle.now_ms());
    proxy.rows.gauge_add(Metric::DownstreamActive, 1);
    let open = Open { proxy: Rc::clone(proxy), connection, ended: None };
    proxy.handle.spawn(run(open, stream));
}

async fn run(mut open: Open, stream: TcpStream) {
    if let (Ok(peer), Ok(local)) = (stream.peer_address(), stream.local_address()) {
        open.connection.set_addresses(peer, local);
    }
    open.ended = Some(serve(&open.proxy, &stream, &open.connection).await);
}

/// Finds out what a connection speaks, and serves it.
async fn serve(proxy: &Rc<Proxy>, stream: &TcpStream, connection: &Rc<Connection>) -> Ended {
    let protocols = connection.listener().protocols.get();
    if !protocols.h2 {
        return server::serve(&**proxy, stream, connection, None).await;
    }
    // In a block of its own: an idle connection shall not carry the room for it.
    let detected = Pooled::new(detect(stream, connection, proxy.limits().request_head)).await;
    match detected {
        Ok(Detected::Http2(chunk)) => {
            proxy.rows.add(Metric::H2Connections, 1);
            Pooled::new(http2::server::serve(proxy, stream, connection, Some(chunk))).await
        }
        Ok(Detected::Other(chunk)) if protocols.h1 => {
            server::serve(&**proxy, stream, connection, Some(chunk)).await
        }
        Ok(Detected::Other(_)) => http2::server::refuse(&**proxy, stream).await,
        Err(ended) => ended,
    }
}

/// A connection in the registry, taken out when its task ends, by a panic too.
struct Open {
    proxy: Rc<Proxy>,
    connection: Rc<Connection>,
    ended: Option<Ended>,
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
