//! One request and its answer on a stream, as the proxy sees them.
//!
//! A piece of a body is taken out of quiche when it is asked for, and only that opens the client's window (RFC 9000
//! section 4.1). So a slow endpoint stops the client. What is answered is handed to quiche as far as the windows of
//! client and path go; the rest waits here, at most one piece and a head.
//!
//! Owns: the task of a request, the body and the answer as [`BodySource`] and [`Answer`]. Does not own: the
//! connection (`server.rs`), heads (`head.rs`).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BufMut;
use quiche::h3;

use super::connection::{Begun, Conn, Signals, State};
use super::early::{self, Early};
use super::head::{
    Digits, FieldList, OwnedList, owned, read_request, read_trailers, write_interim, write_response,
    write_switch, write_trailers,
};
use super::{Code, code, priority};
use crate::exchange::head::{AnswerBody, answer_failure};
use crate::exchange::refusal::Form;
use crate::exchange::stream::{Answer, BodySink, BodySource, Origin, ServerLimits, Service};
use crate::exchange::{
    BodyLength, ErrorKind, Method, Protocol, ProxyError, RequestHead, ResponseHead, upgrade,
};
use crate::fields::{Fields, Known};
use crate::http1::refuse_method;
use crate::proxy::connections::{Connection, UnderWay};
use crate::runtime::{Chunk, Deadline, Handle, Queue};

/// Bytes of a body that are taken at once.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// What the task of a request needs.
pub(super) struct Task<S> {
    pub(super) service: Rc<S>,
    pub(super) connection: Rc<Connection>,
    pub(super) handle: Handle,
    pub(super) conn: Rc<Conn>,
    /// Ends with the task, by a panic too.
    pub(super) _under_way: UnderWay,
}

impl<S: Service> Task<S> {
    /// Serves the request to its end.
    pub(super) async fn run(self, begun: Begun) {
        let service = &*self.service;
        let mut head = service.take_request();
        head.scheme = self.connection.scheme();
        let end = End { conn: &self.conn, id: begun.id, cut: Cell::new(Some(Code::InternalError)) };
        end.cut.set(self.exchange(begun, &mut head).await);
        drop(end);
        service.put_request(head);
    }

    /// Gives the code that the stream is cut with, when the answer is not whole.
    async fn exchange(&self, begun: Begun, head: &mut RequestHead) -> Option<Code> {
        let Self { service, connection, handle, conn, .. } = self;
        let Begun { id, list, has_ended, signals, is_early } = begun;
        let limits = service.limits();
        let read = read_request(&list, has_ended, &limits.head, head);
        drop(list);
        if let Err(error) = &read
            && error.is_malformed
        {
            service.note(&error.error);
            service.misconduct(connection, &error.error);
            return Some(Code::MessageError);
        }
        let read = read.map_err(|error| error.error);
        let length = read.unwrap_or_default();
        let line = Line {
            conn,
            id,
            signals: &signals,
            waiting: RefCell::default(),
            has_head: Cell::new(false),
            owes_continue: Cell::new(read.is_ok() && head.expects_continue),
            is_tunnel: Cell::new(false),
        };
        let mut body = RequestBody {
            line: &line,
            handle,
            limits: &limits,
            length,
            taken: 0,
            is_complete: has_ended,
            trailers: None,
        };
        let mut answer = StreamAnswer {
            service: &**service,
            handle,
            line: &line,
            is_head_request: head.method == Method::Head,
            is_connect: head.upgrade.is_some(),
            send_progress: limits.send_progress,
            body: None,
            left: None,
            last: None,
        };
        let poll_gone = |cx: &mut Context<'_>| line.poll_gone(cx);
        let origin = Origin { connection, protocol: "3", poll_gone: &poll_gone };
        let early = if is_early { line.early(head, !has_ended).await } else { Ok(()) };
        let outcome = if let Err(error) = read.and(early) {
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
        let mut cut = None;
        if let Err(error) = outcome {
            service.note(&error);
            if error.kind == ErrorKind::BadRequestFraming {
                service.misconduct(connection, &error);
            }
            // A message that turned out to be malformed is not answered (RFC 9114 section 4.1.2).
            let is_malformed = error.kind == ErrorKind::BadRequestFraming;
            let form = Form::of(&head.fields);
            if is_malformed || answer_failure(&mut answer, &error, form).await {
                cut = Some(code(error.kind));
            } else if error.kind == ErrorKind::DownstreamClosed {
                cut = Some(Code::RequestCancelled);
            }
        }
        if cut.is_none()
            && let Err(error) = answer.drain().await
        {
            if error.kind != ErrorKind::DownstreamClosed {
                service.note(&error);
            }
            cut = Some(code(error.kind));
        }
        cut
    }
}

/// Forgets the stream when its task ends, by a panic too.
struct End<'a> {
    conn: &'a Conn,
    id: u64,
    cut: Cell<Option<Code>>,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        // A panic within quiche leaves nothing to be said.
        if let Ok(mut state) = self.conn.state.try_borrow_mut() {
            state.end(self.id, self.cut.get());
        }
        self.conn.wake();
    }
}

