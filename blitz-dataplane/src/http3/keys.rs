//! Keys of QUIC, derived from the master secret: every worker has the same, and so has one that is started later.
//!
//! Those of connection IDs change by epoch, which the clock numbers. Two are live at a time: that of the current
//! epoch, and in its first half that of the one before, whose connection IDs are replaced meanwhile; in its second
//! half that of the next, so that clocks may differ by half an epoch. All others outlive epochs.
//!
//! ```text
//! epoch        … 6 … │ … … … 7 … … … │ … 8 …
//! made with      6   │   7       7   │   8
//! live          5,6  │  6,7  │  7,8  │  7,8
//! ```
//!
//! Owns: the derivation, epochs, connection IDs of a worker, tokens of stateless resets. Does not own: the secret
//! (`crate::secret`), the layout of connection IDs (`blitz_ebpf_common::cid`), Retry tokens (`retry.rs`), when a
//! connection replaces its own (`server.rs`) and the kernel learns of new keys (`process::listeners`).

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

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
    root: hkdf::Prk,
    epoch_seconds: u64,
    clock: fn() -> u64,
    live: Cell<Live>,
    pick: chaskey::Key,
    reset: hmac::Key,
    retry: hmac::Key,
}

/// The keys of connection IDs that are live.
#[derive(Clone, Copy, Debug)]
struct Live {
    codec: Codec,
    /// The epochs of the two, the even one first.
    epochs: [u64; 2],
    /// From when on, and until when (Unix seconds).
    during: (u64, u64),
}

impl std::fmt::Debug for QuicKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QuicKeys")
    }
}

impl QuicKeys {
    /// From the master secret. An epoch has `epoch_seconds`, which all who share the secret have to agree on.
    pub fn new(secret: &Secret, epoch_seconds: u32) -> Self {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"blitz quic keys").extract(secret.bytes());
        // Holds at no time, so that the first use looks at the clock.
        let none = cid::Keys { even: [0; 4], odd: [0; 4], issues: Parity::Even };
        let live = Live { codec: Codec::new(none), epochs: [0, 1], during: (0, 0) };
        Self {
            epoch_seconds: epoch_seconds.max(2).into(),
            clock: now_seconds,
            live: Cell::new(live),
            pick: chaskey::Key::new(words(&expand(&root, &[b"pick"]))),
            reset: hmac::Key::new(hmac::HMAC_SHA256, &expand(&root, &[b"reset"])),
            retry: hmac::Key::new(hmac::HMAC_SHA256, &expand(&root, &[b"retry"])),
            root,
        }
    }

    /// With another clock.
    #[cfg(test)]
    pub(crate) fn with_clock(self, clock: fn() -> u64) -> Self {
        Self { clock, ..self }
    }

    /// How the kernel steers among `workers` now; `None` when there are more than connection IDs can name.
    pub fn steering(&self, workers: u32) -> Option<Steering> {
        Some(Steering { codec: self.codec(), pick: self.pick, bank: Bank::new(workers, GENERATION)? })
    }

    /// Makes and reads connection IDs, as of now.
    pub(super) fn codec(&self) -> Codec {
        self.live().codec
    }

    /// The epochs whose keys are live, and for how many seconds they are.
    pub fn live_epochs(&self) -> ([u64; 2], u64) {
        let live = self.live();
        (live.epochs, live.during.1.saturating_sub((self.clock)()))
    }

    /// Seconds of an epoch.
    pub fn epoch_seconds(&self) -> u32 {
        u32::try_from(self.epoch_seconds).unwrap_or(u32::MAX)
    }

    fn live(&self) -> Live {
        let now = (self.clock)();
        let live = self.live.get();
        // Also for a clock that was set back.
        if (live.during.0..live.during.1).contains(&now) {
            return live;
        }
        let live = self.live_at(now);
        self.live.set(live);
        live
    }

    fn live_at(&self, now: u64) -> Live {
        let epoch = now / self.epoch_seconds;
        let (begin, half) = (epoch * self.epoch_seconds, self.epoch_seconds / 2);
        let (other, during) = match now - begin < half {
            true => (epoch.saturating_sub(1), (begin, begin + half)),
            false => (epoch + 1, (begin + half, begin + self.epoch_seconds)),
        };
        let is_even = epoch.is_multiple_of(2);
        let (even, odd) = if is_even { (epoch, other) } else { (other, epoch) };
        let key = |epoch: u64| words(&expand(&self.root, &[b"cid", &epoch.to_be_bytes()]));
        let issues = if is_even { Parity::Even } else { Parity::Odd };
        let codec = Codec::new(cid::Keys { even: key(even), odd: key(odd), issues });
        Live { codec, epochs: [even, odd], during }
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

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn expand(root: &hkdf::Prk, info: &[&[u8]]) -> [u8; 32] {
    let mut key = [0; 32];
    let derived = root.expand(info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key));
    debug_assert!(derived.is_ok(), "32 bytes are what HKDF-SHA256 gives at once");
    key
}

