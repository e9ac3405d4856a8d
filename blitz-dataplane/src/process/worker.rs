//! A worker from its first line to its last: boot, helper thread, end.
//!
//! Owns: the boot message, what the worker gives up, the thread that compiles configurations. Does not own:
//! the loop (behind [`WorkerCode`]) or starting and replacing workers (see [`super::supervisor`]).
//!
//! Threads of a worker: the loop; a helper at low priority, which reads the channel, compiles snapshots and
//! posts orders; an outbox, which writes to the channel so that the loop never waits for the supervisor. The
//! end of the channel means that the supervisor is gone or wants no more: the loop is told to stop.
#![forbid(unsafe_code)]

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use blitz_config::Config;

use super::channel::{BlockingReceiver, ChannelError, Frame, send_blocking};
use super::endpoints::ResolvedEndpoints;
use super::messages::{
    BootMessage, ConfigMessage, FromWorker, IoMode, ListenerAddress, TlsDiagnosis, ToWorker,
};
use super::orders::{BoundListener, ConnectionsReply, MailboxFull, Order, Orders, Postbox, mailbox};
use super::reports::Reports;
use crate::control::load::ConfigText;
use crate::logging;
use crate::secret::Secret;
use crate::segment::{Segment, WorkerRows, WorkerState};
use crate::sys::{affinity, clock, privilege, signal};
use crate::tls::Files;

/// The code of a worker: how a configuration is compiled, and the loop.
pub trait WorkerCode: 'static {
    /// A compiled configuration: all that the loop needs, built beside it and swapped in by pointer.
    type Snapshot: Send + 'static;

    /// Label of each error kind in `blitz_errors_total`, by the index that [`WorkerRows::error`] takes.
    const ERROR_LABELS: &'static [&'static str];

    /// Compiles a configuration; `files` are those that it names.
    /// Pure; also called by the supervisor to test a new configuration.
    ///
    /// # Errors
    /// A sentence; the configuration is refused.
    fn compile(
        config: &Config,
        files: &Files,
        endpoints: &ResolvedEndpoints,
        generation: u64,
    ) -> Result<Self::Snapshot, String>;

    /// Serves until told to drain or stop. Polls `orders` (its descriptor), takes them, and calls
    /// [`Orders::applied`] for the snapshot in `boot` as soon as it accepts, and for every later one.
    ///
    /// # Errors
    /// A sentence: the loop could not start, or cannot go on. The worker is replaced.
    fn run(boot: Boot<Self::Snapshot>, orders: Orders<Self::Snapshot>) -> Result<(), WorkerError>;
}

/// What the loop begins with.
#[derive(Debug)]
pub struct Boot<S> {
    /// Number of this worker, 0..workers.
    pub worker: u32,
    /// How many there are.
    pub workers: u32,
    /// How often this worker was started: 1 for the first.
    pub incarnation: u64,
    /// The processor that the loop is pinned to.
    pub core: Option<usize>,
    /// How to talk to the kernel.
    pub io: IoMode,
    /// Whether heads and sizes of exchanges go to the log.
    pub trace: bool,
    /// What is told of TLS connections.
    pub tls: TlsDiagnosis,
    /// Seconds of an epoch of QUIC's connection IDs: the same for all until the restart.
    pub cid_epoch_seconds: u32,
    /// This worker's rows in the shared segment.
    pub rows: WorkerRows,
    /// The way to report sources for the kernel's blocklist.
    pub reports: Reports,
    /// The sockets between workers: its inbox, then the way into each one's. None when it reaches nobody.
    pub relays: Vec<OwnedFd>,
    /// The control socket of `blitz-ctl`.
    pub ctl_socket: PathBuf,
    /// Its listening sockets.
    pub listeners: Vec<BoundListener>,
    /// Generation of `snapshot`.
    pub generation: u64,
    /// The compiled configuration.
    pub snapshot: Box<S>,
    /// The root of all keys.
    pub secret: Secret,
}

/// Why a worker ended other than by order.
#[derive(Debug)]
pub struct WorkerError(pub String);

impl std::fmt::Display for WorkerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WorkerError {}

impl From<ChannelError> for WorkerError {
    fn from(error: ChannelError) -> Self {
        Self(error.to_string())
    }
}

