//! Limits and services of a running stage.
//!
//! Owns: setting, removing and listing packet limits at run time, and which service each holds for.
//! Does not own: those of a configuration, which replace these when it is put in force
//! (see [`crate::apply`]).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use blitz_config::model::{Limit as LimitConfig, LimitBy};
use blitz_ebpf_common::gcra::{Rate, UNITS_PER_SECOND};
use blitz_ebpf_common::layout::{Dimension, LIMIT_SHADOW, Limit, PORT_EXACT, Ports, Service, port_column};
use blitz_ebpf_common::packet::{Family, TCP, UDP};
use serde::Serialize;

use crate::apply::{Journal, replace};
use crate::error::{Error, Kind, Result};
use crate::image::{compile_limit, limit_rule, service_rule};
use crate::lock::Lock;
use crate::stage::Stage;

/// One service of a running stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    /// The listener's or service's name.
    pub service: String,
    /// Where packets for it go: `tcp 192.0.2.1:443`, `udp *:53` for every IPv4 address, `udp [*]:53`.
    pub places: Vec<String>,
    /// The limit per source.
    pub source_limit: Option<String>,
    /// The limit of the service as a whole.
    pub service_limit: Option<String>,
}

/// One limit of a running stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitFacts {
    /// Its name.
    pub name: String,
    /// `source_prefix` or `service`.
    pub by: &'static str,
    /// Packets per second.
    pub packets_per_second: Option<u64>,
    /// Octets per second.
    pub bytes_per_second: Option<u64>,
    /// TCP connection attempts per second.
    pub syns_per_second: Option<u64>,
    /// What may come at once, in seconds of the rate.
    pub burst_seconds: u64,
    /// Bits of an IPv4 source that make one bucket.
    pub prefix_v4: u32,
    /// Bits of an IPv6 source that make one bucket.
    pub prefix_v6: u32,
    /// Counted, not dropped.
    pub shadow: bool,
    /// Names of the services that it holds for.
    pub services: Vec<String>,
}

