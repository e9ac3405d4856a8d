//! The clock that the kernel programs read.
//!
//! Owns: CLOCK_MONOTONIC in nanoseconds, as `bpf_ktime_get_ns` reads it. Does not own: wall time (std).

/// CLOCK_MONOTONIC now, in nanoseconds (clock_gettime(2)). It stands still while the machine sleeps.
pub fn monotonic_nanoseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live, writable timespec.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    debug_assert_eq!(result, 0, "CLOCK_MONOTONIC exists on every Linux");
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}
