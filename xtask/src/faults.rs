//! `cargo xtask faults`: do the tests notice?
//!
//! Owns: applying each patch of `tests/faults/` to a copy of the tree and running the test that it names.
//! Does not own: the patches. A fault that survives means that its test proves less than it claims.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::sh::{self, Args, Result};

pub(crate) const HELP: &str = "
cargo xtask faults [NAME] [--seconds N]

Copies the tree and sees that every test named in tests/faults/*.patch (or in those whose name
contains NAME) passes. Then applies one patch after the other and sees that its test now fails.
A fault that survives, does not build, or no longer applies is a failure.

  --seconds N   limit for one test run (240); a test that hangs under a fault has caught it

A patch starts with two lines:

    # Fault: what is broken, in a sentence
    # Caught by: arguments of `cargo test`
";

struct Fault {
    name: String,
    patch: PathBuf,
    sentence: String,
    test: Vec<String>,
}

pub(crate) fn main(mut args: Args) -> Result<()> {
    let limit = Duration::from_secs(args.number("--seconds")?.unwrap_or(240));
    let wanted = args.positional();
    args.finish()?;
    let mut faults = load(&sh::root().join("tests/faults"))?;
    if let Some(wanted) = wanted {
        faults.retain(|fault| fault.name.contains(&wanted));
    }
    if faults.is_empty() {
        return Err("no patch in tests/faults has such a name".to_owned());
    }

    let bench = sh::target_dir().join("faults");
    let workshop = Workshop { tree: bench.join("tree"), target: bench.join("target"), limit };
    workshop.copy_tree()?;
    let begun = Instant::now();
    let mut unbroken: Vec<(&[String], Result<()>)> = Vec::new();
    for fault in &faults {
        if !unbroken.iter().any(|(test, _)| *test == fault.test) {
            unbroken.push((&fault.test, workshop.must_pass(&fault.test)));
        }
    }
    let mut rows = Vec::new();
    for fault in &faults {
        let begun = Instant::now();
        let passes = unbroken.iter().find(|(test, _)| *test == fault.test);
        let outcome = match passes {
            Some((_, Err(error))) => Err(error.clone()),
            _ => workshop.try_fault(fault),
        };
        rows.push((fault, outcome, begun.elapsed()));
    }

    println!("\n{:<30} {:<10} {:>5}  fault, and what noticed it", "patch", "outcome", "s");
    let mut failures = 0;
    for (fault, outcome, took) in &rows {
        let word = if outcome.is_ok() { "caught" } else { "NOT CAUGHT" };
        println!("{:<30} {word:<10} {:>5.1}  {}", fault.name, took.as_secs_f64(), fault.sentence);
        failures += usize::from(outcome.is_err());
        let (Ok(said) | Err(said)) = outcome;
        println!("{:<48}  {said}", "");
    }
    println!("{} faults in {:.0} s", rows.len(), begun.elapsed().as_secs_f64());
    match failures {
        0 => Ok(()),
        _ => Err(format!("{failures} of {} faults were not caught", rows.len())),
    }
}

fn load(dir: &Path) -> Result<Vec<Fault>> {
    let entries = std::fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut patches: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    patches.retain(|path| path.extension().is_some_and(|ending| ending == "patch"));
    patches.sort();
    patches.into_iter().map(read_fault).collect()
}

fn read_fault(patch: PathBuf) -> Result<Fault> {
    let text = std::fs::read_to_string(&patch).map_err(|error| format!("{}: {error}", patch.display()))?;
    let header = |key: &str| {
        let line = text.lines().take_while(|line| !line.starts_with("--- ") && !line.starts_with("diff "));
        let mut values = line.filter_map(|line| line.strip_prefix(key));
        let value = values.next().map(|value| value.trim().to_owned());
        value.ok_or_else(|| format!("{}: a line `{key} ...` is missing before the diff", patch.display()))
    };
    Ok(Fault {
        sentence: header("# Fault:")?,
        test: header("# Caught by:")?.split_whitespace().map(str::to_owned).collect(),
        name: patch.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        patch,
    })
}

/// A copy of the tree with its own build folder, which the faults share so that each rebuilds little.
struct Workshop {
    tree: PathBuf,
    target: PathBuf,
    limit: Duration,
}

/// What a bounded run came to.
enum Outcome {
    Passed(String),
    Failed(String),
    TimedOut,
}

impl Workshop {
    /// Brings the copy up to date. Files that did not change keep their time, so that little is rebuilt.
    fn copy_tree(&self) -> Result<()> {
        let mut list = Command::new("git");
        list.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(sh::root());
        let listed = sh::read(&mut list)?;
        let listed: Vec<&str> = listed.split('\0').filter(|name| !name.is_empty()).collect();
        let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
        for name in &listed {
            let (from, to) = (sh::root().join(name), self.tree.join(name));
            // A file that was deleted and not yet committed is still listed.
            let Ok(bytes) = std::fs::read(&from) else {
                continue;
            };
            if std::fs::read(&to).is_ok_and(|old| old == bytes) {
                continue;
            }
            if let Some(dir) = to.parent() {
                std::fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
            }
            std::fs::write(&to, bytes).map_err(|error| failed(&to, error))?;
        }
        // What an earlier copy had and the tree no longer has would still be compiled.
        let mut stale = Vec::new();
        crate::tidy::walk(&self.tree, &mut stale);
        for path in stale {
            let relative = path.strip_prefix(&self.tree).unwrap_or(&path);
            if !sh::root().join(relative).exists() {
                std::fs::remove_file(&path).map_err(|error| failed(&path, error))?;
            }
        }
        Ok(())
    }

    fn cargo(&self, words: &[&str], test: &[String]) -> Command {
        let mut command = sh::cargo(words);
        command.args(test).current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.target);
        command.env("BLITZ_BIN", self.target.join("debug/blitz"));
        // A test that is skipped catches nothing.
        command.env("BLITZ_REQUIRE_ALL", "1");
        command
    }

    /// Builds the test, and the gateway when the test is one from outside.
    fn build(&self, test: &[String]) -> Result<()> {
        if test.iter().any(|word| word == "blitz-tests") {
            sh::run(&mut self.cargo(&["build", "-q", "-p", "blitz-dataplane", "--bin", "blitz"], &[]))?;
        }
        // Everything after `--` is for the test binary, so the flag goes in front.
        sh::run(&mut self.cargo(&["test", "-q", "--no-run"], test))
    }

    fn test(&self, test: &[String]) -> Result<Outcome> {
        let mut command = self.cargo(&["test"], test);
        println!("+ {}", sh::line(&command));
        let log = self.target.join("fault-test.log");
        let create = || std::fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()));
        let out = create()?;
        let err = out.try_clone().map_err(|error| error.to_string())?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cargo: {error}"))?;
        let begun = Instant::now();
        while begun.elapsed() < self.limit {
            if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Ok(if status.success() { Outcome::Passed(said) } else { Outcome::Failed(said) });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).status();
        let _ = child.wait();
        Ok(Outcome::TimedOut)
    }

    fn must_pass(&self, test: &[String]) -> Result<()> {
        self.build(test)?;
        match self.test(test)? {
            Outcome::Passed(said) if tests_run(&said) == 0 => {
                Err("its test command runs no test at all".to_owned())
            }
            Outcome::Passed(_) => Ok(()),
            Outcome::Failed(said) => {
                Err(format!("its test does not pass without the fault: {}", failure(&said)))
            }
            Outcome::TimedOut => Err("its test does not end without the fault".to_owned()),
        }
    }

    /// What the test said about the fault.
    fn try_fault(&self, fault: &Fault) -> Result<String> {
        self.apply(fault, &[])?;
        let built = self.build(&fault.test);
        let outcome = built.and_then(|()| self.test(&fault.test));
        self.apply(fault, &["--reverse"])?;
        match outcome
            .map_err(|error| format!("the broken tree does not build, which proves nothing: {error}"))?
        {
            Outcome::Passed(_) => Err("its test passes in spite of the fault".to_owned()),
            Outcome::Failed(said) => Ok(failure(&said)),
            Outcome::TimedOut => Ok(format!("it did not end within {} s", self.limit.as_secs())),
        }
    }

    fn apply(&self, fault: &Fault, options: &[&str]) -> Result<()> {
        let mut command = Command::new("git");
        command.arg("apply").args(options).arg(&fault.patch).current_dir(&self.tree);
        // Inside the repository git would ignore a patch to paths outside this folder, silently.
        command.env("GIT_CEILING_DIRECTORIES", self.tree.parent().unwrap_or(&self.tree));
        sh::read(&mut command).map(drop).map_err(|error| format!("the patch no longer applies: {error}"))
    }
}

/// How many tests libtest says it ran.
fn tests_run(said: &str) -> u64 {
    let counts =
        said.lines().filter_map(|line| line.strip_prefix("running ")?.split(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

/// The first test that failed and the first line of its message.
fn failure(said: &str) -> String {
    let test = said.lines().find_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    let panics = |line: &&str| line.contains("panicked at") && line.contains(test.unwrap_or_default());
    let mut from_panic = said.lines().skip_while(|line| !panics(line));
    let message = from_panic.nth(1).unwrap_or("no message").trim();
    let message: String = message.chars().take(MESSAGE_CHARS_MAX).collect();
    // Without a verdict of its own the program was ended by a signal, such as that of a panic in a panic.
    format!("{}: {message}", test.unwrap_or("it aborted"))
}

/// Most characters of a message in the table.
const MESSAGE_CHARS_MAX: usize = 90;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_tests_of_every_binary() {
        assert_eq!(tests_run("running 3 tests\ntest a ... ok\n\nrunning 0 tests\n\nrunning 1 test\n"), 4);
    }

    #[test]
    fn a_failure_is_named_with_its_message() {
        let said = "running 2 tests\ntest a::b ... ok\ntest a::c ... FAILED\n\nfailures:\n\n---- a::c stdout ----\n\n\
                    thread 'a::c' (7) panicked at src/a.rs:1:2:\nnot caught in time\nnote: run with\n";
        assert_eq!(failure(said), "a::c: not caught in time");
        let aborted = "running 1 test\n\nthread 'd' (8) panicked at src/b.rs:1:2:\nstill in flight\n";
        assert_eq!(failure(aborted), "it aborted: still in flight");
    }

    #[test]
    fn a_patch_without_its_header_is_refused() {
        let dir = std::env::temp_dir().join(format!("blitz-faults-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let patch = dir.join("nameless.patch");
        std::fs::write(&patch, "--- a/x\n+++ b/x\n# Fault: too late\n").unwrap();
        assert!(read_fault(patch.clone()).is_err());
        std::fs::write(&patch, "# Fault: off by one\n# Caught by: -p x some_test\n--- a/x\n").unwrap();
        let fault = read_fault(patch).unwrap();
        assert_eq!((fault.sentence.as_str(), fault.test.len()), ("off by one", 3));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
