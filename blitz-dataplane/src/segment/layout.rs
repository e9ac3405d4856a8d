//! The bytes of the shared segment.
//!
//! Owns: the structures, their sizes and offsets, the layout version. Does not own: the mapping (see
//! [`crate::sys::mmap`]) or the way in (see [`super`]).
//!
//! ```text
//! 0                  Header (128 bytes)
//! 4096               region of worker 0
//! 4096 + stride      region of worker 1
//! …                  region of worker W-1
//! 4096 + W * stride  region of the supervisor (same shape; its endpoint rows stay zero)
//! 4096 + (W + 1) * stride  sets of token buckets, 4 MiB
//! … + 4 MiB          sets of flights that were seen, 4 MiB
//!
//! region: WorkerStatus (64 bytes) | metric slots (8 bytes each, padded to 64) | limit rows (32 bytes each)
//!         | endpoint rows (64 bytes each)
//! ```
//! Regions begin on pages of their own, so that workers share no cache line and each worker's rows are
//! placed on its NUMA node by first touch. Untouched pages take no memory.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::metrics::names::SLOTS;
use crate::sys::mmap::SharedPlain;

/// Version of everything in this file. Any change of a structure, an offset or a meaning raises it.
pub const LAYOUT_VERSION: u32 = 3;
/// `"BLZSEG\r\n"`: tells the segment from any other memfd.
pub const MAGIC: u64 = u64::from_le_bytes(*b"BLZSEG\r\n");
/// Most workers: 8 bits name a worker in a QUIC connection ID.
pub const WORKERS_MAX: u32 = 256;
/// Most endpoint rows. A reload that needs more is refused.
pub const ENDPOINTS_MAX: u32 = 1024;
/// Limit rows of each worker: one for each limit that a configuration may have, and one more.
pub const LIMIT_ROWS: usize = blitz_config::file::LIMITS_MAX + 1;
/// Sets of token buckets: 65,536 sets of four hold as many sources as the kernel's table does.
pub const BUCKET_SETS: usize = 65_536;
/// Buckets of one set: what fills a cache line.
pub const BUCKET_WAYS: usize = 4;
/// Sets of first flights that were seen: 65,536 sets of eight.
pub const SEEN_SETS: usize = 65_536;
/// Places of one set: what fills a cache line.
pub const SEEN_WAYS: usize = 8;

pub(super) const PAGE_BYTES: usize = 4096;
const CACHE_LINE_BYTES: usize = 64;

/// How many of everything. Checked when a segment is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Workers, 1..=[`WORKERS_MAX`].
    pub workers: u32,
    /// Endpoint rows of each worker, 1..=[`ENDPOINTS_MAX`].
    pub endpoints: u32,
}

impl Shape {
    /// Bytes from one region to the next: whole pages.
    pub(super) const fn stride(self) -> usize {
        (ENDPOINTS_OFFSET + self.endpoints as usize * size_of::<EndpointRow>()).next_multiple_of(PAGE_BYTES)
    }

    /// Bytes of the whole segment, at most 4096 + 257 * 76 KiB + 8 MiB (about 27 MiB, most of it never
    /// touched).
    pub(super) const fn len(self) -> usize {
        self.seen() + SEEN_SETS * size_of::<SeenSet>()
    }

    /// Offset of the flights that were seen.
    pub(super) const fn seen(self) -> usize {
        self.buckets() + BUCKET_SETS * size_of::<BucketSet>()
    }

    /// Offset of the token buckets.
    pub(super) const fn buckets(self) -> usize {
        PAGE_BYTES + (self.workers as usize + 1) * self.stride()
    }

    /// Offset of the region of `index`; the supervisor's is number [`Shape::workers`].
    pub(super) const fn region(self, index: u32) -> usize {
        PAGE_BYTES + index as usize * self.stride()
    }
}

pub(super) const STATUS_OFFSET: usize = 0;
pub(super) const SLOTS_OFFSET: usize = STATUS_OFFSET + size_of::<WorkerStatus>();
pub(super) const LIMITS_OFFSET: usize =
    SLOTS_OFFSET + (SLOTS * size_of::<AtomicU64>()).next_multiple_of(CACHE_LINE_BYTES);
pub(super) const ENDPOINTS_OFFSET: usize = LIMITS_OFFSET + LIMIT_ROWS * size_of::<LimitRow>();

/// First bytes of the segment. Written once at creation, before any worker has the descriptor.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: AtomicU64,
    pub(super) layout_version: AtomicU32,
    pub(super) workers: AtomicU32,
    pub(super) metric_slots: AtomicU32,
    pub(super) endpoints: AtomicU32,
    pub(super) len_bytes: AtomicU64,
    /// Key of the hash that places token buckets. Drawn at creation.
    pub(super) bucket_key: [AtomicU64; 2],
    /// Key of the hash that places flights that were seen, and the table's name. Drawn at creation.
    pub(super) seen_key: [AtomicU64; 2],
    pub(super) seen_name: AtomicU64,
    _reserved: [AtomicU64; 7],
}

/// What a worker says about itself. Written by the worker, except where noted.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct WorkerStatus {
    /// Process id; in mode sp the thread id.
    pub pid: AtomicU32,
    /// One of [`WorkerState`].
    pub state: AtomicU32,
    /// How often this worker was started: 1 for the first. Written by the supervisor before the start.
    pub incarnation: AtomicU64,
    /// Generation of the configuration that the loop uses now; 0 before the first.
    pub snapshot_generation: AtomicU64,
    /// Time of the loop's last sign of life, CLOCK_MONOTONIC in milliseconds.
    pub heartbeat_ms: AtomicU64,
    /// Downstream connections open now.
    pub connections: AtomicU32,
    _reserved: [AtomicU32; 5],
}

