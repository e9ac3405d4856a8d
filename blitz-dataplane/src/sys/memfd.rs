//! Anonymous files (memfd_create(2)) and their seals (fcntl(2), F_ADD_SEALS).
//!
//! Owns: creation, sizing, sealing. Does not own: what is in them (see `segment`), or the mapping
//! (see [`super::mmap`]).

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Seals of a file whose size can never change again: a mapping of it cannot fault beyond its end.
pub const SIZE_SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Creates an empty, sealable memfd, close-on-exec. `name` shows in `/proc/PID/maps`.
///
/// # Errors
/// What memfd_create(2) reports: no descriptor or no memory left.
pub fn create(name: &CStr) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A zeroed memfd of exactly `len` bytes, sealed against any change of size.
///
/// # Errors
/// As [`create`], and ENOSPC or ENOMEM when the size cannot be had.
pub fn create_sized(name: &CStr, len: u64) -> io::Result<OwnedFd> {
    let file = File::from(create(name)?);
    file.set_len(len)?;
    let fd = OwnedFd::from(file);
    add_seals(&fd, SIZE_SEALS)?;
    Ok(fd)
}

/// A memfd that holds `bytes` and can never be written again.
///
/// # Errors
/// As [`create_sized`].
pub fn create_read_only(name: &CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = File::from(create(name)?);
    file.write_all_at(bytes, 0)?;
    let fd = OwnedFd::from(file);
    add_seals(&fd, SIZE_SEALS | libc::F_SEAL_WRITE)?;
    Ok(fd)
}

/// The seals of `fd`.
///
/// # Errors
/// EINVAL when `fd` is not a memfd.
pub fn seals(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: F_GET_SEALS takes no pointer; `fd` is open because it is borrowed.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 { Err(io::Error::last_os_error()) } else { Ok(seals) }
}

fn add_seals(fd: &OwnedFd, seals: i32) -> io::Result<()> {
    // SAFETY: F_ADD_SEALS takes an integer; `fd` is open because we own it.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
