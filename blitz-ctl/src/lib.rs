//! The privileged side of Blitz.
//!
//! Owns: loading and linking the XDP program, filling its maps, the control socket, the exporter and
//! the command line. Does not own: what the program decides (`blitz-ebpf-common`), or any connection
//! (`blitz-dataplane`).

pub mod image;
pub mod prefixes;
pub mod rehearsal;
pub mod twin;
