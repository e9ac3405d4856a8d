//! The compiler, the linker and the LLVM that build the BPF object.
//!
//! Owns: finding them, naming what to install, the record beside the committed object. Does not own: the
//! build (see [`super`]).

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sh::{self, Result};

/// Debian's compiler and the source of its library.
pub(crate) const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];
/// What follows `cargo` to install the linker. This version fits LLVM 22, which both compilers bring.
pub(crate) const LINKER_INSTALL: [&str; 5] = ["install", "--locked", "bpf-linker", "--version", "0.10.3"];
const NIGHTLY_INSTALL: &str = "rustup toolchain install nightly --component rust-src";

/// Everything that shapes the object's bytes beside its source.
pub(super) struct Toolchain {
    pub(super) compiler: Compiler,
    pub(super) linker: PathBuf,
    linker_version: String,
}

/// A compiler that has the source of its library.
pub(super) struct Compiler {
    /// How a person chooses it: `debian` or `nightly`.
    name: &'static str,
    pub(super) rustc: PathBuf,
    pub(super) cargo: PathBuf,
    sysroot: PathBuf,
    version: Version,
}

/// What `rustc -vV` says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    /// The first line.
    line: String,
    commit: String,
    llvm: String,
}

/// The record beside the committed object: a line `name = value` for each part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pin {
    rows: Vec<(String, String)>,
}

/// Chooses a toolchain: the one of this name, else the pinned one, else the first that is here.
pub(super) fn find(wanted: Option<&str>, pinned: Option<&Pin>) -> Result<Toolchain> {
    if let Some(name) = wanted.filter(|name| !["debian", "nightly"].contains(name)) {
        return Err(format!("--toolchain {name:?}: there are debian and nightly"));
    }
    let Some(linker) = find_linker() else {
        return Err(format!("bpf-linker is missing: type\n\n    {}\n", linker_to_type()));
    };
    let mut compilers = compilers()?;
    compilers.retain(|compiler| wanted.is_none_or(|wanted| wanted == compiler.name));
    let is_pinned = |compiler: &Compiler| {
        pinned.is_some_and(|pin| pin.value("rustc-commit") == Some(&compiler.version.commit))
    };
    let at = compilers.iter().position(is_pinned).unwrap_or(0);
    if at >= compilers.len() {
        return Err(format!(
            "no compiler here can build `core` for BPF. Type one of\n\n{}",
            compiler_to_type()
        ));
    }
    let linker_version = ask(&linker, &["--version"])?.trim().trim_start_matches("bpf-linker ").to_owned();
    Ok(Toolchain { compiler: compilers.swap_remove(at), linker, linker_version })
}

/// Whether some compiler here has the source of its library.
pub(crate) fn has_compiler() -> Result<bool> {
    compilers().map(|compilers| !compilers.is_empty())
}

/// `bpf-linker` in the path or where cargo installs.
pub(crate) fn find_linker() -> Option<PathBuf> {
    sh::find_program("bpf-linker")
        .or_else(|| Some(super::cargo_home().join("bin/bpf-linker")).filter(|file| file.is_file()))
}

/// The two ways to a compiler, for a person.
pub(crate) fn compiler_to_type() -> String {
    let packages = DEBIAN_PACKAGES.join(" ");
    format!("    sudo apt-get install -y --no-install-recommends {packages}\n    {NIGHTLY_INSTALL}\n")
}

fn linker_to_type() -> String {
    format!("cargo {}", LINKER_INSTALL.join(" "))
}

fn compilers() -> Result<Vec<Compiler>> {
    Ok([debian()?, nightly()?].into_iter().flatten().collect())
}

/// Debian's compiler beside its library's source; cargo is the one that runs this.
fn debian() -> Result<Option<Compiler>> {
    let rustc = Path::new("/usr/bin/rustc");
    let cargo = std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from);
    if rustc.is_file() { examine("debian", rustc.to_owned(), cargo) } else { Ok(None) }
}

/// rustup's nightly, if it has `rust-src`.
fn nightly() -> Result<Option<Compiler>> {
    let mut ask = Command::new("rustup");
    ask.args(["run", "nightly", "rustc", "--print", "sysroot"]);
    let Some(sysroot) = sh::output(&mut ask).ok().filter(|output| output.status.success()) else {
        return Ok(None);
    };
    let bin = Path::new(String::from_utf8_lossy(&sysroot.stdout).trim()).join("bin");
    examine("nightly", bin.join("rustc"), bin.join("cargo"))
}