impl Stage {
    /// Sets the limit that `wanted` describes, for the services called `services`, or for every one. A
    /// limit of this name gets the new rates; its services stay unless `services` names some.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for a service that does not exist, [`Kind::Usage`] when a service has another
    /// limit of this kind already, [`Kind::Full`] when there are too many. All limits are then as before.
    pub fn set_limit(&self, lock: &Lock, wanted: &LimitConfig, services: &[String]) -> Result<()> {
        let maps = self.maps();
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| Error::io(path, &error))?;
        let known = self.rule(&limit_rule(&wanted.name))?;
        let limits = maps.limits.entries().map_err(|error| self.io("read LIMITS", &error))?;
        let existing = limits.iter().find(|(_, limit)| known == Some(limit.rule)).map(|(number, _)| *number);
        let free = || limits.iter().find(|(number, limit)| *number != 0 && limit.rule == 0);
        let number = existing.or_else(|| free().map(|(number, _)| *number)).ok_or_else(|| {
            Error::new(
                Kind::Full,
                format!("{}: there are {} limits already", self.interface(), maps.limits.entries_max() - 1),
                "remove one (blitz-ctl limit del NAME)",
            )
        })?;
        let by_service = wanted.by == LimitBy::Service;
        let found = self.services()?;
        let chosen = self.choose(&found, services, existing, number)?;
        for (service_number, service) in &found {
            let is_chosen = chosen.contains(service_number);
            let other = *limit_of(&mut service.clone(), by_service);
            if is_chosen && other != 0 && other != number {
                return Err(Error::new(
                    Kind::Usage,
                    format!(
                        "{}: service {} has the limit {} already, and one limit by {} may apply to it",
                        self.interface(),
                        self.service_name(service),
                        self.limit_name(other).unwrap_or_default(),
                        if by_service { "service" } else { "source" }
                    ),
                    "remove that one (blitz-ctl limit del NAME), or name other services with --service",
                ));
            }
        }
        // Only now: a refusal leaves no name behind.
        let rule = self.rule_or_new(lock, &limit_rule(&wanted.name))?;
        let before = limits.get(number as usize).map_or_else(Limit::default, |(_, limit)| *limit);
        let mut journal = Journal::default();
        let after = compile_limit(wanted, rule, u32::try_from(cpus).unwrap_or(u32::MAX));
        let written = replace(&maps.limits, number, after, before, &mut journal)
            .and_then(|()| self.refill(number, &before, &after))
            .and_then(|()| {
                found.iter().try_for_each(|(service_number, service)| {
                    let mut after = *service;
                    for kind in [false, true] {
                        let slot = limit_of(&mut after, kind);
                        if *slot == number {
                            *slot = 0;
                        }
                    }
                    if chosen.contains(service_number) {
                        *limit_of(&mut after, by_service) = number;
                    }
                    match after == *service {
                        true => Ok(()),
                        false => replace(&maps.services, *service_number, after, *service, &mut journal),
                    }
                })
            });
        written.map_err(|error| {
            journal.undo();
            self.io("write the limit", &error)
        })
    }

    /// Removes the limit called `name`; false when there is none.
    ///
    /// # Errors
    /// What bpf(2) reports; all limits are then as before.
    pub fn remove_limit(&self, _lock: &Lock, name: &str) -> Result<bool> {
        let maps = self.maps();
        let Some(rule) = self.rule(&limit_rule(name))? else { return Ok(false) };
        let limits = maps.limits.entries().map_err(|error| self.io("read LIMITS", &error))?;
        let Some((number, before)) = limits.into_iter().find(|(_, limit)| limit.rule == rule) else {
            return Ok(false);
        };
        let mut journal = Journal::default();
        // The services first: a limit that is named by one must exist.
        let written = self.services()?.into_iter().try_for_each(|(service_number, service)| {
            let mut after = service;
            for kind in [false, true] {
                let slot = limit_of(&mut after, kind);
                if *slot == number {
                    *slot = 0;
                }
            }
            match after == service {
                true => Ok(()),
                false => replace(&maps.services, service_number, after, service, &mut journal),
            }
        });
        written
            .and_then(|()| replace(&maps.limits, number, Limit::default(), before, &mut journal))
            .map_err(|error| {
                journal.undo();
                self.io("remove the limit", &error)
            })?;
        Ok(true)
    }

    /// The limits in force.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn limits(&self) -> Result<Vec<LimitFacts>> {
        let services = self.services()?;
        let limits = self.maps().limits.entries().map_err(|error| self.io("read LIMITS", &error))?;
        let in_use = limits.into_iter().filter(|(number, limit)| *number != 0 && limit.rule != 0);
        let found = in_use.map(|(number, limit)| {
            let holders = |by_service: bool| {
                let held = services
                    .iter()
                    .filter(move |(_, service)| *limit_of(&mut service.clone(), by_service) == number);
                held.map(|(_, service)| self.service_name(service)).collect::<Vec<String>>()
            };
            let (by_source, by_service) = (holders(false), holders(true));
            let is_by_service = by_source.is_empty() && !by_service.is_empty();
            LimitFacts {
                name: self.limit_name(number).unwrap_or_else(|| format!("limit {number}")),
                by: if is_by_service { "service" } else { "source_prefix" },
                packets_per_second: per_second(Dimension::Packets.of(&limit.rates)),
                bytes_per_second: per_second(Dimension::Bytes.of(&limit.rates)),
                syns_per_second: per_second(Dimension::Syns.of(&limit.rates)),
                burst_seconds: burst_seconds(&limit),
                prefix_v4: limit.mask4.count_ones(),
                prefix_v6: limit.mask6.count_ones(),
                shadow: limit.flags & LIMIT_SHADOW != 0,
                services: if is_by_service { by_service } else { by_source },
            }
        });
        Ok(found.collect())
    }

    /// The services in force, and where packets for each go.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn routes(&self) -> Result<Vec<Route>> {
        let mut places: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        let exact = self.maps().service_at.entries().map_err(|error| self.io("read SERVICE_AT", &error))?;
        for (key, number) in exact {
            // Port 0 is how later fragments find the address.
            if key.port != 0 {
                let address = match key.address {
                    [0, 0, 0xffff, v4] => IpAddr::V4(Ipv4Addr::from(v4)),
                    words => {
                        IpAddr::V6(Ipv6Addr::from(words.iter().fold(0, |all, w| all << 32 | u128::from(*w))))
                    }
                };
                let place =
                    format!("{} {}", protocol(key.protocol), std::net::SocketAddr::new(address, key.port));
                places.entry(number).or_default().push(place);
            }
        }
        let ports = self.maps().ports.entries().map_err(|error| self.io("read PORTS", &error))?;
        for (port, row) in ports.into_iter().filter(|(port, row)| *port != 0 && *row != Ports::default()) {
            for (family, transport) in
                [(Family::V4, TCP), (Family::V4, UDP), (Family::V6, TCP), (Family::V6, UDP)]
            {
                let listed = port_column(family, transport).map_or(0, |column| row.get(column));
                let number = u32::from(listed & !PORT_EXACT);
                if number != 0 {
                    let any = if family == Family::V4 { "*" } else { "[*]" };
                    let place = format!("{} {any}:{port}", protocol(transport.into()));
                    places.entry(number).or_default().push(place);
                }
            }
        }
        let named = self.services()?.into_iter().map(|(number, service)| Route {
            service: self.service_name(&service),
            places: {
                let mut found = places.remove(&number).unwrap_or_default();
                found.sort();
                found
            },
            source_limit: self.limit_name(service.source_limit),
            service_limit: self.limit_name(service.service_limit),
        });
        Ok(named.collect())
    }

    /// Numbers of the services that a limit is to hold for.
    fn choose(
        &self,
        found: &[(u32, Service)],
        names: &[String],
        existing: Option<u32>,
        number: u32,
    ) -> Result<Vec<u32>> {
        let holds = |service: &Service| service.source_limit == number || service.service_limit == number;
        if names.is_empty() && existing.is_some() {
            return Ok(found
                .iter()
                .filter(|(_, service)| holds(service))
                .map(|(number, _)| *number)
                .collect());
        }
        if found.is_empty() {
            return Err(Error::new(
                Kind::NotFound,
                format!("{} has no service, so a limit would hold for nothing", self.interface()),
                "name listeners or [[xdp.services]] in a configuration and attach with --config",
            ));
        }
        if names.is_empty() {
            return Ok(found.iter().map(|(number, _)| *number).collect());
        }
        let number_of = |name: &String| {
            let of_name = found.iter().find(|(_, service)| self.service_name(service) == *name);
            of_name.map(|(number, _)| *number).ok_or_else(|| {
                Error::new(
                    Kind::NotFound,
                    format!("{} has no service called {name}", self.interface()),
                    "`blitz-ctl route list` lists them",
                )
            })
        };
        names.iter().map(number_of).collect()
    }

    /// The services in force by number.
    fn services(&self) -> Result<Vec<(u32, Service)>> {
        let services = self.maps().services.entries().map_err(|error| self.io("read SERVICES", &error))?;
        Ok(services.into_iter().filter(|(number, service)| *number != 0 && service.rule != 0).collect())
    }

    fn service_name(&self, service: &Service) -> String {
        let label = self.rule_label(service.rule);
        label.strip_prefix(&service_rule("")).map_or_else(|| label.clone(), str::to_owned)
    }

    fn limit_name(&self, number: u32) -> Option<String> {
        let limit = if number == 0 { None } else { self.maps().limits.get(&number).ok().flatten() }?;
        let label = self.rule_label(limit.rule);
        Some(label.strip_prefix(&limit_rule("")).map_or_else(|| label.clone(), str::to_owned))
    }
}

