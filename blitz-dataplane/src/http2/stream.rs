//! One request and its answer on a stream, as the proxy sees them.
//!
//! Received bytes are given back to the flow control windows (RFC 9113 section 5.2) when the next piece is asked for:
//! by then the endpoint has taken them. So a slow endpoint stops the client.
//!
//! Owns: the task of a request, the body and the answer as [`BodySource`] and [`Answer`]. Does not own: the connection
//! (`server.rs`), heads (`head.rs`).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};

use super::absorb::Absorbed;
use super::error::code;
use super::frame::Code;
use super::head::{read_request, read_trailers, write_fields, write_head, write_response, write_switch};
use super::io::Shared;
use super::meter::Abuse;
use crate::exchange::head::{AnswerBody, answer_failure};
use crate::exchange::refusal::Form;
use crate::exchange::stream::{Answer, BodySink, BodySource, Origin, ServerLimits, Service};
use crate::exchange::{
    BodyLength, ErrorKind, Method, Protocol, ProxyError, RequestHead, ResponseHead, grpc, upgrade,
};
use crate::fields::Fields;
use crate::http1::refuse_method;
use crate::proxy::connections::{Connection, UnderWay};
use crate::runtime::{Chunk, Deadline, Handle};

/// A chunk as the crate wants it.
pub(super) struct ChunkBuf(Chunk);

impl ChunkBuf {
    pub(super) fn new(chunk: Chunk) -> Self {
        Self(chunk)
    }
}

impl Buf for ChunkBuf {
    fn remaining(&self) -> usize {
        self.0.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.0
    }

    fn advance(&mut self, count: usize) {
        self.0.advance(count);
    }
}

/// Ready when the windows and the crate's buffer have room for some of `wanted` bytes; with `None` when the stream or
/// the connection is gone.
pub(super) fn poll_room(
    stream: &mut SendStream<ChunkBuf>,
    wanted: usize,
    cx: &mut Context<'_>,
) -> Poll<Option<usize>> {
    stream.reserve_capacity(wanted);
    loop {
        // What was assigned before is not reported again.
        if stream.capacity() > 0 {
            return Poll::Ready(Some(stream.capacity()));
        }
        match std::task::ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(None),
        }
    }
}

/// What the task of a request needs.
pub(super) struct Task<S> {
    pub(super) service: Rc<S>,
    pub(super) connection: Rc<Connection>,
    pub(super) handle: Handle,
    pub(super) shared: Rc<Shared>,
    /// Ends with the task, by a panic too.
    pub(super) _under_way: UnderWay,
}

impl<S: Service> Task<S> {
    /// Serves the request to its end.
    pub(super) async fn run(self, request: http::Request<RecvStream>, respond: SendResponse<ChunkBuf>) {
        let service = &*self.service;
        let mut head = service.take_request();
        head.scheme = self.connection.scheme();
        self.exchange(request, respond, &mut head).await;
        service.put_request(head);
    }

