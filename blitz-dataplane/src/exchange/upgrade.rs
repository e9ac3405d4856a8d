//! Upgrades (RFC 9110 section 7.8): what may be switched to, and the opening handshake of a WebSocket (RFC 6455
//! section 4).
//!
//! Owns: the protocols that are passed on, what a request for one has to look like, its key and the proof that an
//! endpoint has understood it. Does not own: how a codec carries it (`http1/`, `http2/`), the bytes after the switch
//! (`proxy/tunnel.rs`).

use aws_lc_rs::{digest, rand};

use super::{ErrorKind, ProxyError};
use crate::fields::{FieldError, Fields, Known, Occurrence, list_members};

/// A protocol that a client may switch to. Every other one ends at this hop like any field of the connection: the
/// request goes on without it, as the RFC allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// RFC 6455, and RFC 8441 over HTTP/2.
    WebSocket,
}

impl Upgrade {
    /// The name in Upgrade and `:protocol`.
    #[must_use]
    pub const fn token(self) -> &'static [u8] {
        match self {
            Self::WebSocket => b"websocket",
        }
    }

    /// The protocol of this name, compared without case.
    #[must_use]
    pub fn from_token(token: &[u8]) -> Option<Self> {
        token.eq_ignore_ascii_case(Self::WebSocket.token()).then_some(Self::WebSocket)
    }

    /// The first protocol of all Upgrade fields that is passed on: the sender names the one it likes best first.
    #[must_use]
    pub fn first_of(fields: &Fields) -> Option<Self> {
        fields.get_all(Known::Upgrade).flat_map(list_members).find_map(Self::from_token)
    }
}

/// Bytes of Sec-WebSocket-Key: 16 in base64.
pub const KEY_BYTES: usize = 24;

/// Bytes of Sec-WebSocket-Accept: a SHA-1 digest in base64.
const ACCEPT_BYTES: usize = 28;

/// A value of Sec-WebSocket-Key.
pub type Key = [u8; KEY_BYTES];

/// The one version that there is (RFC 6455 section 4.1).
pub const VERSION: &[u8] = b"13";

/// The detail of a refusal for its version; the answer names [`VERSION`] then (RFC 6455 section 4.2.2).
pub const VERSION_DETAIL: &str = "websocket_version";

/// Why a request for a WebSocket is refused, if it is: an endpoint that reads its handshake otherwise than we do would
/// take what follows for something else.
///
/// `has_key`: the request has to have a key, as over HTTP/1.
#[must_use]
pub fn refuse(fields: &Fields, has_key: bool) -> Option<ProxyError> {
    let refused = |detail| Some(ProxyError::new(ErrorKind::BadRequestHead).with_detail(detail));
    if fields.occurrence(Known::SecWebSocketVersion) != Occurrence::Once(VERSION) {
        return refused(VERSION_DETAIL);
    }
    if has_key && key_of(fields).is_none() {
        return refused("websocket_key");
    }
    None
}

/// The one key, when it is 16 bytes in base64.
#[must_use]
pub fn key_of(fields: &Fields) -> Option<Key> {
    let Occurrence::Once(value) = fields.occurrence(Known::SecWebSocketKey) else { return None };
    let key = Key::try_from(value).ok()?;
    let (digits, padding) = key.split_at(KEY_BYTES - 2);
    (padding == b"==" && digits.iter().all(|digit| DIGITS.contains(digit))).then_some(key)
}

/// Adds a new key where there is none: a request that came over HTTP/2 has none (RFC 8441 section 5).
///
/// # Errors
/// No room for it, or no random bytes.
pub fn ensure_key(fields: &mut Fields) -> Result<(), ProxyError> {
    if fields.contains(Known::SecWebSocketKey) {
        return Ok(());
    }
    let mut nonce = [0; 16];
    rand::fill(&mut nonce).map_err(|_| ProxyError::new(ErrorKind::Internal).with_detail("random_bytes"))?;
    let key: Key = base64(&nonce);
    fields
        .push_known(Known::SecWebSocketKey, &key)
        .map_err(|_: FieldError| ProxyError::new(ErrorKind::RequestHeadTooLarge))
}

/// Whether the fields of a 101 show that this key was understood (RFC 6455 section 4.1), and that nothing but a
/// WebSocket was agreed on.
///
/// # Errors
/// The label of what is wrong.
pub fn check_answer(fields: &Fields, key: &Key) -> Result<(), &'static str> {
    let Occurrence::Once(upgrade) = fields.occurrence(Known::Upgrade) else { return Err("other_protocol") };
    if Upgrade::from_token(upgrade) != Some(Upgrade::WebSocket) {
        return Err("other_protocol");
    }
    if fields.occurrence(Known::SecWebSocketAccept) != Occurrence::Once(&accept_of(key)) {
        return Err("websocket_accept");
    }
    Ok(())
}

