//! The general allocator (mallinfo2(3), malloc_trim(3)).
//!
//! Owns: what glibc offers; elsewhere the allocator is left to itself. Does not own: when it is asked (`heap.rs`).

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
