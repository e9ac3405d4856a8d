//! The `sk_reuseport` program of Blitz: the socket of its bank that gets a datagram.
//!
//! Owns: the entry point, its maps and the object's license. Does not own: the rule (`blitz_ebpf_common::steer`),
//! access to the datagram (see [`datagram`]), what a panic becomes (see [`panic`]), the maps' contents (`blitz-ctl`).
//!
//! A datagram that nobody gets goes to the sink, which refuses it. `SK_DROP` would make the kernel answer with an ICMP
//! error, for which clients give a connection up; it is left for a bank that has no sink.
#![no_std]
#![no_main]

mod datagram;
mod panic;

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::macros::{map, sk_reuseport};
use aya_ebpf::maps::{Array, PerCpuArray, ReusePortSockArray};
use aya_ebpf::programs::SkReuseportContext;
use blitz_ebpf_common::steer::{Aim, Entry, Refusal, SOCKETS_MAX, VERSION};

use crate::datagram::Datagram;

/// The license that the kernel reads before it offers GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[map]
static STEERING: Array<Entry> = Array::with_max_entries(1, 0);
#[map]
static BANK: ReusePortSockArray = ReusePortSockArray::with_max_entries(SOCKETS_MAX, 0);
#[map]
static AIMS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Aim::LABELS.len() as u32, 0);

/// Octets of a UDP header, which the datagram begins with.
const UDP_HEADER: usize = 8;

/// Decides, counts, and chooses a socket.
#[sk_reuseport]
fn blitz_reuseport(context: SkReuseportContext) -> u32 {
    let Some(entry) = STEERING.get(0) else { return SK_DROP };
    let mut aim = if entry.version == VERSION {
        let length = context.len().saturating_sub(UDP_HEADER);
        entry.steering.aim(&Datagram::new(&context), UDP_HEADER, length)
    } else {
        Aim::Drop(Refusal::Unset)
    };
    let mut is_chosen = false;
    if let Aim::Owner(index) | Aim::Fresh(index) = aim {
        is_chosen = BANK.select_reuseport(&context, index).is_ok();
        if !is_chosen {
            aim = Aim::Drop(Refusal::Slot);
        }
    }
    if let Some(count) = AIMS.get_ptr_mut(aim.number()) {
        // SAFETY: this CPU's own value; nothing else on this CPU writes it while the program runs.
        unsafe { *count += 1 };
    }
    if is_chosen || BANK.select_reuseport(&context, entry.steering.bank.sink()).is_ok() {
        SK_PASS
    } else {
        SK_DROP
    }
}
