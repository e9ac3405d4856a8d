//! `cargo xtask build-ebpf`: the BPF objects that `blitz-ctl` embeds.
//!
//! Owns: the build's command line and environment, the committed copies and when they are written, the check
//! that a second folder gives the same bytes. Does not own: which compiler does it (see [`toolchain`]),
//! the object's format (see [`strip`]), the names of crates inside it (see [`identity`]), the programs (`blitz-ebpf/`).

pub(crate) mod identity;
mod strip;
pub(crate) mod toolchain;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sh::{self, Args, Result};
use toolchain::{Pin, Toolchain};

pub(crate) const HELP: &str = "
cargo xtask build-ebpf [--check] [--debug] [--reachable-panic] [--out PATH]
                       [--toolchain debian|nightly] [--pin]

Builds blitz-ebpf/ for bpfel-unknown-none, with Debian's rustc-web and rust-web-src or
with rustup's nightly that has rust-src, and links it with bpf-linker. The objects, blitz.bpf.o
(XDP) and blitz-reuseport.bpf.o (sk_reuseport), go to target/ebpf/, and with the pinned
toolchain also to blitz-ctl/object/, the copies that are committed and embedded;
blitz-ctl/object/blitz.bpf.toolchain names the pin.

  --check            build them, and again from a copy in another folder; fail if the two or the
                     committed copies differ, or if the pinned toolchain is not here
  --debug            the XDP object with log lines from inside; never a committed copy
  --reachable-panic  the XDP object with a panic that a packet can reach, which the kernel must
                     refuse; for a test, never a committed copy
  --out PATH         write the XDP object there and leave the committed copies alone
  --toolchain NAME   use this one and no other
  --pin              make the toolchain at hand the pinned one, and write the committed copies
";

/// The objects, each named as the binary in `blitz-ebpf/` that it is made of.
const OBJECTS: [&str; 2] = [XDP, "blitz-reuseport"];
/// The one that has variants.
const XDP: &str = "blitz";
/// Where the committed copies lie, from the root of the workspace.
const COMMITTED: &str = "blitz-ctl/object";
/// What built them.
const PIN: &str = "blitz-ctl/object/blitz.bpf.toolchain";
const TARGET: &str = "bpfel-unknown-none";
/// What the object is built from, from the root of the workspace.
const SOURCES: &[&str] = &["Cargo.toml", "blitz-ebpf", "blitz-ebpf-common"];

/// Which object.
#[derive(Clone, Copy, Default)]
struct Variant {
    debug: bool,
    reachable_panic: bool,
}

impl Variant {
    fn features(self) -> String {
        let names = [(self.debug, "log"), (self.reachable_panic, "reachable-panic")];
        names.iter().filter(|(wanted, _)| *wanted).map(|(_, name)| *name).collect::<Vec<_>>().join(",")
    }

    fn is_plain(self) -> bool {
        self.features().is_empty()
    }

    fn file_name(self, object: &str) -> String {
        let mut name = object.to_owned();
        for feature in self.features().split(',').filter(|feature| !feature.is_empty()) {
            name += "-";
            name += feature;
        }
        name + ".bpf.o"
    }
}

/// Where one build reads and writes.
struct Place {
    root: PathBuf,
    target: PathBuf,
    cargo_home: PathBuf,
    /// Nothing may be downloaded: everything is here from the build before.
    offline: bool,
}

pub(crate) fn main(mut args: Args) -> Result<()> {
    let (check, pin) = (args.flag("--check"), args.flag("--pin"));
    let variant = Variant { debug: args.flag("--debug"), reachable_panic: args.flag("--reachable-panic") };
    let out = args.value("--out")?;
    let wanted = args.value("--toolchain")?;
    args.finish()?;
    if (check || pin) && (!variant.is_plain() || out.is_some()) || (check && pin) {
        return Err(
            "--check and --pin are about the committed copy; they go with --toolchain only".to_owned()
        );
    }
    if check { check_committed(wanted.as_deref()) } else { build_once(wanted.as_deref(), variant, out, pin) }
}

