//! What request and response heads have in common: limits, version, httparse's errors, body lengths, Connection.
//!
//! Owns: the helpers of `request.rs` and `response.rs`. Does not own: the rules that differ between the two.

use std::mem::MaybeUninit;

use super::error::H1Error;
use super::scan::first_control;
use crate::fields::{FieldError, Fields, Known, Occurrence, is_token_byte, list_members, trim_ows};

/// Most fields in one head, whatever the limits say. Their offsets lie on the stack: 32 bytes each, 8 KiB in all.
pub const FIELDS_MAX: usize = 256;

/// Bounds on a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes of the head, start line and empty line included. Beyond: [`H1Error::HeadTooLarge`].
    pub head_bytes_max: usize,
    /// Fields, at most [`FIELDS_MAX`]. Beyond: [`H1Error::TooManyFields`].
    pub fields_max: usize,
    /// Bytes of a request target. Beyond: [`H1Error::TargetTooLong`].
    pub target_bytes_max: usize,
}

impl HeadLimits {
    /// 16 KiB of head, 100 fields, 8 KiB of target: what nginx and Envoy take at most by default, or a little less.
    pub const RECOMMENDED: Self =
        Self { head_bytes_max: 16 * 1024, fields_max: 100, target_bytes_max: 8 * 1024 };
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self::RECOMMENDED
    }
}

/// The minor version of HTTP/1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// No chunks, closes unless asked not to.
    Http10,
    /// RFC 9112.
    #[default]
    Http11,
}

impl Version {
    /// httparse's number for it.
    pub(super) const fn from_minor(minor: Option<u8>) -> Self {
        if matches!(minor, Some(0)) { Self::Http10 } else { Self::Http11 }
    }

    /// The version as Via says it (RFC 9110 section 7.6.3).
    #[must_use]
    pub const fn via_token(self) -> &'static str {
        match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
        }
    }
}

/// Room for httparse's result, not initialised because nearly all of it stays unused.
pub(super) type HeaderRoom<'a> = [MaybeUninit<httparse::Header<'a>>; FIELDS_MAX];

/// Empty room.
pub(super) const fn header_room<'a>() -> HeaderRoom<'a> {
    [const { MaybeUninit::uninit() }; FIELDS_MAX]
}

/// Checks what must hold before httparse sees the bytes: a head within the limit, ended by an empty line, that begins
/// with its start line (httparse would skip empty lines).
pub(super) fn check_frame(head: &[u8], limits: &HeadLimits) -> Result<(), H1Error> {
    if head.len() > limits.head_bytes_max {
        return Err(H1Error::HeadTooLarge);
    }
    if !head.ends_with(b"\r\n\r\n") || matches!(head, [b'\r' | b'\n', ..]) {
        return Err(first_control(head, 0).map_or(H1Error::BadHead, |(_, fault)| fault));
    }
    Ok(())
}

/// Names httparse's error. Only for refused heads, so cost does not matter: NUL and bare CR get their own names, as the
/// scanner would have given them for an incomplete head, so that the verdict does not depend on the split.
pub(super) fn name_error(error: httparse::Error, head: &[u8]) -> H1Error {
    if let Some((_, fault)) = first_control(head, 0) {
        return fault;
    }
    match error {
        httparse::Error::TooManyHeaders => H1Error::TooManyFields,
        httparse::Error::HeaderName if has_space_before_colon(head) => H1Error::SpaceBeforeColon,
        httparse::Error::HeaderName => H1Error::BadFieldName,
        httparse::Error::HeaderValue => H1Error::BadFieldValue,
        httparse::Error::Version => H1Error::BadVersion,
        httparse::Error::Status => H1Error::BadStatusLine,
        // After the version; an end of head that is no CRLF is a bare CR.
        httparse::Error::Token | httparse::Error::NewLine => H1Error::BadRequestLine,
    }
}

/// Whether the first line that does not begin with a token and a colon lacks only that: whitespace stands between.
fn has_space_before_colon(head: &[u8]) -> bool {
    let is_token = |name: &[u8]| !name.is_empty() && name.iter().all(|byte| is_token_byte(*byte));
    let mut names = head
        .split(|byte| *byte == b'\n')
        .skip(1)
        .map(|line| line.split(|byte| *byte == b':').next().unwrap_or(line));
    names.find(|name| !is_token(name)).is_some_and(|name| {
        let trimmed = name.strip_suffix(b" ").or_else(|| name.strip_suffix(b"\t")).map(trim_ows);
        trimmed.is_some_and(is_token)
    })
}

