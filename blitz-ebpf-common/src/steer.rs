//! The steering rule: which socket of its bank gets a datagram.
//!
//! Owns: the decision, as a pure function of the datagram, the keys and the shape of the bank. Does not own: the
//! programs that run it in the kernel ([`crate::cbpf`], and `sk_reuseport` in `blitz-ebpf`), the sockets (the
//! supervisor), the tag of short headers, which the worker checks.
//!
//! A bank has two sockets for each worker and one more, the sink. Socket `(generation mod 2) * workers + worker`
//! belongs to that worker of that generation for ever; the sink takes what nobody gets, and refuses it. It has to be a
//! socket: a program that names none makes the kernel choose by a hash (classic BPF), or answer the sender with an ICMP
//! error (`SK_DROP`).
//!
//! Only what all versions of QUIC share is looked at. A long header belongs to a connection of ours when its tag says
//! so. Else its destination connection ID was chosen by a client, and the worker is chosen by a keyed hash of that: a
//! repeated Initial meets the same worker, and nobody can aim at one.

use crate::chaskey::Key;
use crate::cid::{CID_BYTES, Codec, Routing, WORKERS_MAX};
use crate::packet::Bytes;
use crate::quic::{self, Header, LONG_DCID_AT, Malformed, VERSION_NEGOTIATION};

/// Octets of a client's connection ID that count for the choice of a worker. RFC 9000 section 7.2: the client's first
/// has at least 8, which cannot be guessed. Of a shorter one all count.
pub const PICK_BYTES: usize = 8;
/// Padding that follows the length, the ninth octet of the hashed message.
pub(crate) const PICK_PADDING: u32 = 1 << 8;

/// The shape of a bank.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bank {
    workers: u32,
    generation: u32,
}

impl Bank {
    /// A bank for `workers` workers, of which those of `generation` get new connections. `None` unless there are
    /// 1 to [`WORKERS_MAX`] of them.
    pub const fn new(workers: u32, generation: u32) -> Option<Self> {
        if workers == 0 || workers > WORKERS_MAX {
            return None;
        }
        Some(Self { workers, generation })
    }

    /// Workers of one generation (count).
    #[inline(always)]
    pub const fn workers(&self) -> u32 {
        self.workers
    }

    /// The generation that gets new connections.
    #[inline(always)]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// The socket of a worker. `None` when the bank has none of this number.
    #[inline(always)]
    pub const fn index(&self, generation: u32, worker: u32) -> Option<u32> {
        if worker >= self.workers {
            return None;
        }
        Some((generation & 1) * self.workers + worker)
    }

    /// The first socket of the generation that gets new connections.
    #[inline(always)]
    pub const fn base(&self) -> u32 {
        (self.generation & 1) * self.workers
    }

    /// The socket that refuses all.
    #[inline(always)]
    pub const fn sink(&self) -> u32 {
        2 * self.workers
    }

    /// Sockets of the bank (count).
    pub const fn sockets(&self) -> u32 {
        2 * self.workers + 1
    }
}

/// Everything that the decision depends on besides the datagram.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Steering {
    /// Reads connection IDs.
    pub codec: Codec,
    /// Hashes those that clients choose. It outlives the epochs of the others: a repeated Initial must meet the same
    /// worker.
    pub pick: Key,
    /// The bank.
    pub bank: Bank,
}

/// Octets of [`Steering::to_bytes`].
pub const STEERING_BYTES: usize = 4 * STEERING_WORDS;
const STEERING_WORDS: usize = 8 + 8 + 1 + 8 + 2;

impl Steering {
    /// As octets, to be handed to another process of this host and version. They hold the keys: whoever has them
    /// steers, and wipes them.
    pub fn to_bytes(&self) -> [u8; STEERING_BYTES] {
        let (even, odd, issues) = self.codec.parts();
        let words = even.to_words().into_iter().chain(odd.to_words()).chain([issues]);
        let words = words.chain(self.pick.to_words()).chain([self.bank.workers, self.bank.generation]);
        let mut bytes = [0; STEERING_BYTES];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What [`Self::to_bytes`] gave. `None` when it gave something else.
    pub fn from_bytes(bytes: &[u8; STEERING_BYTES]) -> Option<Self> {
        fn key(words: &mut impl Iterator<Item = u32>) -> Option<Key> {
            let mut key = [0; 8];
            for word in &mut key {
                *word = words.next()?;
            }
            Some(Key::from_words(key))
        }
        let mut words = bytes.as_chunks().0.iter().map(|octets| u32::from_le_bytes(*octets));
        let (even, odd, issues, pick) = (key(&mut words)?, key(&mut words)?, words.next()?, key(&mut words)?);
        let codec = Codec::from_parts(even, odd, issues)?;
        let bank = Bank::new(words.next()?, words.next()?)?;
        Some(Self { codec, pick, bank })
    }
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// To the socket of this index: the worker that its connection ID names.
    Owner(u32),
    /// To the socket of this index: a worker for a new connection.
    Fresh(u32),
    /// Nowhere.
    Drop(Refusal),
}

impl Aim {
    /// The labels of the counters, by [`Self::number`].
    pub const LABELS: [&str; 2 + Refusal::ALL.len()] =
        ["owner", "fresh", "empty", "cut", "format", "version_negotiation", "worker", "slot", "unset"];