fn words(key: &[u8; 32]) -> [u32; 4] {
    let word = |at: usize| u32::from_le_bytes([key[at], key[at + 1], key[at + 2], key[at + 3]]);
    [word(0), word(4), word(8), word(12)]
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
    /// Connection IDs made since the last look.
    made: Cell<u64>,
}

/// A system call's worth.
const RANDOM_BYTES: usize = 256;

impl Cids {
    /// Those of a worker; `None` when it has too high a number.
    pub(super) fn new(keys: QuicKeys, place: Place) -> Option<Self> {
        let own = Routing::new(HOST, GENERATION, place.worker)?;
        let random = Cell::new(([0; RANDOM_BYTES], RANDOM_BYTES));
        Some(Self { keys, own, workers: place.workers, random, made: Cell::new(0) })
    }

    /// A new connection ID; `None` when the system has no random bytes.
    pub(super) fn draw(&self) -> Option<[u8; CID_BYTES]> {
        let nonce = u64::from_le_bytes(self.random()?);
        self.made.set(self.made.get() + 1);
        Some(self.keys.codec().encode(self.own, nonce))
    }

    /// How many were made since this was asked last.
    pub(super) fn made(&self) -> u64 {
        self.made.take()
    }

    /// A connection ID that is none of ours, of which the choice of a worker is as for a client's; `None` as above.
    pub(super) fn draw_foreign(&self) -> Option<[u8; CID_BYTES]> {
        let mut cid = [0; CID_BYTES];
        let (first, second) = cid.split_first_chunk_mut()?;
        *first = self.random()?;
        second.copy_from_slice(&self.random()?);
        // Another format.
        cid[0] &= 0x3f;
        Some(cid)
    }

    /// The epoch of new connection IDs for who lags behind the clock by `lag` seconds, and how many seconds it has
    /// left.
    pub(super) fn epoch(&self, lag: u64) -> (u64, u64) {
        let (now, length) = ((self.keys.clock)().saturating_sub(lag), self.keys.epoch_seconds);
        (now / length, length - now % length)
    }

