//! Names of endpoints: looked up at start, again when their time to live is over.
//!
//! Owns: the lookups, their schedule, the last good answer of every name. Does not own: the rows that
//! addresses get (see [`crate::process::endpoints`]) or the orders that follow a change (see [`super::run`]).
//!
//! Order of sources, as with a usual `nsswitch.conf`: `/etc/hosts`, then the servers of `/etc/resolv.conf`
//! (without that file 127.0.0.1, as resolv.conf(5) says). Both files are read at every lookup, so edits take
//! effect. `localhost` is the loopback addresses when no file names it (RFC 6761 section 6.3). A and AAAA are
//! asked side by side and fail apart: a family that fails keeps its last good addresses; one that has none is
//! empty.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time;

use super::Event;

/// Addresses of one name that are used (count): the lowest ones, so that a long answer in random order means
/// no change.
pub const ADDRESSES_MAX: usize = 16;
/// Lookups under way at once (count); further ones wait.
const LOOKUPS_MAX: usize = 32;

/// When a name is looked up again.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Least time between two lookups, whatever the time to live says.
    pub min: Duration,
    /// Most time between two lookups.
    pub max: Duration,
    /// Time after a failed lookup.
    pub retry: Duration,
    /// Longest lookup.
    pub timeout: Duration,
}

impl Schedule {
    /// Every 5 s to 5 min. A time to live below 5 s is used for failover by health, not by DNS; one above 5
    /// min would let a mistake in a zone outlive its correction for long.
    pub const RECOMMENDED: Self = Self {
        min: Duration::from_secs(5),
        max: Duration::from_secs(300),
        retry: Duration::from_secs(5),
        timeout: Duration::from_secs(4),
    };
}

/// Where names are looked up.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The hosts file.
    pub hosts: PathBuf,
    /// The resolver's configuration.
    pub resolv_conf: PathBuf,
    /// Instead of `resolv_conf`: this one.
    pub servers: Option<NameServerConfig>,
}

impl Default for Sources {
    fn default() -> Self {
        Self { hosts: "/etc/hosts".into(), resolv_conf: "/etc/resolv.conf".into(), servers: None }
    }
}

/// One family's part of a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Family {
    /// These addresses, perhaps none.
    Addresses(Vec<IpAddr>),
    /// No answer; the last good addresses stay.
    Failed(String),
}

/// The outcome of one lookup.
#[derive(Clone, Debug)]
pub struct Outcome {
    v4: Family,
    v6: Family,
    ttl: Duration,
}

impl Outcome {
    /// Why the lookup brought nothing at all, or `None` when it brought something.
    pub fn failure(&self) -> Option<&str> {
        match (&self.v4, &self.v6) {
            (Family::Failed(reason), Family::Failed(_)) => Some(reason),
            (Family::Failed(reason), Family::Addresses(addresses))
            | (Family::Addresses(addresses), Family::Failed(reason))
                if addresses.is_empty() =>
            {
                Some(reason)
            }
            (Family::Addresses(v4), Family::Addresses(v6)) if v4.is_empty() && v6.is_empty() => {
                Some("the name has no address")
            }
            _ => None,
        }
    }

    /// The addresses to use, given those used before: sorted, without repeats, at most [`ADDRESSES_MAX`].
    pub fn addresses(&self, before: &[IpAddr]) -> Vec<IpAddr> {
        // A name whose zone says "nothing" keeps its last good addresses: an empty zone is more often a
        // mistake than a wish, and an endpoint that is really gone fails its health checks.
        if self.failure().is_some() {
            return before.to_vec();
        }
        let mut addresses = BTreeSet::new();
        for (family, is_v4) in [(&self.v4, true), (&self.v6, false)] {
            match family {
                Family::Addresses(found) => addresses.extend(found.iter().copied()),
                Family::Failed(_) => {
                    addresses.extend(before.iter().filter(|address| address.is_ipv4() == is_v4))
                }
            }
        }
        addresses.into_iter().take(ADDRESSES_MAX).collect()
    }
}

/// Looks names up. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lookup {
    sources: Arc<Sources>,
    schedule: Schedule,
    permits: Arc<Semaphore>,
}