    /// The number of its counter.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        match self {
            Self::Owner(_) => 0,
            Self::Fresh(_) => 1,
            Self::Drop(why) => 2 + why as u32,
        }
    }

    /// The label of its counter.
    pub const fn as_str(self) -> &'static str {
        Self::LABELS[self.number() as usize]
    }
}

/// Why a datagram goes nowhere.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has no octets.
    Empty = 0,
    /// It ends within its header.
    Cut = 1,
    /// A short header whose connection ID has not our format.
    Format = 2,
    /// Only servers send Version Negotiation.
    VersionNegotiation = 3,
    /// The bank has no such worker.
    Worker = 4,
    /// The worker's socket is not there. Only a program in the kernel finds this.
    Slot = 5,
    /// Nobody has said yet how to steer, or has said it to another version. Likewise.
    Unset = 6,
}

impl Refusal {
    /// Each of them, by its number.
    pub const ALL: [Self; 7] = [
        Self::Empty,
        Self::Cut,
        Self::Format,
        Self::VersionNegotiation,
        Self::Worker,
        Self::Slot,
        Self::Unset,
    ];
}

impl From<Malformed> for Refusal {
    #[inline(always)]
    fn from(why: Malformed) -> Self {
        match why {
            Malformed::Empty => Self::Empty,
            Malformed::Cut => Self::Cut,
        }
    }
}

/// Version of [`Entry`] and of what its words mean.
pub const VERSION: u32 = 1;
/// Names of the maps of the `sk_reuseport` program.
pub mod maps {
    /// Array of one [`super::Entry`]. Written by the loader, read for each datagram.
    pub const STEERING: &str = "STEERING";
    /// Array of sockets by their index in the bank; [`super::SOCKETS_MAX`] of them, 8 octets each.
    pub const BANK: &str = "BANK";
    /// Per-CPU array of `u64` by [`super::Aim::number`]: datagrams, or aggregates of them.
    pub const AIMS: &str = "AIMS";
}
/// Name of the `sk_reuseport` program in its object.
pub const PROGRAM: &str = "blitz_reuseport";
/// Entries of [`maps::BANK`]: the largest bank.
pub const SOCKETS_MAX: u32 = 2 * WORKERS_MAX + 1;

/// What the `sk_reuseport` program reads.
///
/// It is written while datagrams are decided by it, and not in one step. That is harmless as long as each write changes
/// only the key of an epoch whose connection IDs have ended (it makes room for the next epoch's), or single words: the
/// generation, the key that issues. The number of workers never changes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// [`VERSION`]. 0 in a map that nobody has written yet.
    pub version: u32,
    /// How to steer.
    pub steering: Steering,
}

impl Steering {
    /// Decides about the datagram of `length` octets at `at`.
    #[inline(always)]
    pub fn aim<B: Bytes + ?Sized>(&self, bytes: &B, at: usize, length: usize) -> Aim {
        match quic::parse(bytes, at, length) {
            Err(why) => Aim::Drop(why.into()),
            Ok(Header::Short { dcid_at }) => match bytes.array(dcid_at) {
                None => Aim::Drop(Refusal::Cut),
                Some(cid) => match self.codec.route(&cid) {
                    Some(routing) => self.owner(routing),
                    None => Aim::Drop(Refusal::Format),
                },
            },
            Ok(Header::Long { version: VERSION_NEGOTIATION, .. }) => Aim::Drop(Refusal::VersionNegotiation),
            Ok(Header::Long { dcid, .. }) => {
                if usize::from(dcid.length) == CID_BYTES
                    && let Some(cid) = bytes.array(dcid.at)
                    && let Ok(routing) = self.codec.decode(&cid)
                {
                    return self.owner(routing);
                }
                // The eight octets are read at once, also where fewer count; what is shorter than this is worth nothing
                // to anybody.
                match bytes.array(dcid.at) {
                    Some(window) if length >= LONG_DCID_AT + PICK_BYTES => {
                        Aim::Fresh(self.bank.base() + self.pick(window, dcid.length))
                    }
                    _ => Aim::Drop(Refusal::Cut),
                }
            }
        }
    }

    #[inline(always)]
    const fn owner(&self, routing: Routing) -> Aim {
        match self.bank.index(routing.generation(), routing.worker()) {
            Some(index) => Aim::Owner(index),
            None => Aim::Drop(Refusal::Worker),
        }
    }

    /// The worker for a connection ID of `length` octets that begins with `window`.
    #[inline(always)]
    const fn pick(&self, window: [u8; PICK_BYTES], length: u8) -> u32 {
        let window = u64::from_be_bytes(window) & counting(length);
        let block = [(window >> 32) as u32, window as u32, PICK_PADDING | length as u32, 0];
        // A bank without workers is none that was made; the division must not be able to fail all the same.
        match self.pick.word(block).checked_rem(self.bank.workers) {
            Some(worker) => worker,
            None => 0,
        }
    }
}

/// The bits of the window that belong to a connection ID of `length` octets.
#[inline(always)]
pub(crate) const fn counting(length: u8) -> u64 {
    if length as usize >= PICK_BYTES { u64::MAX } else { !(u64::MAX >> (8 * length as u32)) }
}

#[cfg(test)]
mod tests;
