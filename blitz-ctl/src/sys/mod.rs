//! The fence around system calls: all `unsafe` of this crate lies below here.
//!
//! Owns: thin, checked wrappers that return `io::Result`. Does not own: policy, wording.

pub mod capability;
pub mod clock;
pub mod ethtool;
pub mod link;
pub mod map;
pub mod mount;
pub mod random;
pub mod rtnetlink;
pub mod wipe;
pub mod xdp;

use std::io;

/// Commands of bpf(2) that are used here, by their number in linux/bpf.h.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    ObjectGet = 7,
    InfoByDescriptor = 15,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
}

/// bpf(2) with the first `size_of::<A>()` octets of its attributes; the kernel takes the rest as zero.
///
/// # Safety
/// - `A` is `repr(C)`, without padding, and laid out as the kernel expects for `command`.
/// - Every address in it points to memory that is as large as `command` makes it, and lives for the call.
unsafe fn bpf<A>(command: Command, attributes: &mut A) -> io::Result<i32> {
    let size = size_of::<A>();
    // SAFETY: the attributes are live and `size` octets long; what they point to is the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as i32, std::ptr::from_mut(attributes), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(i32::MAX)) }
}
