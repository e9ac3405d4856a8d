//! What a codec offers to the proxy, on either side: a body to read, a message to write.
//!
//! Owns: the traits between codecs and everything above them. Does not own: an implementation
//! (`http1/server.rs`, `http1/client.rs`). A codec keeps its own deadlines and reports their expiry
//! as an error like any other; nothing here says which HTTP version is spoken.

use std::task::Context;

use super::{BodyLength, Method, Protocol, ProxyError, RequestHead, ResponseHead};
use crate::fields::Fields;
use crate::runtime::Chunk;

/// A message body that is being received.
#[allow(async_fn_in_trait, reason = "a worker is one thread: no future has to be Send")]
pub trait BodySource {
    /// How long the body is, as its head said.
    fn length(&self) -> BodyLength;

    /// Whether all of it has been taken.
    fn is_complete(&self) -> bool;

    /// The next piece; `None` when the body is complete. Waits at most as long as the side's progress deadline.
    ///
    /// # Cancel safety
    /// Safe: no byte is lost when the future is dropped.
    ///
    /// # Errors
    /// Broken framing, a closed connection, a deadline, a body larger than allowed.
    async fn next(&mut self) -> Result<Option<Chunk>, ProxyError>;

    /// Trailers of a complete body that had any.
    fn trailers(&self) -> Option<&Fields>;

    /// Takes in what has come in small pieces, where each costs more than it brings. For whoever cannot ask for the
    /// next piece, because the other side takes nothing; never waits. The windows of flow control bound it.
    fn absorb(&mut self, cx: &mut Context<'_>) {
        let _nothing_is_kept_in_pieces = cx;
    }
}

/// A message body that is being sent.
#[allow(async_fn_in_trait, reason = "a worker is one thread: no future has to be Send")]
pub trait BodySink {
    /// Adds a piece and waits until the connection has room for another: the backpressure.
    ///
    /// # Errors
    /// A closed connection, or a peer that takes nothing within the deadline.
    async fn data(&mut self, chunk: Chunk) -> Result<(), ProxyError>;

    /// Ends the message. Trailers are left out where the message cannot carry them.
    ///
    /// # Errors
    /// A closed connection.
    fn end(&mut self, trailers: Option<&Fields>) -> Result<(), ProxyError>;

    /// Ends this direction of a tunnel, and waits until what was sent has been handed to the connection. The other
    /// direction goes on.
    ///
    /// # Errors
    /// A closed connection, or a peer that takes nothing within the deadline.
    async fn finish(&mut self) -> Result<(), ProxyError>;
}

/// The answer to a request, towards the client.
#[allow(async_fn_in_trait, reason = "a worker is one thread: no future has to be Send")]
pub trait Answer: BodySink {
    /// Whether the final head has been written: from then on no other answer can be given.
    fn has_begun(&self) -> bool;

    /// Sends an interim answer (1xx but 101). Clients that cannot take one are spared it.
    ///
    /// # Errors
    /// A closed connection.
    async fn interim(&mut self, status: u16, fields: &Fields) -> Result<(), ProxyError>;

    /// Writes the final head. `length` is that of the body which follows; what the method or the
    /// status forbids is left out by the codec.
    ///
    /// A 101 switches protocols, and makes a tunnel of the exchange: the request's body brings what the client sends
    /// from here on, as it comes and until the client ends its side, without the limits and deadlines of a body; what
    /// is sent here goes to the client as it is, until [`BodySink::finish`]. An exchange that breaks off then ends with
    /// a reset.
    ///
    /// # Errors
    /// A closed connection; a status that would be taken for a switch and is none.
    fn head(&mut self, head: &ResponseHead, length: BodyLength) -> Result<(), ProxyError>;

    /// Whether a body follows the head that was written.
    fn takes_body(&self) -> bool;

    /// The connection (or stream) is not used after this answer.
    fn close_after(&mut self);
}

/// One request and its answer on a connection to an endpoint.
#[allow(async_fn_in_trait, reason = "a worker is one thread: no future has to be Send")]
pub trait UpstreamExchange {
    /// Sends the request's body.
    type Sink<'a>: BodySink
    where
        Self: 'a;
    /// Reads the answer.
    type Source<'a>: AnswerSource
    where
        Self: 'a;