/// The sending side, which body and answer share: a 100 is sent by whoever reads the body.
struct Line<'a> {
    conn: &'a Conn,
    id: u64,
    signals: &'a Signals,
    /// What quiche has not taken yet.
    waiting: RefCell<Queue<Part>>,
    /// Whether a head, interim or final, has been sent.
    has_head: Cell<bool>,
    /// The client waits for a 100 that was not sent.
    owes_continue: Cell<bool>,
    /// Protocols were switched.
    is_tunnel: Cell<bool>,
}

/// What is still to be sent.
enum Part {
    Head { list: OwnedList, is_end: bool },
    Data { chunk: Chunk, is_end: bool },
    Trailers(OwnedList),
}

impl Line<'_> {
    /// Ready when the client wants no answer any more, or the connection is gone.
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.signals.is_gone.get() || self.conn.state.borrow_mut().is_stopped(self.id) {
            return Poll::Ready(());
        }
        self.signals.watcher.register(cx);
        Poll::Pending
    }

    /// What a request has to do that came before the handshake was done: wait for it, or say so.
    async fn early(&self, head: &mut RequestHead, has_body: bool) -> Result<(), ProxyError> {
        let is_safe = early::is_safe(head, has_body);
        if !is_safe || self.conn.early.get() != Early::Goes {
            poll_fn(|cx| {
                if self.signals.is_gone.get() {
                    return Poll::Ready(Err(gone()));
                }
                if self.conn.state.borrow().quic.is_established() {
                    return Poll::Ready(Ok(()));
                }
                self.signals.reader.register(cx);
                Poll::Pending
            })
            .await?;
        }
        if is_safe && !head.fields.contains(Known::EarlyData) {
            // Also of one that has waited: another that heard the same flight may have passed it on (RFC 8470 section
            // 5.1).
            let too_large = |_| ProxyError::new(ErrorKind::RequestHeadTooLarge);
            head.fields.push_known(Known::EarlyData, b"1").map_err(too_large)?;
        }
        Ok(())
    }

    /// Sends a head, or has it wait.
    fn head(&self, list: &FieldList<'_>, is_end: bool) -> Result<(), ProxyError> {
        if !self.waiting.borrow().is_empty() || !self.send_head(list, is_end)? {
            self.waiting.borrow_mut().push(Part::Head { list: owned(list), is_end });
        }
        Ok(())
    }

    /// Whether there was room for it.
    fn send_head<F: h3::NameValue>(&self, list: &[F], is_end: bool) -> Result<bool, ProxyError> {
        let mut state = self.conn.state.borrow_mut();
        let State { quic, h3, .. } = &mut *state;
        let h3 = h3.as_mut().ok_or(gone())?;
        let sent = if self.has_head.get() {
            h3.send_additional_headers(quic, self.id, list, false, is_end)
        } else {
            // It gives the stream the default.
            let sent = h3.send_response(quic, self.id, list, is_end);
            self.signals.priority.get().apply(quic, self.id);
            sent
        };
        drop(state);
        let is_sent = room(sent)?;
        if is_sent {
            self.has_head.set(true);
            self.conn.wake();
        }
        Ok(is_sent)
    }

    /// Takes over what an endpoint says of its answer's priority (RFC 9218 section 8).
    fn prioritize(&self, value: &[u8]) {
        let mut priority = self.signals.priority.get();
        priority.change(value);
        self.signals.priority.set(priority);
        priority.apply(&mut self.conn.state.borrow_mut().quic, self.id);
    }

    /// Sends what waits, as far as there is room. Whether something was sent, and whether nothing waits any more.
    fn send_waiting(&self) -> Result<(bool, bool), ProxyError> {
        let mut has_moved = false;
        loop {
            let mut waiting = self.waiting.borrow_mut();
            let Some(part) = waiting.first_mut() else { return Ok((has_moved, true)) };
            let is_done = match part {
                Part::Head { list, is_end } => self.send_head(list, *is_end)?,
                Part::Data { chunk, is_end } => {
                    let mut state = self.conn.state.borrow_mut();
                    let State { quic, h3, .. } = &mut *state;
                    let h3 = h3.as_mut().ok_or(gone())?;
                    match h3.send_body(quic, self.id, chunk, *is_end) {
                        Ok(count) => {
                            has_moved |= count > 0;
                            chunk.advance(count);
                            chunk.is_empty()
                        }
                        Err(h3::Error::Done) => false,
                        Err(_) => return Err(gone()),
                    }
                }
                Part::Trailers(list) => {
                    let mut state = self.conn.state.borrow_mut();
                    let State { quic, h3, .. } = &mut *state;
                    let h3 = h3.as_mut().ok_or(gone())?;
                    room(h3.send_additional_headers(quic, self.id, list, true, true))?
                }
            };
            if !is_done {
                if has_moved {
                    self.conn.wake();
                }
                return Ok((has_moved, false));
            }
            has_moved = true;
            waiting.pop();
            self.conn.wake();
        }
    }
}

