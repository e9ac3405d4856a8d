//! What a route matches: host patterns, path patterns, methods.
//!
//! Owns: their syntax, and when two routes are the same. Does not own: matching a request (the data
//! plane's route table).
#![forbid(unsafe_code)]

use crate::address::host_name;
use crate::error::quoted;
use crate::model::{HostPattern, PathPattern, PathSegment, Route};
use std::collections::HashMap;
use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Bytes of a path pattern.
pub const PATH_BYTES_MAX: usize = 1_024;
/// Segments of a path pattern (count).
pub const PATH_SEGMENTS_MAX: usize = 64;
/// Bytes of a parameter's name.
pub const PARAM_NAME_BYTES_MAX: usize = 64;
/// Bytes of a method.
pub const METHOD_BYTES_MAX: usize = 32;

const HOST: &str = "accepted: a host such as example.com, *.example.com, or * for all";

/// Parses a host pattern.
pub(crate) fn host_pattern(text: &str) -> Result<HostPattern, String> {
    let refuse = |why: &str| format!("{} {why}; {HOST}", quoted(text));
    if text == "*" {
        return Ok(HostPattern::Any);
    }
    if let Some(parent) = text.strip_prefix("*.") {
        let parent = host_name(parent).map_err(|why| refuse(&why))?;
        return Ok(HostPattern::Suffix(format!(".{parent}")));
    }
    if text.contains('*') {
        return Err(refuse("has a * that is not the whole first label"));
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address = inner
            .parse::<Ipv6Addr>()
            .map_err(|_| refuse("has brackets around what is not an IPv6 address"))?;
        return Ok(HostPattern::Exact(format!("[{address}]")));
    }
    if text.contains(':') {
        return Err(refuse("has a port or a scheme, which are no part of a host"));
    }
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(HostPattern::Exact(address.to_string()));
    }
    host_name(text).map(HostPattern::Exact).map_err(|why| refuse(&why))
}

/// Parses a path pattern.
///
/// Literals are in the normal form of RFC 3986 section 6.2.2, as the paths are that they are
/// compared with: a literal in another form could never match.
pub(crate) fn path_pattern(text: &str) -> Result<PathPattern, String> {
    let refuse = |why: &str| format!("{} {why}", quoted(text));
    if text.len() > PATH_BYTES_MAX {
        return Err(refuse(&format!("is {} bytes long; accepted: at most {PATH_BYTES_MAX}", text.len())));
    }
    let Some(rest) = text.strip_prefix('/') else {
        return Err(refuse("does not start with /; accepted: a path such as /users/{id}/*rest"));
    };
    let parts: Vec<&str> = rest.split('/').collect();
    if parts.len() > PATH_SEGMENTS_MAX {
        return Err(refuse(&format!("has {} segments; accepted: at most {PATH_SEGMENTS_MAX}", parts.len())));
    }
    let mut names = HashSet::new();
    let mut segments = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        let is_last = index + 1 == parts.len();
        let segment = segment(part, is_last).map_err(|why| refuse(&why))?;
        if let PathSegment::Param(name) | PathSegment::Rest(name) = &segment
            && !names.insert(name.clone())
        {
            return Err(refuse(&format!(
                "names the parameter {} twice; accepted: unique names",
                quoted(name)
            )));
        }
        segments.push(segment);
    }
    Ok(PathPattern { text: text.to_owned(), segments })
}

fn segment(part: &str, is_last: bool) -> Result<PathSegment, String> {
    if let Some(name) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
        return param_name(name).map(PathSegment::Param);
    }
    if let Some(name) = part.strip_prefix('*') {
        if !is_last {
            return Err(format!("has {} before its end; accepted: *name as the last segment", quoted(part)));
        }
        return param_name(name).map(PathSegment::Rest);
    }
    literal(part, is_last).map(PathSegment::Literal)
}

fn param_name(name: &str) -> Result<String, String> {
    let is_name = (1..=PARAM_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit());
    if is_name {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "has the parameter name {}; accepted: 1 to {PARAM_NAME_BYTES_MAX} letters, digits and _, no digit first",
            quoted(name)
        ))
    }
}

