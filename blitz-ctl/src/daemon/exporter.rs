//! The metrics exporter's HTTP side: `/metrics` and `/healthz`.
//!
//! Owns: the listener, its bounds, the paths. Does not own: the text (see [`super::exposition`]) or when it
//! is made (the function it is given).
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::exposition;
use crate::error::{Error, Kind, Result};

/// Where the exporter listens unless it is told otherwise.
pub const ADDRESS: &str = "127.0.0.1:9901";
/// Connections open at once (count). A further one is closed at once.
const CONNECTIONS_MAX: usize = 32;
/// Longest wait for the head of a request, also on a kept-alive connection: longer than scrape intervals are.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest life of a connection, so that forgotten ones cannot lock the operator out.
const LIFE_MAX: Duration = Duration::from_secs(600);
/// Bytes buffered for a request.
const BUFFER_BYTES: usize = 16 * 1024;

/// Makes the text of one scrape, or says why it cannot.
pub type Scrape = Arc<dyn Fn() -> std::result::Result<String, String> + Send + Sync>;

/// Binds the listener, before capabilities are given up.
///
/// # Errors
/// A sentence with cause and remedy.
pub fn bind(address: SocketAddr) -> Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|error| {
            Error::new(
                Kind::System,
                format!("the exporter cannot listen on {address}: {error}"),
                "--metrics ADDR moves it, --metrics off does without",
            )
        })?;
    if !address.ip().is_loopback() {
        log::warn!("the exporter listens on {address} without a password");
    }
    Ok(listener)
}

/// Answers on `listener` in the background of the current runtime.
///
/// # Errors
/// The runtime cannot watch the listener.
pub fn start(listener: std::net::TcpListener, scrape: Scrape) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let local = listener.local_addr()?.ip();
    tokio::spawn(accept(listener, local, scrape));
    Ok(())
}

async fn accept(listener: TcpListener, local: IpAddr, scrape: Scrape) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: wait for some to close instead of spinning.
                log::warn!("the exporter cannot accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
        let scrape = Arc::clone(&scrape);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let scrape = Arc::clone(&scrape);
                async move { Ok::<_, Infallible>(answer(&request, local, scrape).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(BUFFER_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(LIFE_MAX, connection).await {
                log::debug!("exporter connection: {error}");
            }
            drop(permit);
        });
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(request: &Request<Incoming>, local: IpAddr, scrape: Scrape) -> Answer {
    let path = request.uri().path();
    if path != "/metrics" && path != "/healthz" {
        return plain(StatusCode::NOT_FOUND, "there are /metrics and /healthz\n".to_owned());
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes GET\n"));
        answer.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    // A page on the web can make a browser of this machine ask under a name of its own that leads to 127.0.0.1.
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    if local.to_canonical().is_loopback() && !host.is_some_and(is_local_host) {
        let text = "on loopback the Host field must be an address or localhost\n".to_owned();
        return plain(StatusCode::FORBIDDEN, text);
    }
    if path == "/healthz" {
        return plain(StatusCode::OK, "alive\n".to_owned());
    }
    // Reading the counters takes system calls; the runtime's one thread goes on meanwhile.
    match tokio::task::spawn_blocking(move || scrape()).await {
        Ok(Ok(text)) => with_type(StatusCode::OK, exposition::CONTENT_TYPE, text),
        Ok(Err(error)) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the scrape failed\n".to_owned()),
    }
}

/// Whether `host` (with or without a port) is a literal address or localhost.
fn is_local_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn plain(status: StatusCode, text: String) -> Answer {
    with_type(status, "text/plain; charset=utf-8", text)
}

fn with_type(status: StatusCode, content_type: &str, text: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    for (name, value) in [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-store")] {
        if let Ok(value) = value.parse() {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_web_are_told_from_addresses() {
        for host in ["127.0.0.1:9901", "localhost", "LOCALHOST:9901", "[::1]:9901"] {
            assert!(is_local_host(host), "{host}");
        }
        for host in ["evil.example:9901", "[::1", ""] {
            assert!(!is_local_host(host), "{host}");
        }
    }
}
