//! The frame as the program may read it: between two packet pointers.
//!
//! Owns: the bounds check before each read, in the form that the verifier follows. Does not own: what
//! the octets mean (`blitz_ebpf_common::packet`).

use core::arch::asm;

use aya_ebpf::programs::XdpContext;
use blitz_ebpf_common::packet::{Bytes, OFFSET_MAX};

/// The linear part of a frame. With `frags` the rest lies elsewhere; headers that reach beyond the
/// linear part read as missing.
pub(crate) struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// The frame of a packet.
    #[inline(always)]
    pub(crate) fn new(context: &XdpContext) -> Self {
        Self { start: context.data(), end: context.data_end() }
    }
}

impl Bytes for Frame {
    #[inline(always)]
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        // The bound on `at` comes first: the verifier adds only a known range to a packet pointer.
        if at > OFFSET_MAX {
            return None;
        }
        let from = self.start + at;
        if from + N > self.end {
            return None;
        }
        // SAFETY: `from .. from + N` lies within the frame, checked above, and an array of octets has no
        // alignment. The verifier checks the same again.
        Some(unsafe { core::ptr::read(from as *const [u8; N]) })
    }
}

/// A frame that is read at places which the packet says.
///
/// Left alone, the compiler makes one comparison of several reads, or compares in a way from which the verifier learns
/// nothing. Each read here is its own.
pub(crate) struct Scattered(pub(crate) Frame);

impl Bytes for Scattered {
    #[inline(always)]
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        if at > OFFSET_MAX {
            return None;
        }
        let from = self.0.start + opaque(at);
        if opaque(from + N) > self.0.end {
            return None;
        }
        // SAFETY: as above.
        Some(unsafe { core::ptr::read(from as *const [u8; N]) })
    }
}

/// `value`, of which the compiler knows nothing any more.
#[inline(always)]
fn opaque(value: usize) -> usize {
    let hidden;
    // SAFETY: it copies one register to another.
    unsafe { asm!("{0} = {1}", lateout(reg) hidden, in(reg) value, options(pure, nomem, nostack)) };
    hidden
}
