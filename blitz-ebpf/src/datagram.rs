//! The datagram as the `sk_reuseport` program may read it.
//!
//! Owns: the bounds check before each read, in the form that the verifier follows. Does not own: what the octets mean
//! (`blitz_ebpf_common::quic`).

use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::programs::SkReuseportContext;
use blitz_ebpf_common::packet::{Bytes, OFFSET_MAX};

/// A datagram from its UDP header on. Of a GRO aggregate it is the first, with the length of the whole.
pub(crate) struct Datagram<'a> {
    context: &'a SkReuseportContext,
    start: usize,
    end: usize,
}

impl<'a> Datagram<'a> {
    /// The datagram that a socket is chosen for.
    #[inline(always)]
    pub(crate) fn new(context: &'a SkReuseportContext) -> Self {
        Self { context, start: context.data(), end: context.data_end() }
    }
}

impl Bytes for Datagram<'_> {
    #[inline(always)]
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        // The bound on `at` comes first: the verifier adds only a known range to a packet pointer.
        if at > OFFSET_MAX {
            return None;
        }
        let from = self.start + at;
        if from + N <= self.end {
            // SAFETY: `from .. from + N` lies within the linear part, checked above, and an array of octets has no
            // alignment. The verifier checks the same again.
            return Some(unsafe { core::ptr::read(from as *const [u8; N]) });
        }
        // Headers that a driver or GRO left in the pieces behind the linear part.
        let mut octets = [0; N];
        let to = octets.as_mut_ptr().cast();
        // SAFETY: the context of this very call, and room for N octets; the helper checks the offset.
        let result = unsafe { bpf_skb_load_bytes(self.context.md.cast(), at as u32, to, N as u32) };
        if result == 0 { Some(octets) } else { None }
    }
}
