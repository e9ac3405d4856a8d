//! Capability sets of the calling thread (capabilities(7), capget(2)).
//!
//! Owns: reading and narrowing them. Does not own: which are needed (see [`crate::capabilities`]).

use std::io;

/// Effective and permitted capabilities of the calling thread, as bits by capability number.
///
/// # Errors
/// None that a correct call can meet.
pub fn sets() -> io::Result<(u64, u64)> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 takes one header and room for two data structures, both live, the second writable.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let [low, high] = data;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok((join(low.effective, high.effective), join(low.permitted, high.permitted)))
}

/// Keeps only the capabilities of `keep`: effective and permitted become `keep`, inheritable and ambient
/// empty, and the bounding set loses all others where that is allowed. The process must have one thread.
///
/// # Errors
/// EPERM when `keep` holds one that is not permitted now.
pub fn reduce_to(keep: u64) -> io::Result<()> {
    for capability in 0..64 {
        let kept = keep >> capability & 1 == 1;
        // Without CAP_SETPCAP the bounding set stays; numbers that the kernel does not know end the loop.
        if !kept && prctl(libc::PR_CAPBSET_DROP, capability, 0).is_err() {
            break;
        }
    }
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0)?;
    let header = Header { version: VERSION_3, pid: 0 };
    let part = |shift: u32| {
        let bits = (keep >> shift & u64::from(u32::MAX)) as u32;
        Data { effective: bits, permitted: bits, inheritable: 0 }
    };
    let data = [part(0), part(32)];
    // SAFETY: version 3 takes one header and two data structures, both live; the kernel only reads them.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Data {
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
