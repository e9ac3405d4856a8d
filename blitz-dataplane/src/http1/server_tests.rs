//! The downstream connection over a service of the test's own, on the simulated network.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::HeadLimits;
use super::server::serve;
use crate::date::IMF_FIXDATE_BYTES;
use crate::exchange::stream::{Answer, BodySource, Origin, ServerLimits, Service};
use crate::exchange::{BodyLength, Protocol, ProxyError, RequestHead, ResponseHead};
use crate::proxy::connections::{Connection, Connections, Listener};
use crate::runtime::sim::{Profile, World};
use crate::runtime::{Chunk, Handle, Runtime, TcpListener, TcpStream};

/// Answers "fine", and panics where it is told to.
struct Fragile;

impl Service for Fragile {
    async fn exchange<B: BodySource, A: Answer>(
        &self,
        _origin: &Origin<'_>,
        request: &mut RequestHead,
        _body: &mut B,
        answer: &mut A,
    ) -> Result<(), ProxyError> {
        if request.path == b"/panic" {
            // Without the hook's message, which would look like a failure in the test's output.
            std::panic::resume_unwind(Box::new("a bug in one exchange"));
        }
        answer.head(&ResponseHead { status: 200, ..ResponseHead::default() }, BodyLength::Exact(4))?;
        answer.data(Chunk::from_static(b"fine")).await?;
        answer.end(None)
    }

    fn limits(&self) -> ServerLimits {
        let second = Duration::from_secs(1);
        ServerLimits {
            request_head: second,
            body_progress: second,
            keep_alive: second,
            send_progress: second,
            body_bytes_max: 1000,
            head: HeadLimits::RECOMMENDED,
            http2: blitz_config::model::Http2Limits::RECOMMENDED,
        }
    }

    fn date(&self) -> [u8; IMF_FIXDATE_BYTES] {
        *b"Sun, 06 Nov 1994 08:49:37 GMT"
    }

    fn is_draining(&self) -> bool {
        false
    }

    fn take_request(&self) -> Box<RequestHead> {
        Box::default()
    }

    fn put_request(&self, _request: Box<RequestHead>) {}

    fn note(&self, _error: &ProxyError) {}

    fn misconduct(&self, _connection: &Connection, _error: &ProxyError) {}

    fn answered(&self, _protocol: Protocol, _status: u16) {}

    fn abused(&self, _connection: &Connection, _abuse: crate::http2::Abuse) {}
}

fn start(handle: &Handle) -> SocketAddr {
    let address = SocketAddr::from(([10, 0, 0, 2], 80));
    let listener = TcpListener::simulated(handle, address).unwrap();
    let spawner = handle.clone();
    handle.spawn(async move {
        let connections = Connections::default();
        let info = Rc::new(Listener::new(address, false));
        while let Ok(stream) = listener.accept().await {
            let connection = connections.open(&info, spawner.now_ms());
            spawner.spawn(async move {
                serve(&Fragile, &stream, &connection, Default::default()).await;
            });
        }
    });
    address
}

async fn ask(stream: &TcpStream, path: &str) -> String {
    stream.write_with(|out| out.extend(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").bytes())).unwrap();
    let mut answer = Vec::new();
    while let Ok(Some(chunk)) = stream.receive().await {
        answer.extend_from_slice(&chunk);
        if answer.ends_with(b"fine") {
            break;
        }
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_panic_in_one_connection_ends_that_connection_only() {
    let world = World::with_profile(1, Profile::CALM);
    let mut runtime = Runtime::simulated(&world);
    let handle = runtime.handle().clone();
    runtime.block_on(async {
        let address = start(&handle);
        let kept = TcpStream::connect(&handle, address).await.unwrap();
        assert!(ask(&kept, "/").await.ends_with("fine"));
        for _ in 0..10 {
            let doomed = TcpStream::connect(&handle, address).await.unwrap();
            assert_eq!(ask(&doomed, "/panic").await, "", "the connection ends without an answer");
        }
        assert!(ask(&kept, "/").await.ends_with("fine"), "the neighbour notices nothing");
        let fresh = TcpStream::connect(&handle, address).await.unwrap();
        assert!(ask(&fresh, "/").await.ends_with("fine"), "the listener goes on");
        assert_eq!(handle.stats().panics, 10);
    });
}
