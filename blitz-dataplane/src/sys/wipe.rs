//! Secrets: random bytes from the kernel, and bytes that are overwritten for certain.
//!
//! Owns: getrandom(2) and explicit_bzero(3). Does not own: the secret (see `crate::secret`).

use std::io;

/// Fills `bytes` from the kernel's generator, waiting for it to be seeded at early boot.
///
/// # Errors
/// ENOSYS on kernels before 3.17.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        // SAFETY: `rest` is a live writable slice of exactly the length given.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => filled += count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Overwrites `bytes` with zeroes in a way that the optimizer may not remove.
pub fn wipe(bytes: &mut [u8]) {
    // SAFETY: `bytes` is a live writable slice of exactly the length given.
    unsafe { libc::explicit_bzero(bytes.as_mut_ptr().cast(), bytes.len()) };
}
