//! Why a conversation failed.
//!
//! Owns: the error type of this crate and its sentences.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;

use crate::{DESCRIPTORS_MAX, FRAME_BYTES_MAX};

/// Why a conversation failed. After any of these but [`Error::Refused`] the connection is of no more use.
#[derive(Debug)]
pub enum Error {
    /// The daemon declined; its sentence says why. The connection lives on.
    Refused(String),
    /// The socket failed. The text says what was tried.
    Io(&'static str, io::Error),
    /// The peer closed the connection, or an earlier failure has ended it.
    Closed,
    /// The peer said nothing whole within the deadline.
    TimedOut,
    /// The peer closed the connection within a frame.
    Truncated,
    /// A frame announced this many octets.
    Length(u32),
    /// A frame came with this many descriptors where [`Error::Descriptors::expected`] were due.
    Descriptors {
        /// How many came. They have been closed.
        found: usize,
        /// How many belong to such a frame.
        expected: usize,
    },
    /// The reserved word of a frame is not zero.
    Reserved(u16),
    /// A frame of this kind is unknown, or has no place here.
    Kind(u16),
    /// A payload is not what its kind says.
    Payload(serde_json::Error),
    /// A message to be sent is larger than [`FRAME_BYTES_MAX`].
    TooLarge(usize),
}

impl Error {
    /// Whether a new connection may succeed where this one failed: the daemon was away, slow or restarted.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Io(..) | Self::Closed | Self::TimedOut | Self::Truncated)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(sentence) => f.write_str(sentence),
            Self::Io(what, error) => write!(f, "{what}: {error}"),
            Self::Closed => f.write_str("the control connection is closed"),
            Self::TimedOut => f.write_str("no answer on the control connection in time"),
            Self::Truncated => f.write_str("the control connection ended within a frame"),
            Self::Length(length) => {
                write!(f, "a control frame announced {length} octets; 4 to {FRAME_BYTES_MAX} are accepted")
            }
            Self::Descriptors { found, expected } => write!(
                f,
                "{found} descriptors came with a control frame that takes {expected}; they have been closed \
                 (at most {DESCRIPTORS_MAX} may come with any)"
            ),
            Self::Reserved(value) => {
                write!(f, "the reserved word of a control frame is {value}, not zero")
            }
            Self::Kind(kind) => write!(f, "a control frame of kind {kind} has no place here"),
            Self::Payload(error) => write!(f, "the payload of a control frame: {error}"),
            Self::TooLarge(size) => {
                write!(f, "a control message of {size} octets is too large (at most {FRAME_BYTES_MAX})")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(_, error) => Some(error),
            Self::Payload(error) => Some(error),
            _ => None,
        }
    }
}
