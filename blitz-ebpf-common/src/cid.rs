//! The connection IDs that Blitz issues: 16 octets that say where a connection lives, to those who have the key.
//!
//! Owns: the layout, masking and unmasking, the tag, what is refused. Does not own: the keyed function
//! ([`crate::chaskey`]), where keys come from (the master secret, by epoch), who draws nonces (the worker that issues),
//! what follows from a routing ([`crate::steer`]). `docs/quic.md` draws the layout and argues its security.
//!
//! ```text
//! octet   0           1 … 7     8 … 11                    12 … 15
//!         f f k n…n   n … n     routing ^ F(octets 0-7)   G(octets 0-11)
//! ```
//!
//! `f`: format; `k`: which of the two live keys; `n`: 61 bits of nonce; F and G: the first word of Chaskey-12 under key
//! `k` of a message of 8 and of 12 octets. Words are read in network order, since classic BPF has no other.
//!
//! Constant time: format and key number are in clear on the wire, so that a branch on them tells nobody anything. The
//! routing is only added to the mask, and the tag is compared as one word. What a caller does with an accepted routing
//! is visible anyway: a socket of some worker gets the packet.

use crate::chaskey::Key;

/// Octets of a connection ID.
pub const CID_BYTES: usize = 16;
/// Bits of a worker's number.
pub const WORKER_BITS: u32 = 10;
/// Bits of a generation's number.
pub const GENERATION_BITS: u32 = 6;
/// Bits of a host's number.
pub const HOST_BITS: u32 = 16;
/// Workers that have a number (count).
pub const WORKERS_MAX: u32 = 1 << WORKER_BITS;
/// Generations until numbers repeat (count).
pub const GENERATIONS: u32 = 1 << GENERATION_BITS;
/// Bits of the nonce.
pub const NONCE_BITS: u32 = 61;

const _: () = assert!(WORKER_BITS + GENERATION_BITS + HOST_BITS == u32::BITS);

/// The format's bits in the first octet.
pub(crate) const FORMAT_MASK: u8 = 0b1100_0000;
/// The format that this module speaks.
pub(crate) const FORMAT: u8 = 0b0100_0000;
/// The bit of the first word that names the key.
pub(crate) const KEY_BIT: u32 = 1 << 29;
/// What follows a message that ends with a word.
pub(crate) const PADDING: u32 = 1;

/// Where a connection lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Routing(u32);

impl Routing {
    /// A worker of a generation on a host. `generation` counts on for ever and is kept modulo [`GENERATIONS`].
    /// `None` when the worker is [`WORKERS_MAX`] or more.
    pub const fn new(host: u16, generation: u32, worker: u32) -> Option<Self> {
        if worker >= WORKERS_MAX {
            return None;
        }
        let generation = generation % GENERATIONS;
        Some(Self((host as u32) << (WORKER_BITS + GENERATION_BITS) | generation << WORKER_BITS | worker))
    }

    /// The host's number in its anycast group.
    #[inline(always)]
    pub const fn host(self) -> u16 {
        (self.0 >> (WORKER_BITS + GENERATION_BITS)) as u16
    }

    /// The generation's number, modulo [`GENERATIONS`].
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        self.0 >> WORKER_BITS & (GENERATIONS - 1)
    }

    /// The worker's number within its generation.
    #[inline(always)]
    pub const fn worker(self) -> u32 {
        self.0 & (WORKERS_MAX - 1)
    }

    /// Generation and worker, in the bits that they have here: the place on its host.
    #[inline(always)]
    pub(crate) const fn on_host(self) -> u32 {
        self.0 & ((1 << (WORKER_BITS + GENERATION_BITS)) - 1)
    }
}

/// Why 16 octets are no connection ID of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// The first octet has another format.
    Format,
    /// The tag is not that of the octets before it.
    Tag,
}

impl Reject {
    /// Each of them.
    pub const ALL: [Self; 2] = [Self::Format, Self::Tag];

    /// The label of its counter.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Format => "cid_format",
            Self::Tag => "cid_tag",
        }
    }
}

/// Which of the two live keys. An epoch's key is kept by the epoch's parity, so that the next one replaces the one
/// before the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parity {
    /// The key of an even epoch.
    Even,
    /// The key of an odd epoch.
    Odd,
}

