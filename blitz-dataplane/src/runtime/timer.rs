//! Deadlines: a hashed timer wheel and the handle that a connection keeps.
//!
//! A connection has one [`Deadline`] for all its phases. Moving it later is a store: the wheel entry
//! stays where it is, fires early, sees the later time and is put back. Only moving it earlier
//! touches the wheel. So a request costs no wheel operation in steady state.
//!
//! Owns: the wheel. Does not own: the clock (see `reactor`).

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::Handle;

/// Resolution in milliseconds: deadlines fire up to this much late, never early.
const TICK_MS: u64 = 8;
/// Buckets; one revolution is 4,096 x 8 ms = 32.8 s. An entry further away waits more revolutions.
const BUCKETS: usize = 4096;
const NONE: u32 = u32::MAX;

/// The timers of one runtime.
pub(super) struct Wheel {
    buckets: Vec<u32>,
    /// One bit per bucket that may hold entries.
    occupied: [u64; BUCKETS / 64],
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// Every bucket up to and including this tick has been looked at.
    tick: u64,
    armed: usize,
}

struct Entry {
    /// When it is due, in milliseconds; `u64::MAX` when it is not set.
    at_ms: u64,
    /// The tick under which it is filed; `u64::MAX` when it is not filed.
    filed: u64,
    fired: bool,
    waker: Option<Waker>,
    next: u32,
    previous: u32,
}

impl Wheel {
    pub(super) fn new(now_ms: u64) -> Self {
        Self {
            buckets: vec![NONE; BUCKETS],
            occupied: [0; BUCKETS / 64],
            entries: Vec::new(),
            free: Vec::new(),
            tick: now_ms / TICK_MS,
            armed: 0,
        }
    }

    fn add(&mut self) -> u32 {
        let entry =
            Entry { at_ms: u64::MAX, filed: u64::MAX, fired: false, waker: None, next: NONE, previous: NONE };
        if let Some(id) = self.free.pop() {
            self.entries[id as usize] = entry;
            return id;
        }
        self.entries.push(entry);
        (self.entries.len() - 1) as u32
    }

    fn remove(&mut self, id: u32) {
        self.unfile(id);
        self.entries[id as usize].waker = None;
        self.free.push(id);
    }

    /// Deadlines that somebody holds (count).
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    fn set(&mut self, id: u32, at_ms: u64) {
        let entry = &mut self.entries[id as usize];
        entry.at_ms = at_ms;
        entry.fired = false;
        // Rounded up: a deadline never fires before its time.
        let due = at_ms.div_ceil(TICK_MS);
        if entry.filed == u64::MAX || due < entry.filed {
            self.unfile(id);
            self.file(id, due);
        }
    }

    fn clear(&mut self, id: u32) {
        let entry = &mut self.entries[id as usize];
        entry.at_ms = u64::MAX;
        entry.fired = false;
        // Left in the wheel: the next `set` is usually later and then costs nothing.
    }

    fn file(&mut self, id: u32, due: u64) {
        let due = due.max(self.tick + 1);
        let bucket = (due % BUCKETS as u64) as usize;
        let head = self.buckets[bucket];
        let entry = &mut self.entries[id as usize];
        entry.filed = due;
        entry.next = head;
        entry.previous = NONE;
        if head != NONE {
            self.entries[head as usize].previous = id;
        }
        self.buckets[bucket] = id;
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
        self.armed += 1;
    }

    fn unfile(&mut self, id: u32) {
        let (filed, next, previous) = {
            let entry = &mut self.entries[id as usize];
            let links = (entry.filed, entry.next, entry.previous);
            entry.filed = u64::MAX;
            entry.next = NONE;
            entry.previous = NONE;
            links
        };
        if filed == u64::MAX {
            return;
        }
        self.armed -= 1;
        let bucket = (filed % BUCKETS as u64) as usize;
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
        } else {
            self.buckets[bucket] = next;
            if next == NONE {
                self.occupied[bucket / 64] &= !(1 << (bucket % 64));
            }
        }
    }

    /// Milliseconds until the wheel wants to be looked at again; `None` when it is empty.
    pub(super) fn next_in_ms(&self, now_ms: u64) -> Option<u64> {
        if self.armed == 0 {
            return None;
        }
        let start = self.tick + 1;
        let mut offset = 0;
        while offset < BUCKETS as u64 {
            let bucket = ((start + offset) % BUCKETS as u64) as usize;
            let word = self.occupied[bucket / 64] >> (bucket % 64);
            if word != 0 {
                let tick = start + offset + u64::from(word.trailing_zeros());
                return Some((tick * TICK_MS).saturating_sub(now_ms));
            }
            offset += 64 - (bucket as u64 % 64);
        }
        // Not reached while `armed` counts right; asking again in a revolution is harmless.
        Some(BUCKETS as u64 * TICK_MS)
    }

    /// Fires everything due at `now_ms`.
    pub(super) fn advance(&mut self, now_ms: u64) {
        let target = now_ms / TICK_MS;
        if target <= self.tick {
            return;
        }
        if self.armed == 0 {
            self.tick = target;
            return;
        }
        // After a long sleep one revolution sees every bucket.
        let first = self.tick + 1;
        let last = target.min(self.tick + BUCKETS as u64);
        self.tick = target;
        for tick in first..=last {
            let bucket = (tick % BUCKETS as u64) as usize;
            if self.occupied[bucket / 64] & (1 << (bucket % 64)) == 0 {
                continue;
            }
            let mut id = self.buckets[bucket];
            while id != NONE {
                let next = self.entries[id as usize].next;
                if self.entries[id as usize].filed <= target {
                    self.unfile(id);
                    let entry = &mut self.entries[id as usize];
                    if entry.at_ms <= now_ms {
                        entry.fired = true;
                        if let Some(waker) = entry.waker.take() {
                            waker.wake();
                        }
                    } else if entry.at_ms != u64::MAX {
                        let due = entry.at_ms.div_ceil(TICK_MS);
                        self.file(id, due);
                    }
                }
                id = next;
            }
        }
    }
}