/// Where a worker lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A process of its own, mode mp. `supervisor` is the process that must be its parent.
    Process {
        /// Process id of the supervisor.
        supervisor: u32,
    },
    /// A thread of the supervisor's process, mode sp.
    Thread,
}

/// Runs a worker to its end. Whatever happens, the channel is shut down as the very last thing: that is how
/// the supervisor learns of it.
///
/// # Errors
/// A sentence, which has also been sent to the supervisor.
pub fn worker_main<C: WorkerCode>(channel: UnixStream, place: Place) -> Result<(), WorkerError> {
    let closer = Closer(channel);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| work::<C>(&closer.0, place)));
    let result =
        result.unwrap_or_else(|panic| Err(WorkerError(format!("it panicked: {}", panic_text(&*panic)))));
    if let Err(WorkerError(reason)) = &result {
        let message = FromWorker::Failed { reason: reason.clone() };
        // The supervisor may be gone, which is then the reason itself.
        let _unheard = Frame::new(&message, Vec::new()).and_then(|frame| send_blocking(&closer.0, &frame));
    }
    result
}

/// The words of a panic, if it had any.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// Shuts the channel down on drop, also where other threads still hold copies of it.
struct Closer(UnixStream);

impl Drop for Closer {
    fn drop(&mut self) {
        let _already_closed = self.0.shutdown(Shutdown::Both);
    }
}

fn work<C: WorkerCode>(channel: &UnixStream, place: Place) -> Result<(), WorkerError> {
    let failed =
        |what: &'static str| move |error: std::io::Error| WorkerError(format!("cannot {what}: {error}"));
    if let Place::Process { supervisor } = place {
        give_up(supervisor)?;
    }
    let clone = || channel.try_clone().map_err(failed("copy the channel"));
    let mut receiver = BlockingReceiver::new(clone()?);
    let (boot, fds) = match receiver.receive::<ToWorker>()? {
        Some((ToWorker::Boot(boot), fds)) => (*boot, fds),
        Some((other, _)) => {
            return Err(WorkerError(format!("the first order was not to boot: {other:?}")));
        }
        // The supervisor ended before it could say anything.
        None => return Ok(()),
    };
    let BootMessage {
        worker,
        workers,
        incarnation,
        core,
        io,
        log_level,
        trace,
        tls,
        cid_epoch_seconds,
        relays,
        ctl_socket,
        config,
    } = boot;
    logging::name_thread(logging::Who::Worker(worker));
    if place != Place::Thread {
        log::set_max_level(log_level.into());
        // Executed as /proc/self/exe, it would be shown as "exe".
        if let Ok(name) = std::ffi::CString::new(format!("blitz-w{worker}")) {
            affinity::name_thread(&name).map_err(failed("name the process"))?;
        }
    }

    let mut fds = fds.into_iter();
    let mut next =
        |what: &str| fds.next().ok_or_else(|| WorkerError(format!("the boot message lacks {what}")));
    let segment = Segment::open(next("the segment")?).map_err(|error| WorkerError(error.to_string()))?;
    let secret = Secret::from_fd(next("the secret")?).map_err(failed("read the master secret"))?;
    let text = next("the configuration")?;
    let relays = (0..relays).map(|_| next("a socket between workers")).collect::<Result<_, _>>()?;
    let listeners = bound_listeners(&config.added, fds)?;
    let rows =
        segment.worker(worker).ok_or_else(|| WorkerError(format!("the segment has no row {worker}")))?;
    let status = rows.status();
    status.pid.store(
        if place == Place::Thread { affinity::thread_id() } else { std::process::id() },
        Ordering::Relaxed,
    );
    status.incarnation.store(incarnation, Ordering::Relaxed);
    status.heartbeat_ms.store(clock::monotonic_ms(), Ordering::Relaxed);
    status.set_state(WorkerState::Starting);

    // The helper and the outbox start before the pin, so that they may run on any allowed processor.
    let (outbox, outgoing) = std::sync::mpsc::channel();
    let out = clone()?;
    spawn("outbox", worker, move || send_outgoing(&out, &outgoing))?;
    let (orders, postbox) = mailbox(rows.clone(), outbox.clone()).map_err(failed("create the mailbox"))?;
    let (parsed, files, snapshot) = compile::<C>(&config, text).map_err(WorkerError)?;
    let generation = config.generation;
    let reports = Reports::new(outbox.clone());
    let helper = Helper::<C> { receiver, postbox, outbox, config: parsed, files, staged: None };
    spawn("helper", worker, move || helper.run())?;
    if let Some(core) = core
        && let Err(error) = affinity::pin(core)
    {
        log::warn!("cannot pin to processor {core}: {error}; the kernel will place this worker");
    }
    let snapshot = Box::new(snapshot);
    let boot = Boot {
        worker,
        workers,
        incarnation,
        core,
        io,
        trace,
        tls,
        cid_epoch_seconds,
        rows,
        reports,
        relays,
        ctl_socket,
        listeners,
        generation,
        snapshot,
        secret,
    };
    C::run(boot, orders)
}

