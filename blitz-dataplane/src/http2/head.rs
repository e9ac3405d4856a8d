//! Request heads out of the h2 crate's types, answer heads into them (RFC 9113 section 8.3).
//!
//! The crate has checked the syntax: lower-case names, pseudo-header fields first, known, once and present, no
//! connection-specific field, `te` only as `trailers`, one Content-Length. What is left is what two readers could
//! take for different requests, and it is treated as in HTTP/1: see `http1/request.rs`.
//!
//! Owns: the mapping both ways. Does not own: the rules that HTTP/3 has too (`exchange/head.rs`), the bytes (HPACK),
//! the body.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, request};

use super::values;
use crate::date::IMF_FIXDATE_BYTES;
use crate::exchange::head::{
    AnswerBody, FIELD_OVERHEAD_BYTES, LengthField, NOT_SENT, answer_body, begin_upgrade, check_scheme,
    expects_continue, field_error, push_cookie, read_authority, read_host, read_length, read_path,
    read_upgrade,
};
use crate::exchange::{BodyLength, ErrorKind, Method, ProxyError, RequestHead, ResponseHead};
use crate::fields::{Fields, Known};
use crate::http1::HeadLimits;

/// Pseudo-header fields of a request: names, and 32 bytes each.
const PSEUDO_BYTES: usize = ":method".len() + ":scheme".len() + ":path".len() + 3 * FIELD_OVERHEAD_BYTES;

/// Reads a head into `out`, whose scheme is the connection's.
///
/// `has_ended`: the stream has no body. Gives the body's length.
///
/// # Errors
/// A target or host that is none, a scheme that this connection does not carry, a head beyond the limits.
pub(super) fn read_request(
    parts: &request::Parts,
    has_ended: bool,
    limits: &HeadLimits,
    out: &mut RequestHead,
) -> Result<BodyLength, ProxyError> {
    out.clear();
    let method = parts.method.as_str().as_bytes();
    out.method = Method::from_bytes(method)
        .ok_or_else(|| ProxyError::new(ErrorKind::NotImplemented).with_detail("method_too_long"))?;
    let mut size = PSEUDO_BYTES + method.len() + out.scheme.as_str().len();
    size += read_protocol(parts, out)?;
    size += read_target(&parts.uri, limits, out)?;
    read_fields(&parts.headers, size, limits, &mut out.fields)?;
    read_host(out)?;
    let length = read_length(has_ended, &mut out.fields)?;
    if out.upgrade.is_some() {
        return read_upgrade(length, out);
    }
    out.expects_continue = expects_continue(length, &out.fields)?;
    Ok(length)
}

/// `:protocol` (RFC 8441 section 4): for all that follows, the request is the GET with Upgrade that it stands for.
/// Gives what it counts.
fn read_protocol(parts: &request::Parts, out: &mut RequestHead) -> Result<usize, ProxyError> {
    // The crate lets it through with CONNECT only.
    let Some(protocol) = parts.extensions.get::<h2::ext::Protocol>() else { return Ok(0) };
    let protocol = protocol.as_str().as_bytes();
    begin_upgrade(protocol, out)?;
    Ok(":protocol".len() + protocol.len() + FIELD_OVERHEAD_BYTES)
}

/// `:scheme`, `:authority` and `:path` (RFC 9113 section 8.3.1). Gives what they count.
fn read_target(uri: &http::Uri, limits: &HeadLimits, out: &mut RequestHead) -> Result<usize, ProxyError> {
    let mut size = 0;
    if let Some(authority) = uri.authority() {
        let authority = authority.as_str().as_bytes();
        read_authority(authority, out)?;
        size += ":authority".len() + authority.len() + FIELD_OVERHEAD_BYTES;
    }
    if out.method == Method::Connect {
        // Without a path and a scheme.
        return Ok(size);
    }
    // The crate drops a scheme without an authority.
    if let Some(scheme) = uri.scheme() {
        check_scheme(scheme.as_str().as_bytes(), out)?;
    }
    let path = uri.path_and_query().map_or(&b""[..], |path| path.as_str().as_bytes());
    read_path(path, limits, out)?;
    Ok(size + path.len())
}

