//! The end-to-end harness: the gateway as a process, real and scripted upstreams, raw clients.
//!
//! Owns: starting, watching and ending what a test needs, on free ports, waiting on conditions with
//! deadlines. Does not own: what is expected, which each file of `tests/tests/` says for one behaviour.
//! A helper that cannot do its part panics with a sentence: the test has failed.

pub mod abuse;
pub mod backscatter;
pub mod bank;
pub mod bypass;
pub mod chromium;
pub mod client;
pub mod ctl;
pub mod flood;
pub mod frame;
pub mod gateway;
pub mod h2endpoint;
pub mod h2raw;
pub mod h3;
pub mod h3bundle;
pub mod h3raw;
pub mod haproxy;
pub mod hpack;
pub mod initial;
pub mod load;
pub mod matrix;
pub mod net;
pub mod netns;
pub mod nginx;
pub mod pair;
pub mod policy;
pub mod process;
pub mod python;
pub mod require;
mod sys;
pub mod tls;
pub mod upstream;
pub mod websocket;
pub mod wire;

pub use backscatter::Backscatter;
pub use bypass::Bypass;
pub use client::{Client, Response};
pub use ctl::Stage;
pub use flood::{Flood, Receiver};
pub use gateway::{Gateway, Setup};
pub use h2endpoint::H2Endpoint;
pub use h2raw::H2;
pub use h3::H3;
pub use h3bundle::Bundle;
pub use haproxy::Haproxy;
pub use initial::Initial;
pub use matrix::{Cell, Io, Mode};
pub use net::{beside, closed_port, free_port, wait_until};
pub use netns::Netns;
pub use nginx::Nginx;
pub use policy::Policy;
pub use process::Signal;
pub use sys::{lose_lent_frames, xdp_socket};
pub use tls::{Authority, Pki, TlsClient};
pub use upstream::{Request, Upstream};

/// How long a step may take that ought to take milliseconds. Long, because machines are shared: it is a
/// limit on hanging, and no test passes later because of it.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
