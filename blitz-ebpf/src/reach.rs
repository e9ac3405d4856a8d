//! A panic that a packet can reach, for a test.
//!
//! Owns: reaching it. Does not own: what becomes of it (see [`crate::panic`]). Nothing here is in the committed object.

/// Panics when the frame's length is odd, so that a test can see the verifier refuse the object.
#[inline(always)]
pub(crate) fn reach(context: &aya_ebpf::programs::XdpContext) {
    let length = context.data_end() - context.data();
    assert!(length.is_multiple_of(2), "an odd length");
}
