//! The configuration of Blitz: a file, a validated model, and the plan between two models.
//!
//! Pure: text in, types out. No file is opened and no name is resolved here.
#![forbid(unsafe_code)]

pub mod model;

pub use model::Config;
