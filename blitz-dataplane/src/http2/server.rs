//! The life of an HTTP/2 connection: streams in, tasks out, deadlines, the end.
//!
//! Owns: the connection's task. Does not own: what happens to a request (`stream.rs`), the rules for frames
//! (`meter.rs`).

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::server::{Builder, Connection as H2, SendResponse};
use h2::{Reason, RecvStream};

use super::frame::FRAME_BYTES_MAX;
use super::io::{MeteredIo, Shared};
use super::meter::{Abuse, BURST_SECONDS, Fault, Meter};
use super::stream::{ChunkBuf, Task};
use crate::exchange::stream::{ServerLimits, Service};
use crate::exchange::{ErrorKind, Protocol, ProxyError};
use crate::http1::server::linger;
use crate::proxy::connections::{Connection, Ended};
use crate::runtime::{Chunk, Deadline, Pooled, Transport};

/// Bytes of an answer that the crate holds for a stream, beside the 64 KiB that the connection's outbox may hold. Full:
/// the stream's task waits.
const SEND_BUFFER_BYTES: usize = 32 * 1024;

/// What the crate may hold of small DATA frames that no task has taken yet, each counted with 256 bytes less what it
/// carries. One turn may bring 80 KiB, which are 8,000 frames of a byte; beyond that somebody floods. Tasks that wait
/// for an endpoint take them in all the same (`absorb`).
const SMALL_DATA_BUDGET: usize = 2 * 1024 * 1024;

/// How long a connection that was told to end, and carries no request, may take to do so.
const CLOSING: Duration = Duration::from_secs(2);

/// Serves a connection to its end.
///
/// `received` is what has been read from it to find out that it speaks HTTP/2.
pub async fn serve<S: Service + 'static, T: Transport>(
    service: &Rc<S>,
    stream: &T,
    connection: &Rc<Connection>,
    received: Option<Chunk>,
) -> Ended {
    let limits = service.limits();
    let shared = Shared::new(Meter::new(&limits.http2));
    let io = MeteredIo::new(stream, Rc::clone(&shared), received);
    let mut deadline = Deadline::new(stream.handle());
    deadline.set_after(limits.request_head);
    let mut handshake = pin!(builder(&limits).handshake::<_, ChunkBuf>(io));
    let handshake = poll_fn(|cx| {
        let outcome = handshake.as_mut().poll(cx);
        shared.pass_on(stream);
        outcome
    });
    let h2 = match deadline.limit(handshake).await {
        Ok(Ok(h2)) => h2,
        Ok(Err(_)) => return Ended::ByClient,
        Err(_) => return Ended::Deadline,
    };
    let mut running =
        Running { service, stream, connection, shared, h2, deadline, closing: None, stalled: None };
    let outcome = poll_fn(|cx| {
        if running.holds_back(cx) {
            return Poll::Pending;
        }
        let outcome = running.poll(cx);
        running.shared.pass_on(stream);
        outcome
    })
    .await;
    let Running { mut deadline, h2, shared, closing, .. } = running;
    // The tasks of its streams learn by this that it is gone.
    drop(h2);
    let ended = match outcome {
        Outcome::Closed if shared.has_ended() => Ended::ByClient,
        Outcome::Closed => closing.map_or(Ended::ByClient, |(ended, _)| ended),
        Outcome::Failed(error) => failed(&**service, connection, &error, shared.calm.get()),
        Outcome::Faulty(fault) => {
            end_by(&**service, connection, fault);
            Ended::Error
        }
        Outcome::Stuck => {
            end_by(&**service, connection, Fault::abuse(Abuse::SlowReader));
            service.note(&ProxyError::new(ErrorKind::DownstreamSendTimeout));
            stream.reset_on_close();
            return Ended::Deadline;
        }
        Outcome::Expired(ended) => ended,
    };
    linger(&**service, stream, &mut deadline).await;
    ended
}

