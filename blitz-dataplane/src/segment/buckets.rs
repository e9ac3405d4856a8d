//! The table of token buckets that all workers share.
//!
//! Owns: finding a bucket by its key, making room, taking from it. Does not own: the arithmetic
//! ([`blitz_ebpf_common::gcra`], the same lines as in the kernel), or who is limited (see
//! `crate::proxy::limiter`).
//!
//! Set-associative: a key names one set of four buckets in one cache line, by a hash whose key is drawn
//! anew at each start of the supervisor, so that nobody outside can choose who shares a set with whom.
//! When a set is full, the bucket that is nearest to full again makes room: it is the one whose loss lets
//! the least through. So memory is fixed (4 MiB, touched as it is used), nobody is refused because the
//! table is full, and a flood of strangers can at worst give a limited source back what it had used.
//!
//! A bucket is a word of time in no need of renewal: no thread sweeps, a worker that is killed at any
//! point leaves nothing behind that a later take would not put right.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use blitz_ebpf_common::gcra::{self, Take};

use super::layout::{BUCKET_SETS, BucketSet};
use crate::siphash::SipHash13;

/// Attempts to find or make a bucket. Another worker may take the same place at the same moment; who loses
/// twice in a row is let through.
const TRIES: u32 = 3;

/// The table. Cheap to make; borrows the segment.
#[derive(Clone, Copy, Debug)]
pub struct Buckets<'a> {
    sets: &'a [BucketSet; BUCKET_SETS],
    key: [u64; 2],
}

/// What a take found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Granted or not.
    pub take: Take,
    /// A bucket that was not full again had to go for this one.
    pub has_displaced: bool,
}

/// Names one bucket. Zero stands for no bucket and is never made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketKey(u64);

impl<'a> Buckets<'a> {
    pub(super) fn new(sets: &'a [BucketSet; BUCKET_SETS], key: [u64; 2]) -> Self {
        Self { sets, key }
    }

    /// The start of a key; feed it with what tells the bucket from others and give it to [`Self::key`].
    #[inline]
    pub fn hash(&self) -> SipHash13 {
        SipHash13::new(self.key)
    }

    /// The key that a hash makes, which began with [`Self::hash`].
    #[inline]
    pub fn key(hash: SipHash13, tail: &[u8]) -> BucketKey {
        BucketKey(hash.finish(tail).max(1))
    }

    /// Takes `cost` from the bucket of `key`, of which the depth is `depth`, at `now` (all three in units of
    /// [`gcra`]). A bucket that is not in the table is a full one.
    pub fn take(&self, BucketKey(tag): BucketKey, now: u64, cost: u64, depth: u64) -> Taken {
        let mut has_displaced = false;
        let Some(set) = self.sets.get(tag as usize % BUCKET_SETS) else {
            return Taken { take: Take::Granted, has_displaced };
        };
        for _ in 0..TRIES {
            if let Some(word) = find(set, tag) {
                return Taken { take: gcra::take(word, now, cost, depth), has_displaced };
            }
            has_displaced |= claim(set, tag, now);
        }
        Taken { take: Take::Granted, has_displaced }
    }
}

fn find(set: &BucketSet, tag: u64) -> Option<&AtomicU64> {
    let mut ways = set.tags.iter().zip(&set.words);
    // Acquire: pairs with the release of `claim`, so that the word is the new bucket's.
    ways.find(|(own, _)| own.load(Ordering::Acquire) == tag).map(|(_, word)| word)
}

