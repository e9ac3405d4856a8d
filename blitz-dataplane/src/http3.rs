//! HTTP/3 (RFC 9114) over QUIC (RFC 9000), for clients, on quiche.
//!
//! quiche has no socket and no clock of its own: a listener ([`listener`]) gives each datagram to the connection that
//! its destination connection ID names; each connection is a task ([`server`]) that lets quiche handle time, starts a
//! task for each request (`stream.rs`), and sends what quiche has to send while the socket takes it. What cannot be
//! sent yet stays in quiche, within the congestion window.
//!
//! Owns: that, heads (`head.rs`), early data (`early.rs`), what an unproven address may get (`allowance.rs`), Retry
//! (`retry.rs`), keys and connection IDs ([`keys`]), the way to the worker that a merged datagram belongs to
//! ([`relay`]). Does not own: what a request means (`proxy`), certificates (`tls::quic`), the layout of connection IDs
//! and the choice of a worker (`blitz_ebpf_common`, `docs/quic.md`), sockets (`process::listeners`, `runtime`).

#![forbid(unsafe_code)]

mod allowance;
mod connection;
mod early;
mod error;
mod head;
pub mod keys;
pub mod listener;
mod outlet;
pub mod paths;
mod priority;
mod qlog;
pub mod relay;
mod retry;
mod rotation;
mod server;
mod stream;

pub use error::{Code, code};
pub use keys::{GENERATION, Place, QuicKeys};
