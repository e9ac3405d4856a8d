//! The exchange with an endpoint: try, stream both ways, try elsewhere when that is safe.
//!
//! A request is tried again only when no byte of its body was taken and either no connection came
//! about (any method), or a pooled connection ended before a byte of the answer came and the method is
//! idempotent (RFC 9110 section 9.2.2): then the endpoint may have closed it while it was idle; and when an HTTP/2
//! endpoint says that it did not act on it (any method), as long as what was taken of the body is still there.
//!
//! Owns: attempts and the two directions of an exchange. Does not own: wire formats (`http1/`),
//! which fields pass (`exchange::forward`), health (`balance`).
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::acquire::{Acquired, acquire};
use super::balance::{Group, Member, Verdict};
use super::connect::Offer;
use super::replay::Replay;
use super::snapshot::Live;
use super::tunnel::Tunnel;
use super::{Proxy, trace};
use crate::exchange::stream::{Answer, AnswerSource, BodySink, BodySource, Origin, UpstreamExchange};
use crate::exchange::{
    BodyLength, ErrorKind, Forwarding, MaxForwards, ProxyError, RequestHead, Retry, Side, VIA_PSEUDONYM,
    add_forwarding, max_forwards, restore_upgrade, strip_hop_by_hop, upgrade,
};
use crate::fields::{FieldError, Known};
use crate::logging::TRACE_TARGET;
use crate::metrics::names::{Histogram, Metric};
use crate::runtime::{Chunk, Deadline};

/// Attempts for one request (count): the first, and two elsewhere.
const ATTEMPTS_MAX: u32 = 3;

/// How long a body waits for the endpoint's 100 before it is sent all the same
/// (RFC 9110 section 10.1.1 forbids to wait for ever).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// Interim answers (1xx) to one request (count). Beyond it the endpoint is broken: 502.
const INTERIMS_MAX: u32 = 64;

/// Forwards a request to a member of `group` and the answer back. When that switches protocols, what is left to do is
/// returned.
///
/// # Errors
/// What went wrong in the last attempt, or on the client's side.
pub(super) async fn forward<'a, B: BodySource, A: Answer>(
    proxy: &'a Proxy,
    live: &Rc<Live>,
    group: &Group,
    origin: &Origin<'_>,
    request: &mut RequestHead,
    body: &mut B,
    answer: &mut A,
) -> Result<Option<Tunnel<'a>>, ProxyError> {
    prepare(live, origin, request)?;
    let body_taken = Cell::new(false);
    let mut tried = 0u64;
    let mut attempts = 0;
    let mut may_reuse = true;
    let mut body = Replay::new(body);
    loop {
        let now_ms = proxy.handle.now_ms();
        let Some((index, member)) =
            group.choose(&proxy.rows, now_ms, tried).and_then(|index| Some((index, group.member(index)?)))
        else {
            proxy.rows.add(Metric::UpstreamUnavailable, 1);
            return Err(ProxyError::new(ErrorKind::NoHealthyEndpoint));
        };
        attempts += 1;
        let mut was_reused = may_reuse;
        let outcome = {
            let attempt = attempt(
                proxy,
                live,
                member,
                origin,
                request,
                &mut body,
                answer,
                &body_taken,
                &mut was_reused,
            );
            let mut attempt = pin!(attempt);
            poll_fn(|cx| match attempt.as_mut().poll(cx) {
                Poll::Ready(outcome) => Poll::Ready(outcome),
                Poll::Pending => {
                    (origin.poll_gone)(cx).map(|()| Err(ProxyError::new(ErrorKind::DownstreamClosed)))
                }
            })
            .await
        };
        // The endpoint goes away in order, or has no room for the stream: not a word about its health, and it may
        // take the request over another connection.
        let is_unprocessed = |error: &ProxyError| {
            error.kind == ErrorKind::UpstreamClosedBeforeAnswer && error.retry == Retry::Yes
        };
        let verdict = match &outcome {
            Ok(_) => Verdict::Succeeded,
            Err(error) if is_unprocessed(error) => Verdict::Unknown,
            // A pooled connection that the endpoint had closed says nothing about its health.
            Err(error) if was_reused && error.may_retry(true) => Verdict::Unknown,
            Err(error) if error.side() == Side::Upstream => Verdict::Failed,
            Err(_) => Verdict::Unknown,
        };
        group.note(&proxy.rows, index, verdict, proxy.handle.now_ms());
        let error = match outcome {
            Ok(tunnel) => return Ok(tunnel),
            Err(error) => error,
        };
        let is_safe = error.may_retry(false) || request.method.is_idempotent();
        let again = !answer.has_begun()
            && (!body_taken.get() || (is_unprocessed(&error) && body.is_whole()))
            && is_safe
            && error.may_retry(was_reused)
            && attempts < ATTEMPTS_MAX;
        if !again {
            return Err(error);
        }
        proxy.rows.add(Metric::UpstreamRetries, 1);
        log::debug!("{}: {error}; trying again", member.pool.address);
        // What ended one pooled connection may have ended all of them.
        may_reuse &= !was_reused;
        // The same address may serve a fresh connection; one that cannot be reached goes last.
        let may_serve = was_reused || is_unprocessed(&error);
        if !may_serve && index < 64 && group.len() > 1 {
            tried |= 1 << index;
            if tried.count_ones() as usize >= group.len().min(64) {
                return Err(error);
            }
        } else if !may_serve {
            return Err(error);
        }
    }
}

