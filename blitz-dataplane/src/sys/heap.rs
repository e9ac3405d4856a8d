//! The two allocators: mimalloc, from which Rust has its memory, and the system's, from which the C libraries have
//! theirs (mallinfo2(3), malloc_trim(3)).
//!
//! Owns: what they offer; one that is not glibc's is left to itself. Does not own: when they are asked (`heap.rs`).

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicBool, Ordering};

use mimalloc::MiMalloc;

/// mimalloc, told before its first block to take memory piece by piece (`arena_eager_commit` off).
///
/// Otherwise what is freed within a piece of its own counts as taken, and stays: an idle connection over HTTP/2 holds
/// 45 KB instead of 29. `MIMALLOC_ARENA_EAGER_COMMIT` goes before it.
#[derive(Debug)]
pub struct Allocator;

/// Its number in `mi_option_t`, which has no name in Rust.
const ARENA_EAGER_COMMIT: libmimalloc_sys::mi_option_t = 4;

static IS_TOLD: AtomicBool = AtomicBool::new(false);

#[cold]
fn tell() {
    // SAFETY: it sets a number. At worst two threads set it to the same; there is one before the first block.
    unsafe { libmimalloc_sys::mi_option_set_default(ARENA_EAGER_COMMIT, 0) };
    IS_TOLD.store(true, Ordering::Relaxed);
}

// SAFETY: every call is passed on to an allocator as it came.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !IS_TOLD.load(Ordering::Relaxed) {
            tell();
        }
        // SAFETY: the caller's promise, passed on.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !IS_TOLD.load(Ordering::Relaxed) {
            tell();
        }
        // SAFETY: the caller's promise, passed on.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { MiMalloc.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        unsafe { MiMalloc.realloc(memory, layout, size) }
    }
}

/// Has mimalloc give back what is free. By itself it does so while it is used, and an idle worker does not use it.
pub fn collect() {
    // SAFETY: it takes a flag; it touches free memory of this thread only.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// Bytes that the allocator has from the kernel and nobody uses, be they in memory or given back since. Takes time in
/// proportion to the number of free pieces.
#[cfg(target_env = "gnu")]
#[must_use]
pub fn free_bytes() -> usize {
    // SAFETY: it takes nothing and returns a struct of numbers; it locks the allocator as any allocation does.
    unsafe { libc::mallinfo2() }.fordblks
}

/// Gives whole pages that nobody uses back to the kernel.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    // SAFETY: it takes a number; it touches free memory only.
    unsafe { libc::malloc_trim(0) };
}

/// Not known here.
#[cfg(not(target_env = "gnu"))]
#[must_use]
pub fn free_bytes() -> usize {
    0
}

/// Not done here.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    /// No other option is 2 unless it is set: the number is still the right one.
    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: it takes a number and returns one.
        let value = |option| unsafe { libmimalloc_sys::mi_option_get(option) };
        assert_eq!([3, ARENA_EAGER_COMMIT, 5].map(value), [1, 2, 1]);
        tell();
        assert_eq!(value(ARENA_EAGER_COMMIT), 0);
        collect();
    }
}
