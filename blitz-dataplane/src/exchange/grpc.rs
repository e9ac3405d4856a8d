//! What gRPC adds to an exchange (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
//!
//! Owns: which requests are gRPC, the status that stands for an error of the gateway, the syntax of `grpc-timeout` and
//! of `grpc-message`. Does not own: the answer (`refusal.rs`), the deadline (`proxy/mod.rs`). Messages and trailers are
//! a body and trailers like any other: nothing here sees them.

use super::ErrorKind;
use crate::fields::{Fields, Known, Occurrence};

/// The content type, without what may follow it.
const CONTENT_TYPE: &[u8] = b"application/grpc";

/// Digits of a timeout, at most ("at most 8 digits").
const TIMEOUT_DIGITS_MAX: usize = 8;

/// A status of gRPC (doc/statuscodes.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing more is known.
    Unknown = 2,
    /// The time that the client gave is over.
    DeadlineExceeded = 4,
    /// Not for this client.
    PermissionDenied = 7,
    /// Too large.
    ResourceExhausted = 8,
    /// Nobody here does that.
    Unimplemented = 12,
    /// The peers do not understand each other.
    Internal = 13,
    /// Not now; another try may help.
    Unavailable = 14,
    /// Who are you?
    Unauthenticated = 16,
}

impl Status {
    /// As `grpc-status` says it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "2",
            Self::DeadlineExceeded => "4",
            Self::PermissionDenied => "7",
            Self::ResourceExhausted => "8",
            Self::Unimplemented => "12",
            Self::Internal => "13",
            Self::Unavailable => "14",
            Self::Unauthenticated => "16",
        }
    }

    /// What an error of the gateway is to a gRPC client: the column of the error table that only gRPC has.
    #[must_use]
    pub const fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::GrpcTimeout => Self::DeadlineExceeded,
            // The table has no row for it, and this one says what is wrong.
            ErrorKind::RequestBodyTooLarge => Self::ResourceExhausted,
            _ => Self::of_http(kind.row().status),
        }
    }

    /// What clients make of a status of HTTP (doc/http-grpc-status-mapping.md). Ours is the same, so that it makes no
    /// difference whether the gateway or the client draws the conclusion.
    const fn of_http(status: u16) -> Self {
        match status {
            400 | 431 => Self::Internal,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            429 | 502 | 503 | 504 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}

/// Whether a request with these fields is gRPC.
#[must_use]
pub fn is_grpc(fields: &Fields) -> bool {
    matches!(fields.occurrence(Known::ContentType), Occurrence::Once(value) if is_content_type(value))
}

/// Whether it is `application/grpc`, with or without a subtype (`+proto`) or parameters. grpc-web is another protocol.
#[must_use]
pub fn is_content_type(value: &[u8]) -> bool {
    let Some((start, rest)) = value.split_at_checked(CONTENT_TYPE.len()) else { return false };
    start.eq_ignore_ascii_case(CONTENT_TYPE)
        && matches!(rest.first(), None | Some(b'+' | b';' | b' ' | b'\t'))
}

/// The time that the client gives a gRPC request, in milliseconds, rounded up. `None`: it gives none, or says it in a
/// way that is none; then it is the endpoint's to say so.
#[must_use]
pub fn timeout_ms(fields: &Fields) -> Option<u64> {
    if !fields.contains(Known::GrpcTimeout) {
        return None;
    }
    match fields.occurrence(Known::GrpcTimeout) {
        Occurrence::Once(value) if is_grpc(fields) => parse_timeout_ms(value),
        _ => None,
    }
}

fn parse_timeout_ms(value: &[u8]) -> Option<u64> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > TIMEOUT_DIGITS_MAX {
        return None;
    }
    let number = digits.iter().try_fold(0_u64, |number, byte| {
        byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0'))
    })?;
    Some(match unit {
        b'H' => number * 60 * 60 * 1000,
        b'M' => number * 60 * 1000,
        b'S' => number * 1000,
        b'm' => number,
        b'u' => number.div_ceil(1000),
        b'n' => number.div_ceil(1_000_000),
        _ => return None,
    })
}

