//! Anonymous memory mappings (mmap(2)), for memory that the kernel writes into.

use std::io;
use std::ptr::NonNull;

/// Zero-filled private pages, unmapped when dropped. Not inherited by a forked child.
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the pages belong to the process, not to a thread, and only the owner of this value hands out their address.
unsafe impl Send for Mapping {}
// SAFETY: a shared reference gives the address and the length, which never change.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps at least `len` bytes, rounded up to whole pages.
    ///
    /// # Errors
    /// What mmap(2) says; `ENOMEM` when the address space or the memory limit is used up.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        let len = len.max(1).next_multiple_of(4096);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(start.cast()) {
            Some(start) => Ok(Self { start, len }),
            None => Err(io::Error::other("mmap returned a null page")),
        }
    }

    /// Start of the mapping.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Gives the whole pages within this range back to the kernel; they read as zeros afterwards. That the kernel does
    /// not take them costs memory and nothing else.
    ///
    /// # Safety
    /// Nobody, the kernel included, refers to the bytes of the range, and what they hold is not needed.
    pub unsafe fn discard(&self, range: std::ops::Range<usize>) {
        let start = range.start.next_multiple_of(4096);
        let end = range.end.min(self.len) / 4096 * 4096;
        if start >= end {
            return;
        }
        // SAFETY: start < end <= len, so the place lies in the mapping.
        let place = unsafe { self.start.as_ptr().add(start) };
        // SAFETY: these are whole pages of a private anonymous mapping of ours, whose content the caller gives up.
        unsafe { libc::madvise(place.cast(), end - start, libc::MADV_DONTNEED) };
    }

    /// Length in bytes, a multiple of the page size.
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and len are those of a mapping that we made and have not unmapped.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
