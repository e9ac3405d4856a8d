#![forbid(unsafe_code)]
//! The image: what the maps of one interface hold, compiled from the configuration.
//!
//! Owns: the translation of listeners, services, limits and lists into keys and values, and stable
//! numbers for rules, services and limits over a reload. Pure: it touches no map. Does not own: writing
//! (see `apply`), the runtime's own entries (see `maps`), or the rules of the file (`blitz-config`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use blitz_config::model::{Cidr, Config, Limit as LimitConfig, LimitBy, Protocol, Transport};
use blitz_ebpf_common::gcra::{Rate, UNITS_PER_SECOND};
use blitz_ebpf_common::layout::{
    ALLOW_MANAGEMENT, ALLOW_MAX, ALLOW_SERVICE, DENY_CONFIGURED, DENY_HOST, DENY_SHADOW, Deny, Dimension,
    LIMIT_SHADOW, LIMITS_MAX, Limit, PORT_EXACT, Ports, RULE_NAME_MAX, RULES_MAX, SERVICE_AT_MAX,
    SERVICE_QUIC, SERVICES_MAX, SETTING_ALLOW, SETTING_DENY, SETTING_DROP_BAD, SETTING_HOST, SETTING_SHADOW,
    Service, ServiceKey, Settings, port_column,
};
use blitz_ebpf_common::packet::{Family, TCP, UDP, Words};

use crate::maps::Sizes;
use crate::prefixes::{Prefix, PrefixSet, wire};

/// Rule of prefixes denied in the configuration.
pub const RULE_DENY_CONFIG: &str = "deny:config";
/// Rule of prefixes denied by the operator at run time.
pub const RULE_DENY_OPERATOR: &str = "deny:operator";
/// Rule of sources blocked for bad framing.
pub const RULE_BLOCK_FRAMING: &str = "block:framing";
/// Rule of sources blocked for going on against a limit.
pub const RULE_BLOCK_LIMIT: &str = "block:limit";
/// Rule of sources blocked by the operator at run time.
pub const RULE_BLOCK_OPERATOR: &str = "block:operator";
/// Rules that every image has.
const FIXED_RULES: [&str; 5] =
    [RULE_DENY_CONFIG, RULE_DENY_OPERATOR, RULE_BLOCK_FRAMING, RULE_BLOCK_LIMIT, RULE_BLOCK_OPERATOR];

/// Why a configuration does not fit into the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// More services, rules, limits or allowed prefixes than their table holds.
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many the configuration asks for, or more.
        asked: usize,
        /// How many fit.
        fit: usize,
    },
    /// More different lengths of IPv6 prefixes than the program tries.
    TooManyLengths {
        /// The first prefix that found no room.
        prefix: Prefix,
    },
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooMany { what, asked, fit } => {
                write!(
                    f,
                    "the configuration has {asked} {what} and the kernel's table holds {fit}; remove some"
                )
            }
            Self::TooManyLengths { prefix } => write!(
                f,
                "{prefix} finds no room: the denied IPv6 prefixes have too many different lengths; join prefixes so \
                 that fewer lengths occur"
            ),
        }
    }
}

impl std::error::Error for Refusal {}

/// What is in force already and keeps its numbers.
#[derive(Clone, Debug, Default)]
pub struct InForce {
    /// Names of the rules by number.
    pub rules: BTreeMap<u32, String>,
    /// Services by number; number 0 is none.
    pub services: Vec<Service>,
    /// Limits by number; number 0 is none.
    pub limits: Vec<Limit>,
}

/// The contents of the maps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// `maps::PORTS`: entries that are not zero.
    pub ports: BTreeMap<u16, Ports>,
    /// `maps::SERVICE_AT`.
    pub service_at: BTreeMap<ServiceKey, u32>,
    /// `maps::SERVICES`, by number; number 0 is none. Gaps are all zero.
    pub services: Vec<Service>,
    /// `maps::LIMITS`, by number; number 0 is none. Gaps are all zero.
    pub limits: Vec<Limit>,
    /// `maps::ALLOW4` and `maps::ALLOW6`: prefixes and `ALLOW_*` flags.
    pub allow: BTreeMap<Prefix, u32>,
    /// The deny list, from the configuration only.
    pub denied: PrefixSet,
    /// `maps::RULE_NAMES`.
    pub rules: BTreeMap<u32, String>,
    /// Sources whose buckets are kept.
    pub sources_max: u32,
    /// Denied prefixes of each family: half the entries of `maps::DENY4` and `maps::DENY6`.
    pub deny_max: u32,
    /// Nothing is dropped.
    pub shadow: bool,
    /// Datagrams of QUIC with a bad header or connection ID are dropped, not only counted.
    pub drop_bad: bool,
    /// Datagrams of unknown versions of QUIC that pass.
    pub versions: Rate,
}

