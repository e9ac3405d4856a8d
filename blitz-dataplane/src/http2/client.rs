//! The upstream end of an HTTP/2 connection: requests as streams of a connection that many share.
//!
//! The crate frames, compresses and keeps windows. The endpoint is ours to trust more than a client, so no meter stands
//! in front of it: what it can make us hold is bounded by the windows, by the limit on heads and by the crate's own
//! limits, and each stream has the deadlines of an exchange.
//!
//! Owns: the handshake, what drives a connection, one exchange on a stream. Does not own: who shares a connection
//! (`proxy/shared.rs`), the bytes under it (`client_io.rs`), heads (`client_head.rs`).

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};

use super::client_head::{read_answer_trailers, read_response, write_request};
use super::client_io::ClientIo;
use super::frame::FRAME_BYTES_MAX;
use super::gather::Gathered;
use super::head::write_fields;
use super::stream::{ChunkBuf, poll_room};
use crate::exchange::stream::{AnswerSource, BodySink, BodySource, UpstreamExchange};
use crate::exchange::{BodyLength, ErrorKind, Method, ProxyError, RequestHead, ResponseHead, Retry, Scheme};
use crate::fields::Fields;
use crate::http1::HeadLimits;
use crate::http1::client::ClientLimits;
use crate::runtime::{Chunk, Deadline, Handle, Transport};

/// Streams that one connection carries at the same time (count): the least that RFC 9113 section 6.5.2 recommends, and
/// what is assumed before the endpoint has said what it takes. More of them need another connection.
pub const STREAMS_MAX: u32 = 100;

/// Bytes of an answer that an endpoint may send before the client has taken them. Full: the endpoint waits.
const STREAM_WINDOW_BYTES: u32 = 128 * 1024;

/// The same for all streams of a connection together. As much as the streams may have each, so that clients that read
/// slowly never stop the others.
const CONNECTION_WINDOW_BYTES: u32 = STREAMS_MAX * STREAM_WINDOW_BYTES;

/// Bytes of a request's body that the crate holds for a stream, beside the 64 KiB that the connection's outbox may
/// hold. Full: the sink waits.
const SEND_BUFFER_BYTES: usize = 32 * 1024;

/// How long a connection that is used no more may take to say so.
const CLOSING: Duration = Duration::from_secs(2);

/// What the users of a connection and what drives it know of each other.
#[derive(Default)]
pub(super) struct Shared {
    /// Bytes received so far.
    pub(super) received: Cell<u64>,
    /// No request is begun any more.
    is_retired: Cell<bool>,
    /// Requests under way (count).
    active: Cell<u32>,
    /// What drives the connection.
    driver: RefCell<Option<Waker>>,
    /// What the crate has written and the stream does not have yet.
    pub(super) gathered: Gathered,
}

