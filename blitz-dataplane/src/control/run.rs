//! The control loop: one event after the other, from the start to the end.
//!
//! Owns: the state, the start, what becomes of workers; in its two parts the commit of a configuration and
//! the end. Does not own: preparing a configuration ([`super::reload`]), starting workers
//! ([`crate::process::supervisor`]), the admin API's HTTP ([`super::admin`]).
#![forbid(unsafe_code)]

mod commit;
mod end;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blitz_config::Config;
use blitz_config::model::{Endpoint, EndpointHost, Listener, Protocol};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::admin;
use super::blocklist::Reporter;
use super::load::{ConfigHead, ConfigOrigin};
use super::names::{Lookup, Names, Schedule, Sources};
use super::reload::{Prepared, ReloadReport, Timings, prepare};
use super::steering::Steerer;
use super::views::{Shared, View};
use super::{EVENTS_MAX, EndStage, Event, Signal};
use crate::http3::{GENERATION, QuicKeys};
use crate::metrics::names::ReportOutcome;
use crate::metrics::{EndpointLabels, Exposition, Metric};
use crate::process::endpoints::{EndpointAddresses, ResolvedEndpoints, RowTable};
use crate::process::launch::{Launcher, Mode};
use crate::process::listeners::{Bank, Banks};
use crate::process::messages::{
    BankPlace, BlockReport, BootMessage, ConfigMessage, ConnectionRow, FromWorker, IoMode, ListenerAddress,
    LogLevel, SocketKind, TlsDiagnosis, ToWorker,
};
use crate::process::relays::{RELAYED_WORKERS_MAX, Relays};
use crate::process::supervisor::{WorkerEvent, Workers};
use crate::process::worker::{Place, WorkerCode, WorkerError, worker_main};
use crate::secret::Secret;
use crate::segment::{ENDPOINTS_MAX, Segment, Shape, WorkerRows};
use crate::tls::Files;

/// Longest time from the first worker's start until all serve.
pub const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time until it is looked whether the keys of QUIC are others.
const KEYS_WATCH: Duration = Duration::from_secs(10);
/// How long workers may list their connections.
pub const CONNECTIONS_TIMEOUT: Duration = Duration::from_millis(200);
/// Most connections listed, of all workers together.
pub const CONNECTIONS_MAX: usize = 1000;
/// Questions for connections under way at once (count); further ones are answered with an empty list.
const QUESTIONS_MAX: usize = 8;
/// After the drain deadline, which the workers keep themselves: until they are told to stop.
const DRAIN_GRACE: Duration = Duration::from_secs(1);
/// From the order to stop until the kill.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// From the kill until the supervisor leaves anyway (threads cannot be killed).
const KILL_GRACE: Duration = Duration::from_millis(500);

/// The worker's code as the control side needs it.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// A test compile.
    pub check: fn(&Config, &Files, &ResolvedEndpoints) -> Result<(), String>,
    /// [`worker_main`] of this code.
    pub entry: fn(UnixStream, Place) -> Result<(), WorkerError>,
    /// Labels of error kinds.
    pub error_labels: &'static [&'static str],
}

impl Code {
    /// The code `C`.
    pub fn of<C: WorkerCode>() -> Self {
        Self {
            check: |config, files, endpoints| C::compile(config, files, endpoints, 0).map(drop),
            entry: worker_main::<C>,
            error_labels: C::ERROR_LABELS,
        }
    }
}

/// Where the admin API listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminChoice {
    /// Where the configuration (or `--admin ADDR`, which precedes it) says.
    Configured,
    /// Nowhere.
    Off,
}

/// Everything that the start decides.
#[derive(Debug)]
pub struct Options {
    /// Where the configuration comes from.
    pub origin: ConfigOrigin,
    /// Worker processes or threads, and what they execute.
    pub mode: Mode,
    /// Arguments of a worker process.
    pub worker_arguments: Vec<std::ffi::OsString>,
    /// The processor of each worker; its length is the number of workers.
    pub cores: Vec<Option<usize>>,
    /// How workers talk to the kernel.
    pub io: IoMode,
    /// `-l`.
    pub log_level: LogLevel,
    /// `-t`.
    pub trace: bool,
    /// `--tls-trace` and `--tls-key-log`.
    pub tls: TlsDiagnosis,
    /// The admin API.
    pub admin: AdminChoice,
    /// The root of all keys.
    pub secret: Secret,
    /// The control socket of `blitz-ctl`.
    pub ctl_socket: PathBuf,
    /// Where and when names are looked up.
    pub names: (Sources, Schedule),
    /// Tells when all workers serve. For tests and service managers.
    pub on_ready: Option<oneshot::Sender<Startup>>,
}

