//! Request heads into the h2 crate's types, answer heads out of them: the upstream end (RFC 9113 section 8.3).
//!
//! Owns: the mapping both ways and its rules. Does not own: the downstream end (`head.rs`), whose reading of fields
//! is used here, the bytes (HPACK), the body.

use std::net::SocketAddr;

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Request, Uri, response};

use super::head::{read_fields, read_trailers, write_fields};
use super::values;
use crate::exchange::head::{FIELD_OVERHEAD_BYTES, read_length};
use crate::exchange::{BodyLength, ErrorKind, Method, ProxyError, RequestHead, ResponseHead, Scheme};
use crate::fields::{Fields, Known};
use crate::http1::HeadLimits;

/// A request's head. `scheme` is that of the connection; `fallback` is the authority of a request that named none
/// (HTTP/1.0).
///
/// # Errors
/// A head that HTTP/2 cannot carry; it is the client's.
pub(super) fn write_request(
    head: &RequestHead,
    length: BodyLength,
    scheme: Scheme,
    fallback: SocketAddr,
) -> Result<Request<()>, ProxyError> {
    let bad = |detail| ProxyError::new(ErrorKind::BadRequestHead).with_detail(detail);
    let mut request = Request::new(());
    *request.method_mut() =
        http::Method::from_bytes(head.method.as_bytes()).map_err(|_| bad("bad_method"))?;
    let authority = if head.authority.is_empty() {
        Authority::try_from(fallback.to_string())
    } else {
        Authority::try_from(head.authority.as_slice())
    };
    let uri = Uri::builder()
        .scheme(scheme.as_str())
        .authority(authority.map_err(|_| bad("bad_host"))?)
        .path_and_query(path(&head.path).ok_or_else(|| bad("bad_target"))?);
    *request.uri_mut() = uri.build().map_err(|_| bad("bad_target"))?;
    let mut fields = write_fields(&head.fields)?;
    if head.fields.contains(Known::Te) {
        // Only `trailers` is left of it (RFC 9113 section 8.2.2).
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let BodyLength::Exact(length) = length {
        fields.insert(header::CONTENT_LENGTH, values::length(length));
    } else if length == BodyLength::Empty && head.method.anticipates_content() {
        fields.insert(header::CONTENT_LENGTH, values::length(0));
    }
    *request.headers_mut() = fields;
    Ok(request)
}

/// The path as the crate's type takes it: HTTP/1 clients send some octets raw that URIs do not have (RFC 3986 section
/// 2), which are escaped then. The meaning is the same (section 6.2.2.2).
fn path(path: &[u8]) -> Option<PathAndQuery> {
    if let Ok(path) = PathAndQuery::try_from(path) {
        return Some(path);
    }
    let mut escaped = Vec::with_capacity(path.len() + 16);
    for byte in path {
        match byte {
            b'<' | b'>' | b'`' | b'\\' | b'^' => escaped.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            _ => escaped.push(*byte),
        }
    }
    PathAndQuery::try_from(escaped).ok()
}

/// Reads an answer's head into `out`. `has_ended`: the stream has no body. Gives the body's length.
///
/// # Errors
/// A head that breaks the rules or the limits; it is the endpoint's.
pub(super) fn read_response(
    parts: &response::Parts,
    has_ended: bool,
    request_method: &Method,
    limits: &HeadLimits,
    out: &mut ResponseHead,
) -> Result<BodyLength, ProxyError> {
    out.clear();
    out.status = parts.status.as_u16();
    read_fields(&parts.headers, ":status".len() + 3 + FIELD_OVERHEAD_BYTES, limits, &mut out.fields)
        .map_err(in_answer)?;
    if !(100..=599).contains(&out.status) || out.status == 101 {
        // 101 does not exist in HTTP/2 (RFC 9113 section 8.6).
        return Err(ProxyError::new(ErrorKind::UpstreamBadHead).with_detail("bad_status"));
    }
    let describes = *request_method == Method::Head || out.status == 304;
    if describes {
        // It is kept: it describes the body that a GET would get.
        return Ok(BodyLength::Empty);
    }
    let length = read_length(has_ended, &mut out.fields).map_err(in_answer)?;
    let has_none = out.status == 204 || out.is_interim();
    Ok(if has_none { BodyLength::Empty } else { length })
}

/// Trailers of an answer.
///
/// # Errors
/// Trailers that break the rules or the limits.
pub(super) fn read_answer_trailers(
    headers: &HeaderMap,
    limits: &HeadLimits,
    out: &mut Fields,
) -> Result<(), ProxyError> {
    read_trailers(headers, limits, out).map_err(|error| match error.kind {
        ErrorKind::BadRequestHead => ProxyError::new(ErrorKind::UpstreamFraming).with_detail("bad_trailer"),
        _ => ProxyError::new(ErrorKind::UpstreamTrailersTooLarge),
    })
}

/// What is wrong with a request's fields is wrong with an answer's, on the other side.
fn in_answer(error: ProxyError) -> ProxyError {
    let kind = match error.kind {
        ErrorKind::BadRequestHead => ErrorKind::UpstreamBadHead,
        _ => ErrorKind::UpstreamHeadTooLarge,
    };
    ProxyError::new(kind).with_detail(if kind == ErrorKind::UpstreamBadHead {
        error.detail
    } else {
        kind.label()
    })
}

#[cfg(test)]
#[path = "client_head_tests.rs"]
mod tests;
