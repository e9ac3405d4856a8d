//! What the programs of the bench share.
//!
//! Owns: the bare ring that the TCP floors run on, a TLS client, what a load of HTTP/3 is made of. Does not own: the
//! runner (`main.rs`), which measures programs from outside.

pub mod floor;
pub mod qpack;
pub mod tls;
pub mod udp;
