//! The upstream end of an HTTP/1.1 connection.
//!
//! Owns: one connection to an endpoint and one exchange on it at a time. Does not own: which endpoint
//! (`proxy/balance.rs`), when the connection is pooled (`proxy/pool.rs`), what is forwarded
//! (`exchange/forward.rs`).

use std::cell::Cell;
use std::time::Duration;

use super::io::{ReadError, Unread, broken, flushed, writable};
use super::{
    BodyDecoder, BodyFraming, HeadKind, HeadLimits, HeadScanner, ResponseFraming, Version, read_response,
    write_chunk_end, write_chunk_head, write_last_chunk, write_request_head,
};
use crate::exchange::stream::{AnswerSource, BodySink, BodySource, UpstreamExchange};
use crate::exchange::upgrade::{self, Key};
use crate::exchange::{BodyLength, ErrorKind, Method, ProxyError, RequestHead, ResponseHead, Upgrade};
use crate::fields::Fields;
use crate::runtime::{Chunk, Deadline, Transport};

/// How long a connection waits, and how large an answer's head may be.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// From the end of the request to the first byte of the final head.
    pub first_byte: Duration,
    /// Between two bytes of a body, in either direction.
    pub progress: Duration,
    /// Bounds on the head.
    pub head: HeadLimits,
}

/// A connection to an endpoint.
pub struct ClientConnection<T: Transport> {
    stream: T,
    deadline: Deadline,
    unread: Unread,
    limits: ClientLimits,
    /// The endpoint keeps the connection after this answer.
    keeps: bool,
    request_ended: bool,
    /// Nothing more of the request will be sent, be it whole or not: the wait for the answer counts.
    request_over: Cell<bool>,
    answer: BodyDecoder,
    has_answer: bool,
    /// The key of the WebSocket that was asked for.
    asked: Option<Key>,
    /// Protocols were switched: this is a tunnel.
    is_tunnel: bool,
}

impl<T: Transport> Drop for ClientConnection<T> {
    /// A tunnel that breaks off must not look as if its client had ended it.
    fn drop(&mut self) {
        if self.is_tunnel && !(self.request_ended && self.answer.is_complete()) {
            self.stream.reset_on_close();
        }
    }
}

impl<T: Transport> ClientConnection<T> {
    /// An exchange-ready connection over `stream`.
    pub fn new(stream: T, limits: ClientLimits) -> Self {
        let deadline = Deadline::new(stream.handle());
        Self {
            stream,
            deadline,
            unread: Unread::default(),
            limits,
            keeps: true,
            request_ended: false,
            request_over: Cell::new(false),
            answer: BodyDecoder::Empty,
            has_answer: false,
            asked: None,
            is_tunnel: false,
        }
    }

    /// Takes over the limits of a newer configuration.
    pub fn set_limits(&mut self, limits: ClientLimits) {
        self.limits = limits;
    }

    /// Whether it can carry another exchange: both messages are complete, the endpoint keeps it, and it sent nothing
    /// that was not asked for.
    pub fn is_reusable(&self) -> bool {
        self.keeps
            && self.request_ended
            && self.has_answer
            && self.answer.is_complete()
            && self.unread.is_empty()
            && !self.stream.has_news()
    }

    /// Whether the endpoint has closed it, or sent something, while nobody asked.
    pub fn is_stale(&self) -> bool {
        self.stream.has_news()
    }

    /// The exchange is over: an idle connection holds no buffer and watches for its end.
    pub fn settle(&mut self) {
        self.answer = BodyDecoder::Empty;
        self.has_answer = false;
        self.request_ended = false;
        self.stream.settle();
    }

    /// The two directions of the tunnel that a 101 has made of the exchange. Each waits for ever for what comes, and
    /// ends by itself; a drop before both have ended resets the connection.
    pub fn tunnel(&mut self) -> (RequestSink<'_, T>, ResponseSource<'_, T>) {
        self.is_tunnel = true;
        self.keeps = false;
        self.request_ended = false;
        self.answer = BodyDecoder::UntilClose;
        self.directions(false)
    }

