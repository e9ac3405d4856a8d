//! `blitz-ctl`.

fn main() {}
