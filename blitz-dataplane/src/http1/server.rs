//! The downstream end of an HTTP/1.1 connection: one request after the other.
//!
//! Owns: the order of messages on the connection, keep-alive, pipelining, `100-continue`, lingering
//! close. Does not own: what a request means (the [`Service`]), the sans-IO parsers.
//!
//! A connection that waits for a request owns no buffer: the head's storage comes from the worker's
//! store when the first byte arrives and goes back after the answer.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::client::write_body;
use super::io::{ReadError, Unread, broken, flushed, receive, writable};
use super::{
    BodyDecoder, ConnectionField, H1Error, HeadKind, HeadScanner, RequestFraming, ResponseBody, Version,
    read_request, refuse_method, write_interim_head, write_last_chunk, write_response_head,
};
use crate::exchange::refusal::{Form, refuse};
use crate::exchange::stream::{Answer, BodySink, BodySource, Origin, ServerLimits, Service};
use crate::exchange::{
    BodyLength, ErrorKind, Method, Protocol, ProxyError, RequestHead, ResponseHead, Side, upgrade,
};
use crate::fields::Fields;
use crate::proxy::connections::{Connection, Ended};
use crate::runtime::{Chunk, Deadline, Pooled, Transport};

/// Bytes of an unwanted request body that are read and thrown away to keep the connection; a longer
/// one costs more than a new connection.
const SKIP_BYTES_MAX: u64 = 64 * 1024;

/// How long, and how many bytes, a closing connection listens on, so that the last answer is not
/// lost to a reset (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: u64 = 256 * 1024;

/// Whether the connection goes on.
enum Next {
    Request,
    /// Ends after what was written has left.
    Close(Ended),
    /// Ends with an answer owed: what was written leaves, and the client can tell that it is not all.
    /// `by_reset` where only a reset can say so (RFC 9112 section 8).
    Cut {
        by_reset: bool,
        ended: Ended,
    },
    /// Ends at once; nothing is worth sending.
    Abort(Ended),
}

/// Serves a connection to its end. `unread`: bytes of it that somebody has received already.
pub async fn serve<S: Service, T: Transport>(
    service: &S,
    stream: &T,
    connection: &Connection,
    mut unread: Unread,
) -> Ended {
    let mut deadline = Deadline::new(stream.handle());
    let mut is_first = true;
    loop {
        if unread.is_empty() {
            let limits = service.limits();
            let limit = if is_first { limits.request_head } else { limits.keep_alive };
            stream.settle();
            match first_bytes(stream, connection, &mut deadline, limit).await {
                Ok(chunk) => unread.put(chunk),
                Err(ended) => {
                    // The last answer may still be on its way: to a client that has ended its side
                    // after the request, or that reads slowly.
                    flush(service, stream).await;
                    return ended;
                }
            }
        }
        is_first = false;
        connection.begin_exchange();
        let mut request = service.take_request();
        let exchange = exchange(service, stream, connection, &mut deadline, &mut unread, &mut request);
        // In a block of its own: an idle connection shall not carry the room for an exchange.
        let next = Pooled::new(exchange).await;
        service.put_request(request);
        connection.end_exchange(stream.handle().now_ms());
        match next {
            Next::Request => {}
            Next::Close(ended) => {
                linger(service, stream, &mut deadline).await;
                return ended;
            }
            Next::Cut { by_reset, ended } => {
                if !flush(service, stream).await || by_reset {
                    stream.reset_on_close();
                }
                return ended;
            }
            Next::Abort(ended) => {
                stream.reset_on_close();
                return ended;
            }
        }
    }
}

/// Waits for the first bytes of a request, in the state that an idle connection is in.
pub(crate) async fn first_bytes(
    stream: &impl Transport,
    connection: &Connection,
    deadline: &mut Deadline,
    limit: Duration,
) -> Result<Chunk, Ended> {
    deadline.set_after(limit);
    poll_fn(|cx| {
        match stream.poll_receive(cx) {
            Poll::Ready(Ok(Some(chunk))) => return Poll::Ready(Ok(chunk)),
            Poll::Ready(Ok(None) | Err(_)) => return Poll::Ready(Err(Ended::ByClient)),
            Poll::Pending => {}
        }
        if let Poll::Ready(ended) = connection.poll_asked_to_close(cx) {
            return Poll::Ready(Err(ended));
        }
        deadline.poll_expired(cx).map(|_| Err(Ended::Idle))
    })
    .await
}

