//! The command line of `blitz-ctl`.
//!
//! Owns: verbs, flags, help, exit codes, which stages a verb is about. Does not own: what the verbs do
//! to a stage (see [`crate::stage`] and its neighbours).
#![forbid(unsafe_code)]

mod attach;
mod limit;
mod lists;
mod output;
mod parse;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::error::{Error, Kind, Result};
use crate::lock::Lock;
use crate::pins::{self, Pins};
use crate::stage::Stage;
use output::Output;

/// The kernel stage of Blitz: attach it, see it, block, allow and limit.
#[derive(Debug, Parser)]
#[command(name = "blitz-ctl", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Arguments {
    /// One JSON document on standard output instead of words; errors too, on standard error
    #[arg(long, global = true)]
    json: bool,

    /// Where stages are pinned; for tests
    #[arg(long, global = true, value_name = "DIR", default_value = pins::BASE, hide = true)]
    pins: PathBuf,

    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  blitz-ctl check edge.toml && blitz-ctl attach eth0 --config edge.toml
      Check a configuration, then put its packet policy in front of eth0.
  blitz-ctl status; blitz-ctl counters
      What is attached, and what it did.
  blitz-ctl deny add 198.51.100.7 --ttl 10m --reason 'scans /wp-login.php'
      Block one source for ten minutes.
  blitz-ctl deny add 203.0.113.0/24 && blitz-ctl deny list
      Deny a network until it is taken off the list.
  blitz-ctl limit set per_source --by source --packets-per-second 20000
      One packet budget for each source, for every service.
  blitz-ctl detach eth0
      Take the stage away; traffic flows untouched from then on.

What is attached goes on without this program: it is pinned below /sys/fs/bpf/blitz/.
Exit codes: 0 done, 1 the machine refused, 2 wrong command line or configuration, 3 rights are missing,
4 no such interface, stage or entry, 5 another owner or layout is in the way, 6 a table is full,
7 the kernel cannot.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Puts the stage on an interface, or a new program into the one that is there
    Attach(attach::Attach),
    /// Takes the stage of an interface away; traffic flows untouched
    Detach(attach::Detach),
    /// Shows what is attached, and how full its tables are
    Status(show::Status),
    /// Shows what was counted: verdicts, rules, faults
    Counters(show::Counters),
    /// Denies sources: prefixes, or single ones for a time
    #[command(subcommand)]
    Deny(lists::Deny),
    /// Lets sources pass the deny and block lists and the limits by source
    #[command(subcommand)]
    Allow(lists::Allow),
    /// Sets packet limits
    #[command(subcommand)]
    Limit(limit::Limit),
    /// Shows which packets belong to which service
    #[command(subcommand)]
    Route(show::Route),
    /// Checks a configuration: what it would put into the kernel, and the memory that takes
    Check(attach::Check),
    /// Keeps stages in line with a configuration; serves the control socket and the metrics
    Run(crate::daemon::Arguments),
}

/// Which stages a verb is about.
#[derive(Clone, Debug, Args)]
struct Selection {
    /// Only the stage of this interface [default: every stage]
    #[arg(short, long, value_name = "IFACE")]
    interface: Option<String>,
}

/// What every verb works with.
#[derive(Debug)]
struct Context {
    pins: Pins,
    output: Output,
}

/// The program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Standard output or error may be closed; there is no third place to say so.
            let _unheard = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let context = Context { pins: Pins::at(arguments.pins), output: Output { json: arguments.json } };
    match arguments.verb.execute(&context) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            context.output.error(&error);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

impl Verb {
    fn execute(self, context: &Context) -> Result<()> {
        match self {
            Self::Attach(verb) => verb.execute(context),
            Self::Detach(verb) => verb.execute(context),
            Self::Status(verb) => verb.execute(context),
            Self::Counters(verb) => verb.execute(context),
            Self::Deny(verb) => verb.execute(context),
            Self::Allow(verb) => verb.execute(context),
            Self::Limit(verb) => verb.execute(context),
            Self::Route(verb) => verb.execute(context),
            Self::Check(verb) => verb.execute(context),
            Self::Run(verb) => verb.execute(context.pins.clone()),
        }
    }
}

impl Context {
    /// The stages that were selected; at least one.
    fn stages(&self, selection: &Selection) -> Result<Vec<Stage>> {
        if let Some(interface) = &selection.interface {
            return Ok(vec![Stage::open(&self.pins, interface)?]);
        }
        let stages = Stage::open_all(&self.pins)?;
        match stages.is_empty() {
            false => Ok(stages),
            true => Err(Error::new(
                Kind::NotAttached,
                "no interface has a kernel stage",
                "blitz-ctl attach INTERFACE --config FILE",
            )),
        }
    }

    /// Changes every selected stage under the writers' lock. When one fails, those before it stay changed,
    /// and the error says which.
    fn change<T>(
        &self,
        selection: &Selection,
        mut change: impl FnMut(&Stage, &Lock) -> Result<T>,
    ) -> Result<Vec<(String, T)>> {
        // Whether there is a stage at all is told at once; which it is, under the lock: it may be taken away and
        // another made by the writer that has it.
        self.stages(selection)?;
        let lock = self.pins.lock()?;
        let stages = self.stages(selection)?;
        let mut done: Vec<(String, T)> = Vec::new();
        for stage in &stages {
            match change(stage, &lock) {
                Ok(outcome) => done.push((stage.interface().to_owned(), outcome)),
                Err(error) if done.is_empty() => return Err(error),
                Err(error) => {
                    let names: Vec<&str> = done.iter().map(|(name, _)| name.as_str()).collect();
                    return Err(Error::new(
                        error.kind(),
                        format!("{} (changed already: {})", error.cause(), names.join(", ")),
                        error.remedy(),
                    ));
                }
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_flag_is_explained() {
        let mut command = Arguments::command();
        command.build();
        command.clone().debug_assert();
        fn explained(command: &clap::Command) {
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(explained);
        }
        explained(&command);
    }
}