/// What a ready start looks like.
#[derive(Clone, Debug)]
pub struct Startup {
    /// The listeners.
    pub listeners: Vec<ListenerAddress>,
    /// The admin API.
    pub admin: Option<SocketAddr>,
    /// The segment.
    pub segment: Segment,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All workers ended by themselves.
    Ended,
    /// Some had to be killed.
    Forced,
}

/// Starts everything, serves until told to end, ends everything. Blocks the calling thread, which must live
/// as long as the process: the workers die with it.
///
/// # Errors
/// A sentence with cause and remedy: the configuration is wrong, an address cannot be bound, a worker cannot start.
pub fn run(options: Options, code: Code) -> Result<Outcome, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .map_err(|error| format!("cannot start the control thread: {error}"))?;
    let outcome = runtime.block_on(async {
        let (mut control, mut events) = Control::start(options, code).await?;
        while let Some(event) = events.recv().await {
            if let Some(outcome) = control.handle(event)? {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Ended)
    });
    // A lookup or a parse may still run; nobody waits for it.
    runtime.shutdown_background();
    outcome
}

struct Control {
    options: Options,
    code: Code,
    events: mpsc::Sender<Event>,
    started: Instant,

    segment: Segment,
    own_rows: WorkerRows,
    secret: OwnedFd,
    workers: Workers,
    banks: Banks,
    relays: Relays,
    rows: RowTable,
    names: Names,

    current: Current,
    reload: Reload,
    next_generation: u64,
    /// Whether names have changed since the addresses of the configuration in effect were computed.
    are_names_stale: bool,
    last_reload: Option<Arc<ReloadReport>>,
    is_ready: bool,
    ending: Option<EndStage>,
    was_forced: bool,

    questions: HashMap<u64, Question>,
    next_question: u64,
    shared: Arc<Shared>,
    admin: Option<SocketAddr>,
    /// Passes reports to `blitz-ctl`; begun with the first of them.
    reporter: Option<Reporter>,
    /// Tells the kernel how to steer, by way of `blitz-ctl`; begun with the first listener that speaks HTTP/3.
    steerer: Option<Steerer>,
}

/// The configuration in effect.
struct Current {
    config: Arc<Config>,
    head: ConfigHead,
    text: OwnedFd,
    generation: u64,
    endpoints: ResolvedEndpoints,
}

/// A reload under way, with those who wait for its report.
enum Reload {
    Idle,
    Preparing {
        started: Instant,
        waiting: Vec<oneshot::Sender<Arc<ReloadReport>>>,
        again: Again,
    },
    /// Workers compile; nothing has changed yet.
    Staging {
        staged: Box<Staged>,
        since: Instant,
        progress: Progress,
        again: Again,
    },
    /// Workers were told to swap.
    Applying {
        generation: u64,
        since: Instant,
        removed: Vec<BankPlace>,
        progress: Progress,
        again: Again,
    },
}

/// What the report of a reload will say, and to whom.
struct Progress {
    started: Instant,
    timings: Timings,
    notes: Vec<String>,
    waiting: Vec<oneshot::Sender<Arc<ReloadReport>>>,
}

/// A configuration that workers compile.
struct Staged {
    next: Current,
    /// The table of rows as it will be.
    rows: RowTable,
    names: BTreeSet<String>,
    new_banks: Vec<Bank>,
    removed: Vec<BankPlace>,
    /// Workers that have not answered.
    awaited: BTreeSet<u32>,
}

/// Whether another reload was asked for meanwhile, and by whom.
#[derive(Default)]
struct Again {
    is_wanted: bool,
    waiting: Vec<oneshot::Sender<Arc<ReloadReport>>>,
}

/// A question for connections.
struct Question {
    waiting_for: BTreeSet<u32>,
    rows: Vec<(u32, ConnectionRow)>,
    reply: oneshot::Sender<Vec<(u32, ConnectionRow)>>,
}