async fn exchange<S: Service, T: Transport>(
    service: &S,
    stream: &T,
    connection: &Connection,
    deadline: &mut Deadline,
    unread: &mut Unread,
    request: &mut RequestHead,
) -> Next {
    let limits = service.limits();
    // A client that pipelines and does not read is not served further.
    let (closed, stalled) = (ErrorKind::DownstreamClosed, ErrorKind::DownstreamSendTimeout);
    if let Err(error) = writable(stream, limits.send_progress, closed, stalled).await {
        service.note(&error);
        return Next::Abort(Ended::Error);
    }
    request.scheme = connection.scheme();
    let mut scanner = HeadScanner::new(HeadKind::Request, limits.head.head_bytes_max);
    let parse = |bytes: &[u8]| read_request(&mut scanner, bytes, &limits.head, request);
    let framing = match unread.head(stream, deadline, &mut Some(limits.request_head), || true, parse).await {
        Ok(framing) => framing,
        Err(error @ (ReadError::Closed | ReadError::Broken(_))) => {
            if scanner.has_begun() {
                service.note(&ProxyError::new(ErrorKind::DownstreamClosed));
            }
            // After an orderly end the client still reads the answers to its earlier requests.
            let is_orderly = matches!(error, ReadError::Closed);
            return if is_orderly { Next::Close(Ended::ByClient) } else { Next::Abort(Ended::ByClient) };
        }
        Err(ReadError::Expired) => {
            let error = ProxyError::new(ErrorKind::RequestHeadTimeout);
            refuse_head(service, stream, &limits, &error).await;
            return Next::Close(Ended::Deadline);
        }
        Err(ReadError::Malformed(error)) => {
            let error = error.in_request();
            service.misconduct(connection, &error);
            refuse_head(service, stream, &limits, &error).await;
            return Next::Close(Ended::Error);
        }
    };

    // A body or another request: it may wait for long.
    unread.spill();
    let shared = Shared::new(&framing, !unread.is_empty());
    let mut body = RequestBody {
        stream,
        deadline,
        unread,
        decoder: framing.body.decoder(),
        length: framing.body_length(),
        limits: &limits,
        received: 0,
        shared: &shared,
    };
    let mut answer = ResponseSink {
        service,
        stream,
        version: framing.version,
        alternatives: connection.alternatives(),
        is_head_request: request.method == Method::Head,
        body: None,
        send_progress: limits.send_progress,
        shared: &shared,
    };
    let _cut = Cut { stream, shared: &shared };
    let poll_gone = |cx: &mut std::task::Context<'_>| shared.poll_gone(stream, cx);
    let origin = Origin { connection, protocol: framing.version.via_token(), poll_gone: &poll_gone };
    let too_large =
        matches!(framing.body_length(), BodyLength::Exact(length) if length > limits.body_bytes_max);
    let outcome = if too_large {
        Err(ProxyError::new(ErrorKind::RequestBodyTooLarge))
    } else if let Some(error) = refuse_method(&request.method) {
        Err(error)
    } else if let Some(error) = request.upgrade.and_then(|_| upgrade::refuse(&request.fields, true)) {
        Err(error)
    } else {
        service.exchange(&origin, request, &mut body, &mut answer).await
    };
    shared.is_tunnel.set(false);
    if let Err(error) = outcome {
        service.note(&error);
        // Its head was well-formed: all else that is wrong with a request by now is what it asks for.
        if error.kind == ErrorKind::BadRequestFraming {
            service.misconduct(connection, &error);
        }
        if answer.has_begun() && error.side() != Side::Downstream {
            let by_reset = answer.body == Some(ResponseBody::UntilClose);
            return Next::Cut { by_reset, ended: Ended::Error };
        }
        if error.kind == ErrorKind::DownstreamClosed && !answer.has_begun() {
            // It may still read: answers to the requests before this one are on their way.
            return Next::Cut { by_reset: false, ended: Ended::ByClient };
        }
        let form = Form::of(&request.fields);
        if answer.has_begun() || error.status() == 0 || refuse(&mut answer, &error, form).await.is_err() {
            return Next::Abort(Ended::Error);
        }
    }
    if !shared.keeps.get() {
        let ended = if service.is_draining() { Ended::Drain } else { Ended::AfterAnswer };
        return Next::Close(ended);
    }
    // The head has promised to keep the connection, so what is left of the body is little.
    while !body.is_complete() {
        match body.next().await {
            Ok(_) => {}
            Err(error) => {
                service.note(&error);
                service.misconduct(connection, &error);
                return Next::Close(Ended::Error);
            }
        }
    }
    Next::Request
}

