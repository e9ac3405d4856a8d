//! The data plane of Blitz: runtime, IO, HTTP, proxy, process model, control thread.

pub mod cli;
pub mod control;
pub mod logging;
pub mod metrics;
pub mod process;
pub mod secret;
pub mod segment;
pub mod sys;
