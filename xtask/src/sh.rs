//! Running other programs: printed before they run, failures with their command line.
//!
//! Owns: the printed form of a command, looking programs up, argument lists, where things lie.
//! Does not own: children that live longer than one call (see [`crate::guard`]).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A failure is a sentence for the person at the terminal.
pub(crate) type Result<T> = std::result::Result<T, String>;

/// The words after a subcommand, taken one option at a time.
pub(crate) struct Args {
    words: Vec<String>,
}

impl Args {
    pub(crate) fn new(words: Vec<String>) -> Self {
        Self { words }
    }

    /// Takes the flag `name`; whether it was there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let found = self.words.iter().position(|word| word == name);
        found.map(|at| self.words.remove(at)).is_some()
    }

    /// Takes `name VALUE` or `name=VALUE`.
    pub(crate) fn value(&mut self, name: &str) -> Result<Option<String>> {
        if let Some(at) = self.words.iter().position(|word| word == name) {
            self.words.remove(at);
            if at < self.words.len() {
                return Ok(Some(self.words.remove(at)));
            }
            return Err(format!("{name} wants a value"));
        }
        let prefix = format!("{name}=");
        let found = self.words.iter().position(|word| word.starts_with(&prefix));
        Ok(found.map(|at| self.words.remove(at)[prefix.len()..].to_owned()))
    }

    /// Takes `name VALUE` as a number of seconds, rounds and the like.
    pub(crate) fn number(&mut self, name: &str) -> Result<Option<u64>> {
        let Some(text) = self.value(name)? else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| format!("{name} {text:?}: a whole number is wanted"))
    }

    /// Takes the next word that is not an option.
    pub(crate) fn positional(&mut self) -> Option<String> {
        let at = self.words.iter().position(|word| !word.starts_with('-'))?;
        Some(self.words.remove(at))
    }

    /// Takes everything that is left.
    pub(crate) fn rest(self) -> Vec<String> {
        self.words
    }

    /// Fails when a word is left that nobody took.
    pub(crate) fn finish(self) -> Result<()> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(format!("{word:?} is not known here; see --help")),
        }
    }
}

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    // cargo sets the variable for what it runs; the compiled-in path is for a binary run by hand.
    let manifest =
        std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    Path::new(&manifest).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// `cargo` in the workspace root.
pub(crate) fn cargo<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(args: I) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    // What cargo told this program about itself would make the inner cargo rebuild build scripts.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(name);
    }
    command
}

/// The command as a line that a person could type.
pub(crate) fn line(command: &Command) -> String {
    let mut line = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            line += &format!("{}={} ", name.to_string_lossy(), quoted(value));
        }
    }
    let program = Path::new(command.get_program());
    let is_cargo = program.file_stem() == Some(OsStr::new("cargo"));
    line += &if is_cargo { "cargo".to_owned() } else { quoted(command.get_program()) };
    for arg in command.get_args() {
        line.push(' ');
        line += &quoted(arg);
    }
    line
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Prints and runs; an exit code other than 0 is a failure.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("+ {}", line(command));
    let status = command.status().map_err(|error| format!("{}: {error}", line(command)))?;
    if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", line(command))) }
}

/// Prints and runs; what it wrote on stdout. An exit code other than 0 is a failure with its stderr.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    println!("+ {}", line(command));
    let output = output(command)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(format!("{} ended with {}: {}", line(command), output.status, stderr.trim()))
    }
}

/// Runs without printing.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().map_err(|error| format!("{}: {error}", line(command)))
}

/// The path of a program, also from the system folders that a plain user's PATH may lack.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uid.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

/// Whether a skipped test is a failure.
pub(crate) fn requires_all() -> bool {
    std::env::var_os("BLITZ_REQUIRE_ALL").is_some_and(|value| value == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Args {
        Args::new(text.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn options_are_taken_in_any_order_and_leftovers_refused() {
        let mut a = args("h1 --pairs 9 --quick --seconds=3");
        assert!(a.flag("--quick"));
        assert_eq!(a.number("--pairs"), Ok(Some(9)));
        assert_eq!(a.number("--seconds"), Ok(Some(3)));
        assert_eq!(a.positional().as_deref(), Some("h1"));
        assert_eq!(a.finish(), Ok(()));
        assert!(args("--nonsense").finish().is_err());
        assert!(args("--pairs").number("--pairs").is_err());
        assert!(args("--pairs many").number("--pairs").is_err());
    }

    #[test]
    fn a_printed_command_can_be_typed() {
        let mut command = Command::new("echo");
        command.arg("it's").arg("plain").env("A", "b c");
        assert_eq!(line(&command), r"A='b c' echo 'it'\''s' plain");
    }
}