/// State of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum WorkerState {
    /// Not started, or dead and not yet replaced.
    Absent = 0,
    /// Started, no configuration applied yet.
    Starting = 1,
    /// Accepts and serves.
    Serving = 2,
    /// Accepts nothing new and ends what it has.
    Draining = 3,
}

impl WorkerState {
    /// The name used in logs and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

impl WorkerStatus {
    /// The state; a value of no meaning reads as absent.
    pub fn state(&self) -> WorkerState {
        match self.state.load(Ordering::Acquire) {
            1 => WorkerState::Starting,
            2 => WorkerState::Serving,
            3 => WorkerState::Draining,
            _ => WorkerState::Absent,
        }
    }

    /// Sets the state.
    pub fn set_state(&self, state: WorkerState) {
        self.state.store(state as u32, Ordering::Release);
    }
}

/// One worker's view of one endpoint address. Written by that worker only; zeroed or read by the supervisor.
///
/// Which address a row stands for is told by the resolved endpoints that travel with the configuration
/// (see [`crate::process::endpoints`]).
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct EndpointRow {
    /// Requests sent to it whose answer is not complete.
    pub in_flight: AtomicU32,
    /// Failed exchanges since the last success.
    pub consecutive_failures: AtomicU32,
    /// Successful exchanges since the last failure.
    pub consecutive_successes: AtomicU32,
    /// Times this worker has taken it out.
    pub ejections: AtomicU32,
    /// Out until then, CLOCK_MONOTONIC in milliseconds; 0 or past: in.
    pub ejected_until_ms: AtomicU64,
    /// Requests sent to it.
    pub requests_total: AtomicU64,
    /// Exchanges that failed on its side.
    pub failures_total: AtomicU64,
    /// Connections opened to it.
    pub connects_total: AtomicU64,
    /// Requests that went over a pooled connection.
    pub reuses_total: AtomicU64,
}

impl EndpointRow {
    pub(super) fn clear(&self) {
        let Self {
            in_flight,
            consecutive_failures,
            consecutive_successes,
            ejections,
            ejected_until_ms,
            requests_total,
            failures_total,
            connects_total,
            reuses_total,
        } = self;
        for counter in [in_flight, consecutive_failures, consecutive_successes, ejections] {
            counter.store(0, Ordering::Relaxed);
        }
        for counter in [ejected_until_ms, requests_total, failures_total, connects_total, reuses_total] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// What one worker counts for one limit. Written by that worker only.
#[derive(Debug, Default)]
#[repr(C)]
pub struct LimitRow {
    /// Hash of the limit's name; 0: the row is free.
    pub id: AtomicU64,
    /// By [`LimitOutcome`].
    pub counts: [AtomicU64; LimitOutcome::ALL.len()],
}

/// What a limit said of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LimitOutcome {
    /// It is within the rate.
    Granted = 0,
    /// It is over the rate and was answered with 429.
    Refused = 1,
    /// It is over the rate, and the limit only counts.
    Shadow = 2,
}

impl LimitOutcome {
    /// Every outcome, by its number.
    pub const ALL: [Self; 3] = [Self::Granted, Self::Refused, Self::Shadow];

    /// The value of the metric label `outcome`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Refused => "refused",
            Self::Shadow => "shadow",
        }
    }
}

/// Token buckets that share a cache line. Written by every worker.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct BucketSet {
    /// Whose bucket it is; 0: nobody's.
    pub(super) tags: [AtomicU64; BUCKET_WAYS],
    /// Its word, as [`blitz_ebpf_common::gcra`] reads it.
    pub(super) words: [AtomicU64; BUCKET_WAYS],
}

/// Flights that share a cache line. Written by every worker.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct SeenSet {
    /// Fingerprint, and in the low half the second at which it ends; 0: free.
    pub(super) places: [AtomicU64; SEEN_WAYS],
}

const _: () = {
    assert!(size_of::<SeenSet>() == CACHE_LINE_BYTES);
    assert!(SEEN_SETS.is_power_of_two());
    assert!(size_of::<LimitRow>() == 32);
    assert!((LIMIT_ROWS * size_of::<LimitRow>()).is_multiple_of(CACHE_LINE_BYTES));
    assert!(size_of::<BucketSet>() == CACHE_LINE_BYTES);
    assert!(BUCKET_SETS.is_power_of_two());
    assert!(size_of::<Header>() == 128);
    assert!(size_of::<WorkerStatus>() == CACHE_LINE_BYTES);
    assert!(size_of::<EndpointRow>() == CACHE_LINE_BYTES);
    assert!(ENDPOINTS_OFFSET.is_multiple_of(CACHE_LINE_BYTES));
};

// SAFETY: repr(C), atomics of integers and arrays of them only; no padding, as the sizes asserted above say.
unsafe impl SharedPlain for Header {}
// SAFETY: as above.
unsafe impl SharedPlain for WorkerStatus {}
// SAFETY: as above.
unsafe impl SharedPlain for EndpointRow {}
// SAFETY: as above.
unsafe impl SharedPlain for LimitRow {}
// SAFETY: as above.
unsafe impl SharedPlain for BucketSet {}
// SAFETY: as above.
unsafe impl SharedPlain for SeenSet {}
