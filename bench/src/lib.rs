//! What the floors share.
//!
//! Owns: the bare ring that both floors run on. Does not own: the runner (`main.rs`), which measures
//! programs from outside and needs nothing of this.

pub mod floor;