/// Makes the head what the endpoint shall see.
fn prepare(live: &Live, origin: &Origin<'_>, request: &mut RequestHead) -> Result<(), ProxyError> {
    let too_large = |_: FieldError| ProxyError::new(ErrorKind::RequestHeadTooLarge);
    match max_forwards(request).map_err(too_large)? {
        MaxForwards::Unlimited | MaxForwards::Decremented => {}
        MaxForwards::Exhausted => return Err(ProxyError::new(ErrorKind::NoRoute).with_detail("max_forwards")),
        MaxForwards::Malformed => {
            return Err(ProxyError::new(ErrorKind::BadRequestHead).with_detail("max_forwards"));
        }
    }
    let hop = strip_hop_by_hop(&mut request.fields);
    if let Some(upgrade) = request.upgrade {
        restore_upgrade(&mut request.fields, upgrade.token()).map_err(too_large)?;
        upgrade::ensure_key(&mut request.fields)?;
    } else if hop.accepts_trailers {
        request.fields.push_known(Known::Te, b"trailers").map_err(too_large)?;
        request.fields.push_known(Known::Connection, b"te").map_err(too_large)?;
    }
    let make = || {
        let peer = origin.connection.client().map(|client| client.ip());
        let peer = peer.unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        let is_trusted = live.snapshot.config.trusted_proxies.iter().any(|prefix| prefix.contains(peer));
        Forwarding::new(peer, origin.connection.scheme(), is_trusted, origin.protocol)
    };
    origin
        .connection
        .with_forwarding((live.snapshot.generation, origin.protocol), make, |forwarding| {
            add_forwarding(request, forwarding)
        })
        .map_err(too_large)
}

