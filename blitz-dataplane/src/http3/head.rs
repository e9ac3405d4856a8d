//! Request heads out of lists of fields, answer heads into them (RFC 9114 sections 4.2 and 4.3).
//!
//! quiche decompresses and bounds; it checks nothing of what a field means. So all of the syntax is checked here:
//! lower-case names, pseudo-header fields first, known, once and present, no connection-specific field.
//!
//! Owns: that, and the mapping both ways. Does not own: the rules that HTTP/2 has too (`exchange/head.rs`), the bytes
//! (QPACK), the body.

use std::io::Write;

use quiche::h3::NameValue;

use crate::date::IMF_FIXDATE_BYTES;
use crate::exchange::head::{
    AnswerBody, FIELD_OVERHEAD_BYTES, LengthField, NOT_SENT, answer_body, begin_upgrade, check_scheme,
    expects_continue, field_error, malformed, push_cookie, read_authority, read_host, read_length, read_path,
    read_upgrade,
};
use crate::exchange::{BodyLength, ErrorKind, Method, ProxyError, RequestHead, ResponseHead};
use crate::fields::{Fields, Known};
use crate::http1::HeadLimits;

/// Why a head is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeadError {
    pub(super) error: ProxyError,
    /// It is malformed as RFC 9114 section 4.1.2 has it: the stream ends with H3_MESSAGE_ERROR. What is not gets an
    /// answer.
    pub(super) is_malformed: bool,
}

impl From<ProxyError> for HeadError {
    fn from(error: ProxyError) -> Self {
        Self { error, is_malformed: false }
    }
}

const fn broken(detail: &'static str) -> HeadError {
    HeadError { error: malformed(detail), is_malformed: true }
}

/// Pseudo-header fields of a request.
#[derive(Default)]
struct Pseudo<'a> {
    method: Option<&'a [u8]>,
    scheme: Option<&'a [u8]>,
    authority: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
    protocol: Option<&'a [u8]>,
}

/// Reads a head into `out`, whose scheme is the connection's.
///
/// `has_ended`: the stream has no body. Gives the body's length.
///
/// # Errors
/// What [`HeadError`] says.
pub(super) fn read_request<F: NameValue>(
    list: &[F],
    has_ended: bool,
    limits: &HeadLimits,
    out: &mut RequestHead,
) -> Result<BodyLength, HeadError> {
    out.clear();
    let count = list.iter().take_while(|field| field.name().first() == Some(&b':')).count();
    let (first, rest) = list.split_at(count);
    let mut pseudo = Pseudo::default();
    let mut size = 0;
    for field in first {
        let place = match field.name() {
            b":method" => &mut pseudo.method,
            b":scheme" => &mut pseudo.scheme,
            b":authority" => &mut pseudo.authority,
            b":path" => &mut pseudo.path,
            b":protocol" => &mut pseudo.protocol,
            _ => return Err(broken("unknown_pseudo_field")),
        };
        size += field.name().len() + field.value().len() + FIELD_OVERHEAD_BYTES;
        if place.replace(field.value()).is_some() {
            return Err(broken("duplicate_pseudo_field"));
        }
    }
    let method = pseudo.method.ok_or(broken("missing_method"))?;
    if method.is_empty() || !method.iter().all(|byte| crate::fields::is_token_byte(*byte)) {
        return Err(broken("bad_method"));
    }
    out.method = Method::from_bytes(method)
        .ok_or_else(|| ProxyError::new(ErrorKind::NotImplemented).with_detail("method_too_long"))?;
    // The syntax of everything, before what any of it means.
    read_fields(rest, size, limits, &mut out.fields)?;
    if let Some(protocol) = pseudo.protocol {
        if out.method != Method::Connect || pseudo.authority.is_none() {
            return Err(broken("bad_connect"));
        }
        begin_upgrade(protocol, out)?;
    }
    if out.method == Method::Connect {
        if pseudo.scheme.is_some() || pseudo.path.is_some() || pseudo.authority.is_none() {
            return Err(broken("bad_connect"));
        }
    } else {
        let scheme = pseudo.scheme.ok_or(broken("missing_scheme"))?;
        let path = pseudo.path.filter(|path| !path.is_empty()).ok_or(broken("missing_path"))?;
        check_scheme(scheme, out)?;
        read_path(path, limits, out)?;
    }
    if let Some(authority) = pseudo.authority {
        read_authority(authority, out)?;
    }
    read_host(out)?;
    let length = read_length(has_ended, &mut out.fields)?;
    if out.upgrade.is_some() {
        return Ok(read_upgrade(length, out)?);
    }
    if has_ended && matches!(length, BodyLength::Exact(length) if length > 0) {
        return Err(broken("body_too_short"));
    }
    out.expects_continue = expects_continue(length, &out.fields)?;
    Ok(length)
}