    /// For how many seconds, drawn anew for each connection, one may lag behind, so that not all of a worker change
    /// at once: up to a quarter of an epoch.
    pub(super) fn lag(&self) -> u64 {
        let drawn = self.random().map_or(0, u64::from_le_bytes);
        drawn % (self.keys.epoch_seconds / 4).max(1)
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
        match <&[u8; CID_BYTES]>::try_from(cid).ok().and_then(|cid| self.keys.codec().decode(cid).ok()) {
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

    fn at_place(worker: u32) -> Place {
        Place { worker, workers: 4 }
    }

    /// An epoch of these tests (seconds).
    const EPOCH: u64 = 100;

    fn keys(secret: &Secret, clock: fn() -> u64) -> QuicKeys {
        QuicKeys::new(secret, 100).with_clock(clock)
    }

    #[test]
    fn an_epochs_connection_ids_are_known_from_half_an_epoch_before_it_to_half_an_epoch_after() {
        let secret = Secret::generate().expect("random bytes");
        for begin in [7 * EPOCH, 8 * EPOCH] {
            let at: fn() -> u64 = if begin == 700 { || 700 } else { || 800 };
            let cid =
                Cids::new(keys(&secret, at), at_place(3)).expect("few workers").draw().expect("random bytes");
            let known = |now: u64| keys(&secret, now_seconds).live_at(now).codec.decode(&cid).is_ok();
            assert!((begin - 50..begin + 150).all(known));
            assert!([begin - 51, begin + 150, begin + 200, begin - 200].into_iter().all(|now| !known(now)));
        }
    }

    #[test]
    fn two_epochs_are_live_and_their_keys_stay_in_their_places() {
        let keys = keys(&Secret::generate().expect("random bytes"), now_seconds);
        let live = |now| {
            let Live { epochs, during, .. } = keys.live_at(now);
            (epochs, during)
        };
        assert_eq!(live(0), ([0, 0], (0, 50)), "before the first there is none");
        assert_eq!(live(700), ([6, 7], (700, 750)));
        assert_eq!(live(749), ([6, 7], (700, 750)));
        assert_eq!(live(750), ([8, 7], (750, 800)));
        assert_eq!(live(800), ([8, 7], (800, 850)));
        assert_eq!(live(850), ([8, 9], (850, 900)));
        // What is kept follows the clock, in both directions.
        for clock in [(|| 760) as fn() -> u64, || 900, || 700] {
            let keys = keys.clone().with_clock(clock);
            assert_eq!(keys.live_epochs().0, keys.live_at(clock()).epochs);
            assert_eq!(keys.live_epochs().1, keys.live_at(clock()).during.1 - clock());
        }
        let cids = Cids::new(keys.with_clock(|| 705), at_place(0)).expect("few workers");
        assert_eq!((cids.epoch(5), cids.epoch(6)), ((7, 100), (6, 1)));
        assert!((0..100).all(|_| cids.lag() < 25));
    }

    #[test]
    fn a_foreign_one_is_steered_like_a_clients() {
        let cids = Cids::new(keys(&Secret::generate().expect("random bytes"), now_seconds), at_place(0))
            .expect("few");
        for _ in 0..100 {
            let cid = cids.draw_foreign().expect("random bytes");
            assert_eq!(cids.keys.codec().decode(&cid), Err(cid::Reject::Format));
        }
    }

    #[test]
    fn connection_ids_name_their_worker_in_every_process() {
        let secret = Secret::generate().expect("random bytes");
        let (one, two) = (QuicKeys::new(&secret, 100), QuicKeys::new(&secret, 100));
        let [one, two, alone] = [(&one, 0, 2), (&two, 1, 2), (&two, 1, 1)].map(|(keys, worker, workers)| {
            Cids::new(keys.clone(), Place { worker, workers }).expect("few workers")
        });
        let cid = one.draw().expect("random bytes");
        assert_eq!((one.owner(&cid), two.owner(&cid)), (Owner::Own, Owner::Beside(0)));
        let cid_of_two = two.draw().expect("random bytes");
        let elsewhere = alone.keys.codec().encode(Routing::new(HOST + 1, GENERATION, 0).expect("few"), 1);
        let later = alone.keys.codec().encode(Routing::new(HOST, GENERATION + 1, 0).expect("few"), 1);
        let beyond = one.keys.codec().encode(Routing::new(HOST, GENERATION, 2).expect("few"), 1);
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
        let stranger = QuicKeys::new(&Secret::generate().expect("random bytes"), 100);
        assert_ne!(stranger.reset_token(&cid), one.keys.reset_token(&cid));
        // More than are drawn at once.
        let drawn: std::collections::HashSet<_> = (0..100).map(|_| one.draw()).collect();
        assert_eq!(drawn.len(), 100);
    }
}
