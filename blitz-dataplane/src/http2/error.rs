//! Which HTTP/2 error code a stream ends with (RFC 9113 section 7).
//!
//! Owns: the column of the error table that only HTTP/2 has. Does not own: the kinds (`exchange/error.rs`), or
//! connection errors (`meter.rs`, and the h2 crate).

use h2::Reason;

use super::frame::Code;
use crate::exchange::ErrorKind;

/// The code for a stream whose answer can no longer be given, or not to its end.
#[must_use]
pub const fn code(kind: ErrorKind) -> Code {
    use ErrorKind as K;
    match kind {
        // Malformed (RFC 9113 section 8.1.1).
        K::BadRequestHead | K::BadRequestFraming => Code::ProtocolError,
        // Nothing was done: the client may send it again (section 8.7).
        K::Overload | K::Draining => Code::RefusedStream,
        // What was asked for will not be had, and nobody made a mistake in framing.
        K::TargetTooLong
        | K::RequestHeadTooLarge
        | K::TooManyRequestFields
        | K::RequestBodyTooLarge
        | K::ExpectationFailed
        | K::Misdirected
        | K::NotImplemented
        | K::VersionNotSupported
        | K::RequestHeadTimeout
        | K::RequestBodyTimeout
        | K::DownstreamClosed
        | K::DownstreamSendTimeout
        | K::GrpcTimeout
        | K::Denied
        | K::MethodNotAllowed
        | K::RateLimited
        | K::PlainOnTls
        // RFC 8441 section 5: as a TCP connection that is reset.
        | K::UpstreamTunnelReset
        | K::TunnelIdle
        | K::TunnelLifetime
        // Of the connection, before there are streams.
        | K::TlsHandshake
        | K::TlsHandshakeTimeout
        | K::NoRoute => Code::Cancel,
        K::DnsFailure
        | K::DnsTimeout
        | K::UpstreamConnectRefused
        | K::UpstreamConnectTimeout
        | K::UpstreamUnreachable
        | K::UpstreamConnectFailed
        | K::UpstreamTlsHandshake
        | K::UpstreamCertificate
        | K::UpstreamTlsAlert
        | K::UpstreamClosedBeforeAnswer
        | K::UpstreamClosedMidAnswer
        | K::UpstreamBadHead
        | K::UpstreamHeadTooLarge
        | K::UpstreamFraming
        | K::UpstreamTransferCoding
        | K::UpstreamTrailersTooLarge
        | K::UpstreamFirstByteTimeout
        | K::UpstreamBodyTimeout
        | K::UpstreamSendTimeout
        | K::UpstreamUpgradeFailed
        | K::NoHealthyEndpoint
        | K::UpstreamConnectionLimit
        | K::Loop
        | K::Configuration
        | K::Internal => Code::InternalError,
    }
}

impl From<Code> for Reason {
    fn from(code: Code) -> Self {
        Self::from(code as u32)
    }
}
