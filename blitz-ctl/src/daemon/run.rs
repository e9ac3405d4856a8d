//! `blitz-ctl run`: start, reload, end.
//!
//! Owns: the order of the start, signals, the thread that keeps time, what a reload does. Does not own:
//! what is shared (see [`super::state`]), one stage (see [`crate::stage`]).
//!
//! ```text
//! main       start, then signals and the exporter's listener (tokio, one thread)
//! keeper     every second: blocks that have ended; every 10 s: what changed by hand; on order: reload
//! census     every 15 s: how full the tables are
//! ctl-accept one thread for each client of the control socket
//! ```
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use blitz_config::Config;
use tokio::signal::unix::{SignalKind, signal};

use super::blocklist::Rules;
use super::peers::Peers;
use super::stages::Managed;
use super::state::State;
use super::{census, exporter, notify, server, snapshot};
use crate::capabilities::{self, Capability};
use crate::config as file;
use crate::error::{Error, Kind, Result};
use crate::image::InForce;
use crate::pins::Pins;
use crate::stage::Stage;

/// Between two looks at the ends of blocks.
const TICK: Duration = Duration::from_secs(1);
/// Between two readings of the blocklist that the command line may have changed.
const RECONCILE: Duration = Duration::from_secs(10);
/// Between two looks at interfaces that are missing and stages that were attached by hand.
const LOOK: Duration = Duration::from_secs(10);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Where the control socket is.
    pub socket: PathBuf,
    /// Where the exporter listens; `None` does without.
    pub metrics: Option<SocketAddr>,
    /// Who besides root may use the control socket: a name or a number.
    pub user: Option<String>,
    /// Where stages are pinned.
    pub pins: Pins,
}