/// `cargo fmt --check` of the workspace that the root's does not reach.
pub(crate) fn fmt_check() -> Result<()> {
    sh::run(&mut sh::cargo(["fmt", "--check", "--manifest-path", "blitz-ebpf/Cargo.toml"]))
}

/// clippy over the programs. It needs no BPF target: the stable compiler checks them as if for this
/// machine, allowed by `RUSTC_BOOTSTRAP` to read the one unstable feature.
pub(crate) fn clippy() -> Result<()> {
    let mut clippy =
        sh::cargo(["clippy", "--locked", "--all-features", "--manifest-path", "blitz-ebpf/Cargo.toml"]);
    let target = sh::target_dir().join("ebpf-clippy");
    clippy.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", target);
    sh::run(clippy.args(["--", "-D", "warnings"]))
}

fn build_once(wanted: Option<&str>, variant: Variant, out: Option<String>, pin: bool) -> Result<()> {
    let pinned = read_pin()?;
    let toolchain = toolchain::find(wanted, pinned.as_ref())?;
    println!("build-ebpf: {}", toolchain.describe());
    let here = here();
    if !variant.is_plain() || out.is_some() {
        let path = out.map_or_else(|| here.target.join(variant.file_name(XDP)), PathBuf::from);
        return write_built(&path, &build(&toolchain, &here, XDP, variant)?);
    }
    let mut built = Vec::new();
    for object in OBJECTS {
        let bytes = build(&toolchain, &here, object, variant)?;
        write_built(&here.target.join(variant.file_name(object)), &bytes)?;
        built.push((object, bytes));
    }
    let now = toolchain.pin(&flags_for_record())?;
    let left_alone = match &pinned {
        _ if pin => None,
        None => Some("none is pinned yet; --pin makes this one the pinned toolchain".to_owned()),
        Some(pinned) => pinned.difference(&now),
    };
    if let Some(reason) = left_alone {
        println!("build-ebpf: the committed copies in {COMMITTED} were left alone: {reason}");
        return Ok(());
    }
    if pin {
        write(&here.root.join(PIN), now.to_text().as_bytes())?;
        println!("build-ebpf: pinned this toolchain in {PIN}");
    }
    for (object, bytes) in built {
        let path = committed(object);
        let is_same = std::fs::read(here.root.join(&path)).is_ok_and(|old| old == bytes);
        write(&here.root.join(&path), &bytes)?;
        println!(
            "build-ebpf: the committed {path} {}",
            if is_same { "was the same already" } else { "is new" }
        );
    }
    Ok(())
}

fn write_built(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, bytes)?;
    println!("build-ebpf: wrote {} ({} bytes)", path.display(), bytes.len());
    Ok(())
}

/// The committed copy, from the root of the workspace.
fn committed(object: &str) -> String {
    format!("{COMMITTED}/{}", Variant::default().file_name(object))
}

fn check_committed(wanted: Option<&str>) -> Result<()> {
    let pinned = read_pin()?.ok_or_else(|| format!("{PIN} is missing: build-ebpf --pin writes it"))?;
    let remedy = || format!("it was built with {}; type\n\n    {}\n", pinned.summary(), pinned.install());
    let toolchain = toolchain::find(wanted, Some(&pinned)).map_err(|error| {
        format!("{error}\nOnly the committed object's own toolchain can check it: {}", remedy())
    })?;
    println!("build-ebpf: {}", toolchain.describe());
    if let Some(difference) = pinned.difference(&toolchain.pin(&flags_for_record())?) {
        return Err(format!(
            "only the committed object's own toolchain can check it, and {difference}: {}",
            remedy()
        ));
    }
    let here = here();
    let plain = |place: &Place, object| build(&toolchain, place, object, Variant::default());
    let built = OBJECTS.into_iter().map(|object| plain(&here, object)).collect::<Result<Vec<_>>>()?;
    let folder = std::env::temp_dir().join(format!("blitz-ebpf-{}", std::process::id()));
    let again = copy_elsewhere(&here, &folder).and_then(|there| {
        OBJECTS.into_iter().map(|object| plain(&there, object)).collect::<Result<Vec<_>>>()
    });
    // A scratch copy; what is left of it harms nobody.
    let _ = std::fs::remove_dir_all(&folder);
    for ((object, bytes), again) in OBJECTS.into_iter().zip(built).zip(again?) {
        check_object(&here, &folder, object, &bytes, &again)?;
    }
    Ok(())
}