/// An error of a stream that can only mean that the client is not there any more.
const fn gone() -> ProxyError {
    ProxyError::new(ErrorKind::DownstreamClosed)
}

/// Whether there was room for a head.
fn room(sent: Result<(), h3::Error>) -> Result<bool, ProxyError> {
    match sent {
        Ok(()) => Ok(true),
        Err(h3::Error::StreamBlocked) => Ok(false),
        Err(_) => Err(gone()),
    }
}

/// The request's body on its way from the client.
struct RequestBody<'a> {
    line: &'a Line<'a>,
    handle: &'a Handle,
    limits: &'a ServerLimits,
    length: BodyLength,
    /// Bytes received so far.
    taken: u64,
    is_complete: bool,
    trailers: Option<Fields>,
}

impl RequestBody<'_> {
    /// The next piece, or what ends the body; waits for ever.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>, ProxyError>> {
        let Line { conn, id, signals, .. } = *self.line;
        if signals.is_readable.get() {
            let mut state = conn.state.borrow_mut();
            let State { quic, h3, .. } = &mut *state;
            let h3 = h3.as_mut().ok_or(gone())?;
            let mut piece = Vec::with_capacity(quic.stream_readable_len(id, PIECE_BYTES_MAX).max(1));
            let limit = piece.capacity();
            let read = h3.recv_body_buf(quic, id, (&mut piece).limit(limit));
            drop(state);
            match read {
                Ok(_) => {
                    // The client's windows have opened.
                    conn.wake();
                    return Poll::Ready(Ok(Some(Chunk::from_vec(piece))));
                }
                Err(h3::Error::Done) => {
                    signals.is_readable.set(false);
                    // What follows, if it is there, is the connection's task to find.
                    conn.wake();
                }
                Err(_) => return Poll::Ready(Err(gone())),
            }
        }
        if signals.is_gone.get() {
            return Poll::Ready(Err(gone()));
        }
        if !signals.has_ended.get() {
            signals.reader.register(cx);
            return Poll::Pending;
        }
        if let Some(list) = signals.trailers.take() {
            let mut trailers = Fields::new();
            read_trailers(&list, &self.limits.head, &mut trailers).map_err(|error| {
                match error.error.kind {
                    ErrorKind::BadRequestHead => {
                        ProxyError::new(ErrorKind::BadRequestFraming).with_detail("bad_trailer")
                    }
                    _ => error.error,
                }
            })?;
            self.trailers = Some(trailers);
        }
        if matches!(self.length, BodyLength::Exact(length) if length != self.taken) {
            return Poll::Ready(Err(wrong_length()));
        }
        self.is_complete = true;
        Poll::Ready(Ok(None))
    }
}

/// RFC 9114 section 4.1.2.
const fn wrong_length() -> ProxyError {
    ProxyError::new(ErrorKind::BadRequestFraming).with_detail("length_mismatch")
}

impl BodySource for RequestBody<'_> {
    fn length(&self) -> BodyLength {
        self.length
    }

    fn is_complete(&self) -> bool {
        self.is_complete
    }

    async fn next(&mut self) -> Result<Option<Chunk>, ProxyError> {
        if self.is_complete {
            return Ok(None);
        }
        if self.line.is_tunnel.get() {
            // As long as its owner lets it last, and as much as comes.
            return poll_fn(|cx| self.poll_next(cx)).await;
        }
        if self.line.owes_continue.replace(false) {
            let mut digits = Digits::default();
            // Too late where the answer has begun.
            let _ = self.line.head(&write_interim(100, &Fields::new(), &mut digits), false);
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
        let Some(chunk) = next.await? else { return Ok(None) };
        self.taken += chunk.len() as u64;
        if self.taken > self.limits.body_bytes_max {
            return Err(ProxyError::new(ErrorKind::RequestBodyTooLarge));
        }
        if matches!(self.length, BodyLength::Exact(length) if self.taken > length) {
            return Err(wrong_length());
        }
        Ok(Some(chunk))
    }

    fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_ref()
    }
}

