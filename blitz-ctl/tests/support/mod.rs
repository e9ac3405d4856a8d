//! A place to attach to: a network namespace with a pair of veths, and a BPF file system of its own.
//!
//! Owns: making and removing both, running `blitz-ctl` inside. Does not own: what is expected.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use blitz_ctl::{Pins, Stage};
use blitz_tests::require;
use serde_json::Value;

/// The capabilities that the daemon keeps, as setpriv(1) names them: CAP_NET_ADMIN, CAP_NET_RAW,
/// CAP_PERFMON and CAP_BPF.
pub(crate) const FOUR: &str = "-all,+net_admin,+net_raw,+cap_38,+cap_39";
/// The interface that tests attach to; its other end is `ctl1` in the same namespace.
pub(crate) const INTERFACE: &str = "ctl0";

/// The namespace and the file system; both go when it is dropped.
pub(crate) struct Place {
    namespace: String,
    directory: tempfile::TempDir,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Place {
    /// Makes one; `None`, after a line that says why, where that is not allowed.
    pub(crate) fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        for program in ["ip", "mount", "umount", "setpriv", "unshare"] {
            if require::program(program).is_none() {
                require::skip(&format!("{program} is not installed"));
                return None;
            }
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        if !status.lines().any(|line| line.starts_with("Uid:\t0")) {
            require::skip("network namespaces and XDP need root");
            return None;
        }
        let namespace = format!("ctl-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::Builder::new().prefix("ctl-").tempdir().expect("a directory");
        run("ip", &["netns", "add", &namespace]);
        let place = Self { namespace, directory };
        let bpffs = place.directory.path().join("bpf");
        std::fs::create_dir(&bpffs).expect("a mount point");
        run("mount", &["-t", "bpf", "bpf", &bpffs.display().to_string()]);
        place.ip("link set lo up");
        place.make_interfaces();
        Some(place)
    }

    /// The pair of veths, up.
    pub(crate) fn make_interfaces(&self) {
        self.ip("link add ctl0 type veth peer name ctl1");
        self.ip("link set ctl0 up");
        self.ip("link set ctl1 up");
    }

    /// `ip` in the namespace.
    pub(crate) fn ip(&self, words: &str) -> String {
        let mut all = vec!["-n", self.namespace.as_str()];
        all.extend(words.split(' '));
        run("ip", &all)
    }

    /// The program that runs on the interface by its number, as the kernel says it.
    pub(crate) fn program_on(&self, interface: &str) -> Option<u64> {
        let shown = run("ip", &["-n", &self.namespace, "-j", "link", "show", "dev", interface]);
        let shown: Value = serde_json::from_str(&shown).expect("JSON of ip");
        shown[0]["xdp"]["prog"]["id"].as_u64()
    }

    /// Where the stages of this place are pinned.
    pub(crate) fn base(&self) -> PathBuf {
        self.directory.path().join("bpf/blitz")
    }

    /// Another place for pins, as another owner would have.
    pub(crate) fn other_base(&self) -> PathBuf {
        self.directory.path().join("bpf/other")
    }

    /// The stage, adopted by the test itself.
    pub(crate) fn stage(&self) -> Stage {
        Stage::open(&Pins::at(self.base()), INTERFACE).expect("a stage")
    }

    /// A file with `text`.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    }

    /// `blitz-ctl` in the namespace, with the pins of this place.
    pub(crate) fn ctl(&self, words: &[&str]) -> Outcome {
        self.ctl_at(&self.base(), words)
    }

    /// `blitz-ctl` in the namespace, without waiting for it. What it says is lost.
    pub(crate) fn start(&self, words: &[&str]) -> Child {
        let base = self.base().display().to_string();
        // `ip` becomes the program, so a signal to the child is one to it.
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, env!("CARGO_BIN_EXE_blitz-ctl"), "--pins", &base]);
        command.args(words).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("ip runs")
    }

    /// `blitz-ctl` with pins elsewhere.
    pub(crate) fn ctl_at(&self, base: &Path, words: &[&str]) -> Outcome {
        let base = base.display().to_string();
        let mut all = vec![env!("CARGO_BIN_EXE_blitz-ctl"), "--pins", &base];
        all.extend(words);
        self.inside(&all)
    }

    /// `blitz-ctl` with the capabilities of `set` and no others, in the form of setpriv(1).
    pub(crate) fn ctl_with(&self, set: &str, words: &[&str]) -> Outcome {
        let base = self.base().display().to_string();
        let bounding = format!("--bounding-set={set}");
        let mut all = vec!["setpriv", &bounding, env!("CARGO_BIN_EXE_blitz-ctl"), "--pins", &base];
        all.extend(words);
        self.inside(&all)
    }

    /// A program in the namespace.
    pub(crate) fn inside(&self, words: &[&str]) -> Outcome {
        let output = Command::new("ip").args(["netns", "exec", &self.namespace]).args(words).output();
        Outcome::of(&output.expect("ip runs"))
    }

    /// What `blitz-ctl --json` says.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(words);
        let outcome = self.ctl(&all);
        assert_eq!(outcome.code, 0, "{words:?}: {outcome:?}");
        serde_json::from_str(&outcome.out).expect("JSON")
    }

    /// A stage with the configuration `text`, or with none.
    pub(crate) fn attach(&self, text: Option<&str>) {
        let outcome = match text {
            Some(text) => self.ctl(&["attach", INTERFACE, "--config", &self.file("first.toml", text)]),
            None => self.ctl(&["attach", INTERFACE]),
        };
        assert_eq!(outcome.code, 0, "{outcome:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Without its pins the stage goes; then the namespace with its interfaces.
        let bpffs = self.directory.path().join("bpf");
        let _unmounted = Command::new("umount").arg("-l").arg(bpffs).output();
        let _deleted = Command::new("ip").args(["netns", "del", &self.namespace]).output();
    }
}

impl Outcome {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts an error of one sentence, which holds every one of `parts` in order: cause, then remedy.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.err.trim_end().lines().count(), 1, "one line: {self:?}");
        assert!(self.err.starts_with("blitz-ctl: ") && self.err.contains("; "), "cause; remedy: {self:?}");
        let mut rest = self.err.as_str();
        for part in parts {
            let (_, after) = rest.split_once(part).unwrap_or_else(|| panic!("{part:?} is missing: {self:?}"));
            rest = after;
        }
    }
}

fn run(program: &str, words: &[&str]) -> String {
    let output =
        Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let outcome = Outcome::of(&output);
    assert_eq!(outcome.code, 0, "{program} {words:?}: {outcome:?}");
    outcome.out
}

/// A configuration with a listener on port 8443, a UDP service on port 7000, and what `xdp` adds to `[xdp]`.
pub(crate) fn config(xdp: &str) -> String {
    format!(
        "[[listeners]]\nname = \"edge\"\naddress = \"0.0.0.0:8443\"\nbuiltin_answers = true\n\
         [[limits]]\nname = \"per_source\"\nby = \"source_prefix\"\npackets_per_second = 20000\n\
         [xdp]\n{xdp}\n\
         [[xdp.services]]\nname = \"echo\"\nport = 7000\nprotocol = \"udp\"\n"
    )
}
