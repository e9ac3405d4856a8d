//! `blitz-ctl run`: the daemon.
//!
//! Owns: what goes on while nobody types a command: the control socket, the blocklist and its ends, the
//! exporter, reloads. Does not own: the stage itself, which filters with and without a daemon (see
//! [`crate::stage`]), or the protocol of the socket (`blitz_ctl_protocol`).
//!
//! A daemon that dies takes nothing with it: links, programs and maps are pinned, blocks carry their own
//! end, counters live in the kernel. The next daemon adopts all of it.
#![forbid(unsafe_code)]

mod arguments;
pub mod blocklist;
pub mod census;
pub mod exporter;
pub mod exposition;
pub mod logging;
pub mod names;
pub mod notify;
mod own;
pub mod peers;
mod queues;
mod run;
pub mod server;
mod snapshot;
pub mod stages;
pub mod state;
mod steering;

pub use arguments::Arguments;
pub use run::{Options, run};
