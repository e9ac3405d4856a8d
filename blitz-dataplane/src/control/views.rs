//! What the admin API shows.
//!
//! Owns: the state that the control loop publishes and the JSON made of it. Does not own: HTTP (see
//! [`super::admin`]).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use blitz_config::Config;
use blitz_config::model::{Endpoint, EndpointHost};
use serde_json::{Value, json};

use super::EndStage;
use super::reload::ReloadReport;
use crate::metrics::{EndpointLabels, Exposition, Metric};
use crate::process::endpoints::{ResolvedAddress, ResolvedEndpoints};
use crate::process::launch::Mode;
use crate::process::messages::{ConnectionRow, IoMode, ListenerAddress};
use crate::segment::{EndpointRow, Segment, WorkerRows, WorkerState};
use crate::sys::clock;

/// What is in effect, as of the last change.
#[derive(Debug)]
pub struct View {
    /// The configuration.
    pub config: Arc<Config>,
    /// Its file.
    pub source: Option<PathBuf>,
    /// Its generation.
    pub generation: u64,
    /// Addresses of its endpoints.
    pub endpoints: ResolvedEndpoints,
    /// Labels of endpoint rows in use.
    pub labels: Vec<EndpointLabels>,
    /// Names whose last lookup failed, with the reason.
    pub name_failures: BTreeMap<String, String>,
    /// What is bound.
    pub listeners: Vec<ListenerAddress>,
    /// The last reload.
    pub last_reload: Option<Arc<ReloadReport>>,
    /// Whether the start is over.
    pub is_ready: bool,
    /// Whether and how far it ends.
    pub ending: Option<EndStage>,
    /// Processes or threads.
    pub mode: Mode,
    /// How workers were told to talk to the kernel.
    pub io: IoMode,
}

/// What the admin API reads.
#[derive(Debug)]
pub struct Shared {
    segment: Segment,
    exposition: Exposition,
    started: Instant,
    view: Mutex<Option<Arc<View>>>,
    /// The supervisor's own rows. The control thread alone runs what writes them; the lock is what the
    /// compiler wants.
    rows: Mutex<WorkerRows>,
}

impl Shared {
    /// Nothing published yet.
    pub fn new(segment: Segment, rows: WorkerRows, exposition: Exposition, started: Instant) -> Self {
        Self { segment, exposition, started, view: Mutex::new(None), rows: Mutex::new(rows) }
    }

