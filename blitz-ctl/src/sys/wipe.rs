//! Octets that are overwritten for certain.
//!
//! Owns: explicit_bzero(3). Does not own: what is secret (see [`crate::daemon`]).

/// Overwrites `bytes` with zeroes in a way that the optimizer may not remove.
pub fn wipe(bytes: &mut [u8]) {
    // SAFETY: `bytes` is a live writable slice of exactly the length given.
    unsafe { libc::explicit_bzero(bytes.as_mut_ptr().cast(), bytes.len()) };
}