    async fn exchange(
        &self,
        request: http::Request<RecvStream>,
        respond: SendResponse<ChunkBuf>,
        head: &mut RequestHead,
    ) {
        let Self { service, connection, handle, shared, .. } = self;
        let limits = service.limits();
        let (parts, received) = request.into_parts();
        let has_ended = received.is_end_stream();
        let read = read_request(&parts, has_ended, &limits.head, head);
        // Where the head could not be read, its fields may not have been reached.
        let unread_form = read.is_err().then(|| {
            let value = parts.headers.get(http::header::CONTENT_TYPE);
            let is_grpc = value.is_some_and(|value| grpc::is_content_type(value.as_bytes()));
            if is_grpc { Form::Grpc } else { Form::Text }
        });
        drop(parts);
        let length = read.unwrap_or_default();
        let line = Line {
            sender: RefCell::new(Sender { respond, stream: None }),
            owes_continue: Cell::new(read.is_ok() && head.expects_continue),
            is_tunnel: Cell::new(false),
        };
        let mut body = RequestBody {
            received,
            line: &line,
            handle,
            limits: &limits,
            length,
            taken: 0,
            unreleased: 0,
            absorbed: Absorbed::default(),
            is_complete: has_ended,
            trailers: None,
        };
        let mut answer = StreamAnswer {
            service: &**service,
            shared,
            handle,
            line: &line,
            alternatives: connection.alternatives(),
            is_head_request: head.method == Method::Head,
            is_connect: head.upgrade.is_some(),
            send_progress: limits.send_progress,
            body: None,
            left: None,
            last: None,
        };
        let poll_gone = |cx: &mut Context<'_>| line.sender.borrow_mut().poll_gone(cx);
        let origin = Origin { connection, protocol: "2", poll_gone: &poll_gone };
        let outcome = if let Err(error) = read {
            service.misconduct(connection, &error);
            Err(error)
        } else if matches!(length, BodyLength::Exact(length) if length > limits.body_bytes_max) {
            Err(ProxyError::new(ErrorKind::RequestBodyTooLarge))
        } else if let Some(error) = refuse_method(&head.method) {
            Err(error)
        } else if let Some(error) = head.upgrade.and_then(|_| upgrade::refuse(&head.fields, false)) {
            Err(error)
        } else {
            service.exchange(&origin, head, &mut body, &mut answer).await
        };
        let Err(error) = outcome else { return };
        service.note(&error);
        match error.kind {
            ErrorKind::BadRequestFraming => service.misconduct(connection, &error),
            ErrorKind::DownstreamSendTimeout => shared.charge(Abuse::StalledWindow, handle.now_ms()),
            _ => {}
        }
        let form = unread_form.unwrap_or_else(|| Form::of(&head.fields));
        if answer_failure(&mut answer, &error, form).await {
            // An answer that is not whole must not look so (RFC 9113 section 8.1).
            line.sender.borrow_mut().reset(code(error.kind));
        }
    }
}

/// The sending side, which body and answer share: a 100 is sent by whoever reads the body.
struct Line {
    sender: RefCell<Sender>,
    /// The client waits for a 100 that was not sent.
    owes_continue: Cell<bool>,
    /// Protocols were switched.
    is_tunnel: Cell<bool>,
}

struct Sender {
    respond: SendResponse<ChunkBuf>,
    /// Present once the final head has been sent.
    stream: Option<SendStream<ChunkBuf>>,
}

impl Sender {
    /// Ready when the client has reset the stream, or the connection is gone.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.stream {
            Some(stream) => stream.poll_reset(cx).map(|_| ()),
            None => self.respond.poll_reset(cx).map(|_| ()),
        }
    }

    fn interim(&mut self, status: u16, fields: &Fields) -> Result<(), ProxyError> {
        let head = write_head(status, fields)?;
        self.respond.send_informational(head).map_err(gone)
    }

    fn reset(&mut self, code: Code) {
        match &mut self.stream {
            Some(stream) => stream.send_reset(code.into()),
            None => self.respond.send_reset(code.into()),
        }
    }
}

/// An error of a stream that can only mean that the client is not there any more.
fn gone(_: h2::Error) -> ProxyError {
    ProxyError::new(ErrorKind::DownstreamClosed)
}

/// The request's body on its way from the client.
struct RequestBody<'a> {
    received: RecvStream,
    line: &'a Line,
    handle: &'a Handle,
    limits: &'a ServerLimits,
    length: BodyLength,
    /// Bytes received so far.
    taken: u64,
    /// Bytes handed out and not yet given back to the windows.
    unreleased: usize,
    absorbed: Absorbed,
    is_complete: bool,
    trailers: Option<Fields>,
}

