//! `cargo xtask`: every developer command of Blitz.
//!
//! Owns: the command line and which command runs. Does not own: the commands, one module each.
//! The standard library only, so that a first run builds in seconds; each command prints what it runs.
#![forbid(unsafe_code)]

mod bench;
mod ci;
mod ebpf;
mod faults;
mod fuzz;
mod guard;
mod quickstart;
mod sample;
mod setup;
mod sh;
mod test;
mod tidy;

use std::process::ExitCode;

use sh::{Args, Result};

/// One subcommand: its name, a line for the overview, its own help, and what it does.
struct Command {
    name: &'static str,
    about: &'static str,
    help: &'static str,
    run: fn(Args) -> Result<()>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "setup",
        about: "install or name each missing system package",
        help: setup::HELP,
        run: setup::main,
    },
    Command {
        name: "build-ebpf",
        about: "build the BPF object, or check the committed one",
        help: ebpf::HELP,
        run: ebpf::main,
    },
    Command {
        name: "quickstart",
        about: "build, start the gateway before two sample upstreams, make requests",
        help: quickstart::HELP,
        run: quickstart::main,
    },
    Command { name: "test", about: "set up, build and run every test", help: test::HELP, run: test::main },
    Command {
        name: "faults",
        about: "apply each deliberate fault and see that its test catches it",
        help: faults::HELP,
        run: faults::main,
    },
    Command {
        name: "bench",
        about: "measure beside the peers and the floors",
        help: bench::HELP,
        run: bench::main,
    },
    Command {
        name: "fuzz",
        about: "run the fuzz targets for a bounded time",
        help: fuzz::HELP,
        run: fuzz::main,
    },
    Command { name: "tidy", about: "check what reviewers tire of", help: tidy::HELP, run: tidy::main },
    Command { name: "ci", about: "everything that must pass before a merge", help: ci::HELP, run: ci::main },
];

fn main() -> ExitCode {
    if std::env::var_os(ebpf::identity::VARIABLE).is_some() {
        let Err(message) = ebpf::identity::become_rustc() else {
            return ExitCode::SUCCESS;
        };
        eprintln!("xtask as a wrapper of rustc: {message}");
        return ExitCode::FAILURE;
    }
    let mut words = std::env::args().skip(1);
    let Some(name) = words.next() else {
        overview();
        return ExitCode::FAILURE;
    };
    if matches!(name.as_str(), "-h" | "--help" | "help") {
        overview();
        return ExitCode::SUCCESS;
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("xtask: there is no command {name:?}\n");
        overview();
        return ExitCode::FAILURE;
    };
    let words: Vec<String> = words.collect();
    if words.iter().any(|word| word == "-h" || word == "--help") {
        println!("{}", command.help.trim());
        return ExitCode::SUCCESS;
    }
    match (command.run)(Args::new(words)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask {name}: {message}");
            ExitCode::FAILURE
        }
    }
}

fn overview() {
    println!("cargo xtask COMMAND [--help]\n");
    for command in COMMANDS {
        println!("  {:<11} {}", command.name, command.about);
    }
}