/// Answers a request whose head could not be read.
async fn refuse_head<S: Service, T: Transport>(
    service: &S,
    stream: &T,
    limits: &ServerLimits,
    error: &ProxyError,
) {
    service.note(error);
    let shared = Shared {
        keeps: Cell::new(false),
        is_pipelined: Cell::new(false),
        unread_body: Cell::new(None),
        owes_continue: Cell::new(false),
        has_begun: Cell::new(false),
        is_tunnel: Cell::new(false),
    };
    let mut answer = ResponseSink {
        service,
        stream,
        version: Version::Http11,
        alternatives: None,
        is_head_request: false,
        body: None,
        send_progress: limits.send_progress,
        shared: &shared,
    };
    // A client that is gone gets no answer, and there is nothing to do about it.
    let _gone = refuse(&mut answer, error, Form::Text).await;
}

/// Sends what is left, ends our side, and listens until the client has ended its own.
pub(crate) async fn linger<S: Service>(service: &S, stream: &impl Transport, deadline: &mut Deadline) {
    stream.shutdown_write();
    if !flush(service, stream).await {
        return;
    }
    let mut left = LINGER_BYTES_MAX;
    // Set here and not by the first wait: when bytes are there already nobody waits, and what was set
    // for an earlier phase may have passed.
    deadline.set_after(LINGER);
    while let Ok(chunk) = receive(stream, deadline, None).await {
        left = left.saturating_sub(chunk.len() as u64);
        if left == 0 {
            return;
        }
    }
}

/// Waits until everything has left, as long as the client takes some of it; `false` when it does not.
async fn flush<S: Service>(service: &S, stream: &impl Transport) -> bool {
    let progress = service.limits().send_progress;
    let (closed, stalled) = (ErrorKind::DownstreamClosed, ErrorKind::DownstreamSendTimeout);
    let outcome = flushed(stream, progress, closed, stalled).await;
    if let Err(error) = &outcome {
        service.note(error);
        // What is left will not be sent, and an answer that ends with the connection must not look
        // whole (RFC 9112 section 8).
        stream.reset_on_close();
    }
    outcome.is_ok()
}

/// What the two directions of one exchange know of each other.
struct Shared {
    /// The connection is kept after the answer.
    keeps: Cell<bool>,
    /// More bytes have come than this request's: another request follows it.
    is_pipelined: Cell<bool>,
    /// Bytes of the request's body that were not taken; `None` when nobody knows.
    unread_body: Cell<Option<u64>>,
    /// The client waits for a 100 that was not sent.
    owes_continue: Cell<bool>,
    /// The head of the final answer has been written.
    has_begun: Cell<bool>,
    /// Protocols were switched: what comes and goes is not HTTP any more.
    is_tunnel: Cell<bool>,
}

/// Resets the connection when an exchange that is a tunnel is dropped, by a panic or with its worker: the end of the
/// connection would look like the endpoint's.
struct Cut<'a, T: Transport> {
    stream: &'a T,
    shared: &'a Shared,
}

impl<T: Transport> Drop for Cut<'_, T> {
    fn drop(&mut self) {
        if self.shared.is_tunnel.get() {
            self.stream.reset_on_close();
        }
    }
}