impl Control {
    async fn start(mut options: Options, code: Code) -> Result<(Self, mpsc::Receiver<Event>), String> {
        let started = Instant::now();
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        // Signals first: one that arrives during the start must not kill us half way.
        watch_signals(&events)?;
        let (sources, schedule) = options.names.clone();
        let lookup = Lookup::new(sources, schedule);
        let prepared = prepare(options.origin.clone(), lookup.clone(), BTreeSet::new(), code).await?;
        let Prepared { config, head, files, text, names: wanted, outcomes, .. } = *prepared;

        let workers_count = u32::try_from(options.cores.len()).unwrap_or(u32::MAX);
        let shape = Shape { workers: workers_count, endpoints: ENDPOINTS_MAX };
        let segment = Segment::create(shape).map_err(|error| error.to_string())?;
        let own_rows = segment.supervisor().ok_or("the segment lacks the supervisor's row")?;
        let mut names = Names::new(lookup, events.clone());
        names.adopt(&wanted, outcomes);
        let mut rows = RowTable::new(ENDPOINTS_MAX);
        let generation = 1;
        let endpoints =
            rows.assign(&addresses(&config, &names), generation).map_err(|error| error.to_string())?;
        (code.check)(&config, &files, &endpoints)?;
        drop(files);

        let mut banks = Banks::new(QuicKeys::new(&options.secret, config.http3.cid_epoch_seconds));
        banks.add(banks.bind_missing(&places(&config), workers_count)?);
        let relays = Relays::new(workers_count)
            .map_err(|error| format!("no descriptor left for sockets between workers: {error}"))?;
        if workers_count > RELAYED_WORKERS_MAX {
            log::warn!(
                "{workers_count} workers are more than {RELAYED_WORKERS_MAX}: QUIC datagrams that the kernel merges \
                 across workers are lost, and sent again"
            );
        }
        let current = Current { config, head, text, generation, endpoints };
        let launcher =
            Launcher { mode: options.mode, entry: code.entry, arguments: options.worker_arguments.clone() };
        let workers = Workers::new(launcher, segment.clone(), own_rows.clone(), events.clone());
        let secret =
            options.secret.to_fd().map_err(|error| format!("cannot pass the master secret on: {error}"))?;
        let exposition = Exposition::new(segment.clone(), code.error_labels, env!("CARGO_PKG_VERSION"));
        let shared = Arc::new(Shared::new(segment.clone(), own_rows.clone(), exposition, started));
        let admin = match options.admin {
            AdminChoice::Off => None,
            AdminChoice::Configured => {
                let address = current.config.admin.address;
                Some(admin::start(address, Arc::clone(&shared), events.clone())?)
            }
        };
        let mut control = Self {
            code,
            events,
            started,
            segment,
            own_rows,
            secret,
            workers,
            banks,
            relays,
            rows,
            names,
            current,
            reload: Reload::Idle,
            next_generation: generation + 1,
            are_names_stale: false,
            last_reload: None,
            is_ready: false,
            ending: None,
            was_forced: false,
            questions: HashMap::new(),
            next_question: 1,
            shared,
            admin,
            reporter: None,
            steerer: None,
            options: Options { on_ready: options.on_ready.take(), ..options },
        };
        control.own_rows.gauge_set(Metric::ConfigGeneration, generation);
        control.publish();
        for index in 0..workers_count {
            control.start_worker(index).map_err(|error| format!("cannot start worker {index}: {error}"))?;
        }
        control.later(START_TIMEOUT, Event::StartDeadline);
        control.follow_keys();
        Ok((control, receiver))
    }

    fn handle(&mut self, event: Event) -> Result<Option<Outcome>, String> {
        match event {
            Event::Worker { index, incarnation, event } if self.workers.is_current(index, incarnation) => {
                match event {
                    WorkerEvent::Message(message) => self.worker_says(index, message)?,
                    WorkerEvent::Ended(exit) => {
                        if let Some(death) = self.workers.ended(index, exit, Instant::now()) {
                            self.worker_ended(index, incarnation, &death)?;
                        }
                    }
                }
            }
            Event::Respawn { index, incarnation } if self.workers.is_current(index, incarnation) => {
                self.respawn(index)
            }
            // From a worker that has a successor already.
            Event::Worker { .. } | Event::Respawn { .. } => {}
            Event::Reported { reason, outcome } => {
                self.own_rows.add(Metric::block_report(reason, outcome), 1);
            }
            Event::Name(update) => self.name_updated(&update),
            Event::Prepared(prepared) => self.prepared(prepared),
            Event::StageDeadline { generation } => self.stage_overdue(generation),
            Event::ReloadDeadline { generation } => {
                if matches!(&self.reload, Reload::Applying { generation: waiting, .. } if *waiting == generation)
                {
                    let behind = self.workers.behind(generation);
                    self.reload_done(Some(format!("workers {behind:?} have not applied it yet")));
                }
            }
            Event::ConnectionsDeadline { request } => self.answer_question(request),
            Event::StartDeadline if !self.is_ready && self.ending.is_none() => {
                let behind = self.workers.behind(1);
                let seconds = START_TIMEOUT.as_secs();
                return Err(format!("workers {behind:?} did not begin to serve within {seconds} s"));
            }
            Event::StartDeadline => {}
            Event::EndDeadline { stage } => {
                if self.ending == Some(stage) {
                    return Ok(self.end_overdue(stage));
                }
            }
            Event::KeysDeadline => self.follow_keys(),
            Event::Signal(signal) => self.signalled(signal),
            Event::Command(command) => self.commanded(command),
        }
        let is_over = self.ending.is_some() && self.workers.alive().is_empty();
        let outcome = if self.was_forced { Outcome::Forced } else { Outcome::Ended };
        if is_over {
            log::info!("all workers have ended");
        }
        Ok(is_over.then_some(outcome))
    }

