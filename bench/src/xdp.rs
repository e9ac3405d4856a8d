//! The kernel stage by itself and beside other filters.
//!
//! Owns: the private surroundings and what runs in them. Does not own: the two measurements (`stage.rs`:
//! cost over a bare drop by BPF_PROG_TEST_RUN; `wire.rs`: drops on a veth pair beside nftables and
//! xdp-filter), or the stage (`blitz-ctl`).
//!
//! The runner starts itself again in network and mount namespaces of its own, without names: interfaces,
//! rules, links and pins end with the last process inside, however it ends.

mod bare;
mod cases;
mod filters;
mod flood;
mod frames;
mod lists;
mod stage;
mod sys;
mod wire;

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use serde_json::{Value, json};

use crate::{Options, Result, machine};

pub(crate) use flood::{FLOOD, run as flood};

pub(crate) fn run(options: &Options) -> Result<Value> {
    if !options.inside {
        return Err(enter());
    }
    let wanted = |name: &str| options.scenario.as_deref().is_none_or(|scenario| scenario == name);
    if !wanted("stage") && !wanted("wire") {
        return Err("--scenario is stage or wire".to_owned());
    }
    let object = match &options.object {
        None => blitz_ctl::object::OBJECT.to_vec(),
        Some(path) => std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?,
    };
    // New mounts: sysfs shows the interfaces of the namespace it was mounted in, and pins stay private.
    command("mount", &["-t", "sysfs", "sysfs", "/sys"])?;
    command("mount", &["-t", "bpf", "bpf", "/sys/fs/bpf"])?;
    let mut facts =
        machine::facts_with(&[("nft", "nft", "--version"), ("xdp-filter", "xdp-filter", "load --version")]);
    facts["object"] = match &options.object {
        None => "embedded".into(),
        Some(path) => path.display().to_string().into(),
    };
    println!("{facts:#}");
    let cores = machine::two_cores()?;
    let stage = if wanted("stage") { stage::run(options, &object, cores.0)? } else { Value::Null };
    let wire = if wanted("wire") { wire::run(options, &object, cores)? } else { Value::Null };
    Ok(json!({
        "machine": facts, "pairs": options.pairs, "seconds": options.seconds, "core": cores.0,
        "load_core": cores.1, "stage": stage, "wire": wire,
    }))
}

/// Replaces this process by itself in new namespaces; why not, when it comes back.
fn enter() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    if uids.split_whitespace().nth(1) != Some("0") {
        return "bench xdp needs root: it loads BPF programs and makes network namespaces".to_owned();
    }
    // Seen in the first network namespace only. A kernel that always compiles has no other value than 1.
    let jit = std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
    if jit.trim() == "0" {
        return "the kernel interprets BPF; type sysctl net.core.bpf_jit_enable=1 and try again".to_owned();
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return format!("the runner's own path: {error}"),
    };
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--propagation", "private", "--"]).arg(program);
    let error = command.args(std::env::args_os().skip(1)).arg("--inside").exec();
    format!("unshare (util-linux): {error}")
}

/// Runs a program to its end; what it printed.
fn command(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program} {}: {}: {}", args.join(" "), output.status, said.trim()))
    }
}
