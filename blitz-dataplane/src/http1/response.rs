//! Response heads (RFC 9112 sections 4 and 6.3).
//!
//! Owns: the rules for the status line and the response's body framing. Does not own: the syntax of lines (httparse),
//! the end of the head (`scan.rs`), whether an upgrade was asked for (the proxy).
//!
//! Endpoints are held to the same strictness as clients: what two readers could frame differently is an error, so that
//! a broken or hostile endpoint cannot slip a second answer into a shared connection.

use super::body::BodyFraming;
use super::error::H1Error;
use super::head::{
    ConnectionOptions, DeclaredLength, FIELDS_MAX, HeadLimits, Version, check_frame, declared_length,
    header_room, name_error, name_field_error,
};
use super::scan::{HeadScanner, Scan};
use crate::exchange::{BodyLength, Method, ResponseHead};
use crate::fields::Known;

/// What the head says of the connection and of the body that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseFraming {
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// How the body is framed.
    pub body: BodyFraming,
    /// The endpoint keeps the connection for another request; never after a body that ends with the connection.
    pub keep_alive: bool,
    /// `Connection: upgrade` with an Upgrade field; a 101 without is not to be passed on.
    pub has_upgrade: bool,
}

impl ResponseFraming {
    /// The body's length for those above the codec.
    #[must_use]
    pub const fn body_length(&self) -> BodyLength {
        self.body.length()
    }
}

/// Reads a response head from the bytes received so far; the counterpart of [`super::read_request`].
///
/// # Errors
/// Those of [`HeadScanner::scan`] and [`parse_response`].
pub fn read_response(
    scanner: &mut HeadScanner,
    bytes: &[u8],
    limits: &HeadLimits,
    request_method: &Method,
    out: &mut ResponseHead,
) -> Result<Option<(ResponseFraming, usize)>, H1Error> {
    if scanner.is_fresh() && !matches!(bytes, [] | [b'\r' | b'\n', ..]) {
        let seen = bytes.get(..limits.head_bytes_max).unwrap_or(bytes);
        if let Ok(Some(found)) = parse_prefix(seen, limits, request_method, out) {
            return Ok(Some(found));
        }
    }
    let Scan::Complete { start, end } = scanner.scan(bytes)? else {
        return Ok(None);
    };
    scanner.reset();
    let framing = parse_response(bytes.get(start..end).unwrap_or_default(), limits, request_method, out)?;
    Ok(Some((framing, end)))
}

/// Parses a complete response head, as [`HeadScanner`] found it, into `out`. `request_method` is that of the request it
/// answers.
///
/// Transfer-Encoding goes from the fields into the framing, and so does Content-Length, except where it only describes
/// a body that is not sent (HEAD, 304) and stays. The reason phrase is dropped (RFC 9112 section 4: it has no meaning).
///
/// # Errors
/// An [`H1Error`] that names the first rule broken; `out` holds nothing of use then, nothing may be forwarded and the
/// connection must not be reused.
pub fn parse_response(
    head: &[u8],
    limits: &HeadLimits,
    request_method: &Method,
    out: &mut ResponseHead,
) -> Result<ResponseFraming, H1Error> {
    check_frame(head, limits)?;
    match parse_prefix(head, limits, request_method, out)? {
        Some((framing, end)) if end == head.len() => Ok(framing),
        _ => Err(H1Error::BadHead),
    }
}

/// Parses the head at the start of `bytes`, which are within the limit; `None` when it is not complete.
fn parse_prefix(
    bytes: &[u8],
    limits: &HeadLimits,
    request_method: &Method,
    out: &mut ResponseHead,
) -> Result<Option<(ResponseFraming, usize)>, H1Error> {
    out.clear();
    let mut room = header_room();
    let mut response = httparse::Response::new(&mut []);
    let fields_room = room.get_mut(..limits.fields_max.min(FIELDS_MAX)).unwrap_or_default();
    let parsed = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut response, bytes, fields_room)
        .map_err(|error| name_response_error(error, bytes))?;
    let httparse::Status::Complete(end) = parsed else {
        return Ok(None);
    };
    let head = bytes.get(..end).ok_or(H1Error::BadHead)?;
    // httparse takes a bare LF after the status line; between fields `set_from_head` looks.
    let line_end = memchr::memchr(b'\n', head).and_then(|lf| lf.checked_sub(1)).and_then(|cr| head.get(cr));
    if line_end != Some(&b'\r') {
        return Err(H1Error::BareLf);
    }
    let status = response.code.filter(|code| (100..=599).contains(code)).ok_or(H1Error::BadStatusLine)?;
    let version = Version::from_minor(response.version);
    out.status = status;
    out.fields.set_from_head(head, response.headers).map_err(name_field_error)?;
    let declared = declared_length(&mut out.fields, version)?;
    let body = body_framing(status, request_method, declared)?;
    if matches!(body, BodyFraming::Exact(_)) || matches!(status, 100..=199 | 204) {
        out.fields.remove(Known::ContentLength);
    }
    let options = ConnectionOptions::of(&out.fields);
    let framing = ResponseFraming {
        version,
        body,
        keep_alive: options.persists(version) && body != BodyFraming::UntilClose,
        has_upgrade: options.upgrade,
    };
    Ok(Some((framing, end)))
}

/// RFC 9112 section 6.3, in its order.
fn body_framing(
    status: u16,
    request_method: &Method,
    declared: DeclaredLength,
) -> Result<BodyFraming, H1Error> {
    match status {
        // RFC 9110 section 8.6 and RFC 9112 section 6.1 forbid both fields here. A length of 0 says nothing wrong and
        // is common with 204; any other means that the endpoint may be about to send a body that nobody expects.
        100..=199 | 204 => match declared {
            DeclaredLength::None | DeclaredLength::Exact(0) => Ok(BodyFraming::Empty),
            DeclaredLength::Exact(_) | DeclaredLength::Chunked => Err(H1Error::ForbiddenBody),
        },
        304 => Ok(BodyFraming::Empty),
        _ if *request_method == Method::Head => Ok(BodyFraming::Empty),
        200..=299 if *request_method == Method::Connect => Ok(BodyFraming::Empty),
        _ => Ok(match declared {
            DeclaredLength::None => BodyFraming::UntilClose,
            DeclaredLength::Exact(length) => BodyFraming::Exact(length),
            DeclaredLength::Chunked => BodyFraming::Chunked,
        }),
    }
}

/// Names httparse's error, telling other versions of HTTP from lines that are none.
fn name_response_error(error: httparse::Error, head: &[u8]) -> H1Error {
    match name_error(error, head) {
        H1Error::BadVersion => match head {
            [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9', b' ', ..] => {
                H1Error::VersionUnsupported
            }
            _ => H1Error::BadVersion,
        },
        // There is no request line here.
        H1Error::BadRequestLine => H1Error::BadStatusLine,
        named => named,
    }
}