/// Tries to give `tag` a bucket in the set; whether one that was in use had to go.
///
/// The place is free (tag 0) while its word is cleared: a worker that is killed here leaves it free. Two
/// workers that clear one place at once may give a bucket back what was taken in between, once.
fn claim(set: &BucketSet, tag: u64, now: u64) -> bool {
    let ahead = |tag: &AtomicU64, word: &AtomicU64| match tag.load(Ordering::Acquire) {
        0 => (0, 0),
        held => (held, gcra::ahead(word.load(Ordering::Relaxed), now).saturating_add(1)),
    };
    let ways = set.tags.iter().zip(&set.words).map(|(tag, word)| (tag, word, ahead(tag, word)));
    let Some((place, word, (held, in_use))) = ways.min_by_key(|(_, _, (_, ahead))| *ahead) else {
        return false;
    };
    if held != 0 && place.compare_exchange(held, 0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return false;
    }
    word.store(0, Ordering::Relaxed);
    // Whoever was faster has the place; the caller looks again.
    let is_ours = place.compare_exchange(0, tag, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    is_ours && in_use > 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{Segment, Shape};
    use blitz_ebpf_common::gcra::{Rate, units};
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU32;

    const SECOND: u64 = 1_000_000_000;

    fn segment() -> Segment {
        Segment::create(Shape { workers: 1, endpoints: 1 }).expect("segment")
    }

    fn key(buckets: &Buckets<'_>, of: u64) -> BucketKey {
        Buckets::key(buckets.hash().word(of), b"")
    }

    fn is_granted(buckets: &Buckets<'_>, key: BucketKey, now_ns: u64, rate: Rate) -> bool {
        buckets.take(key, units(now_ns), rate.cost(1), rate.depth).take == Take::Granted
    }

    #[test]
    fn each_key_has_its_own_bucket_and_a_second_mapping_sees_it() {
        let segment = segment();
        let other = Segment::open(segment.fd().try_clone_to_owned().expect("dup")).expect("open");
        let (a, b) = (segment.buckets().expect("table"), other.buckets().expect("table"));
        let rate = Rate::new(10, 3);
        for of in 0..1000 {
            let granted =
                (0..10).filter(|n| is_granted(if n % 2 == 0 { &a } else { &b }, key(&a, of), SECOND, rate));
            assert_eq!(granted.count(), 3, "key {of}");
        }
        assert_eq!(key(&a, 7), key(&b, 7), "both sides hash alike");
        let restarted = self::segment();
        assert_ne!(key(&a, 7), key(&restarted.buckets().expect("table"), 7), "each start has its own key");
    }

    #[test]
    fn a_full_set_gives_up_what_is_nearest_to_full() {
        let segment = segment();
        let buckets = segment.buckets().expect("table");
        let rate = Rate::new(1, 1000);
        // Five keys of one set; the later ones have used more.
        let tags: Vec<_> = (0..5).map(|n| BucketKey((n + 1) * BUCKET_SETS as u64 + 9)).collect();
        for (n, tag) in tags.iter().take(4).enumerate() {
            for _ in 0..=n * 10 {
                assert!(is_granted(&buckets, *tag, SECOND, rate));
            }
        }
        let fifth = buckets.take(tags[4], units(SECOND), rate.cost(1000), rate.depth);
        assert_eq!(fifth, Taken { take: Take::Granted, has_displaced: true }, "a stranger is never refused");
        // The first had used one token and lost its place; the fourth still knows its 31.
        assert!(!is_granted(&buckets, tags[4], SECOND, rate));
        let left = (0..2000).filter(|_| is_granted(&buckets, tags[3], SECOND, rate)).count();
        assert_eq!(left, 1000 - 31);
        // Full buckets go without a loss.
        let later = units(5000 * SECOND);
        assert!(!buckets.take(tags[0], later, rate.cost(1), rate.depth).has_displaced);
    }

    #[test]
    fn strangers_beyond_the_tables_size_are_granted() {
        let segment = segment();
        let buckets = segment.buckets().expect("table");
        let rate = Rate::new(1, 2);
        for of in 0..600_000 {
            assert!(is_granted(&buckets, key(&buckets, of), SECOND, rate), "stranger {of}");
        }
    }

    #[test]
    fn threads_take_what_the_bucket_holds() {
        let segment = segment();
        let rate = Rate::new(1, 10_000);
        let granted = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let buckets = segment.buckets().expect("table");
                    for _ in 0..8_000 {
                        while match buckets
                            .take(key(&buckets, 5), units(SECOND), rate.cost(1), rate.depth)
                            .take
                        {
                            Take::Granted => {
                                granted.fetch_add(1, Ordering::Relaxed);
                                false
                            }
                            Take::Refused { .. } => false,
                            Take::Contended => true,
                        } {}
                    }
                });
            }
        });
        // The very first takes may meet while the bucket is being made.
        let granted = granted.into_inner();
        assert!((10_000..=10_008).contains(&granted), "{granted} of 10000");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        /// Several threads with their own clocks, a little apart, among strangers that come and go: what all
        /// get together stays within the bucket.
        #[test]
        fn the_rate_holds_over_threads(per_second in 10u64..5_000, burst in 1u64..500, threads in 1u64..5) {
            let segment = segment();
            let rate = Rate::new(per_second, burst);
            let granted = AtomicU32::new(0);
            const MS: u64 = 2_000;
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let (segment, granted) = (&segment, &granted);
                    scope.spawn(move || {
                        let buckets = segment.buckets().expect("table");
                        let mine = key(&buckets, 1);
                        for ms in 0..MS {
                            let now = 10 * SECOND + ms * 1_000_000 + thread * 1000;
                            for _ in 0..=per_second / 500 {
                                if is_granted(&buckets, mine, now, rate) {
                                    granted.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                            let _stranger = is_granted(&buckets, key(&buckets, 2 + ms), now, rate);
                        }
                    });
                }
            });
            let granted = u64::from(granted.into_inner());
            // Threads run at their own pace, so one may use time that another has not reached: all of it
            // lies within the same two seconds.
            let most = burst + per_second * MS / 1000 + 2 + threads;
            prop_assert!(granted <= most, "{granted} granted, at most {most}");
            // A single thread asks evenly and more often than the rate: nothing of it is lost.
            let least = (burst.min(1) + per_second * (MS - 2) / 1000).saturating_sub(2) * 98 / 100;
            prop_assert!(threads > 1 || granted >= least, "{granted} granted, at least {least}");
        }
    }
}
