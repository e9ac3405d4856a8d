//! What both ends of an HTTP/1 connection share: reading heads and bodies with deadlines, writing
//! with backpressure.
//!
//! Owns: bytes received and not yet consumed. Does not own: the sans-IO parsers it drives, or what a
//! message means (`server.rs`, `client.rs`).

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use super::Step;
use crate::exchange::{ErrorKind, ProxyError, Side};
use crate::http1::H1Error;
use crate::runtime::{Chunk, Deadline, Transport};
use crate::tls;

/// Why nothing could be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The peer ended the stream.
    Closed,
    /// The connection broke.
    Broken(io::Error),
    /// The deadline passed.
    Expired,
    /// What came breaks the rules.
    Malformed(H1Error),
}

/// Received bytes that nobody has consumed yet. Empty on an idle connection.
#[derive(Debug, Default)]
pub struct Unread {
    chunk: Option<Chunk>,
}

impl From<Chunk> for Unread {
    fn from(chunk: Chunk) -> Self {
        let mut unread = Self::default();
        unread.put(chunk);
        unread
    }
}

impl Unread {
    pub(super) fn is_empty(&self) -> bool {
        self.chunk.is_none()
    }

    pub(super) fn put(&mut self, chunk: Chunk) {
        debug_assert!(self.chunk.is_none());
        if !chunk.is_empty() {
            self.chunk = Some(chunk);
        }
    }

    /// Moves what nobody has consumed out of the shared pool. To be called before a wait of which nobody
    /// knows the end (a request behind another, a body whose endpoint is slow): the pool would run
    /// dry on connections that wait, and with it every other connection.
    pub(super) fn spill(&mut self) {
        if let Some(chunk) = &mut self.chunk {
            chunk.spill();
        }
    }

    /// Reads a head to its end with `parse`, which sees all of its bytes so far and says how many
    /// were the head's. Usually it lies in one receive and is parsed where it is. `deadline` is set to
    /// what `arm` holds when waiting is needed first and `may_start` says so, once for the whole head,
    /// so that a byte now and then does not prolong it. Whoever makes `may_start` true polls this
    /// future again. What lies behind the head is left where it is: see [`Self::spill`].
    ///
    /// # Cancel safety
    /// Not safe: bytes gathered so far are lost.
    pub(super) async fn head<T>(
        &mut self,
        stream: &impl Transport,
        deadline: &mut Deadline,
        arm: &mut Option<Duration>,
        may_start: impl Fn() -> bool,
        mut parse: impl FnMut(&[u8]) -> Result<Option<(T, usize)>, H1Error>,
    ) -> Result<T, ReadError> {
        let mut gathered = Vec::new();
        loop {
            if let Some(mut chunk) = self.chunk.take() {
                let before = gathered.len();
                let bytes: &[u8] = if before == 0 {
                    &chunk
                } else {
                    gathered.extend_from_slice(&chunk);
                    &gathered
                };
                if let Some((parsed, end)) = parse(bytes).map_err(ReadError::Malformed)? {
                    // The end lies in this chunk: in the ones before it would have been seen.
                    chunk.advance(end.saturating_sub(before));
                    self.put(chunk);
                    return Ok(parsed);
                }
                if before == 0 {
                    gathered.extend_from_slice(&chunk);
                }
            }
            self.chunk = Some(receive_when(stream, deadline, arm, &may_start).await?);
        }
    }

