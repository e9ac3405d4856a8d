//! Telling HTTP/2 with prior knowledge from HTTP/1 by the first bytes (RFC 9113 section 3.3).
//!
//! The client preface was chosen so that no HTTP/1 request can begin with it. As long as what has come is a part of
//! it, more is waited for, within the deadline of a request's head.
//!
//! Owns: the decision. Does not own: ALPN, by which a TLS connection is told apart before.

use std::future::poll_fn;
use std::time::Duration;

use super::frame::PREFACE;
use crate::http1::server::first_bytes;
use crate::proxy::connections::{Connection, Ended};
use crate::runtime::{Chunk, Deadline, Transport};

/// What a connection speaks, with the bytes read so far.
#[derive(Debug)]
pub enum Detected {
    /// The client preface.
    Http2(Chunk),
    /// Anything else.
    Other(Chunk),
}

/// Reads until it is clear. `received` are bytes that have come, if any have.
///
/// # Errors
/// How the connection ended before.
pub async fn detect<T: Transport>(
    stream: &T,
    connection: &Connection,
    received: Option<Chunk>,
    limit: Duration,
) -> Result<Detected, Ended> {
    let mut deadline = Deadline::new(stream.handle());
    stream.settle();
    let mut chunk = match received {
        Some(chunk) => {
            deadline.set_after(limit);
            chunk
        }
        None => first_bytes(stream, connection, &mut deadline, limit).await?,
    };
    if let Some(is_preface) = is_preface(&chunk) {
        return Ok(if is_preface { Detected::Http2(chunk) } else { Detected::Other(chunk) });
    }
    // Rare: a preface in pieces.
    let mut gathered = chunk.to_vec();
    loop {
        // Of the first byte's deadline what is left.
        let more = deadline.limit(poll_fn(|cx| stream.poll_receive(cx))).await;
        chunk = match more {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(_) => return Err(Ended::ByClient),
            Err(_) => return Err(Ended::Deadline),
        };
        gathered.extend_from_slice(&chunk);
        if let Some(is_preface) = is_preface(&gathered) {
            let chunk = Chunk::from_vec(gathered);
            return Ok(if is_preface { Detected::Http2(chunk) } else { Detected::Other(chunk) });
        }
    }
}

/// Whether the bytes begin with the preface; `None` while they are a part of it.
fn is_preface(bytes: &[u8]) -> Option<bool> {
    let compared = bytes.len().min(PREFACE.len());
    if bytes.get(..compared) != PREFACE.get(..compared) {
        return Some(false);
    }
    (compared == PREFACE.len()).then_some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_that_differs_decides() {
        assert_eq!(is_preface(b""), None);
        for end in 1..PREFACE.len() {
            assert_eq!(is_preface(&PREFACE[..end]), None);
            let mut other = PREFACE[..end].to_vec();
            other[end - 1] ^= 1;
            assert_eq!(is_preface(&other), Some(false), "{end}");
        }
        assert_eq!(is_preface(PREFACE), Some(true));
        assert_eq!(is_preface(&[PREFACE, &[0; 9][..]].concat()), Some(true));
        for other in
            [&b"GET / HTTP/1.1\r\n"[..], b"PRI / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\nHost: a\r\n", b"P\r"]
        {
            assert_eq!(is_preface(other), Some(false));
        }
    }
}
