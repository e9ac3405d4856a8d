//! A set of a client's last streams.
//!
//! Owns: one bit for each of the last 4,096 streams that a client may have opened (their numbers are odd). Does not
//! own: what it means to be in the set. Nothing is said of older streams: their bits belong to younger ones.

/// Words of 64 streams each: 512 bytes.
const WORDS: usize = 64;

/// How far below the highest stream the set reaches, in stream numbers.
const REACH: u32 = (WORDS * 64 * 2) as u32;

/// The set. Empty at first.
#[derive(Clone, Debug)]
pub(super) struct StreamSet([u64; WORDS]);

impl Default for StreamSet {
    fn default() -> Self {
        Self([0; WORDS])
    }
}

impl StreamSet {
    const fn place(stream: u32) -> (usize, u64) {
        let index = (stream / 2) as usize;
        (index / 64 % WORDS, 1 << (index % 64))
    }

    /// Puts a stream in or takes it out.
    pub(super) fn set(&mut self, stream: u32, is_in: bool) {
        let (word, bit) = Self::place(stream);
        if let Some(word) = self.0.get_mut(word) {
            *word = if is_in { *word | bit } else { *word & !bit };
        }
    }

    /// Whether a stream is in the set, `highest` being the highest that was opened; `None` when it is too old to say.
    pub(super) fn get(&self, stream: u32, highest: u32) -> Option<bool> {
        if highest.saturating_sub(stream) >= REACH {
            return None;
        }
        let (word, bit) = Self::place(stream);
        self.0.get(word).map(|word| word & bit != 0)
    }

    /// Takes out those between `highest` and `next`, which is about to be opened, and `next` itself. At most one step
    /// for each stream of the set.
    pub(super) fn advance(&mut self, highest: u32, next: u32) {
        if next.saturating_sub(highest) >= REACH {
            *self = Self::default();
            return;
        }
        let mut stream = next;
        while stream > highest {
            self.set(stream, false);
            stream = stream.saturating_sub(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_a_set_that_forgets_nothing() {
        let mut exact = std::collections::HashSet::new();
        let (mut set, mut highest) = (StreamSet::default(), 0);
        let mut state = 1_u32;
        for _ in 0..20_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let step = if state >> 28 == 0 { 2 + (state >> 8) % 20_000 } else { 2 + (state >> 8) % 8 };
            let next = (highest + step) | 1;
            set.advance(highest, next);
            highest = next;
            if state & 0x100 != 0 {
                set.set(next, true);
                exact.insert(next);
            }
            let asked = highest.saturating_sub((state >> 4) % 10_000) | 1;
            if asked <= highest
                && let Some(is_in) = set.get(asked, highest)
            {
                assert_eq!(is_in, exact.contains(&asked), "{asked} of {highest}");
            }
        }
        assert_eq!(set.get(1, highest), None);
    }
}
