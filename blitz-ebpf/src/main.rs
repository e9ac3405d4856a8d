//! The XDP program of Blitz.
//!
//! Owns: the entry point, the object's license. Does not own: atomics (see [`atomic`]), what a panic
//! becomes (see [`panic`]).
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "compare-and-swap on BPF exists as an intrinsic only; see `atomic`")]

mod atomic;
mod panic;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::XdpContext;

/// The license that the kernel reads before it offers GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// How many packets were seen, saturating when the word is contended.
#[map(name = "SEEN")]
static SEEN: Array<u64> = Array::with_max_entries(1, 0);

/// Tries of one compare-and-swap loop.
const TRIES_MAX: usize = 4;

/// Passes every packet and counts it.
#[xdp(frags)]
fn blitz_xdp(context: XdpContext) -> u32 {
    #[cfg(feature = "reachable-panic")]
    panic::reach(&context);
    let _ = context;
    if let Some(word) = SEEN.get_ptr_mut(0) {
        for _ in 0..TRIES_MAX {
            // SAFETY: the map's value is 8 aligned bytes, and every writer uses compare-and-swap.
            let old = unsafe { atomic::load(word) };
            // SAFETY: as above.
            if unsafe { atomic::compare_exchange(word, old, old.wrapping_add(1)) }.is_ok() {
                break;
            }
        }
    }
    xdp_action::XDP_PASS
}