/// The two live keys, each as four words. Derived from the master secret by epoch; both are always there, since that
/// of the epoch before, or of the next, can be derived at any time.
#[derive(Clone, Copy)]
pub struct Keys {
    /// Of the even epoch.
    pub even: [u32; 4],
    /// Of the odd epoch.
    pub odd: [u32; 4],
    /// Which one new connection IDs are made with. Both are accepted.
    pub issues: Parity,
}

/// Makes and reads connection IDs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec {
    pub(crate) even: Key,
    pub(crate) odd: Key,
    /// [`KEY_BIT`] or 0.
    issues: u32,
}

impl Codec {
    /// With two live keys.
    pub const fn new(keys: Keys) -> Self {
        let issues = match keys.issues {
            Parity::Even => 0,
            Parity::Odd => KEY_BIT,
        };
        Self { even: Key::new(keys.even), odd: Key::new(keys.odd), issues }
    }

    /// From what [`Self::parts`] gave. `None` for a key that issues and is neither.
    pub(crate) const fn from_parts(even: Key, odd: Key, issues: u32) -> Option<Self> {
        if issues != 0 && issues != KEY_BIT {
            return None;
        }
        Some(Self { even, odd, issues })
    }

    /// The two keys, and the bit of the one that issues.
    pub(crate) const fn parts(&self) -> (Key, Key, u32) {
        (self.even, self.odd, self.issues)
    }

    /// The connection ID of `routing`. Of `nonce` the low [`NONCE_BITS`] count.
    ///
    /// The nonce must not repeat under a key: two connection IDs with one nonce show the difference of their routings.
    /// It must be unpredictable, too: a counter would link the connection IDs of a connection (RFC 9000 section 5.1).
    pub const fn encode(&self, routing: Routing, nonce: u64) -> [u8; CID_BYTES] {
        let first = (FORMAT as u32) << 24 | self.issues | (nonce >> 32) as u32 & (KEY_BIT - 1);
        let second = nonce as u32;
        let key = self.key(first);
        let masked = routing.0 ^ mask(key, first, second);
        octets([first, second, masked, tag(key, first, second, masked)])
    }

    /// The routing of a connection ID of ours. Of a wrong one 1 in 2^32 is accepted.
    ///
    /// # Errors
    /// Why it is none of ours.
    #[inline(always)]
    pub const fn decode(&self, cid: &[u8; CID_BYTES]) -> Result<Routing, Reject> {
        let [first, second, masked, carried] = words(cid);
        if !is_ours(first) {
            return Err(Reject::Format);
        }
        let key = self.key(first);
        if tag(key, first, second, masked) != carried {
            return Err(Reject::Tag);
        }
        Ok(Routing(masked ^ mask(key, first, second)))
    }

    /// The routing without a look at the tag, for half the price: what the programs in the kernel do for short
    /// headers. `None` when the format is another: of random octets 1 in 4 has a routing, any.
    #[inline(always)]
    pub const fn route(&self, cid: &[u8; CID_BYTES]) -> Option<Routing> {
        let [first, second, masked, _] = words(cid);
        if !is_ours(first) {
            return None;
        }
        Some(Routing(masked ^ mask(self.key(first), first, second)))
    }

    #[inline(always)]
    const fn key(&self, first: u32) -> &Key {
        if first & KEY_BIT == 0 { &self.even } else { &self.odd }
    }
}

#[inline(always)]
const fn is_ours(first: u32) -> bool {
    first >> 24 & FORMAT_MASK as u32 == FORMAT as u32
}

#[inline(always)]
const fn mask(key: &Key, first: u32, second: u32) -> u32 {
    key.word([first, second, PADDING, 0])
}

#[inline(always)]
const fn tag(key: &Key, first: u32, second: u32, masked: u32) -> u32 {
    key.word([first, second, masked, PADDING])
}

#[inline(always)]
const fn words(cid: &[u8; CID_BYTES]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *cid;
    [
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]),
        u32::from_be_bytes([i, j, k, l]),
        u32::from_be_bytes([m, n, o, p]),
    ]
}

const fn octets([a, b, c, d]: [u32; 4]) -> [u8; CID_BYTES] {
    let all = (a as u128) << 96 | (b as u128) << 64 | (c as u128) << 32 | d as u128;
    all.to_be_bytes()
}

#[cfg(test)]
mod tests;