/// What a worker process gives up before it reads a byte from a network.
fn give_up(supervisor: u32) -> Result<(), WorkerError> {
    let failed =
        |what: &'static str| move |error: std::io::Error| WorkerError(format!("cannot {what}: {error}"));
    signal::leave_to_supervisor().map_err(failed("ignore signals"))?;
    privilege::die_with_parent().map_err(failed("ask for the death signal"))?;
    // The supervisor may have died before the line above; then no signal comes.
    if privilege::parent() != supervisor {
        return Err(WorkerError("the supervisor was gone before this worker had started".to_owned()));
    }
    privilege::no_new_privileges().map_err(failed("set no-new-privileges"))?;
    privilege::drop_capabilities().map_err(failed("drop capabilities"))
}

fn spawn(what: &str, worker: u32, code: impl FnOnce() + Send + 'static) -> Result<(), WorkerError> {
    let builder =
        std::thread::Builder::new().name(format!("w{worker}-{what}")).stack_size(THREAD_STACK_BYTES);
    let code = move || {
        logging::name_thread(logging::Who::Worker(worker));
        code();
    };
    let spawned = builder.spawn(code).map(drop);
    spawned.map_err(|error| WorkerError(format!("cannot start the {what} thread: {error}")))
}

/// Stack of the two side threads. Parsing a configuration recurses by its nesting, which the parsers bound;
/// the pages are touched only when used.
const THREAD_STACK_BYTES: usize = 2 * 1024 * 1024;

fn send_outgoing(channel: &UnixStream, outgoing: &Receiver<FromWorker>) {
    while let Ok(message) = outgoing.recv() {
        let sent = Frame::new(&message, Vec::new()).and_then(|frame| send_blocking(channel, &frame));
        if let Err(error) = sent {
            log::debug!("nothing more can be told to the supervisor: {error}");
            return;
        }
    }
}

fn bound_listeners(
    addresses: &[ListenerAddress],
    fds: impl ExactSizeIterator<Item = OwnedFd>,
) -> Result<Vec<BoundListener>, WorkerError> {
    if addresses.len() != fds.len() {
        return Err(WorkerError(format!(
            "{} listeners came with {} descriptors",
            addresses.len(),
            fds.len()
        )));
    }
    Ok(addresses.iter().zip(fds).map(|(address, fd)| BoundListener { address: *address, fd }).collect())
}

fn compile<C: WorkerCode>(
    message: &ConfigMessage,
    text: OwnedFd,
) -> Result<(Config, Files, C::Snapshot), String> {
    let text = ConfigText::from_parts(message.head.clone(), text)
        .map_err(|error| format!("the configuration did not arrive: {error}"))?;
    let config = text.parse()?;
    let snapshot = C::compile(&config, text.files(), &message.endpoints, message.generation)?;
    Ok((config, text.files().clone(), snapshot))
}

/// The thread beside the loop.
struct Helper<C: WorkerCode> {
    receiver: BlockingReceiver,
    postbox: Postbox<C::Snapshot>,
    outbox: Sender<FromWorker>,
    /// The configuration in use, for changes that concern addresses only.
    config: Config,
    /// The files that it names.
    files: Files,
    /// A configuration that is compiled and waits for the order to use it.
    staged: Option<Staged<C::Snapshot>>,
}

