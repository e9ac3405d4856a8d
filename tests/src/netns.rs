//! Network namespaces of the tests.
//!
//! Owns: making and removing them, running code and programs inside, and sweeping away what a killed
//! test left behind. Does not own: what connects them (see [`crate::wire`]).
//!
//! Every name begins with [`PREFIX`] and the process id of the test, so that the sweep knows whose a
//! leftover is. Only the network is separate: the file system, with `/sys/fs/bpf`, is everybody's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};

use crate::{require, sys};

/// How every namespace and interface of the tests begins.
pub const PREFIX: &str = "be";

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";
/// Where BPF objects are pinned.
const BPFFS: &str = "/sys/fs/bpf";

/// Returns from the test, with the reason printed, unless it may make namespaces and attach programs.
#[macro_export]
macro_rules! require_netns {
    () => {
        if !$crate::Netns::available() {
            return;
        }
    };
}

/// The way into a network namespace, for as long as one has it.
#[derive(Clone, Debug)]
pub struct Network(Arc<File>);

impl Network {
    /// Runs `work` on a thread inside. Sockets opened there stay inside when they are returned.
    #[track_caller]
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                sys::enter_network(&self.0).expect("the namespace can be entered");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Lets `command` run inside. It must be started while this value exists.
    pub fn contain(&self, command: &mut Command) {
        sys::start_in_network(command, &self.0);
    }
}

/// A network namespace. Dropping it removes it, with the interfaces that it holds.
#[derive(Debug)]
pub struct Netns {
    name: String,
    network: Network,
}

impl Netns {
    /// Whether this machine lets the test make namespaces; the reason is recorded when not.
    pub fn available() -> bool {
        if require::program("ip").is_none() {
            require::skip("ip (iproute2) is not installed");
            return false;
        }
        if !require::is_root() {
            require::skip("network namespaces and XDP need root");
            return false;
        }
        true
    }

    /// Makes one, with `lo` up.
    ///
    /// # Panics
    /// When `ip` refuses. Ask [`Netns::available`] before.
    #[track_caller]
    pub fn new() -> Self {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let name = unique();
        ip(&["netns", "add", &name]);
        let file = File::open(Path::new(NAMES).join(&name)).expect("a namespace just made can be opened");
        let made = Self { name, network: Network(Arc::new(file)) };
        made.ip(&["link", "set", "lo", "up"]);
        made
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` for this namespace.
    #[track_caller]
    pub fn ip(&self, args: &[&str]) -> String {
        let mut words = vec!["-n", self.name.as_str()];
        words.extend_from_slice(args);
        ip(&words)
    }

    /// The way in.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Runs `work` inside; see [`Network::run`].
    #[track_caller]
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.network.run(work)
    }

    /// Writes a file below `/sys/class/net` as it is inside (sysfs shows the namespace that mounted it).
    #[track_caller]
    pub fn write_sys(&self, file: &str, value: &str) {
        let script = format!("echo {value} > /sys/class/net/{file}");
        ip(&["netns", "exec", &self.name, "sh", "-c", &script]);
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

/// A name that no other test uses, of at most 13 characters, so that an interface can bear it with a letter.
pub(crate) fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Runs `ip`; what it printed.
///
/// # Panics
/// When it fails, with what it said.
#[track_caller]
pub fn ip(args: &[&str]) -> String {
    let output = Command::new("ip").args(args).stdin(Stdio::null()).output().expect("ip can be executed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {}", args.join(" "), said.trim());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Where the stages of a test with this [`unique`] name are pinned.
pub(crate) fn pins(name: &str) -> PathBuf {
    Path::new(BPFFS).join(name)
}

/// `remove_dir_all` opens entries, which bpffs refuses for pins; unlinking them is enough.
pub(crate) fn remove_pins(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_pins(&path);
        } else {
            let _ = fs::remove_file(path);
        }
    }
    let _ = fs::remove_dir(dir);
}

/// Removes namespaces, interfaces and pins of tests whose process has ended.
fn sweep() {
    let names = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_stale(name))
            .collect()
    };
    let quietly = |args: &[&str]| {
        let _ = Command::new("ip").args(args).stderr(Stdio::null()).status();
    };
    for name in names(NAMES) {
        quietly(&["netns", "del", &name]);
    }
    for name in names("/sys/class/net") {
        quietly(&["link", "del", &name]);
    }
    for name in names(BPFFS) {
        remove_pins(&pins(&name));
    }
}

/// Whether a name is one of [`unique`] of a process that is no more.
fn is_stale(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('x')).map(|(pid, _)| pid);
    let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit());
    pid.filter(is_number).is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ended_tests_are_stale() {
        // Above the highest process id that Linux gives (2^22).
        assert!(is_stale("be9999999x3"));
        assert!(is_stale("be9999999x12s"));
        assert!(!is_stale(&unique()));
        for other in ["be0", "bexy", "bex1", "beta", "eth0", "be-1x", "be12345"] {
            assert!(!is_stale(other), "{other}");
        }
    }
}
