//! The process model: one supervisor that owns the sockets, workers that own what they accept.
//!
//! Owns: starting, replacing and stopping workers, the channel to them, the sockets they accept from. Does
//! not own: what a worker does with a connection (`worker`), or configuration, names and the admin API
//! ([`crate::control`]).

pub mod channel;
pub mod endpoints;
pub mod launch;
pub mod listeners;
pub mod messages;
pub mod orders;
pub mod relays;
pub mod reports;
pub mod respawn;
pub mod supervisor;
pub mod worker;

pub use endpoints::{ResolvedAddress, ResolvedEndpoints};
pub use messages::{BankPlace, ConnectionRow, IoMode, SocketKind};
pub use orders::{BoundListener, ConnectionsReply, Order, Orders};
pub use reports::Reports;
pub use worker::{Boot, WorkerCode, WorkerError, worker_main};