fn literal(part: &str, is_last: bool) -> Result<String, String> {
    if part.is_empty() && !is_last {
        return Err("has an empty segment; accepted: // nowhere, / once at the end".to_owned());
    }
    if matches!(part, "." | "..") {
        return Err(format!("has the segment {}, which no normalised path has", quoted(part)));
    }
    let mut rest = part;
    while let Some(c) = rest.chars().next() {
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
        match c {
            '{' | '}' | '*' => {
                let why = "has {part} with a wildcard in it; accepted: {name} or *name as a whole segment";
                return Err(why.replace("{part}", &quoted(part)));
            }
            '%' => {
                rest = percent_encoded(part, rest)?;
            }
            // pchar of RFC 3986 section 3.3.
            c if c.is_ascii_alphanumeric() || "-._~!$&'()+,;=:@".contains(c) => {}
            c => {
                return Err(format!(
                    "has {} in a segment; accepted: letters, digits, -._~!$&'()+,;=:@ and the rest percent-encoded",
                    quoted(&c.to_string())
                ));
            }
        }
    }
    Ok(part.to_owned())
}

/// Checks the two digits after a `%` and gives what follows them.
fn percent_encoded<'a>(part: &str, rest: &'a str) -> Result<&'a str, String> {
    let digits = rest.get(..2).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    let Some((byte, digits)) = digits.and_then(|digits| Some((u8::from_str_radix(digits, 16).ok()?, digits)))
    else {
        return Err(format!("has {} with a % that no two hexadecimal digits follow", quoted(part)));
    };
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        return Err(format!(
            "has %{digits}, which is written {} in a normalised path",
            quoted(&char::from(byte).to_string())
        ));
    }
    if digits.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err(format!(
            "has %{digits}, which is written %{} in a normalised path",
            digits.to_ascii_uppercase()
        ));
    }
    Ok(rest.get(2..).unwrap_or_default())
}

/// Checks a method: a token (RFC 9110 section 9.1) in upper case. Methods are compared with case, so
/// `get` would never match.
pub(crate) fn method(text: &str) -> Result<(), String> {
    let is_token = (1..=METHOD_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    if !is_token {
        return Err(format!(
            "{} is not a method; accepted: a name such as GET, at most {METHOD_BYTES_MAX} bytes",
            quoted(text)
        ));
    }
    if text.bytes().any(|b| b.is_ascii_lowercase()) {
        let upper = quoted(&text.to_ascii_uppercase());
        return Err(format!(
            "{} is not upper case, and methods are compared with case; did you mean {upper}?",
            quoted(text)
        ));
    }
    if text == "CONNECT" {
        return Err(
            "\"CONNECT\" asks for a tunnel and has no path to match; accepted: any other method".to_owned()
        );
    }
    Ok(())
}

/// Finds routes that can never be reached because an earlier one takes the same requests: equal
/// host, equal path but for parameter names, a method in common. Gives `(earlier, later)` indices.
///
/// One lookup for each method of each route, so that 100,000 routes are no burden.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    by_shape: HashMap<String, Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// The first route without methods.
    all: Option<usize>,
    /// The first route of any kind.
    any: Option<usize>,
    by_method: HashMap<String, usize>,
}

impl Seen {
    /// Notes a route; gives the index of an earlier one that it repeats.
    pub(crate) fn insert(&mut self, index: usize, route: &Route) -> Option<usize> {
        let taken = self.by_shape.entry(shape(route)).or_default();
        if route.methods.is_empty() {
            let earlier = taken.any;
            taken.all.get_or_insert(index);
            taken.any.get_or_insert(index);
            return earlier;
        }
        let mut earlier = taken.all;
        for method in &route.methods {
            // A method that this route itself names twice is reported where it stands.
            let first = *taken.by_method.entry(method.clone()).or_insert(index);
            if first != index {
                earlier = earlier.or(Some(first));
            }
        }
        taken.any.get_or_insert(index);
        earlier
    }
}

/// Host and path in one text in which parameters have no names. No literal holds the characters that
/// stand for the parts (`/`, `{`, `*`), and no host holds a `/`.
fn shape(route: &Route) -> String {
    let mut shape = match &route.host {
        HostPattern::Any => "*".to_owned(),
        HostPattern::Exact(host) => host.clone(),
        HostPattern::Suffix(suffix) => format!("*{suffix}"),
    };
    for segment in &route.path.segments {
        shape.push('/');
        match segment {
            PathSegment::Literal(literal) => shape.push_str(literal),
            PathSegment::Param(_) => shape.push('{'),
            PathSegment::Rest(_) => shape.push('*'),
        }
    }
    shape
}