/// Fields within the limits; the crumbs of a cookie are joined (RFC 9113 section 8.2.3).
pub(super) fn read_fields(
    headers: &HeaderMap,
    size: usize,
    limits: &HeadLimits,
    out: &mut Fields,
) -> Result<(), ProxyError> {
    if headers.len() > limits.fields_max {
        return Err(ProxyError::new(ErrorKind::TooManyRequestFields));
    }
    let mut size = size;
    for (name, value) in headers {
        size += name.as_str().len() + value.len() + FIELD_OVERHEAD_BYTES;
        if size > limits.head_bytes_max {
            return Err(ProxyError::new(ErrorKind::RequestHeadTooLarge));
        }
        if name == header::COOKIE {
            continue;
        }
        out.push(name.as_str().as_bytes(), value.as_bytes()).map_err(field_error)?;
    }
    push_cookie(headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes), out)
}

/// An answer's head, and whether a body follows it.
pub(super) fn write_response(
    head: &ResponseHead,
    length: BodyLength,
    is_head_request: bool,
    date: &[u8; IMF_FIXDATE_BYTES],
) -> Result<(Response<()>, AnswerBody), ProxyError> {
    let mut response = write_head(head.status, &head.fields)?;
    let fields = response.headers_mut();
    if !head.fields.contains(Known::Date)
        && let Ok(value) = values::value(Known::Date, date)
    {
        fields.insert(header::DATE, value);
    }
    let (field, body) = answer_body(head, length, is_head_request);
    match field {
        LengthField::Absent => {}
        LengthField::Number(length) => {
            fields.insert(header::CONTENT_LENGTH, values::length(length));
        }
        LengthField::Quoted(value) => {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                fields.insert(header::CONTENT_LENGTH, value);
            }
        }
    }
    Ok((response, body))
}

/// The head that accepts an extended CONNECT (RFC 8441 section 5), from that of a 101.
pub(super) fn write_switch(head: &ResponseHead) -> Result<Response<()>, ProxyError> {
    let mut response = write_head(200, &head.fields)?;
    response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
    Ok(response)
}

/// A head with these fields, but for those that HTTP/2 does not carry.
pub(super) fn write_head(status: u16, fields: &Fields) -> Result<Response<()>, ProxyError> {
    let mut response = Response::new(());
    *response.status_mut() =
        StatusCode::from_u16(status).map_err(|_| ProxyError::new(ErrorKind::UpstreamBadHead))?;
    *response.headers_mut() = write_fields(fields)?;
    Ok(response)
}

/// Fields as the crate wants them, but for those that HTTP/2 does not carry.
pub(super) fn write_fields(fields: &Fields) -> Result<HeaderMap, ProxyError> {
    // Two more: Date and Content-Length.
    let mut headers = HeaderMap::with_capacity(fields.len() + 2);
    for (known, name, value) in fields.iter().filter(|(known, ..)| !NOT_SENT.contains(*known)) {
        let bad = || ProxyError::new(ErrorKind::UpstreamBadHead).with_detail("bad_field_name");
        let name = match known {
            Known::ContentType => header::CONTENT_TYPE,
            Known::Date => header::DATE,
            Known::Server => header::SERVER,
            Known::Via => header::VIA,
            _ => HeaderName::from_bytes(name).map_err(|_| bad())?,
        };
        headers.append(name, values::value(known, value).map_err(|_| bad())?);
    }
    Ok(headers)
}

/// Trailers of a request.
pub(super) fn read_trailers(
    headers: &HeaderMap,
    limits: &HeadLimits,
    out: &mut Fields,
) -> Result<(), ProxyError> {
    read_fields(headers, 0, limits, out)?;
    // What frames or routes a message has no place in a trailer (RFC 9110 section 6.5.1).
    out.remove_set(NOT_SENT.with(Known::Host));
    Ok(())
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