/// Ends a connection that should speak HTTP/2 and does not (RFC 9113 section 3.4).
pub async fn refuse<S: Service>(service: &S, stream: &impl Transport) -> Ended {
    service.note(&ProxyError::new(ErrorKind::BadRequestHead).with_detail("h2_preface"));
    // Gone already: nobody is left to tell.
    let _ = stream.write_with(|out| out.extend_from_slice(&PREFACE_ANSWER));
    linger(service, stream, &mut Deadline::new(stream.handle())).await;
    Ended::Error
}

/// An empty SETTINGS frame and GOAWAY with PROTOCOL_ERROR.
const PREFACE_ANSWER: [u8; 26] =
    [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// What the crate announces and holds to.
fn builder(limits: &ServerLimits) -> Builder {
    let http2 = &limits.http2;
    let burst = |per_second: u32| (per_second * BURST_SECONDS) as usize;
    let mut builder = Builder::new();
    builder
        .initial_window_size(http2.stream_window_bytes)
        .initial_connection_window_size(http2.connection_window_bytes)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(u32::try_from(limits.head.head_bytes_max).unwrap_or(u32::MAX))
        .max_concurrent_streams(http2.concurrent_streams_max)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .data_frame_budget(SMALL_DATA_BUDGET)
        .enable_connect_protocol()
        // The meter counts these and ends the connection first.
        .max_pending_accept_reset_streams(burst(http2.resets_per_second) + 1)
        .max_local_error_reset_streams(Some(burst(http2.faults_per_second) + 1));
    builder
}

/// How the connection's task came to its end.
enum Outcome {
    /// In order: a GOAWAY was answered, or the client closed.
    Closed,
    /// The crate ended it.
    Failed(h2::Error),
    /// The meter ended it.
    Faulty(Fault),
    /// The client takes nothing.
    Stuck,
    /// A deadline.
    Expired(Ended),
}

struct Running<'a, S, T> {
    service: &'a Rc<S>,
    stream: &'a T,
    connection: &'a Rc<Connection>,
    shared: Rc<Shared>,
    h2: H2<MeteredIo<'a, T>, ChunkBuf>,
    deadline: Deadline,
    /// It was told to end: why, and when.
    closing: Option<(Ended, u64)>,
    /// While the client takes nothing: the bytes that had left when that was first seen, and when.
    stalled: Option<(u64, u64)>,
}

