//! Memory that was needed once goes back to the kernel.
//!
//! An allocator keeps what was freed. After a flood a worker would stay as large as the flood made it. So the worker
//! looks once a second, and has mimalloc give back what is free, which that does by itself only while it is used. The
//! system's allocator, in which a little that is in use at the end keeps all, is told to give back what was free at two
//! looks in a row and has not been given back before: what a steady load frees and takes again is not.
//!
//! Owns: when that is worth it. Does not own: the allocator (`sys/heap.rs`), the slots for receiving, which are treated
//! alike (`runtime/buf.rs`).
#![forbid(unsafe_code)]

use crate::runtime::Handle;
use crate::sys::heap;

/// Ticks of the worker between two looks (count): one second.
const TICKS: u32 = 4;

/// Less than this many bytes are not worth the page faults.
const WORTH_BYTES: usize = 1 << 20;

/// What a worker remembers of its allocator.
#[derive(Debug, Default)]
pub(crate) struct Heap {
    ticks: u32,
    /// Bytes that were free at the last look.
    free: usize,
    /// Bytes that were given back, at most, and not used since.
    given_back: usize,
}

impl Heap {
    /// To be called at every tick of the worker.
    pub(crate) fn tick(&mut self, handle: &Handle) {
        self.ticks = (self.ticks + 1) % TICKS;
        if self.ticks > 0 {
            return;
        }
        handle.cool();
        heap::collect();
        if self.is_worth(heap::free_bytes()) {
            heap::give_back();
        }
    }

    /// Whether so much of what is free now was free before, too, that it should go.
    fn is_worth(&mut self, free: usize) -> bool {
        self.given_back = self.given_back.min(free);
        let idle = self.free.min(free);
        self.free = free;
        let is_worth = idle.saturating_sub(self.given_back) >= WORTH_BYTES;
        if is_worth {
            self.given_back = free;
        }
        is_worth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn what_is_free_twice_is_given_back_once() {
        let mut heap = Heap::default();
        let looks = [0, 20 * MIB, 20 * MIB, 20 * MIB, 20 * MIB + 1000, 20 * MIB];
        let worth = looks.map(|free| heap.is_worth(free));
        assert_eq!(worth, [false, false, true, false, false, false]);
    }

    #[test]
    fn what_was_used_in_between_counts_again() {
        let mut heap = Heap::default();
        let looks = [20, 20, 3, 20, 20, 21, 20].map(|mib| mib * MIB);
        let worth = looks.map(|free| heap.is_worth(free));
        assert_eq!(worth, [false, true, false, false, true, false, false]);
    }

    #[test]
    fn a_load_that_comes_and_goes_keeps_its_memory() {
        let mut heap = Heap::default();
        assert!((0..100).all(|look| !heap.is_worth(if look % 2 == 0 { 0 } else { 50 * MIB })));
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn the_allocator_says_what_is_free() {
        let before = heap::free_bytes();
        let blocks: Vec<Vec<u8>> = (0..4096).map(|_| vec![1; 4096]).collect();
        // Behind the others, it keeps them all.
        let last = vec![1_u8; 4096];
        drop(blocks);
        assert!(heap::free_bytes() >= before + 8 * MIB, "{before} {}", heap::free_bytes());
        heap::give_back();
        assert_eq!(last.len(), 4096);
    }
}