    /// Adds one to a counter of the supervisor.
    pub fn count(&self, metric: Metric) {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).add(metric, 1);
    }

    /// Replaces what is shown.
    pub fn publish(&self, view: View) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(view));
    }

    /// What is in effect.
    pub fn view(&self) -> Option<Arc<View>> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The text for Prometheus.
    ///
    /// # Errors
    /// A sentence from the encoder.
    pub fn metrics(&self) -> Result<String, String> {
        let view = self.view();
        let labels = view.as_ref().map_or(&[][..], |view| &view.labels);
        let limits = view.iter().flat_map(|view| &view.config.limits);
        let limits = limits.filter(|limit| limit.requests_per_second.is_some());
        let limits: Vec<&str> = limits.map(|limit| limit.name.as_str()).collect();
        self.exposition.text(labels, &limits).map_err(|error| error.to_string())
    }

    /// Why requests are not to be sent here now, or `None`.
    pub fn unready(&self) -> Option<String> {
        let Some(view) = self.view() else {
            return Some("starting".to_owned());
        };
        if view.ending.is_some() {
            return Some("draining".to_owned());
        }
        if !view.is_ready {
            return Some("starting".to_owned());
        }
        let state = |index| self.segment.status(index).map_or(WorkerState::Absent, |status| status.state());
        let workers = 0..self.segment.shape().workers;
        let unready =
            workers.map(|index| (index, state(index))).find(|(_, state)| *state != WorkerState::Serving);
        unready.map(|(index, state)| format!("worker {index} is {}", state.as_str()))
    }

    /// `/config`.
    pub fn config(&self) -> Value {
        let Some(view) = self.view() else {
            return json!({ "state": "starting" });
        };
        let config = &view.config;
        let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let listeners = config.listeners.iter().map(|listener| {
            let bound = view.listeners.iter().find(|bound| bound.configured == listener.address);
            let protocols = listener.protocols.iter().map(|protocol| protocol.as_str());
            json!({
                "name": listener.name,
                "address": listener.address,
                "bound": bound.map(|bound| bound.bound),
                "protocols": protocols.collect::<Vec<_>>(),
                "builtin_answers": listener.builtin_answers,
            })
        });
        let upstreams =
            config.upstreams.iter().map(|up| json!({ "name": up.name, "endpoints": up.endpoints.len() }));
        let timeouts = &config.timeouts;
        let state = match view.ending {
            Some(_) => "draining",
            None if view.is_ready => "serving",
            None => "starting",
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "generation": view.generation,
            "source": view.source.as_ref().map_or_else(|| "command line".to_owned(), |path| path.display().to_string()),
            "uptime_s": self.started.elapsed().as_secs(),
            "mode": view.mode.to_string(),
            "io": view.io.to_string(),
            "state": state,
            "listeners": listeners.collect::<Vec<_>>(),
            "routes": config.routes.len(),
            "upstreams": upstreams.collect::<Vec<_>>(),
            "timeouts_ms": {
                "request_head": ms(timeouts.request_head),
                "request_body_progress": ms(timeouts.request_body_progress),
                "keep_alive": ms(timeouts.keep_alive),
                "send_progress": ms(timeouts.send_progress),
                "upstream_connect": ms(timeouts.upstream_connect),
                "upstream_first_byte": ms(timeouts.upstream_first_byte),
                "upstream_body_progress": ms(timeouts.upstream_body_progress),
                "upstream_idle": ms(timeouts.upstream_idle),
                "drain": ms(timeouts.drain),
            },
            "http": {
                "request_head_bytes_max": config.http.request_head_bytes_max,
                "request_fields_max": config.http.request_fields_max,
                "target_bytes_max": config.http.target_bytes_max,
                "request_body_bytes_max": config.http.request_body_bytes_max,
                "response_head_bytes_max": config.http.response_head_bytes_max,
                "connections_per_worker_max": config.http.connections_per_worker_max,
            },
            "workers": self.workers(),
            "name_failures": view.name_failures,
            "last_reload": view.last_reload.as_deref(),
        })
    }

    /// `/upstreams`.
    pub fn upstreams(&self) -> Value {
        let Some(view) = self.view() else {
            return json!([]);
        };
        let now_ms = clock::monotonic_ms();
        let upstreams = view.config.upstreams.iter().enumerate().map(|(u, upstream)| {
            let endpoints = upstream.endpoints.iter().enumerate().map(|(e, endpoint)| {
                let addresses =
                    view.endpoints.addresses(u, e).iter().map(|address| self.address(*address, now_ms));
                let host = host(endpoint);
                json!({
                    "endpoint": format!("{host}:{}", endpoint.port),
                    "weight": endpoint.weight,
                    "addresses": addresses.collect::<Vec<_>>(),
                    "lookup_failure": view.name_failures.get(&host),
                })
            });
            json!({ "name": upstream.name, "endpoints": endpoints.collect::<Vec<_>>() })
        });
        upstreams.collect()
    }

    /// `/connections`.
    pub fn connections(rows: &[(u32, ConnectionRow)]) -> Value {
        let show = |(worker, row): &(u32, ConnectionRow)| {
            let mut value = json!(row);
            if let Value::Object(fields) = &mut value {
                fields.insert("worker".to_owned(), json!(worker));
            }
            value
        };
        json!({ "count": rows.len(), "connections": rows.iter().map(show).collect::<Vec<_>>() })
    }

    fn address(&self, resolved: ResolvedAddress, now_ms: u64) -> Value {
        let rows: Vec<&EndpointRow> = (0..self.segment.shape().workers)
            .filter_map(|worker| self.segment.endpoint(worker, resolved.row))
            .collect();
        let sum = |read: &dyn Fn(&EndpointRow) -> u64| rows.iter().map(|row| read(row)).sum::<u64>();
        let out_ms = |row: &EndpointRow| row.ejected_until_ms.load(Ordering::Relaxed).saturating_sub(now_ms);
        let health = rows.iter().enumerate().map(|(worker, row)| {
            json!({
                "worker": worker,
                "healthy": out_ms(row) == 0,
                "out_for_ms": out_ms(row),
                "consecutive_failures": row.consecutive_failures.load(Ordering::Relaxed),
            })
        });
        json!({
            "address": resolved.address,
            "in_flight": sum(&|row| u64::from(row.in_flight.load(Ordering::Relaxed))),
            "requests": sum(&|row| row.requests_total.load(Ordering::Relaxed)),
            "failures": sum(&|row| row.failures_total.load(Ordering::Relaxed)),
            "connects": sum(&|row| row.connects_total.load(Ordering::Relaxed)),
            "reuses": sum(&|row| row.reuses_total.load(Ordering::Relaxed)),
            "ejections": sum(&|row| u64::from(row.ejections.load(Ordering::Relaxed))),
            "health": health.collect::<Vec<_>>(),
        })
    }

    fn workers(&self) -> Vec<Value> {
        let now_ms = clock::monotonic_ms();
        let workers = 0..self.segment.shape().workers;
        let show = |index| {
            let status = self.segment.status(index)?;
            let heartbeat_ms = status.heartbeat_ms.load(Ordering::Relaxed);
            Some(json!({
                "worker": index,
                "pid": status.pid.load(Ordering::Relaxed),
                "state": status.state().as_str(),
                "starts": status.incarnation.load(Ordering::Relaxed),
                "generation": status.snapshot_generation.load(Ordering::Relaxed),
                "connections": status.connections.load(Ordering::Relaxed),
                "heartbeat_age_ms": now_ms.saturating_sub(heartbeat_ms),
            }))
        };
        workers.filter_map(show).collect()
    }
}

fn host(endpoint: &Endpoint) -> String {
    match &endpoint.host {
        EndpointHost::Address(address) => address.to_string(),
        EndpointHost::Name(name) => name.clone(),
    }
}
