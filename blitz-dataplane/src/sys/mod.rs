//! The fence around system calls: every `unsafe` that is not the runtime's lies below here.
//!
//! Owns: thin, checked wrappers that return `io::Result`. Does not own: policy.

pub mod mapping;
pub mod net;