impl RequestBody<'_> {
    /// Takes all that has come; ready at the end of the data, or when they break off.
    fn take_in(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        loop {
            match std::task::ready!(self.received.poll_data(cx)) {
                // It may have brought padding, whose room the crate gives back itself.
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => self.absorbed.put(bytes),
                Some(Err(error)) => return Poll::Ready(Err(broken(&error))),
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    /// The next piece, or what ends the body; waits for ever.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<bytes::Bytes>, ProxyError>> {
        let more = self.take_in(cx);
        if let Some(bytes) = self.absorbed.take() {
            return Poll::Ready(Ok(Some(bytes)));
        }
        std::task::ready!(more)?;
        match std::task::ready!(self.received.poll_trailers(cx)) {
            Ok(Some(headers)) => {
                let mut trailers = Fields::new();
                read_trailers(&headers, &self.limits.head, &mut trailers).map_err(|error| {
                    match error.kind {
                        ErrorKind::BadRequestHead => {
                            ProxyError::new(ErrorKind::BadRequestFraming).with_detail("bad_trailer")
                        }
                        _ => error,
                    }
                })?;
                self.trailers = Some(trailers);
            }
            Ok(None) => {}
            Err(error) => return Poll::Ready(Err(broken(&error))),
        }
        self.is_complete = true;
        Poll::Ready(Ok(None))
    }
}

/// Why a body did not go on.
fn broken(error: &h2::Error) -> ProxyError {
    if error.is_library() && error.reason() == Some(Reason::PROTOCOL_ERROR) {
        // Content-Length and DATA disagree, or trailers that are none; the crate has reset the stream.
        return ProxyError::new(ErrorKind::BadRequestFraming).with_detail("h2_malformed");
    }
    ProxyError::new(ErrorKind::DownstreamClosed)
}

impl BodySource for RequestBody<'_> {
    fn length(&self) -> BodyLength {
        self.length
    }

    fn is_complete(&self) -> bool {
        self.is_complete
    }

    async fn next(&mut self) -> Result<Option<Chunk>, ProxyError> {
        if self.unreleased > 0 {
            // An error would say that more is given back than was taken, which the count rules out.
            let _ = self.received.flow_control().release_capacity(std::mem::take(&mut self.unreleased));
        }
        if self.is_complete {
            return Ok(None);
        }
        if self.line.is_tunnel.get() {
            // As long as its owner lets it last, and as much as comes.
            let next = poll_fn(|cx| self.poll_next(cx)).await?;
            self.unreleased = next.as_ref().map_or(0, bytes::Bytes::len);
            return Ok(next.map(Chunk::from_bytes));
        }
        if self.line.owes_continue.replace(false) {
            // Too late where the answer has begun.
            let _ = self.line.sender.borrow_mut().interim(100, &Fields::new());
        }
        let mut deadline: Option<Deadline> = None;
        let next = poll_fn(|cx| {
            if let Poll::Ready(next) = self.poll_next(cx) {
                return Poll::Ready(next);
            }
            let deadline = deadline.get_or_insert_with(|| {
                let mut deadline = Deadline::new(self.handle);
                deadline.set_after(self.limits.body_progress);
                deadline
            });
            deadline.poll_expired(cx).map(|_| Err(ProxyError::new(ErrorKind::RequestBodyTimeout)))
        });
        let Some(bytes) = next.await? else { return Ok(None) };
        self.unreleased = bytes.len();
        self.taken += bytes.len() as u64;
        if self.taken > self.limits.body_bytes_max {
            return Err(ProxyError::new(ErrorKind::RequestBodyTooLarge));
        }
        Ok(Some(Chunk::from_bytes(bytes)))
    }

    fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_ref()
    }

    fn absorb(&mut self, cx: &mut Context<'_>) {
        // What ends the data is asked for again by whoever has taken them.
        let _more = self.take_in(cx);
    }
}

/// The answer on its way to the client.
struct StreamAnswer<'a, S> {
    service: &'a S,
    shared: &'a Shared,
    handle: &'a Handle,
    line: &'a Line,
    alternatives: Option<Rc<Fields>>,
    is_head_request: bool,
    /// The request is an extended CONNECT: any 2xx would accept it.
    is_connect: bool,
    send_progress: Duration,
    /// How the body is sent; absent until the head has been written.
    body: Option<AnswerBody>,
    /// Bytes of the body that are still to come, where the head said how many there are.
    left: Option<u64>,
    /// The last of them: it waits for [`BodySink::end`], which says what ends the stream.
    last: Option<Chunk>,
}

