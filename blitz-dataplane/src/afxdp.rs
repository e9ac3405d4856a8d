//! AF_XDP as a second way for the datagrams of QUIC, beside the kernel's UDP.
//!
//! Owns: frames ([`frame`]). Does not own: the sockets' memory and rings (`sys::xdp`), connections (`http3`).
#![forbid(unsafe_code)]

pub mod frame;
