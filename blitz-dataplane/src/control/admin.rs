//! The admin API's HTTP side.
//!
//! Owns: the listener, its bounds, the table of paths. Does not own: what the answers say (see
//! [`super::views`]), who may ask (see `admission`), or what an order does (see [`super::run`]).
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::admission::refusal;
use super::page::LIVE_PAGE;
use super::qlog::{self, Chosen, Recording, Refusal};
use super::views::Shared;
use super::{Command, Event};
use crate::metrics::{Metric, exposition};
use crate::process::listeners::explain;
use crate::process::{BankPlace, SocketKind};
use crate::sys::socket::{self, Share};

/// Connections open at once (count). A further one is closed at once, and counted.
pub const CONNECTIONS_MAX: usize = 64;
/// Longest wait for the head of a request, also on a kept-alive connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection, so that 64 forgotten ones cannot lock the operator out.
const LIFE_MAX: Duration = Duration::from_secs(300);
/// Bytes buffered for a request.
const BUFFER_BYTES: usize = 16 * 1024;

/// Path, the method it takes, what it is.
const PATHS: [(&str, Method, &str); 10] = [
    ("/", Method::GET, "the live page"),
    ("/metrics", Method::GET, "metrics for Prometheus"),
    ("/healthz", Method::GET, "200 while the process lives"),
    ("/readyz", Method::GET, "200 while every worker serves, else 503 and why"),
    ("/config", Method::GET, "the configuration in effect, workers, the last reload"),
    ("/upstreams", Method::GET, "endpoints, their addresses and health"),
    ("/connections", Method::GET, "up to 1000 client connections"),
    ("/qlog", Method::GET, "an HTTP/3 connection as it goes on: ?worker=W&connection=ID of /connections"),
    ("/reload", Method::POST, "read the configuration again; answers when all workers have it"),
    ("/drain", Method::POST, "accept nothing new, end when the last connection has ended"),
];