    // Workers.

    fn start_worker(&mut self, index: u32) -> std::io::Result<()> {
        let mut fds = vec![
            self.segment.fd().try_clone_to_owned()?,
            self.secret.try_clone()?,
            self.current.text.try_clone()?,
        ];
        let relays = self.relays.sockets(index)?;
        let relays_count = relays.len();
        fds.extend(relays);
        let mut added = Vec::new();
        // A bank whose listener was just removed lives until the other workers have closed it.
        let listeners = places(&self.current.config);
        for bank in self.banks.iter().filter(|bank| listeners.contains(&bank.address().place())) {
            if let Some(socket) = bank.socket(index) {
                added.push(bank.address());
                fds.push(socket.try_clone_to_owned()?);
            }
        }
        let config = ConfigMessage {
            generation: self.current.generation,
            head: self.current.head.clone(),
            endpoints: self.current.endpoints.clone(),
            added,
            removed: Vec::new(),
        };
        let boot = BootMessage {
            worker: index,
            workers: self.workers.count(),
            incarnation: self.workers.next_incarnation(index),
            core: self.options.cores.get(index as usize).copied().flatten(),
            io: self.options.io,
            log_level: self.options.log_level,
            trace: self.options.trace,
            tls: self.options.tls.clone(),
            cid_epoch_seconds: self.banks.keys().epoch_seconds(),
            relays: relays_count,
            ctl_socket: self.options.ctl_socket.clone(),
            config,
        };
        self.workers.start(index, &ToWorker::Boot(Box::new(boot)), fds)?;
        self.stage_also(index);
        Ok(())
    }

    fn respawn(&mut self, index: u32) {
        if self.ending.is_some() {
            return;
        }
        if let Err(error) = self.start_worker(index) {
            log::error!("worker {index} cannot be started: {error}; next try in 1 s");
            self.no_longer_awaited(index);
            let incarnation = self.workers.next_incarnation(index) - 1;
            self.later(Duration::from_secs(1), Event::Respawn { index, incarnation });
        }
    }

    fn worker_says(&mut self, index: u32, message: FromWorker) -> Result<(), String> {
        match message {
            FromWorker::SnapshotApplied { generation } => {
                if let Some(away) = self.workers.applied(index, generation) {
                    log::info!(
                        "worker {index} was replaced and serves after {:.1} ms",
                        away.as_secs_f64() * 1e3
                    );
                }
                if !self.is_ready && self.workers.all_applied(1) {
                    self.ready();
                } else {
                    self.steer();
                }
                self.check_reload();
            }
            FromWorker::SnapshotReady { generation } => self.staged_by(index, generation),
            FromWorker::SnapshotRefused { generation, reason } => {
                log::error!("worker {index} refused generation {generation}: {reason}");
                self.refused_by(index, generation, &reason);
            }
            FromWorker::Connections { request, rows } => {
                if let Some(question) = self.questions.get_mut(&request) {
                    question.waiting_for.remove(&index);
                    let room = CONNECTIONS_MAX.saturating_sub(question.rows.len());
                    question.rows.extend(rows.into_iter().take(room).map(|row| (index, row)));
                    if question.waiting_for.is_empty() {
                        self.answer_question(request);
                    }
                }
            }
            FromWorker::Report { report, .. } => self.report(report),
            FromWorker::Failed { reason } => {
                if !self.is_ready && self.ending.is_none() {
                    return Err(format!("worker {index} cannot start: {reason}"));
                }
                self.workers.failed(index, reason);
            }
        }
        Ok(())
    }

