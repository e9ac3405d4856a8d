//! The shared-memory segment: what workers and the supervisor see in common.
//!
//! Owns: creation, opening, the rows and who may write them. Does not own: the layout ([`layout`]), the names
//! of metrics ([`crate::metrics::names`]), or which address an endpoint row stands for
//! ([`crate::process::endpoints`]).
//!
//! Every row has one writer, which increments by a relaxed load and a relaxed store (no locked instruction);
//! readers sum over workers. So a killed worker leaks nothing: the supervisor zeroes its gauges and in-flight
//! counts before the successor starts and leaves its counters alone.

pub mod buckets;
pub mod layout;
pub mod seen;
#[cfg(test)]
mod tests;
mod worker_rows;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use buckets::{BucketKey, Buckets, Taken};
pub use layout::{ENDPOINTS_MAX, EndpointRow, LimitOutcome, Shape, WORKERS_MAX, WorkerState, WorkerStatus};
pub use seen::{Seen, Sight};
pub use worker_rows::{WorkerRows, add_u32, add_u64, sub_u32};

use crate::metrics::names::{
    ERROR_KINDS_MAX, ERROR_SLOTS_BASE, HISTOGRAM_SLOTS, Histogram, Kind, Metric, SLOTS,
};
use crate::sys::{memfd, mmap::SharedMapping, wipe};
use layout::{
    ENDPOINTS_OFFSET, Header, LAYOUT_VERSION, LIMIT_ROWS, LIMITS_OFFSET, LimitRow, MAGIC, SLOTS_OFFSET,
    STATUS_OFFSET,
};

/// The mapped segment. Cheap to clone; the mapping lives as long as any clone or [`WorkerRows`].
#[derive(Clone, Debug)]
pub struct Segment {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    mapping: SharedMapping,
    shape: Shape,
    fd: OwnedFd,
}

/// Why a segment could not be had.
#[derive(Debug)]
pub enum SegmentError {
    /// The kernel refused.
    Io(&'static str, io::Error),
    /// A number of workers or endpoints is out of range.
    Shape(Shape),
    /// The descriptor is not a segment of this layout; the text says what differs.
    Mismatch(String),
}

impl std::fmt::Display for SegmentError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(what, error) => write!(f, "cannot {what} the shared segment: {error}"),
            Self::Shape(shape) => write!(
                f,
                "a shared segment for {} workers and {} endpoint rows was asked for; \
                 1 to {WORKERS_MAX} workers and 1 to \
                 {ENDPOINTS_MAX} rows are possible",
                shape.workers, shape.endpoints
            ),
            Self::Mismatch(what) => write!(
                f,
                "the shared segment does not fit this program: {what}; supervisor and workers must be the same build"
            ),
        }
    }
}

impl std::error::Error for SegmentError {}

/// One distribution, summed over workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramSum {
    /// Observations by bucket, not cumulative; the last is the unbounded one.
    pub buckets: [u64; HISTOGRAM_SLOTS - 1],
    /// Sum of all observations in microseconds.
    pub sum_us: u64,
}

