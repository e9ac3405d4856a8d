//! Connections that a trusted sender relays, with a PROXY protocol header in front that names the client.
//!
//! Owns: reading the header within its deadline, what is counted and said of it, what becomes of the address. Does
//! not own: the syntax (`proxy_protocol`), who is trusted (`connections.rs`), what follows (`accept.rs`).
#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::Poll;

use super::Proxy;
use super::connections::{Connection, Ended};
use crate::metrics::names::Metric;
use crate::proxy_protocol::{self, HEADER_BYTES_MAX, Header, Refusal, Version};
use crate::runtime::{Chunk, Deadline, TcpStream};

/// Closes a connection whose sender is not believed, whatever it would say.
pub(super) fn refuse_untrusted(proxy: &Proxy, stream: &TcpStream, peer: SocketAddr) {
    stream.reset_on_close();
    proxy.rows.add(Metric::ProxyProtocolUntrusted, 1);
    log::debug!("proxy_protocol: {peer} refused=untrusted");
}

/// Reads the header, notes the client that it names, and returns what came behind it, if something did.
///
/// # Errors
/// How the connection ends: without a header, with a broken one, or before its end.
///
/// # Cancel safety
/// Not safe: what was read is lost.
pub(super) async fn client(
    proxy: &Proxy,
    connection: &Connection,
    stream: &TcpStream,
) -> Result<Option<Chunk>, Ended> {
    let sender = connection.addresses().map(|(peer, _)| peer);
    let mut deadline = Deadline::new(stream.handle());
    deadline.set_after(proxy.live().snapshot.config.timeouts.request_head);
    // Bytes of a header that did not come at once: below the bound, since a header that long is whole or refused.
    let mut gathered = Vec::new();
    let refuse = |metric, label: &'static str, ended| {
        stream.reset_on_close();
        proxy.rows.add(metric, 1);
        log::debug!("proxy_protocol: {} refused={label}", show(sender));
        Err(ended)
    };
    loop {
        let received = poll_fn(|cx| {
            if let Poll::Ready(received) = stream.poll_receive(cx) {
                return Poll::Ready(Ok(received.ok().flatten()));
            }
            if let Poll::Ready(ended) = connection.poll_asked_to_close(cx) {
                return Poll::Ready(Err(ended));
            }
            deadline.poll_expired(cx).map(|_| Err(Ended::Deadline))
        });
        let mut chunk = match received.await {
            Ok(Some(chunk)) => chunk,
            // A load balancer that only looks whether somebody listens.
            Ok(None) if gathered.is_empty() => return Err(Ended::ByClient),
            Ok(None) => return refuse(Metric::ProxyProtocolClosed, "closed", Ended::Error),
            Err(Ended::Deadline) => {
                proxy.rows.add(Metric::DeadlineRequestHead, 1);
                return refuse(Metric::ProxyProtocolTimeout, "timeout", Ended::Deadline);
            }
            Err(ended) => return Err(ended),
        };
        let before = gathered.len();
        let parsed = if before == 0 {
            proxy_protocol::parse(&chunk)
        } else {
            let room = HEADER_BYTES_MAX.saturating_sub(before).min(chunk.len());
            gathered.extend_from_slice(chunk.get(..room).unwrap_or_default());
            proxy_protocol::parse(&gathered)
        };
        match parsed {
            Ok(Some(header)) => {
                accept(proxy, connection, sender, &header);
                chunk.advance(header.bytes.saturating_sub(before));
                return Ok((!chunk.is_empty()).then_some(chunk));
            }
            Ok(None) if before == 0 => gathered.extend_from_slice(&chunk),
            Ok(None) => {}
            Err(why) => {
                let no_header = why == Refusal::NoHeader;
                let metric =
                    if no_header { Metric::ProxyProtocolNoHeader } else { Metric::ProxyProtocolMalformed };
                return refuse(metric, why.label(), Ended::Error);
            }
        }
    }
}

fn accept(proxy: &Proxy, connection: &Connection, sender: Option<SocketAddr>, header: &Header) {
    let metric = match (header.version, header.client.is_some()) {
        (Version::V1, true) => Metric::ProxyProtocolV1Client,
        (Version::V1, false) => Metric::ProxyProtocolV1Sender,
        (Version::V2, true) => Metric::ProxyProtocolV2Client,
        (Version::V2, false) => Metric::ProxyProtocolV2Sender,
    };
    proxy.rows.add(metric, 1);
    if let Some(client) = header.client {
        connection.set_named(client);
    }
    log::debug!("proxy_protocol: {} client={}", show(sender), show(connection.client()));
}

fn show(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "-".to_owned(), |address| address.to_string())
}
