//! The slow part of taking a configuration, and what is told about it.
//!
//! Owns: reading, parsing, validating, looking names up, a test compile. Does not own: the commit, which
//! happens in one step of the control loop (see [`super::run`]).
//!
//! A reload is all or nothing: until the commit nothing has changed, and whatever is wrong is found before
//! it. What the commit itself can still refuse (an address that cannot be bound, endpoint rows used up) is
//! checked before the first worker hears of it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blitz_config::Config;
use blitz_config::model::{Endpoint, EndpointHost};
use serde::Serialize;

use super::load::{ConfigHead, ConfigOrigin};
use super::names::{Lookup, Outcome};
use super::run::Code;
use crate::process::endpoints::ResolvedEndpoints;
use crate::tls::Files;
use crate::tls::material::expired;

/// Longest wait for the names of a new configuration. What has no address by then is looked up again later.
pub const NAMES_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the workers to compile a configuration. After it the reload is refused.
pub const STAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the workers to apply a generation. After it the reload is reported as incomplete; workers
/// that are late still apply it.
pub const APPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// A configuration that is ready to be committed.
#[derive(Debug)]
pub struct Prepared {
    /// The configuration.
    pub config: Arc<Config>,
    /// How workers are to read its text.
    pub head: ConfigHead,
    /// The files that it names.
    pub files: Files,
    /// Its text, and the files behind it.
    pub text: OwnedFd,
    /// All names that its endpoints use.
    pub names: BTreeSet<String>,
    /// Answers for names that were not known before.
    pub outcomes: BTreeMap<String, Outcome>,
    /// Time that each part took.
    pub timings: Timings,
}

/// Time that each part of a reload took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timings {
    /// Reading the file.
    pub read_us: u64,
    /// Parsing and validating.
    pub parse_us: u64,
    /// The test compile.
    pub compile_us: u64,
    /// Looking new names up.
    pub names_us: u64,
    /// Until the last worker has parsed and compiled it beside its loop.
    pub stage_us: u64,
    /// From the order to swap until the last worker uses it.
    pub swap_us: u64,
    /// All of it.
    pub total_us: u64,
}

/// How a reload went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReloadReport {
    /// Whether it took effect.
    pub ok: bool,
    /// The generation in effect afterwards.
    pub generation: u64,
    /// Why not, or what is odd about it; one line per issue.
    pub message: String,
    /// Seconds since 1970 when it ended.
    pub at_unix_s: u64,
    /// Time that each part took; those not reached are 0.
    pub timings: Timings,
}

impl ReloadReport {
    /// A report as of now.
    pub fn new(ok: bool, generation: u64, message: String, timings: Timings) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { ok, generation, message, at_unix_s: at.as_secs(), timings }
    }
}

/// Reads, parses, validates, test-compiles and looks up names. `known` are names that need no lookup.
///
/// # Errors
/// What is wrong with the configuration, as sentences.
pub async fn prepare(
    origin: ConfigOrigin,
    lookup: Lookup,
    known: BTreeSet<String>,
    code: Code,
) -> Result<Box<Prepared>, String> {
    // Parsing 100,000 routes takes a good part of a second, in which a dead worker must not wait.
    let parsed = tokio::task::spawn_blocking(move || parse(&origin, code)).await;
    let mut prepared = parsed.map_err(|error| format!("reading the configuration failed: {error}"))??;
    let started = Instant::now();
    let unknown = prepared.names.difference(&known).cloned().collect();
    prepared.outcomes = tokio::time::timeout(NAMES_TIMEOUT, lookup.all(&unknown)).await.unwrap_or_default();
    for name in &unknown {
        let reason = match prepared.outcomes.get(name) {
            None => Some("no answer in time"),
            Some(outcome) => outcome.failure(),
        };
        if let Some(reason) = reason {
            log::warn!("name {name}: {reason}; its endpoints are out of use until a lookup succeeds");
        }
    }
    prepared.timings.names_us = micros(started);
    Ok(prepared)
}

fn parse(origin: &ConfigOrigin, code: Code) -> Result<Box<Prepared>, String> {
    let mut timings = Timings::default();
    let started = Instant::now();
    let mut text = origin.read()?;
    timings.read_us = micros(started);
    let started = Instant::now();
    let config = text.parse()?;
    timings.parse_us = micros(started);
    let started = Instant::now();
    text.read_files(&config)?;
    timings.read_us += micros(started);
    let started = Instant::now();
    (code.check)(&config, text.files(), &ResolvedEndpoints::default())
        .map_err(|issues| text.named(&issues))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for sentence in expired(&config, text.files(), i64::try_from(now).unwrap_or(i64::MAX)) {
        // One of many shall not take the others down.
        log::error!("{}", text.named(&sentence));
    }
    timings.compile_us = micros(started);
    let names = names(&config);
    let head = text.head().clone();
    let files = text.files().clone();
    let text = text.to_fd().map_err(|error| format!("no descriptor for the configuration: {error}"))?;
    Ok(Box::new(Prepared {
        config: Arc::new(config),
        head,
        files,
        text,
        names,
        outcomes: BTreeMap::new(),
        timings,
    }))
}

/// Names that the endpoints of `config` use.
pub fn names(config: &Config) -> BTreeSet<String> {
    let endpoints = config.upstreams.iter().flat_map(|upstream| &upstream.endpoints);
    let name = |endpoint: &Endpoint| match &endpoint.host {
        EndpointHost::Name(name) => Some(name.clone()),
        EndpointHost::Address(_) => None,
    };
    endpoints.filter_map(name).collect()
}

/// Microseconds since `started`.
pub fn micros(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
}