/// Asks a compiler who it is. `None` when its library's source is not here.
fn examine(name: &'static str, rustc: PathBuf, cargo: PathBuf) -> Result<Option<Compiler>> {
    let sysroot = PathBuf::from(ask(&rustc, &["--print", "sysroot"])?.trim());
    if !sysroot.join("lib/rustlib/src/rust/library/core").is_dir() {
        return Ok(None);
    }
    let text = ask(&rustc, &["-vV"])?;
    let version = Version::parse(&text).ok_or_else(|| format!("{} -vV: {text:?}", rustc.display()))?;
    Ok(Some(Compiler { name, rustc, cargo, sysroot, version }))
}

fn ask(program: &Path, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    let output = sh::output(command.args(args))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(format!("{} ended with {}: {}", sh::line(&command), output.status, stderr.trim()))
    }
}

impl Toolchain {
    pub(super) fn describe(&self) -> String {
        let Compiler { name, version, .. } = &self.compiler;
        format!("{name}: {}, LLVM {}, bpf-linker {}", version.line, version.llvm, self.linker_version)
    }

    /// The record of this toolchain with these flags.
    pub(super) fn pin(&self, flags: &str) -> Result<Pin> {
        let lock = sh::root().join("blitz-ebpf/Cargo.lock");
        let text = std::fs::read_to_string(&lock).map_err(|error| format!("{}: {error}", lock.display()))?;
        let aya = locked_version(&text, "aya-ebpf").ok_or("blitz-ebpf/Cargo.lock has no aya-ebpf")?;
        let version = &self.compiler.version;
        let rows = [
            ("rustc", version.line.trim_start_matches("rustc ").to_owned()),
            ("rustc-commit", version.commit.clone()),
            ("llvm", version.llvm.clone()),
            ("bpf-linker", self.linker_version.clone()),
            ("aya-ebpf", aya),
            ("flags", flags.to_owned()),
            ("install", self.compiler.install()),
        ];
        Ok(Pin { rows: rows.map(|(name, value)| (name.to_owned(), value)).into() })
    }
}

impl Compiler {
    /// The library's source, under the name that cargo uses and under its real one.
    pub(super) fn library_folders(&self) -> Vec<PathBuf> {
        let folder = self.sysroot.join("lib/rustlib/src/rust");
        let real = folder.canonicalize().ok().filter(|real| *real != folder);
        std::iter::once(folder).chain(real).collect()
    }

    /// A folder with the compiler's own libLLVM and nothing else, for bpf-linker to find.
    ///
    /// bpf-linker takes the first file named `libLLVM*` in the order in which the folder is read, so a
    /// folder with two would leave the choice to the file system.
    pub(super) fn llvm_folder(&self, target: &Path) -> Result<PathBuf> {
        let mut parts = self.version.llvm.split('.');
        let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let stem = format!("libLLVM.so.{major}.{minor}");
        let lib = self.sysroot.join("lib");
        let folders =
            [lib.join(format!("{}-linux-gnu", std::env::consts::ARCH)), lib, self.sysroot.join("lib64")];
        let library = folders.iter().find_map(|folder| {
            let mut files: Vec<_> =
                std::fs::read_dir(folder).ok()?.flatten().map(|file| file.path()).collect();
            files.sort();
            files
                .into_iter()
                .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&stem)))
        });
        let library = library.ok_or_else(|| {
            format!("no {stem} beside {}: its LLVM is not a shared library", self.rustc.display())
        })?;
        let folder = target.join("llvm").join(self.name);
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(failed)?;
        }
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let name = library.file_name().unwrap_or_default();
        std::os::unix::fs::symlink(&library, folder.join(name)).map_err(failed)?;
        Ok(folder)
    }

    /// What brings it, for the person who lacks it.
    fn install(&self) -> String {
        if self.name != "debian" {
            return format!("{NIGHTLY_INSTALL}; {}", linker_to_type());
        }
        let mut packages = "apt-get install".to_owned();
        for package in DEBIAN_PACKAGES {
            let mut query = Command::new("dpkg-query");
            let output = sh::output(query.args(["-W", "-f=${Version}", package]));
            let version = output.ok().filter(|output| output.status.success());
            packages += &match version {
                Some(version) => format!(" {package}={}", String::from_utf8_lossy(&version.stdout)),
                None => format!(" {package}"),
            };
        }
        format!("{packages}; {}", linker_to_type())
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        Some(Self {
            line: text.lines().next()?.to_owned(),
            commit: value("commit-hash: ")?,
            llvm: value("LLVM version: ")?,
        })
    }
}

