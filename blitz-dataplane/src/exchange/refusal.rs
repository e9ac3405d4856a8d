//! The answers that the gateway gives itself when an exchange fails (RFC 9110 section 15, RFC 9209).
//!
//! Owns: their fields and their short text. Does not own: which error leads to which status
//! (`error.rs`), or writing (the codecs).

use super::stream::Answer;
use super::{BodyLength, ErrorKind, ProxyError, ResponseHead, upgrade};
use crate::fields::{FieldError, Known};
use crate::http1::reason_phrase;
use crate::runtime::Chunk;

/// Answers with the error's status, a `Proxy-Status` field and a line of text. Does nothing when the error has no
/// answer (the client is gone).
///
/// # Errors
/// A closed connection.
pub async fn refuse<A: Answer>(answer: &mut A, error: &ProxyError) -> Result<(), ProxyError> {
    let status = error.status();
    if status == 0 {
        return Ok(());
    }
    if error.closes_downstream() {
        answer.close_after();
    }
    let mut head = ResponseHead { status, ..ResponseHead::default() };
    let text = format!("{status} {}: {}\n", reason_phrase(status), error.detail);
    // The fields are ours and few; they fit.
    fill(&mut head, error).map_err(|_| ProxyError::new(ErrorKind::Internal))?;
    answer.head(&head, BodyLength::Exact(text.len() as u64))?;
    if answer.takes_body() {
        answer.data(Chunk::from_vec(text.into_bytes())).await?;
    }
    answer.end(None)
}

fn fill(head: &mut ResponseHead, error: &ProxyError) -> Result<(), FieldError> {
    let fields = &mut head.fields;
    fields.push_known(Known::ContentType, b"text/plain; charset=utf-8")?;
    if let Some(token) = error.proxy_status() {
        let detail = error.detail.as_bytes();
        let parts: [&[u8]; 5] = [b"blitz; error=", token.as_bytes(), b"; details=\"", detail, b"\""];
        fields.push_known_parts(Known::ProxyStatus, &parts)?;
    }
    if error.kind == ErrorKind::MethodNotAllowed {
        // RFC 9110 section 15.5.6 asks for it. Refused here whatever the route: TRACE only.
        fields.push(b"Allow", b"GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS")?;
    }
    if error.detail == upgrade::VERSION_DETAIL {
        fields.push_known(Known::SecWebSocketVersion, upgrade::VERSION)?;
    }
    if matches!(error.kind, ErrorKind::NoHealthyEndpoint | ErrorKind::Overload | ErrorKind::Draining) {
        fields.push_known(Known::RetryAfter, b"1")?;
    }
    Ok(())
}
