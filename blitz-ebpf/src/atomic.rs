//! Atomic access to a 64-bit word in a map value, on the BPF target.
//!
//! Owns: the load and the compare-and-swap, as the BPF target can express them. Does not own: the loop
//! around them or its bound (the limiter's), or the host's twin on `AtomicU64` (blitz-ebpf-common).
//!
//! `core` has no `compare_exchange` for this target, and LLVM 22 cannot select a relaxed 64-bit atomic
//! load for it. The intrinsic becomes the one instruction `cmpxchg_64` (instruction set v3, Linux 5.12),
//! and an aligned 64-bit volatile load is one instruction too, so it cannot tear.

use core::intrinsics::{AtomicOrdering, atomic_cxchg};

/// Reads the word at `word` in one instruction, without ordering.
///
/// # Safety
/// - `word` is aligned to 8 bytes and readable for the length of the call.
/// - Whoever writes the word meanwhile does so in one instruction.
#[inline(always)]
pub(crate) unsafe fn load(word: *const u64) -> u64 {
    // SAFETY: readable and aligned by this function's contract.
    unsafe { core::ptr::read_volatile(word) }
}

/// Stores `new` at `word` in one instruction, without ordering.
///
/// # Safety
/// - `word` is aligned to 8 bytes and writable for the length of the call.
/// - Whoever else writes the word does so in one instruction.
#[inline(always)]
pub(crate) unsafe fn store(word: *mut u64, new: u64) {
    // SAFETY: writable and aligned by this function's contract.
    unsafe { core::ptr::write_volatile(word, new) }
}

/// Stores `new` at `word` if `old` is there; `Err` holds what was there instead. Sequentially consistent.
///
/// # Safety
/// - `word` is aligned to 8 bytes, readable and writable for the length of the call.
/// - Whoever else writes the word does so in one instruction.
#[inline(always)]
pub(crate) unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> Result<u64, u64> {
    // SAFETY: writable and aligned by this function's contract.
    let (seen, is_stored) = unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new)
    };
    if is_stored { Ok(seen) } else { Err(seen) }
}