    /// Has the kernel told what it needs to steer datagrams, as things are now.
    fn steer(&mut self) {
        let config = &self.current.config;
        let banks: Vec<&Bank> =
            self.banks.iter().filter(|bank| bank.address().kind == SocketKind::Datagram).collect();
        // As for reports: where nobody has a stage, nobody is asked for one.
        let is_asked_for = !config.xdp.interfaces.is_empty()
            || self.options.ctl_socket.as_path() != Path::new(blitz_ctl_protocol::SOCKET_PATH);
        if banks.is_empty() || !is_asked_for || !self.is_ready {
            return;
        }
        if self.steerer.is_none() {
            let Some(keys) = self.banks.steering(self.workers.count()) else { return };
            match Steerer::start(self.options.ctl_socket.clone()) {
                Ok(steerer) => {
                    steerer.keys(keys);
                    self.steerer = Some(steerer);
                }
                Err(error) => {
                    log::warn!("QUIC is steered by classic BPF: no thread to ask blitz-ctl: {error}")
                }
            }
        }
        let Some(steerer) = &mut self.steerer else { return };
        for bank in banks {
            if !steerer.knows(&bank.address().place()) {
                match bank.copies() {
                    Ok(sockets) => steerer.offer(bank.address(), sockets),
                    Err(error) => log::warn!("{} is steered by classic BPF: {error}", bank.address()),
                }
            }
        }
        let alive = self.workers.alive().into_iter();
        steerer.alive(alive.map(|worker| (GENERATION, worker)).collect());
    }

    /// Passes a worker's report on.
    fn report(&mut self, report: BlockReport) {
        let reason = report.reason;
        let ttl = self.current.config.xdp.blocklist.ttl;
        if self.reporter.is_none() {
            match Reporter::start(self.options.ctl_socket.clone(), self.events.clone()) {
                Ok(reporter) => self.reporter = Some(reporter),
                Err(error) => log::warn!("no thread for reports to blitz-ctl: {error}"),
            }
        }
        if !self.reporter.as_ref().is_some_and(|reporter| reporter.offer(report, ttl)) {
            self.own_rows.add(Metric::block_report(reason, ReportOutcome::Dropped), 1);
        }
    }

    fn worker_ended(
        &mut self,
        index: u32,
        incarnation: u64,
        death: &crate::process::supervisor::Death,
    ) -> Result<(), String> {
        let crate::process::supervisor::Death { reason, is_clean, delay } = death;
        for request in self.questions.keys().copied().collect::<Vec<_>>() {
            if let Some(question) = self.questions.get_mut(&request) {
                question.waiting_for.remove(&index);
                if question.waiting_for.is_empty() {
                    self.answer_question(request);
                }
            }
        }
        self.no_longer_awaited(index);
        if self.ending.is_some() {
            if *is_clean {
                log::info!("worker {index} has ended");
            } else {
                log::warn!("worker {index} ended out of order: it {reason}");
            }
            return Ok(());
        }
        if !self.is_ready {
            return Err(format!("worker {index} ended during the start: it {reason}"));
        }
        let when = if delay.is_zero() { "now".to_owned() } else { format!("in {} ms", delay.as_millis()) };
        log::error!("worker {index} died: it {reason}; its successor starts {when}");
        self.steer();
        if delay.is_zero() {
            self.respawn(index);
        } else {
            self.later(*delay, Event::Respawn { index, incarnation });
        }
        self.check_reload();
        Ok(())
    }

    fn ready(&mut self) {
        self.is_ready = true;
        let listeners = self.banks.addresses();
        let shown: Vec<String> = listeners.iter().map(ToString::to_string).collect();
        log::info!(
            "blitz {} serves on {} with {} workers (mode {}, io {}) after {:.1} ms; admin {}",
            env!("CARGO_PKG_VERSION"),
            shown.join(", "),
            self.workers.count(),
            self.options.mode,
            self.options.io,
            self.started.elapsed().as_secs_f64() * 1e3,
            self.admin.map_or_else(|| "off".to_owned(), |admin| format!("http://{admin}/")),
        );
        self.publish();
        self.steer();
        if let Some(on_ready) = self.options.on_ready.take() {
            // Nobody may be interested any more.
            let _unheard =
                on_ready.send(Startup { listeners, admin: self.admin, segment: self.segment.clone() });
        }
    }

