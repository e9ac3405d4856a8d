//! The BPF object that is embedded in this program.
//!
//! Owns: its octets. Does not own: how it is built (`cargo xtask build-ebpf`), or loading it
//! (see [`crate::stage`]).
#![forbid(unsafe_code)]

/// The object, aligned as its parser wants it. The copy that is committed is what the pinned toolchain
/// makes of `blitz-ebpf/`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../object/blitz.bpf.o");
