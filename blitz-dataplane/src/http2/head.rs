//! Request heads out of the h2 crate's types, answer heads into them (RFC 9113 section 8.3).
//!
//! The crate has checked the syntax: lower-case names, pseudo-header fields first, known, once and present, no
//! connection-specific field, `te` only as `trailers`, one Content-Length. What is left is what two readers could
//! take for different requests, and it is treated as in HTTP/1: see `http1/request.rs`.
//!
//! Owns: the mapping both ways and its rules. Does not own: the bytes (HPACK), the body.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, request};

use super::values;
use crate::date::IMF_FIXDATE_BYTES;
use crate::exchange::{
    BodyLength, ErrorKind, Method, ProxyError, RequestHead, ResponseHead, Scheme, Upgrade, authority,
};
use crate::fields::{FieldError, Fields, Known, KnownSet, Occurrence, has_token, list_members};
use crate::http1::HeadLimits;

/// What RFC 9113 section 6.5.2 counts for a field beside its name and value, in bytes.
pub(super) const FIELD_OVERHEAD_BYTES: usize = 32;

/// Pseudo-header fields of a request: names, and 32 bytes each.
const PSEUDO_BYTES: usize = ":method".len() + ":scheme".len() + ":path".len() + 3 * FIELD_OVERHEAD_BYTES;

/// Fields that HTTP/2 does not carry (RFC 9113 section 8.2.2), and Content-Length, which is written apart.
const NOT_SENT: KnownSet = KnownSet::of(&[
    Known::Connection,
    Known::KeepAlive,
    Known::ProxyConnection,
    Known::TransferEncoding,
    Known::Upgrade,
    Known::Te,
    Known::Http2Settings,
    Known::ContentLength,
]);

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
    // RFC 9220 section 3 says what RFC 8441 leaves open.
    let unknown = || ProxyError::new(ErrorKind::NotImplemented).with_detail("connect_protocol");
    out.upgrade = Some(Upgrade::from_token(protocol).ok_or_else(unknown)?);
    out.method = Method::Get;
    Ok(":protocol".len() + protocol.len() + FIELD_OVERHEAD_BYTES)
}

/// What is left of a request that switches protocols: it has no body, and no key of HTTP/1 (RFC 8441 section 5).
fn read_upgrade(length: BodyLength, out: &mut RequestHead) -> Result<BodyLength, ProxyError> {
    if matches!(length, BodyLength::Exact(_)) {
        return Err(malformed("bad_length"));
    }
    out.fields.remove_set(KnownSet::of(&[Known::SecWebSocketKey, Known::SecWebSocketAccept, Known::Expect]));
    Ok(BodyLength::Empty)
}

/// `:scheme`, `:authority` and `:path` (RFC 9113 section 8.3.1). Gives what they count.
fn read_target(uri: &http::Uri, limits: &HeadLimits, out: &mut RequestHead) -> Result<usize, ProxyError> {
    let mut size = 0;
    if let Some(authority) = uri.authority() {
        let authority = authority.as_str().as_bytes();
        if !authority::is_valid(authority) {
            return Err(malformed("bad_host"));
        }
        out.authority.extend_from_slice(authority);
        size += ":authority".len() + authority.len() + FIELD_OVERHEAD_BYTES;
    }
    if out.method == Method::Connect {
        // Without a path and a scheme.
        return Ok(size);
    }
    // The crate drops a scheme without an authority.
    if let Some(scheme) = uri.scheme() {
        let scheme = match scheme.as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(ProxyError::new(ErrorKind::Misdirected).with_detail("scheme_mismatch")),
        };
        // RFC 9110 section 7.4.
        if scheme != out.scheme {
            return Err(ProxyError::new(ErrorKind::Misdirected).with_detail("scheme_mismatch"));
        }
    }
    let path = uri.path_and_query().map_or(&b""[..], |path| path.as_str().as_bytes());
    if path.len() > limits.target_bytes_max {
        return Err(ProxyError::new(ErrorKind::TargetTooLong));
    }
    let is_asterisk = path == b"*" && out.method == Method::Options;
    if !is_asterisk && path.first() != Some(&b'/') {
        return Err(malformed("bad_target"));
    }
    if path.iter().fold(false, |bad, byte| bad | !byte.is_ascii_graphic() | (*byte == b'#')) {
        return Err(malformed("bad_target"));
    }
    out.path.extend_from_slice(path);
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
    let mut crumbs = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
    match (crumbs.next(), crumbs.next()) {
        (None, _) => Ok(()),
        (Some(only), None) => out.push_known(Known::Cookie, only).map_err(field_error),
        (Some(first), Some(second)) => {
            let mut parts = vec![first];
            for crumb in std::iter::once(second).chain(crumbs) {
                parts.extend([&b"; "[..], crumb]);
            }
            out.push_known_parts(Known::Cookie, &parts).map_err(field_error)
        }
    }
}

