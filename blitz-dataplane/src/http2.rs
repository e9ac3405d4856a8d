//! HTTP/2 (RFC 9113): both ends of a connection on the h2 crate.
//!
//! The crate frames, decompresses and keeps windows. In front of it stands the frame meter ([`Meter`]), which sees
//! every frame header in both directions; behind it each request is a task of its own that speaks to the proxy
//! through the same traits as HTTP/1.
//!
//! Owns: telling HTTP/2 from HTTP/1 ([`detect`]), the byte stream under the crate (`io.rs`), the meter, the life of a
//! connection ([`server`]), a request and its answer (`stream.rs`), small pieces of its body
//! put together (`absorb.rs`), heads (`head.rs`); and the upstream end ([`client`]
//! and its `client_io.rs`, `client_head.rs`). Does not own: what a request
//! means (`proxy`), what an error means (`exchange/error.rs`; its HTTP/2 codes are in `error.rs`).

#![forbid(unsafe_code)]

mod absorb;
pub mod client;
mod client_head;
mod client_io;
pub mod detect;
mod error;
pub mod frame;
mod gather;
mod head;
mod io;
mod meter;
pub mod server;
mod stream;
mod streams;
mod values;
mod walk;

pub use error::code;
pub use meter::{Abuse, BURST_SECONDS, Fault, Meter, Sent, Stop};
pub use walk::{Step, Walk};