impl Shared {
    fn new(framing: &RequestFraming, is_pipelined: bool) -> Self {
        let unread_body = match framing.body_length() {
            BodyLength::Empty => Some(0),
            BodyLength::Exact(length) => Some(length),
            BodyLength::Unknown => None,
        };
        Self {
            keeps: Cell::new(framing.keep_alive),
            is_pipelined: Cell::new(is_pipelined),
            unread_body: Cell::new(unread_body),
            owes_continue: Cell::new(framing.expects_continue && unread_body != Some(0)),
            has_begun: Cell::new(false),
            is_tunnel: Cell::new(false),
        }
    }

    /// Whether the client has left: it reset the connection, or closed it behind its last request
    /// before the answer has begun. One that only ended its sending side cannot be told from one that
    /// closed; like other gateways we take it for the latter, and serve neither. Once an answer has
    /// begun, a client that is gone resets what we send.
    fn poll_gone(&self, stream: &impl Transport, cx: &mut std::task::Context<'_>) -> Poll<()> {
        // Before the body is complete its reader notices.
        if self.unread_body.get() != Some(0) || self.is_pipelined.get() {
            return Poll::Pending;
        }
        match stream.poll_gone(cx) {
            Poll::Ready(Ok(())) if self.has_begun.get() => Poll::Pending,
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Whether the rest of the request's body can be read and thrown away.
    fn can_skip_body(&self) -> bool {
        self.unread_body
            .get()
            .is_some_and(|left| left == 0 || (left <= SKIP_BYTES_MAX && !self.owes_continue.get()))
    }
}

/// The request's body on its way from the client.
struct RequestBody<'a, T> {
    stream: &'a T,
    deadline: &'a mut Deadline,
    unread: &'a mut Unread,
    decoder: BodyDecoder,
    length: BodyLength,
    limits: &'a ServerLimits,
    received: u64,
    shared: &'a Shared,
}

impl<T: Transport> BodySource for RequestBody<'_, T> {
    fn length(&self) -> BodyLength {
        self.length
    }

    fn is_complete(&self) -> bool {
        self.decoder.is_complete()
    }

    async fn next(&mut self) -> Result<Option<Chunk>, ProxyError> {
        if self.shared.is_tunnel.get() {
            let read = self.unread.raw(self.stream, self.deadline).await;
            return read.map_err(|error| broken(ErrorKind::DownstreamClosed, &error));
        }
        if self.shared.owes_continue.replace(false) && self.unread.is_empty() {
            self.stream
                .write_with(|out| write_interim_head(out, 100, &Fields::new()))
                .map_err(|error| broken(ErrorKind::DownstreamClosed, &error))?;
        }
        let progress = self.limits.body_progress;
        let read = self.unread.body(self.stream, self.deadline, progress, &mut self.decoder).await;
        let chunk = read.map_err(|error| match error {
            ReadError::Closed => ProxyError::new(ErrorKind::DownstreamClosed),
            ReadError::Broken(error) => broken(ErrorKind::DownstreamClosed, &error),
            ReadError::Expired => ProxyError::new(ErrorKind::RequestBodyTimeout),
            ReadError::Malformed(error) => H1Error::in_request(error),
        })?;
        self.received += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        if self.received > self.limits.body_bytes_max {
            return Err(ProxyError::new(ErrorKind::RequestBodyTooLarge));
        }
        self.shared.is_pipelined.set(!self.unread.is_empty());
        self.shared.unread_body.set(match self.length {
            _ if self.decoder.is_complete() => Some(0),
            BodyLength::Exact(length) => Some(length.saturating_sub(self.received)),
            BodyLength::Empty | BodyLength::Unknown => None,
        });
        Ok(chunk)
    }

    fn trailers(&self) -> Option<&Fields> {
        self.decoder.trailers()
    }
}

/// The answer on its way to the client.
struct ResponseSink<'a, S, T> {
    service: &'a S,
    /// Fields beside those of the answer.
    alternatives: Option<Rc<Fields>>,
    stream: &'a T,
    version: Version,
    is_head_request: bool,
    /// How the body is sent; absent until the head has been written.
    body: Option<ResponseBody>,
    send_progress: Duration,
    shared: &'a Shared,
}

