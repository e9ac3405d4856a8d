//! Rules of heads that HTTP/2 and HTTP/3 share (RFC 9113 section 8, RFC 9114 section 4).
//!
//! Owns: what the parts of a head may be once they are known, and how the body of an answer is sent. Does not own: the
//! types of either library (`http2/head.rs`, `http3/head.rs`), or HTTP/1, whose heads are text.

use super::refusal::{Form, refuse};
use super::stream::Answer;
use super::{
    BodyLength, ErrorKind, Method, ProxyError, RequestHead, ResponseHead, Scheme, Upgrade, authority,
};
use crate::fields::{FieldError, Fields, Known, KnownSet, Occurrence, has_token, list_members};
use crate::http1::HeadLimits;

/// What is counted for a field beside its name and value, in bytes (RFC 9113 section 6.5.2, RFC 9114 section 4.2.2).
pub const FIELD_OVERHEAD_BYTES: usize = 32;

/// Fields that these protocols do not carry (RFC 9113 section 8.2.2, RFC 9114 section 4.2), and Content-Length, which
/// is written apart.
pub const NOT_SENT: KnownSet = KnownSet::of(&[
    Known::Connection,
    Known::KeepAlive,
    Known::ProxyConnection,
    Known::TransferEncoding,
    Known::Upgrade,
    Known::Te,
    Known::Http2Settings,
    Known::ContentLength,
]);

/// A head that breaks the rules.
#[must_use]
pub const fn malformed(detail: &'static str) -> ProxyError {
    ProxyError::new(ErrorKind::BadRequestHead).with_detail(detail)
}

/// Why a field of a request cannot be kept.
#[must_use]
pub const fn field_error(error: FieldError) -> ProxyError {
    match error {
        FieldError::Name => malformed("bad_field_name"),
        FieldError::Value | FieldError::Layout => malformed("bad_field_value"),
        FieldError::SectionFull => ProxyError::new(ErrorKind::RequestHeadTooLarge),
    }
}

/// Takes `:scheme`, which has to be the connection's (RFC 9110 section 7.4).
///
/// # Errors
/// Another one.
pub fn check_scheme(scheme: &[u8], out: &RequestHead) -> Result<(), ProxyError> {
    let scheme = match scheme {
        b"http" => Some(Scheme::Http),
        b"https" => Some(Scheme::Https),
        _ => None,
    };
    if scheme == Some(out.scheme) {
        return Ok(());
    }
    Err(ProxyError::new(ErrorKind::Misdirected).with_detail("scheme_mismatch"))
}

/// Takes `:path`: origin form, or `*` for OPTIONS (RFC 9113 section 8.3.1, RFC 9114 section 4.3.1).
///
/// # Errors
/// Too long, or neither.
pub fn read_path(path: &[u8], limits: &HeadLimits, out: &mut RequestHead) -> Result<(), ProxyError> {
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
    Ok(())
}

/// Takes `:authority`.
///
/// # Errors
/// No host, or with a user in front.
pub fn read_authority(name: &[u8], out: &mut RequestHead) -> Result<(), ProxyError> {
    if !authority::is_valid(name) {
        return Err(malformed("bad_host"));
    }
    out.authority.extend_from_slice(name);
    Ok(())
}

/// Host says the same as `:authority`, or stands in for it (RFC 9113 section 8.3.1, RFC 9114 section 4.3.1).
///
/// # Errors
/// It says something else, or there is neither.
pub fn read_host(out: &mut RequestHead) -> Result<(), ProxyError> {
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

/// Takes Content-Length out of the fields; several are refused, also equal ones, as in HTTP/1. `has_ended`: no body
/// follows.
///
/// # Errors
/// Several, or none that is a number.
pub fn read_length(has_ended: bool, fields: &mut Fields) -> Result<BodyLength, ProxyError> {
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

/// Takes `:protocol` (RFC 8441 section 4, RFC 9220 section 3): for all that follows, the request is the GET with
/// Upgrade that it stands for.
///
/// # Errors
/// A protocol that is not passed on.
pub fn begin_upgrade(protocol: &[u8], out: &mut RequestHead) -> Result<(), ProxyError> {
    let unknown = || ProxyError::new(ErrorKind::NotImplemented).with_detail("connect_protocol");
    out.upgrade = Some(Upgrade::from_token(protocol).ok_or_else(unknown)?);
    out.method = Method::Get;
    Ok(())
}

/// What is left of a request that switches protocols: it has no body, and no key of HTTP/1 (RFC 8441 section 5).
///
/// # Errors
/// It says that it has a body.
pub fn read_upgrade(length: BodyLength, out: &mut RequestHead) -> Result<BodyLength, ProxyError> {
    if matches!(length, BodyLength::Exact(_)) {
        return Err(malformed("bad_length"));
    }
    out.fields.remove_set(KnownSet::of(&[Known::SecWebSocketKey, Known::SecWebSocketAccept, Known::Expect]));
    Ok(BodyLength::Empty)
}

/// Whether the client waits for a 100 (RFC 9110 section 10.1.1).
///
/// # Errors
/// Another expectation.
pub fn expects_continue(length: BodyLength, fields: &Fields) -> Result<bool, ProxyError> {
    if !fields.contains(Known::Expect) {
        return Ok(false);
    }
    let mut members = fields.get_all(Known::Expect).flat_map(list_members);
    if !members.all(|member| has_token(member, b"100-continue")) {
        return Err(ProxyError::new(ErrorKind::ExpectationFailed));
    }
    Ok(!matches!(length, BodyLength::Empty | BodyLength::Exact(0)))
}

/// Appends the crumbs of a cookie as one field (RFC 9113 section 8.2.3, RFC 9114 section 4.2.1).
///
/// # Errors
/// A crumb that is no value.
pub fn push_cookie<'a>(
    mut crumbs: impl Iterator<Item = &'a [u8]>,
    out: &mut Fields,
) -> Result<(), ProxyError> {
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

/// How the body of an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerBody {
    /// None follows: the head ends the stream.
    None,
    /// DATA follows.
    Data,
}

/// What an answer's Content-Length says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthField<'a> {
    /// There is none.
    Absent,
    /// This number.
    Number(u64),
    /// What the endpoint said of a body that is not sent.
    Quoted(&'a [u8]),
}

/// The length field of an answer, and whether a body follows.
pub fn answer_body(
    head: &ResponseHead,
    length: BodyLength,
    is_head_request: bool,
) -> (LengthField<'_>, AnswerBody) {
    if is_head_request || matches!(head.status, 204 | 304) {
        // It describes the body that a GET would get (RFC 9110 section 8.6).
        let field = match (head.fields.get(Known::ContentLength), length) {
            (Some(value), _) if head.status != 204 => LengthField::Quoted(value),
            (_, BodyLength::Exact(length)) if is_head_request => LengthField::Number(length),
            _ => LengthField::Absent,
        };
        return (field, AnswerBody::None);
    }
    match length {
        BodyLength::Empty | BodyLength::Exact(0) => (LengthField::Number(0), AnswerBody::None),
        BodyLength::Exact(length) => (LengthField::Number(length), AnswerBody::Data),
        BodyLength::Unknown => (LengthField::Absent, AnswerBody::Data),
    }
}

/// Answers a failed exchange where that is still possible, in a form that its client understands. Whether the stream
/// has to end with an error instead.
pub async fn answer_failure<A: Answer>(answer: &mut A, error: &ProxyError, form: Form) -> bool {
    let is_answered = !answer.has_begun() && error.status() != 0 && refuse(answer, error, form).await.is_ok();
    !is_answered && error.kind != ErrorKind::DownstreamClosed
}
