//! Which HTTP/3 error code a stream ends with (RFC 9114 section 8.1).
//!
//! Owns: the codes that we send, and the one of each kind of error. Does not own: the kinds (`exchange/error.rs`), or
//! errors of a connection that quiche finds.

use crate::exchange::ErrorKind;
use crate::http2;
use crate::http2::frame;

/// A code of HTTP/3 that we send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Code {
    /// The end of a connection, or of what is read of a request, in order.
    NoError = 0x100,
    /// Something failed behind us.
    InternalError = 0x102,
    /// The client burdens the gateway.
    ExcessiveLoad = 0x107,
    /// Nothing was done: the client may send it again.
    RequestRejected = 0x10b,
    /// What was asked for will not be had.
    RequestCancelled = 0x10c,
    /// The request breaks the rules.
    MessageError = 0x10e,
}

/// The code for a stream whose answer can no longer be given, or not to its end: what HTTP/2 has for it.
#[must_use]
pub const fn code(kind: ErrorKind) -> Code {
    match http2::code(kind) {
        frame::Code::ProtocolError => Code::MessageError,
        frame::Code::RefusedStream => Code::RequestRejected,
        frame::Code::Cancel => Code::RequestCancelled,
        _ => Code::InternalError,
    }
}
