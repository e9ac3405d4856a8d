//! Keys of QUIC, derived from the master secret: every worker has the same, and so has one that is started later.
//!
//! Owns: the derivation, connection IDs of a worker, tokens of stateless resets. Does not own: the secret
//! (`crate::secret`), the layout of connection IDs (`blitz_ebpf_common::cid`), Retry tokens (`retry.rs`).

use std::cell::Cell;

use aws_lc_rs::{hkdf, hmac, rand};
use blitz_ebpf_common::chaskey;
use blitz_ebpf_common::cid::{self, CID_BYTES, Codec, Parity, Routing};
use blitz_ebpf_common::steer::{Aim, Bank, Steering};

use crate::secret::Secret;

/// The generation of this process: an upgrade in place will count on.
pub const GENERATION: u32 = 0;

/// The host's number in its anycast group.
const HOST: u16 = 0;

/// All keys of QUIC.
#[derive(Clone)]
pub struct QuicKeys {
    codec: Codec,
    pick: chaskey::Key,
    reset: hmac::Key,
    retry: hmac::Key,
}

impl std::fmt::Debug for QuicKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QuicKeys")
    }
}

impl QuicKeys {
    /// From the master secret.
    pub fn new(secret: &Secret) -> Self {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"blitz quic keys").extract(secret.bytes());
        let key = |label: &[u8]| {
            let mut key = [0; 32];
            let info = [label];
            let derived = root.expand(&info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key));
            debug_assert!(derived.is_ok(), "32 bytes are what HKDF-SHA256 gives at once");
            key
        };
        let words = |label: &[u8]| {
            let key = key(label);
            let word = |at: usize| u32::from_le_bytes([key[at], key[at + 1], key[at + 2], key[at + 3]]);
            [word(0), word(4), word(8), word(12)]
        };
        let cids = cid::Keys { even: words(b"cid even"), odd: words(b"cid odd"), issues: Parity::Even };
        Self {
            codec: Codec::new(cids),
            pick: chaskey::Key::new(words(b"pick")),
            reset: hmac::Key::new(hmac::HMAC_SHA256, &key(b"reset")),
            retry: hmac::Key::new(hmac::HMAC_SHA256, &key(b"retry")),
        }
    }

    /// How the kernel steers among `workers`; `None` when there are more than connection IDs can name.
    pub fn steering(&self, workers: u32) -> Option<Steering> {
        Some(Steering { codec: self.codec, pick: self.pick, bank: Bank::new(workers, GENERATION)? })
    }

    /// The key of Retry tokens.
    pub(super) fn retry(&self) -> &hmac::Key {
        &self.retry
    }

    /// The token that ends the connection of a connection ID (RFC 9000 section 10.3.2).
    pub(super) fn reset_token(&self, cid: &[u8]) -> [u8; 16] {
        let mut token = [0; 16];
        let tag = hmac::sign(&self.reset, cid);
        let (first, _) = tag.as_ref().split_at(token.len());
        token.copy_from_slice(first);
        token
    }
}

/// A worker among the others of its host.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its number.
    pub worker: u32,
    /// How many there are.
    pub workers: u32,
}

/// Makes and knows the connection IDs of one worker.
pub(super) struct Cids {
    pub(super) keys: QuicKeys,
    own: Routing,
    workers: u32,
    /// Random bytes drawn at once, and how many of them are used up.
    random: Cell<([u8; RANDOM_BYTES], usize)>,
}

/// A system call's worth.
const RANDOM_BYTES: usize = 256;

impl Cids {
    /// Those of a worker; `None` when it has too high a number.
    pub(super) fn new(keys: QuicKeys, place: Place) -> Option<Self> {
        let own = Routing::new(HOST, GENERATION, place.worker)?;
        let random = Cell::new(([0; RANDOM_BYTES], RANDOM_BYTES));
        Some(Self { keys, own, workers: place.workers, random })
    }

    /// A new connection ID; `None` when the system has no random bytes.
    pub(super) fn draw(&self) -> Option<[u8; CID_BYTES]> {
        Some(self.keys.codec.encode(self.own, u64::from_le_bytes(self.random()?)))
    }

