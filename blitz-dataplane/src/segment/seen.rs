//! The first flights that were seen lately, by which a second one is told (RFC 8446 section 8.2). All workers share
//! it.
//!
//! Owns: the table and its window. Does not own: what names a flight, or what becomes of one that comes again
//! (`crate::http3::early`).
//!
//! Set-associative: a keyed hash names one set of eight places in one cache line, and tells flights apart within it.
//! A place is one word, fingerprint and end, so that a worker that is killed at any point leaves nothing half done.
//! An entry is never given up before its end: who finds the set full is refused, and his early data waits for the
//! handshake. Places are found again without a sweep, since an entry beyond its end counts as free.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use super::layout::{SEEN_SETS, SeenSet};
use crate::siphash::SipHash13;

/// Seconds that a flight is remembered. BoringSSL takes early data while the ticket's age is, by the client's clock
/// and by ours, the same to 60 seconds; so a flight that was good once is good for at most twice that, and one second
/// of rounding at each end.
pub const WINDOW_SECONDS: u32 = 2 * 60 + 2;

/// Attempts to enter a flight. Who loses its place to others so often is refused.
const TRIES: u32 = 8;

/// The table. Cheap to make; borrows the segment.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    sets: &'a [SeenSet; SEEN_SETS],
    key: [u64; 2],
    name: u64,
}

/// What the table says of a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It is new, and is entered now.
    First,
    /// It was seen before.
    Again,
    /// There is no room to remember it.
    Full,
}

impl<'a> Seen<'a> {
    pub(super) const fn new(sets: &'a [SeenSet; SEEN_SETS], key: [u64; 2], name: u64) -> Self {
        Self { sets, key, name }
    }

    /// Names this table among those of other hosts and of starts before: only a session that was begun under the name
    /// of a table is sure not to have been used before that table was there.
    pub const fn name(&self) -> u64 {
        self.name
    }

    /// Enters the flight that `id` names, at `now` (Unix seconds: the clock by which BoringSSL judges a ticket's age,
    /// so that a clock that is set back brings no flight back).
    pub fn enter(&self, id: &[u8], now: u64) -> Sight {
        let hash = SipHash13::new(self.key).finish(id);
        let Some(set) = self.sets.get(hash as usize % SEEN_SETS) else { return Sight::Full };
        let now = u32::try_from(now).unwrap_or(u32::MAX);
        // The low half names the set; what is left of it tells flights apart, and so does the high half.
        let fingerprint = (hash >> 32) << 32;
        let is_same = |word: u64| word & FINGERPRINT == fingerprint && end(word) > now;
        for _ in 0..TRIES {
            let mut free = None;
            for (at, place) in set.places.iter().enumerate() {
                let word = place.load(Ordering::SeqCst);
                if is_same(word) {
                    return Sight::Again;
                }
                if free.is_none() && end(word) <= now {
                    free = Some((at, place, word));
                }
            }
            let Some((at, place, word)) = free else { return Sight::Full };
            let entry = fingerprint | u64::from(now.saturating_add(WINDOW_SECONDS));
            if place.compare_exchange(word, entry, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                continue;
            }
            // Another worker may have entered the same flight in another place, where an entry has ended meanwhile.
            // Then at least one of the two sees the other.
            let mut others = set.places.iter().enumerate().filter(|(other, _)| *other != at);
            return match others.any(|(_, place)| is_same(place.load(Ordering::SeqCst))) {
                true => Sight::Again,
                false => Sight::First,
            };
        }
        Sight::Full
    }
}

const FINGERPRINT: u64 = !0 << 32;