impl Segment {
    /// Creates a zeroed segment.
    ///
    /// # Errors
    /// [`SegmentError::Shape`] when a number is out of range; [`SegmentError::Io`] when there is no descriptor
    /// or no memory left.
    pub fn create(shape: Shape) -> Result<Self, SegmentError> {
        check_shape(shape)?;
        let fd = memfd::create_sized(c"blitz-segment", shape.len() as u64)
            .map_err(|e| SegmentError::Io("create", e))?;
        let mapping = SharedMapping::map(fd.as_fd(), shape.len()).map_err(|e| SegmentError::Io("map", e))?;
        let header: &Header =
            mapping.view(0).ok_or_else(|| SegmentError::Mismatch("it is too short".to_owned()))?;
        for word in header.bucket_key.iter().chain(&header.seen_key).chain([&header.seen_name]) {
            let mut octets = [0; 8];
            wipe::random(&mut octets).map_err(|e| SegmentError::Io("draw a key for", e))?;
            word.store(u64::from_ne_bytes(octets), Ordering::Relaxed);
        }
        header.layout_version.store(LAYOUT_VERSION, Ordering::Relaxed);
        header.workers.store(shape.workers, Ordering::Relaxed);
        header.metric_slots.store(SLOTS as u32, Ordering::Relaxed);
        header.endpoints.store(shape.endpoints, Ordering::Relaxed);
        header.len_bytes.store(shape.len() as u64, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok(Self { shared: Arc::new(Shared { mapping, shape, fd }) })
    }

    /// Opens a segment that another process created, and checks seals, magic, layout version and shape.
    ///
    /// # Errors
    /// [`SegmentError::Mismatch`] when `fd` is anything else than a segment of this build's layout.
    pub fn open(fd: OwnedFd) -> Result<Self, SegmentError> {
        let mismatch = |what: String| Err(SegmentError::Mismatch(what));
        let seals = memfd::seals(fd.as_fd()).map_err(|e| SegmentError::Io("read the seals of", e))?;
        if seals & memfd::SIZE_SEALS != memfd::SIZE_SEALS {
            return mismatch("its size is not sealed".to_owned());
        }
        let file = std::fs::File::from(fd);
        let len = file.metadata().map_err(|e| SegmentError::Io("measure", e))?.len();
        let fd = OwnedFd::from(file);
        let len_bytes = usize::try_from(len).unwrap_or(0);
        if len_bytes < layout::PAGE_BYTES {
            return mismatch(format!("it has {len} bytes, a header alone takes {}", layout::PAGE_BYTES));
        }
        let mapping = SharedMapping::map(fd.as_fd(), len_bytes).map_err(|e| SegmentError::Io("map", e))?;
        let Some(header) = mapping.view::<Header>(0) else {
            return mismatch("it is too short".to_owned());
        };
        if header.magic.load(Ordering::Acquire) != MAGIC {
            return mismatch("it does not begin with the magic number".to_owned());
        }
        let version = header.layout_version.load(Ordering::Relaxed);
        if version != LAYOUT_VERSION {
            return mismatch(format!("it has layout version {version}, this program has {LAYOUT_VERSION}"));
        }
        let slots = header.metric_slots.load(Ordering::Relaxed);
        if slots as usize != SLOTS {
            return mismatch(format!("it has {slots} metric slots, this program has {SLOTS}"));
        }
        let shape = Shape {
            workers: header.workers.load(Ordering::Relaxed),
            endpoints: header.endpoints.load(Ordering::Relaxed),
        };
        check_shape(shape)?;
        if shape.len() != len_bytes || header.len_bytes.load(Ordering::Relaxed) != len {
            return mismatch(format!("it has {len} bytes where {shape:?} takes {}", shape.len()));
        }
        Ok(Self { shared: Arc::new(Shared { mapping, shape, fd }) })
    }

    /// The descriptor, to be passed to a worker.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.fd.as_fd()
    }

    /// How many of everything.
    pub fn shape(&self) -> Shape {
        self.shared.shape
    }

    /// The rows of worker `index`, or `None` when there is no such worker.
    pub fn worker(&self, index: u32) -> Option<WorkerRows> {
        if index < self.shared.shape.workers { self.rows(index) } else { None }
    }

    /// The supervisor's own rows.
    pub fn supervisor(&self) -> Option<WorkerRows> {
        self.rows(self.shared.shape.workers)
    }

    /// The value of `metric` in the row of worker `index` (0 when there is no such worker).
    pub fn value(&self, index: u32, metric: Metric) -> u64 {
        self.slots(index).map_or(0, |slots| load(slots, metric.slot()))
    }

    /// The sum of `metric` over all workers and the supervisor, wrapping at 2^64.
    pub fn sum(&self, metric: Metric) -> u64 {
        self.sum_slot(metric.slot())
    }

    /// Errors of the kind with index `kind` (0..64), summed over all workers.
    pub fn sum_errors(&self, kind: u8) -> u64 {
        if usize::from(kind) < ERROR_KINDS_MAX {
            self.sum_slot(ERROR_SLOTS_BASE + usize::from(kind))
        } else {
            0
        }
    }

    /// A distribution summed over all workers.
    pub fn sum_histogram(&self, histogram: Histogram) -> HistogramSum {
        let first = histogram.first_slot();
        HistogramSum {
            buckets: std::array::from_fn(|bucket| self.sum_slot(first + bucket)),
            sum_us: self.sum_slot(first + HISTOGRAM_SLOTS - 1),
        }
    }

    /// The status row of worker `index`.
    pub fn status(&self, index: u32) -> Option<&WorkerStatus> {
        self.region(index).and_then(|region| self.shared.mapping.view(region + STATUS_OFFSET))
    }

    /// The row of endpoint `row` as worker `index` sees it.
    pub fn endpoint(&self, index: u32, row: u16) -> Option<&EndpointRow> {
        self.endpoints(index).and_then(|rows| rows.get(usize::from(row)))
    }