impl<S: Service + 'static, T: Transport> Running<'_, S, T> {
    /// While the answers to other requests are on their way, those that are there wait for them a little: a send and a
    /// record for several cost hardly more than for one. What comes from the client ends it, and so does everything
    /// that wakes the task a second time.
    fn holds_back(&self, cx: &Context<'_>) -> bool {
        let may = self.connection.active() > 0
            && self.closing.is_none()
            && self.shared.fault.get().is_none()
            && !self.stream.has_news();
        if may && self.shared.hold(self.stream.handle(), cx) {
            return true;
        }
        self.shared.let_go();
        false
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let mut was_shut = false;
        loop {
            match self.h2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.start(request, respond);
                    continue;
                }
                Poll::Ready(outcome) => {
                    return Poll::Ready(match (self.shared.fault.get(), outcome) {
                        (Some(fault), _) => Outcome::Faulty(fault),
                        (None, Some(Err(error))) => Outcome::Failed(error),
                        (None, _) => Outcome::Closed,
                    });
                }
                Poll::Pending => {}
            }
            self.count_own_answers();
            if let Some(fault) = self.shared.fault.get()
                && !was_shut
            {
                was_shut = true;
                self.h2.abrupt_shutdown(Reason::from(fault.code));
                continue;
            }
            if self.closing.is_none()
                && let Poll::Ready(ended) = self.connection.poll_asked_to_close(cx)
            {
                self.close(ended);
                continue;
            }
            match self.check_deadlines() {
                Ok(next_ms) => self.deadline.set_after(Duration::from_millis(next_ms)),
                Err(Some(outcome)) => return Poll::Ready(outcome),
                Err(None) => continue,
            }
            if self.deadline.poll_expired(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Lets the requests under way end, and takes no new ones (RFC 9113 section 6.8).
    fn close(&mut self, ended: Ended) {
        self.closing = Some((ended, self.now_ms()));
        self.h2.graceful_shutdown();
    }

    fn start(&self, request: http::Request<RecvStream>, respond: SendResponse<ChunkBuf>) {
        self.shared.took(respond.stream_id().as_u32());
        let task = Task {
            service: Rc::clone(self.service),
            connection: Rc::clone(self.connection),
            handle: self.stream.handle().clone(),
            shared: Rc::clone(&self.shared),
            _under_way: self.connection.under_way(self.stream.handle()),
        };
        let run = task.run(request, respond);
        // In memory that is kept for the next one.
        let run = Pooled::new(run);
        self.stream.handle().spawn(run);
    }

    /// The crate answers heads beyond the limit by itself.
    fn count_own_answers(&self) {
        for _ in 0..self.shared.own_answers.replace(0) {
            self.service.answered(Protocol::H2, 431);
            self.service.note(&ProxyError::new(ErrorKind::RequestHeadTooLarge));
        }
    }

    /// Milliseconds until something has to be looked at again. `Err(None)`: something has been done, poll again.
    fn check_deadlines(&mut self) -> Result<u64, Option<Outcome>> {
        let limits = self.service.limits();
        let now = self.now_ms();
        let mut next = limits.keep_alive;
        // Whether the time since then is up; where it is not, it is looked at again in time.
        let mut is_up = |since_ms: u64, limit: Duration| {
            let passed = Duration::from_millis(now.saturating_sub(since_ms));
            next = next.min(limit.saturating_sub(passed));
            passed >= limit
        };
        if self.shared.is_blocked() {
            let sent = self.stream.bytes_sent();
            let stalled = self.stalled.filter(|(then, _)| *then == sent).unwrap_or((sent, now));
            self.stalled = Some(stalled);
            if is_up(stalled.1, limits.send_progress) {
                return Err(Some(Outcome::Stuck));
            }
        } else {
            self.stalled = None;
        }
        if let Some(since) = self.shared.meter.borrow().block_since_ms()
            && is_up(since, limits.request_head)
        {
            self.service.note(&ProxyError::new(ErrorKind::RequestHeadTimeout));
            return Err(Some(Outcome::Expired(Ended::Deadline)));
        }
        if self.connection.active() > 0 {
            return Ok(millis(next));
        }
        if let Some((ended, since)) = self.closing {
            return if is_up(since.max(self.connection.idle_since_ms()), CLOSING) {
                Err(Some(Outcome::Expired(ended)))
            } else {
                Ok(millis(next))
            };
        }
        let is_first = self.connection.requests() == 0;
        let idle = if is_first { limits.request_head } else { limits.keep_alive };
        if is_up(self.connection.idle_since_ms(), idle) {
            self.close(Ended::Idle);
            return Err(None);
        }
        Ok(millis(next))
    }

    fn now_ms(&self) -> u64 {
        self.stream.handle().now_ms()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// What an error of the crate means.
fn failed<S: Service>(service: &S, connection: &Connection, error: &h2::Error, calm: Option<Abuse>) -> Ended {
    if error.is_io() || error.is_remote() {
        return Ended::ByClient;
    }
    match error.reason() {
        Some(Reason::ENHANCE_YOUR_CALM) => {
            end_by(service, connection, Fault::abuse(calm.unwrap_or(Abuse::EmptyDataFlood)));
        }
        _ => {
            let error = ProxyError::new(ErrorKind::BadRequestFraming).with_detail("h2_connection_error");
            service.note(&error);
            service.misconduct(connection, &error);
        }
    }
    Ended::Error
}

/// Accounts for a connection that is ended for what its client did.
fn end_by<S: Service>(service: &S, connection: &Connection, fault: Fault) {
    if let Some(abuse) = fault.abuse {
        service.abused(connection, abuse);
        return;
    }
    let error = ProxyError::new(ErrorKind::BadRequestFraming).with_detail(fault.detail);
    service.note(&error);
    service.misconduct(connection, &error);
}
