//! The binary `blitz`: see [`blitz_dataplane::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

use blitz_dataplane::{cli, worker::DataPlane};

fn main() -> ExitCode {
    cli::main::<DataPlane>()
}
