//! Blitz.
fn main() {}
