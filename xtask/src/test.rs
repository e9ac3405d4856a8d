//! `cargo xtask test`: set up, build the programs, run every test of the workspace.
//!
//! Owns: the order and the report of skipped tests. Does not own: the rule by which a test skips
//! (see `tests/src/require.rs`).

use crate::setup;
use crate::sh::{self, Args, Result};

pub(crate) const HELP: &str = "
cargo xtask test [--release] [--filter TEXT] [-- TEST-BINARY-ARGUMENTS]

Runs `setup`, builds the programs, then `cargo test --workspace --no-fail-fast`. A test
that lacks a tool or a right says so; the skipped ones are listed at the end.

  --release       test the release build
  --filter TEXT   only tests whose name contains TEXT

  BLITZ_REQUIRE_ALL=1   a skipped test is a failure (as in CI)
";

pub(crate) fn main(mut args: Args) -> Result<()> {
    let release = args.flag("--release");
    let filter = args.value("--filter")?;
    let mut rest = args.rest();
    match rest.first().map(String::as_str) {
        None => {}
        Some("--") => drop(rest.remove(0)),
        Some(word) => return Err(format!("{word:?} is not known here; see --help")),
    }

    let missing = setup::ensure(setup::Scope::Test)?;
    if !missing.is_empty() {
        println!("test: going on without {}; what needs it skips", missing.join(", "));
    }
    let profile = if release { "release" } else { "debug" };
    let release = release.then_some("--release");
    // With the same selection as the tests: for another one BoringSSL would be built once more.
    sh::run(sh::cargo(["build", "--workspace", "--bins"]).args(release))?;

    let skips = sh::target_dir().join("skipped-tests.txt");
    std::fs::write(&skips, "").map_err(|error| format!("{}: {error}", skips.display()))?;
    let mut tests = sh::cargo(["test", "--workspace", "--no-fail-fast"]);
    tests.args(release).args(filter);
    if !rest.is_empty() {
        tests.arg("--").args(rest);
    }
    let dir = sh::target_dir().join(profile);
    tests.env("BLITZ_BIN", dir.join("blitz")).env("BLITZ_CTL_BIN", dir.join("blitz-ctl"));
    tests.env("BLITZ_SKIP_LOG", &skips);
    let outcome = sh::run(&mut tests);

    let skipped = std::fs::read_to_string(&skips).unwrap_or_default();
    let count = skipped.lines().count();
    for line in skipped.lines() {
        println!("skipped: {line}");
    }
    outcome?;
    if count > 0 && sh::requires_all() {
        return Err(format!("{count} skipped with BLITZ_REQUIRE_ALL=1"));
    }
    println!("test: passed, {count} skipped");
    Ok(())
}
