//! Sources that are to be blocked in the kernel.
//!
//! Owns: what counts as misconduct, how much of it is too much (`xdp.blocklist`), and that a source is
//! reported once in a while, not once a request. Does not own: what becomes of a report (the supervisor
//! passes it to `blitz-ctl`, which decides).
//!
//! A source is the peer of an established TCP connection, whose address the handshake has proved: an IPv4
//! address, or the /64 of an IPv6 address, which is what gets blocked. It is never an address out of a field,
//! and never one of `trusted_proxies` or of
//! those who send PROXY protocol headers, behind which others stand. Counts are token buckets in the segment, so
//! that they hold over all workers; where there is no table nobody is reported.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use blitz_config::Config;
use blitz_config::model::Cidr;
use blitz_ctl_protocol::message::Reason;
use blitz_ebpf_common::gcra::{Take, UNITS_PER_NANOSECOND, UNITS_PER_SECOND, units};

use super::Proxy;
use super::connections::Connection;
use crate::exchange::{ErrorKind, ProxyError};
use crate::http2::Abuse;
use crate::metrics::names::Metric;
use crate::process::messages::BlockReport;
use crate::segment::{BucketKey, Buckets};

/// What tells the buckets of this module from those of limits.
const DOMAIN: u64 = u64::from_le_bytes(*b"conduct\0");
/// The bucket that says when a source was reported last.
const REPORTED: u64 = u64::MAX;

/// How soon a source that still gets through is reported again: what was said to a daemon that was not there,
/// or whose list was full, is lost.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// When a source is reported. Made of a configuration.
#[derive(Debug)]
pub struct Misconduct {
    framing: Option<Bucket>,
    limit: Option<Bucket>,
    /// One report in [`REPORT_EVERY`], or in half of the time for which a source is blocked if that is less.
    reported: Bucket,
    trusted: Box<[Cidr]>,
}

/// A token bucket: cost of one event and depth, in units of [`blitz_ebpf_common::gcra`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    cost: u64,
    depth: u64,
}

impl Bucket {
    /// A bucket that refuses the `count`th event of a minute; none for 0.
    fn per_minute(count: u32) -> Option<Self> {
        let cost = (60 * UNITS_PER_SECOND).checked_div(count.into())?;
        Some(Self { cost, depth: cost * u64::from(count - 1) })
    }
}

impl Misconduct {
    /// The rules of `config`; `None` when no interface has the kernel stage, or nothing is to be reported.
    pub fn new(config: &Config) -> Option<Self> {
        let blocklist = &config.xdp.blocklist;
        let framing = Bucket::per_minute(blocklist.framing_violations_per_minute);
        let limit = Bucket::per_minute(blocklist.limit_refusals_per_minute);
        if config.xdp.interfaces.is_empty() || (framing.is_none() && limit.is_none()) {
            return None;
        }
        let between = (blocklist.ttl / 2).min(REPORT_EVERY);
        let between =
            u64::try_from(between.as_nanos()).unwrap_or(u64::MAX).saturating_mul(UNITS_PER_NANOSECOND);
        let relays = config.listeners.iter().filter_map(|listener| listener.proxy_protocol_from.as_ref());
        let trusted = config.trusted_proxies.iter().chain(relays.flatten()).copied().collect();
        Some(Self { framing, limit, reported: Bucket { cost: between, depth: between }, trusted })
    }

    fn rule(&self, reason: Reason) -> Option<Bucket> {
        match reason {
            Reason::Framing => self.framing,
            Reason::Limit => self.limit,
            Reason::Operator => None,
        }
    }
}

/// Notes an error that a connection's client has caused.
pub(super) fn erred(proxy: &Proxy, connection: &Connection, error: &ProxyError) {
    // A head that breaks the syntax and a body that breaks its framing are what smuggling is made of. What a
    // well-formed request asks for, such as a path with dots, the codec does not pass on to here.
    if matches!(error.kind, ErrorKind::BadRequestHead | ErrorKind::BadRequestFraming) {
        note(proxy, connection, Reason::Framing, error.detail, "");
    }
}

/// Notes a connection that was ended because its client burdens the gateway. As what breaks the framing, it is
/// nothing that a client does by the way.
pub(super) fn abused(proxy: &Proxy, connection: &Connection, abuse: Abuse) {
    note(proxy, connection, Reason::Framing, "h2:", abuse.label());
}

