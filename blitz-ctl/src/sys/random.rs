//! Random words from the kernel.
//!
//! Owns: getrandom(2). Does not own: what they are for.

use std::io;

/// One word that nobody can guess.
///
/// # Errors
/// What getrandom(2) reports; none once the kernel's pool is ready.
pub fn word() -> io::Result<u64> {
    let mut octets = [0_u8; 8];
    // SAFETY: the pointer and the length name the array, which the kernel only writes.
    let count = unsafe { libc::getrandom(octets.as_mut_ptr().cast(), octets.len(), 0) };
    // Requests of up to 256 octets are never cut short (getrandom(2)).
    if count == 8 { Ok(u64::from_ne_bytes(octets)) } else { Err(io::Error::last_os_error()) }
}
