//! Writes heads and chunks (RFC 9112 sections 3, 4 and 7.1).
//!
//! Owns: start lines, the fields that frame a message, chunk heads, trailers. Does not own: what is forwarded
//! (`exchange/forward.rs` has been applied), body bytes (they are sent from where they lie).
//!
//! All functions append to a buffer that the caller reuses. Host, Content-Length, Transfer-Encoding and the response's
//! Connection are written here and here only: lines of the same name in the fields are left out, so a field can never
//! contradict the framing.

use super::body::BodyFraming;
use super::head::Version;
use crate::date::IMF_FIXDATE_BYTES;
use crate::exchange::{BodyLength, RequestHead};
use crate::fields::{Fields, Known, KnownSet};

/// Fields of a request that the encoder writes itself.
const REQUEST_FRAMING: KnownSet = KnownSet::of(&[Known::Host, Known::ContentLength, Known::TransferEncoding]);

/// Fields of a response that the encoder writes itself.
const RESPONSE_FRAMING: KnownSet = KnownSet::of(&[Known::ContentLength, Known::TransferEncoding]);

/// What a response says of its body, and how it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseBody {
    /// No body follows and the status or method says so (HEAD, 1xx, 204, 304). A Content-Length among the fields is
    /// kept for HEAD and 304, where it describes the body that a GET would get.
    Omitted,
    /// So many bytes follow.
    Exact(u64),
    /// Chunks follow.
    Chunked,
    /// Bytes follow until the connection closes; for HTTP/1.0 clients.
    UntilClose,
}

impl ResponseBody {
    /// How a body of this length is sent to a client of this version, in answer to a HEAD request or another.
    #[must_use]
    pub const fn choose(status: u16, is_head_request: bool, length: BodyLength, client: Version) -> Self {
        if is_head_request || matches!(status, 100..=199 | 204 | 304) {
            return Self::Omitted;
        }
        match (length, client) {
            (BodyLength::Empty, _) => Self::Exact(0),
            (BodyLength::Exact(length), _) => Self::Exact(length),
            (BodyLength::Unknown, Version::Http11) => Self::Chunked,
            (BodyLength::Unknown, Version::Http10) => Self::UntilClose,
        }
    }
}

/// What the response says of the connection (RFC 9112 section 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionField {
    /// Nothing: the default of HTTP/1.1 holds, or the fields say what is to be said (an upgrade).
    Silent,
    /// `Connection: close`.
    Close,
    /// `Connection: keep-alive`, which an HTTP/1.0 client needs.
    KeepAlive,
}

impl ConnectionField {
    /// What to say to a client of this version when its connection is kept, or not. A body until close is never kept.
    #[must_use]
    pub const fn choose(keep_alive: bool, client: Version, body: ResponseBody) -> Self {
        match (keep_alive, client) {
            (false, _) => Self::Close,
            _ if matches!(body, ResponseBody::UntilClose) => Self::Close,
            (true, Version::Http11) => Self::Silent,
            (true, Version::Http10) => Self::KeepAlive,
        }
    }
}

/// Appends a request head with its empty line and says how its body must be framed.
///
/// Host comes first (RFC 9112 section 3.2) and is written even when the authority is empty, as that section asks. A
/// body of unknown length is sent in chunks. Content-Length: 0 is sent only for methods that anticipate content.
pub fn write_request_head(out: &mut Vec<u8>, head: &RequestHead, body: BodyLength) -> BodyFraming {
    out.extend_from_slice(head.method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(&head.path);
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(&head.authority);
    out.extend_from_slice(b"\r\n");
    write_fields(out, &head.fields, REQUEST_FRAMING);
    let framing = match body {
        BodyLength::Empty if head.method.anticipates_content() => BodyFraming::Exact(0),
        BodyLength::Empty => BodyFraming::Empty,
        BodyLength::Exact(length) => BodyFraming::Exact(length),
        BodyLength::Unknown => BodyFraming::Chunked,
    };
    match framing {
        BodyFraming::Exact(length) => write_content_length(out, length),
        BodyFraming::Chunked => out.extend_from_slice(CHUNKED_LINE),
        BodyFraming::Empty | BodyFraming::UntilClose => {}
    }
    out.extend_from_slice(b"\r\n");
    framing
}

/// Appends a final response head with its empty line. `date` is written unless the fields hold a Date
/// (RFC 9110 section 6.6.1). The status line always says HTTP/1.1 (RFC 9110 section 2.5). `more` are fields beside
/// those of the answer.
pub fn write_response_head(
    out: &mut Vec<u8>,
    status: u16,
    fields: &Fields,
    body: ResponseBody,
    connection: ConnectionField,
    date: &[u8; IMF_FIXDATE_BYTES],
    more: Option<&Fields>,
) {
    write_status_line(out, status);
    let mut except = RESPONSE_FRAMING;
    if body == ResponseBody::Omitted && !matches!(status, 100..=199 | 204) {
        except = except.without(KnownSet::of(&[Known::ContentLength]));
    }
    if connection != ConnectionField::Silent {
        except = except.with(Known::Connection);
    }
    if !fields.contains(Known::Date) {
        out.extend_from_slice(b"Date: ");
        out.extend_from_slice(date);
        out.extend_from_slice(b"\r\n");
    }
    write_fields(out, fields, except);
    if let Some(more) = more {
        write_fields(out, more, except);
    }
    match body {
        ResponseBody::Exact(length) => write_content_length(out, length),
        ResponseBody::Chunked => out.extend_from_slice(CHUNKED_LINE),
        ResponseBody::Omitted | ResponseBody::UntilClose => {}
    }
    match connection {
        ConnectionField::Silent => {}
        ConnectionField::Close => out.extend_from_slice(b"Connection: close\r\n"),
        ConnectionField::KeepAlive => out.extend_from_slice(b"Connection: keep-alive\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a 1xx head with its empty line: the status line and the fields, without framing or Date
/// (RFC 9110 section 15.2). For a 101 the fields hold Connection and Upgrade.
pub fn write_interim_head(out: &mut Vec<u8>, status: u16, fields: &Fields) {
    write_status_line(out, status);
    write_fields(out, fields, RESPONSE_FRAMING);
    out.extend_from_slice(b"\r\n");
}

/// Appends the size line of a chunk. Follow it with `length` bytes and [`write_chunk_end`]. A length of 0 writes
/// nothing, since it would end the body.
pub fn write_chunk_head(out: &mut Vec<u8>, length: usize) {
    if length == 0 {
        return;
    }
    let mut digits = [0_u8; usize::BITS as usize / 4];
    let mut left = length;
    let mut start = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = match (left & 0xf) as u8 {
            value @ 0..=9 => b'0' + value,
            value => b'a' + value - 10,
        };
        start = at;
        left >>= 4;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(start..).unwrap_or_default());
    out.extend_from_slice(b"\r\n");
}

/// Appends what follows the data of a chunk.
pub fn write_chunk_end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

/// Appends the last chunk, the trailers if there are any, and the final empty line.
pub fn write_last_chunk(out: &mut Vec<u8>, trailers: Option<&Fields>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        write_fields(out, trailers, REQUEST_FRAMING);
    }
    out.extend_from_slice(b"\r\n");
}

const CHUNKED_LINE: &[u8] = b"Transfer-Encoding: chunked\r\n";

/// All live lines but those of `except`.
fn write_fields(out: &mut Vec<u8>, fields: &Fields, except: KnownSet) {
    for run in fields.wire_runs(except) {
        out.extend_from_slice(run);
    }
}

fn write_content_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"Content-Length: ");
    write_decimal(out, length);
    out.extend_from_slice(b"\r\n");
}