/// The answer on its way to the client.
struct StreamAnswer<'a, S> {
    service: &'a S,
    handle: &'a Handle,
    line: &'a Line<'a>,
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
    /// Waits until quiche has taken all that waits.
    async fn drain(&mut self) -> Result<(), ProxyError> {
        let mut deadline: Option<Deadline> = None;
        poll_fn(|cx| {
            let (has_moved, is_done) = self.line.send_waiting()?;
            if is_done {
                return Poll::Ready(Ok(()));
            }
            if self.line.signals.is_gone.get() {
                return Poll::Ready(Err(gone()));
            }
            self.line.signals.writer.register(cx);
            if !has_moved {
                // Others may have waited for this one.
                self.line.conn.wake();
            }
            if let Some(Part::Data { chunk, .. }) = self.line.waiting.borrow_mut().first_mut() {
                // It waits for the client: others need the pool's slot.
                chunk.spill();
                chunk.compact();
            }
            if deadline.is_none() || has_moved {
                deadline.get_or_insert_with(|| Deadline::new(self.handle)).set_after(self.send_progress);
            }
            let expired = deadline.as_mut().map(|deadline| deadline.poll_expired(cx));
            match expired {
                Some(Poll::Ready(_)) => Poll::Ready(Err(ProxyError::new(ErrorKind::DownstreamSendTimeout))),
                _ => Poll::Pending,
            }
        })
        .await
    }

    fn push(&self, part: Part) {
        self.line.waiting.borrow_mut().push(part);
    }
}

impl<S: Service> BodySink for StreamAnswer<'_, S> {
    async fn data(&mut self, chunk: Chunk) -> Result<(), ProxyError> {
        if chunk.is_empty() {
            return Ok(());
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(chunk.len() as u64);
            if *left == 0 {
                self.last = Some(chunk);
                return Ok(());
            }
        }
        self.push(Part::Data { chunk, is_end: false });
        self.drain().await
    }

    fn end(&mut self, trailers: Option<&Fields>) -> Result<(), ProxyError> {
        if self.body != Some(AnswerBody::Data) {
            return Ok(());
        }
        let last = self.last.take();
        match trailers.filter(|trailers| !trailers.is_empty()) {
            Some(trailers) => {
                if let Some(chunk) = last {
                    self.push(Part::Data { chunk, is_end: false });
                }
                self.push(Part::Trailers(owned(&write_trailers(trailers))));
            }
            None => {
                let chunk = last.unwrap_or_else(|| Chunk::from_static(b""));
                self.push(Part::Data { chunk, is_end: true });
            }
        }
        // What does not go at once goes when the exchange is over.
        self.line.send_waiting().map(drop)
    }

    async fn finish(&mut self) -> Result<(), ProxyError> {
        self.end(None)?;
        self.drain().await
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
        let mut digits = Digits::default();
        self.line.head(&write_interim(status, fields, &mut digits), false)?;
        self.drain().await
    }

    fn head(&mut self, head: &ResponseHead, length: BodyLength) -> Result<(), ProxyError> {
        let is_switch = head.status == 101;
        if self.is_connect && matches!(head.status, 200..=299) {
            // The endpoint has answered the request and not switched: nobody is at the other end of a tunnel.
            return Err(ProxyError::new(ErrorKind::UpstreamUpgradeFailed).with_detail("not_switched"));
        }
        let (date, mut digits) = (self.service.date(), Digits::default());
        let (list, body) = if is_switch {
            (write_switch(head), AnswerBody::Data)
        } else {
            write_response(head, length, self.is_head_request, &date, &mut digits)
        };
        self.line.owes_continue.set(false);
        if let Some(value) = head.fields.get_named(priority::NAME) {
            self.line.prioritize(value);
        }
        self.line.head(&list, body == AnswerBody::None)?;
        self.body = Some(body);
        if let BodyLength::Exact(length) = length {
            self.left = Some(length);
        }
        self.line.is_tunnel.set(is_switch);
        self.service.answered(Protocol::H3, if is_switch { 200 } else { head.status });
        Ok(())
    }

    fn takes_body(&self) -> bool {
        self.body == Some(AnswerBody::Data)
    }

    /// A stream carries one answer, and the others are none of its business.
    fn close_after(&mut self) {}
}
