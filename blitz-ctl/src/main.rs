//! `blitz-ctl`.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
enum Command {
    Run(blitz_ctl::daemon::Arguments),
}

fn main() -> ExitCode {
    let Command::Run(arguments) = Command::parse();
    match arguments.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blitz-ctl: {error}");
            ExitCode::from(error.kind().exit_code())
        }
    }
}