/// Listens on `address` and answers in the background. Returns the address that was bound.
///
/// # Errors
/// A sentence with cause and remedy.
pub fn start(
    address: SocketAddr,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
) -> Result<SocketAddr, String> {
    let cannot = |error: &std::io::Error| {
        let reason = explain(BankPlace { kind: SocketKind::Stream, address }, error);
        format!("the admin API: {reason}; --admin ADDR moves it, --admin off does without")
    };
    let listener = || {
        let listener = std::net::TcpListener::from(socket::listen(address, Share::Alone)?);
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    let (listener, bound) = listener().map_err(|error| cannot(&error))?;
    if !bound.ip().is_loopback() {
        log::warn!(
            "the admin API listens on {bound} without a password: everyone who reaches it can drain this gateway"
        );
    }
    tokio::spawn(accept(listener, bound.ip(), shared, events));
    Ok(bound)
}

async fn accept(listener: TcpListener, local: IpAddr, shared: Arc<Shared>, events: mpsc::Sender<Event>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: wait for some to close instead of spinning.
                log::warn!("the admin API cannot accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            shared.count(Metric::AdminConnectionsRefused);
            continue;
        };
        let api = Api { local, shared: Arc::clone(&shared), events: events.clone() };
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let api = api.clone();
                async move { Ok::<_, Infallible>(api.answer(request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(BUFFER_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(LIFE_MAX, connection).await {
                log::debug!("admin connection: {error}");
            }
            drop(permit);
        });
    }
}

type Answer = Response<Either<Full<Bytes>, Recording>>;

#[derive(Clone)]
struct Api {
    local: IpAddr,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
}

impl Api {
    async fn answer(self, request: Request<Incoming>) -> Answer {
        self.shared.count(Metric::AdminRequests);
        let path = request.uri().path();
        let Some((path, method, _)) = PATHS.iter().find(|(known, ..)| *known == path) else {
            return unknown(path);
        };
        let is_allowed =
            request.method() == method || (*method == Method::GET && request.method() == Method::HEAD);
        if !is_allowed {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes {method}\n"));
            if let Ok(value) = method.as_str().parse() {
                answer.headers_mut().insert(ALLOW, value);
            }
            return answer;
        }
        let field = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        if let Some(reason) = refusal(self.local, field(HOST), field(ORIGIN), *method == Method::POST) {
            return plain(StatusCode::FORBIDDEN, format!("{reason}\n"));
        }
        match *path {
            "/" => page(),
            "/metrics" => match self.shared.metrics() {
                Ok(text) => with_type(StatusCode::OK, exposition::CONTENT_TYPE, text),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            "/healthz" => plain(StatusCode::OK, "alive\n".to_owned()),
            "/readyz" => match self.shared.unready() {
                None => plain(StatusCode::OK, "ready\n".to_owned()),
                Some(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            },
            "/config" => as_json(StatusCode::OK, &self.shared.config()),
            "/upstreams" => as_json(StatusCode::OK, &self.shared.upstreams()),
            "/connections" => match self.order(Command::ListConnections).await {
                Some(rows) => as_json(StatusCode::OK, &Shared::connections(&rows)),
                None => ending(),
            },
            "/qlog" => match Chosen::of(request.uri().query()) {
                Ok(chosen) => self.record(chosen).await,
                Err(reason) => plain(StatusCode::BAD_REQUEST, format!("{reason}\n")),
            },
            "/reload" => match self.order(Command::Reload).await {
                Some(report) => {
                    let status = if report.ok { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
                    as_json(status, &json!(*report))
                }
                None => ending(),
            },
            _ => match self.order(Command::Drain).await {
                Some(()) => plain(StatusCode::ACCEPTED, "draining\n".to_owned()),
                None => ending(),
            },
        }
    }

    async fn record(&self, chosen: Chosen) -> Answer {
        let Chosen { worker, connection } = chosen;
        let recording = Recording::begin(async |pipe| {
            // When the loop has ended the pipe is closed, and that says it all.
            let _ended = self.events.send(Event::Command(Command::Record { worker, connection, pipe })).await;
        });
        match recording.await {
            Ok(recording) => with_body(StatusCode::OK, qlog::CONTENT_TYPE, Either::Right(recording)),
            Err(Refusal::Nothing) => plain(
                StatusCode::NOT_FOUND,
                format!(
                    "worker {worker} has no HTTP/3 connection {connection}; /connections shows which there are\n"
                ),
            ),
            Err(Refusal::TooMany) => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "as many recordings as there may be are under way; end one of them\n".to_owned(),
            ),
            Err(Refusal::System(error)) => {
                plain(StatusCode::INTERNAL_SERVER_ERROR, format!("no pipe for the recording: {error}\n"))
            }
        }
    }

    /// Puts an order to the control loop; `None` when that has ended.
    async fn order<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::Command(command(reply))).await.ok()?;
        answer.await.ok()
    }
}

fn unknown(path: &str) -> Answer {
    let mut text = format!("nothing is at {path}; there are:\n");
    for (path, method, what) in &PATHS {
        text.push_str(&format!("{method:<4} {path:<12} {what}\n"));
    }
    plain(StatusCode::NOT_FOUND, text)
}

fn ending() -> Answer {
    plain(StatusCode::SERVICE_UNAVAILABLE, "the gateway ends\n".to_owned())
}

fn page() -> Answer {
    let mut answer = with_type(StatusCode::OK, "text/html; charset=utf-8", LIVE_PAGE.to_owned());
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  frame-ancestors 'none'";
    if let Ok(value) = policy.parse() {
        answer.headers_mut().insert(CONTENT_SECURITY_POLICY, value);
    }
    answer
}

fn plain(status: StatusCode, text: String) -> Answer {
    with_type(status, "text/plain; charset=utf-8", text)
}

fn as_json(status: StatusCode, value: &Value) -> Answer {
    with_type(status, "application/json", format!("{value:#}\n"))
}

fn with_type(status: StatusCode, content_type: &str, text: String) -> Answer {
    with_body(status, content_type, Either::Left(Full::new(Bytes::from(text))))
}

fn with_body(status: StatusCode, content_type: &str, body: Either<Full<Bytes>, Recording>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    for (name, value) in [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-store")] {
        if let Ok(value) = value.parse() {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}
