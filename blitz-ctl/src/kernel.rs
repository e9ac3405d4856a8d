//! Which kernels can hold the stage.
//!
//! Owns: the lowest release and the check of it. Does not own: what a driver can do (the kernel says so
//! at attach).
#![forbid(unsafe_code)]

use crate::error::{Error, Kind, Result};

/// The lowest release: XDP programs that take packets in several buffers (`frags`) came with 5.18, and
/// with them jumbo frames and drivers that receive into pages.
pub const LOWEST: (u32, u32) = (5, 18);

/// Refuses a kernel whose release (`uname -r`) is below [`LOWEST`].
///
/// # Errors
/// [`Kind::Kernel`] for an older release, and for one that does not start with two numbers.
pub fn check_release(release: &str) -> Result<()> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let mut next = || numbers.next().and_then(|digits| digits.parse::<u32>().ok());
    let (lowest_major, lowest_minor) = LOWEST;
    match (next(), next()) {
        (Some(major), Some(minor)) if (major, minor) >= LOWEST => Ok(()),
        (Some(_), Some(_)) => Err(Error::new(
            Kind::Kernel,
            format!(
                "this kernel is {release}, and the XDP program takes packets in several buffers, \
                 which came with Linux {lowest_major}.{lowest_minor}"
            ),
            format!(
                "boot Linux {lowest_major}.{lowest_minor} or later; `blitz` itself runs without the kernel stage"
            ),
        )),
        _ => Err(Error::new(
            Kind::Kernel,
            format!("the kernel calls its release {release:?}, which is no number"),
            "check `uname -r`",
        )),
    }
}

/// Refuses the running kernel when it is too old.
///
/// # Errors
/// As [`check_release`]; [`Kind::System`] when /proc is not there.
pub fn check() -> Result<()> {
    let path = "/proc/sys/kernel/osrelease";
    let release = std::fs::read_to_string(path).map_err(|error| Error::io(path, &error))?;
    check_release(release.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_from_the_lowest_on_are_taken() {
        for release in ["5.18.0", "5.18", "6.1.0-13-amd64", "6.18.44-custom", "10.0"] {
            assert_eq!(check_release(release), Ok(()), "{release}");
        }
    }

    #[test]
    fn older_kernels_get_one_sentence_with_cause_and_remedy() {
        for release in ["5.17.15", "5.4.0-150-generic", "4.19.0"] {
            let error = check_release(release).expect_err("too old");
            assert_eq!(error.kind(), Kind::Kernel);
            assert!(error.cause().contains(release) && error.cause().contains("5.18"), "{error}");
            assert!(error.remedy().contains("5.18"), "{error}");
        }
        assert!(check_release("unknown").is_err());
    }
}