/// A text as `grpc-message` holds it: space and visible ASCII but `%` as they are, every other byte as `%XX`.
#[must_use]
pub fn encode_message(text: &str) -> Vec<u8> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(byte);
        } else {
            let digit = |half: u8| HEX.get(usize::from(half)).copied().unwrap_or_default();
            encoded.extend([b'%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name.as_bytes(), value.as_bytes()).unwrap();
        }
        fields
    }

    #[test]
    fn what_is_grpc() {
        for value in
            ["application/grpc", "application/grpc+proto", "application/grpc;v=1", "Application/GRPC ; v=1"]
        {
            assert!(is_grpc(&fields(&[("Content-Type", value)])), "{value}");
        }
        for value in
            ["application/grpc-web", "application/grpc-web+proto", "application/grpcx", "application/grp", ""]
        {
            assert!(!is_grpc(&fields(&[("Content-Type", value)])), "{value}");
        }
        assert!(!is_grpc(&fields(&[])));
        let two = [("Content-Type", "application/grpc"), ("Content-Type", "text/html")];
        assert!(!is_grpc(&fields(&two)));
    }

    #[test]
    fn timeouts_are_rounded_up_to_milliseconds() {
        let hour = 60 * 60 * 1000;
        for (value, expected) in [
            ("1H", hour),
            ("99999999H", 99_999_999 * hour),
            ("2M", 120_000),
            ("3S", 3_000),
            ("0S", 0),
            ("00000250m", 250),
            ("1u", 1),
            ("1000u", 1),
            ("1001u", 2),
            ("1n", 1),
            ("99999999n", 100),
        ] {
            let fields = fields(&[("Content-Type", "application/grpc"), ("Grpc-Timeout", value)]);
            assert_eq!(timeout_ms(&fields), Some(expected), "{value}");
        }
    }

    #[test]
    fn timeouts_that_are_none() {
        for value in ["", "S", "5", "123456789m", "-1S", "+1S", "1s", "1 S", "1.5S", "1S,2S", "1h"] {
            assert_eq!(parse_timeout_ms(value.as_bytes()), None, "{value:?}");
        }
        let twice = [("Content-Type", "application/grpc"), ("grpc-timeout", "1S"), ("grpc-timeout", "2S")];
        assert_eq!(timeout_ms(&fields(&twice)), None);
        assert_eq!(timeout_ms(&fields(&[("grpc-timeout", "1S")])), None, "not gRPC");
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(encode_message("no_route"), b"no_route");
        assert_eq!(encode_message("50 % of\r\n~\u{7f}\u{e9}"), b"50 %25 of%0D%0A~%7F%C3%A9");
    }

    #[test]
    fn errors_are_what_clients_would_make_of_them() {
        for (kind, status) in [
            (ErrorKind::BadRequestHead, Status::Internal),
            (ErrorKind::RequestHeadTooLarge, Status::Internal),
            (ErrorKind::Denied, Status::PermissionDenied),
            (ErrorKind::NoRoute, Status::Unimplemented),
            (ErrorKind::RateLimited, Status::Unavailable),
            (ErrorKind::UpstreamConnectRefused, Status::Unavailable),
            (ErrorKind::NoHealthyEndpoint, Status::Unavailable),
            (ErrorKind::UpstreamFirstByteTimeout, Status::Unavailable),
            (ErrorKind::MethodNotAllowed, Status::Unknown),
            (ErrorKind::Internal, Status::Unknown),
            (ErrorKind::RequestBodyTooLarge, Status::ResourceExhausted),
            (ErrorKind::GrpcTimeout, Status::DeadlineExceeded),
        ] {
            assert_eq!(Status::of(kind), status, "{kind:?}");
            assert_eq!(Status::of(kind).as_str(), (status as u8).to_string());
        }
        assert_eq!(Status::of_http(401), Status::Unauthenticated);
    }
}