impl Image {
    /// Compiles a configuration for a machine with `cpus` possible CPUs. Rules, services and limits that
    /// are `in_force` under the same name keep their number, so that counters and buckets keep theirs.
    pub fn from_config(config: &Config, cpus: u32, in_force: &InForce) -> Result<Self, Refusal> {
        let xdp = &config.xdp;
        let mut image = Self {
            sources_max: xdp.sources_max,
            deny_max: xdp.deny_max,
            shadow: xdp.shadow,
            drop_bad: xdp.quic.drop_bad,
            versions: {
                let per_second = xdp.quic.unknown_versions_per_second.into();
                Rate::new(per_second, per_second)
            },
            ..Self::default()
        };
        let names = FIXED_RULES.into_iter().map(str::to_owned);
        let limited = config.limits.iter().filter(|limit| limit.limits_packets());
        let names = names
            .chain(config.listeners.iter().map(|listener| service_rule(&listener.name)))
            .chain(xdp.services.iter().map(|service| service_rule(&service.name)))
            .chain(limited.clone().map(|limit| limit_rule(&limit.name)));
        let rules = number_rules(names, &in_force.rules)?;
        let rule: BTreeMap<&str, u32> = rules.iter().map(|(number, name)| (&**name, *number)).collect();
        let rule = |name: &str| rule.get(name).copied().unwrap_or(0);

        // Limits, and which of them hold for whom.
        let wanted = limited.clone().map(|limit| rule(&limit_rule(&limit.name)));
        let mut numbers =
            Numbers::new(in_force.limits.iter().map(|limit| limit.rule), wanted, LIMITS_MAX, "limits");
        let mut numbered = Vec::new();
        let mut limits = vec![Limit::default()];
        for config in limited {
            let compiled = compile_limit(config, rule(&limit_rule(&config.name)), cpus);
            let number = numbers.take(compiled.rule)?;
            put(&mut limits, number, compiled);
            numbered.push((config, number));
        }
        let limit_of = |covers: &dyn Fn(&LimitConfig) -> bool, by_service: bool| {
            let found = numbered.iter().find(|(l, _)| (l.by == LimitBy::Service) == by_service && covers(l));
            found.map_or(0, |(_, number)| *number)
        };

        // Services: the listeners are services by themselves.
        let names = config.listeners.iter().map(|listener| &listener.name);
        let wanted = names.chain(xdp.services.iter().map(|service| &service.name));
        let mut numbers = Numbers::new(
            in_force.services.iter().map(|service| service.rule),
            wanted.map(|name| rule(&service_rule(name))),
            SERVICES_MAX,
            "services",
        );
        let mut services = vec![Service::default()];
        let mut places = Vec::new();
        for (index, listener) in config.listeners.iter().enumerate() {
            let covers = |limit: &LimitConfig| limit.covers_listener(index);
            let service = Service {
                rule: rule(&service_rule(&listener.name)),
                source_limit: limit_of(&covers, false),
                service_limit: limit_of(&covers, true),
                flags: if listener.speaks(Protocol::H3) { SERVICE_QUIC } else { 0 },
            };
            let number = numbers.take(service.rule)?;
            put(&mut services, number, service);
            let (address, port) = (listener.address.ip(), listener.address.port());
            if listener.speaks(Protocol::H1) || listener.speaks(Protocol::H2) {
                places.push((address, port, TCP, number));
            }
            if listener.speaks(Protocol::H3) {
                places.push((address, port, UDP, number));
            }
        }
        for service in &xdp.services {
            let covers = LimitConfig::covers_xdp_services;
            let compiled = Service {
                rule: rule(&service_rule(&service.name)),
                source_limit: limit_of(&covers, false),
                service_limit: limit_of(&covers, true),
                flags: 0,
            };
            let number = numbers.take(compiled.rule)?;
            put(&mut services, number, compiled);
            let protocol = match service.protocol {
                Transport::Tcp => TCP,
                Transport::Udp => UDP,
            };
            match service.address {
                Some(address) => places.push((address, service.port, protocol, number)),
                None => {
                    places.push(([0; 4].into(), service.port, protocol, number));
                    places.push(([0_u16; 8].into(), service.port, protocol, number));
                }
            }
        }
        for (address, port, protocol, number) in places {
            image.place(address, port, protocol, number);
        }
        if image.service_at.len() > SERVICE_AT_MAX as usize {
            let (asked, fit) = (image.service_at.len(), SERVICE_AT_MAX as usize);
            return Err(Refusal::TooMany { what: "addresses of services", asked, fit });
        }
        image.services = services;
        image.limits = limits;

        let asked = xdp.allow.len() + xdp.management.len();
        if asked > ALLOW_MAX as usize {
            let what = "prefixes in xdp.allow and xdp.management";
            return Err(Refusal::TooMany { what, asked, fit: ALLOW_MAX as usize });
        }
        for (list, flag) in [(&xdp.allow, ALLOW_SERVICE), (&xdp.management, ALLOW_MANAGEMENT)] {
            for prefix in list {
                image.allow(to_prefix(*prefix), flag);
            }
        }
        for denied in &xdp.deny {
            let mut flags = DENY_CONFIGURED;
            if denied.host {
                flags |= DENY_HOST;
            }
            if denied.shadow {
                flags |= DENY_SHADOW;
            }
            let prefix = to_prefix(denied.prefix);
            let deny = Deny { expires: 0, rule: rule(RULE_DENY_CONFIG), flags };
            image.denied.insert(prefix, deny).map_err(|_| Refusal::TooManyLengths { prefix })?;
        }
        image.denied.order_by_use();
        image.rules = rules;
        Ok(image)
    }