impl Shared {
    fn wake(&self) {
        if let Some(waker) = self.driver.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// A connection to an endpoint, for those who have requests.
pub struct Requests {
    sender: RefCell<SendRequest<ChunkBuf>>,
    shared: Rc<Shared>,
}

impl Requests {
    /// Whether the connection takes requests: the endpoint has neither closed it nor said that it goes away.
    pub fn is_open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        // Only the outcome counts: who sends a request does not wait for room, which is counted here.
        !self.shared.is_retired.get()
            && !matches!(self.sender.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// Streams that the connection carries at the same time: one until the endpoint has said how many it takes.
    pub fn streams_max(&self) -> u32 {
        if self.shared.received.get() == 0 {
            return 1;
        }
        let announced = self.sender.borrow().current_max_send_streams();
        u32::try_from(announced).unwrap_or(STREAMS_MAX).min(STREAMS_MAX)
    }

    /// Bytes that the endpoint has sent so far.
    pub fn received(&self) -> u64 {
        self.shared.received.get()
    }

    /// Begins no request any more; when those under way are over, the connection ends.
    pub fn retire(&self) {
        self.shared.is_retired.set(true);
        self.shared.wake();
    }

    /// A request to come, with `authority` for one that names none.
    pub fn stream(
        &self,
        handle: &Handle,
        limits: ClientLimits,
        scheme: Scheme,
        authority: SocketAddr,
    ) -> ClientStream {
        self.shared.active.set(self.shared.active.get() + 1);
        ClientStream {
            sender: self.sender.borrow().clone(),
            shared: Rc::clone(&self.shared),
            deadline: Deadline::new(handle),
            handle: handle.clone(),
            limits,
            scheme,
            authority,
            request_over: Cell::new(false),
        }
    }
}

/// What keeps a connection going, to be run as a task of its own.
pub struct Driver<T> {
    connection: Connection<ClientIo<T>, ChunkBuf>,
    stream: Rc<T>,
    shared: Rc<Shared>,
    has_ended: bool,
}

impl<T: Transport> Driver<T> {
    /// Runs until the endpoint has said what it takes: its SETTINGS are the first that it sends (RFC 9113 section 3.4).
    ///
    /// # Errors
    /// It has closed the connection instead, or has said nothing within `limit`. To be run on in either case.
    pub async fn greeted(&mut self, limit: Duration) -> Result<(), ProxyError> {
        let mut deadline = Deadline::new(self.stream.handle());
        deadline.set_after(limit);
        poll_fn(|cx| {
            if self.poll_ended(cx).is_ready() {
                let closed = ProxyError::new(ErrorKind::UpstreamClosedBeforeAnswer);
                return Poll::Ready(Err(closed.with_retry(Retry::Yes)));
            }
            if self.shared.received.get() > 0 {
                return Poll::Ready(Ok(()));
            }
            let expired = deadline.poll_expired(cx);
            expired.map(|_| Err(ProxyError::new(ErrorKind::UpstreamConnectTimeout).with_detail("h2_preface")))
        })
        .await
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.has_ended = self.has_ended || Pin::new(&mut self.connection).poll(cx).is_ready();
        // What it could not write, the crate's next look at the connection tells.
        let _gone = self.shared.gathered.pass_on(&*self.stream);
        if self.has_ended {
            return Poll::Ready(());
        }
        let mut waker = self.shared.driver.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Runs until the connection has ended.
    pub async fn run(mut self) {
        let mut deadline: Option<Deadline> = None;
        poll_fn(|cx| {
            if self.poll_ended(cx).is_ready() {
                return Poll::Ready(());
            }
            let Self { stream, shared, .. } = &self;
            if !shared.is_retired.get() || shared.active.get() > 0 {
                return Poll::Pending;
            }
            // An endpoint that takes nothing would keep it for ever.
            let deadline = deadline.get_or_insert_with(|| {
                let mut deadline = Deadline::new(stream.handle());
                deadline.set_after(CLOSING);
                deadline
            });
            deadline.poll_expired(cx).map(|_| ())
        })
        .await;
        let Self { connection, stream, shared, .. } = self;
        shared.is_retired.set(true);
        // Streams under way learn by this that it is gone.
        drop(connection);
        stream.shutdown_write();
        let mut deadline = Deadline::new(stream.handle());
        deadline.set_after(CLOSING);
        // The last word is GOAWAY; an endpoint that does not take it goes without.
        let _untold = deadline.limit(poll_fn(|cx| stream.poll_flushed(cx))).await;
    }
}

/// Begins to speak HTTP/2 on a new connection. Sends the preface, and waits for nothing.
///
/// # Errors
/// A connection that is broken already.
pub async fn handshake<T: Transport>(
    stream: T,
    limits: &HeadLimits,
) -> Result<(Requests, Driver<T>), ProxyError> {
    let stream = Rc::new(stream);
    let shared = Rc::new(Shared::default());
    let io = ClientIo::new(Rc::clone(&stream), Rc::clone(&shared));
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_max_send_streams(STREAMS_MAX as usize)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .enable_push(false);
    let (sender, connection) =
        builder.handshake(io).await.map_err(|error| failed(&error, ErrorKind::UpstreamClosedBeforeAnswer))?;
    let requests = Requests { sender: RefCell::new(sender), shared: Rc::clone(&shared) };
    Ok((requests, Driver { connection, stream, shared, has_ended: false }))
}

/// One request and its answer on a stream.
pub struct ClientStream {
    sender: SendRequest<ChunkBuf>,
    shared: Rc<Shared>,
    handle: Handle,
    deadline: Deadline,
    limits: ClientLimits,
    scheme: Scheme,
    authority: SocketAddr,
    /// Nothing more of the request will be sent, be it whole or not: the wait for the answer counts.
    request_over: Cell<bool>,
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.shared.active.set(self.shared.active.get().saturating_sub(1));
        if self.shared.is_retired.get() {
            self.shared.wake();
        }
    }
}

impl UpstreamExchange for ClientStream {
    type Sink<'a> = StreamSink<'a>;
    type Source<'a> = StreamSource<'a>;

    fn open(
        &mut self,
        head: &RequestHead,
        length: BodyLength,
    ) -> Result<(StreamSink<'_>, StreamSource<'_>), ProxyError> {
        let request = write_request(head, length, self.scheme, self.authority)?;
        let has_ended = matches!(length, BodyLength::Empty | BodyLength::Exact(0));
        let sent = self.sender.send_request(request, has_ended);
        // The connection ended before the stream began: nothing was sent.
        let (response, stream) = sent
            .map_err(|error| failed(&error, ErrorKind::UpstreamClosedBeforeAnswer).with_retry(Retry::Yes))?;
        self.request_over.set(has_ended);
        let sink = StreamSink {
            stream,
            handle: &self.handle,
            over: &self.request_over,
            progress: self.limits.progress,
            left: match length {
                BodyLength::Exact(length) => Some(length),
                BodyLength::Empty | BodyLength::Unknown => None,
            },
            last: None,
        };
        let source = StreamSource {
            response,
            received: None,
            deadline: &mut self.deadline,
            limits: &self.limits,
            first_byte: Some(self.limits.first_byte),
            has_interim: false,
            request_over: &self.request_over,
            length: BodyLength::Empty,
            unreleased: 0,
            is_complete: true,
            trailers: None,
        };
        Ok((sink, source))
    }
}

/// The request's body on its way to the endpoint.
pub struct StreamSink<'a> {
    stream: SendStream<ChunkBuf>,
    handle: &'a Handle,
    over: &'a Cell<bool>,
    progress: Duration,
    /// Bytes of the body that are still to come, where the head said how many there are.
    left: Option<u64>,
    /// The last of them: it waits for [`BodySink::end`], which says what ends the stream.
    last: Option<Chunk>,
}

impl Drop for StreamSink<'_> {
    fn drop(&mut self) {
        self.over.set(true);
    }
}

impl StreamSink<'_> {
    /// Waits until the windows and the crate's buffer have room for some of the chunk.
    async fn room(&mut self, chunk: &mut Chunk) -> Result<usize, ProxyError> {
        let mut deadline: Option<Deadline> = None;
        poll_fn(|cx| {
            if let Poll::Ready(room) = poll_room(&mut self.stream, chunk.len(), cx) {
                return Poll::Ready(room.ok_or_else(closed));
            }
            // It waits for the endpoint: others need the pool's slot.
            chunk.spill();
            let deadline = deadline.get_or_insert_with(|| {
                let mut deadline = Deadline::new(self.handle);
                deadline.set_after(self.progress);
                deadline
            });
            deadline.poll_expired(cx).map(|_| Err(ProxyError::new(ErrorKind::UpstreamSendTimeout)))
        })
        .await
    }