    /// Eight random bytes.
    pub(super) fn random(&self) -> Option<[u8; 8]> {
        let (mut bytes, mut used) = self.random.get();
        if used + 8 > bytes.len() {
            rand::fill(&mut bytes).ok()?;
            used = 0;
        }
        let mut drawn = [0; 8];
        drawn.copy_from_slice(bytes.get(used..used + 8)?);
        self.random.set((bytes, used + 8));
        Some(drawn)
    }

    /// Whose connection ID it is.
    pub(super) fn owner(&self, cid: &[u8]) -> Owner {
        match <&[u8; CID_BYTES]>::try_from(cid).ok().and_then(|cid| self.keys.codec.decode(cid).ok()) {
            None => Owner::Nobody,
            Some(routing) if routing == self.own => Owner::Own,
            Some(routing) if self.is_beside(routing) => Owner::Beside(routing.worker()),
            Some(_) => Owner::Elsewhere,
        }
    }

    /// Which worker the kernel chooses for a datagram with a connection ID of a client, when it is not this one.
    pub(super) fn chosen(&self, datagram: &[u8]) -> Owner {
        let Some(steering) = self.keys.steering(self.workers) else { return Owner::Nobody };
        let worker = match steering.aim(datagram, 0, datagram.len()) {
            Aim::Fresh(index) => index.checked_sub(steering.bank.base()),
            Aim::Owner(_) | Aim::Drop(_) => None,
        };
        worker.filter(|worker| *worker != self.own.worker()).map_or(Owner::Nobody, Owner::Beside)
    }

    /// Whether it names a worker of this host and generation.
    fn is_beside(&self, routing: Routing) -> bool {
        let (host, generation) = (routing.host(), routing.generation());
        (host, generation) == (self.own.host(), self.own.generation()) && routing.worker() < self.workers
    }
}

/// Whose a connection ID is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// Not one of ours: a client's, or a stranger's.
    Nobody,
    /// This worker's.
    Own,
    /// Of the worker of this number, which lives beside this one.
    Beside(u32),
    /// Of a worker that is not there: of another host, or of another generation.
    Elsewhere,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_ids_name_their_worker_in_every_process() {
        let secret = Secret::generate().expect("random bytes");
        let (one, two) = (QuicKeys::new(&secret), QuicKeys::new(&secret));
        let [one, two, alone] = [(&one, 0, 2), (&two, 1, 2), (&two, 1, 1)].map(|(keys, worker, workers)| {
            Cids::new(keys.clone(), Place { worker, workers }).expect("few workers")
        });
        let cid = one.draw().expect("random bytes");
        assert_eq!((one.owner(&cid), two.owner(&cid)), (Owner::Own, Owner::Beside(0)));
        let cid_of_two = two.draw().expect("random bytes");
        let elsewhere = alone.keys.codec.encode(Routing::new(HOST + 1, GENERATION, 0).expect("few"), 1);
        let later = alone.keys.codec.encode(Routing::new(HOST, GENERATION + 1, 0).expect("few"), 1);
        let beyond = one.keys.codec.encode(Routing::new(HOST, GENERATION, 2).expect("few"), 1);
        assert_eq!(one.owner(&cid_of_two), Owner::Beside(1));
        for cid in [elsewhere, later, beyond] {
            assert_eq!(one.owner(&cid), Owner::Elsewhere);
        }
        // Both workers choose the same one for a client's.
        let initial = [&[0xc0, 0, 0, 0, 1, 8][..], b"a client", &[0; 16]].concat();
        match (one.chosen(&initial), two.chosen(&initial)) {
            (Owner::Beside(1), Owner::Nobody) | (Owner::Nobody, Owner::Beside(0)) => {}
            others => panic!("{others:?}"),
        }
        assert_eq!(one.keys.reset_token(&cid), two.keys.reset_token(&cid));
        let mut other = cid;
        other[5] ^= 1;
        assert_eq!((one.owner(&other), one.owner(&cid[..15])), (Owner::Nobody, Owner::Nobody));
        assert_ne!(one.keys.reset_token(&cid), one.keys.reset_token(&other));
        let stranger = QuicKeys::new(&Secret::generate().expect("random bytes"));
        assert_ne!(stranger.reset_token(&cid), one.keys.reset_token(&cid));
        // More than are drawn at once.
        let drawn: std::collections::HashSet<_> = (0..100).map(|_| one.draw()).collect();
        assert_eq!(drawn.len(), 100);
    }
}
