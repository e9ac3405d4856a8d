//! Request heads (RFC 9112 sections 2, 3 and 6, RFC 9110 sections 7.2 and 10.1.1).
//!
//! Owns: the rules for request line, target, Host, Expect and the request's body framing. Does not own: the syntax of
//! lines (httparse), the end of the head (`scan.rs`), what is routed where.

use super::body::BodyFraming;
use super::error::H1Error;
use super::head::{
    ConnectionOptions, DeclaredLength, FIELDS_MAX, HeadLimits, Version, check_frame, declared_length,
    header_room, name_error, name_field_error,
};
use super::scan::{HeadScanner, Scan};
use crate::exchange::{BodyLength, ErrorKind, Method, ProxyError, RequestHead, Scheme, Upgrade, authority};
use crate::fields::{Known, Occurrence, has_token, list_members};

/// What the head says of the connection and of the body that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFraming {
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// How the body is framed.
    pub body: BodyFraming,
    /// The client keeps the connection for another request.
    pub keep_alive: bool,
    /// The client waits for a 100 before it sends the body.
    pub expects_continue: bool,
    /// `Connection: upgrade` with an Upgrade field (RFC 9110 section 7.8), be it passed on or not.
    pub has_upgrade: bool,
}

impl RequestFraming {
    /// The body's length for those above the codec.
    #[must_use]
    pub const fn body_length(&self) -> BodyLength {
        self.body.length()
    }
}

/// Reads a request head from the bytes received so far, all of them from its first byte on. On success gives the
/// framing and how many bytes the head took; `None` asks for more bytes, to be passed together with those already seen.
///
/// The scanner belongs to this connection direction, was made with the same `head_bytes_max`, and is ready for the next
/// head after a success. A head that lies complete in the first bytes is parsed without a search for its end; the
/// verdict is the same either way, since everything but a success is left to [`HeadScanner`] and [`parse_request`].
///
/// # Errors
/// Those of [`HeadScanner::scan`] and [`parse_request`].
pub fn read_request(
    scanner: &mut HeadScanner,
    bytes: &[u8],
    limits: &HeadLimits,
    out: &mut RequestHead,
) -> Result<Option<(RequestFraming, usize)>, H1Error> {
    if scanner.is_fresh() && !matches!(bytes, [] | [b'\r' | b'\n', ..]) {
        let seen = bytes.get(..limits.head_bytes_max).unwrap_or(bytes);
        if let Ok(Some(found)) = parse_prefix(seen, limits, out) {
            return Ok(Some(found));
        }
    }
    let Scan::Complete { start, end } = scanner.scan(bytes)? else {
        return Ok(None);
    };
    scanner.reset();
    let framing = parse_request(bytes.get(start..end).unwrap_or_default(), limits, out)?;
    Ok(Some((framing, end)))
}

/// Parses a complete request head, as [`HeadScanner`] found it, into `out`.
///
/// `out.scheme` is the connection's and stays; everything else is replaced. Host, Content-Length and Transfer-Encoding
/// go from the fields into `out.authority` and the framing. An absolute-form target decides the authority, whatever
/// Host says (RFC 9112 section 3.2.2).
///
/// # Errors
/// An [`H1Error`] that names the first rule broken; `out` holds nothing of use then, and the connection must be closed
/// after the answer.
pub fn parse_request(
    head: &[u8],
    limits: &HeadLimits,
    out: &mut RequestHead,
) -> Result<RequestFraming, H1Error> {
    check_frame(head, limits)?;
    match parse_prefix(head, limits, out)? {
        Some((framing, end)) if end == head.len() => Ok(framing),
        _ => Err(H1Error::BadHead),
    }
}

/// Parses the head at the start of `bytes`, which are within the limit; `None` when it is not complete.
fn parse_prefix(
    bytes: &[u8],
    limits: &HeadLimits,
    out: &mut RequestHead,
) -> Result<Option<(RequestFraming, usize)>, H1Error> {
    out.clear();
    let mut room = header_room();
    let mut request = httparse::Request::new(&mut []);
    let fields_room = room.get_mut(..limits.fields_max.min(FIELDS_MAX)).unwrap_or_default();
    let parsed = request
        .parse_with_uninit_headers(bytes, fields_room)
        .map_err(|error| name_request_error(error, bytes))?;
    let httparse::Status::Complete(end) = parsed else {
        return Ok(None);
    };
    let head = bytes.get(..end).ok_or(H1Error::BadHead)?;
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Err(H1Error::BadHead);
    };
    let (method, target) = (method.as_bytes(), target.as_bytes());
    // httparse takes a bare LF after the request line; between fields `set_from_head` looks.
    // 10: two spaces and `HTTP/1.x`.
    if head.get(method.len() + target.len() + 10..).is_none_or(|rest| !rest.starts_with(b"\r\n")) {
        return Err(H1Error::BareLf);
    }
    if target.len() > limits.target_bytes_max {
        return Err(H1Error::TargetTooLong);
    }
    let version = Version::from_minor(request.version);
    out.method = Method::from_bytes(method).ok_or(H1Error::MethodTooLong)?;
    out.fields.set_from_head(head, request.headers).map_err(name_field_error)?;
    read_target(target, out)?;
    read_host(version, out)?;
    let body = match declared_length(&mut out.fields, version)? {
        DeclaredLength::None => BodyFraming::Empty,
        DeclaredLength::Exact(length) => BodyFraming::Exact(length),
        DeclaredLength::Chunked => BodyFraming::Chunked,
    };
    out.fields.remove(Known::ContentLength);
    let options = ConnectionOptions::of(&out.fields);
    out.upgrade = if options.upgrade { asked_upgrade(version, body, out) } else { None };
    out.expects_continue = expects_continue(version, body, out)?;
    let framing = RequestFraming {
        version,
        body,
        keep_alive: options.persists(version),
        expects_continue: out.expects_continue,
        has_upgrade: options.upgrade,
    };
    Ok(Some((framing, end)))
}

