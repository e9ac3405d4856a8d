//! Which HTTP/3 error code a stream ends with (RFC 9114 section 8.1), and why a handshake has failed.
//!
//! Owns: the codes that we send, and the one of each kind of error; the reasons by which failed handshakes are counted.
//! Does not own: the kinds (`exchange/error.rs`), or errors of a connection that quiche finds.

use crate::exchange::ErrorKind;
use crate::http2;
use crate::http2::frame;
use crate::metrics::names::Metric;

/// CONNECTION_REFUSED (RFC 9000 section 20.1).
pub(super) const CONNECTION_REFUSED: u64 = 0x2;

/// A code of HTTP/3 that we send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Code {
    /// The end of a connection, or of what is read of a request, in order.
    NoError = 0x100,
    /// Something failed behind us.
    InternalError = 0x102,
    /// A frame came where it must not.
    FrameUnexpected = 0x105,
    /// The client burdens the gateway.
    ExcessiveLoad = 0x107,
    /// Nothing was done: the client may send it again.
    RequestRejected = 0x10b,
    /// What was asked for will not be had.
    RequestCancelled = 0x10c,
    /// The stream ended before there was a request.
    RequestIncomplete = 0x10d,
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

/// Why the handshake of a connection that is over has failed: as TLS over TCP counts it (`tls/handshake.rs`).
pub(super) fn failure(quic: &quiche::Connection) -> (Metric, &'static str) {
    // CONNECTION_REFUSED says that its time was up; an alert is one of TLS (RFC 9001 section 4.8, RFC 8446 section 6).
    let by_us = quic.local_error().filter(|error| !error.is_app).map(|error| error.error_code);
    match by_us {
        Some(CONNECTION_REFUSED) => (Metric::TlsFailedTimeout, "timeout"),
        Some(0x12a..=0x12e | 0x130 | 0x174) => (Metric::TlsFailedClientCertificate, "client_certificate"),
        Some(0x128 | 0x146 | 0x178) => (Metric::TlsFailedNothingInCommon, "nothing_in_common"),
        Some(0x10a | 0x12f | 0x132 | 0x133) => (Metric::TlsFailedMalformed, "malformed"),
        Some(_) => (Metric::TlsFailedOther, "other"),
        None if quic.is_timed_out() => (Metric::TlsFailedTimeout, "timeout"),
        None if quic.peer_error().is_some_and(|error| (0x100..0x200).contains(&error.error_code)) => {
            (Metric::TlsFailedAlert, "alert")
        }
        None => (Metric::TlsFailedClosed, "closed"),
    }
}