/// Whether one object was built `again` as it was, and is the committed one.
fn check_object(here: &Place, elsewhere: &Path, object: &str, bytes: &[u8], again: &[u8]) -> Result<()> {
    let path = committed(object);
    if bytes != again {
        return Err(format!(
            "the build of {path} is not reproducible: {} gave other bytes than {}",
            elsewhere.display(),
            here.root.display()
        ));
    }
    println!(
        "build-ebpf: two folders, two target folders and two CARGO_HOMEs gave the same {} bytes",
        bytes.len()
    );
    let old = std::fs::read(here.root.join(&path)).map_err(|error| format!("{path}: {error}"))?;
    if old != bytes {
        let kept = here.target.join(Variant::default().file_name(object));
        write(&kept, bytes)?;
        return Err(format!(
            "{path} is not what blitz-ebpf/ builds ({} bytes against {}): run cargo xtask build-ebpf and \
             commit the object with its source; what was built here is {}",
            old.len(),
            bytes.len(),
            kept.display()
        ));
    }
    println!("build-ebpf: the committed {path} is what its source builds");
    Ok(())
}

/// A copy of the sources, with another target folder and another `CARGO_HOME`.
fn copy_elsewhere(here: &Place, folder: &Path) -> Result<Place> {
    let there = Place {
        root: folder.join("a copy"),
        target: folder.join("built"),
        cargo_home: folder.join("cargo-home"),
        offline: true,
    };
    for source in SOURCES {
        let from = here.root.join(source);
        if from.exists() {
            copy(&from, &there.root.join(source))?;
        }
    }
    std::fs::create_dir_all(&there.cargo_home).map_err(|error| format!("{}: {error}", folder.display()))?;
    let registry = here.cargo_home.join("registry");
    std::os::unix::fs::symlink(&registry, there.cargo_home.join("registry"))
        .map_err(|error| format!("{}: {error}", registry.display()))?;
    Ok(there)
}

/// Runs cargo and returns the object without its DWARF.
fn build(toolchain: &Toolchain, place: &Place, object: &str, variant: Variant) -> Result<Vec<u8>> {
    if !place.offline {
        // The folders of the crates must be there before they can be named in the flags.
        sh::run(cargo(toolchain, place).args(["fetch", "--locked"]))?;
    }
    let llvm = toolchain.compiler.llvm_folder(&place.target)?;
    let mut command = cargo(toolchain, place);
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC_WRAPPER", std::env::current_exe().map_err(|error| error.to_string())?)
        .env(identity::VARIABLE, "1")
        // bpf-linker opens the first libLLVM that it finds in the folders of this variable.
        .env("LD_LIBRARY_PATH", llvm)
        .args(["rustc", "--bin", object, "--release", "--locked", "--target", TARGET])
        .args(["-Z", "build-std=core", "--config", &config(toolchain, place)?]);
    if place.offline {
        command.arg("--offline");
    }
    if !variant.is_plain() {
        command.args(["--features", &variant.features()]);
    }
    if !variant.debug {
        // For this crate only, not for those below it.
        command.args(["--", "-D", "warnings"]);
    }
    sh::run(&mut command)?;
    let built = place.target.join(TARGET).join("release").join(object);
    let bytes = std::fs::read(&built).map_err(|error| format!("{}: {error}", built.display()))?;
    strip::without_dwarf(&bytes).map_err(|what| format!("{}: {what}", built.display()))
}

