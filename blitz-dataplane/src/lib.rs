//! The data plane of Blitz: runtime, IO, HTTP, proxy, and the process model around them.

pub mod afxdp;
pub mod cli;
pub mod control;
pub mod date;
pub mod exchange;
pub mod fields;
mod heap;
pub mod http1;
pub mod http2;
pub mod http3;
pub mod logging;
pub mod metrics;
pub mod process;
pub mod proxy;
pub mod proxy_protocol;
pub mod runtime;
pub mod secret;
pub mod segment;
pub mod siphash;
pub mod sys;
pub mod tls;
pub mod worker;
