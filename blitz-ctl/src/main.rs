//! The binary `blitz-ctl`: see [`blitz_ctl::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    blitz_ctl::cli::main()
}
