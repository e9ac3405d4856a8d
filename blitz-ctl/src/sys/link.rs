//! What the kernel says about a pinned BPF link.
//!
//! Owns: opening a pinned link and reading type, program and interface of it (bpf(2), BPF_OBJ_GET and
//! BPF_OBJ_GET_INFO_BY_FD). Does not own: making, updating and pinning links (aya does).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::{Command, bpf};

/// `BPF_LINK_TYPE_XDP` of linux/bpf.h.
pub const LINK_TYPE_XDP: u32 = 6;

/// The head of `struct bpf_link_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedLinkFacts {
    /// Kind of link, such as [`LINK_TYPE_XDP`].
    pub kind: u32,
    /// Number of the link.
    pub id: u32,
    /// Number of the program that it runs.
    pub program_id: u32,
    /// For XDP: index of the interface in its own namespace; 0 once the interface is gone.
    pub interface_index: u32,
}

/// Reads a link pinned at `path`.
///
/// # Errors
/// ENOENT without such a file, EACCES or EPERM without rights, EINVAL when it is no link.
pub fn pinned(path: &Path) -> io::Result<PinnedLinkFacts> {
    #[repr(C)]
    struct Get {
        path: u64,
        descriptor: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Info {
        descriptor: u32,
        length: u32,
        info: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct LinkInfo {
        kind: u32,
        id: u32,
        program_id: u32,
        hole: u32,
        // The union starts here, aligned to 8; in its XDP form the interface index comes first.
        interface_index: u32,
        rest: [u32; 27],
    }
    let path =
        CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut get = Get { path: path.as_ptr() as u64, descriptor: 0, flags: 0 };
    // SAFETY: the layout of BPF_OBJ_GET; the path ends with a zero octet and outlives the call.
    let raw = unsafe { bpf(Command::ObjectGet, &mut get) }?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
    let mut info = LinkInfo::default();
    let mut ask = Info {
        descriptor: descriptor.as_raw_fd().unsigned_abs(),
        length: size_of::<LinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the layout of BPF_OBJ_GET_INFO_BY_FD; `info` is live, writable and `length` octets long. For a
    // program or map the kernel fills the same octets with something else, all of them integers.
    unsafe { bpf(Command::InfoByDescriptor, &mut ask) }?;
    Ok(PinnedLinkFacts {
        kind: info.kind,
        id: info.id,
        program_id: info.program_id,
        interface_index: info.interface_index,
    })
}
