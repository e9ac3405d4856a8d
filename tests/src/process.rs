//! Processes seen from outside: signals, children, memory.

use std::fs;

use crate::sys;

/// The signals that the gateway answers to, and those that only the kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Reload.
    Hup,
    /// Stop.
    Int,
    /// Drain, then stop.
    Term,
    /// End at once; cannot be caught.
    Kill,
    /// Stand still; cannot be caught. See [`halt`].
    Stop,
    /// Go on.
    Continue,
}

/// Sends a signal to one process; whether it was still there.
pub fn send(pid: u32, signal: Signal) -> bool {
    sys::kill(pid.cast_signed(), number(signal)).is_ok()
}

/// Has a process stand still while `work` runs, as if the machine had had no time for it.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn halt(pid: u32, work: impl FnOnce()) {
    assert!(send(pid, Signal::Stop), "the process is gone");
    crate::wait_until("the process stands still", crate::PATIENCE, || state(pid) == Some('T'));
    work();
    assert!(send(pid, Signal::Continue), "the process is gone");
}

/// Ends a whole process group.
pub(crate) fn kill_group(leader: u32) {
    let _ = sys::kill(-leader.cast_signed(), libc::SIGKILL);
}

fn number(signal: Signal) -> i32 {
    match signal {
        Signal::Hup => libc::SIGHUP,
        Signal::Int => libc::SIGINT,
        Signal::Term => libc::SIGTERM,
        Signal::Kill => libc::SIGKILL,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
    }
}

/// The living children of a process, in order of their ids. Zombies are not counted.
pub fn children(parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, which may hold blanks: state, parent.
        let mut fields = text.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default().split(' ');
        let (state, of) = (fields.next(), fields.next().and_then(|text| text.parse::<u32>().ok()));
        if of == Some(parent) && state != Some("Z") {
            found.push(pid);
        }
    }
    found.sort_unstable();
    found
}

/// Whether a process executes: it is there and no zombie, so its descriptors are open.
pub fn is_running(pid: u32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// The letter of proc_pid_stat(5); `None` when there is no such process.
fn state(pid: u32) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
}

/// Resident memory of a process in bytes; 0 when it is gone.
pub fn resident_bytes(pid: u32) -> u64 {
    memory(pid, &["VmRSS:"])
}

/// The same without the pages of the program's file, which all workers share and of which a debug build has many.
pub fn own_bytes(pid: u32) -> u64 {
    memory(pid, &["RssAnon:", "RssShmem:"])
}

/// The sum of fields of proc_pid_status(5), in bytes.
fn memory(pid: u32, fields: &[&str]) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = text.lines().filter_map(|line| {
        let value = fields.iter().find_map(|field| line.strip_prefix(field))?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    });
    kib.sum::<u64>() * 1024
}