    /// The settings that this image asks for, with deny slot 0, without a seed, and without what the
    /// blocklist holds.
    pub fn settings(&self) -> Settings {
        let mut flags = 0;
        if !self.allow.is_empty() {
            flags |= SETTING_ALLOW;
        }
        if !self.denied.is_empty() {
            flags |= SETTING_DENY;
        }
        if self.denied.entries().any(|(_, deny)| deny.flags & DENY_HOST != 0) {
            flags |= SETTING_HOST;
        }
        if self.shadow {
            flags |= SETTING_SHADOW;
        }
        if self.drop_bad {
            flags |= SETTING_DROP_BAD;
        }
        let source_sets = self.sizes().source_sets();
        Settings { flags, source_sets, versions: self.versions, ..Settings::default() }
    }

    /// The sizes it was made for.
    pub fn sizes(&self) -> Sizes {
        Sizes { sources_max: self.sources_max, deny_max: self.deny_max }
    }

    /// Whether there is any service; without one everything passes.
    pub fn has_services(&self) -> bool {
        self.services.len() > 1
    }

    /// The number of a rule.
    pub fn rule(&self, name: &str) -> Option<u32> {
        self.rules.iter().find(|(_, other)| *other == name).map(|(number, _)| *number)
    }

    /// Gives a prefix a flag. The longest prefix that holds a source decides about it, so a prefix also
    /// has the flags of those around it.
    pub(crate) fn allow(&mut self, prefix: Prefix, flag: u32) {
        let mut flags = flag;
        for (other, given) in &mut self.allow {
            if around(other, &prefix) {
                flags |= *given;
            }
            if around(&prefix, other) {
                *given |= flag;
            }
        }
        *self.allow.entry(prefix).or_insert(0) |= flags;
    }

    /// Lists a service under its address and port, and under port 0 for later fragments, unless another
    /// service is listed there already.
    fn place(&mut self, address: IpAddr, port: u16, protocol: u8, number: u32) {
        for port in [port, 0] {
            let (family, words) = match address {
                IpAddr::V6(v6) if v6.is_unspecified() => (Family::V6, [0; 4]),
                address => wire(address),
            };
            let Some(column) = port_column(family, protocol) else { continue };
            let ports = self.ports.entry(port).or_default();
            let listed = ports.get(column);
            if address.is_unspecified() {
                if listed & !PORT_EXACT == 0 {
                    *ports = ports.with(column, listed | number as u16);
                }
            } else {
                *ports = ports.with(column, listed | PORT_EXACT);
                let key = ServiceKey { address: words, port, protocol: protocol.into() };
                self.service_at.entry(key).or_insert(number);
            }
        }
    }
}

/// Whether `outer` holds all of `inner`, and is not the same.
fn around(outer: &Prefix, inner: &Prefix) -> bool {
    outer.length() < inner.length() && Prefix::new(inner.address(), outer.length()) == *outer
}

/// The name of a service's rule.
pub fn service_rule(name: &str) -> String {
    format!("service:{name}")
}

/// The name of a limit's rule.
pub fn limit_rule(name: &str) -> String {
    format!("limit:{name}")
}

/// The prefix of a configured address prefix.
pub fn to_prefix(cidr: Cidr) -> Prefix {
    Prefix::new(cidr.address, cidr.prefix_len)
}

