//! Session tickets (RFC 5077, RFC 8446 section 4.6.1) under keys that every worker can compute.
//!
//! Owns: the keys, derived from the master secret by epoch, and the form of tickets over TCP. Does not own: the
//! secret (`crate::secret`), what is in a ticket (rustls's), or the form of those over QUIC (BoringSSL's,
//! `crate::sys::boring`).
//!
//! ```text
//! TCP:   epoch (4 bytes, big-endian) | nonce (12 bytes) | sealed session | tag (16 bytes)
//!        key = HKDF-SHA256(salt "blitz tls tickets", secret, context | epoch)
//! QUIC:  epoch (4 bytes, big-endian) | zeros (12 bytes), as the name of the key; the rest is BoringSSL's
//!        keys = HKDF-SHA256(salt "blitz quic tickets", secret, context | epoch | "cipher" or "mac")
//! ```
//! The salts differ, so that no ticket of the one is ever opened by the other.
//!
//! Any worker, and one started later, computes the same key, so it resumes what another began; nothing is shared but
//! the secret. AES-256-GCM-SIV keeps its promise even should two workers draw the same nonce. Keys are not stored:
//! deriving one costs two hashes, a small part of what a resumed handshake costs.
//!
//! The context holds what a session was authenticated under. A session of a listener that asks for client
//! certificates resumes only where the same authorities and revocation lists hold: a resumed handshake shows no
//! certificate, so this is what keeps a revoked one out.
#![forbid(unsafe_code)]

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, hkdf, rand};
use rustls::server::ProducesTickets;

use crate::secret::Secret;
use crate::sys::boring::{NAME_BYTES, TicketKey, TicketKeys};

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
pub struct TicketRoot {
    tcp: hkdf::Prk,
    quic: hkdf::Prk,
}

impl TicketRoot {
    /// From the master secret.
    pub fn new(secret: &Secret) -> Self {
        let root = |salt: &[u8]| hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret.bytes());
        Self { tcp: root(b"blitz tls tickets"), quic: root(b"blitz quic tickets") }
    }

    /// The tickets over TCP of sessions that were authenticated under `context`.
    pub(super) fn tickets(&self, context: TicketContext) -> Tickets {
        Tickets { root: self.tcp.clone(), context, clock: now_seconds }
    }

    /// The tickets over QUIC of sessions that were authenticated under `context`.
    pub(super) fn quic_tickets(&self, context: TicketContext) -> QuicTickets {
        QuicTickets { root: self.quic.clone(), context, clock: now_seconds }
    }
}

/// Seals and opens tickets.
#[derive(Debug)]
pub(super) struct Tickets {
    root: hkdf::Prk,
    context: TicketContext,
    clock: fn() -> u64,
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn epoch_at(seconds: u64) -> u32 {
    u32::try_from(seconds / EPOCH_SECONDS).unwrap_or(u32::MAX)
}

/// Whether tickets of an epoch are still, or already, opened in the current one.
const fn is_open(of_ticket: u32, current: u32) -> bool {
    of_ticket.abs_diff(current) <= 1
}

/// Seconds that a client may keep a ticket: one that is sealed in the last second of an epoch is opened for one more.
fn lifetime() -> u32 {
    u32::try_from(EPOCH_SECONDS).unwrap_or(u32::MAX)
}

impl Tickets {
    fn key(&self, epoch: u32) -> Option<LessSafeKey> {
        let epoch = epoch.to_be_bytes();
        let info = [&self.context[..], &epoch];
        let key = self.root.expand(&info, &AES_256_GCM_SIV).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(key)))
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let epoch = epoch_at((self.clock)());
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
        let of_ticket = u32::from_be_bytes(*epoch);
        if !is_open(of_ticket, epoch_at((self.clock)())) {
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

/// Keys for BoringSSL.
pub(super) struct QuicTickets {
    root: hkdf::Prk,
    context: TicketContext,
    clock: fn() -> u64,
}

impl QuicTickets {
    fn key(&self, epoch: u32) -> Option<TicketKey> {
        let mut key = TicketKey { cipher: [0; 32], mac: [0; 32] };
        let epoch = epoch.to_be_bytes();
        for (label, out) in [(&b"cipher"[..], &mut key.cipher), (b"mac", &mut key.mac)] {
            let info = [&self.context[..], &epoch, label];
            self.root.expand(&info, hkdf::HKDF_SHA256).ok()?.fill(out).ok()?;
        }
        Some(key)
    }
}

impl TicketKeys for QuicTickets {
    fn current(&self) -> Option<([u8; NAME_BYTES], TicketKey)> {
        let epoch = epoch_at((self.clock)());
        let mut name = [0; NAME_BYTES];
        *name.first_chunk_mut()? = epoch.to_be_bytes();
        Some((name, self.key(epoch)?))
    }

    fn named(&self, name: &[u8; NAME_BYTES]) -> Option<TicketKey> {
        let (epoch, _) = name.split_first_chunk::<EPOCH_BYTES>()?;
        let of_ticket = u32::from_be_bytes(*epoch);
        is_open(of_ticket, epoch_at((self.clock)())).then(|| self.key(of_ticket))?
    }

    fn lifetime_seconds(&self) -> u32 {
        lifetime()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(secret: &Secret, context: u8, clock: fn() -> u64) -> Tickets {
        Tickets { root: TicketRoot::new(secret).tcp, context: [context; 32], clock }
    }

    #[test]
    fn keys_over_quic_are_found_by_name_for_at_least_an_epoch_and_are_those_of_a_context() {
        let secret = Secret::generate().expect("secret");
        let at = |secret: &Secret, context, clock| QuicTickets {
            root: TicketRoot::new(secret).quic,
            context: [context; 32],
            clock,
        };
        let (name, key) = at(&secret, 0, || 10 * EPOCH_SECONDS).current().expect("a key");
        let same =
            |other: Option<TicketKey>| other.map(|other| (other.cipher, other.mac) == (key.cipher, key.mac));
        for later in [|| 10 * EPOCH_SECONDS - 1, || 12 * EPOCH_SECONDS - 1] {
            assert_eq!(same(at(&secret, 0, later).named(&name)), Some(true));
        }
        assert_eq!(same(at(&secret, 0, || 12 * EPOCH_SECONDS).named(&name)), None);
        assert_eq!(same(at(&secret, 1, || 10 * EPOCH_SECONDS).named(&name)), Some(false));
        let other = Secret::generate().expect("secret");
        assert_eq!(same(at(&other, 0, || 10 * EPOCH_SECONDS).named(&name)), Some(false));
        assert_ne!(key.cipher, key.mac);
        // And of one carrier.
        let over_tcp =
            QuicTickets { root: TicketRoot::new(&secret).tcp, ..at(&secret, 0, || 10 * EPOCH_SECONDS) };
        assert_eq!(same(over_tcp.named(&name)), Some(false));
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