impl Lookup {
    /// Looks up in `sources`.
    pub fn new(sources: Sources, schedule: Schedule) -> Self {
        Self { sources: Arc::new(sources), schedule, permits: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }

    /// Looks all of `names` up side by side. Bounded in time by a multiple of the schedule's timeout for each
    /// 32 names.
    pub async fn all(&self, names: &BTreeSet<String>) -> BTreeMap<String, Outcome> {
        let mut tasks = tokio::task::JoinSet::new();
        for name in names {
            let (lookup, name) = (self.clone(), name.clone());
            tasks.spawn(async move {
                let outcome = lookup.one(&name).await;
                (name, outcome)
            });
        }
        let mut outcomes = BTreeMap::new();
        while let Some(done) = tasks.join_next().await {
            outcomes.extend(done);
        }
        outcomes
    }

    /// Looks one name up.
    pub async fn one(&self, name: &str) -> Outcome {
        let _permit = self.permits.acquire().await;
        if let Some(outcome) = self.static_answer(name) {
            return outcome;
        }
        let resolver = match self.resolver() {
            Ok(resolver) => resolver,
            Err(reason) => return failed(reason, self.schedule.retry),
        };
        let (v4, v6) = tokio::join!(
            self.family(&resolver, name, RecordType::A),
            self.family(&resolver, name, RecordType::AAAA)
        );
        let ttl = v4.1.min(v6.1);
        Outcome { v4: v4.0, v6: v6.0, ttl }
    }

    /// How long after `outcome` the name is to be looked up again.
    fn delay(&self, outcome: &Outcome) -> Duration {
        if outcome.failure().is_some() {
            self.schedule.retry
        } else {
            outcome.ttl.clamp(self.schedule.min, self.schedule.max)
        }
    }

    async fn family(&self, resolver: &TokioResolver, name: &str, kind: RecordType) -> (Family, Duration) {
        match time::timeout(self.schedule.timeout, resolver.lookup(name, kind)).await {
            Ok(Ok(lookup)) => {
                let address = |data: &RData| match data {
                    RData::A(address) => Some(IpAddr::V4(address.0)),
                    RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                    _ => None,
                };
                let addresses = lookup.answers().iter().filter_map(|record| address(&record.data)).collect();
                (Family::Addresses(addresses), lookup.valid_until().saturating_duration_since(Instant::now()))
            }
            Ok(Err(error)) if error.is_no_records_found() => {
                (Family::Addresses(Vec::new()), self.schedule.max)
            }
            Ok(Err(error)) => (Family::Failed(error.to_string()), self.schedule.retry),
            Err(_) => {
                let timeout = self.schedule.timeout.as_millis();
                (Family::Failed(format!("no name server answered within {timeout} ms")), self.schedule.retry)
            }
        }
    }

    /// What the hosts file says, and `localhost` in any case.
    fn static_answer(&self, name: &str) -> Option<Outcome> {
        let mut hosts = Hosts::default();
        if let Ok(file) = fs::File::open(&self.sources.hosts)
            && let Err(error) = hosts.read_hosts_conf(file)
        {
            log::warn!("{}: {error}", self.sources.hosts.display());
        }
        let mut parsed = Name::from_utf8(name).ok()?;
        parsed.set_fqdn(true);
        let find = |kind| {
            let found = hosts.lookup_static_host(&Query::query(parsed.clone(), kind));
            let data = found.map(|lookup| lookup.answers().to_vec()).unwrap_or_default();
            data.iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>()
        };
        let (mut v4, mut v6) = (find(RecordType::A), find(RecordType::AAAA));
        if v4.is_empty() && v6.is_empty() {
            if name != "localhost" && !name.ends_with(".localhost") {
                return None;
            }
            v4 = vec![Ipv4Addr::LOCALHOST.into()];
            v6 = vec![Ipv6Addr::LOCALHOST.into()];
        }
        Some(Outcome { v4: Family::Addresses(v4), v6: Family::Addresses(v6), ttl: self.schedule.min })
    }

    fn resolver(&self) -> Result<TokioResolver, String> {
        let (config, mut options) = match &self.sources.servers {
            Some(server) => {
                (ResolverConfig::from_name_servers(vec![server.clone()]), ResolverOpts::default())
            }
            None => match fs::read(&self.sources.resolv_conf) {
                Ok(text) => parse_resolv_conf(text)
                    .map_err(|error| format!("{}: {error}", self.sources.resolv_conf.display()))?,
                Err(_) => {
                    let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
                    (ResolverConfig::from_name_servers(vec![local]), ResolverOpts::default())
                }
            },
        };
        // Our own schedule decides when a name is asked again, and each resolver is used once.
        options.cache_size = 0;
        options.use_hosts_file = hickory_resolver::config::ResolveHosts::Never;
        // Two tries must fit into the timeout.
        options.timeout = options.timeout.min(self.schedule.timeout / 2);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        builder.build().map_err(|error| format!("no resolver can be made: {error}"))
    }
}

fn failed(reason: String, ttl: Duration) -> Outcome {
    Outcome { v4: Family::Failed(reason.clone()), v6: Family::Failed(reason), ttl }
}

/// A lookup that was due.
#[derive(Debug)]
pub struct NameUpdate {
    /// The name.
    pub name: String,
    /// What came back.
    pub outcome: Outcome,
}

/// All names of the configuration with their addresses.
#[derive(Debug)]
pub struct Names {
    lookup: Lookup,
    events: mpsc::Sender<Event>,
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    addresses: Vec<IpAddr>,
    failure: Option<String>,
    refresher: JoinHandle<()>,
}

impl Drop for Known {
    fn drop(&mut self) {
        self.refresher.abort();
    }
}

impl Names {
    /// No names yet. Updates go to `events`.
    pub fn new(lookup: Lookup, events: mpsc::Sender<Event>) -> Self {
        Self { lookup, events, known: BTreeMap::new() }
    }

