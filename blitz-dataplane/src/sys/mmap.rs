//! A shared mapping of a whole memfd, read as structures of atomics.
//!
//! Owns: the mapping's lifetime and the bounds and alignment of every view into it. Does not own: the
//! layout (see `segment::layout`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// A structure that may be viewed in memory that other processes write at the same time.
///
/// # Safety
/// - `repr(C)`, built of atomics of integers only (padding included), so that every bit pattern is
///   valid and every access through `&Self` is atomic.
/// - No pointer, no reference, no drop code.
pub unsafe trait SharedPlain: Sized {}

// SAFETY: one atomic integer; every bit pattern is valid.
unsafe impl SharedPlain for std::sync::atomic::AtomicU64 {}
// SAFETY: one atomic integer; every bit pattern is valid.
unsafe impl SharedPlain for std::sync::atomic::AtomicU32 {}
// SAFETY: an array has the layout of its elements in a row, and each of them qualifies.
unsafe impl<T: SharedPlain, const N: usize> SharedPlain for [T; N] {}

/// A readable and writable MAP_SHARED mapping of `len` bytes, unmapped on drop.
#[derive(Debug)]
pub struct SharedMapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only viewed as `SharedPlain`
// (atomics), so access from several threads is no data race.
unsafe impl Send for SharedMapping {}
// SAFETY: as above; `&SharedMapping` only hands out `&T` where `T` is made of atomics.
unsafe impl Sync for SharedMapping {}

impl SharedMapping {
    /// Maps the first `len` bytes of `fd`.
    ///
    /// The caller has checked that the file is at least that long and sealed against shrinking;
    /// otherwise an access may end in SIGBUS (which is no memory error, but ends the process).
    ///
    /// # Errors
    /// EINVAL for `len == 0`, ENOMEM, EACCES as mmap(2) says.
    pub fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        Self::map_at(fd, len, 0)
    }

    /// Maps `len` bytes from `offset` on: a multiple of the page size, or what a kernel interface means by it.
    ///
    /// # Errors
    /// As [`Self::map`].
    pub fn map_at(fd: BorrowedFd<'_>, len: usize, offset: libc::off_t) -> io::Result<Self> {
        // SAFETY: a null hint lets the kernel choose a free range, so no existing memory is touched;
        // `fd` is open because it is borrowed.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(address.cast::<u8>()) {
            Some(base) => Ok(Self { base, len }),
            None => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
        }
    }

    /// Length of the mapping in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the mapping has no byte. mmap(2) refuses such a mapping, so this is never true.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A view of one `T` at byte `offset`, or `None` when it would leave the mapping or be misaligned.
    pub fn view<T: SharedPlain>(&self, offset: usize) -> Option<&T> {
        self.slice::<T>(offset, 1)?.first()
    }

    /// A view of `count` adjacent `T` at byte `offset`, or `None` when any of it would leave the mapping
    /// or be misaligned.
    pub fn slice<T: SharedPlain>(&self, offset: usize, count: usize) -> Option<&[T]> {
        let bytes = size_of::<T>().checked_mul(count)?;
        let end = offset.checked_add(bytes)?;
        if end > self.len || !(self.base.as_ptr() as usize + offset).is_multiple_of(align_of::<T>()) {
            return None;
        }
        // SAFETY: offset <= end <= len, so the result lies within the mapping.
        let start = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: `count` values of `T` lie within the mapping and are aligned (both checked above), live
        // as long as `self`; `SharedPlain` says that every bit pattern is valid and access is atomic.
        Some(unsafe { std::slice::from_raw_parts(start.cast::<T>(), count) })
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those of the mmap call, and every view borrows `self`, so none is left.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert_eq!(result, 0, "munmap of our own mapping cannot fail");
    }
}
