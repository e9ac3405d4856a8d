//! A table of buckets for many sources, in plain words.
//!
//! Owns: where the bucket of a source lies, and who makes room for a new one. Does not own: the memory
//! (a BPF array in the kernel, the shared segment in user space), or the arithmetic ([`crate::gcra`]).
//!
//! The table is an array of sets of four sources. A bucket that is full again says nothing that an empty
//! place would not say, so giving its place to another source loses nothing: what the table must hold
//! is not all sources, but those that are in debt at the same time. Only when all four of a set are
//! does the one with the least debt make room; that forgets its debt, and is counted.
//!
//! A lookup touches one set of two cache lines and takes no lock, whether the source is known or new. An
//! LRU hash of the kernel takes three to five cache misses, and a lock for every new source, which is
//! what a flood from forged sources consists of.

use crate::gcra::{Word, ahead};
use crate::layout::SourceKey;

/// Sources in one set.
pub const WAYS: usize = 4;

/// One set of 128 octets. `W` is `u64` for a copy, and a [`Word`] where CPUs share it.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set<W> {
    /// What marks each source; zero for none.
    pub tags: [W; WAYS],
    /// The bucket words, by [`crate::layout::Dimension`], and then of each source: a known source whose
    /// packets are limited needs the first cache line only.
    pub words: [[W; WAYS]; 3],
}

/// Where a source's buckets may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the set.
    pub set: u32,
    /// What marks the source within its set; never zero. No two sources of one limit have the same.
    pub tag: u64,
}

