//! The generic cell rate algorithm: a token bucket in one 64-bit word.
//!
//! Owns: the arithmetic, the fixed point, and the bounded compare-and-swap around it. Does not own:
//! where the words live (an LRU map in the kernel, the shared segment in user space), or the clock.
//!
//! The word is the *theoretical arrival time*: the moment at which the bucket will be full again.
//! Time is CLOCK_MONOTONIC in units of 1/64 ns, so that a rate of 64 million packets a second still
//! has an interval of 1,000 units. A word wraps after 9.1 years of uptime; comparisons are of the
//! signed difference, so they hold across the wrap.
//!
//! ITU-T I.371 annex A describes the algorithm; here a cell may cost more than one unit.

/// Units of bucket time in one nanosecond.
pub const UNITS_PER_NANOSECOND: u64 = 64;
/// Units of bucket time in one second.
pub const UNITS_PER_SECOND: u64 = 64_000_000_000;
/// Attempts of [`take`] before it gives up. Two CPUs that hit one word collide rarely twice in a row;
/// a word that is contended eight times in a row is being flooded.
pub const TRIES: u32 = 8;
/// Fractional bits of [`Rate::interval`] below one unit.
const FRACTION_BITS: u32 = 10;
/// The largest rate a [`Rate`] holds, per second: the octets of 400 Gbit/s. Here the interval is
/// rounded most, by less than 0.05 %.
pub const RATE_MAX: u64 = 50_000_000_000;
/// The largest cost [`Rate::cost`] takes in one call, in tokens. It bounds the product to 63 bits.
pub const COST_MAX: u32 = (1 << 17) - 1;

/// A rate and the depth of its bucket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bucket time that one token costs, in 1/1024 of a unit. Zero: this rate does not limit.
    pub interval: u64,
    /// Depth of the bucket, in units of bucket time: how far the word may run ahead of now.
    pub depth: u64,
}

impl Rate {
    /// A rate that never refuses.
    pub const UNLIMITED: Self = Self { interval: 0, depth: 0 };

    /// `per_second` tokens a second, of which `burst` may come at once.
    ///
    /// `per_second` is clamped to `1..=`[`RATE_MAX`]; `burst` to at least one token and at most the
    /// tokens of about nine months, the half of the word's range in which comparisons are safe.
    pub const fn new(per_second: u64, burst: u64) -> Self {
        let per_second = if per_second == 0 {
            1
        } else if per_second > RATE_MAX {
            RATE_MAX
        } else {
            per_second
        };
        let numerator = UNITS_PER_SECOND << FRACTION_BITS;
        let interval = (numerator + per_second / 2) / per_second;
        let burst = if burst == 0 { 1 } else { burst };
        let depth = (interval as u128 * burst as u128) >> FRACTION_BITS;
        let most = (u64::MAX >> 4) as u128;
        let depth = if depth > most { most } else { depth };
        // A bucket shallower than one token would never let anything through.
        let one = (interval >> FRACTION_BITS) + 1;
        Self { interval, depth: if (depth as u64) < one { one } else { depth as u64 } }
    }

    /// Whether this rate limits anything.
    #[inline(always)]
    pub const fn limits(&self) -> bool {
        self.interval != 0
    }

    /// What `tokens` cost, in units of bucket time. More than [`COST_MAX`] tokens count as that many.
    #[inline(always)]
    pub const fn cost(&self, tokens: u32) -> u64 {
        let tokens = if tokens > COST_MAX { COST_MAX } else { tokens };
        (tokens as u64 * self.interval) >> FRACTION_BITS
    }

    /// Tokens that are left in the bucket whose word is `word`, at `now`.
    pub const fn left(&self, word: u64, now: u64) -> u64 {
        if self.interval == 0 {
            return u64::MAX;
        }
        let used = ahead(word, now);
        let free = self.depth.saturating_sub(used);
        ((free as u128) << FRACTION_BITS).div_euclid(self.interval as u128) as u64
    }
}

/// Bucket time of a CLOCK_MONOTONIC reading in nanoseconds.
#[inline(always)]
pub const fn units(nanoseconds: u64) -> u64 {
    nanoseconds.wrapping_mul(UNITS_PER_NANOSECOND)
}

/// How far `word` runs ahead of `now`, in units; zero for a full bucket and for a word never used.
#[inline(always)]
pub const fn ahead(word: u64, now: u64) -> u64 {
    let ahead = word.wrapping_sub(now) as i64;
    if word == 0 || ahead < 0 { 0 } else { ahead as u64 }
}

/// The word after `cost` was taken at `now` from a bucket of `depth`, or how long to wait until the
/// same request would be granted, in units.
///
/// A cost above the depth is never granted.
#[inline(always)]
pub const fn step(word: u64, now: u64, cost: u64, depth: u64) -> Result<u64, u64> {
    let after = ahead(word, now).saturating_add(cost);
    if after > depth {
        return Err(after - depth);
    }
    // Zero means "never used"; the one instant that would produce it is moved by one unit.
    let next = now.wrapping_add(after);
    Ok(if next == 0 { 1 } else { next })
}

/// A 64-bit word that several CPUs change.
pub trait Word {
    /// The word now. No ordering with other memory is promised or needed.
    fn load(&self) -> u64;
    /// Stores `new` when the word is still `old`. `Err` holds what it was instead.
    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64>;
    /// Stores `new`, whatever was there.
    fn store(&self, new: u64);
}

/// What [`take`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Within the rate; the cost has been taken.
    Granted,
    /// Over the rate; nothing has been taken.
    Refused {
        /// Until the same cost would be granted if nobody else takes, in units of 1/64 ns.
        wait: u64,
    },
    /// Other CPUs changed the word [`TRIES`] times in a row. Counts as over the limit.
    Contended,
}

