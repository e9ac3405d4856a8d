//! Tokens of Retry packets (RFC 9000 section 8.1.2): proof that a client receives where it says it is.
//!
//! ```text
//! expiry (8 bytes, Unix seconds) | original destination connection ID (8 to 20 bytes) | tag (16 bytes)
//! tag = HMAC-SHA256(key, expiry | connection ID of the Retry | address and port of the client | original), cut
//! ```
//! The key comes from the master secret, so that any worker takes what another has given. A token holds for one address
//! and one Retry; within its short life it can be used again, which gives no more than another handshake.
//!
//! Owns: making and checking them. Does not own: when one is asked for (`listener.rs`).

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::{constant_time, hmac};

/// Seconds that a client may take to come back.
const LIFETIME: u64 = 10;

const EXPIRY_BYTES: usize = 8;
const TAG_BYTES: usize = 16;

/// The token for a client whose Initial named `original`, and whose next will name `retry`.
pub(super) fn make(key: &hmac::Key, now: u64, client: SocketAddr, retry: &[u8], original: &[u8]) -> Vec<u8> {
    let expiry = (now + LIFETIME).to_be_bytes();
    let mut token = Vec::with_capacity(EXPIRY_BYTES + original.len() + TAG_BYTES);
    token.extend_from_slice(&expiry);
    token.extend_from_slice(original);
    token.extend_from_slice(&tag(key, expiry, client, retry, original));
    token
}

/// The original destination connection ID, when the token is good for this client and `retry`.
pub(super) fn check<'a>(
    key: &hmac::Key,
    now: u64,
    client: SocketAddr,
    retry: &[u8],
    token: &'a [u8],
) -> Option<&'a [u8]> {
    let (expiry, rest) = token.split_first_chunk::<EXPIRY_BYTES>()?;
    let (original, given) = rest.split_last_chunk::<TAG_BYTES>()?;
    constant_time::verify_slices_are_equal(&tag(key, *expiry, client, retry, original), given).ok()?;
    (u64::from_be_bytes(*expiry) >= now).then_some(original)
}

fn tag(
    key: &hmac::Key,
    expiry: [u8; EXPIRY_BYTES],
    client: SocketAddr,
    retry: &[u8],
    original: &[u8],
) -> [u8; TAG_BYTES] {
    let mut context = hmac::Context::with_key(key);
    context.update(&expiry);
    // Of one length, so that what follows is what is left.
    context.update(&[u8::try_from(retry.len()).unwrap_or(u8::MAX)]);
    context.update(retry);
    let ip = match client.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    context.update(&ip.octets());
    context.update(&client.port().to_be_bytes());
    context.update(original);
    let mut tag = [0; TAG_BYTES];
    tag.copy_from_slice(context.sign().as_ref().split_at(TAG_BYTES).0);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_one_client_and_retry_and_for_a_while() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        let client = SocketAddr::from(([192, 0, 2, 1], 4433));
        let token = make(&key, 100, client, b"of the retry", b"original");
        assert_eq!(check(&key, 110, client, b"of the retry", &token), Some(&b"original"[..]));
        assert_eq!(check(&key, 111, client, b"of the retry", &token), None, "too late");
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 4434));
        assert_eq!(check(&key, 100, elsewhere, b"of the retry", &token), None);
        assert_eq!(check(&key, 100, client, b"of another", &token), None);
        for at in 0..token.len() {
            let mut bad = token.clone();
            bad[at] ^= 1;
            assert_eq!(check(&key, 100, client, b"of the retry", &bad), None, "byte {at}");
            assert_eq!(check(&key, 100, client, b"of the retry", &token[..at]), None, "cut at {at}");
        }
    }
}
