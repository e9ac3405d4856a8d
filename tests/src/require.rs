//! What a test needs of the machine, and what happens when it is missing.
//!
//! Owns: the rule. A test that lacks something says so and is skipped; with `BLITZ_REQUIRE_ALL=1` it
//! fails. The reasons are collected in the file that `BLITZ_SKIP_LOG` names, which `cargo xtask test` prints.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

/// Returns from the test, with the reason printed, unless every program is installed.
#[macro_export]
macro_rules! require {
    ($($program:expr),+ $(,)?) => {
        $(if $crate::require::program($program).is_none() {
            $crate::require::skip(&format!("{} is not installed", $program));
            return;
        })+
    };
}

/// Where a program is, looked for also in the system folders that a plain user's PATH may lack.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The folder of the build, which `cargo xtask setup` puts into what systems do not have.
fn build_folder() -> Option<PathBuf> {
    // target/debug/deps/test-1234
    Some(std::env::current_exe().ok()?.ancestors().nth(3)?.to_owned())
}

/// Where a program is that `cargo xtask setup` has put beside the build.
pub fn tool(name: &str) -> Option<PathBuf> {
    Some(build_folder()?.join("tools/bin").join(name)).filter(|file| file.is_file())
}

/// A Python that has `module`, by what `cargo xtask setup` has put beside the build: an interpreter's command line is
/// still to be added.
pub fn python(module: &str) -> Option<std::process::Command> {
    let modules = build_folder()?.join("python");
    if !modules.join(module).is_dir() {
        return None;
    }
    let mut command = std::process::Command::new(program("python3")?);
    command.env("PYTHONPATH", modules);
    Some(command)
}

/// Whether this process is root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

/// Waits until no other test that asked for the same runs, in this process or another, and keeps it so
/// until the value is dropped. For tests that measure: floods side by side starve each other.
///
/// # Panics
/// When the scratch folder of the system cannot be written.
pub fn alone() -> impl Drop {
    struct Alone(std::fs::File);
    impl Drop for Alone {
        fn drop(&mut self) {
            let _ = self.0.unlock();
        }
    }
    let path = std::env::temp_dir().join("blitz-tests-alone");
    let file = std::fs::File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.lock().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Alone(file)
}

/// Records that the running test is skipped.
///
/// # Panics
/// With `BLITZ_REQUIRE_ALL=1`: then a skip is a failure.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("{}: {reason}", thread.name().unwrap_or("a test"));
    assert!(std::env::var_os("BLITZ_REQUIRE_ALL").is_none_or(|value| value != "1"), "required: {line}");
    // libtest captures what print macros write, not what is written to the descriptor.
    let _ = writeln!(std::io::stderr(), "skipped: {line}");
    if let Some(path) = std::env::var_os("BLITZ_SKIP_LOG") {
        let log = OpenOptions::new().append(true).create(true).open(path);
        let _ = log.and_then(|mut file| writeln!(file, "{line}"));
    }
}
