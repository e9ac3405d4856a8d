//! `cargo xtask ci`: what must pass before a merge.
//!
//! Owns: the list and the times. Does not own: any check; nothing is checked only here.

use std::time::Instant;

use crate::sh::{self, Args, Result};
use crate::{ebpf, faults, quickstart, setup, test, tidy};

pub(crate) const HELP: &str = "
cargo xtask ci [--checks-only]

fmt, clippy with warnings denied, tidy, the BPF object against its source, the faults, one
quickstart, and the tests, with BLITZ_REQUIRE_ALL=1 for all of them.

  --checks-only   all but the tests
";

pub(crate) fn main(mut args: Args) -> Result<()> {
    let checks_only = args.flag("--checks-only");
    args.finish()?;
    if !sh::requires_all() {
        return rerun_requiring_all(checks_only);
    }
    let none = || Args::new(Vec::new());
    let flag = |name: &str| Args::new(vec![name.to_owned()]);
    let mut times = Vec::new();
    let mut step = |name: &'static str, run: &mut dyn FnMut() -> Result<()>| {
        println!("\n== {name}");
        let begun = Instant::now();
        run().map_err(|error| format!("{name}: {error}"))?;
        times.push((name, begun.elapsed()));
        Ok::<(), String>(())
    };
    step("setup", &mut || setup::main(flag("--ebpf")))?;
    step("fmt", &mut || {
        sh::run(&mut sh::cargo(["fmt", "--all", "--check"]))?;
        ebpf::fmt_check()
    })?;
    step("tidy", &mut || tidy::main(none()))?;
    step("clippy", &mut || {
        sh::run(&mut sh::cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
        ebpf::clippy()
    })?;
    step("build-ebpf", &mut || ebpf::main(flag("--check")))?;
    step("faults", &mut || faults::main(none()))?;
    step("quickstart", &mut || quickstart::main(flag("--once")))?;
    if !checks_only {
        step("test", &mut || test::main(none()))?;
    }
    println!();
    for (name, time) in times {
        println!("ci: {name:<11} passed in {:>4} s", time.as_secs());
    }
    Ok(())
}

/// The variable must reach every child, and a process sets its own environment only before threads start.
fn rerun_requiring_all(checks_only: bool) -> Result<()> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut again = std::process::Command::new(program);
    again.arg("ci").args(checks_only.then_some("--checks-only")).env("BLITZ_REQUIRE_ALL", "1");
    sh::run(&mut again)
}