    /// Sends the request's head and gives the two directions, to be driven at the same time.
    ///
    /// # Errors
    /// A closed connection.
    fn open(
        &mut self,
        head: &RequestHead,
        length: BodyLength,
    ) -> Result<(Self::Sink<'_>, Self::Source<'_>), ProxyError>;
}

/// The answer of an endpoint.
#[allow(async_fn_in_trait, reason = "a worker is one thread: no future has to be Send")]
pub trait AnswerSource: BodySource {
    /// Reads the next head, interim or final, into `head`. The body is that of the last final one. A 101 comes only
    /// where the request asked for it, and switches to what was asked for.
    ///
    /// # Errors
    /// A closed connection (told apart: before the first byte, or within the head), a deadline, a head that breaks
    /// the rules or the limits.
    async fn head(&mut self, request_method: Method, head: &mut ResponseHead) -> Result<(), ProxyError>;

    /// The received protocol version as `Via` writes it (RFC 9110 section 7.6.3): `1.1`, `2`.
    fn version(&self) -> &'static str;
}

/// Where a request came from.
pub struct Origin<'a> {
    /// The connection, as the registry knows it.
    pub connection: &'a crate::proxy::connections::Connection,
    /// The received protocol version as `Via` writes it (RFC 9110 section 7.6.3): `1.1`, `2`.
    pub protocol: &'static str,
    /// Ready when the client has left while it is owed an answer. To be polled beside whatever the exchange waits for:
    /// an answer that nobody takes should not keep an endpoint busy.
    pub poll_gone: &'a dyn Fn(&mut Context<'_>) -> std::task::Poll<()>,
}

/// What serves requests. One service stands behind all codecs, so it never sees an HTTP version.
#[allow(async_fn_in_trait, reason = "a worker is one thread: no future has to be Send")]
pub trait Service {
    /// Answers one request.
    ///
    /// # Errors
    /// When no answer was begun, the codec sends the one that the error's row names. When one was, the codec cuts the
    /// connection (or stream), so that the answer cannot be taken for complete.
    async fn exchange<B: BodySource, A: Answer>(
        &self,
        origin: &Origin<'_>,
        request: &mut RequestHead,
        body: &mut B,
        answer: &mut A,
    ) -> Result<(), ProxyError>;

    /// The bounds in force now.
    fn limits(&self) -> ServerLimits;

    /// The time for `Date`.
    fn date(&self) -> [u8; crate::date::IMF_FIXDATE_BYTES];

    /// Whether connections end after their exchange because the worker is draining.
    fn is_draining(&self) -> bool;

    /// A request head to parse into, from the worker's store.
    fn take_request(&self) -> Box<RequestHead>;

    /// Gives it back.
    fn put_request(&self, request: Box<RequestHead>);

    /// Notes an error for metrics and logs.
    fn note(&self, error: &ProxyError);

    /// Notes an error that the client of a connection has caused, beside [`Self::note`], for those who keep
    /// account of clients.
    fn misconduct(&self, connection: &crate::proxy::connections::Connection, error: &ProxyError);

    /// Notes an answer of which the head has been written.
    fn answered(&self, protocol: Protocol, status: u16);

    /// Notes that a client burdens the gateway on purpose or by mistake; its connection is about to end.
    fn abused(&self, connection: &crate::proxy::connections::Connection, abuse: crate::http2::Abuse);
}

/// Bounds on a downstream connection.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// From the first byte of a head, or from accept, to its end.
    pub request_head: std::time::Duration,
    /// Between two bytes of a request's body.
    pub body_progress: std::time::Duration,
    /// Without a request.
    pub keep_alive: std::time::Duration,
    /// The client takes no byte.
    pub send_progress: std::time::Duration,
    /// Bytes of a request's body.
    pub body_bytes_max: u64,
    /// Bounds on a head.
    pub head: crate::http1::HeadLimits,
    /// Bounds on an HTTP/2 connection.
    pub http2: blitz_config::model::Http2Limits,
}
