//! Chaskey-12: a keyed function of at most 15 octets, of 32-bit additions, rotations and exclusive ors.
//!
//! Owns: the permutation, the key schedule, one block. Does not own: what is put into the block
//! ([`crate::cid`], [`crate::steer`]), or where the key comes from (the master secret).
//!
//! Mouha, Mennink, Van Herrewege, Watanabe, Preneel, Verbauwhede, "Chaskey: An Efficient MAC Algorithm for 32-bit
//! Microcontrollers", SAC 2014; with 12 rounds in ISO/IEC 29192-6:2019. `docs/quic.md` says why this one.
//!
//! Constant time: the code is one straight line of additions, rotations by constants and exclusive ors on 32-bit
//! words. No branch, no index and no shift count depends on the key or on the block, so neither does the time.

/// Rounds of the permutation.
pub const ROUNDS: usize = 12;

/// A key as the function uses it: added before the permutation and after it. Wants to be kept as secret as the key.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Key {
    /// K ^ K2, added to the block.
    pub(crate) before: [u32; 4],
    /// K2, added to the result.
    pub(crate) after: [u32; 4],
}

impl Key {
    /// From the key's 16 octets as four little-endian words.
    pub const fn new(key: [u32; 4]) -> Self {
        let after = twice(twice(key));
        Self { before: xor(key, after), after }
    }

    /// As eight words that [`Self::from_words`] takes. As secret as the key.
    pub(crate) const fn to_words(self) -> [u32; 8] {
        let ([a, b, c, d], [e, f, g, h]) = (self.before, self.after);
        [a, b, c, d, e, f, g, h]
    }

    /// What [`Self::to_words`] gave.
    pub(crate) const fn from_words([a, b, c, d, e, f, g, h]: [u32; 8]) -> Self {
        Self { before: [a, b, c, d], after: [e, f, g, h] }
    }

    /// The function of one padded block, as four words.
    ///
    /// The block is a message of at most 15 octets, then an octet 1, then zeros, read as little-endian words. Messages
    /// of different lengths are different blocks, so one key may serve several uses that differ in length.
    #[inline(always)]
    pub const fn mac(&self, block: [u32; 4]) -> [u32; 4] {
        xor(permute(xor(block, self.before)), self.after)
    }

    /// The first word of [`Self::mac`].
    #[inline(always)]
    pub const fn word(&self, block: [u32; 4]) -> u32 {
        let [word, ..] = self.mac(block);
        word
    }
}

/// Takes the same time for any two keys.
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        let words = self.before.iter().chain(&self.after).zip(other.before.iter().chain(&other.after));
        words.fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
    }
}

impl Eq for Key {}

/// Says that it is a key and nothing of it.
impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key")
    }
}

#[inline(always)]
const fn permute([mut a, mut b, mut c, mut d]: [u32; 4]) -> [u32; 4] {
    let mut round = 0;
    while round < ROUNDS {
        a = a.wrapping_add(b);
        b = b.rotate_left(5) ^ a;
        a = a.rotate_left(16);
        c = c.wrapping_add(d);
        d = d.rotate_left(8) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(13) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(7) ^ c;
        c = c.rotate_left(16);
        round += 1;
    }
    [a, b, c, d]
}

/// Multiplication by x in GF(2^128), modulo x^128 + x^7 + x^2 + x + 1.
const fn twice([a, b, c, d]: [u32; 4]) -> [u32; 4] {
    // All ones when the top bit falls out: a mask, since a branch would depend on the key.
    let reduce = 0u32.wrapping_sub(d >> 31);
    [(a << 1) ^ (0x87 & reduce), (b << 1) | (a >> 31), (c << 1) | (b >> 31), (d << 1) | (c >> 31)]
}

#[inline(always)]
const fn xor([a, b, c, d]: [u32; 4], [e, f, g, h]: [u32; 4]) -> [u32; 4] {
    [a ^ e, b ^ f, c ^ g, d ^ h]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of the designers' reference implementation (`chaskey12.c`, published at mouha.be) for messages of
    /// one block: the first eight octets of the result for 00, 01, 02 … of each length below 16, under the key
    /// 00 11 22 … ff.
    const VECTORS: [u64; 16] = [
        0xdd3e1849d6824555,
        0xed1da89ec93179ca,
        0x98fe20a343cd666f,
        0xf6f418acdd7d9fa1,
        0x4cf04960099949f3,
        0x75c83252653d3b57,
        0x964b0461fbe92273,
        0x141fa08bbf399636,
        0x412d98ed936d4ab2,
        0xfb0d98bc70e305f9,
        0x36f88e1fda86c8ab,
        0x4d1a1815868a5aa8,
        0x7a7912c1999eae81,
        0x9ca11137b4a34601,
        0x7905142f3be77e67,
        0x6a3ee3d35c043397,
    ];

    #[test]
    fn the_designers_vectors() {
        let words = |octets: [u8; 16]| {
            core::array::from_fn(|at| {
                u32::from_le_bytes([
                    octets[4 * at],
                    octets[4 * at + 1],
                    octets[4 * at + 2],
                    octets[4 * at + 3],
                ])
            })
        };
        let key = Key::new(words(core::array::from_fn(|at| (at * 0x11) as u8)));
        for (length, expected) in VECTORS.into_iter().enumerate() {
            let block = core::array::from_fn(|at| match at {
                _ if at < length => at as u8,
                _ if at == length => 1,
                _ => 0,
            });
            let [first, second, ..] = key.mac(words(block));
            let seen = u64::from(second.swap_bytes()) | u64::from(first.swap_bytes()) << 32;
            assert_eq!(seen, expected, "length {length}");
        }
    }

    #[test]
    fn doubling_reduces_when_a_bit_falls_out() {
        assert_eq!(twice([0x8000_0001, 0, 0, 0]), [2, 1, 0, 0]);
        assert_eq!(twice([0, 0, 0, 0x8000_0000]), [0x87, 0, 0, 0]);
    }

    #[test]
    fn a_key_does_not_print_itself() {
        assert_eq!(std::format!("{:?}", Key::new([1, 2, 3, 4])), "Key");
    }
}
