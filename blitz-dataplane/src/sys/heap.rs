//! The general allocator (mallinfo2(3), malloc_trim(3), mallopt(3)).
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

/// Has the allocator keep as many free bytes at the end of its memory until [`give_back`]. Otherwise it gives back 128 KiB
/// at once, and a load that takes and frees as much pays for every page with a fault, again and again.
#[cfg(target_env = "gnu")]
pub fn keep(bytes: i32) {
    // SAFETY: it takes numbers, and changes when free memory goes back and nothing else.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, bytes) };
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
pub fn keep(_bytes: i32) {}

/// Not done here.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