    fn send(&mut self, mut chunk: Chunk, is_last: bool) -> Result<(), ProxyError> {
        // It may wait for long, and is counted by its length: it holds no slot that others need, and no more memory.
        chunk.spill();
        chunk.compact();
        self.stream.send_data(ChunkBuf::new(chunk), is_last).map_err(|_| closed())
    }
}

/// A stream that takes no more: what the endpoint says about it is heard at the other direction.
fn closed() -> ProxyError {
    ProxyError::new(ErrorKind::UpstreamClosedBeforeAnswer)
}

impl BodySink for StreamSink<'_> {
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
        let last = self.last.take();
        let Some(trailers) = trailers.filter(|trailers| !trailers.is_empty()) else {
            return self.send(last.unwrap_or_else(|| Chunk::from_static(b"")), true);
        };
        if let Some(last) = last {
            self.send(last, false)?;
        }
        let headers = write_fields(trailers)?;
        self.stream.send_trailers(headers).map_err(|_| closed())
    }

    async fn finish(&mut self) -> Result<(), ProxyError> {
        // The crate sends what it holds as the windows open.
        self.end(None)
    }
}

/// The answer on its way from the endpoint.
pub struct StreamSource<'a> {
    response: ResponseFuture,
    /// Present once the final head has come.
    received: Option<RecvStream>,
    deadline: &'a mut Deadline,
    limits: &'a ClientLimits,
    /// The limit until it is set: once for all heads, so that interim ones do not prolong it.
    first_byte: Option<Duration>,
    has_interim: bool,
    request_over: &'a Cell<bool>,
    length: BodyLength,
    /// Bytes handed out and not yet given back to the windows.
    unreleased: usize,
    is_complete: bool,
    trailers: Option<Fields>,
}

impl StreamSource<'_> {
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<http::Response<Option<RecvStream>>, h2::Error>> {
        if let Poll::Ready(Some(interim)) = self.response.poll_informational(cx) {
            return Poll::Ready(interim.map(|head| head.map(|()| None)));
        }
        Pin::new(&mut self.response).poll(cx).map_ok(|head| head.map(Some))
    }

    /// The next piece, or what ends the body; waits for ever.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<bytes::Bytes>, ProxyError>> {
        let mid = |error: h2::Error| failed(&error, ErrorKind::UpstreamClosedMidAnswer);
        let Some(received) = &mut self.received else {
            return Poll::Ready(Err(ProxyError::new(ErrorKind::Internal)));
        };
        loop {
            match std::task::ready!(received.poll_data(cx)) {
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => return Poll::Ready(Ok(Some(bytes))),
                Some(Err(error)) => return Poll::Ready(Err(mid(error))),
                None => break,
            }
        }
        if let Some(headers) = std::task::ready!(received.poll_trailers(cx)).map_err(mid)? {
            let mut trailers = Fields::new();
            read_answer_trailers(&headers, &self.limits.head, &mut trailers)?;
            self.trailers = Some(trailers);
        }
        self.is_complete = true;
        Poll::Ready(Ok(None))
    }
}