/// The field of a service that names its limit of one kind.
fn limit_of(service: &mut Service, by_service: bool) -> &mut u32 {
    if by_service { &mut service.service_limit } else { &mut service.source_limit }
}

fn protocol(number: u16) -> &'static str {
    if number == u16::from(TCP) { "tcp" } else { "udp" }
}

/// Tokens a second of a rate; `None` when it does not limit. The interval is rounded, so several rates
/// share it: the roundest of them is shown.
fn per_second(rate: &Rate) -> Option<u64> {
    if !rate.limits() {
        return None;
    }
    let a_second = u128::from(UNITS_PER_SECOND) << 10;
    let interval = u128::from(rate.interval);
    let exact = u64::try_from((a_second + interval / 2) / interval).unwrap_or(u64::MAX);
    let rounded = |digits: u32| {
        let unit = 10_u64.pow(digits);
        exact.saturating_add(unit / 2) / unit * unit
    };
    // A rate has at most 11 digits.
    let same = |shown: &u64| *shown != 0 && Rate::new(*shown, 1).interval == rate.interval;
    Some((0..=10).rev().map(rounded).find(same).unwrap_or(exact))
}

/// Depth of the buckets of a limit, in whole seconds of the rate.
fn burst_seconds(limit: &Limit) -> u64 {
    let depth = limit.rates.iter().filter(|rate| rate.limits()).map(|rate| rate.depth).max().unwrap_or(0);
    Duration::from_nanos(depth / blitz_ebpf_common::gcra::UNITS_PER_NANOSECOND).as_secs_f64().round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_back_as_they_were_set() {
        for wanted in [1, 7, 77, 1000, 20_000, 123_456, 1_000_000, 2_500_000] {
            assert_eq!(per_second(&Rate::new(wanted, wanted)), Some(wanted));
        }
        // Where the interval is coarse, what is shown makes the same one.
        for wanted in [14_880_952, 1_250_000_000, blitz_ebpf_common::gcra::RATE_MAX] {
            let rate = Rate::new(wanted, wanted);
            let shown = per_second(&rate).expect("limits");
            assert_eq!(Rate::new(shown, shown).interval, rate.interval, "{shown}");
        }
        assert_eq!(per_second(&Rate::UNLIMITED), None);
    }
}
