//! The clock that the shared segment uses.
//!
//! Owns: CLOCK_MONOTONIC in milliseconds. Does not own: timers (see `runtime`).

use std::time::Duration;

/// CLOCK_MONOTONIC since boot. The same clock in every process of this machine, so that times in the
/// shared segment can be compared between workers.
pub fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a live, writable timespec for the whole call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    if result != 0 {
        return Duration::ZERO;
    }
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}

/// [`monotonic`] in whole milliseconds.
pub fn monotonic_ms() -> u64 {
    u64::try_from(monotonic().as_millis()).unwrap_or(u64::MAX)
}

/// The clock of a test thread that lives in simulated time.
///
/// quiche asks [`std::time::Instant`] for the time, which asks the C library. In the test binary that question is
/// answered here: a thread that holds a [`simulated::Clock`] is told the simulated time, every other thread what the
/// kernel says.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::Cell;
    use std::marker::PhantomData;

    thread_local! {
        /// Nanoseconds; `None`: the thread lives in real time.
        static NOW_NS: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// Holds the calling thread in simulated time.
    pub(crate) struct Clock(PhantomData<*const ()>);

    impl Clock {
        /// Time stands still until the first turn of a simulated runtime.
        pub(crate) fn start() -> Self {
            NOW_NS.set(Some(0));
            Self(PhantomData)
        }
    }

    impl Drop for Clock {
        fn drop(&mut self) {
            NOW_NS.set(None);
        }
    }

    /// Tells the calling thread's clock the time; nothing when it has none.
    pub(crate) fn advance(now_ns: u64) {
        NOW_NS.set(NOW_NS.get().map(|_| now_ns));
    }

    /// Stands before the C library's function of this name, for this binary.
    #[unsafe(no_mangle)]
    extern "C" fn clock_gettime(clock: libc::clockid_t, now: *mut libc::timespec) -> libc::c_int {
        if let (libc::CLOCK_MONOTONIC, Some(now_ns)) = (clock, NOW_NS.get()) {
            let time = libc::timespec {
                tv_sec: (now_ns / 1_000_000_000) as libc::time_t,
                tv_nsec: (now_ns % 1_000_000_000) as libc::c_long,
            };
            // SAFETY: callers of clock_gettime(2) give a writable timespec.
            unsafe { now.write(time) };
            return 0;
        }
        // SAFETY: the same arguments, for the same duties.
        unsafe { libc::syscall(libc::SYS_clock_gettime, clock, now) as libc::c_int }
    }

    #[test]
    fn time_stands_still_for_the_holder_of_a_clock_alone() {
        let real = std::time::Instant::now();
        let clock = Clock::start();
        let (before, other) = (std::time::Instant::now(), std::thread::spawn(std::time::Instant::now));
        advance(5_000_000_123);
        assert_eq!(before.elapsed(), std::time::Duration::from_nanos(5_000_000_123));
        assert!(other.join().unwrap() >= real);
        drop(clock);
        assert!(std::time::Instant::now() >= real);
    }
}