/// The second from which on an entry counts no more.
const fn end(word: u64) -> u32 {
    (word & !FINGERPRINT) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::segment::{Segment, Shape};

    const NOW: u64 = 1_700_000_000;

    fn segment() -> Segment {
        Segment::create(Shape { workers: 1, endpoints: 1 }).expect("segment")
    }

    #[test]
    fn a_flight_is_new_once_whichever_mapping_it_comes_to() {
        let segment = segment();
        let other = Segment::open(segment.fd().try_clone_to_owned().expect("dup")).expect("open");
        let (a, b) = (segment.seen().expect("table"), other.seen().expect("table"));
        assert_eq!(a.name(), b.name());
        for n in 0..10_000_u64 {
            let id = n.to_le_bytes();
            let (one, two) = if n % 2 == 0 { (a, b) } else { (b, a) };
            assert_eq!(one.enter(&id, NOW), Sight::First, "{n}");
            assert_eq!((two.enter(&id, NOW), one.enter(&id, NOW)), (Sight::Again, Sight::Again), "{n}");
        }
        let restarted = self::segment();
        assert_ne!(restarted.seen().expect("table").name(), a.name(), "each start has its own name");
    }

    #[test]
    fn it_is_remembered_for_the_window_and_when_the_clock_is_set_back() {
        let segment = segment();
        let seen = segment.seen().expect("table");
        let window = u64::from(WINDOW_SECONDS);
        assert_eq!(seen.enter(b"x", NOW), Sight::First);
        assert_eq!(seen.enter(b"x", NOW + window - 1), Sight::Again);
        assert_eq!(seen.enter(b"x", NOW - 3600), Sight::Again);
        assert_eq!(seen.enter(b"x", NOW + window), Sight::First);
    }

    #[test]
    fn a_full_set_refuses_until_an_entry_has_ended_and_forgets_none() {
        let segment = segment();
        let seen = segment.seen().expect("table");
        let set_of = |id: u64| SipHash13::new(seen.key).finish(&id.to_le_bytes()) as usize % SEEN_SETS;
        let ids: Vec<u64> = (0..).filter(|id| set_of(*id) == 9).take(9).collect();
        for (n, id) in (0..).zip(&ids[..8]) {
            assert_eq!(seen.enter(&id.to_le_bytes(), NOW + n), Sight::First);
        }
        let ninth = ids[8].to_le_bytes();
        assert_eq!(seen.enter(&ninth, NOW + 8), Sight::Full);
        assert!(ids[..8].iter().all(|id| seen.enter(&id.to_le_bytes(), NOW + 8) == Sight::Again));
        assert_eq!(seen.enter(&ninth, NOW + u64::from(WINDOW_SECONDS)), Sight::First);
    }

    /// Half of the workers have a clock by which the place of an entry that has ended is free, and take another place
    /// than the others.
    #[test]
    fn of_workers_that_enter_the_same_flight_at_once_one_at_most_is_first() {
        let segment = segment();
        let seen = segment.seen().expect("table");
        let mut ids: HashMap<usize, Vec<[u8; 8]>> = HashMap::new();
        for id in (0..600_000_u64).map(u64::to_le_bytes) {
            let set = SipHash13::new(seen.key).finish(&id) as usize % SEEN_SETS;
            if set < 200 {
                ids.entry(set).or_default().push(id);
            }
        }
        ids.retain(|_, ids| ids.len() > 4);
        let now = NOW + u64::from(WINDOW_SECONDS);
        for ids in ids.values() {
            for (n, id) in (0..).zip(&ids[1..]) {
                seen.enter(id, NOW + n);
            }
        }
        let rounds: Vec<_> = ids.values().map(|ids| (ids[0], AtomicU32::new(0))).collect();
        assert!(rounds.len() > 100);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (segment, rounds) = (&segment, &rounds);
                scope.spawn(move || {
                    let seen = segment.seen().expect("table");
                    for (id, firsts) in rounds {
                        if seen.enter(id, now - thread % 2) == Sight::First {
                            firsts.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let firsts: Vec<_> = rounds.iter().map(|(_, firsts)| firsts.load(Ordering::Relaxed)).collect();
        assert!(firsts.iter().all(|count| *count <= 1), "{firsts:?}");
        assert!(firsts.contains(&1), "{firsts:?}");
    }
}
