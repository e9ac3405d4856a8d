//! Tests of the segment: layout, refusals, single-writer arithmetic, two mappings, two processes.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::layout::{ENDPOINTS_MAX, WORKERS_MAX};
use super::*;
use crate::metrics::names::BUCKET_BOUNDS_US;

fn small() -> Segment {
    Segment::create(Shape { workers: 2, endpoints: 8 }).expect("segment")
}

#[test]
fn counters_gauges_errors_and_endpoints_sum_over_workers() {
    let segment = small();
    let (a, b) = (segment.worker(0).expect("row"), segment.worker(1).expect("row"));
    a.add(Metric::UpstreamRequests, 3);
    b.add(Metric::UpstreamRequests, 4);
    segment.supervisor().expect("row").add(Metric::ConfigReloads, 1);
    a.gauge_add(Metric::DownstreamActive, 5);
    a.gauge_sub(Metric::DownstreamActive, 2);
    b.error(63);
    assert_eq!(segment.sum(Metric::UpstreamRequests), 7);
    assert_eq!(segment.value(1, Metric::UpstreamRequests), 4);
    assert_eq!(segment.sum(Metric::ConfigReloads), 1);
    assert_eq!(segment.sum(Metric::DownstreamActive), 3);
    assert_eq!((segment.sum_errors(63), segment.sum_errors(62), segment.sum_errors(64)), (1, 0, 0));
    add_u32(&a.endpoint(7).expect("row").in_flight, 2);
    add_u32(&b.endpoint(7).expect("row").in_flight, 1);
    assert_eq!(segment.in_flight(7), 3);
    assert!(a.endpoint(8).is_none());
    assert!(segment.worker(2).is_none());
}

#[test]
fn a_second_mapping_of_the_descriptor_sees_the_same_rows() {
    let segment = small();
    let other = Segment::open(segment.fd().try_clone_to_owned().expect("dup")).expect("open");
    assert_eq!(other.shape(), segment.shape());
    let rows = other.worker(1).expect("row");
    drop(other);
    // The handle keeps its mapping alive after the segment itself is gone.
    std::thread::spawn(move || {
        for _ in 0..1000 {
            rows.add(Metric::DownstreamAccepted, 1);
        }
    })
    .join()
    .expect("writer");
    assert_eq!(segment.value(1, Metric::DownstreamAccepted), 1000);
}

#[test]
fn respawn_zeroes_what_is_in_flight_and_keeps_what_was_counted() {
    let segment = small();
    let rows = segment.worker(0).expect("row");
    let endpoint = rows.endpoint(3).expect("row");
    add_u32(&endpoint.in_flight, 9);
    add_u64(&endpoint.requests_total, 11);
    endpoint.ejected_until_ms.store(77, Ordering::Relaxed);
    rows.gauge_add(Metric::DownstreamActive, 4);
    rows.add(Metric::DownstreamAccepted, 6);
    rows.status().connections.store(4, Ordering::Relaxed);
    rows.status().set_state(WorkerState::Serving);
    segment.zero_in_flight(0);
    assert_eq!(segment.in_flight(3), 0);
    assert_eq!(segment.sum(Metric::DownstreamActive), 0);
    assert_eq!(segment.sum(Metric::DownstreamAccepted), 6);
    assert_eq!(endpoint.requests_total.load(Ordering::Relaxed), 11);
    assert_eq!(endpoint.ejected_until_ms.load(Ordering::Relaxed), 77);
    assert_eq!(rows.status().state(), WorkerState::Absent);
    segment.clear_endpoint(3);
    assert_eq!(endpoint.requests_total.load(Ordering::Relaxed), 0);
    assert_eq!(endpoint.ejected_until_ms.load(Ordering::Relaxed), 0);
}

#[test]
fn observations_fall_into_the_bucket_whose_bound_they_do_not_exceed() {
    let segment = small();
    let rows = segment.worker(0).expect("row");
    for us in [0, 50, 51, 60_000_000, 60_000_001] {
        rows.observe(Histogram::RequestDuration, us);
    }
    let sum = segment.sum_histogram(Histogram::RequestDuration);
    assert_eq!(sum.buckets[0], 2);
    assert_eq!(sum.buckets[1], 1);
    assert_eq!(sum.buckets[BUCKET_BOUNDS_US.len() - 1], 1);
    assert_eq!(sum.buckets[BUCKET_BOUNDS_US.len()], 1);
    assert_eq!(sum.sum_us, 120_000_102);
    let untouched = segment.sum_histogram(Histogram::UpstreamFirstByte);
    assert_eq!(untouched.buckets.iter().sum::<u64>() + untouched.sum_us, 0);
}

