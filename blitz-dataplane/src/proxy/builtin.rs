//! Answers that the gateway gives itself: `/hello`, `/health`, `/echo/*`.
//!
//! They stand behind the routes: a route that takes the path hides them. A listener must allow them;
//! a start from the command line does.
//!
//! Owns: these answers. Does not own: the admin API's health pages (`control/admin.rs`).
#![forbid(unsafe_code)]

use super::Proxy;
use super::connections::Connection;
use crate::exchange::refusal::Form;
use crate::exchange::stream::{Answer, BodySource};
use crate::exchange::{BodyLength, ErrorKind, Method, ProxyError, RequestHead, ResponseHead};
use crate::fields::{FieldError, Known};
use crate::runtime::Chunk;

/// One of the built-in answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Builtin {
    /// A greeting of fixed length, to see that the gateway answers.
    Hello,
    /// 200 while the worker serves; for a balancer in front.
    Health,
    /// The request's body, or what follows `/echo/` when there is none.
    Echo,
}

/// The built-in answer for this request, where one is allowed.
pub fn find(connection: &Connection, request: &RequestHead) -> Option<Builtin> {
    let builtin = match request.path_only() {
        b"/hello" => Builtin::Hello,
        b"/health" => Builtin::Health,
        path if path.starts_with(b"/echo/") => Builtin::Echo,
        _ => return None,
    };
    connection.listener().builtins.get().then_some(builtin)
}

/// Answers it.
///
/// # Errors
/// A closed connection, a broken body, or a method that the answer does not take.
pub async fn answer<B: BodySource, A: Answer>(
    proxy: &Proxy,
    builtin: Builtin,
    request: &RequestHead,
    body: &mut B,
    answer: &mut A,
) -> Result<(), ProxyError> {
    let is_read = matches!(request.method, Method::Get | Method::Head);
    if !is_read && builtin != Builtin::Echo {
        return proxy.refuse_method(&[Method::Get, Method::Head], Form::of(&request.fields), answer).await;
    }
    match builtin {
        Builtin::Hello => fixed(proxy, answer, b"Hello from Blitz\n").await,
        Builtin::Health => fixed(proxy, answer, b"ok\n").await,
        Builtin::Echo => echo(request, body, answer).await,
    }
}

async fn fixed<A: Answer>(proxy: &Proxy, answer: &mut A, text: &'static [u8]) -> Result<(), ProxyError> {
    let mut head = proxy.take_response();
    head.status = 200;
    head.fields.push_known(Known::ContentType, b"text/plain").map_err(no_room)?;
    let begun = answer.head(&head, BodyLength::Exact(text.len() as u64));
    proxy.put_response(head);
    begun?;
    if answer.takes_body() {
        answer.data(Chunk::from_static(text)).await?;
    }
    answer.end(None)
}

async fn echo<B: BodySource, A: Answer>(
    request: &RequestHead,
    body: &mut B,
    answer: &mut A,
) -> Result<(), ProxyError> {
    let mut head = ResponseHead { status: 200, ..ResponseHead::default() };
    // Never a type that a browser would run: the text is the client's own.
    head.fields.push_known(Known::ContentType, b"text/plain; charset=utf-8").map_err(no_room)?;
    head.fields.push(b"X-Content-Type-Options", b"nosniff").map_err(no_room)?;
    if body.length() == BodyLength::Empty {
        let rest = request.path.strip_prefix(b"/echo/").unwrap_or_default().to_vec();
        answer.head(&head, BodyLength::Exact(rest.len() as u64))?;
        if answer.takes_body() {
            answer.data(Chunk::from_vec(rest)).await?;
        }
        return answer.end(None);
    }
    // The client is invited to send before the head promises anything of its body.
    let mut next = body.next().await?;
    answer.head(&head, body.length())?;
    while let Some(chunk) = next {
        if answer.takes_body() {
            answer.data(chunk).await?;
        }
        next = body.next().await?;
    }
    answer.end(body.trailers())
}

fn no_room(_: FieldError) -> ProxyError {
    ProxyError::new(ErrorKind::Internal)
}
