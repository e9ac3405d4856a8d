//! The data plane of Blitz: runtime, IO, HTTP, proxy, process model, control thread.

pub mod metrics;
pub mod segment;
pub mod sys;