/// Fields without pseudo-header fields, within the limits; the crumbs of a cookie are joined.
fn read_fields<F: NameValue>(
    list: &[F],
    mut size: usize,
    limits: &HeadLimits,
    out: &mut Fields,
) -> Result<(), HeadError> {
    if list.len() > limits.fields_max {
        return Err(ProxyError::new(ErrorKind::TooManyRequestFields).into());
    }
    for field in list {
        let (name, value) = (field.name(), field.value());
        size += name.len() + value.len() + FIELD_OVERHEAD_BYTES;
        if size > limits.head_bytes_max {
            return Err(ProxyError::new(ErrorKind::RequestHeadTooLarge).into());
        }
        if name.first() == Some(&b':') {
            return Err(broken("pseudo_field_late"));
        }
        if name.iter().any(u8::is_ascii_uppercase) {
            return Err(broken("bad_field_name"));
        }
        match Known::lookup(name) {
            Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::TransferEncoding
            | Known::Upgrade => return Err(broken("connection_specific_field")),
            Known::Te if value != b"trailers" => return Err(broken("connection_specific_field")),
            Known::Cookie => continue,
            _ => {}
        }
        out.push(name, value).map_err(|error| of_syntax(field_error(error)))?;
    }
    let crumbs = list.iter().filter(|field| field.name() == b"cookie").map(NameValue::value);
    push_cookie(crumbs, out).map_err(of_syntax)
}

/// A field that is none makes the message malformed; one too many does not.
fn of_syntax(error: ProxyError) -> HeadError {
    HeadError { error, is_malformed: error.kind == ErrorKind::BadRequestHead }
}

/// Trailers of a request.
///
/// # Errors
/// What [`HeadError`] says.
pub(super) fn read_trailers<F: NameValue>(
    list: &[F],
    limits: &HeadLimits,
    out: &mut Fields,
) -> Result<(), HeadError> {
    read_fields(list, 0, limits, out)?;
    // What frames or routes a message has no place in a trailer (RFC 9110 section 6.5.1).
    out.remove_set(NOT_SENT.with(Known::Host));
    Ok(())
}

/// A list of fields to be sent.
pub(super) type FieldList<'a> = Vec<(&'a [u8], &'a [u8])>;

/// A list that waits.
pub(super) type OwnedList = Vec<(Vec<u8>, Vec<u8>)>;

/// A copy that can wait.
pub(super) fn owned(list: &FieldList<'_>) -> OwnedList {
    list.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

/// Numbers of a head as text, which the list borrows.
#[derive(Default)]
pub(super) struct Digits {
    status: Number,
    length: Number,
}

/// Digits that hold any number of 64 bits.
const DIGITS_MAX: usize = 20;

/// A number as text, in its own place.
#[derive(Default)]
struct Number {
    digits: [u8; DIGITS_MAX],
    len: usize,
}

impl Number {
    fn set(&mut self, number: u64) {
        let mut rest = &mut self.digits[..];
        // There is room for all.
        let _room = write!(rest, "{number}");
        let unused = rest.len();
        self.len = DIGITS_MAX - unused;
    }

    fn as_bytes(&self) -> &[u8] {
        self.digits.get(..self.len).unwrap_or_default()
    }
}

/// An answer's head, and whether a body follows it. `date` goes along unless the head has one.
pub(super) fn write_response<'a>(
    head: &'a ResponseHead,
    length: BodyLength,
    is_head_request: bool,
    date: &'a [u8; IMF_FIXDATE_BYTES],
    digits: &'a mut Digits,
) -> (FieldList<'a>, AnswerBody) {
    let (field, body) = answer_body(head, length, is_head_request);
    digits.status.set(head.status.into());
    if let LengthField::Number(length) = field {
        digits.length.set(length);
    }
    let digits = &*digits;
    let mut list = FieldList::with_capacity(head.fields.len() + 3);
    list.push((b":status", digits.status.as_bytes()));
    push_fields(&head.fields, &mut list);
    match field {
        LengthField::Absent => {}
        LengthField::Number(_) => list.push((b"content-length", digits.length.as_bytes())),
        LengthField::Quoted(value) => list.push((b"content-length", value)),
    }
    if !head.fields.contains(Known::Date) {
        list.push((b"date", date));
    }
    (list, body)
}

/// The head that accepts an extended CONNECT (RFC 9220 section 3), from that of a 101.
pub(super) fn write_switch(head: &ResponseHead) -> FieldList<'_> {
    let mut list = FieldList::with_capacity(head.fields.len() + 1);
    list.push((b":status", b"200"));
    push_fields(&head.fields, &mut list);
    list.retain(|(name, _)| Known::lookup(name) != Known::SecWebSocketAccept);
    list
}

/// An interim answer's head.
pub(super) fn write_interim<'a>(status: u16, fields: &'a Fields, digits: &'a mut Digits) -> FieldList<'a> {
    digits.status.set(status.into());
    let mut list = FieldList::with_capacity(fields.len() + 1);
    list.push((b":status", digits.status.as_bytes()));
    push_fields(fields, &mut list);
    list
}

/// Trailers of an answer.
pub(super) fn write_trailers(fields: &Fields) -> FieldList<'_> {
    let mut list = FieldList::with_capacity(fields.len());
    push_fields(fields, &mut list);
    list
}

/// Fields but for those that HTTP/3 does not carry; quiche writes their names in lower case.
fn push_fields<'a>(fields: &'a Fields, list: &mut FieldList<'a>) {
    let sent = fields.iter().filter(|(known, ..)| !NOT_SENT.contains(*known));
    list.extend(sent.map(|(_, name, value)| (name, value)));
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
