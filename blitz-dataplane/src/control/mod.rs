//! The control side: configuration, names, the admin API. The only tokio runtime of Blitz runs here.
//!
//! Owns: what may change while Blitz runs, and who may ask. Does not own: workers and sockets (see
//! [`crate::process`]).
//!
//! Everything that happens reaches one loop ([`run`]) as an [`Event`], one after the other; no handler waits.
//! What takes time (parsing, looking names up, writing to a worker) runs beside it and comes back as an
//! event.
#![forbid(unsafe_code)]

pub mod admin;
mod admission;
mod blocklist;
pub mod load;
pub mod names;
pub mod page;
mod qlog;
pub mod reload;
pub mod run;
mod steering;
#[cfg(test)]
mod tests;
pub mod views;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use blitz_ctl_protocol::message::Reason;
use tokio::sync::oneshot;

use crate::metrics::names::ReportOutcome;
use crate::process::messages::ConnectionRow;
use crate::process::supervisor::WorkerEvent;
use names::NameUpdate;
use reload::{Prepared, ReloadReport};

pub use run::{AdminChoice, Code, Options, Outcome, Startup, run};

/// Events that may wait (count). A sender waits for room, so that nothing is lost and nothing piles up.
pub const EVENTS_MAX: usize = 256;

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// From a worker's channel.
    Worker {
        /// Number of the worker.
        index: u32,
        /// Which start of it.
        incarnation: u64,
        /// What.
        event: WorkerEvent,
    },
    /// The delay before a worker's next start is over.
    Respawn {
        /// Number of the worker.
        index: u32,
        /// The start that ended.
        incarnation: u64,
    },
    /// A report for the kernel's blocklist is dealt with.
    Reported {
        /// What the source did.
        reason: Reason,
        /// What became of it.
        outcome: ReportOutcome,
    },
    /// A name was looked up again.
    Name(NameUpdate),
    /// The slow part of a reload is done.
    Prepared(Result<Box<Prepared>, String>),
    /// The workers have had their time to compile a generation.
    StageDeadline {
        /// The generation.
        generation: u64,
    },
    /// The workers have had their time to apply a generation.
    ReloadDeadline {
        /// The generation.
        generation: u64,
    },
    /// The workers have had their time to list their connections.
    ConnectionsDeadline {
        /// Number of the question.
        request: u64,
    },
    /// The workers have had their time to start.
    StartDeadline,
    /// The keys of QUIC may be others now.
    KeysDeadline,
    /// The workers have had their time to end.
    EndDeadline {
        /// How far the end had come.
        stage: EndStage,
    },
    /// A signal.
    Signal(Signal),
    /// From the admin API.
    Command(Command),
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndStage {
    /// Connections end after their exchange.
    Drain,
    /// Workers were told to return at once.
    Stop,
    /// Workers were killed.
    Kill,
}

/// A signal that the supervisor acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP.
    Reload,
    /// SIGTERM.
    Drain,
    /// SIGINT.
    Stop,
    /// SIGUSR2.
    Upgrade,
}

/// An order from the admin API.
#[derive(Debug)]
pub enum Command {
    /// Reload and answer when all workers have it.
    Reload(oneshot::Sender<Arc<ReloadReport>>),
    /// Drain and stop; answered when the workers have been told.
    Drain(oneshot::Sender<()>),
    /// List connections: rows with the number of their worker.
    ListConnections(oneshot::Sender<Vec<(u32, ConnectionRow)>>),
    /// Have a worker record what a connection does.
    Record {
        /// The worker.
        worker: u32,
        /// The connection's number there.
        connection: u64,
        /// Where to; closed when there is nothing to be recorded.
        pipe: OwnedFd,
    },
}
