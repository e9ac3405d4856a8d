//! When a dead worker is started again. Pure: time is an argument.
//!
//! Owns: the delay. Does not own: starting (see [`super::supervisor`]).
//!
//! A worker that served and died is replaced at once: its clients wait in its accept queue. When the same
//! worker dies more than [`DEATHS_MAX`] times in [`WINDOW`], each further start waits, twice as long each
//! time: at most [`SERVED_DELAY_MAX`] when it had served (a request that kills workers must not cost a
//! processor, yet others are to be served within 100 ms), at most [`BOOT_DELAY_MAX`] when it died before it
//! served. It is never given up.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Deaths within [`WINDOW`] that are met with an immediate start.
pub const DEATHS_MAX: usize = 5;
/// How long a death is remembered.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Longest delay for a worker that had served.
pub const SERVED_DELAY_MAX: Duration = Duration::from_millis(20);
/// Longest delay for a worker that died before it served.
pub const BOOT_DELAY_MAX: Duration = Duration::from_secs(1);

const FIRST_DELAY: Duration = Duration::from_millis(10);

/// The deaths of one worker.
#[derive(Debug, Default)]
pub struct Deaths {
    recent: VecDeque<Instant>,
}

impl Deaths {
    /// Records a death and says how long to wait before the next start.
    pub fn record(&mut self, now: Instant, had_served: bool) -> Duration {
        while self.recent.front().is_some_and(|first| now.saturating_duration_since(*first) > WINDOW) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        let Some(excess) = self.recent.len().checked_sub(DEATHS_MAX + 1) else {
            return Duration::ZERO;
        };
        // 2^7 * 10 ms is beyond every cap, so the memory of deaths needs to reach no further.
        self.recent.truncate(DEATHS_MAX + 8);
        let cap = if had_served { SERVED_DELAY_MAX } else { BOOT_DELAY_MAX };
        let factor = 1u32 << excess.min(7);
        FIRST_DELAY.saturating_mul(factor).min(cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_deaths_cost_nothing_and_a_loop_slows_down_to_its_cap() {
        for (had_served, cap) in [(true, SERVED_DELAY_MAX), (false, BOOT_DELAY_MAX)] {
            let (mut deaths, now) = (Deaths::default(), Instant::now());
            for _ in 0..DEATHS_MAX {
                assert_eq!(deaths.record(now, had_served), Duration::ZERO);
            }
            let delays: Vec<_> = (0..100).map(|_| deaths.record(now, had_served)).collect();
            assert_eq!(delays[0], FIRST_DELAY);
            assert!(delays.is_sorted());
            assert_eq!(delays[99], cap);
            assert!(deaths.recent.len() <= DEATHS_MAX + 8);
            assert_eq!(deaths.record(now + WINDOW + Duration::from_millis(1), had_served), Duration::ZERO);
        }
    }
}
