//! xtask as cargo's wrapper around the compiler: gives each crate of the object an identity that no
//! machine shapes.
//!
//! Owns: rewriting `-C metadata`. Does not own: any other argument.
//!
//! cargo's own value contains the absolute path of a path dependency that lies outside the workspace's
//! folder, as `blitz-ebpf-common` does, and a hash that differs between versions of cargo. It ends up in
//! symbol names and through them in the order of functions, so two folders would give two objects.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::TARGET;
use crate::sh::Result;

/// Set for the inner cargo: this program is then the compiler's wrapper and nothing else.
pub(crate) const VARIABLE: &str = "BLITZ_XTASK_WRAPS_RUSTC";

/// Becomes the compiler that the first argument names. Returns only on failure.
pub(crate) fn become_rustc() -> Result<()> {
    let mut words = std::env::args_os().skip(1);
    let rustc = words.next().ok_or_else(|| format!("{VARIABLE} is for cargo to set, not for a person"))?;
    let variable = |name| std::env::var(name).unwrap_or_default();
    let identity = format!("{}-{}", variable("CARGO_PKG_NAME"), variable("CARGO_PKG_VERSION"));
    let mut words: Vec<_> = words.collect();
    // Crates that run on this machine while building are none of the object's.
    if words.iter().any(|word| word == TARGET) {
        for word in &mut words {
            if word.to_string_lossy().starts_with("metadata=") {
                *word = format!("metadata={identity}").into();
            }
        }
    }
    let error = Command::new(&rustc).args(words).exec();
    Err(format!("{}: {error}", rustc.to_string_lossy()))
}