    /// The next piece of a body, at most what one receive brought; `None` at its end.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn body(
        &mut self,
        stream: &impl Transport,
        deadline: &mut Deadline,
        progress: Duration,
        decoder: &mut super::BodyDecoder,
    ) -> Result<Option<Chunk>, ReadError> {
        loop {
            if let Some(mut chunk) = self.chunk.take() {
                match decoder.decode(&chunk).map_err(ReadError::Malformed)? {
                    Step::Data(range) => {
                        let mut data = if range.end == chunk.len() {
                            chunk
                        } else {
                            let data = chunk.split_to(range.end);
                            // The reader may wait before it asks for more.
                            chunk.spill();
                            self.put(chunk);
                            data
                        };
                        data.advance(range.start);
                        return Ok(Some(data));
                    }
                    Step::NeedMore { .. } => {}
                    Step::End { consumed } => {
                        chunk.advance(consumed);
                        chunk.spill();
                        self.put(chunk);
                        return Ok(None);
                    }
                }
            }
            if decoder.is_complete() {
                return Ok(None);
            }
            match receive(stream, deadline, Some(progress)).await {
                Ok(chunk) => self.chunk = Some(chunk),
                Err(ReadError::Closed) => {
                    decoder.on_eof().map_err(|_| ReadError::Closed)?;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Unread {
    /// The next piece of a tunnel, at most what one receive brought; `None` when the peer ends its side. Waits for
    /// ever: a tunnel's deadlines are its owner's. `deadline` is used for something else meanwhile.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Errors
    /// When the connection is reset or broken.
    pub(super) async fn raw(
        &mut self,
        stream: &impl Transport,
        deadline: &mut Deadline,
    ) -> io::Result<Option<Chunk>> {
        if let Some(chunk) = self.chunk.take() {
            return Ok(Some(chunk));
        }
        let (mut is_waiting, mut is_quiet) = (false, false);
        poll_fn(|cx| {
            let received = stream.poll_receive(cx);
            if received.is_ready() || is_quiet {
                return received;
            }
            if !is_waiting {
                deadline.set_after(QUIET);
                is_waiting = true;
            }
            if deadline.poll_expired(cx).is_ready() {
                // After a burst the next bytes would be waited for with a large buffer, which idle tunnels cannot all
                // have.
                stream.settle();
                is_quiet = true;
            }
            Poll::Pending
        })
        .await
    }
}

/// How long a tunnel may be silent before it waits in the state of an idle connection.
const QUIET: Duration = Duration::from_secs(1);

/// Receives until the deadline. `arm` sets it when waiting is needed, and only then: bytes that are
/// there already cost no look at the wheel. `None` leaves a deadline that is set as it is.
pub(super) async fn receive(
    stream: &impl Transport,
    deadline: &mut Deadline,
    mut arm: Option<Duration>,
) -> Result<Chunk, ReadError> {
    receive_when(stream, deadline, &mut arm, || true).await
}

/// Like [`receive`], with a deadline that is not set, and does not count, before `may_start`.
async fn receive_when(
    stream: &impl Transport,
    deadline: &mut Deadline,
    arm: &mut Option<Duration>,
    may_start: impl Fn() -> bool,
) -> Result<Chunk, ReadError> {
    poll_fn(|cx| match stream.poll_receive(cx) {
        Poll::Ready(Ok(Some(chunk))) => Poll::Ready(Ok(chunk)),
        Poll::Ready(Ok(None)) => Poll::Ready(Err(ReadError::Closed)),
        Poll::Ready(Err(error)) => Poll::Ready(Err(ReadError::Broken(error))),
        Poll::Pending => {
            if arm.is_some() && !may_start() {
                return Poll::Pending;
            }
            if let Some(limit) = arm.take() {
                deadline.set_after(limit);
            }
            deadline.poll_expired(cx).map(|_| Err(ReadError::Expired))
        }
    })
    .await
}

/// Waits until the connection has room, as long as the peer takes at least a byte per `progress`.
pub(super) async fn writable(
    stream: &impl Transport,
    progress: Duration,
    closed: ErrorKind,
    expired: ErrorKind,
) -> Result<(), ProxyError> {
    wait_for_room(stream, progress, closed, expired, |cx| stream.poll_writable(cx)).await
}

/// Like [`writable`], until the kernel has taken everything.
pub(super) async fn flushed(
    stream: &impl Transport,
    progress: Duration,
    closed: ErrorKind,
    expired: ErrorKind,
) -> Result<(), ProxyError> {
    wait_for_room(stream, progress, closed, expired, |cx| stream.poll_flushed(cx)).await
}

async fn wait_for_room(
    stream: &impl Transport,
    progress: Duration,
    closed: ErrorKind,
    expired: ErrorKind,
    mut poll: impl FnMut(&mut std::task::Context<'_>) -> Poll<io::Result<()>>,
) -> Result<(), ProxyError> {
    let mut deadline: Option<Deadline> = None;
    let mut sent = stream.bytes_sent();
    poll_fn(|cx| {
        if let Poll::Ready(result) = poll(cx) {
            return Poll::Ready(result.map_err(|error| broken(closed, &error)));
        }
        let deadline = deadline.get_or_insert_with(|| {
            let mut deadline = Deadline::new(stream.handle());
            deadline.set_after(progress);
            deadline
        });
        while deadline.poll_expired(cx).is_ready() {
            let now = stream.bytes_sent();
            if now == sent {
                return Poll::Ready(Err(ProxyError::new(expired)));
            }
            sent = now;
            deadline.set_after(progress);
        }
        Poll::Pending
    })
    .await
}

/// An error of the connection, with the system's number.
pub(super) fn broken(kind: ErrorKind, error: &io::Error) -> ProxyError {
    let broken = ProxyError::new(kind).with_os_error(error.raw_os_error().unwrap_or(0));
    match tls::connector::alert(error) {
        // An endpoint that wants a certificate may say so only now (TLS 1.3).
        Some(alert) if broken.side() == Side::Upstream => broken.with_detail(alert),
        _ => broken,
    }
}