/// Appends a number without the machinery of `fmt`.
fn write_decimal(out: &mut Vec<u8>, mut number: u64) {
    // 20 digits hold any 64-bit number.
    let mut digits = [0_u8; 20];
    let mut start = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (number % 10) as u8;
        start = at;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(start..).unwrap_or_default());
}

/// Appends the status line; one copy for a registered status.
fn write_status_line(out: &mut Vec<u8>, status: u16) {
    if let Some(line) = status_line(status) {
        out.extend_from_slice(line);
        return;
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    write_decimal(out, u64::from(status));
    // RFC 9112 section 4: the space stays when the reason phrase is absent.
    out.extend_from_slice(b" \r\n");
}

/// Declares lines and phrases from one list.
macro_rules! statuses {
    ($($code:literal $reason:literal,)*) => {
        /// The whole status line of a registered status.
        const fn status_line(status: u16) -> Option<&'static [u8]> {
            match status {
                $($code => Some(concat!("HTTP/1.1 ", $code, " ", $reason, "\r\n").as_bytes()),)*
                _ => None,
            }
        }

        /// The reason phrase of a registered status (RFC 9110 section 15 and the IANA registry); empty for others.
        #[must_use]
        pub const fn reason_phrase(status: u16) -> &'static str {
            match status {
                $($code => $reason,)*
                _ => "",
            }
        }
    };
}

statuses! {
    100 "Continue", 101 "Switching Protocols", 102 "Processing", 103 "Early Hints",
    200 "OK", 201 "Created", 202 "Accepted", 203 "Non-Authoritative Information", 204 "No Content",
    205 "Reset Content", 206 "Partial Content", 207 "Multi-Status", 208 "Already Reported", 226 "IM Used",
    300 "Multiple Choices", 301 "Moved Permanently", 302 "Found", 303 "See Other", 304 "Not Modified",
    305 "Use Proxy", 307 "Temporary Redirect", 308 "Permanent Redirect",
    400 "Bad Request", 401 "Unauthorized", 402 "Payment Required", 403 "Forbidden", 404 "Not Found",
    405 "Method Not Allowed", 406 "Not Acceptable", 407 "Proxy Authentication Required", 408 "Request Timeout",
    409 "Conflict", 410 "Gone", 411 "Length Required", 412 "Precondition Failed", 413 "Content Too Large",
    414 "URI Too Long", 415 "Unsupported Media Type", 416 "Range Not Satisfiable", 417 "Expectation Failed",
    421 "Misdirected Request", 422 "Unprocessable Content", 423 "Locked", 424 "Failed Dependency", 425 "Too Early",
    426 "Upgrade Required", 428 "Precondition Required", 429 "Too Many Requests",
    431 "Request Header Fields Too Large", 451 "Unavailable For Legal Reasons",
    500 "Internal Server Error", 501 "Not Implemented", 502 "Bad Gateway", 503 "Service Unavailable",
    504 "Gateway Timeout", 505 "HTTP Version Not Supported", 506 "Variant Also Negotiates",
    507 "Insufficient Storage", 508 "Loop Detected", 510 "Not Extended", 511 "Network Authentication Required",
}