/// Names the fault of a field section that httparse accepted. `Layout` is a bare LF: everything else that httparse
/// tolerates in a line has been ruled out.
pub(super) const fn name_field_error(error: FieldError) -> H1Error {
    match error {
        FieldError::Name => H1Error::BadFieldName,
        FieldError::Value => H1Error::BadFieldValue,
        FieldError::SectionFull => H1Error::HeadTooLarge,
        FieldError::Layout => H1Error::BareLf,
    }
}

/// The body length that Content-Length and Transfer-Encoding give, the same rules for both sides (RFC 9112 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeclaredLength {
    /// Neither field.
    None,
    /// Content-Length.
    Exact(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
}

/// Reads the framing fields and removes Transfer-Encoding, which the codec writes itself. Content-Length stays.
pub(super) fn declared_length(fields: &mut Fields, version: Version) -> Result<DeclaredLength, H1Error> {
    if fields.contains(Known::TransferEncoding) {
        // RFC 9112 section 6.1: a server MAY reject a request with both; an intermediary that forwards it must not keep
        // Content-Length. Peers of the gateway may read the same bytes otherwise, so both are refused.
        if fields.contains(Known::ContentLength) {
            return Err(H1Error::LengthAndCoding);
        }
        if version == Version::Http10 {
            return Err(H1Error::CodingInHttp10);
        }
        check_coding(fields)?;
        fields.remove(Known::TransferEncoding);
        return Ok(DeclaredLength::Chunked);
    }
    match fields.occurrence(Known::ContentLength) {
        Occurrence::Absent => Ok(DeclaredLength::None),
        Occurrence::Once(value) => Ok(DeclaredLength::Exact(parse_length(value)?)),
        Occurrence::Repeated => Err(H1Error::DuplicateLength),
    }
}

/// Transfer-Encoding must be one field line with the one coding `chunked`.
fn check_coding(fields: &Fields) -> Result<(), H1Error> {
    let Occurrence::Once(value) = fields.occurrence(Known::TransferEncoding) else {
        return Err(H1Error::BadCoding);
    };
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let is_chunked = |member: &[u8]| member.eq_ignore_ascii_case(b"chunked");
    // Well-formed members with one final chunked: understood, but not implemented. All else cannot be framed.
    let members = list_members(value).count();
    let is_well_formed = value.split(|byte| *byte == b',').all(|member| {
        let coding = member.split(|byte| *byte == b';').next().unwrap_or_default();
        let coding = trim_ows(coding);
        !coding.is_empty() && coding.iter().all(|byte| is_token_byte(*byte))
    });
    let ends_with_chunked = list_members(value).last().is_some_and(is_chunked);
    let is_chunked_once = list_members(value).filter(|member| is_chunked(member)).count() == 1;
    if members > 1 && is_well_formed && ends_with_chunked && is_chunked_once {
        return Err(H1Error::UnsupportedCoding);
    }
    Err(H1Error::BadCoding)
}

/// Content-Length as digits alone, up to 64 bits (RFC 9110 section 8.6). Lists of equal lengths are refused too.
fn parse_length(value: &[u8]) -> Result<u64, H1Error> {
    if value.is_empty() {
        return Err(H1Error::BadLength);
    }
    value.iter().try_fold(0_u64, |length, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
        digit.and_then(|digit| length.checked_mul(10)?.checked_add(digit)).ok_or(H1Error::BadLength)
    })
}

/// The options of Connection that matter to the connection itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ConnectionOptions {
    /// `close`.
    pub(super) close: bool,
    /// `keep-alive`.
    pub(super) keep_alive: bool,
    /// `upgrade`, and there is an Upgrade field.
    pub(super) upgrade: bool,
}

impl ConnectionOptions {
    /// Reads all Connection fields (RFC 9110 section 7.6.1).
    pub(super) fn of(fields: &Fields) -> Self {
        let mut options = Self::default();
        if !fields.contains(Known::Connection) {
            return options;
        }
        for member in fields.get_all(Known::Connection).flat_map(list_members) {
            // The lengths differ, so at most one comparison looks at bytes.
            options.close |= member.eq_ignore_ascii_case(b"close");
            options.keep_alive |= member.eq_ignore_ascii_case(b"keep-alive");
            options.upgrade |= member.eq_ignore_ascii_case(b"upgrade");
        }
        options.upgrade &= fields.contains(Known::Upgrade);
        options
    }

    /// Whether the sender keeps the connection open after this message (RFC 9112 section 9.3).
    pub(super) const fn persists(self, version: Version) -> bool {
        match version {
            Version::Http11 => !self.close,
            Version::Http10 => self.keep_alive && !self.close,
        }
    }
}
