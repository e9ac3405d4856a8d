//! The privileged side of Blitz.
//!
//! Owns: loading and linking the XDP program, filling its maps, the control socket, the exporter and
//! the command line. Does not own: what the program decides (`blitz-ebpf-common`), or any connection
//! (`blitz-dataplane`).

pub mod allow;
pub mod apply;
pub mod blocklist;
pub mod capabilities;
pub mod cli;
pub mod config;
pub mod counters;
pub mod daemon;
pub mod deny;
pub mod error;
pub mod image;
pub mod kernel;
pub mod limits;
pub mod link_facts;
pub mod lock;
pub mod maps;
pub mod netlink;
pub mod object;
pub mod pins;
pub mod prefixes;
pub mod rehearsal;
pub mod reuseport;
pub mod rules;
pub mod stage;
pub mod steering;
pub mod sys;
pub mod twin;

pub use error::{Error, Kind, Result};
pub use pins::Pins;
pub use stage::Stage;
