//! The data plane of Blitz: runtime, IO, HTTP, proxy, and the process model around them.

pub mod runtime;
pub mod sys;
