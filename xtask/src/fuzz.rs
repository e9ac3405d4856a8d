//! `cargo xtask fuzz`: every fuzz target for a bounded time.
//!
//! Owns: which targets run, for how long, on which corpus. Does not own: the targets (`fuzz/`), or the
//! replay of their seeds, which is an ordinary test.

use std::process::Command;

use crate::setup;
use crate::sh::{self, Args, Result};

pub(crate) const HELP: &str = "
cargo xtask fuzz [TARGET] [--seconds N]

Runs one target, or each in turn, for N seconds (60). The committed seeds lie in
fuzz/seeds/TARGET; what a run finds beyond them goes to fuzz/corpus-work/TARGET. The
target `canary` must fail: it shows that a fault would be reported.
";

/// The target that has a fault on purpose.
const CANARY: &str = "canary";

pub(crate) fn main(mut args: Args) -> Result<()> {
    let seconds = args.number("--seconds")?.unwrap_or(60);
    let wanted = args.positional();
    args.finish()?;
    let missing = setup::fuzz_tools();
    if !missing.is_empty() {
        return Err(format!("missing: {}", missing.join(", ")));
    }
    let manifest = sh::root().join("fuzz/Cargo.toml");
    let text =
        std::fs::read_to_string(&manifest).map_err(|error| format!("{}: {error}", manifest.display()))?;
    let all = targets(&text);
    let chosen = match wanted {
        None => all,
        Some(name) if all.contains(&name) => vec![name],
        Some(name) => return Err(format!("no target {name:?}; there are {}", all.join(", "))),
    };
    for target in chosen {
        let command = &mut command(&target, seconds)?;
        if target == CANARY {
            // A build that fails must not look like the fault that is expected.
            let mut build = cargo_fuzz();
            sh::run(build.args(["build", &target]))?;
            if sh::run(command).is_ok() {
                return Err("the canary lives: faults are not reported".to_owned());
            }
            println!("fuzz: the canary failed, as it must");
        } else {
            sh::run(command)?;
        }
    }
    Ok(())
}

/// rustup's `cargo`, which must choose the toolchain again.
fn cargo_fuzz() -> Command {
    let mut command = Command::new("cargo");
    command.args(["+nightly", "fuzz"]).current_dir(sh::root());
    for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC"] {
        command.env_remove(name);
    }
    command
}

fn command(target: &str, seconds: u64) -> Result<Command> {
    let work = sh::root().join("fuzz/corpus-work").join(target);
    std::fs::create_dir_all(&work).map_err(|error| format!("{}: {error}", work.display()))?;
    let mut command = cargo_fuzz();
    // libFuzzer writes what it finds to the first folder, and only reads the others.
    command.args(["run", target]).arg(&work);
    let seeds = sh::root().join("fuzz/seeds").join(target);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    command.arg("--").arg(format!("-max_total_time={seconds}"));
    Ok(command)
}

/// The names of the `[[bin]]` tables.
fn targets(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut in_bin = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            in_bin = line == "[[bin]]";
        } else if let Some((key, value)) = line.split_once('=')
            && in_bin
            && key.trim() == "name"
        {
            names.push(value.trim().trim_matches('"').to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    #[test]
    fn targets_are_the_names_of_bins_only() {
        let text =
            "[package]\nname = \"fuzz\"\n[[bin]]\nname = \"head\"\npath = \"a\"\n[[bin]]\nname=\"chunked\"\n";
        assert_eq!(super::targets(text), ["head", "chunked"]);
    }
}