/// One attempt on one address. `was_reused` says whether a pooled connection may be used, and then
/// whether one was.
#[allow(clippy::too_many_arguments, reason = "the parts of one exchange; a struct would only rename them")]
async fn attempt<'a, B: BodySource, A: Answer>(
    proxy: &'a Proxy,
    live: &Live,
    member: &Member,
    origin: &Origin<'_>,
    request: &RequestHead,
    body: &mut Replay<'_, B>,
    answer: &mut A,
    body_taken: &Cell<bool>,
    was_reused: &mut bool,
) -> Result<Option<Tunnel<'a>>, ProxyError> {
    let offer = if request.upgrade.is_some() { Offer::H1 } else { Offer::Any };
    let acquired = acquire(proxy, live, member, origin.connection, offer, std::mem::take(was_reused)).await?;
    *was_reused = acquired.is_reused();
    if *was_reused {
        proxy.rows.add(Metric::UpstreamReuses, 1);
    }
    proxy.rows.add(Metric::UpstreamRequests, 1);
    let in_flight = member.begin(&proxy.rows, *was_reused);
    // Only HTTP/2 can say that it did not act on a request of which some has come.
    body.begin(matches!(acquired, Acquired::Shared { .. }));
    match acquired {
        // Closed, and counted as closed, however this attempt ends, unless the pool takes it.
        Acquired::Own { mut connection, open, .. } => {
            let outcome = converse(proxy, &mut connection, request, body, answer, body_taken).await;
            if let Ok(Relayed::Switched) = outcome {
                let timeouts = &live.snapshot.config.timeouts;
                return Ok(Some(Tunnel::new(connection, open, in_flight, timeouts)));
            }
            drop(in_flight);
            if outcome.is_ok() && connection.is_reusable() && !member.pool.link.names_client() {
                open.keep();
                member.pool.put(connection, proxy.handle.now_ms());
            }
            outcome.map(|_| None)
        }
        Acquired::Shared { place, scheme } => {
            let mut stream = place.stream(live.client, scheme, member.pool.address);
            let outcome = converse(proxy, &mut stream, request, body, answer, body_taken).await;
            if let Err(error) = &outcome
                && error.kind.row().status == 504
                && place.is_silent()
            {
                // Perhaps nobody is there any more: nobody else shall wait for that.
                place.retire(&member.pool.shared);
            }
            outcome.map(|_| None)
        }
    }
}

/// How an answer was relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relayed {
    /// To its end.
    Whole,
    /// It was a 101: what follows is no HTTP.
    Switched,
}

