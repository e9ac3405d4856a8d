//! The answers that the gateway gives itself when an exchange fails (RFC 9110 section 15, RFC 9209).
//!
//! Owns: their fields and their short text. Does not own: which error leads to which status
//! (`error.rs`), or writing (the codecs).

use super::stream::Answer;
use super::{BodyLength, ErrorKind, ProxyError, ResponseHead, grpc, upgrade};
use crate::fields::{FieldError, Fields, Known};
use crate::http1::reason_phrase;
use crate::runtime::Chunk;

/// How a client wants to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// By the status, and for people a line of text.
    Text,
    /// By `grpc-status`: a status of HTTP is nothing that a call can end with.
    Grpc,
}

impl Form {
    /// What fits a request with these fields.
    #[must_use]
    pub fn of(fields: &Fields) -> Self {
        if grpc::is_grpc(fields) { Self::Grpc } else { Self::Text }
    }
}

/// Answers with the error's status, a `Proxy-Status` field and a line of text; a gRPC client gets the error's
/// `grpc-status` in an answer that has nothing but a head ("Trailers-Only"). Does nothing when the error has no answer
/// (the client is gone).
///
/// # Errors
/// A closed connection.
pub async fn refuse<A: Answer>(answer: &mut A, error: &ProxyError, form: Form) -> Result<(), ProxyError> {
    let status = error.status();
    if status == 0 {
        return Ok(());
    }
    if error.closes_downstream() {
        answer.close_after();
    }
    if form == Form::Grpc {
        let mut head = ResponseHead { status: 200, ..ResponseHead::default() };
        fill_grpc(&mut head.fields, error)
            .and_then(|()| fill(&mut head.fields, error))
            .map_err(|_| ProxyError::new(ErrorKind::Internal))?;
        answer.head(&head, BodyLength::Empty)?;
        return answer.end(None);
    }
    let mut head = ResponseHead { status, ..ResponseHead::default() };
    let text = format!("{status} {}: {}\n", reason_phrase(status), error.detail);
    // The fields are ours and few; they fit.
    let kind = head.fields.push_known(Known::ContentType, b"text/plain; charset=utf-8");
    kind.and_then(|()| fill(&mut head.fields, error)).map_err(|_| ProxyError::new(ErrorKind::Internal))?;
    answer.head(&head, BodyLength::Exact(text.len() as u64))?;
    if answer.takes_body() {
        answer.data(Chunk::from_vec(text.into_bytes())).await?;
    }
    answer.end(None)
}

/// The fields of an answer that is nothing but a head: type, status and message.
///
/// # Errors
/// No room among the fields.
pub fn fill_grpc(fields: &mut Fields, error: &ProxyError) -> Result<(), FieldError> {
    fields.push_known(Known::ContentType, b"application/grpc")?;
    fields.push(b"grpc-status", grpc::Status::of(error.kind).as_str().as_bytes())?;
    fields.push(b"grpc-message", &grpc::encode_message(error.detail))
}

fn fill(fields: &mut Fields, error: &ProxyError) -> Result<(), FieldError> {
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
