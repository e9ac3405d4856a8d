//! The opening handshake of a WebSocket (RFC 6455 section 4), for raw clients and scripted endpoints.
//!
//! Owns: the words of the handshake. Does not own: messages, which the peers in Python exchange.

use aws_lc_rs::digest;

use crate::upstream::{Conn, Request, Upstream};

/// The modules that the peers in Python need.
pub const MODULES: &[&str] = &["websockets"];

/// The key of the sample in section 1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// What answers [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A request over HTTP/1.1 with [`KEY`], and `more` fields.
pub fn request(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

/// What answers a key.
pub fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    base64(digest.as_ref())
}

/// The 101 that answers a request, with `more` fields.
pub fn switching(request: &Request, more: &str) -> String {
    let accept = accept(request.field("sec-websocket-key").unwrap_or_default());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{more}\r\n"
    )
}

/// An endpoint that switches, then runs `script` on what follows.
pub fn endpoint(script: impl Fn(&mut Conn) -> Option<()> + Send + Sync + 'static) -> Upstream {
    Upstream::start(move |conn| {
        let request = conn.request()?;
        conn.send(switching(&request, ""))?;
        script(conn)
    })
}

/// The letters of RFC 4648 section 4.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        let digit = |at: usize| char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]);
        (0..4).map(|at| if at <= group.len() { digit(at) } else { '=' }).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_sample_of_the_rfc() {
        assert_eq!(super::accept(super::KEY), super::ACCEPT);
    }
}
