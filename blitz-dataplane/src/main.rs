//! The binary `blitz`: see [`blitz_dataplane::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

use blitz_dataplane::sys::heap::Allocator;
use blitz_dataplane::{cli, worker::DataPlane};

/// For what Rust allocates; the C libraries keep the system's.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    cli::main::<DataPlane>()
}