/// Notes a request that was refused by the limit of this name, by the source's own doing.
pub(super) fn refused(proxy: &Proxy, connection: &Connection, limit: &str) {
    note(proxy, connection, Reason::Limit, "limit:", limit);
}

fn note(proxy: &Proxy, connection: &Connection, reason: Reason, rule: &str, name: &str) {
    let live = proxy.live();
    let Some(misconduct) = &live.misconduct else { return };
    let Some(Bucket { cost, depth }) = misconduct.rule(reason) else { return };
    // Also where the configuration does not name the peer any more: it spoke for others when it came.
    if connection.is_relayed() {
        return;
    }
    let Some((peer, local)) = connection.addresses() else { return };
    let Some(buckets) = proxy.rows.buckets() else { return };
    let (source, now) = (peer.ip().to_canonical(), units(proxy.handle.now_ns()));
    let key = |which| bucket(&buckets, which, source);
    // An event within the rate, or one among so many that nobody can say.
    if !matches!(buckets.take(key(reason as u64), now, cost, depth).take, Take::Refused { .. })
        || misconduct.trusted.iter().any(|prefix| prefix.contains(source))
    {
        return;
    }
    if !proxy.reports.has_room() {
        proxy.rows.add(Metric::block_report(reason, crate::metrics::names::ReportOutcome::Dropped), 1);
        return;
    }
    let Bucket { cost, depth } = misconduct.reported;
    if buckets.take(key(REPORTED), now, cost, depth).take == Take::Granted {
        proxy.reports.send(BlockReport { reason, peer, local, note: format!("{rule}{name}") });
    }
}

fn bucket(buckets: &Buckets<'_>, which: u64, source: IpAddr) -> BucketKey {
    let (family, prefix) = match source {
        IpAddr::V4(address) => (4, u64::from(address.to_bits())),
        IpAddr::V6(address) => (6, (address.to_bits() >> 64) as u64),
    };
    Buckets::key(buckets.hash().word(DOMAIN).word(which).word(family).word(prefix), b"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use blitz_ebpf_common::gcra::step;

    /// How many of `events`, `gap_ms` apart, it takes until one is refused.
    fn refused_at(bucket: Bucket, gap_ms: u64, events: u64) -> Option<u64> {
        let mut word = 0;
        (1..=events).find(|n| {
            let now = units((1_000_000 + n * gap_ms) * 1_000_000);
            match step(word, now, bucket.cost, bucket.depth) {
                Ok(next) => {
                    word = next;
                    false
                }
                Err(_) => true,
            }
        })
    }

    #[test]
    fn a_report_that_was_lost_is_made_again_soon_also_when_blocks_are_long() {
        let reported = |ttl_ms: u64| {
            let text = format!(
                "[[listeners]]\nname = \"edge\"\naddress = \"127.0.0.1:8080\"\nbuiltin_answers = true\n\
                 [xdp]\ninterfaces = [\"eth0\"]\nblocklist = {{ ttl_ms = {ttl_ms} }}\n"
            );
            let format = blitz_config::Format::Toml;
            let config = blitz_config::load(&text, format, "test.toml", &Default::default()).unwrap();
            Misconduct::new(&config).unwrap().reported
        };
        // Of reports a second apart, the second one goes out when the bucket is full again.
        let again = |bucket: Bucket| {
            let word = step(0, units(1), bucket.cost, bucket.depth).unwrap();
            (1..4000).find(|s| step(word, units(1 + s * 1_000_000_000), bucket.cost, bucket.depth).is_ok())
        };
        assert_eq!(again(reported(3_600_000)), Some(10));
        assert_eq!(again(reported(4_000)), Some(2));
    }

    #[test]
    fn the_nth_event_of_a_minute_is_too_much() {
        for count in [1, 2, 3, 10, 600, 1_000_000] {
            let bucket = Bucket::per_minute(count).unwrap();
            assert_eq!(refused_at(bucket, 0, 2_000_000), Some(count.into()), "{count} a minute");
        }
        assert_eq!(Bucket::per_minute(0), None);
        // Ten a minute: one every seven seconds is below, for as long as it lasts.
        let ten = Bucket::per_minute(10).unwrap();
        assert_eq!(refused_at(ten, 7_000, 10_000), None);
        assert!(refused_at(ten, 3_000, 100).is_some());
    }
}
