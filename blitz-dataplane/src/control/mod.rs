//! The control side: configuration, names, the admin API. The only tokio runtime of Blitz runs here.
//!
//! Owns: what may change while Blitz runs, and who may ask. Does not own: workers and sockets (see
//! [`crate::process`]).
#![forbid(unsafe_code)]

pub mod load;
