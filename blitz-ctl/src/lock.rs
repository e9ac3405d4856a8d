//! One writer at a time.
//!
//! Owns: the lock on the pin directory. Does not own: what is done under it.
//!
//! Every change of pins or maps takes it: the command line, the daemon, a second command line. The
//! kernel releases it when the process ends, however it ends.
#![forbid(unsafe_code)]

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};

/// How long a writer waits for another. Filling a deny list of millions takes seconds, so this is
/// longer.
pub const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// Held while it lives.
#[derive(Debug)]
pub struct Lock {
    /// Closing it releases the lock.
    _directory: File,
}

/// Takes the lock of the directory `base` (flock(2)), waiting at most `patience`.
///
/// # Errors
/// [`Kind::System`] when another process holds it for longer; what opening the directory reports.
pub fn take(base: &Path, patience: Duration) -> Result<Lock> {
    let directory = File::open(base).map_err(|error| Error::io(base.display(), &error))?;
    let deadline = Instant::now() + patience;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(Lock { _directory: directory }),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(
                    Kind::System,
                    format!(
                        "another blitz-ctl has been changing {} for {} s",
                        base.display(),
                        patience.as_secs()
                    ),
                    "wait for it; `fuser -v` on that directory names the process",
                ));
            }
            Err(TryLockError::Error(error)) => {
                return Err(Error::io(format!("lock {}", base.display()), &error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_waits_and_then_says_why() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = take(directory.path(), PATIENCE).expect("free");
        let error = take(directory.path(), Duration::from_millis(20)).expect_err("held");
        assert!(error.to_string().contains("another blitz-ctl"), "{error}");
        drop(first);
        take(directory.path(), Duration::from_millis(20)).expect("free again");
    }
}
