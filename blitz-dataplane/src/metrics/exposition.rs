//! The text that Prometheus reads.
//!
//! Owns: turning the segment's rows into metric families. Does not own: the names (see [`super::names`]) or
//! the HTTP answer (see [`crate::control`]).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as HistogramValue, LabelPair, MetricFamily, MetricType,
};
use prometheus::{Encoder, TextEncoder, proto};

use super::names::{self, BUCKET_BOUNDS_US, Computed, ERRORS_HELP, ERRORS_NAME, Histogram, Kind, Metric};
use crate::segment::{EndpointRow, LimitOutcome, Segment, WorkerState};
use crate::sys::clock;

/// Content type of the text.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// What stands in the labels of one endpoint row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointLabels {
    /// Row in the segment.
    pub row: u16,
    /// Name of the upstream.
    pub upstream: String,
    /// The address that the row stands for.
    pub address: String,
}

/// Reads a segment as Prometheus metric families.
#[derive(Clone, Debug)]
pub struct Exposition {
    segment: Segment,
    error_labels: &'static [&'static str],
    version: &'static str,
}

impl Exposition {
    /// `error_labels[i]` is the label of error kind `i`; labels beyond 64 have no slot and are left out.
    pub fn new(segment: Segment, error_labels: &'static [&'static str], version: &'static str) -> Self {
        Self { segment, error_labels, version }
    }

    /// All families as text, sorted by name. `endpoints` says which rows are in use, `limits` are the names of
    /// the limits on requests.
    ///
    /// # Errors
    /// Those of the encoder: a family without a metric, which the tables do not allow.
    pub fn text(&self, endpoints: &[EndpointLabels], limits: &[&str]) -> prometheus::Result<String> {
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&self.families(endpoints, limits), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn families(&self, endpoints: &[EndpointLabels], limits: &[&str]) -> Vec<MetricFamily> {
        let mut families = Families::default();
        for &metric in Metric::ALL {
            let description = metric.description();
            families.push(
                description.name,
                description.help,
                description.kind,
                description.labels,
                self.segment.sum(metric) as f64,
            );
        }
        for (kind, label) in (0u8..64).zip(self.error_labels) {
            let value = self.segment.sum_errors(kind) as f64;
            families.push(ERRORS_NAME, ERRORS_HELP, Kind::Counter, &[("kind", label)], value);
        }
        for &histogram in Histogram::ALL {
            families.0.insert(histogram.name(), self.histogram(histogram));
        }
        self.workers(&mut families);
        for endpoint in endpoints {
            self.endpoint(&mut families, endpoint);
        }
        for limit in limits {
            let sums = self.segment.sum_limit(crate::proxy::limiter::id(limit));
            for (outcome, sum) in LimitOutcome::ALL.iter().zip(sums) {
                let labels = [("limit", *limit), ("outcome", outcome.label())];
                families.computed(names::LIMIT_REQUESTS, &labels, sum as f64);
            }
        }
        families.computed(names::BUILD_INFO, &[("version", self.version)], 1.0);
        families.0.into_values().collect()
    }

    fn workers(&self, families: &mut Families) {
        for index in 0..self.segment.shape().workers {
            let Some(status) = self.segment.status(index) else {
                continue;
            };
            let worker = index.to_string();
            let labels = [("worker", worker.as_str())];
            let is_serving = status.state() == WorkerState::Serving;
            families.computed(names::WORKER_SERVING, &labels, f64::from(u8::from(is_serving)));
            let generation = status.snapshot_generation.load(Ordering::Relaxed) as f64;
            families.computed(names::WORKER_GENERATION, &labels, generation);
            let connections = f64::from(status.connections.load(Ordering::Relaxed));
            families.computed(names::WORKER_CONNECTIONS, &labels, connections);
        }
    }

    fn endpoint(&self, families: &mut Families, endpoint: &EndpointLabels) {
        let now_ms = clock::monotonic_ms();
        let sum = |read: &dyn Fn(&EndpointRow) -> u64| {
            let workers = 0..self.segment.shape().workers;
            workers.filter_map(|worker| self.segment.endpoint(worker, endpoint.row)).map(read).sum::<u64>()
                as f64
        };
        let labels = [("upstream", endpoint.upstream.as_str()), ("address", endpoint.address.as_str())];
        let in_flight = sum(&|row| u64::from(row.in_flight.load(Ordering::Relaxed)));
        families.computed(names::ENDPOINT_IN_FLIGHT, &labels, in_flight);
        let requests = sum(&|row| row.requests_total.load(Ordering::Relaxed));
        families.computed(names::ENDPOINT_REQUESTS, &labels, requests);
        let failures = sum(&|row| row.failures_total.load(Ordering::Relaxed));
        families.computed(names::ENDPOINT_FAILURES, &labels, failures);
        let connects = sum(&|row| row.connects_total.load(Ordering::Relaxed));
        families.computed(names::ENDPOINT_CONNECTS, &labels, connects);
        let reuses = sum(&|row| row.reuses_total.load(Ordering::Relaxed));
        families.computed(names::ENDPOINT_REUSES, &labels, reuses);
        let ejected = sum(&|row| u64::from(row.ejected_until_ms.load(Ordering::Relaxed) > now_ms));
        families.computed(names::ENDPOINT_EJECTED, &labels, ejected);
    }

    fn histogram(&self, histogram: Histogram) -> MetricFamily {
        let sum = self.segment.sum_histogram(histogram);
        let mut count = 0u64;
        let mut buckets = Vec::with_capacity(BUCKET_BOUNDS_US.len());
        for (bound, observations) in BUCKET_BOUNDS_US.iter().zip(&sum.buckets) {
            count = count.wrapping_add(*observations);
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64 / 1e6);
            bucket.set_cumulative_count(count);
            buckets.push(bucket);
        }
        count = count.wrapping_add(sum.buckets.last().copied().unwrap_or(0));
        let mut value = HistogramValue::default();
        value.set_bucket(buckets);
        value.set_sample_count(count);
        value.set_sample_sum(sum.sum_us as f64 / 1e6);
        let mut metric = proto::Metric::default();
        metric.set_histogram(value);
        family(histogram.name(), histogram.help(), MetricType::HISTOGRAM, vec![metric])
    }
}

