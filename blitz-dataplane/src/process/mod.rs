//! The process model.
pub mod endpoints;