/// What a deadline says when its time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired;

/// One movable deadline. Unset at first.
pub struct Deadline {
    handle: Handle,
    id: u32,
}

impl Deadline {
    /// A deadline that is not set.
    pub fn new(handle: &Handle) -> Self {
        let id = handle.reactor.borrow_mut().wheel.add();
        Self { handle: handle.clone(), id }
    }

    /// Sets it `after` from the time of this turn. Fires up to 8 ms late, never early.
    pub fn set_after(&mut self, after: Duration) {
        let mut reactor = self.handle.reactor.borrow_mut();
        // Rounded up: a deadline never fires early, not by a part of a millisecond either.
        let at_ms = reactor.now_ns().div_ceil(1_000_000)
            + u64::try_from(after.as_millis()).unwrap_or(u64::MAX / 2).max(1);
        reactor.wheel.set(self.id, at_ms);
    }

    /// Unsets it.
    pub fn clear(&mut self) {
        self.handle.reactor.borrow_mut().wheel.clear(self.id);
    }

    /// Whether it has expired; registers the caller for a wake when it has not.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        let mut reactor = self.handle.reactor.borrow_mut();
        let entry = &mut reactor.wheel.entries[self.id as usize];
        if entry.fired {
            return Poll::Ready(Expired);
        }
        match &mut entry.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            other => *other = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Waits until it expires; for ever when it is not set.
    ///
    /// # Cancel safety
    /// Safe: the deadline stays set.
    pub async fn expired(&mut self) -> Expired {
        poll_fn(|cx| self.poll_expired(cx)).await
    }

    /// Runs `work` until it is done or the deadline expires, whichever is first; `work` wins a tie.
    ///
    /// # Cancel safety
    /// As safe as `work`, which is dropped at expiry.
    pub async fn limit<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Expired> {
        let mut work = std::pin::pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(output) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            self.poll_expired(cx).map(Err)
        })
        .await
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.handle.reactor.borrow_mut().wheel.remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fired(wheel: &Wheel, id: u32) -> bool {
        wheel.entries[id as usize].fired
    }

    #[test]
    fn fires_late_by_a_tick_at_most_and_never_early() {
        let mut wheel = Wheel::new(1_000);
        let ids: Vec<_> = (0..2_000u64)
            .map(|i| {
                let id = wheel.add();
                wheel.set(id, 1_001 + i * 37);
                (id, 1_001 + i * 37)
            })
            .collect();
        for time_ms in 1_000..80_000 {
            wheel.advance(time_ms);
            for (id, at) in &ids {
                assert!(!fired(&wheel, *id) || *at <= time_ms, "early");
                assert!(fired(&wheel, *id) || at + TICK_MS > time_ms, "late: {at} at {time_ms}");
            }
        }
    }

    #[test]
    fn moving_later_keeps_the_filing_and_moving_earlier_refiles() {
        let mut wheel = Wheel::new(0);
        let id = wheel.add();
        wheel.set(id, 100);
        let filed = wheel.entries[id as usize].filed;
        wheel.set(id, 5_000);
        assert_eq!(wheel.entries[id as usize].filed, filed);
        wheel.advance(4_000);
        assert!(!fired(&wheel, id));
        wheel.set(id, 4_100);
        wheel.advance(4_112);
        assert!(fired(&wheel, id));
    }

    #[test]
    fn a_long_sleep_misses_nothing_and_removal_empties_the_wheel() {
        let mut wheel = Wheel::new(0);
        let near = wheel.add();
        let far = wheel.add();
        wheel.set(near, 10);
        wheel.set(far, 100_000);
        wheel.advance(90_000);
        assert!(fired(&wheel, near));
        assert!(!fired(&wheel, far));
        assert!(wheel.next_in_ms(90_000).unwrap() <= 10_008);
        wheel.advance(100_008);
        assert!(fired(&wheel, far));
        wheel.remove(near);
        wheel.remove(far);
        assert_eq!(wheel.armed, 0);
        assert_eq!(wheel.next_in_ms(100_008), None);
    }
}