    /// Has the kernel steer by the keys of the epochs that are live, now and whenever those change.
    fn follow_keys(&mut self) {
        let changed = self.banks.follow_keys();
        if matches!(changed, Ok(true)) {
            let keys = self.banks.steering(self.workers.count());
            let places: Vec<BankPlace> = self.banks.addresses().iter().map(ListenerAddress::place).collect();
            if let (Some(steerer), Some(keys)) = (&mut self.steerer, keys) {
                steerer.keys(keys);
                steerer.withdraw(&places);
            }
            self.steer();
        }
        let wait = match changed {
            Ok(_) => self.banks.keys().live_epochs().1,
            Err(error) => {
                log::error!("the kernel refuses to steer QUIC by new keys: {error}; trying again");
                1
            }
        };
        // Often enough to notice a clock that was set.
        self.later(KEYS_WATCH.min(Duration::from_secs(wait)), Event::KeysDeadline);
    }

    // Helpers.

    fn later(&self, delay: Duration, event: Event) {
        let events = self.events.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ended = events.send(event).await;
        });
    }

    /// Shows the admin API what is in effect.
    fn publish(&self) {
        let config = &self.current.config;
        let name =
            |upstream: usize| config.upstreams.get(upstream).map_or("", |upstream| upstream.name.as_str());
        let label = |(upstream, resolved): (usize, crate::process::ResolvedAddress)| EndpointLabels {
            row: resolved.row,
            upstream: name(upstream).to_owned(),
            address: resolved.address.to_string(),
        };
        // The same address twice in one upstream (two names for one host) has two rows; labels must be
        // unique, so the second is shown by `/upstreams` alone.
        let mut seen = BTreeSet::new();
        let labels = self.current.endpoints.iter().map(label);
        let labels =
            labels.filter(|label| seen.insert((label.upstream.clone(), label.address.clone()))).collect();
        let failures = super::reload::names(config).into_iter();
        let failures =
            failures.filter_map(|name| Some((name.clone(), self.names.failure(&name)?.to_owned()))).collect();
        self.shared.publish(View {
            config: Arc::clone(config),
            source: self.options.origin.path.clone(),
            generation: self.current.generation,
            endpoints: self.current.endpoints.clone(),
            labels,
            name_failures: failures,
            listeners: self.banks.addresses(),
            last_reload: self.last_reload.clone(),
            is_ready: self.is_ready,
            ending: self.ending,
            mode: self.options.mode,
            io: self.options.io,
        });
    }
}

/// Where the listeners are reached.
fn places(config: &Config) -> Vec<BankPlace> {
    let of = |listener: &Listener| {
        let streams = listener.speaks(Protocol::H1) || listener.speaks(Protocol::H2);
        let kinds = [(SocketKind::Stream, streams), (SocketKind::Datagram, listener.speaks(Protocol::H3))];
        let address = listener.address;
        kinds
            .into_iter()
            .filter(|(_, is_spoken)| *is_spoken)
            .map(move |(kind, _)| BankPlace { kind, address })
    };
    config.listeners.iter().flat_map(of).collect()
}

/// Upstreams with the addresses that their endpoints have now.
fn addresses(config: &Config, names: &Names) -> Vec<(String, Vec<EndpointAddresses>)> {
    let resolve = |endpoint: &Endpoint| {
        let (host, addresses) = match &endpoint.host {
            EndpointHost::Address(address) => (address.to_string(), vec![*address]),
            EndpointHost::Name(name) => (name.clone(), names.addresses(name).to_vec()),
        };
        let port = endpoint.port;
        let addresses = addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        EndpointAddresses { endpoint: format!("{host}:{port}"), addresses }
    };
    let upstreams = config.upstreams.iter();
    upstreams.map(|up| (up.name.clone(), up.endpoints.iter().map(resolve).collect())).collect()
}

fn watch_signals(events: &mpsc::Sender<Event>) -> Result<(), String> {
    let kinds = [
        (SignalKind::hangup(), Signal::Reload),
        (SignalKind::terminate(), Signal::Drain),
        (SignalKind::interrupt(), Signal::Stop),
        (SignalKind::user_defined2(), Signal::Upgrade),
    ];
    for (kind, meaning) in kinds {
        let mut stream = signal(kind).map_err(|error| format!("cannot watch for signals: {error}"))?;
        let events = events.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if events.send(Event::Signal(meaning)).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}
