//! Metrics: names and the text that Prometheus reads.
//!
//! Owns: the table of names ([`names`]) and the exposition ([`exposition`]). Does not own: the slots, which
//! lie in the shared segment (see [`crate::segment`]), or the HTTP side (see [`crate::control`]).
#![forbid(unsafe_code)]

pub mod exposition;
pub mod names;

pub use exposition::{EndpointLabels, Exposition};
pub use names::{Histogram, Kind, Metric};
