//! Session tickets (RFC 5077, RFC 8446 section 4.6.1) under keys that every worker can compute.
//!
//! Owns: the keys, derived from the master secret by epoch, and the tickets' form. Does not own: the secret
//! (`crate::secret`), or what is in a ticket (rustls's).
//!
//! ```text
//! epoch (4 bytes, big-endian) | nonce (12 bytes) | sealed session | tag (16 bytes)
//! key = HKDF-SHA256(salt "blitz tls tickets", secret, context | epoch)
//! ```
//! Any worker, and one started later, computes the same key, so it resumes what another began; nothing is shared but
//! the secret. AES-256-GCM-SIV keeps its promise even should two workers draw the same nonce. Keys are not stored:
//! deriving one costs two hashes, a small part of what a resumed handshake costs.
//!
//! The context holds what a session was authenticated under. A session of a listener that asks for client certificates
//! resumes only where the same authorities and revocation lists hold: a resumed handshake shows no certificate, so
//! this is what keeps a revoked one out.
#![forbid(unsafe_code)]

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, hkdf, rand};
use rustls::server::ProducesTickets;

use crate::secret::Secret;

/// Seconds for which one key seals: 6 hours. Tickets of the epoch before are still opened, and so are those of the
/// next, from a neighbour whose clock is ahead.
pub const EPOCH_SECONDS: u64 = 6 * 3600;

/// Bytes of a ticket beyond the session in it: epoch, nonce, tag.
pub const OVERHEAD_BYTES: usize = EPOCH_BYTES + NONCE_LEN + 16;

const EPOCH_BYTES: usize = 4;

/// What sessions were authenticated under, as 32 bytes.
pub type TicketContext = [u8; digest::SHA256_OUTPUT_LEN];

/// The root of all ticket keys of one process.
#[derive(Clone, Debug)]
pub struct TicketRoot(hkdf::Prk);

impl TicketRoot {
    /// From the master secret.
    pub fn new(secret: &Secret) -> Self {
        Self(hkdf::Salt::new(hkdf::HKDF_SHA256, b"blitz tls tickets").extract(secret.bytes()))
    }

    /// The tickets of sessions that were authenticated under `context`.
    pub(super) fn tickets(&self, context: TicketContext) -> Tickets {
        Tickets { root: self.clone(), context, clock: now_seconds }
    }
}

/// Seals and opens tickets.
#[derive(Debug)]
pub(super) struct Tickets {
    root: TicketRoot,
    context: TicketContext,
    clock: fn() -> u64,
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Tickets {
    fn epoch(&self) -> u32 {
        u32::try_from((self.clock)() / EPOCH_SECONDS).unwrap_or(u32::MAX)
    }

    fn key(&self, epoch: u32) -> Option<LessSafeKey> {
        let epoch = epoch.to_be_bytes();
        let info = [&self.context[..], &epoch];
        let key = self.root.0.expand(&info, &AES_256_GCM_SIV).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(key)))
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        // A ticket that is sealed in the last second of an epoch is opened for one more epoch.
        u32::try_from(EPOCH_SECONDS).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let epoch = self.epoch();
        let key = self.key(epoch)?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(plain.len() + OVERHEAD_BYTES);
        ticket.extend_from_slice(&epoch.to_be_bytes());
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(plain);
        let sealed = ticket.get_mut(EPOCH_BYTES + NONCE_LEN..)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(epoch.to_be_bytes()), sealed).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (epoch, rest) = ticket.split_first_chunk::<EPOCH_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let current = self.epoch();
        let of_ticket = u32::from_be_bytes(*epoch);
        if of_ticket.abs_diff(current) > 1 {
            return None;
        }
        let key = self.key(of_ticket)?;
        let mut session = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len = key.open_in_place(nonce, Aad::from(*epoch), &mut session).ok()?.len();
        session.truncate(len);
        Some(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(secret: &Secret, context: u8, clock: fn() -> u64) -> Tickets {
        Tickets { root: TicketRoot::new(secret), context: [context; 32], clock }
    }

    #[test]
    fn whoever_has_the_secret_resumes_for_at_least_an_epoch() {
        let secret = Secret::generate().expect("secret");
        let at = |clock| tickets(&secret, 0, clock);
        let ticket = at(|| 10 * EPOCH_SECONDS + 7).encrypt(b"session").expect("ticket");
        assert_eq!(ticket.len(), 7 + OVERHEAD_BYTES);
        for later in [
            || 10 * EPOCH_SECONDS,
            || 11 * EPOCH_SECONDS + 7,
            || 12 * EPOCH_SECONDS - 1,
            || 10 * EPOCH_SECONDS - 1,
        ] {
            assert_eq!(at(later).decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        }
        assert_eq!(at(|| 12 * EPOCH_SECONDS).decrypt(&ticket), None);
        assert_eq!(at(|| 9 * EPOCH_SECONDS - 1).decrypt(&ticket), None);
    }

    #[test]
    fn another_secret_another_context_or_a_changed_bit_opens_nothing() {
        let secret = Secret::generate().expect("secret");
        let now = || 5 * EPOCH_SECONDS;
        let ticket = tickets(&secret, 1, now).encrypt(b"session").expect("ticket");
        assert_eq!(tickets(&secret, 2, now).decrypt(&ticket), None);
        let other = Secret::generate().expect("secret");
        assert_eq!(tickets(&other, 1, now).decrypt(&ticket), None);
        for bit in 0..ticket.len() * 8 {
            let mut changed = ticket.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(tickets(&secret, 1, now).decrypt(&changed), None, "bit {bit}");
        }
        for cut in 0..ticket.len() {
            assert_eq!(tickets(&secret, 1, now).decrypt(&ticket[..cut]), None);
        }
    }
}