/// Runs the daemon until SIGTERM or SIGINT. The process must have one thread; it keeps
/// [`Capability::ALL`] and no other right.
///
/// # Errors
/// One sentence with cause and remedy when it cannot start. What was in force stays in force.
pub fn run(options: Options) -> Result<()> {
    let config = file::load(&options.config)?;
    capabilities::require(&Capability::ALL)?;
    if let Some(said) = options.pins.prepare()? {
        log::info!("{said}");
    }
    // The socket first: its lock keeps a second daemon from everything that follows.
    let listener = server::listen(&options.socket)?;
    let metrics = options.metrics.map(exporter::bind).transpose()?;
    capabilities::reduce()?;
    let state = Arc::new(State::new(options.pins.clone()));
    start_stages(&state, &config)?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| Error::io(what, &error)
    };
    server::start(&listener, Peers::new(options.user.clone()), Arc::clone(&state))
        .map_err(failed("start the control socket"))?;
    let counter = Arc::clone(&state);
    std::thread::Builder::new()
        .name("census".to_owned())
        .spawn(move || {
            loop {
                counter.take_census();
                std::thread::sleep(census::PERIOD);
            }
        })
        .map_err(failed("start the census"))?;
    let (orders, inbox) = mpsc::sync_channel(1);
    let keeper = Arc::clone(&state);
    let path = options.config.clone();
    std::thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || keep(&keeper, &path, config, &inbox))
        .map_err(failed("start the keeper"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Scrapes: one at a time is usual, a few when several servers ask.
        .max_blocking_threads(4)
        .build()
        .map_err(failed("start the runtime"))?;
    let result = runtime.block_on(serve(&options, &state, metrics, &orders));
    runtime.shutdown_background();
    notify::send("STOPPING=1");
    drop(listener);
    result
}

/// The main thread, once everything has started.
async fn serve(
    options: &Options,
    state: &Arc<State>,
    metrics: Option<std::net::TcpListener>,
    orders: &mpsc::SyncSender<()>,
) -> Result<()> {
    let watch = |kind| signal(kind).map_err(|error| Error::io("watch signals", &error));
    let mut reload = watch(SignalKind::hangup())?;
    let mut terminate = watch(SignalKind::terminate())?;
    let mut interrupt = watch(SignalKind::interrupt())?;
    if let Some(listener) = metrics {
        let bound = listener.local_addr().map_err(|error| Error::io("the exporter", &error))?;
        let state = Arc::clone(state);
        let scrape = Arc::new(move || snapshot::text(&state).map_err(|error| error.to_string()));
        exporter::start(listener, scrape).map_err(|error| Error::io("the exporter", &error))?;
        log::info!("metrics are at http://{bound}/metrics");
    }
    log::info!("ready: control socket {}, process {}", options.socket.display(), std::process::id());
    notify::send("READY=1");
    loop {
        tokio::select! {
            Some(()) = reload.recv() => {
                // One order may wait while another is at work: it will read the newest file.
                let _one_waits = orders.try_send(());
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    let stages = state.stages();
    let names: Vec<&str> = stages.iter().map(|managed| managed.stage().interface()).collect();
    match names.as_slice() {
        [] => log::info!("ending"),
        names => log::info!(
            "ending; the stage goes on filtering on {}, and blocks still end on time; `blitz-ctl detach` takes it away",
            names.join(", ")
        ),
    }
    Ok(())
}

/// The keeper's life: reloads on order, and what is due by the clock.
fn keep(state: &State, path: &Path, mut config: Config, inbox: &mpsc::Receiver<()>) {
    let (mut reconciled, mut looked) = (Instant::now(), Instant::now());
    loop {
        match inbox.recv_timeout(TICK) {
            Ok(()) => {
                notify::send("RELOADING=1");
                match file::load(path).and_then(|new| reload(state, &new).map(|()| new)) {
                    Ok(new) => {
                        config = new;
                        state.tallies().reloads_ok.fetch_add(1, Ordering::Relaxed);
                        log::info!("{} is in force", path.display());
                    }
                    Err(error) => {
                        state.tallies().reloads_failed.fetch_add(1, Ordering::Relaxed);
                        log::error!("the configuration in force stays: {error}");
                    }
                }
                notify::send("READY=1");
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if let Err(error) = state.sweep() {
            log::warn!("blocks that have ended could not be removed: {error}");
        }
        if reconciled.elapsed() >= RECONCILE {
            reconciled = Instant::now();
            if let Err(error) = state.reconcile() {
                log::warn!("the blocklist could not be read: {error}");
            }
        }
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            if let Err(error) = look_around(state, &config) {
                log::warn!("{error}");
            }
        }
    }
}

/// Attaches or adopts every stage of the configuration.
fn start_stages(state: &State, config: &Config) -> Result<()> {
    let wanted = wanted(state.pins(), config)?;
    let mut stages = Vec::new();
    let mut failures = Vec::new();
    for interface in &wanted {
        match attach(state.pins(), interface, config) {
            Ok(managed) => stages.push(managed),
            Err(error) => failures.push((interface.clone(), error)),
        }
    }
    if stages.is_empty()
        && let Some((_, error)) = failures.first()
    {
        return Err(error.clone());
    }
    for (_, error) in &failures {
        log::error!("{error}");
    }
    if wanted.is_empty() {
        log::warn!(
            "no interface has a stage and xdp.interfaces names none: nothing is filtered; `blitz-ctl attach \
             INTERFACE`, or name them and reload"
        );
    }
    let missing = failures.into_iter().map(|(interface, _)| interface).collect();
    state.manage(stages, missing, rules(config))?;
    let (blocked, _) = state.blocked();
    if blocked > 0 {
        log::info!("{blocked} sources are on the blocklist");
    }
    Ok(())
}

/// Those of the configuration, or those that are pinned when it names none.
fn wanted(pins: &Pins, config: &Config) -> Result<BTreeSet<String>> {
    match config.xdp.interfaces.as_slice() {
        [] => Ok(pins.interfaces()?.into_iter().collect()),
        named => Ok(named.iter().cloned().collect()),
    }
}

fn attach(pins: &Pins, interface: &str, config: &Config) -> Result<Managed> {
    let lock = pins.lock()?;
    let in_force = match Stage::open(pins, interface) {
        Ok(stage) => stage.in_force()?,
        Err(error) if error.kind() == Kind::NotAttached => InForce::default(),
        Err(error) => return Err(error),
    };
    let image = file::compile(config, &in_force)?;
    let attached = Stage::attach(pins, &lock, interface, config.xdp.mode, Some(&image))?;
    let report = &attached.report;
    let what = match report.kind {
        crate::stage::attach::AttachKind::New => "attached",
        crate::stage::attach::AttachKind::Replaced => "adopted, counters and lists go on",
        crate::stage::attach::AttachKind::Renewed => "adopted with a new link, counters and lists go on",
    };
    log::info!(
        "{interface}: {what}: program {}, {} mode ({}), {} services",
        report.program_id,
        report.mode,
        report.mode_reason,
        report.services
    );
    for note in &report.notes {
        log::warn!("{interface}: {note}");
    }
    Managed::new(attached.stage)
}

/// Puts a configuration in force. Every image is compiled before the first is applied.
fn reload(state: &State, config: &Config) -> Result<()> {
    let pins = state.pins();
    let wanted = wanted(pins, config)?;
    let managed = state.stages();
    let mut kept = Vec::new();
    let mut fresh = Vec::new();
    for interface in &wanted {
        // Opened anew: it may have been detached and attached by hand since.
        match Stage::open(pins, interface) {
            Ok(stage) if managed.iter().any(|m| m.stage().interface() == interface) => {
                let image = file::compile(config, &stage.in_force()?)?;
                kept.push((stage, image));
            }
            Ok(_) => fresh.push(interface),
            Err(error) if error.kind() == Kind::NotAttached => {
                file::compile(config, &InForce::default())?;
                fresh.push(interface);
            }
            Err(error) => return Err(error),
        }
    }
    let mut stages: Vec<Managed> = Vec::new();
    for (stage, image) in kept {
        let lock = pins.lock()?;
        let applied = stage.apply(&lock, &image).map_err(|error| {
            let done: Vec<&str> = stages.iter().map(|managed| managed.stage().interface()).collect();
            match done.as_slice() {
                [] => error,
                done => error.about(format!("in force on {} already, and not elsewhere", done.join(", "))),
            }
        })?;
        log::info!(
            "{}: {} services, {} limits, {} denied prefixes ({} of them added at run time)",
            stage.interface(),
            applied.services,
            applied.limits,
            applied.denied,
            applied.kept
        );
        stages.push(Managed::new(stage)?);
    }
    let mut missing = BTreeSet::new();
    for interface in fresh {
        match attach(pins, interface, config) {
            Ok(new) => stages.push(new),
            Err(error) => {
                log::error!("{error}");
                missing.insert(interface.clone());
            }
        }
    }
    for left in managed.iter().map(|managed| managed.stage().interface()) {
        if !wanted.contains(left) {
            log::warn!(
                "{left} is not in xdp.interfaces any more: its stage goes on filtering as it is; `blitz-ctl detach \
                 {left}` takes it away"
            );
        }
    }
    state.manage(stages, missing, rules(config))
}

/// What has changed without an order: interfaces that were missing and are there now, interfaces that came
/// back with another index and need a new link, stages that somebody attached by hand.
fn look_around(state: &State, config: &Config) -> Result<()> {
    let pins = state.pins();
    let managed = state.stages();
    let missing = state.missing();
    let mut found: Vec<Managed> = Vec::new();
    for interface in &missing {
        match attach(pins, interface, config) {
            Ok(new) => found.push(new),
            Err(error) => log::debug!("{error}"),
        }
    }
    for old in managed.iter() {
        let interface = old.stage().interface();
        if !pins.of(interface).exists() {
            // Detached by hand: it stays detached until the next reload.
            continue;
        }
        if old.is_replaced() {
            let new = Stage::open(pins, interface).and_then(Managed::new)?;
            log::info!("{interface}: adopted the stage that was attached by hand");
            found.push(new);
        } else if matches!(old.running(), Ok(None)) {
            match attach(pins, interface, config) {
                Ok(new) => found.push(new),
                Err(error) => log::debug!("{error}"),
            }
        }
    }
    if config.xdp.interfaces.is_empty() {
        let is_known = |name: &String| managed.iter().any(|managed| managed.stage().interface() == name);
        for interface in
            wanted(pins, config)?.into_iter().filter(|name| !is_known(name) && !missing.contains(name))
        {
            let new = Stage::open(pins, &interface).and_then(Managed::new)?;
            log::info!("{interface}: adopted the stage that was attached by hand");
            found.push(new);
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    let is_found = |name: &str| found.iter().any(|managed| managed.stage().interface() == name);
    let missing = missing.into_iter().filter(|name| !is_found(name)).collect();
    let mut stages = Vec::new();
    for name in managed.iter().map(|old| old.stage().interface()).filter(|name| !is_found(name)) {
        match Stage::open(pins, name).and_then(Managed::new) {
            Ok(again) => stages.push(again),
            Err(error) => log::warn!("{error}"),
        }
    }
    stages.extend(found);
    stages.sort_by(|a, b| a.stage().interface().cmp(b.stage().interface()));
    state.manage(stages, missing, rules(config))
}

fn rules(config: &Config) -> Rules {
    let list = &config.xdp.blocklist;
    Rules {
        entries_max: list.entries_max.into(),
        framing: list.framing_violations_per_minute != 0,
        limit: list.limit_refusals_per_minute != 0,
        exempt: config.xdp.allow.iter().chain(&config.xdp.management).copied().collect(),
    }
}