    /// The means to look names up, for use beside the control loop.
    pub fn lookup(&self) -> &Lookup {
        &self.lookup
    }

    /// Those of `names` that have no addresses yet.
    pub fn unknown(&self, names: &BTreeSet<String>) -> BTreeSet<String> {
        names.iter().filter(|name| !self.known.contains_key(*name)).cloned().collect()
    }

    /// Keeps exactly `names`: known ones go on as they are, new ones begin with their outcome, others are
    /// forgotten. A new name without an outcome begins without addresses and is looked up at once.
    pub fn adopt(&mut self, names: &BTreeSet<String>, mut outcomes: BTreeMap<String, Outcome>) {
        self.known.retain(|name, _| names.contains(name));
        for name in names {
            if self.known.contains_key(name) {
                continue;
            }
            let outcome = outcomes.remove(name);
            let delay = outcome.as_ref().map_or(Duration::ZERO, |outcome| self.lookup.delay(outcome));
            let addresses = outcome.as_ref().map(|outcome| outcome.addresses(&[])).unwrap_or_default();
            let failure = outcome.as_ref().and_then(Outcome::failure).map(str::to_owned);
            let refresher =
                tokio::spawn(refresh(self.lookup.clone(), self.events.clone(), name.clone(), delay));
            self.known.insert(name.clone(), Known { addresses, failure, refresher });
        }
    }

    /// Takes an update; whether it changes the addresses of a name.
    pub fn update(&mut self, update: &NameUpdate) -> bool {
        let Some(known) = self.known.get_mut(&update.name) else {
            return false;
        };
        let failure = update.outcome.failure().map(str::to_owned);
        match (&known.failure, &failure) {
            (None, Some(reason)) => {
                let kept = known.addresses.len();
                log::warn!("name {}: {reason}; {kept} addresses known before stay in use", update.name);
            }
            (Some(_), None) => log::info!("name {} has addresses again", update.name),
            _ => {}
        }
        known.failure = failure;
        let addresses = update.outcome.addresses(&known.addresses);
        let is_changed = addresses != known.addresses;
        known.addresses = addresses;
        is_changed
    }

    /// The addresses of a name.
    pub fn addresses(&self, name: &str) -> &[IpAddr] {
        self.known.get(name).map_or(&[], |known| &known.addresses)
    }

    /// Why the last lookup of a name failed.
    pub fn failure(&self, name: &str) -> Option<&str> {
        self.known.get(name)?.failure.as_deref()
    }
}

async fn refresh(lookup: Lookup, events: mpsc::Sender<Event>, name: String, mut delay: Duration) {
    loop {
        time::sleep(delay).await;
        let outcome = lookup.one(&name).await;
        delay = lookup.delay(&outcome);
        let update = NameUpdate { name: name.clone(), outcome };
        if events.send(Event::Name(update)).await.is_err() {
            return;
        }
    }
}