/// Sends the request and relays the answer. Request and answer flow at the same time: an endpoint
/// may answer while the body is still on its way (RFC 9110 section 7.5).
async fn converse<U: UpstreamExchange, B: BodySource, A: Answer>(
    proxy: &Proxy,
    upstream: &mut U,
    request: &RequestHead,
    body: &mut B,
    answer: &mut A,
    body_taken: &Cell<bool>,
) -> Result<Relayed, ProxyError> {
    if request.upgrade.is_some() || body.is_complete() {
        // What the client sends before a switch stays where it is.
        let length = if request.upgrade.is_some() { BodyLength::Empty } else { body.length() };
        let (_sink, source) = upstream.open(request, length)?;
        return relay_answer(proxy, source, request, answer, None).await;
    }
    let (sink, source) = upstream.open(request, body.length())?;
    let gate = Gate::new(request.expects_continue);
    let upload = relay_body(proxy, &gate, body, sink, body_taken);
    let download = relay_answer(proxy, source, request, answer, Some(&gate));
    let mut upload = pin!(upload);
    let mut download = pin!(download);
    let mut uploading = true;
    poll_fn(|cx| {
        if uploading && let Poll::Ready(outcome) = upload.as_mut().poll(cx) {
            uploading = false;
            match outcome {
                Ok(()) => {}
                // The endpoint may have answered and closed without reading on: its answer counts.
                Err(error) if error.side() == Side::Upstream => gate.upload_failed.set(Some(error)),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        download.as_mut().poll(cx).map(|outcome| match (outcome, gate.upload_failed.get()) {
            // The endpoint took nothing for too long: that, and not the silence after it, is the cause.
            (Err(_), Some(first)) if first.kind == ErrorKind::UpstreamSendTimeout => Err(first),
            (outcome, _) => outcome,
        })
    })
    .await
}

/// What the two directions tell each other.
struct Gate {
    /// The body waits for the endpoint's 100.
    holds: Cell<bool>,
    waiter: Cell<Option<Waker>>,
    upload_failed: Cell<Option<ProxyError>>,
}

impl Gate {
    fn new(holds: bool) -> Self {
        Self { holds: Cell::new(holds), waiter: Cell::new(None), upload_failed: Cell::new(None) }
    }

    fn open(&self) {
        self.holds.set(false);
        if let Some(waker) = self.waiter.take() {
            waker.wake();
        }
    }

    async fn passed(&self, proxy: &Proxy) {
        if !self.holds.get() {
            return;
        }
        let mut deadline = Deadline::new(&proxy.handle);
        deadline.set_after(CONTINUE_WAIT);
        poll_fn(|cx| {
            if !self.holds.get() || deadline.poll_expired(cx).is_ready() {
                return Poll::Ready(());
            }
            self.waiter.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

async fn relay_body<B: BodySource, S: BodySink>(
    proxy: &Proxy,
    gate: &Gate,
    body: &mut B,
    mut sink: S,
    taken: &Cell<bool>,
) -> Result<(), ProxyError> {
    gate.passed(proxy).await;
    taken.set(true);
    while let Some(chunk) = body.next().await? {
        proxy.rows.add(Metric::RequestBodyBytes, chunk.len() as u64);
        send(chunk, &mut sink, body).await?;
    }
    sink.end(body.trailers())
}

/// Sends a piece, and lets its source take in what comes meanwhile.
pub(super) async fn send<S: BodySink, B: BodySource>(
    chunk: Chunk,
    sink: &mut S,
    source: &mut B,
) -> Result<(), ProxyError> {
    let mut sending = pin!(sink.data(chunk));
    poll_fn(|cx| {
        let sent = sending.as_mut().poll(cx);
        if sent.is_pending() {
            source.absorb(cx);
        }
        sent
    })
    .await
}

async fn relay_answer<S: AnswerSource, A: Answer>(
    proxy: &Proxy,
    mut source: S,
    request: &RequestHead,
    answer: &mut A,
    gate: Option<&Gate>,
) -> Result<Relayed, ProxyError> {
    let asked_ns = proxy.handle.now_ns();
    let mut head = proxy.take_response();
    let mut interims = 0;
    loop {
        source.head(request.method, &mut head).await?;
        if !head.is_interim() {
            break;
        }
        strip_hop_by_hop(&mut head.fields);
        interims += 1;
        if interims > INTERIMS_MAX {
            return Err(ProxyError::new(ErrorKind::UpstreamBadHead).with_detail("interim_answers"));
        }
        answer.interim(head.status, &head.fields).await?;
        if head.status == 100
            && let Some(gate) = gate
        {
            gate.open();
        }
    }
    let waited_us = proxy.handle.now_ns().saturating_sub(asked_ns) / 1000;
    proxy.rows.observe(Histogram::UpstreamFirstByte, waited_us);
    if proxy.is_tracing {
        log::info!(target: TRACE_TARGET, "< {}", trace::response(&head));
    }
    strip_hop_by_hop(&mut head.fields);
    let too_large = |_: FieldError| ProxyError::new(ErrorKind::UpstreamHeadTooLarge);
    let via: [&[u8]; 3] = [source.version().as_bytes(), b" ", VIA_PSEUDONYM.as_bytes()];
    head.fields.push_known_parts(Known::Via, &via).map_err(too_large)?;
    if let (101, Some(upgrade)) = (head.status, request.upgrade) {
        restore_upgrade(&mut head.fields, upgrade.token()).map_err(too_large)?;
        answer.head(&head, BodyLength::Unknown)?;
        proxy.put_response(head);
        return Ok(Relayed::Switched);
    }
    answer.head(&head, source.length())?;
    proxy.put_response(head);
    while let Some(chunk) = source.next().await? {
        proxy.rows.add(Metric::ResponseBodyBytes, chunk.len() as u64);
        if answer.takes_body() {
            answer.data(chunk).await?;
        }
    }
    answer.end(source.trailers())?;
    Ok(Relayed::Whole)
}
