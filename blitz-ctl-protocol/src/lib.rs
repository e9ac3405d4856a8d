//! The control socket of Blitz, version 0: what the daemon `blitz-ctl` and its clients say to each other.
//!
//! Owns: framing ([`frame`]), the messages ([`message`]), a connection with deadlines ([`connection`]), the
//! client ([`client`]), the server's side of the handshake ([`server`]), and descriptors over Unix sockets
//! ([`sys`]). Does not own: what the daemon does with a message (`blitz-ctl`), or when the data plane reports
//! a source (`blitz-dataplane`).
//!
//! All calls block, each with a deadline: an asynchronous program calls them on a thread of its own. There
//! is no asynchronous form, because a conversation is a few hundred bytes a second at most.
//!
//! ```text
//! client                                daemon
//!   | connect                             |  SO_PEERCRED: root, or the configured user; else one `error`
//!   | hello {"versions":[0],"name":..} -> |
//!   | <- welcome {"version":0}            |  or `error`: no common version
//!   | report {..} ->                      |  requests and answers in turn, one at a time
//!   | <- report_done {..}                 |  or `error {"sentence":..}`; the connection lives on
//! ```
//! A frame that breaks the format ends the connection; descriptors that came with it are closed.

pub mod client;
pub mod connection;
pub mod error;
pub mod frame;
pub mod message;
pub mod server;
pub mod sys;

pub use client::Client;
pub use connection::Connection;
pub use error::Error;
pub use sys::Credentials;

/// Where the daemon listens unless it is told otherwise.
pub const SOCKET_PATH: &str = "/run/blitz/ctl.sock";
/// The versions of the protocol that this build speaks.
pub const VERSIONS: &[u32] = &[0];
/// Descriptors that may travel with one frame (count). A frame with more ends the connection.
pub const DESCRIPTORS_MAX: usize = 8;
/// Octets of a frame behind its length word. A frame that announces more ends the connection before any of
/// it is read.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
