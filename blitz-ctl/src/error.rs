//! Errors as an operator reads them: one sentence with the cause and the remedy.
//!
//! Owns: the type, its kinds, the exit code of each. Does not own: what went wrong (each module words
//! its own causes).
#![forbid(unsafe_code)]

use std::fmt;
use std::io;

/// What a step of `blitz-ctl` ends with when it cannot do its work. What was in force stays in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    cause: String,
    remedy: String,
}

/// A result whose error is one sentence.
pub type Result<T> = std::result::Result<T, Error>;

/// Classes of errors; each has an exit code and a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The machine or a file did not do what was asked.
    System,
    /// The command line or the configuration is wrong.
    Usage,
    /// A capability or a permission is missing.
    Rights,
    /// There is no such interface, or it cannot hold a stage.
    Interface,
    /// No stage is attached where one is needed.
    NotAttached,
    /// A program, link or map of another owner is in the way.
    Foreign,
    /// What is pinned has another layout or other sizes.
    Layout,
    /// A table has no room.
    Full,
    /// The kernel is too old or lacks something.
    Kernel,
    /// The named entry does not exist.
    NotFound,
}

impl Kind {
    /// The process's exit code.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::System => 1,
            Self::Usage => 2,
            Self::Rights => 3,
            Self::Interface | Self::NotAttached | Self::NotFound => 4,
            Self::Foreign | Self::Layout => 5,
            Self::Full => 6,
            Self::Kernel => 7,
        }
    }

    /// A stable name, for `--json` and for the control socket.
    pub const fn label(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Usage => "usage",
            Self::Rights => "rights",
            Self::Interface => "interface",
            Self::NotAttached => "not_attached",
            Self::Foreign => "foreign",
            Self::Layout => "layout",
            Self::Full => "full",
            Self::Kernel => "kernel",
            Self::NotFound => "not_found",
        }
    }
}

impl Error {
    /// An error of `kind`: what is the matter, and what to do about it. Neither ends with a full stop.
    pub fn new(kind: Kind, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind, cause: cause.into(), remedy: remedy.into() }
    }

    /// The error of a system call or file: `what` failed with `error`. Missing rights become
    /// [`Kind::Rights`], with the remedy that goes with them.
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::new(
                Kind::Rights,
                format!("{what}: {error}"),
                "run as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and CAP_PERFMON and access to the pins",
            ),
            Some(libc::ENOMEM) => Self::new(
                Kind::System,
                format!("{what}: {error}"),
                "lower xdp.sources_max or xdp.deny_max, or raise the memory limit of the unit (MemoryMax)",
            ),
            // Not all callers can say that nothing was changed.
            _ => Self::new(Kind::System, format!("{what}: {error}"), "`dmesg` may say more"),
        }
    }

    /// Which class it belongs to.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// What is the matter.
    pub fn cause(&self) -> &str {
        &self.cause
    }

    /// What to do about it.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }

    /// The same error about `what`, which is set before the cause.
    #[must_use]
    pub fn about(mut self, what: impl fmt::Display) -> Self {
        self.cause = format!("{what}: {}", self.cause);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause, self.remedy)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_sentence_with_cause_and_remedy() {
        let error = Error::new(Kind::Full, "the table is full", "make it larger").about("eth0");
        assert_eq!(error.to_string(), "eth0: the table is full; make it larger");
        assert_eq!(error.kind().exit_code(), 6);
    }

    #[test]
    fn a_refused_call_names_the_rights() {
        let error = Error::io("bpf", &io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(error.kind(), Kind::Rights);
        assert!(error.remedy().contains("CAP_PERFMON"));
    }
}