#[test]
fn shapes_out_of_range_are_refused() {
    for (workers, endpoints) in [(0, 1), (WORKERS_MAX + 1, 1), (1, 0), (1, ENDPOINTS_MAX + 1)] {
        let error = Segment::create(Shape { workers, endpoints }).expect_err("refused");
        assert!(matches!(error, SegmentError::Shape(_)), "{error}");
    }
    let largest = Segment::create(Shape { workers: WORKERS_MAX, endpoints: ENDPOINTS_MAX }).expect("largest");
    assert!(largest.worker(WORKERS_MAX - 1).is_some_and(|rows| rows.endpoint(1023).is_some()));
}

#[test]
fn anything_that_is_not_a_segment_of_this_layout_is_refused_with_a_sentence() {
    let says = |fd, text: &str| {
        let error = Segment::open(fd).expect_err("refused").to_string();
        assert!(error.contains(text), "{error}");
    };
    let (reader, _writer) = std::io::pipe().expect("pipe");
    says(reader.into(), "cannot read the seals");
    says(memfd::create(c"unsealed").expect("memfd"), "not sealed");
    says(memfd::create_sized(c"short", 100).expect("memfd"), "100 bytes");
    says(memfd::create_sized(c"zero", 8192).expect("memfd"), "magic");

    let edit = |change: &dyn Fn(&Header)| {
        let segment = small();
        change(segment.shared.mapping.view(0).expect("header"));
        segment.fd().as_fd().try_clone_to_owned().expect("dup")
    };
    says(edit(&|h| h.layout_version.store(99, Ordering::Relaxed)), "layout version 99");
    says(edit(&|h| h.metric_slots.store(3, Ordering::Relaxed)), "3 metric slots");
    says(edit(&|h| h.workers.store(200, Ordering::Relaxed)), "takes");
    says(edit(&|h| h.workers.store(u32::MAX, Ordering::Relaxed)), "workers");
    says(edit(&|h| h.len_bytes.store(1, Ordering::Relaxed)), "bytes where");
}

/// Environment variable that makes the test below write instead of check.
const WRITER: &str = "BLITZ_TEST_SEGMENT_WRITER";

#[test]
fn another_process_writes_its_rows() {
    if std::env::var_os(WRITER).is_some() {
        // The segment arrives as standard input, the one descriptor that crosses exec without a flag.
        let fd = std::io::stdin().as_fd().try_clone_to_owned().expect("dup");
        let rows = Segment::open(fd).expect("open").worker(1).expect("row");
        rows.add(Metric::DownstreamAccepted, 41);
        add_u32(&rows.endpoint(2).expect("row").in_flight, 5);
        std::process::abort();
    }
    let segment = small();
    let status = std::process::Command::new("/proc/self/exe")
        .args(["--exact", "segment::tests::another_process_writes_its_rows", "--nocapture"])
        .env(WRITER, "1")
        .stdin(segment.fd().try_clone_to_owned().expect("dup"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .expect("child");
    assert!(!status.success(), "the writer dies by abort");
    assert_eq!(segment.value(1, Metric::DownstreamAccepted), 41);
    assert_eq!(segment.in_flight(2), 5);
    segment.zero_in_flight(1);
    assert_eq!((segment.in_flight(2), segment.value(1, Metric::DownstreamAccepted)), (0, 41));
}

#[test]
fn limits_keep_their_counts_as_long_as_they_are_named() {
    let segment = small();
    let (a, b) = (segment.worker(0).expect("row"), segment.worker(1).expect("row"));
    let rows = a.adopt_limits(&[11, 22]);
    assert_eq!(rows, [Some(0), Some(1)]);
    b.adopt_limits(&[22]);
    a.limit(1, LimitOutcome::Refused);
    a.limit(1, LimitOutcome::Granted);
    b.limit(0, LimitOutcome::Refused);
    assert_eq!(segment.sum_limit(22), [1, 2, 0]);
    // A successor of the worker, and a configuration in another order with a new limit.
    segment.zero_in_flight(0);
    let a = segment.worker(0).expect("row");
    assert_eq!(a.adopt_limits(&[33, 22]), [Some(0), Some(1)]);
    assert_eq!(segment.sum_limit(22), [1, 2, 0]);
    assert_eq!((segment.sum_limit(11), segment.sum_limit(33)), ([0; 3], [0; 3]));
    a.adopt_limits(&[]);
    assert_eq!(segment.sum_limit(22), [0, 1, 0]);
    // As many as a configuration may have.
    let ids: Vec<u64> = (1..=blitz_config::file::LIMITS_MAX as u64).collect();
    assert!(a.adopt_limits(&ids).iter().all(Option::is_some));
    a.limit(u16::MAX, LimitOutcome::Granted);
}