/// What answers a key (RFC 6455 section 4.2.2).
#[must_use]
pub fn accept_of(key: &Key) -> [u8; ACCEPT_BYTES] {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key);
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64(context.finish().as_ref())
}

/// The digits of base64 (RFC 4648 section 4).
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 with padding. `N` is four for every three bytes begun.
fn base64<const N: usize>(bytes: &[u8]) -> [u8; N] {
    debug_assert_eq!(N, bytes.len().div_ceil(3) * 4);
    let mut text = [b'='; N];
    for (group, out) in bytes.chunks(3).zip(text.chunks_exact_mut(4)) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        // A group of n bytes has n + 1 digits.
        for (at, digit) in out.iter_mut().enumerate().take(group.len() + 1) {
            let index = bits >> (18 - 6 * at) & 63;
            *digit = DIGITS.get(index as usize).copied().unwrap_or(b'=');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name.as_bytes(), value.as_bytes()).unwrap();
        }
        fields
    }

    const SAMPLE: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    #[test]
    fn the_sample_of_rfc_6455() {
        let key = key_of(&fields(&[("sec-websocket-key", SAMPLE)])).unwrap();
        assert_eq!(&accept_of(&key), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(&base64::<KEY_BYTES>(b"the sample nonce"), SAMPLE.as_bytes());
        assert_eq!(&base64::<4>(b"ab"), b"YWI=");
        assert_eq!(&base64::<4>(b"abc"), b"YWJj");
    }

    #[test]
    fn the_first_known_protocol_wins() {
        let first = |lines: &[(&str, &str)]| Upgrade::first_of(&fields(lines));
        assert_eq!(first(&[("Upgrade", "h2c, WebSocket")]), Some(Upgrade::WebSocket));
        assert_eq!(first(&[("Upgrade", "TLS/1.0"), ("Upgrade", "websocket")]), Some(Upgrade::WebSocket));
        for none in ["h2c", "websocket/13", "web socket", "", "websockets"] {
            assert_eq!(first(&[("Upgrade", none)]), None, "{none}");
        }
    }

    #[test]
    fn a_handshake_is_as_the_rfc_wants_it() {
        let refusal =
            |lines: &[(&str, &str)], has_key| refuse(&fields(lines), has_key).map(|error| error.detail);
        let (key, version) = (("Sec-WebSocket-Key", SAMPLE), ("Sec-WebSocket-Version", "13"));
        assert_eq!(refusal(&[key, version], true), None);
        assert_eq!(refusal(&[version], false), None);
        assert_eq!(refusal(&[version], true), Some("websocket_key"));
        assert_eq!(refusal(&[key, key, version], true), Some("websocket_key"));
        for bad in
            ["", "dGhlIHNhbXBsZSBub25jZQ=", "dGhlIHNhbXBsZSBub25jZ!==", "dGhlIHNhbXBsZSBub25jZQAA", "a"]
        {
            assert_eq!(refusal(&[("Sec-WebSocket-Key", bad), version], true), Some("websocket_key"), "{bad}");
        }
        for bad in ["8", "13, 8", "013", ""] {
            assert_eq!(refusal(&[key, ("Sec-WebSocket-Version", bad)], true), Some(VERSION_DETAIL), "{bad}");
        }
        assert_eq!(refusal(&[key, version, version], true), Some(VERSION_DETAIL));
        assert_eq!(refusal(&[key], true), Some(VERSION_DETAIL));
    }

    #[test]
    fn a_key_is_made_where_there_is_none_and_its_answer_is_checked() {
        let mut asked = Fields::new();
        ensure_key(&mut asked).unwrap();
        let key = key_of(&asked).unwrap();
        ensure_key(&mut asked).unwrap();
        assert_eq!(key_of(&asked), Some(key), "a key that is there stays");
        let accept = accept_of(&key);
        let accept = std::str::from_utf8(&accept).unwrap();
        let check = |lines: &[(&str, &str)]| check_answer(&fields(lines), &key);
        assert_eq!(check(&[("Upgrade", "WebSocket"), ("Sec-WebSocket-Accept", accept)]), Ok(()));
        assert_eq!(check(&[("Upgrade", "websocket")]), Err("websocket_accept"));
        let other = [("Upgrade", "websocket"), ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")];
        assert_eq!(check(&other), Err("websocket_accept"));
        for upgrade in ["h2c", "websocket, h2c", ""] {
            let lines = [("Upgrade", upgrade), ("Sec-WebSocket-Accept", accept)];
            assert_eq!(check(&lines), Err("other_protocol"), "{upgrade}");
        }
        assert_eq!(check(&[("Sec-WebSocket-Accept", accept)]), Err("other_protocol"));
    }
}