impl<S, T> ResponseSink<'_, S, T> {
    fn gone(error: &std::io::Error) -> ProxyError {
        broken(ErrorKind::DownstreamClosed, error)
    }
}

impl<S: Service, T: Transport> ResponseSink<'_, S, T> {
    /// Writes a 101, whose fields say what is switched to.
    fn switch(&mut self, head: &ResponseHead) -> Result<(), ProxyError> {
        let shared = self.shared;
        shared.keeps.set(false);
        shared.has_begun.set(true);
        // What has come behind the request is the tunnel's now.
        shared.is_tunnel.set(true);
        shared.is_pipelined.set(false);
        // Bytes until the connection closes, so that a cut is shown by a reset.
        self.body = Some(ResponseBody::UntilClose);
        self.service.answered(Protocol::H1, head.status);
        let (body, connection) = (ResponseBody::Omitted, ConnectionField::Silent);
        let date = self.service.date();
        self.stream
            .write_with(|out| {
                let more = self.alternatives.as_deref();
                write_response_head(out, head.status, &head.fields, body, connection, &date, more);
            })
            .map_err(|error| Self::gone(&error))
    }
}

impl<S: Service, T: Transport> BodySink for ResponseSink<'_, S, T> {
    async fn data(&mut self, chunk: Chunk) -> Result<(), ProxyError> {
        let chunked = self.body == Some(ResponseBody::Chunked);
        write_body(self.stream, chunk, chunked).map_err(|error| Self::gone(&error))?;
        let (closed, stalled) = (ErrorKind::DownstreamClosed, ErrorKind::DownstreamSendTimeout);
        writable(self.stream, self.send_progress, closed, stalled).await
    }

    fn end(&mut self, trailers: Option<&Fields>) -> Result<(), ProxyError> {
        if self.body == Some(ResponseBody::Chunked) {
            self.stream
                .write_with(|out| write_last_chunk(out, trailers))
                .map_err(|error| Self::gone(&error))?;
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), ProxyError> {
        self.stream.shutdown_write();
        let (closed, stalled) = (ErrorKind::DownstreamClosed, ErrorKind::DownstreamSendTimeout);
        flushed(self.stream, self.send_progress, closed, stalled).await
    }
}

impl<S: Service, T: Transport> Answer for ResponseSink<'_, S, T> {
    fn has_begun(&self) -> bool {
        self.body.is_some()
    }

    async fn interim(&mut self, status: u16, fields: &Fields) -> Result<(), ProxyError> {
        // HTTP/1.0 knows no interim answers (RFC 9110 section 15.2).
        if self.version == Version::Http10 || self.body.is_some() {
            return Ok(());
        }
        if status == 100 && !self.shared.owes_continue.replace(false) {
            // Nobody waits for it, or it was sent.
            return Ok(());
        }
        self.stream
            .write_with(|out| write_interim_head(out, status, fields))
            .map_err(|error| Self::gone(&error))?;
        let (closed, stalled) = (ErrorKind::DownstreamClosed, ErrorKind::DownstreamSendTimeout);
        writable(self.stream, self.send_progress, closed, stalled).await
    }

    fn head(&mut self, head: &ResponseHead, length: BodyLength) -> Result<(), ProxyError> {
        if head.status == 101 {
            return self.switch(head);
        }
        let body = ResponseBody::choose(head.status, self.is_head_request, length, self.version);
        let keeps = self.shared.keeps.get()
            && self.shared.can_skip_body()
            && body != ResponseBody::UntilClose
            && !self.service.is_draining();
        self.shared.keeps.set(keeps);
        let connection = ConnectionField::choose(keeps, self.version, body);
        let date = self.service.date();
        self.body = Some(body);
        self.shared.has_begun.set(true);
        self.service.answered(Protocol::H1, head.status);
        self.stream
            .write_with(|out| {
                let more = self.alternatives.as_deref();
                write_response_head(out, head.status, &head.fields, body, connection, &date, more);
            })
            .map_err(|error| Self::gone(&error))
    }

    fn takes_body(&self) -> bool {
        !matches!(self.body, Some(ResponseBody::Omitted))
    }

    fn close_after(&mut self) {
        self.shared.keeps.set(false);
    }
}