/// cargo in `blitz-ebpf/`, without what a person or the outer cargo set for other builds.
fn cargo(toolchain: &Toolchain, place: &Place) -> Command {
    let mut command = Command::new(&toolchain.compiler.cargo);
    command.current_dir(place.root.join("blitz-ebpf"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let is_kept = text.starts_with("CARGO_TERM_") || text.starts_with("CARGO_HTTP_");
        if (text.starts_with("CARGO") || text.starts_with("RUST")) && !is_kept {
            command.env_remove(&name);
        }
    }
    command
        .env("CARGO_HOME", &place.cargo_home)
        .env("CARGO_TARGET_DIR", &place.target)
        .env("RUSTC", &toolchain.compiler.rustc);
    command
}

/// Flags of the compiler that do not depend on the machine.
const FLAGS: &[&str] = &[
    // Instruction set v3 brings compare-and-swap and 32-bit registers (Linux 5.12).
    "-Ctarget-cpu=v3",
    // Types and lines for the kernel: its verifier's messages then name the line of the source.
    "-Clink-arg=--btf",
    // Headers lie at any offset; the kernel's verifier allows unaligned loads from packets where the
    // machine does. Without this every field is put together from single octets.
    "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
    // The build machine's otherwise. Only the layout of registers in probes depends on it.
    "--cfg=bpf_target_arch=\"x86_64\"",
];

/// The flags as cargo's configuration: unlike `RUSTFLAGS` they are for the target only, and can be printed.
fn config(toolchain: &Toolchain, place: &Place) -> Result<String> {
    let flags: Vec<_> = flags(toolchain, place)?.iter().map(|flag| format!("{flag:?}")).collect();
    Ok(format!("target.{TARGET}.rustflags=[{}]", flags.join(", ")))
}

fn flags(toolchain: &Toolchain, place: &Place) -> Result<Vec<String>> {
    let mut flags: Vec<String> = FLAGS.iter().map(|flag| (*flag).to_owned()).collect();
    flags.push(format!("-Clinker={}", toolchain.linker.display()));
    let mut folders: Vec<(PathBuf, &str)> = Vec::new();
    folders.extend(toolchain.compiler.library_folders().into_iter().map(|folder| (folder, "/rust")));
    // Of the folders that fit, the compiler takes the last: the outer ones come first.
    folders.push((place.root.clone(), "/blitz"));
    folders.push((place.target.clone(), "/target"));
    // A folder for each registry; its name depends on where the crates are downloaded from.
    let sources = place.cargo_home.join("registry/src");
    let failed = |error: std::io::Error| format!("{}: {error}", sources.display());
    for registry in std::fs::read_dir(&sources).map_err(failed)? {
        folders.push((registry.map_err(failed)?.path(), "/crates"));
    }
    for (folder, name) in folders {
        flags.push(format!("--remap-path-prefix={}={name}", folder.display()));
    }
    Ok(flags)
}

/// The flags as the record names them: without what stands for the machine's folders.
fn flags_for_record() -> String {
    let folders =
        ["/rust", "/blitz", "/target", "/crates"].map(|name| format!("--remap-path-prefix=..={name}"));
    format!(
        "{} {} -Cmetadata=NAME-VERSION --release -Z build-std=core, DWARF removed",
        FLAGS.join(" "),
        folders.join(" ")
    )
}

fn here() -> Place {
    Place {
        root: sh::root(),
        target: sh::target_dir().join("ebpf"),
        cargo_home: cargo_home(),
        offline: false,
    }
}

fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

fn read_pin() -> Result<Option<Pin>> {
    let path = sh::root().join(PIN);
    match std::fs::read_to_string(&path) {
        Ok(text) => Pin::parse(&text).map(Some).map_err(|what| format!("{PIN}: {what}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{PIN}: {error}")),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    std::fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// Copies a file, or a folder without what was built in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let failed = |error: std::io::Error| format!("{}: {error}", from.display());
    if from.is_file() {
        let bytes = std::fs::read(from).map_err(failed)?;
        return write(to, &bytes);
    }
    for entry in std::fs::read_dir(from).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if name != "target" {
            copy(&from.join(&name), &to.join(&name))?;
        }
    }
    Ok(())
}