    fn directions(&mut self, chunked: bool) -> (RequestSink<'_, T>, ResponseSource<'_, T>) {
        let sink = RequestSink {
            stream: &self.stream,
            chunked,
            ended: &mut self.request_ended,
            over: &self.request_over,
            progress: self.limits.progress,
        };
        let source = ResponseSource {
            stream: &self.stream,
            deadline: &mut self.deadline,
            unread: &mut self.unread,
            limits: &self.limits,
            first_byte: Some(self.limits.first_byte),
            has_interim: false,
            keeps: &mut self.keeps,
            request_over: &self.request_over,
            decoder: &mut self.answer,
            has_answer: &mut self.has_answer,
            length: BodyLength::Empty,
            asked: self.asked,
            is_tunnel: self.is_tunnel,
        };
        (sink, source)
    }
}

impl<T: Transport> UpstreamExchange for ClientConnection<T> {
    type Sink<'a>
        = RequestSink<'a, T>
    where
        T: 'a;
    type Source<'a>
        = ResponseSource<'a, T>
    where
        T: 'a;

    fn open(
        &mut self,
        head: &RequestHead,
        length: BodyLength,
    ) -> Result<(RequestSink<'_, T>, ResponseSource<'_, T>), ProxyError> {
        let mut framing = BodyFraming::Empty;
        self.stream
            .write_with(|out| framing = write_request_head(out, head, length))
            .map_err(|error| broken(ErrorKind::UpstreamClosedBeforeAnswer, &error))?;
        self.request_ended = matches!(framing, BodyFraming::Empty | BodyFraming::Exact(0));
        self.request_over.set(self.request_ended);
        self.has_answer = false;
        self.asked = head.upgrade.and_then(|Upgrade::WebSocket| upgrade::key_of(&head.fields));
        Ok(self.directions(framing == BodyFraming::Chunked))
    }
}

/// The request's body on its way to the endpoint.
pub struct RequestSink<'a, T> {
    stream: &'a T,
    chunked: bool,
    ended: &'a mut bool,
    over: &'a Cell<bool>,
    progress: Duration,
}

impl<T> RequestSink<'_, T> {
    fn failed(error: &std::io::Error) -> ProxyError {
        broken(ErrorKind::UpstreamClosedBeforeAnswer, error)
    }
}

impl<T> Drop for RequestSink<'_, T> {
    fn drop(&mut self) {
        self.over.set(true);
    }
}

impl<T: Transport> BodySink for RequestSink<'_, T> {
    async fn data(&mut self, chunk: Chunk) -> Result<(), ProxyError> {
        write_body(self.stream, chunk, self.chunked).map_err(|error| Self::failed(&error))?;
        let (closed, expired) = (ErrorKind::UpstreamClosedBeforeAnswer, ErrorKind::UpstreamSendTimeout);
        writable(self.stream, self.progress, closed, expired).await
    }

    fn end(&mut self, trailers: Option<&Fields>) -> Result<(), ProxyError> {
        if self.chunked {
            self.stream
                .write_with(|out| write_last_chunk(out, trailers))
                .map_err(|error| Self::failed(&error))?;
        }
        *self.ended = true;
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), ProxyError> {
        self.stream.shutdown_write();
        let (closed, expired) = (ErrorKind::UpstreamClosedMidAnswer, ErrorKind::UpstreamSendTimeout);
        flushed(self.stream, self.progress, closed, expired).await?;
        *self.ended = true;
        Ok(())
    }
}

/// Adds a piece of a body, framed when the body is chunked.
pub(super) fn write_body(stream: &impl Transport, chunk: Chunk, chunked: bool) -> std::io::Result<()> {
    if !chunked {
        return stream.write_chunk(chunk);
    }
    if chunk.is_empty() {
        // An empty chunk would end the body.
        return Ok(());
    }
    let len = chunk.len();
    stream.write_framed(|out| write_chunk_head(out, len), chunk, write_chunk_end)
}

