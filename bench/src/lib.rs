//! What the programs of the bench share.
//!
//! Owns: the bare ring that the TCP floors run on, and a TLS client. Does not own: the runner (`main.rs`), which
//! measures programs from outside.

pub mod floor;
pub mod tls;