impl<S: Service> StreamAnswer<'_, S> {
    /// Waits until the windows and the crate's buffer have room for some of the chunk.
    async fn room(&self, chunk: &mut Chunk) -> Result<usize, ProxyError> {
        let mut deadline: Option<Deadline> = None;
        poll_fn(|cx| {
            let mut sender = self.line.sender.borrow_mut();
            let Some(stream) = &mut sender.stream else {
                return Poll::Ready(Err(ProxyError::new(ErrorKind::Internal)));
            };
            if let Poll::Ready(room) = poll_room(stream, chunk.len(), cx) {
                return Poll::Ready(room.ok_or(ProxyError::new(ErrorKind::DownstreamClosed)));
            }
            // It waits for the client: others need the pool's slot.
            chunk.spill();
            let deadline = deadline.get_or_insert_with(|| {
                let mut deadline = Deadline::new(self.handle);
                deadline.set_after(self.send_progress);
                deadline
            });
            deadline.poll_expired(cx).map(|_| Err(ProxyError::new(ErrorKind::DownstreamSendTimeout)))
        })
        .await
    }

    fn send(&self, mut chunk: Chunk, is_last: bool) -> Result<(), ProxyError> {
        // It may wait for long, and is counted by its length: it holds no slot that others need, and no more memory.
        chunk.spill();
        chunk.compact();
        self.shared.give(chunk.len());
        match &mut self.line.sender.borrow_mut().stream {
            Some(stream) => stream.send_data(ChunkBuf(chunk), is_last).map_err(gone),
            None => Err(ProxyError::new(ErrorKind::Internal)),
        }
    }
}

impl<S: Service> BodySink for StreamAnswer<'_, S> {
    async fn data(&mut self, mut chunk: Chunk) -> Result<(), ProxyError> {
        while !chunk.is_empty() {
            let room = self.room(&mut chunk).await?;
            let part = chunk.split_to(room);
            if let Some(left) = &mut self.left {
                *left = left.saturating_sub(part.len() as u64);
                if *left == 0 {
                    self.last = Some(part);
                    continue;
                }
            }
            self.send(part, false)?;
        }
        Ok(())
    }

    fn end(&mut self, trailers: Option<&Fields>) -> Result<(), ProxyError> {
        if self.body != Some(AnswerBody::Data) {
            return Ok(());
        }
        let last = self.last.take();
        let Some(trailers) = trailers.filter(|trailers| !trailers.is_empty()) else {
            return self.send(last.unwrap_or_else(|| Chunk::from_static(b"")), true);
        };
        if let Some(last) = last {
            self.send(last, false)?;
        }
        let headers = write_fields(trailers)?;
        match &mut self.line.sender.borrow_mut().stream {
            Some(stream) => stream.send_trailers(headers).map_err(gone),
            None => Err(ProxyError::new(ErrorKind::Internal)),
        }
    }

    async fn finish(&mut self) -> Result<(), ProxyError> {
        // The crate sends what it holds as the windows open.
        self.end(None)
    }
}

impl<S: Service> Answer for StreamAnswer<'_, S> {
    fn has_begun(&self) -> bool {
        self.body.is_some()
    }

    async fn interim(&mut self, status: u16, fields: &Fields) -> Result<(), ProxyError> {
        if self.body.is_some() || (status == 100 && !self.line.owes_continue.replace(false)) {
            return Ok(());
        }
        self.line.sender.borrow_mut().interim(status, fields)
    }

    fn head(&mut self, head: &ResponseHead, length: BodyLength) -> Result<(), ProxyError> {
        let is_switch = head.status == 101;
        if self.is_connect && matches!(head.status, 200..=299) {
            // The endpoint has answered the request and not switched: nobody is at the other end of a tunnel.
            return Err(ProxyError::new(ErrorKind::UpstreamUpgradeFailed).with_detail("not_switched"));
        }
        let (mut response, body) = if is_switch {
            (write_switch(head)?, AnswerBody::Data)
        } else {
            write_response(head, length, self.is_head_request, &self.service.date())?
        };
        if let Some(fields) = &self.alternatives {
            response.headers_mut().extend(write_fields(fields)?);
        }
        self.line.owes_continue.set(false);
        let mut sender = self.line.sender.borrow_mut();
        let sent = sender.respond.send_response(response, body == AnswerBody::None);
        sender.stream = Some(sent.map_err(gone)?);
        self.body = Some(body);
        if let BodyLength::Exact(length) = length {
            self.left = Some(length);
        }
        self.line.is_tunnel.set(is_switch);
        self.service.answered(Protocol::H2, if is_switch { 200 } else { head.status });
        Ok(())
    }

    fn takes_body(&self) -> bool {
        self.body == Some(AnswerBody::Data)
    }

    /// A stream carries one answer, and the others are none of its business.
    fn close_after(&mut self) {}
}
