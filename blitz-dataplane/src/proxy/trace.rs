//! What `--trace` shows of an exchange.
//!
//! Owns: the text, and what is left out of it: credentials, cookies and bodies. Does not own: the log.
#![forbid(unsafe_code)]

use super::connections::Connection;
use crate::exchange::{RequestHead, ResponseHead};
use crate::fields::{Fields, Known};

/// A request head on one line.
pub(super) fn request(connection: &Connection, head: &RequestHead) -> String {
    let peer = connection.client().map_or_else(|| "-".to_owned(), |client| client.to_string());
    let mut line = format!(
        "{peer} {} {} host={}",
        head.method.as_bytes().escape_ascii(),
        head.path.escape_ascii(),
        head.authority.escape_ascii()
    );
    push_fields(&mut line, &head.fields);
    line
}

/// An answer's head on one line.
pub(super) fn response(head: &ResponseHead) -> String {
    let mut line = head.status.to_string();
    push_fields(&mut line, &head.fields);
    line
}

fn push_fields(line: &mut String, fields: &Fields) {
    for (known, name, value) in fields.iter() {
        *line += &format!(" {}=", name.escape_ascii());
        if is_secret(known, name) {
            *line += "[redacted]";
        } else {
            *line += &value.escape_ascii().to_string();
        }
    }
}

/// Whether a value may hold what lets its reader act as somebody else.
fn is_secret(known: Known, name: &[u8]) -> bool {
    let listed =
        matches!(known, Known::Authorization | Known::ProxyAuthorization | Known::Cookie | Known::SetCookie);
    // Names like X-Api-Key, X-Auth-Token, X-Amz-Security-Token.
    listed
        || [&b"key"[..], b"token", b"secret", b"auth"].iter().any(|word| contains_ignoring_case(name, word))
}

fn contains_ignoring_case(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_named_and_not_shown() {
        let mut fields = Fields::new();
        for name in ["Authorization", "Cookie", "X-Api-Key", "x-auth-token"] {
            fields.push(name.as_bytes(), b"hunter2").unwrap();
        }
        fields.push(b"Accept", b"text/html").unwrap();
        let mut line = String::new();
        push_fields(&mut line, &fields);
        assert!(!line.contains("hunter2"), "{line}");
        assert!(line.contains("Accept=text/html") && line.contains("X-Api-Key=[redacted]"), "{line}");
    }
}