    /// The token buckets that all workers share.
    pub fn buckets(&self) -> Option<Buckets<'_>> {
        let shared = &*self.shared;
        let header: &Header = shared.mapping.view(0)?;
        let key = [0, 1].map(|word: usize| header.bucket_key[word].load(Ordering::Relaxed));
        Some(Buckets::new(shared.mapping.view(shared.shape.buckets())?, key))
    }

    /// The first flights that workers have seen lately.
    pub fn seen(&self) -> Option<Seen<'_>> {
        let shared = &*self.shared;
        let header: &Header = shared.mapping.view(0)?;
        let key = [0, 1].map(|word: usize| header.seen_key[word].load(Ordering::Relaxed));
        let name = header.seen_name.load(Ordering::Relaxed);
        Some(Seen::new(shared.mapping.view(shared.shape.seen())?, key, name))
    }

    /// What the limit of `id` said, by [`LimitOutcome`], summed over workers.
    pub fn sum_limit(&self, id: u64) -> [u64; LimitOutcome::ALL.len()] {
        let mut sums = [0_u64; LimitOutcome::ALL.len()];
        let rows = (0..self.shared.shape.workers).filter_map(|worker| self.limits(worker)).flatten();
        for row in rows.filter(|row| row.id.load(Ordering::Acquire) == id) {
            for (sum, count) in sums.iter_mut().zip(&row.counts) {
                *sum = sum.wrapping_add(count.load(Ordering::Relaxed));
            }
        }
        sums
    }

    /// Requests in flight to endpoint `row`, summed over workers.
    pub fn in_flight(&self, row: u16) -> u64 {
        (0..self.shared.shape.workers)
            .filter_map(|worker| self.endpoint(worker, row))
            .map(|endpoint| u64::from(endpoint.in_flight.load(Ordering::Relaxed)))
            .sum()
    }

    /// Makes the rows of a dead worker ready for its successor: in-flight counts, gauges and the status
    /// become zero; counters and the health of endpoints stay. Only the supervisor calls it, and only between
    /// the death of one incarnation and the start of the next, so that the row has one writer at any time.
    pub fn zero_in_flight(&self, index: u32) {
        for row in self.endpoints(index).unwrap_or_default() {
            row.in_flight.store(0, Ordering::Relaxed);
        }
        if let Some(slots) = self.slots(index) {
            let gauges = Metric::ALL.iter().filter(|metric| metric.description().kind == Kind::Gauge);
            for gauge in gauges.filter_map(|metric| slots.get(metric.slot())) {
                gauge.store(0, Ordering::Relaxed);
            }
        }
        if let Some(status) = self.status(index) {
            status.pid.store(0, Ordering::Relaxed);
            status.snapshot_generation.store(0, Ordering::Relaxed);
            status.connections.store(0, Ordering::Relaxed);
            status.set_state(WorkerState::Absent);
        }
    }

    /// Makes row `row` ready for another address in every worker. Only the supervisor calls it, once no
    /// worker uses the row (see [`crate::process::endpoints::RowTable`]).
    pub fn clear_endpoint(&self, row: u16) {
        for worker in 0..self.shared.shape.workers {
            if let Some(endpoint) = self.endpoint(worker, row) {
                endpoint.clear();
            }
        }
    }

    fn rows(&self, index: u32) -> Option<WorkerRows> {
        WorkerRows::new(self.clone(), index)
    }

    /// Offset of a region; index [`Shape::workers`] is the supervisor's.
    fn region(&self, index: u32) -> Option<usize> {
        (index <= self.shared.shape.workers).then(|| self.shared.shape.region(index))
    }

    fn slots(&self, index: u32) -> Option<&[AtomicU64; SLOTS]> {
        self.region(index).and_then(|region| self.shared.mapping.view(region + SLOTS_OFFSET))
    }

    fn endpoints(&self, index: u32) -> Option<&[EndpointRow]> {
        let count = self.shared.shape.endpoints as usize;
        self.region(index).and_then(|region| self.shared.mapping.slice(region + ENDPOINTS_OFFSET, count))
    }

    fn limits(&self, index: u32) -> Option<&[LimitRow; LIMIT_ROWS]> {
        self.region(index).and_then(|region| self.shared.mapping.view(region + LIMITS_OFFSET))
    }

    fn sum_slot(&self, slot: usize) -> u64 {
        (0..=self.shared.shape.workers)
            .filter_map(|index| self.slots(index))
            .fold(0, |sum, slots| sum.wrapping_add(load(slots, slot)))
    }
}

fn load(slots: &[AtomicU64; SLOTS], slot: usize) -> u64 {
    slots.get(slot).map_or(0, |value| value.load(Ordering::Relaxed))
}

fn check_shape(shape: Shape) -> Result<(), SegmentError> {
    let fits = (1..=WORKERS_MAX).contains(&shape.workers) && (1..=ENDPOINTS_MAX).contains(&shape.endpoints);
    if fits { Ok(()) } else { Err(SegmentError::Shape(shape)) }
}