struct Staged<S> {
    generation: u64,
    config: Config,
    files: Files,
    orders: Vec<Order<S>>,
}

impl<C: WorkerCode> Helper<C> {
    fn run(mut self) {
        if let Err(error) = affinity::lower_priority(HELPER_NICE) {
            log::debug!("the helper keeps its priority: {error}");
        }
        loop {
            let message = match self.receiver.receive::<ToWorker>() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => {
                    log::error!("{error}; this worker stops and will be replaced");
                    break;
                }
            };
            let (message, fds) = message;
            if let Err(refusal) = self.carry_out(message, fds) {
                let _ended = self.outbox.send(refusal);
            }
        }
        // A full mailbox belongs to a loop that is stuck; the supervisor kills what does not end.
        let _stuck = self.postbox.post(vec![Order::Stop]);
    }

    /// Turns one message into orders, or says why not.
    fn carry_out(&mut self, message: ToWorker, fds: Vec<OwnedFd>) -> Result<(), FromWorker> {
        let refuse = |generation| move |reason| FromWorker::SnapshotRefused { generation, reason };
        let full = |MailboxFull| "the loop takes no orders".to_owned();
        let plain = |reason| FromWorker::Failed { reason };
        match message {
            ToWorker::Boot(_) => Err(plain("a second boot message came".to_owned())),
            ToWorker::Config(message) => {
                let generation = message.generation;
                self.staged = None;
                self.staged = Some(Self::stage(*message, fds).map_err(refuse(generation))?);
                let _ended = self.outbox.send(FromWorker::SnapshotReady { generation });
                Ok(())
            }
            ToWorker::Swap { generation } => {
                let staged = self.staged.take().filter(|staged| staged.generation == generation);
                let staged = staged.ok_or_else(|| refuse(generation)("it was not compiled".to_owned()))?;
                self.postbox.post(staged.orders).map_err(full).map_err(refuse(generation))?;
                self.config = staged.config;
                self.files = staged.files;
                Ok(())
            }
            ToWorker::Endpoints { generation, endpoints } => {
                let snapshot = C::compile(&self.config, &self.files, &endpoints, generation)
                    .map_err(refuse(generation))?;
                let order = Order::Snapshot { generation, snapshot: Box::new(snapshot) };
                self.postbox.post(vec![order]).map_err(full).map_err(refuse(generation))
            }
            ToWorker::Drain { deadline_ms } => {
                let now = Instant::now();
                let deadline = now.checked_add(Duration::from_millis(deadline_ms)).unwrap_or(now);
                self.postbox.post(vec![Order::Drain { deadline }]).map_err(full).map_err(plain)
            }
            ToWorker::Stop => self.postbox.post(vec![Order::Stop]).map_err(full).map_err(plain),
            ToWorker::ListConnections { request, rows_max } => {
                let reply = ConnectionsReply::new(request, rows_max, self.outbox.clone());
                self.postbox.post(vec![Order::ListConnections(reply)]).map_err(full).map_err(plain)
            }
            ToWorker::Record { connection } => {
                let pipe = fds.into_iter().next();
                let pipe = pipe.ok_or_else(|| plain("the message lacks the pipe".to_owned()))?;
                self.postbox.post(vec![Order::Record { connection, pipe }]).map_err(full).map_err(plain)
            }
        }
    }

    fn stage(message: ConfigMessage, fds: Vec<OwnedFd>) -> Result<Staged<C::Snapshot>, String> {
        let mut fds = fds.into_iter();
        let text = fds.next().ok_or("the message lacks the configuration")?;
        let added = bound_listeners(&message.added, fds).map_err(|error| error.to_string())?;
        let (config, files, snapshot) = compile::<C>(&message, text)?;
        let generation = message.generation;
        let mut orders = vec![Order::Snapshot { generation, snapshot: Box::new(snapshot) }];
        if !added.is_empty() || !message.removed.is_empty() {
            orders.push(Order::Listeners { added, removed: message.removed });
        }
        Ok(Staged { generation, config, files, orders })
    }
}

/// Far below the loop, above idle work.
const HELPER_NICE: i32 = 10;