impl AnswerSource for StreamSource<'_> {
    async fn head(&mut self, request_method: Method, head: &mut ResponseHead) -> Result<(), ProxyError> {
        let next = poll_fn(|cx| {
            if let Poll::Ready(next) = self.poll_head(cx) {
                let kind = if self.has_interim {
                    ErrorKind::UpstreamClosedMidAnswer
                } else {
                    ErrorKind::UpstreamClosedBeforeAnswer
                };
                return Poll::Ready(next.map_err(|error| failed(&error, kind)));
            }
            // Not while a body is on its way: a long upload is no silence of the endpoint's.
            if self.first_byte.is_some() && !self.request_over.get() {
                return Poll::Pending;
            }
            if let Some(limit) = self.first_byte.take() {
                self.deadline.set_after(limit);
            }
            let expired = self.deadline.poll_expired(cx);
            expired.map(|_| Err(ProxyError::new(ErrorKind::UpstreamFirstByteTimeout)))
        });
        let (parts, received) = next.await?.into_parts();
        let has_ended = received.as_ref().is_some_and(RecvStream::is_end_stream);
        self.length = read_response(&parts, has_ended, &request_method, &self.limits.head, head)?;
        if head.is_interim() != received.is_none() {
            return Err(ProxyError::new(ErrorKind::UpstreamBadHead).with_detail("bad_status"));
        }
        self.has_interim = received.is_none();
        self.is_complete = has_ended;
        self.received = received;
        Ok(())
    }

    fn version(&self) -> &'static str {
        "2"
    }
}

impl BodySource for StreamSource<'_> {
    fn length(&self) -> BodyLength {
        self.length
    }

    fn is_complete(&self) -> bool {
        self.is_complete
    }

    async fn next(&mut self) -> Result<Option<Chunk>, ProxyError> {
        if self.unreleased > 0
            && let Some(received) = &mut self.received
        {
            // An error would say that more is given back than was taken, which the count rules out.
            let _ = received.flow_control().release_capacity(std::mem::take(&mut self.unreleased));
        }
        if self.is_complete {
            return Ok(None);
        }
        let mut is_armed = false;
        let next = poll_fn(|cx| {
            if let Poll::Ready(next) = self.poll_next(cx) {
                return Poll::Ready(next);
            }
            if !std::mem::replace(&mut is_armed, true) {
                self.deadline.set_after(self.limits.progress);
            }
            let expired = self.deadline.poll_expired(cx);
            expired.map(|_| Err(ProxyError::new(ErrorKind::UpstreamBodyTimeout)))
        });
        let Some(bytes) = next.await? else { return Ok(None) };
        self.unreleased = bytes.len();
        Ok(Some(Chunk::from_bytes(bytes)))
    }

    fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_ref()
    }
}

/// What an error of the crate means; `closed` is the kind of a connection that ended.
fn failed(error: &h2::Error, closed: ErrorKind) -> ProxyError {
    let is_before = closed == ErrorKind::UpstreamClosedBeforeAnswer;
    if error.is_library() {
        let kind = if is_before { ErrorKind::UpstreamBadHead } else { ErrorKind::UpstreamFraming };
        return ProxyError::new(kind).with_detail("h2_malformed");
    }
    if error.is_remote() {
        let ended = ProxyError::new(closed);
        // Neither a stream above the last one of GOAWAY nor a refused one was acted on (RFC 9113 section 8.7).
        let unprocessed = if is_before { Retry::Yes } else { Retry::No };
        return match error.reason() {
            _ if error.is_go_away() => ended.with_detail("h2_goaway").with_retry(unprocessed),
            Some(Reason::REFUSED_STREAM) => ended.with_detail("h2_refused_stream").with_retry(unprocessed),
            Some(Reason::HTTP_1_1_REQUIRED) => {
                ended.with_detail("h2_http_1_1_required").with_retry(Retry::No)
            }
            _ => ended.with_detail("h2_reset").with_retry(Retry::No),
        };
    }
    match error.get_io() {
        Some(error) => ProxyError::new(closed).with_os_error(error.raw_os_error().unwrap_or(0)),
        None => ProxyError::new(closed),
    }
}
