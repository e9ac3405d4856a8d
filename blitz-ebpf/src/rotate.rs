//! Many sources from one packet, for measurements.
//!
//! Owns: the load-time constant `ROTATE_SOURCES`. Zero, as in every attached program, and the verifier
//! removes the code. A power of two `n`: each packet gets the next of `n` IPv4 source addresses, so that
//! BPF_PROG_TEST_RUN, which repeats one packet, can measure tables under many sources.

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use blitz_ebpf_common::packet::Packet;

/// How many sources; zero or a power of two. Set by the loader before the program is loaded.
#[unsafe(no_mangle)]
static ROTATE_SOURCES: u32 = 0;

#[map]
static ROTATION: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// `packet`, or the same from the next source.
#[inline(always)]
pub(crate) fn source(mut packet: Packet) -> Packet {
    // SAFETY: a static of this object. Volatile, since the loader changes it behind the compiler's back.
    let sources = unsafe { core::ptr::read_volatile(&raw const ROTATE_SOURCES) };
    if sources != 0
        && let Some(next) = ROTATION.get_ptr_mut(0)
    {
        // SAFETY: this CPU's own value; nothing else on this CPU writes it while the program runs.
        let turn = unsafe { &mut *next };
        *turn = turn.wrapping_add(1);
        // An odd multiplier visits every source once in a round, and no two neighbours in turn.
        packet.source[3] = packet.source[3].wrapping_add(turn.wrapping_mul(0x9e37_79b1) & (sources - 1));
    }
    packet
}
