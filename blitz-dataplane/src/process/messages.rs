//! What the supervisor and a worker tell each other.
//!
//! Owns: the messages. Does not own: their framing (see [`super::channel`]) or what becomes of them (see
//! [`super::worker`] and [`super::supervisor`]).
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use blitz_ctl_protocol::message::Reason;
use serde::{Deserialize, Serialize};

use super::endpoints::ResolvedEndpoints;
use crate::control::load::ConfigHead;

/// How a worker talks to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IoMode {
    /// io_uring where the kernel and the sandbox allow it, else epoll.
    #[default]
    Auto,
    /// io_uring, or no start.
    Uring,
    /// epoll.
    Epoll,
}

impl std::fmt::Display for IoMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        })
    }
}

/// From the supervisor to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// The first message. Descriptors: segment, master secret, text of the configuration, then as many between workers
    /// as [`BootMessage::relays`] says, then one listening socket for each of [`ConfigMessage::added`].
    Boot(Box<BootMessage>),
    /// A new configuration: compile it, answer with [`FromWorker::SnapshotReady`], use it when
    /// [`ToWorker::Swap`] comes. Descriptors: its text, then one listening socket for each of
    /// [`ConfigMessage::added`].
    Config(Box<ConfigMessage>),
    /// Use the configuration of this generation, which has been compiled. No descriptor.
    Swap {
        /// The generation.
        generation: u64,
    },
    /// The same configuration with other addresses, to be used at once. No descriptor.
    Endpoints {
        /// Grows with every change.
        generation: u64,
        /// The addresses.
        endpoints: ResolvedEndpoints,
    },
    /// Accept what is queued, close the listeners, end the connections, return. No descriptor.
    Drain {
        /// From now to the end of the last connection.
        deadline_ms: u64,
    },
    /// Return at once. No descriptor.
    Stop,
    /// Answer with [`FromWorker::Connections`]. No descriptor.
    ListConnections {
        /// Comes back in the answer.
        request: u64,
        /// Most rows wanted.
        rows_max: u32,
    },
    /// Record what an HTTP/3 connection does. Descriptor: the writing end of a pipe, non-blocking; it is closed when
    /// the connection ends, at once when there is none of that number.
    Record {
        /// [`ConnectionRow::id`].
        connection: u64,
    },
}

/// Who a worker is and what it begins with.
#[derive(Debug, Serialize, Deserialize)]
pub struct BootMessage {
    /// Its number, 0..workers.
    pub worker: u32,
    /// How many there are.
    pub workers: u32,
    /// How often this worker was started: 1 for the first.
    pub incarnation: u64,
    /// The processor to run on; none when there are more workers than processors and pinning would only hurt.
    pub core: Option<usize>,
    /// How to talk to the kernel.
    pub io: IoMode,
    /// `-l`, as `log` numbers it.
    pub log_level: LogLevel,
    /// `-t`: heads and sizes of exchanges go to the log.
    pub trace: bool,
    /// `--tls-trace` and `--tls-key-log`.
    pub tls: TlsDiagnosis,
    /// Seconds of an epoch of QUIC's connection IDs.
    pub cid_epoch_seconds: u32,
    /// Sockets between workers (count): see [`super::relays::Relays::sockets`].
    pub relays: usize,
    /// `--ctl-socket`.
    pub ctl_socket: PathBuf,
    /// The configuration to begin with; `removed` is empty.
    pub config: ConfigMessage,
}

/// What is told of TLS connections to whoever looks for a fault.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TlsDiagnosis {
    /// A line for each handshake goes to the log.
    pub trace: bool,
    /// The secrets of each connection go to this file.
    pub key_log: Option<PathBuf>,
}

/// A configuration with its generation.
#[derive(Debug, Serialize, Deserialize)]
pub struct ConfigMessage {
    /// Grows with every change.
    pub generation: u64,
    /// How to read the text.
    pub head: ConfigHead,
    /// Addresses of all endpoints.
    pub endpoints: ResolvedEndpoints,
    /// Listeners that the worker does not have yet, in the order of their descriptors.
    pub added: Vec<ListenerAddress>,
    /// Listeners that the worker closes.
    pub removed: Vec<BankPlace>,
}

/// What the socket of a listener carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SocketKind {
    /// TCP: HTTP/1 and HTTP/2.
    Stream,
    /// UDP: QUIC.
    Datagram,
}

/// Where clients reach a listener: what tells one bank of sockets from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BankPlace {
    /// What is carried.
    pub kind: SocketKind,
    /// The address as the configuration has it: `blitz_config::model::Listener::address`.
    pub address: SocketAddr,
}

/// One listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerAddress {
    /// What it carries.
    pub kind: SocketKind,
    /// The address as the configuration has it: `blitz_config::model::Listener::address`.
    pub configured: SocketAddr,
    /// The address that was bound; differs when the configured port is 0.
    pub bound: SocketAddr,
}

impl ListenerAddress {
    /// The place that it was bound for.
    pub fn place(&self) -> BankPlace {
        BankPlace { kind: self.kind, address: self.configured }
    }
}

impl std::fmt::Display for ListenerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            SocketKind::Stream => write!(f, "{}", self.bound),
            SocketKind::Datagram => write!(f, "{}/udp", self.bound),
        }
    }
}

/// `-l`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What went wrong and needs somebody.
    Err,
    /// What went wrong and was dealt with.
    Warn,
    /// What happened: starts, reloads, replaced workers.
    #[default]
    Info,
    /// Every connection and exchange.
    Debug,
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Err => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
        }
    }
}

/// From a worker to the supervisor. None carries a descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// This generation is compiled and waits for [`ToWorker::Swap`].
    SnapshotReady {
        /// The generation.
        generation: u64,
    },
    /// The loop uses this generation, or a later one.
    SnapshotApplied {
        /// The generation.
        generation: u64,
    },
    /// This generation cannot be used; the worker goes on with what it has.
    SnapshotRefused {
        /// The generation.
        generation: u64,
        /// A sentence.
        reason: String,
    },
    /// The answer to [`ToWorker::ListConnections`].
    Connections {
        /// That of the question.
        request: u64,
        /// The connections.
        rows: Vec<ConnectionRow>,
    },
    /// A source is to be blocked in the kernel.
    Report {
        /// Who, and why.
        report: BlockReport,
        /// Makes room for another when the message has left.
        #[serde(skip)]
        leaving: Leaving,
    },
    /// The last message of a worker that could not start or go on.
    Failed {
        /// A sentence.
        reason: String,
    },
}

/// A source that misbehaved on an established connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockReport {
    /// What it did.
    pub reason: Reason,
    /// The connection's own peer.
    pub peer: SocketAddr,
    /// Our address.
    pub local: SocketAddr,
    /// The rule that it broke last: an error's detail, or `limit:NAME`.
    pub note: String,
}

/// Counts a message as waiting until it is dropped, which is when it has been written.
#[derive(Debug, Default)]
pub struct Leaving(Option<Arc<AtomicUsize>>);

impl Leaving {
    /// Adds one to `waiting`, and takes it off when dropped.
    pub fn counted_by(waiting: Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(Some(waiting))
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(waiting) = &self.0 {
            waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// One downstream connection, as `/connections` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionRow {
    /// Unique within its worker.
    pub id: u64,
    /// The client.
    pub peer: SocketAddr,
    /// Our address.
    pub local: SocketAddr,
    /// What it is doing: a short, fixed word such as `idle`, `head`, `proxying`.
    pub state: String,
    /// Requests so far.
    pub requests: u64,
    /// Milliseconds since accept.
    pub age_ms: u64,
}
