//! A configuration compiled for the loop.
//!
//! Owns: what is compiled beside the loop ([`Snapshot`], plain data) and what becomes of it on the
//! worker's thread ([`Live`]: the same with pools and cursors). Does not own: reading files
//! (`blitz_config`), or handing snapshots over (`process::orders`).
#![forbid(unsafe_code)]

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blitz_config::Config;

use super::balance::Group;
use super::limiter::Limits;
use super::misconduct::Misconduct;
use super::pool::Pools;
use super::router::Router;
use crate::exchange::stream::ServerLimits;
use crate::http1::HeadLimits;
use crate::http1::client::ClientLimits;
use crate::process::endpoints::ResolvedEndpoints;
use crate::segment::WorkerRows;
use crate::tls::{Connector, Diagnosis, Files, TlsMaterial, UpstreamTls};

/// A compiled configuration. Made on the helper thread, sent to the loop.
#[derive(Debug)]
pub struct Snapshot {
    /// Number of this configuration.
    pub generation: u64,
    /// The validated model.
    pub config: Config,
    /// The routes.
    pub router: Router,
    /// The addresses of each upstream's endpoints.
    pub endpoints: ResolvedEndpoints,
    /// The limits on requests.
    pub limits: Limits,
    /// The TLS of each listener, in the order of the configuration.
    pub tls: Vec<Option<Arc<TlsMaterial>>>,
    /// The TLS to the endpoints of each upstream, in the order of the configuration.
    pub upstream_tls: Vec<Option<Arc<UpstreamTls>>>,
}

impl Snapshot {
    /// Compiles a configuration; `files` are those that it names.
    ///
    /// # Errors
    /// A line for each file that is not what it has to be.
    pub fn compile(
        config: &Config,
        files: &Files,
        endpoints: &ResolvedEndpoints,
        generation: u64,
    ) -> Result<Self, String> {
        let (tls, upstream_tls) =
            match (TlsMaterial::compile(config, files), UpstreamTls::compile(config, files)) {
                (Ok(tls), Ok(upstream_tls)) => (tls, upstream_tls),
                (tls, upstream_tls) => {
                    let issues = [tls.err(), upstream_tls.err()];
                    return Err(issues.into_iter().flatten().collect::<Vec<_>>().join("\n"));
                }
            };
        let router = Router::new(&config.routes);
        let limits = Limits::new(config);
        let (config, endpoints) = (config.clone(), endpoints.clone());
        Ok(Self { generation, config, router, endpoints, limits, tls, upstream_tls })
    }
}

/// A snapshot in use by a worker.
pub struct Live {
    /// The compiled configuration.
    pub snapshot: Snapshot,
    /// One group of addresses per upstream, in the order of the configuration.
    pub groups: Vec<Group>,
    /// The limits on requests.
    pub limits: Limits,
    /// Who is reported for the kernel's blocklist; `None`: nobody.
    pub misconduct: Option<Misconduct>,
    /// The row of each limit in this worker's counts.
    pub limit_rows: Vec<Option<u16>>,
    /// Bounds for downstream connections.
    pub server: ServerLimits,
    /// Bounds for upstream connections.
    pub client: ClientLimits,
}

impl Live {
    /// Puts a snapshot to use. Pools of addresses that stay are kept.
    pub fn new(mut snapshot: Snapshot, pools: &Pools, rows: &WorkerRows, diagnosis: &Diagnosis) -> Rc<Self> {
        let limits = std::mem::take(&mut snapshot.limits);
        let misconduct = Misconduct::new(&snapshot.config);
        let limit_rows = rows.adopt_limits(&limits.ids());
        let upstreams = snapshot.config.upstreams.iter().zip(&snapshot.upstream_tls).enumerate();
        let groups = upstreams.map(|(index, (upstream, tls))| {
            let connector = tls.as_ref().map(|tls| Rc::new(Connector::new(tls, diagnosis)));
            Group::new(upstream, index, &snapshot.endpoints, pools, connector.as_ref())
        });
        let groups = groups.collect();
        let (timeouts, http) = (snapshot.config.timeouts, snapshot.config.http);
        let server = ServerLimits {
            request_head: timeouts.request_head,
            body_progress: timeouts.request_body_progress,
            keep_alive: timeouts.keep_alive,
            send_progress: timeouts.send_progress,
            body_bytes_max: http.request_body_bytes_max,
            head: HeadLimits {
                head_bytes_max: http.request_head_bytes_max,
                fields_max: http.request_fields_max,
                target_bytes_max: http.target_bytes_max,
            },
            http2: snapshot.config.http2,
        };
        let client = ClientLimits {
            first_byte: timeouts.upstream_first_byte,
            progress: timeouts.upstream_body_progress,
            head: HeadLimits {
                head_bytes_max: http.response_head_bytes_max,
                fields_max: crate::http1::FIELDS_MAX,
                target_bytes_max: 0,
            },
        };
        Rc::new(Self { snapshot, groups, limits, misconduct, limit_rows, server, client })
    }

    /// How long an idle upstream connection is kept.
    pub fn upstream_idle(&self) -> Duration {
        self.snapshot.config.timeouts.upstream_idle
    }
}