impl Pin {
    const HEADER: &str = "# What built the objects. Written by `cargo xtask build-ebpf --pin`; any other toolchain\n\
                          # leaves them alone. `install` says what brings it and is not compared.\n";

    pub(super) fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut rows = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            let (name, value) =
                line.split_once(" = ").ok_or_else(|| format!("{line:?} is no `name = value`"))?;
            rows.push((name.to_owned(), value.to_owned()));
        }
        Ok(Self { rows })
    }

    pub(super) fn to_text(&self) -> String {
        let rows: String = self.rows.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
        Self::HEADER.to_owned() + &rows
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.rows.iter().find(|row| row.0 == name).map(|row| row.1.as_str())
    }

    /// The parts in one line.
    pub(super) fn summary(&self) -> String {
        let value = |name| self.value(name).unwrap_or("of an unknown version");
        format!("rustc {}, LLVM {}, bpf-linker {}", value("rustc"), value("llvm"), value("bpf-linker"))
    }

    /// The command that brings it.
    pub(super) fn install(&self) -> &str {
        self.value("install").unwrap_or("cargo xtask setup --ebpf")
    }

    /// The first part in which `now` is not what is pinned, as half a sentence.
    pub(super) fn difference(&self, now: &Self) -> Option<String> {
        let other = now.rows.iter().filter(|(name, _)| name != "install");
        other.clone().find(|(name, value)| self.value(name) != Some(value)).map(|(name, value)| {
            let pinned = self.value(name).unwrap_or("not named");
            format!("{name} here is {value}, pinned is {pinned}")
        })
    }
}

/// The version of a package in a Cargo.lock.
fn locked_version(lock: &str, name: &str) -> Option<String> {
    let rest = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?.1;
    rest.split_once('"').map(|(version, _)| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(rows: &[(&str, &str)]) -> Pin {
        Pin { rows: rows.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect() }
    }

    #[test]
    fn a_record_reads_back_and_names_the_first_difference() {
        let pinned = pin(&[("rustc", "1.96.0"), ("llvm", "22.1.8"), ("install", "a")]);
        assert_eq!(Pin::parse(&pinned.to_text()), Ok(pinned.clone()));
        let other = pin(&[("rustc", "1.96.0"), ("llvm", "22.1.4"), ("install", "b")]);
        assert_eq!(pinned.difference(&other).as_deref(), Some("llvm here is 22.1.4, pinned is 22.1.8"));
        let same_parts = pin(&[("rustc", "1.96.0"), ("llvm", "22.1.8"), ("install", "b")]);
        assert_eq!(pinned.difference(&same_parts), None);
        let more = pin(&[("rustc", "1.96.0"), ("flags", "-Ox")]);
        assert_eq!(pinned.difference(&more).as_deref(), Some("flags here is -Ox, pinned is not named"));
        assert!(Pin::parse("no row").is_err());
    }

    #[test]
    fn versions_come_from_what_the_programs_say() {
        let text =
            "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\ncommit-hash: ac68\nLLVM version: 22.1.8\n";
        let version = Version::parse(text);
        assert_eq!(version.as_ref().map(|version| version.llvm.as_str()), Some("22.1.8"));
        assert_eq!(version.map(|version| version.commit).as_deref(), Some("ac68"));
        assert_eq!(Version::parse("rustc 1.0"), None);
        let lock = "[[package]]\nname = \"aya-ebpf-cty\"\nversion = \"0.3.0\"\n\n[[package]]\nname = \"aya-ebpf\"\nversion = \"0.2.1\"\n";
        assert_eq!(locked_version(lock, "aya-ebpf").as_deref(), Some("0.2.1"));
        assert_eq!(locked_version(lock, "aya"), None);
    }
}