/// The answer on its way from the endpoint.
pub struct ResponseSource<'a, T> {
    stream: &'a T,
    deadline: &'a mut Deadline,
    unread: &'a mut Unread,
    limits: &'a ClientLimits,
    /// The limit until it is set: once for all heads, so that interim ones do not prolong it.
    first_byte: Option<Duration>,
    has_interim: bool,
    keeps: &'a mut bool,
    request_over: &'a Cell<bool>,
    decoder: &'a mut BodyDecoder,
    has_answer: &'a mut bool,
    length: BodyLength,
    asked: Option<Key>,
    is_tunnel: bool,
}

impl<T> ResponseSource<'_, T> {
    /// Whether a 101 switches to what was asked for; nothing is passed on otherwise.
    fn check_switch(&self, framing: &ResponseFraming, head: &ResponseHead) -> Result<(), ProxyError> {
        let failed = |detail| ProxyError::new(ErrorKind::UpstreamUpgradeFailed).with_detail(detail);
        let key = self.asked.as_ref().ok_or(failed("not_asked"))?;
        if framing.version != Version::Http11 || !framing.has_upgrade {
            return Err(failed("other_protocol"));
        }
        upgrade::check_answer(&head.fields, key).map_err(failed)
    }
}

impl<T: Transport> AnswerSource for ResponseSource<'_, T> {
    async fn head(&mut self, request_method: Method, head: &mut ResponseHead) -> Result<(), ProxyError> {
        let limits = &self.limits.head;
        let mut scanner = HeadScanner::new(HeadKind::Response, limits.head_bytes_max);
        // Not while a body is on its way: a long upload is no silence of the endpoint's.
        let may_start = || self.request_over.get();
        let parse = |bytes: &[u8]| read_response(&mut scanner, bytes, limits, &request_method, head);
        let read = self.unread.head(self.stream, self.deadline, &mut self.first_byte, may_start, parse).await;
        let framing = read.map_err(|error| {
            let closed = if scanner.has_begun() || self.has_interim {
                ErrorKind::UpstreamClosedMidAnswer
            } else {
                ErrorKind::UpstreamClosedBeforeAnswer
            };
            match error {
                ReadError::Closed => ProxyError::new(closed),
                ReadError::Broken(error) => broken(closed, &error),
                ReadError::Expired => ProxyError::new(ErrorKind::UpstreamFirstByteTimeout),
                ReadError::Malformed(error) => error.in_response(),
            }
        })?;
        if head.is_interim() {
            self.has_interim = true;
            // It is passed on before the next is read, and the client may be slow.
            self.unread.spill();
            return Ok(());
        }
        if head.status == 101 {
            self.check_switch(&framing, head)?;
            // What the endpoint has sent behind it may wait until the client has been told.
            self.unread.spill();
        }
        *self.keeps = framing.keep_alive;
        self.length = framing.body_length();
        *self.decoder = framing.body.decoder();
        *self.has_answer = true;
        Ok(())
    }

    fn version(&self) -> &'static str {
        "1.1"
    }
}

impl<T: Transport> BodySource for ResponseSource<'_, T> {
    fn length(&self) -> BodyLength {
        self.length
    }

    fn is_complete(&self) -> bool {
        self.decoder.is_complete()
    }

    async fn next(&mut self) -> Result<Option<Chunk>, ProxyError> {
        if self.is_tunnel {
            let read = self.unread.raw(self.stream, self.deadline).await;
            let chunk = read.map_err(|error| broken(ErrorKind::UpstreamClosedMidAnswer, &error))?;
            if chunk.is_none() {
                *self.decoder = BodyDecoder::Empty;
            }
            return Ok(chunk);
        }
        let read = self.unread.body(self.stream, self.deadline, self.limits.progress, self.decoder).await;
        read.map_err(|error| match error {
            ReadError::Closed => ProxyError::new(ErrorKind::UpstreamClosedMidAnswer),
            ReadError::Broken(error) => broken(ErrorKind::UpstreamClosedMidAnswer, &error),
            ReadError::Expired => ProxyError::new(ErrorKind::UpstreamBodyTimeout),
            ReadError::Malformed(error) => error.in_response(),
        })
    }

    fn trailers(&self) -> Option<&Fields> {
        self.decoder.trailers()
    }
}
