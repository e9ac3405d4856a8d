//! The fence around system calls: every `unsafe` that is not the runtime's lies below here.
//!
//! Owns: thin, checked wrappers that return `io::Result`. Does not own: policy.

pub mod affinity;
pub mod boring;
pub mod clock;
pub mod eventfd;
pub mod heap;
pub mod mapping;
pub mod memfd;
pub mod mmap;
pub mod net;
pub mod pipe;
pub mod privilege;
pub mod reuseport;
pub mod rlimit;
pub mod signal;
pub mod socket;
pub mod wipe;
pub mod xdp;

/// Bytes and descriptors over a Unix socket: one home for both protocols that pass descriptors.
pub use blitz_ctl_protocol::sys as fdpass;
