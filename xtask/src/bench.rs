//! `cargo xtask bench`: builds the gateway, the floors and the runner in release, then runs it.
//!
//! Owns: what must be there first. Does not own: the measurement (see `bench/src/`).

use std::process::Command;

use crate::setup;
use crate::sh::{self, Args, Result};

pub(crate) const HELP: &str = "
cargo xtask bench h1 [--pairs N] [--seconds S] [--quick] [--scenario direct|proxied]
cargo xtask bench h2 [--pairs N] [--seconds S] [--quick] [--scenario direct|proxied] [--only NAMES]
cargo xtask bench h3 [--pairs N] [--seconds S] [--quick] [--scenario direct|proxied|bulk] [--only NAMES]
cargo xtask bench tls [--pairs N] [--seconds S] [--quick] [--only NAMES]
                      [--scenario full|resumed|full-mlkem|resumed-mlkem]
cargo xtask bench idle [--connections N] [--scenario plain|tls|h2]
cargo xtask bench abuse [--seconds S] [--only NAMES]
cargo xtask bench xdp [--pairs N] [--seconds S] [--quick] [--scenario stage|wire] [--object FILE]

  h1     HTTP/1.1, keep-alive, 64 connections: the gateway beside nginx, haproxy and the
         floors, each with one worker on core 0, the load and the upstream on core 1,
         interleaved; writes target/bench/h1.json
  h2     HTTP/2 over TLS 1.3, 16 connections with 32 streams (h2load): beside nginx, haproxy,
         h2o, Envoy and the h2 crate over memory, likewise; writes target/bench/h2.json
  h3     HTTP/3, 16 connections with 32 streams (load_h3): beside our own HTTP/2, both ways of
         talking to the kernel, Envoy, Caddy and quiche over memory, likewise; then bulk
         downloads, in MB per CPU-second; as root also behind a stage on a veth pair, by
         io_uring, epoll and AF_XDP (link); writes target/bench/h3.json
  tls    TLS 1.3 handshakes, full and resumed, X25519 and X25519MLKEM768: beside the same
         peers, likewise; writes target/bench/tls.json
  idle   memory of each idle connection in clear, with TLS, with HTTP/2 over TLS, beside
         nginx and haproxy; writes target/bench/idle.json
  abuse  every abuse of HTTP/2 at full speed from one thread against one worker, beside 500
         good requests a second on a fixed schedule (10 s each); fails when a good one does,
         when memory does not come back, when an attacker is not ended as it has to be;
         writes target/bench/abuse.json
  xdp    the kernel stage, as root: ns per packet over a bare XDP_DROP (stage), and drops on
         a veth pair beside nftables, xdp-filter and the bare drop (wire), interleaved, in
         private namespaces that leave nothing behind; writes target/bench/xdp.json

  --pairs N         rounds in which each program runs once (7)
  --seconds S       length of one measured run, after 1 s of warming up (3)
  --quick           2 rounds of 1 s: to see that it works; its figures mean nothing
  --scenario NAME   only one of them
  --only NAMES      only these servers, with commas: blitz,nginx,haproxy,h2o,envoy (h3:
                    blitz,blitz-epoll,envoy,caddy); or only these attacks
  --object FILE     another BPF object than the embedded one
  --connections N   how many idle connections (10000)
  --without-blitz   only the peers and the floors

h2o, Envoy and Caddy are left out where they are not installed (cargo xtask setup --bench).
";

/// Refuses what the runner would refuse after minutes of building it.
fn check(words: &[String]) -> Result<()> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = match word.as_str() {
            "--quick" | "--without-blitz" => continue,
            "--pairs" | "--seconds" | "--connections" | "--scenario" | "--only" | "--object" => words.next(),
            _ => return Err(format!("{word:?} is not known here; see --help")),
        };
        let value = value.ok_or_else(|| format!("{word} wants a value; see --help"))?;
        let is_number = matches!(word.as_str(), "--pairs" | "--seconds" | "--connections");
        if is_number && value.parse::<u32>().is_err() {
            return Err(format!("{word} {value}: a whole number is wanted"));
        }
    }
    Ok(())
}

pub(crate) fn main(args: Args) -> Result<()> {
    let words = args.rest();
    if !matches!(
        words.first().map(String::as_str),
        Some("h1" | "h2" | "h3" | "tls" | "idle" | "abuse" | "xdp")
    ) {
        return Err("which one, h1, h2, h3, tls, idle, abuse or xdp? See --help".to_owned());
    }
    check(words.get(1..).unwrap_or_default())?;
    let missing = setup::ensure(setup::Scope::Bench)?;
    if !missing.is_empty() {
        return Err(format!("missing: {}", missing.join(", ")));
    }
    let is_xdp = words.first().is_some_and(|word| word == "xdp");
    if is_xdp && !sh::is_root() {
        return Err("bench xdp needs root: it loads BPF programs and makes network namespaces".to_owned());
    }
    // The XDP stage needs the library only, which is part of the runner.
    if !is_xdp && !words.iter().any(|word| word == "--without-blitz") {
        let mut build = sh::cargo(["build", "--release", "-p", "blitz-dataplane", "--bin", "blitz"]);
        if words.first().is_some_and(|word| word == "h3") && sh::is_root() {
            build.args(["-p", "blitz-ctl", "--bin", "blitz-ctl"]);
        }
        sh::run(&mut build)?;
    }
    sh::run(&mut sh::cargo(["build", "--release", "-p", "blitz-bench"]))?;
    let programs = sh::target_dir().join("release");
    let mut runner = Command::new(programs.join("blitz-bench"));
    // The harness of the tests starts what this says.
    runner.env("BLITZ_BIN", programs.join("blitz")).env("BLITZ_CTL_BIN", programs.join("blitz-ctl"));
    runner.args(words).arg("--out").arg(sh::target_dir().join("bench")).arg("--programs").arg(programs);
    sh::run(&mut runner)
}
