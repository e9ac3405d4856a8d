//! The two allocators: mimalloc, from which Rust has its memory, and the system's, from which the C libraries have
//! theirs (mallinfo2(3), malloc_trim(3)).
//!
//! Owns: what they offer; one that is not glibc's is left to itself. Does not own: when they are asked (`heap.rs`).

/// Has mimalloc give back what has been free for a while (10 ms unless `MIMALLOC_PURGE_DELAY` says otherwise). By itself
/// it does so when it is used, and an idle worker does not use it.
pub fn collect() {
    // SAFETY: it takes a flag; it touches free memory of this thread only.
    unsafe { libmimalloc_sys::mi_collect(false) };
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
