//! What a worker gives up before it reads a network byte (prctl(2), capabilities(7)).
//!
//! Owns: no-new-privileges, capability sets, the death signal, stray descriptors. Does not own: when each is
//! called (see `process::worker`).

use std::io;
use std::os::fd::AsRawFd;

/// No program that this process starts can gain rights (PR_SET_NO_NEW_PRIVS).
///
/// # Errors
/// EINVAL before Linux 3.5.
pub fn no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
}

/// The kernel kills this process when the thread that started it ends. Does not cover a parent that is gone
/// already: check [`parent`] afterwards.
///
/// # Errors
/// None that a correct call can meet.
pub fn die_with_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0)
}

/// Process id of the parent.
pub fn parent() -> u32 {
    std::os::unix::process::parent_id()
}

/// Empties the effective, permitted, inheritable and ambient capability sets of the calling thread, and its
/// bounding set where that is permitted. The process must have one thread.
///
/// # Errors
/// What capset(2) reports; giving up is always permitted, so an error means a filter in the way.
pub fn drop_capabilities() -> io::Result<()> {
    // The bounding set first: removing from it takes CAP_SETPCAP, which the next step gives up. A process
    // without that right keeps its bounding set, which no-new-privileges makes useless.
    for capability in 0..=CAPABILITY_LAST {
        if prctl(libc::PR_CAPBSET_DROP, capability, 0).is_err() {
            break;
        }
    }
    match prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0) {
        // Kernels before 4.3 have no ambient set.
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
        _ => {}
    }
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let empty = [CapabilityData::default(); 2];
    // SAFETY: version 3 takes one header and two data structures, both live; the kernel only reads them.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, empty.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Effective and permitted capabilities of the calling thread as bits.
///
/// # Errors
/// None that a correct call can meet.
pub fn capabilities() -> io::Result<(u64, u64)> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: version 3 takes one header and room for two data structures, both live and the second writable.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let [low, high] = data;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok((join(low.effective, high.effective), join(low.permitted, high.permitted)))
}

/// Marks every descriptor above standard error as close-on-exec: what this program inherited by accident does
/// not reach the workers.
///
/// # Errors
/// ENOSYS or EINVAL before Linux 5.11: the caller may go on, since all that we open ourselves is marked.
pub fn keep_inherited_from_children() -> io::Result<()> {
    // SAFETY: integers only; with this flag nothing is closed in this process.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets standard input be `/dev/null`.
///
/// # Errors
/// `/dev/null` cannot be opened.
pub fn close_stdin() -> io::Result<()> {
    let null = std::fs::File::open("/dev/null")?;
    // SAFETY: both numbers are open descriptors; number 0 stays open under another file, so nobody who uses
    // it is left with a closed or foreign number.
    let result = unsafe { libc::dup2(null.as_raw_fd(), libc::STDIN_FILENO) };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// Highest number that the 64-bit sets can hold; the kernel refuses those it does not know, which ends the
/// loop.
const CAPABILITY_LAST: libc::c_ulong = 63;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn prctl(option: i32, second: libc::c_ulong, third: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: the options used in this file take integers only.
    let result = unsafe { libc::prctl(option, second, third, zero, zero) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_drops_its_capabilities_has_none() {
        // Capabilities belong to threads, so the rest of the test process keeps its own.
        std::thread::spawn(|| {
            no_new_privileges().expect("no new privileges");
            drop_capabilities().expect("drop");
            assert_eq!(capabilities().expect("read"), (0, 0));
        })
        .join()
        .expect("thread");
    }
}
