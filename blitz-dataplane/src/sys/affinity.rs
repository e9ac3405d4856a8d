//! Processors (sched_setaffinity(2)), thread priority (setpriority(2)) and thread names.
//!
//! Owns: the calls. Does not own: which worker goes where (see `process::supervisor`).

use std::io;

/// Processors that the calling thread may run on, ascending.
///
/// # Errors
/// EINVAL on a machine with more processors than a `cpu_set_t` holds (1024).
pub fn allowed() -> io::Result<Vec<usize>> {
    let mut set = empty_set();
    // SAFETY: `set` is a live, writable cpu_set_t of the size given; pid 0 is the calling thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the index is below CPU_SETSIZE, the number of bits in the set.
    Ok((0..CPU_SETSIZE).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect())
}

/// Lets the calling thread run on processor `cpu` only. Threads that it starts later inherit this.
///
/// # Errors
/// EINVAL when there is no such processor or it is not allowed here.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= CPU_SETSIZE {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut set = empty_set();
    // SAFETY: `cpu` is below CPU_SETSIZE (checked above).
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is a live cpu_set_t of the size given; pid 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Raises the nice value of the calling thread by `increment` (1..=19): it yields to its siblings.
///
/// # Errors
/// What setpriority(2) reports; lowering one's own priority is always permitted.
pub fn lower_priority(increment: i32) -> io::Result<()> {
    // SAFETY: no pointer is passed; `who` 0 with PRIO_PROCESS is the calling thread on Linux.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, increment) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Number of the calling thread as the kernel shows it.
pub fn thread_id() -> u32 {
    // SAFETY: gettid takes nothing and cannot fail.
    let id = unsafe { libc::gettid() };
    u32::try_from(id).unwrap_or(0)
}

/// Names the calling thread, and the process when it is its first thread, as `ps` and `top` show it. The
/// kernel keeps 15 bytes.
///
/// # Errors
/// None that a live string can meet.
pub fn name_thread(name: &std::ffi::CStr) -> io::Result<()> {
    // SAFETY: `name` is a NUL-terminated string that outlives the call; the kernel reads at most 16 bytes of
    // it.
    let result = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const CPU_SETSIZE: usize = libc::CPU_SETSIZE as usize;

fn empty_set() -> libc::cpu_set_t {
    // SAFETY: cpu_set_t is an array of integers, for which all zeroes is a valid value: the empty set.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_run_on_one_processor_only() {
        let cpus = allowed().expect("affinity");
        let last = *cpus.last().expect("at least one processor");
        std::thread::spawn(move || {
            pin(last).expect("pin");
            assert_eq!(allowed().expect("affinity"), [last]);
            lower_priority(10).expect("nice");
            assert!(pin(CPU_SETSIZE).is_err());
            name_thread(c"blitz-w7").expect("name");
            let shown = std::fs::read_to_string("/proc/thread-self/comm").expect("comm");
            assert_eq!(shown, "blitz-w7\n");
        })
        .join()
        .expect("thread");
        assert_eq!(allowed().expect("affinity"), cpus);
    }
}