/// The place of `key` in a table of `sets` sets, under a secret `seed`.
///
/// Each step can be undone, so that two sources of a limit never share a tag; the seed keeps strangers
/// from choosing sources that crowd one set. It is a hash for tables, not a cryptographic one.
#[inline(always)]
pub const fn place(key: &SourceKey, sets: u32, seed: u64) -> Place {
    let mut word = key.prefix ^ seed;
    word = word.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word ^= word >> 32;
    word =
        word.wrapping_add(((key.limit as u64) << 3 | key.family as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word ^= seed.rotate_left(32);
    word = word.wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^= word >> 29;
    let set = (((word >> 32) * sets as u64) >> 32) as u32;
    // The one source whose tag would be zero shares that of another.
    Place { set, tag: if word == 0 { 1 } else { word } }
}

/// The buckets of the source with `tag` in its set, made when they are not there.
#[derive(Debug)]
pub struct Found<'a, W> {
    /// The three words, by [`crate::layout::Dimension`].
    pub words: [&'a W; 3],
    /// A source in debt had to make room.
    pub forgot: bool,
}

/// Finds the buckets of `tag` in `set` at `now`, or gives them the place of the source with the least
/// debt: none, mostly.
///
/// Two CPUs that meet one new source at the same instant may each give it a place; the first one holds,
/// the other is full again soon. A CPU that finds a source between its tag and its words sees the words
/// of the one that made room: they are full, or, when a source was forgotten, that one's debt for a
/// single packet.
#[inline(always)]
pub fn find<W: Word>(set: &Set<W>, tag: u64, now: u64) -> Found<'_, W> {
    // Written out way by way: the verifier follows constant offsets only.
    let [tag0, tag1, tag2, tag3] = &set.tags;
    let [[a0, a1, a2, a3], [b0, b1, b2, b3], [c0, c1, c2, c3]] = &set.words;
    let (seen0, seen1, seen2, seen3) = (tag0.load(), tag1.load(), tag2.load(), tag3.load());
    if seen0 == tag {
        return Found { words: [a0, b0, c0], forgot: false };
    }
    if seen1 == tag {
        return Found { words: [a1, b1, c1], forgot: false };
    }
    if seen2 == tag {
        return Found { words: [a2, b2, c2], forgot: false };
    }
    if seen3 == tag {
        return Found { words: [a3, b3, c3], forgot: false };
    }
    let mut least = (tag0, seen0, [a0, b0, c0], debt([a0, b0, c0], now));
    let debt1 = debt([a1, b1, c1], now);
    if debt1 < least.3 {
        least = (tag1, seen1, [a1, b1, c1], debt1);
    }
    let debt2 = debt([a2, b2, c2], now);
    if debt2 < least.3 {
        least = (tag2, seen2, [a2, b2, c2], debt2);
    }
    let debt3 = debt([a3, b3, c3], now);
    if debt3 < least.3 {
        least = (tag3, seen3, [a3, b3, c3], debt3);
    }
    let (mark, seen, words, debt) = least;
    // Whoever loses the race for the place uses it for this packet all the same.
    if mark.compare_exchange(seen, tag).is_ok() {
        let [first, second, third] = words;
        first.store(0);
        second.store(0);
        third.store(0);
    }
    Found { words, forgot: debt != 0 }
}

/// The largest debt among a source's words.
#[inline(always)]
fn debt<W: Word>(words: [&W; 3], now: u64) -> u64 {
    let [first, second, third] = words;
    let (first, second, third) =
        (ahead(first.load(), now), ahead(second.load(), now), ahead(third.load(), now));
    let larger = if first > second { first } else { second };
    if larger > third { larger } else { third }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::collections::{HashMap, HashSet};
    use std::vec::Vec;

    fn tags(set: &Set<AtomicU64>) -> Vec<u64> {
        set.tags.iter().map(|tag| tag.load(Relaxed)).collect()
    }

    #[test]
    fn four_sources_keep_their_buckets() {
        let set = Set::<AtomicU64>::default();
        for tag in 1..=4 {
            let found = find(&set, tag, 100);
            assert!(!found.forgot);
            found.words[0].store(100 + tag, Relaxed);
        }
        for tag in 1..=4 {
            assert_eq!(find(&set, tag, 100).words[0].load(Relaxed), 100 + tag);
        }
    }

    #[test]
    fn a_bucket_that_is_full_again_makes_room_and_nothing_is_forgotten() {
        let set = Set::<AtomicU64>::default();
        for tag in 1..=4 {
            find(&set, tag, 100).words[1].store(100 + tag, Relaxed);
        }
        // At 101 the first source's bucket is full again.
        let found = find(&set, 5, 101);
        assert!(!found.forgot);
        assert_eq!(found.words[1].load(Relaxed), 0);
        assert_eq!(tags(&set), [5, 2, 3, 4]);
    }

    #[test]
    fn the_least_debt_makes_room_when_all_are_in_debt() {
        let set = Set::<AtomicU64>::default();
        for (tag, word) in [(1, 900), (2, 800), (3, 300), (4, 700)] {
            find(&set, tag, 100).words[2].store(word, Relaxed);
        }
        assert!(find(&set, 5, 100).forgot);
        assert_eq!(tags(&set), [1, 2, 5, 4]);
    }

    #[test]
    fn no_two_sources_share_a_tag_and_sets_are_used_evenly() {
        let (sets, seed) = (1024, 0x0123_4567_89ab_cdef);
        let mut seen = HashSet::new();
        let mut used = HashMap::new();
        for prefix in 0..40_960_u64 {
            // Neighbours, and the same host in many networks.
            for (prefix, family) in [(prefix, 4), (prefix << 48, 6)] {
                let place = place(&SourceKey { prefix, family, limit: 1 }, sets, seed);
                assert!(place.set < sets);
                assert!(seen.insert(place.tag), "{prefix}");
                *used.entry(place.set).or_insert(0) += 1;
            }
        }
        // 80 a set on average; a Poisson distribution stays within 80 +- 5 * 9.
        assert!(used.len() == 1024 && used.values().all(|count| (35..=125).contains(count)), "{used:?}");
    }

    #[test]
    fn threads_that_share_a_set_never_grant_a_source_more_than_its_burst_and_one_per_thread() {
        use crate::gcra::{Rate, Take, take};
        let set = Set::<AtomicU64>::default();
        let rate = Rate::new(1, 100);
        let granted: Vec<AtomicU64> = (0..4).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for turn in 0..4000_u64 {
                        let tag = 1 + turn % 4;
                        let found = find(&set, tag, 64);
                        if take(found.words[0], 64, rate.cost(1), rate.depth) == Take::Granted {
                            granted[tag as usize - 1].fetch_add(1, Relaxed);
                        }
                    }
                });
            }
        });
        for granted in granted {
            assert!((100..=400).contains(&granted.into_inner()));
        }
    }
}
