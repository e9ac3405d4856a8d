//! Blitz.

pub mod date;
pub mod exchange;
pub mod fields;
pub mod http1;