/// Host says the same as `:authority`, or stands in for it (RFC 9113 section 8.3.1).
fn read_host(out: &mut RequestHead) -> Result<(), ProxyError> {
    match out.fields.occurrence(Known::Host) {
        Occurrence::Repeated => return Err(malformed("duplicate_host")),
        Occurrence::Absent if out.authority.is_empty() => return Err(malformed("missing_host")),
        Occurrence::Absent => {}
        Occurrence::Once(host) if !authority::is_valid(host) => return Err(malformed("bad_host")),
        Occurrence::Once(host) if out.authority.is_empty() => out.authority.extend_from_slice(host),
        Occurrence::Once(host) if host.eq_ignore_ascii_case(&out.authority) => {}
        Occurrence::Once(_) => return Err(malformed("host_mismatch")),
    }
    out.fields.remove(Known::Host);
    Ok(())
}

/// The crate compares the length with what DATA brings; it takes several equal ones, which are refused here as in
/// HTTP/1.
pub(super) fn read_length(has_ended: bool, fields: &mut Fields) -> Result<BodyLength, ProxyError> {
    let declared = match fields.occurrence(Known::ContentLength) {
        Occurrence::Absent => None,
        Occurrence::Repeated => return Err(malformed("duplicate_length")),
        Occurrence::Once(value) => Some(parse_length(value).ok_or_else(|| malformed("bad_length"))?),
    };
    fields.remove(Known::ContentLength);
    Ok(match declared {
        Some(length) => BodyLength::Exact(length),
        None if has_ended => BodyLength::Empty,
        None => BodyLength::Unknown,
    })
}

fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 20 {
        return None;
    }
    value.iter().try_fold(0_u64, |length, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        length.checked_mul(10)?.checked_add(digit)
    })
}

/// RFC 9110 section 10.1.1.
fn expects_continue(length: BodyLength, fields: &Fields) -> Result<bool, ProxyError> {
    if !fields.contains(Known::Expect) {
        return Ok(false);
    }
    let mut members = fields.get_all(Known::Expect).flat_map(list_members);
    if !members.all(|member| has_token(member, b"100-continue")) {
        return Err(ProxyError::new(ErrorKind::ExpectationFailed));
    }
    Ok(!matches!(length, BodyLength::Empty | BodyLength::Exact(0)))
}

const fn malformed(detail: &'static str) -> ProxyError {
    ProxyError::new(ErrorKind::BadRequestHead).with_detail(detail)
}

const fn field_error(error: FieldError) -> ProxyError {
    match error {
        FieldError::Name => malformed("bad_field_name"),
        FieldError::Value | FieldError::Layout => malformed("bad_field_value"),
        FieldError::SectionFull => ProxyError::new(ErrorKind::RequestHeadTooLarge),
    }
}

/// How the body of an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerBody {
    /// None follows: HEADERS ends the stream.
    None,
    /// DATA follows.
    Data,
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
    if is_head_request || matches!(head.status, 204 | 304) {
        // It describes the body that a GET would get (RFC 9110 section 8.6).
        if head.status != 204
            && let Some(value) = head.fields.get(Known::ContentLength)
            && let Ok(value) = HeaderValue::from_bytes(value)
        {
            fields.insert(header::CONTENT_LENGTH, value);
        } else if is_head_request && let BodyLength::Exact(length) = length {
            fields.insert(header::CONTENT_LENGTH, values::length(length));
        }
        return Ok((response, AnswerBody::None));
    }
    let body = match length {
        BodyLength::Empty => {
            fields.insert(header::CONTENT_LENGTH, values::length(0));
            AnswerBody::None
        }
        BodyLength::Exact(length) => {
            fields.insert(header::CONTENT_LENGTH, values::length(length));
            if length == 0 { AnswerBody::None } else { AnswerBody::Data }
        }
        BodyLength::Unknown => AnswerBody::Data,
    };
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
