//! What processes and the machine have used, from `/proc`.
//!
//! Owns: CPU time of a process with its children, of the whole machine, and memory. Does not own: when
//! to look (see `h1.rs`, `idle.rs`).

use std::fs;

/// Ticks in a second. It is 100 on every Linux that `/proc` shows to user space (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// The process and everything below it that is alive.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let mut parents: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![root];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found
}

/// User and system seconds of the tree so far, with those of children that have ended.
pub(crate) fn cpu_seconds(root: u32) -> f64 {
    let ticks = tree(root).into_iter().filter_map(stat).map(|fields| {
        // utime, stime, cutime, cstime: fields 14 to 17 of proc_pid_stat(5), the 12th to 15th after the name.
        fields.iter().skip(11).take(4).filter_map(|text| text.parse::<u64>().ok()).sum::<u64>()
    });
    ticks.sum::<u64>() as f64 / TICKS_PER_SECOND
}

/// The fields of `/proc/PID/stat` after the program's name, which may hold blanks and brackets.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// Seconds that all processors have spent at work since the start, stolen time included.
pub(crate) fn machine_busy_seconds() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    let fields: Vec<f64> = first.split_whitespace().skip(1).filter_map(|text| text.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest time is part of user time.
    let ticks: f64 =
        fields.iter().take(8).enumerate().filter(|(at, _)| *at != 3 && *at != 4).map(|(_, n)| n).sum();
    ticks / TICKS_PER_SECOND
}

/// Memory of a process tree, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Resident, shared pages counted once per process.
    pub(crate) rss: u64,
    /// Proportional, shared pages counted once in all.
    pub(crate) pss: u64,
}

/// Sum over the tree.
pub(crate) fn memory(root: u32) -> Memory {
    let mut sum = Memory::default();
    for pid in tree(root) {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let kib = |key: &str| {
            let value =
                text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok());
            value.unwrap_or(0_u64)
        };
        sum.rss += kib("Rss:") * 1024;
        sum.pss += kib("Pss:") * 1024;
    }
    sum
}

/// Bytes of kernel memory that TCP sockets hold on this machine (`/proc/net/sockstat`, in pages of 4 KiB).
pub(crate) fn tcp_memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("TCP:")).unwrap_or_default();
    let pages =
        line.split_whitespace().skip_while(|word| *word != "mem").nth(1).and_then(|text| text.parse().ok());
    pages.unwrap_or(0_u64) * 4096
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_uses_time_and_memory() {
        let pid = std::process::id();
        let begun = std::time::Instant::now();
        let before = super::cpu_seconds(pid);
        let mut sum = 0_u64;
        while super::cpu_seconds(pid) <= before {
            sum = std::hint::black_box(sum.wrapping_add(1));
            assert!(begun.elapsed().as_secs() < 20, "no CPU time was seen");
        }
        assert!(super::memory(pid).rss > 0);
        assert!(super::memory(pid).pss > 0);
        assert!(super::machine_busy_seconds() > 0.0);
        assert!(super::tree(pid).contains(&pid));
    }
}
