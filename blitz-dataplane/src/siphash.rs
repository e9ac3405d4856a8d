//! SipHash, a keyed hash of 64 bits (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012).
//!
//! Who does not know the key cannot choose inputs that collide, which is what keeps a hash table that
//! strangers fill in shape. Owns: the function. Does not own: keys (see [`crate::segment`]).
#![forbid(unsafe_code)]

/// SipHash with `C` rounds for each word and `D` at the end, over words and then a tail of octets. The
/// result is that of the function over all of it in a row, words in little endian.
#[derive(Clone, Copy, Debug)]
pub struct SipHash<const C: usize, const D: usize> {
    state: [u64; 4],
    /// Octets so far, modulo 256 as the padding wants it.
    len: u8,
}

/// One round for each word and three at the end: what the standard library's maps use.
pub type SipHash13 = SipHash<1, 3>;

impl<const C: usize, const D: usize> SipHash<C, D> {
    /// The start of a hash.
    #[inline]
    pub fn new([k0, k1]: [u64; 2]) -> Self {
        // "somepseudorandomlygeneratedbytes"
        let state = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        Self { state, len: 0 }
    }

    /// Takes eight octets.
    #[inline]
    #[must_use]
    pub fn word(mut self, word: u64) -> Self {
        self.absorb(word);
        self.len = self.len.wrapping_add(8);
        self
    }

    /// The hash of what was taken and of `tail`.
    #[inline]
    pub fn finish(mut self, tail: &[u8]) -> u64 {
        let (words, rest) = tail.as_chunks::<8>();
        for word in words {
            self.absorb(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        for (slot, byte) in last.iter_mut().zip(rest) {
            *slot = *byte;
        }
        last[7] = self.len.wrapping_add(tail.len() as u8);
        self.absorb(u64::from_le_bytes(last));
        self.state[2] ^= 0xff;
        for _ in 0..D {
            self.round();
        }
        self.state.iter().fold(0, |hash, word| hash ^ word)
    }

    #[inline]
    fn absorb(&mut self, word: u64) {
        self.state[3] ^= word;
        for _ in 0..C {
            self.round();
        }
        self.state[0] ^= word;
    }

    #[inline]
    fn round(&mut self) {
        let [v0, v1, v2, v3] = &mut self.state;
        *v0 = v0.wrapping_add(*v1);
        *v1 = v1.rotate_left(13) ^ *v0;
        *v0 = v0.rotate_left(32);
        *v2 = v2.wrapping_add(*v3);
        *v3 = v3.rotate_left(16) ^ *v2;
        *v0 = v0.wrapping_add(*v3);
        *v3 = v3.rotate_left(21) ^ *v0;
        *v2 = v2.wrapping_add(*v1);
        *v1 = v1.rotate_left(17) ^ *v2;
        *v2 = v2.rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of the reference vectors: octets 0 to 15.
    const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    #[test]
    fn the_reference_vectors_of_siphash_2_4() {
        // `vectors.h` of the authors, inputs 0, 1, 2, … of 0, 7, 8 and 15 octets, read as little endian.
        let input: Vec<u8> = (0..15).collect();
        let vectors = [
            (0, 0x726f_db47_dd0e_0e31),
            (1, 0x74f8_39c5_93dc_67fd),
            (7, 0xab02_00f5_8b01_d137),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5),
        ];
        for (len, expected) in vectors {
            assert_eq!(SipHash::<2, 4>::new(KEY).finish(&input[..len]), expected, "{len} octets");
        }
        let word = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(SipHash::<2, 4>::new(KEY).word(word).finish(&input[8..]), 0xa129_ca61_49be_45e5);
    }

    #[test]
    #[allow(deprecated, reason = "the standard library's own SipHash-1-3 has no constructor with keys")]
    fn words_and_octets_in_a_row_are_one_input() {
        use std::hash::Hasher;
        for len in 0..64usize {
            let input: Vec<u8> = (0..len as u8).map(|byte| byte.wrapping_mul(37)).collect();
            let mut reference = std::hash::SipHasher::new_with_keys(KEY[0], KEY[1]);
            reference.write(&input);
            let (words, rest) = input.as_chunks::<8>();
            let start = SipHash::<2, 4>::new(KEY);
            let ours = words.iter().fold(start, |hash, word| hash.word(u64::from_le_bytes(*word)));
            assert_eq!(ours.finish(rest), reference.finish());
            assert_eq!(start.finish(&input), reference.finish());
        }
    }
}
