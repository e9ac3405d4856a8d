//! The BPF objects that are embedded in this program.
//!
//! Owns: their octets. Does not own: how they are built (`cargo xtask build-ebpf`), or loading them
//! (see [`crate::stage`] and [`crate::reuseport`]).
#![forbid(unsafe_code)]

/// The XDP object, aligned as its parser wants it. The copy that is committed is what the pinned toolchain
/// makes of `blitz-ebpf/`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../object/blitz.bpf.o");
/// The `sk_reuseport` object, likewise.
pub static REUSEPORT: &[u8] = aya::include_bytes_aligned!("../object/blitz-reuseport.bpf.o");