/// Families by name; rows of one name are kept together as the format demands.
#[derive(Default)]
struct Families(BTreeMap<&'static str, MetricFamily>);

impl Families {
    fn computed(&mut self, metric: Computed, labels: &[(&str, &str)], value: f64) {
        self.push(metric.name, metric.help, metric.kind, labels, value);
    }

    fn push(&mut self, name: &'static str, help: &str, kind: Kind, labels: &[(&str, &str)], value: f64) {
        let mut metric =
            proto::Metric::from_label(labels.iter().map(|(name, value)| label(name, value)).collect());
        let kind = match kind {
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
                MetricType::COUNTER
            }
            Kind::Gauge => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
                MetricType::GAUGE
            }
        };
        let entry = self.0.entry(name).or_insert_with(|| family(name, help, kind, Vec::new()));
        entry.mut_metric().push(metric);
    }
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<proto::Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::exchange::Protocol;
    use crate::segment::Shape;

    /// A strict reader of the text format: name, labels as written, value; types by family.
    fn parse(text: &str) -> (HashMap<String, f64>, HashMap<String, String>) {
        let (mut samples, mut types) = (HashMap::new(), HashMap::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("type line");
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
            } else if !line.starts_with("# HELP ") {
                let (name, value) = line.rsplit_once(' ').expect("sample line");
                assert!(
                    samples.insert(name.to_owned(), value.parse().expect("number")).is_none(),
                    "{name} twice"
                );
            }
        }
        (samples, types)
    }

    #[test]
    fn the_text_holds_the_sum_of_all_rows() {
        let segment = Segment::create(Shape { workers: 2, endpoints: 4 }).expect("segment");
        let (a, b) = (segment.worker(0).expect("row"), segment.worker(1).expect("row"));
        a.add(Metric::requests(Protocol::H1, 204), 2);
        b.add(Metric::requests(Protocol::H1, 299), 3);
        b.add(Metric::requests(Protocol::H1, 999), 1);
        a.gauge_add(Metric::DownstreamActive, 7);
        b.error(1);
        for worker in [&a, &b] {
            worker.adopt_limits(&[crate::proxy::limiter::id("per_source")]);
            worker.limit(0, LimitOutcome::Refused);
        }
        a.observe(Histogram::RequestDuration, 900);
        b.observe(Histogram::RequestDuration, 90_000_000);
        crate::segment::add_u32(&b.endpoint(3).expect("row").in_flight, 2);
        let labels = [EndpointLabels { row: 3, upstream: "a\"b".to_owned(), address: "[::1]:80".to_owned() }];
        let text = Exposition::new(segment, &["bad_head", "reset"], "1.2.3")
            .text(&labels, &["per_source"])
            .expect("text");
        let (samples, types) = parse(&text);
        let value = |name: &str| samples.get(name).copied().unwrap_or_else(|| panic!("{name} in\n{text}"));
        assert_eq!(value("blitz_requests_total{protocol=\"h1\",status=\"2xx\"}"), 5.0);
        assert_eq!(value("blitz_requests_total{protocol=\"h1\",status=\"5xx\"}"), 1.0);
        assert_eq!(value("blitz_downstream_connections_active"), 7.0);
        assert_eq!(value("blitz_errors_total{kind=\"bad_head\"}"), 0.0);
        assert_eq!(value("blitz_errors_total{kind=\"reset\"}"), 1.0);
        assert_eq!(value("blitz_request_duration_seconds_bucket{le=\"0.001\"}"), 1.0);
        assert_eq!(value("blitz_request_duration_seconds_bucket{le=\"0.0005\"}"), 0.0);
        assert_eq!(value("blitz_request_duration_seconds_bucket{le=\"60\"}"), 1.0);
        assert_eq!(value("blitz_request_duration_seconds_bucket{le=\"+Inf\"}"), 2.0);
        assert_eq!(value("blitz_request_duration_seconds_count"), 2.0);
        assert_eq!(value("blitz_request_duration_seconds_sum"), 90.0009);
        assert_eq!(value("blitz_endpoint_in_flight{upstream=\"a\\\"b\",address=\"[::1]:80\"}"), 2.0);
        let limited = |outcome| {
            value(&format!("blitz_limit_requests_total{{limit=\"per_source\",outcome=\"{outcome}\"}}"))
        };
        assert_eq!((limited("granted"), limited("refused"), limited("shadow")), (0.0, 2.0, 0.0));
        assert_eq!(value("blitz_build_info{version=\"1.2.3\"}"), 1.0);
        assert_eq!(value("blitz_worker_serving{worker=\"1\"}"), 0.0);
        assert_eq!(types["blitz_requests_total"], "counter");
        assert_eq!(types["blitz_request_duration_seconds"], "histogram");
    }

    #[test]
    fn the_tables_follow_the_naming_rules() {
        let mut rows = HashSet::new();
        for metric in Metric::ALL {
            let row = metric.description();
            assert!(row.name.starts_with("blitz_"), "{}", row.name);
            assert_eq!(row.name.ends_with("_total"), row.kind == Kind::Counter, "{}", row.name);
            assert!(
                row.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{}",
                row.name
            );
            assert!(row.help.ends_with('.'), "{}", row.name);
            assert!(rows.insert((row.name, row.labels)), "{} twice with the same labels", row.name);
        }
        assert!(BUCKET_BOUNDS_US.is_sorted());
    }
}
