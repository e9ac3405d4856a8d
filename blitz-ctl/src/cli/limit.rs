//! `limit set`, `limit list`, `limit del`.
//!
//! Owns: their flags and what they print. Does not own: limits of a running stage (see
//! [`crate::limits`]).
#![forbid(unsafe_code)]

use std::time::Duration;

use blitz_config::model::{Limit as LimitConfig, LimitBy};
use blitz_ebpf_common::gcra::RATE_MAX;
use clap::{Args, Subcommand, ValueEnum, value_parser};

use super::output::table;
use super::{Context, Selection, parse};
use crate::error::{Error, Kind, Result};
use crate::limits::LimitFacts;
use crate::stage::Stage;

/// Packet limits.
#[derive(Debug, Subcommand)]
pub(super) enum Limit {
    /// Sets a limit, or new rates for one that is there; what a configuration says replaces it when it is put
    /// in force
    Set(Box<Set>),
    /// Removes a limit
    Del(Del),
    /// Lists limits and the services they hold for
    List(Selection),
}

/// Who shares a bucket.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    /// Each source prefix has its own
    #[value(alias = "source_prefix")]
    Source,
    /// Each service has one, whoever sends
    Service,
}

/// See [`Stage::set_limit`].
#[derive(Debug, Args)]
pub(super) struct Set {
    /// The limit's name; its rule is limit:NAME
    #[arg(value_parser = parse::name)]
    name: String,
    /// Who shares a bucket
    #[arg(long, value_enum)]
    by: By,
    /// Packets per second
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=RATE_MAX))]
    packets_per_second: Option<u64>,
    /// Octets of frames per second; with the burst at least one frame of 64 KiB
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=RATE_MAX))]
    bytes_per_second: Option<u64>,
    /// TCP connection attempts per second
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=RATE_MAX))]
    syns_per_second: Option<u64>,
    /// What may come at once, in seconds of the rate
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u64).range(1..=3600))]
    burst_seconds: u64,
    /// Bits of an IPv4 source that make one bucket
    #[arg(long, value_name = "BITS", default_value_t = 32, value_parser = value_parser!(u8).range(1..=32))]
    prefix_v4: u8,
    /// Bits of an IPv6 source that make one bucket
    #[arg(long, value_name = "BITS", default_value_t = 64, value_parser = value_parser!(u8).range(1..=64))]
    prefix_v6: u8,
    /// Count what is over the limit, and let it through
    #[arg(long)]
    shadow: bool,
    /// Only for this service; repeat it for several [default: every service, or those that it holds for]
    #[arg(long, value_name = "NAME")]
    service: Vec<String>,
    #[command(flatten)]
    selection: Selection,
}

/// See [`Stage::remove_limit`].
#[derive(Debug, Args)]
pub(super) struct Del {
    /// The limit's name
    name: String,
    #[command(flatten)]
    selection: Selection,
}

impl Limit {
    pub(super) fn execute(self, context: &Context) -> Result<()> {
        match self {
            Self::Set(verb) => verb.execute(context),
            Self::Del(verb) => verb.execute(context),
            Self::List(selection) => list(context, &selection),
        }
    }
}

impl Set {
    fn execute(self, context: &Context) -> Result<()> {
        let usage = |cause: &str, remedy: &str| Err(Error::new(Kind::Usage, cause, remedy));
        let rates = [self.packets_per_second, self.bytes_per_second, self.syns_per_second];
        if rates.iter().all(Option::is_none) {
            return usage(
                "the limit has no rate",
                "give --packets-per-second, --bytes-per-second or --syns-per-second",
            );
        }
        if self.bytes_per_second.is_some_and(|rate| rate.saturating_mul(self.burst_seconds) < 65_536) {
            return usage(
                "a frame may have 64 KiB, and this bucket would never let one through",
                "raise --bytes-per-second or --burst-seconds to 65536 octets at once",
            );
        }
        let wanted = LimitConfig {
            name: self.name.clone(),
            by: match self.by {
                By::Source => LimitBy::SourcePrefix,
                By::Service => LimitBy::Service,
            },
            listeners: Vec::new(),
            prefix_v4: self.prefix_v4,
            prefix_v6: self.prefix_v6,
            packets_per_second: self.packets_per_second,
            bytes_per_second: self.bytes_per_second,
            syns_per_second: self.syns_per_second,
            requests_per_second: None,
            burst: Duration::from_secs(self.burst_seconds),
            shadow: self.shadow,
        };
        let done =
            context.change(&self.selection, |stage, lock| stage.set_limit(lock, &wanted, &self.service))?;
        let interfaces: Vec<&str> = done.iter().map(|(interface, ())| interface.as_str()).collect();
        let value = serde_json::json!({ "limit": self.name, "interfaces": interfaces });
        context.output.show(&value, || format!("limit {} is set on {}", self.name, interfaces.join(", ")));
        Ok(())
    }
}

impl Del {
    fn execute(self, context: &Context) -> Result<()> {
        let done = context.change(&self.selection, |stage, lock| stage.remove_limit(lock, &self.name))?;
        let interfaces: Vec<&str> = done
            .iter()
            .filter(|(_, was_there)| *was_there)
            .map(|(interface, _)| interface.as_str())
            .collect();
        if interfaces.is_empty() {
            return Err(Error::new(
                Kind::NotFound,
                format!("there is no limit called {}", self.name),
                "`blitz-ctl limit list` lists them",
            ));
        }
        let value = serde_json::json!({ "limit": self.name, "interfaces": interfaces });
        context
            .output
            .show(&value, || format!("limit {} is removed on {}", self.name, interfaces.join(", ")));
        Ok(())
    }
}

fn list(context: &Context, selection: &Selection) -> Result<()> {
    let read = |stage: &Stage| Ok((stage.interface().to_owned(), stage.limits()?));
    let found =
        context.stages(selection)?.iter().map(read).collect::<Result<Vec<(String, Vec<LimitFacts>)>>>()?;
    let value: Vec<_> = found
        .iter()
        .map(|(interface, limits)| serde_json::json!({ "interface": interface, "limits": limits }))
        .collect();
    context.output.show(&serde_json::json!({ "interfaces": value }), || {
        let mut rows = Vec::new();
        for (interface, limits) in &found {
            for limit in limits {
                let rate = |rate: Option<u64>| rate.map_or_else(|| "-".to_owned(), |rate| rate.to_string());
                rows.push(vec![
                    interface.clone(),
                    limit.name.clone(),
                    match limit.by {
                        "service" => "service".to_owned(),
                        _ => format!("source /{} /{}", limit.prefix_v4, limit.prefix_v6),
                    },
                    rate(limit.packets_per_second),
                    rate(limit.bytes_per_second),
                    rate(limit.syns_per_second),
                    format!("{}s", limit.burst_seconds),
                    if limit.shadow { "yes" } else { "no" }.to_owned(),
                    limit.services.join(", "),
                ]);
            }
        }
        match rows.is_empty() {
            true => "no packet limit is set".to_owned(),
            false => table(
                &[
                    "INTERFACE",
                    "LIMIT",
                    "BY",
                    ">PACKETS/S",
                    ">BYTES/S",
                    ">SYNS/S",
                    ">BURST",
                    "SHADOW",
                    "SERVICES",
                ],
                &rows,
            ),
        }
    });
    Ok(())
}