/// Takes `cost` from the bucket of `depth` whose state is `word`, at `now`.
#[inline(always)]
pub fn take<W: Word + ?Sized>(word: &W, now: u64, cost: u64, depth: u64) -> Take {
    let mut seen = word.load();
    for _ in 0..TRIES {
        match step(seen, now, cost, depth) {
            Err(wait) => return Take::Refused { wait },
            Ok(next) => match word.compare_exchange(seen, next) {
                Ok(()) => return Take::Granted,
                Err(other) => seen = other,
            },
        }
    }
    Take::Contended
}

/// The host's words. The BPF target has no such method: its twin is in `blitz-ebpf`.
#[cfg(not(target_arch = "bpf"))]
impl Word for core::sync::atomic::AtomicU64 {
    fn load(&self) -> u64 {
        self.load(core::sync::atomic::Ordering::Relaxed)
    }

    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        use core::sync::atomic::Ordering::Relaxed;
        // Relaxed: the word is the whole state, nothing else is published with it.
        self.compare_exchange(old, new, Relaxed, Relaxed).map(|_| ())
    }

    fn store(&self, new: u64) {
        self.store(new, core::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU64;
    use proptest::prelude::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let rate = Rate::new(1000, 10);
        let word = AtomicU64::new(0);
        let granted = |now: u64| take(&word, units(now), rate.cost(1), rate.depth) == Take::Granted;
        let start = 5_000_000_000;
        assert_eq!((0..20).filter(|_| granted(start)).count(), 10);
        // One token a millisecond from here on.
        assert!(!granted(start + 999_999));
        assert!(granted(start + 1_000_000));
        assert!(!granted(start + 1_000_001));
    }

    #[test]
    fn a_refusal_says_how_long_to_wait() {
        let rate = Rate::new(10, 1);
        let word = AtomicU64::new(0);
        assert_eq!(take(&word, units(1), rate.cost(1), rate.depth), Take::Granted);
        let Take::Refused { wait } = take(&word, units(1), rate.cost(1), rate.depth) else { panic!() };
        // The depth is one unit above one token at most.
        assert!(wait.abs_diff(units(100_000_000)) <= 1);
        assert_eq!(take(&word, units(1).wrapping_add(wait), rate.cost(1), rate.depth), Take::Granted);
    }

    #[test]
    fn a_cost_above_the_depth_is_never_granted() {
        let rate = Rate::new(1_000_000, 1500);
        let word = AtomicU64::new(0);
        for second in 1..100 {
            let now = units(second * 1_000_000_000);
            assert!(matches!(take(&word, now, rate.cost(1501), rate.depth), Take::Refused { .. }));
        }
    }

    #[test]
    fn a_word_that_always_changes_counts_as_contended() {
        struct Busy;
        impl Word for Busy {
            fn load(&self) -> u64 {
                0
            }
            fn compare_exchange(&self, _: u64, _: u64) -> Result<(), u64> {
                Err(0)
            }
            fn store(&self, _: u64) {}
        }
        assert_eq!(take(&Busy, 1, 1, 10), Take::Contended);
    }

    #[test]
    fn four_threads_take_exactly_the_burst() {
        let word = AtomicU64::new(0);
        let rate = Rate::new(1, 10_000);
        let granted = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        // A contended take is refused but takes nothing: it is simply tried again here.
                        while match take(&word, 64, rate.cost(1), rate.depth) {
                            Take::Granted => {
                                granted.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
                                false
                            }
                            Take::Refused { .. } => false,
                            Take::Contended => true,
                        } {}
                    }
                });
            }
        });
        assert_eq!(granted.into_inner(), 10_000);
    }

    proptest! {
        /// Over any schedule, what is granted stays within burst + rate * time, and a client that keeps
        /// to the rate is never refused.
        #[test]
        fn never_more_than_the_bucket_holds(
            per_second in 1u64..50_000_000, burst in 1u64..100_000,
            start in 1u64..u64::MAX, gaps in prop::collection::vec(0u64..1_000_000_000, 1..200),
        ) {
            let rate = Rate::new(per_second, burst);
            let mut word = 0;
            let (mut elapsed, mut granted) = (0u64, 0u64);
            for gap in gaps {
                elapsed += gap;
                let now = start.wrapping_add(elapsed);
                if now == 0 { continue; }
                if let Ok(next) = step(word, now, rate.cost(1), rate.depth) {
                    word = next;
                    granted += 1;
                }
                let cost = u128::from(rate.cost(1).max(1));
                let most = u128::from(rate.depth + elapsed) / cost + 1;
                prop_assert!(u128::from(granted) <= most, "{granted} granted, at most {most}");
            }
        }

        #[test]
        fn the_rate_itself_is_never_refused(
            per_second in 1u64..50_000_000, burst in 1u64..1000, start in 1u64..1 << 62,
        ) {
            let rate = Rate::new(per_second, burst);
            let mut word = 0;
            for n in 0..1000u64 {
                let now = start.wrapping_add(n * (UNITS_PER_SECOND / per_second + 1));
                word = step(word, now, rate.cost(1), rate.depth).expect("within the rate");
            }
        }

        #[test]
        fn the_rate_is_kept_within_a_tenth_of_a_percent(per_second in 1..=RATE_MAX) {
            let rate = Rate::new(per_second, 1);
            let second = u128::from(rate.interval) * u128::from(per_second);
            let exact = u128::from(UNITS_PER_SECOND) << FRACTION_BITS;
            prop_assert!(second.abs_diff(exact) * 1000 <= exact);
        }
    }
}
