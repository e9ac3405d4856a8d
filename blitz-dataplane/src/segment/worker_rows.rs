//! A writer's handle to its own rows.
//!
//! Owns: the pointers that the hot path writes through, and the arithmetic of a single writer. Does not own:
//! summing (see [`super::Segment`]).

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::layout::{LIMIT_ROWS, LimitRow};
use super::{Buckets, EndpointRow, LimitOutcome, Segment, WorkerStatus};
use crate::metrics::names::{
    BUCKET_BOUNDS_US, ERROR_KINDS_MAX, ERROR_SLOTS_BASE, HISTOGRAM_SLOTS, Histogram, Kind, Metric, SLOTS,
};

/// The rows of one worker. Cheap to clone; keeps the mapping alive.
///
/// Only one thread may write through the handles of one worker: increments are a load and a store, so a
/// second writer would lose counts (it would not break memory safety). The type is `Send` but not `Sync`.
#[derive(Clone, Debug)]
pub struct WorkerRows {
    slots: NonNull<[AtomicU64; SLOTS]>,
    status: NonNull<WorkerStatus>,
    endpoints: NonNull<[EndpointRow]>,
    limits: NonNull<[LimitRow; LIMIT_ROWS]>,
    index: u32,
    /// Keeps the mapping, and with it the four pointers, alive.
    segment: Segment,
}

// SAFETY: the pointers lead into a mapping of the process that `segment` keeps alive, and what they lead to
// is made of atomics, so the handle may move to another thread.
unsafe impl Send for WorkerRows {}

impl WorkerRows {
    pub(super) fn new(segment: Segment, index: u32) -> Option<Self> {
        let slots = NonNull::from(segment.slots(index)?);
        let status = NonNull::from(segment.status(index)?);
        let endpoints = NonNull::from(segment.endpoints(index)?);
        let limits = NonNull::from(segment.limits(index)?);
        Some(Self { slots, status, endpoints, limits, index, segment })
    }

    /// Number of the worker; equal to the number of workers for the supervisor's own rows.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The segment that the rows lie in.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Adds `n` to a counter.
    #[inline]
    pub fn add(&self, metric: Metric, n: u64) {
        debug_assert_eq!(metric.description().kind, Kind::Counter, "{metric:?}");
        self.add_slot(metric.slot(), n);
    }

    /// Adds `n` to a gauge.
    #[inline]
    pub fn gauge_add(&self, metric: Metric, n: u64) {
        debug_assert_eq!(metric.description().kind, Kind::Gauge, "{metric:?}");
        self.add_slot(metric.slot(), n);
    }

    /// Takes `n` from a gauge, which must hold at least that much; otherwise it becomes 0.
    #[inline]
    pub fn gauge_sub(&self, metric: Metric, n: u64) {
        debug_assert_eq!(metric.description().kind, Kind::Gauge, "{metric:?}");
        if let Some(slot) = self.slots().get(metric.slot()) {
            let value = slot.load(Ordering::Relaxed);
            debug_assert!(value >= n, "{metric:?} would fall below zero");
            slot.store(value.saturating_sub(n), Ordering::Relaxed);
        }
    }

    /// Sets a gauge.
    #[inline]
    pub fn gauge_set(&self, metric: Metric, value: u64) {
        debug_assert_eq!(metric.description().kind, Kind::Gauge, "{metric:?}");
        if let Some(slot) = self.slots().get(metric.slot()) {
            slot.store(value, Ordering::Relaxed);
        }
    }

    /// Counts one error of the kind with index `kind`, 0..64. A larger index is a bug and counts as the last.
    #[inline]
    pub fn error(&self, kind: u8) {
        debug_assert!(usize::from(kind) < ERROR_KINDS_MAX, "error kind {kind} has no slot");
        self.add_slot(ERROR_SLOTS_BASE + usize::from(kind).min(ERROR_KINDS_MAX - 1), 1);
    }

    /// Records one duration in microseconds.
    #[inline]
    pub fn observe(&self, histogram: Histogram, us: u64) {
        let bucket = BUCKET_BOUNDS_US.partition_point(|bound| *bound < us);
        let first = histogram.first_slot();
        self.add_slot(first + bucket, 1);
        self.add_slot(first + HISTOGRAM_SLOTS - 1, us);
    }

    /// This worker's row of endpoint `row`, or `None` when there is no such row.
    #[inline]
    pub fn endpoint(&self, row: u16) -> Option<&EndpointRow> {
        // SAFETY: the pointer was made from a reference into the mapping, which `self.segment` keeps mapped,
        // and the result borrows `self`.
        let rows = unsafe { self.endpoints.as_ref() };
        rows.get(usize::from(row))
    }

    /// Gives each limit a row, by its id (not 0): the one that it has, or a free one. Rows of limits that are
    /// not named become free, with their counts. A limit beyond the rows there are has none, and is not
    /// counted; a configuration has fewer.
    pub fn adopt_limits(&self, ids: &[u64]) -> Vec<Option<u16>> {
        let rows = self.limits();
        for row in rows.iter().filter(|row| !ids.contains(&row.id.load(Ordering::Relaxed))) {
            row.id.store(0, Ordering::Relaxed);
            row.counts.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        }
        let place = |id: u64| {
            let of = |wanted| (0u16..).zip(rows).find(|(_, row)| row.id.load(Ordering::Relaxed) == wanted);
            let (place, row) = of(id).or_else(|| of(0))?;
            // Release: a reader that sees the id sees the counts cleared.
            row.id.store(id, Ordering::Release);
            Some(place)
        };
        ids.iter().map(|id| place(*id)).collect()
    }

    /// Counts what the limit of row `row` said of a request.
    #[inline]
    pub fn limit(&self, row: u16, outcome: LimitOutcome) {
        let count = self.limits().get(usize::from(row)).and_then(|row| row.counts.get(outcome as usize));
        if let Some(count) = count {
            add_u64(count, 1);
        }
    }

    /// The token buckets that all workers share.
    #[inline]
    pub fn buckets(&self) -> Option<Buckets<'_>> {
        self.segment.buckets()
    }

    /// This worker's status row.
    #[inline]
    pub fn status(&self) -> &WorkerStatus {
        // SAFETY: as in `endpoint`.
        unsafe { self.status.as_ref() }
    }

    #[inline]
    fn limits(&self) -> &[LimitRow; LIMIT_ROWS] {
        // SAFETY: as in `endpoint`.
        unsafe { self.limits.as_ref() }
    }

    #[inline]
    fn slots(&self) -> &[AtomicU64; SLOTS] {
        // SAFETY: as in `endpoint`.
        unsafe { self.slots.as_ref() }
    }

    #[inline]
    fn add_slot(&self, slot: usize, n: u64) {
        if let Some(slot) = self.slots().get(slot) {
            add_u64(slot, n);
        }
    }
}

/// Adds to a counter that only the calling thread writes. Wraps at 2^64.
#[inline]
pub fn add_u64(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// Adds to a counter that only the calling thread writes. Wraps at 2^32.
#[inline]
pub fn add_u32(counter: &AtomicU32, n: u32) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// Takes from a counter that only the calling thread writes. It must hold at least `n`; otherwise it becomes
/// 0.
#[inline]
pub fn sub_u32(counter: &AtomicU32, n: u32) {
    let value = counter.load(Ordering::Relaxed);
    debug_assert!(value >= n, "a count would fall below zero");
    counter.store(value.saturating_sub(n), Ordering::Relaxed);
}