/// Compiles one limit. The quantum that a CPU draws at once from a service's bucket is a millisecond,
/// less where the bucket is so shallow that the CPUs together could draw more than half of it.
pub fn compile_limit(limit: &LimitConfig, rule: u32, cpus: u32) -> Limit {
    let rate = |per_second: Option<u64>| match per_second {
        Some(per_second) => Rate::new(per_second, limit.burst_of(per_second)),
        None => Rate::UNLIMITED,
    };
    let mut rates = [Rate::UNLIMITED; 3];
    *Dimension::Packets.of_mut(&mut rates) = rate(limit.packets_per_second);
    *Dimension::Bytes.of_mut(&mut rates) = rate(limit.bytes_per_second);
    *Dimension::Syns.of_mut(&mut rates) = rate(limit.syns_per_second);
    let shallowest = rates.iter().filter(|rate| rate.limits()).map(|rate| rate.depth).min().unwrap_or(0);
    let quantum = (shallowest / (2 * u64::from(cpus.max(1)))).min(UNITS_PER_SECOND / 1000);
    Limit {
        rates,
        quantum,
        mask6: !(u64::MAX.checked_shr(limit.prefix_v6.into()).unwrap_or(0)),
        mask4: !(u32::MAX.checked_shr(limit.prefix_v4.into()).unwrap_or(0)),
        rule,
        flags: if limit.shadow { LIMIT_SHADOW } else { 0 },
        reserved: 0,
    }
}

/// Gives every name a number, and those in force the one they have. A name that is gone keeps its
/// number while there is room, so that its counters do not become another rule's.
fn number_rules(
    names: impl Iterator<Item = String>,
    in_force: &BTreeMap<u32, String>,
) -> Result<BTreeMap<u32, String>, Refusal> {
    let taken: BTreeMap<&str, u32> = in_force.iter().map(|(number, name)| (&**name, *number)).collect();
    let mut rules = BTreeMap::new();
    let mut fresh = Vec::new();
    for mut name in names {
        if name.len() > RULE_NAME_MAX {
            // Names are checked to fit when the file is read; this bounds what was made elsewhere.
            name.truncate(name.floor_char_boundary(RULE_NAME_MAX));
        }
        match taken.get(&*name) {
            Some(number) => drop(rules.insert(*number, name)),
            None => fresh.push(name),
        }
    }
    let asked = rules.len() + fresh.len();
    let unused = (1..RULES_MAX).filter(|number| !in_force.contains_key(number));
    let gone: Vec<u32> = in_force.keys().copied().filter(|number| !rules.contains_key(number)).collect();
    let mut numbers = unused.chain(gone);
    for name in fresh {
        let too_many = Refusal::TooMany { what: "rules", asked, fit: RULES_MAX as usize - 1 };
        rules.insert(numbers.next().ok_or(too_many)?, name);
    }
    for (number, name) in in_force {
        rules.entry(*number).or_insert_with(|| name.clone());
    }
    Ok(rules)
}

/// Numbers of services or limits: an element keeps the number that its rule has in force. The number of one that
/// is gone goes to another only when no other is left.
struct Numbers {
    of_rule: BTreeMap<u32, u32>,
    fresh: std::vec::IntoIter<u32>,
    max: u32,
    what: &'static str,
}

impl Numbers {
    fn new(
        rules_in_force: impl Iterator<Item = u32>,
        wanted: impl Iterator<Item = u32>,
        max: u32,
        what: &'static str,
    ) -> Self {
        let wanted: BTreeSet<u32> = wanted.collect();
        let in_force: BTreeMap<u32, u32> = (0..).zip(rules_in_force).filter(|(_, rule)| *rule != 0).collect();
        let unused = (1..max).filter(|number| !in_force.contains_key(number));
        let gone = in_force.iter().filter(|(_, rule)| !wanted.contains(rule)).map(|(number, _)| *number);
        let fresh: Vec<u32> = unused.chain(gone).collect();
        let kept = in_force.iter().filter(|(_, rule)| wanted.contains(rule));
        let of_rule = kept.map(|(number, rule)| (*rule, *number)).collect();
        Self { of_rule, fresh: fresh.into_iter(), max, what }
    }

    fn take(&mut self, rule: u32) -> Result<u32, Refusal> {
        if let Some(number) = self.of_rule.get(&rule) {
            return Ok(*number);
        }
        let fit = self.max as usize - 1;
        let too_many = Refusal::TooMany { what: self.what, asked: fit + 1, fit };
        let number = self.fresh.next().ok_or(too_many)?;
        self.of_rule.insert(rule, number);
        Ok(number)
    }
}

fn put<T: Clone + Default>(list: &mut Vec<T>, number: u32, value: T) {
    let number = number as usize;
    if list.len() <= number {
        list.resize(number + 1, T::default());
    }
    if let Some(place) = list.get_mut(number) {
        *place = value;
    }
}

/// Words of an address, for keys of services.
pub fn service_words(address: IpAddr) -> Words {
    wire(address).1
}

#[cfg(test)]
#[path = "image/tests.rs"]
mod tests;
