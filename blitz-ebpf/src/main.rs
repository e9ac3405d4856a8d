//! The XDP program of Blitz.
//!
//! Owns: the entry point and the object's license. Does not own: the decision (`blitz-ebpf-common`),
//! the maps (see [`tables`]), packet access (see [`frame`]), atomics (see [`atomic`]), what a panic
//! becomes (see [`panic`]).
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "compare-and-swap on BPF exists as an intrinsic only; see `atomic`")]

mod atomic;
mod frame;
mod panic;
#[cfg(feature = "reachable-panic")]
mod reach;
mod rotate;
mod tables;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use blitz_ebpf_common::decide::{Decision, Tables as _, decide_packet};
use blitz_ebpf_common::layout::{Fault, Verdict};
use blitz_ebpf_common::packet::parse;

use crate::frame::Frame;
use crate::tables::Maps;

/// The license that the kernel reads before it offers GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Parses a frame, decides, counts, and passes, drops or redirects it.
#[xdp(frags)]
fn blitz_xdp(context: XdpContext) -> u32 {
    #[cfg(feature = "reachable-panic")]
    reach::reach(&context);
    let maps = Maps::new(context.as_ptr().cast());
    let frame = Frame::new(&context);
    let mut decision = match parse(&frame) {
        Some(packet) => decide_packet(&frame, &rotate::source(packet), maps.length, &maps),
        None => Decision { verdict: Verdict::PassNotUnderstood, rule: 0 },
    };
    let mut action = if decision.verdict.drops() { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS };
    if decision.verdict == Verdict::Redirected {
        action = maps.redirect();
        if action != xdp_action::XDP_REDIRECT {
            maps.fault(Fault::NoSocket);
            decision.verdict = Verdict::PassService;
        }
    }
    maps.count(decision);
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(&context, "verdict {} rule {}", decision.verdict as u32, decision.rule);
    action
}