/// The gateway's policy on methods it never forwards: CONNECT is a proxy's business (501), TRACE would show the client
/// the fields that the gateway added (405). The authority form of CONNECT is parsed so that the refusal is exact.
#[must_use]
pub const fn refuse_method(method: &Method) -> Option<ProxyError> {
    match method {
        Method::Connect => Some(ProxyError::new(ErrorKind::NotImplemented).with_detail("method_connect")),
        Method::Trace => Some(ProxyError::new(ErrorKind::MethodNotAllowed).with_detail("method_trace")),
        _ => None,
    }
}

/// Splits the request target by its form (RFC 9112 section 3.2).
fn read_target(target: &[u8], out: &mut RequestHead) -> Result<(), H1Error> {
    // httparse lets no control byte and no space through. A fragment is never sent (RFC 9112 section 3.2), and raw
    // bytes above ASCII are no URI (RFC 3986 section 2).
    // No early exit: a loop without one is vectorised, and nearly every target is good.
    if target.iter().fold(false, |bad, byte| bad | !byte.is_ascii() | (*byte == b'#')) {
        return Err(H1Error::BadTarget);
    }
    if out.method == Method::Connect {
        // Authority-form, port required.
        let has_port = authority::split(target).1.is_some();
        if !has_port || !authority::is_valid(target) {
            return Err(H1Error::BadTarget);
        }
        out.authority.extend_from_slice(target);
        return Ok(());
    }
    match target {
        [b'/', ..] => {
            out.path.extend_from_slice(target);
            Ok(())
        }
        b"*" if out.method == Method::Options => {
            out.path.push(b'*');
            Ok(())
        }
        _ => read_absolute_form(target, out),
    }
}

/// `http://authority/path`: the authority takes the place of Host.
fn read_absolute_form(target: &[u8], out: &mut RequestHead) -> Result<(), H1Error> {
    let (scheme, rest) =
        match (strip_prefix_ignore_case(target, b"http://"), strip_prefix_ignore_case(target, b"https://")) {
            (Some(rest), _) => (Scheme::Http, rest),
            (_, Some(rest)) => (Scheme::Https, rest),
            _ => return Err(H1Error::BadTarget),
        };
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (host, path) = rest.split_at_checked(end).ok_or(H1Error::BadTarget)?;
    if !authority::is_valid(host) {
        return Err(H1Error::BadHost);
    }
    if scheme != out.scheme {
        return Err(H1Error::SchemeMismatch);
    }
    out.authority.extend_from_slice(host);
    match path {
        // RFC 9112 section 3.2.4: OPTIONS on an authority without a path means the server itself.
        [] if out.method == Method::Options => out.path.push(b'*'),
        [] => out.path.push(b'/'),
        [b'?', ..] => {
            out.path.push(b'/');
            out.path.extend_from_slice(path);
        }
        _ => out.path.extend_from_slice(path),
    }
    Ok(())
}

fn strip_prefix_ignore_case<'a>(bytes: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = bytes.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Exactly one valid Host in HTTP/1.1, at most one in HTTP/1.0 (RFC 9112 section 3.2).
fn read_host(version: Version, out: &mut RequestHead) -> Result<(), H1Error> {
    match out.fields.occurrence(Known::Host) {
        Occurrence::Repeated => return Err(H1Error::DuplicateHost),
        Occurrence::Absent if version == Version::Http11 => return Err(H1Error::MissingHost),
        Occurrence::Absent => {}
        Occurrence::Once(host) if !authority::is_valid(host) => return Err(H1Error::BadHost),
        Occurrence::Once(host) if out.authority.is_empty() => out.authority.extend_from_slice(host),
        // The target's authority takes its place.
        Occurrence::Once(_) => {}
    }
    out.fields.remove(Known::Host);
    Ok(())
}

/// The protocol to switch to. HTTP/1.0 knows none, a WebSocket is asked for by GET (RFC 6455 section 4.1), and a body
/// would have to be read before the switch: any other such request is an ordinary one.
fn asked_upgrade(version: Version, body: BodyFraming, out: &RequestHead) -> Option<Upgrade> {
    let is_bare = matches!(body, BodyFraming::Empty | BodyFraming::Exact(0));
    (version == Version::Http11 && out.method == Method::Get && is_bare)
        .then(|| Upgrade::first_of(&out.fields))
        .flatten()
}

/// Reads Expect (RFC 9110 section 10.1.1): ignored in HTTP/1.0 and without a body, refused when it expects anything but
/// 100-continue.
fn expects_continue(version: Version, body: BodyFraming, out: &RequestHead) -> Result<bool, H1Error> {
    if !out.fields.contains(Known::Expect) {
        return Ok(false);
    }
    let mut members = out.fields.get_all(Known::Expect).flat_map(list_members);
    if !members.all(|member| has_token(member, b"100-continue")) {
        return Err(H1Error::BadExpectation);
    }
    Ok(version == Version::Http11 && !matches!(body, BodyFraming::Empty | BodyFraming::Exact(0)))
}

/// Names httparse's error, telling other versions of HTTP (505) from lines that are none.
fn name_request_error(error: httparse::Error, head: &[u8]) -> H1Error {
    let named = name_error(error, head);
    if named != H1Error::BadVersion {
        return named;
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ').skip(2);
    match (words.next(), words.next()) {
        (Some([b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']), None) => {
            H1Error::VersionUnsupported
        }
        (_, None) => H1Error::BadVersion,
        // A space within the target, or two of them: the version is not where it should be.
        (_, Some(_)) => H1Error::BadRequestLine,
    }
}
