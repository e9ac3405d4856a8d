//! What the kernel programs of Blitz and user space share.
//!
//! Owns: the packet parser ([`packet`]), the decision about a packet ([`decide`]), the limiter's
//! arithmetic ([`gcra`]) and table ([`sources`]), the connection IDs of QUIC ([`cid`], [`quic`]) and the
//! steering by them ([`steer`]), and the layout of every map ([`layout`]). All of it is `no_std`, has no
//! state and no `unsafe`, and compiles for the kernel and for the host alike: the XDP program, the host's
//! twin of it, the fuzz targets and the limiter of the HTTP workers run the same lines. On the host only:
//! the steering rule's text for classic BPF (`cbpf`).
//! Does not own: map access and atomics in the kernel (`blitz-ebpf`), loading and filling
//! (`blitz-ctl`).

#![no_std]
#![cfg_attr(not(feature = "user"), forbid(unsafe_code))]

#[cfg(not(target_arch = "bpf"))]
pub mod cbpf;
pub mod chaskey;
pub mod cid;
pub mod decide;
#[doc(hidden)]
#[cfg(not(target_arch = "bpf"))]
pub mod fuzz;
pub mod gcra;
pub mod layout;
pub mod packet;
pub mod quic;
pub mod sources;
pub mod steer;
#[cfg(feature = "user")]
mod user;

#[cfg(test)]
extern crate std;
