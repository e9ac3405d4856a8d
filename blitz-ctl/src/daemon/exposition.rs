//! The text that Prometheus reads.
//!
//! Owns: metric families as they are filled, label by label. Does not own: names (see [`super::names`]),
//! values (see [`super::snapshot`]), or the HTTP answer (see [`super::exporter`]).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use super::names::{Family, Kind};

/// Content type of the text.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Families in the making, by name.
#[derive(Debug, Default)]
pub struct Families(BTreeMap<&'static str, MetricFamily>);

impl Families {
    /// Adds a value under the values of the family's labels, in their order.
    pub fn push(&mut self, family: Family, labels: &[&str], value: u64) {
        debug_assert_eq!(family.labels.len(), labels.len(), "{}", family.name);
        let entry = self.0.entry(family.name).or_insert_with(|| {
            let mut entry = MetricFamily::default();
            entry.set_name(family.name.to_owned());
            entry.set_help(family.help.to_owned());
            entry.set_field_type(match family.kind {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge => MetricType::GAUGE,
            });
            entry
        });
        let mut metric = Metric::default();
        let pairs = family.labels.iter().zip(labels).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        metric.set_label(pairs.collect::<Vec<_>>());
        // The text format has no integers; what is beyond 2^53 is rounded.
        match family.kind {
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value as f64);
                metric.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = Gauge::default();
                gauge.set_value(value as f64);
                metric.set_gauge(gauge);
            }
        }
        entry.mut_metric().push(metric);
    }

    /// All families as text, sorted by name. Families without a value are left out.
    ///
    /// # Errors
    /// Those of the encoder, which this way of filling does not meet.
    pub fn text(self) -> prometheus::Result<String> {
        let mut text = Vec::with_capacity(16 * 1024);
        let families: Vec<MetricFamily> = self.0.into_values().collect();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::names;

    #[test]
    fn values_stand_under_their_labels() {
        let mut families = Families::default();
        families.push(names::PACKETS, &["eth0", "pass_service"], 7);
        families.push(names::PACKETS, &["eth\"1", "drop_denied"], 8);
        families.push(names::BLOCKED_SOURCES, &[], 3);
        let text = families.text().expect("text");
        for line in [
            "# TYPE blitz_xdp_packets_total counter",
            "blitz_xdp_packets_total{interface=\"eth0\",verdict=\"pass_service\"} 7",
            "blitz_xdp_packets_total{interface=\"eth\\\"1\",verdict=\"drop_denied\"} 8",
            "# TYPE blitz_ctl_blocked_sources gauge",
            "blitz_ctl_blocked_sources 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
