//! The BPF file system.
//!
//! Owns: is it mounted at a path (statfs(2)), mounting it (mount(2)). Does not own: where and when
//! (see [`crate::pins`]).

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Whether `path` lies in a BPF file system.
///
/// # Errors
/// What statfs(2) reports, ENOENT when `path` does not exist.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    let path = c_path(path)?;
    let mut found = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the path ends with a zero octet and the structure is live and writable.
    let result = unsafe { libc::statfs(path.as_ptr(), found.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all integers, zeroed above, so any state the call leaves is initialised.
    let found = unsafe { found.assume_init() };
    // The field's type differs between architectures.
    #[allow(clippy::unnecessary_cast, reason = "f_type is 32 bits wide on some architectures")]
    Ok(found.f_type as i64 & 0xffff_ffff == BPF_FS_MAGIC)
}

/// Mounts a BPF file system at `path`, as systemd does: no programs, devices or set-uid files in it, and
/// open to root only.
///
/// # Errors
/// What mount(2) reports; EPERM without CAP_SYS_ADMIN.
pub fn mount_bpffs(path: &Path) -> io::Result<()> {
    let target = c_path(path)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RELATIME;
    let (source, kind, data) = (c"bpf", c"bpf", c"mode=0700");
    // SAFETY: all four strings end with a zero octet and live for the call.
    let result =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
