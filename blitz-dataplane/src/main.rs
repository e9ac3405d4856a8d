//! The binary `blitz`: see [`blitz_dataplane::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

use blitz_dataplane::{cli, worker::DataPlane};
use mimalloc::MiMalloc;

/// For what Rust allocates; the C libraries keep the system's.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    cli::main::<DataPlane>()
}
