//! The pool on simulated connections: what is kept, what is taken again, what is closed.

use std::time::Duration;

use super::*;
use crate::exchange::stream::{AnswerSource, BodySource, UpstreamExchange};
use crate::exchange::{BodyLength, Method, RequestHead, ResponseHead, Scheme};
use crate::http1::HeadLimits;
use crate::http1::client::ClientLimits;
use crate::runtime::sim::{Profile, World};
use crate::runtime::{Handle, Runtime, TcpListener, TcpStream};
use crate::segment::{Segment, Shape};

const LIMITS: ClientLimits = ClientLimits {
    first_byte: Duration::from_secs(5),
    progress: Duration::from_secs(5),
    head: HeadLimits::RECOMMENDED,
};

/// How long an endpoint keeps a connection after its answer.
const KEPT: Duration = Duration::from_secs(1);

/// Runs `test` with an empty pool before an endpoint that sends `answer` to one request, waits [`KEPT`] and
/// closes. Once on a network where a multishot receive goes on, and once where it ends with each message.
fn with_pool<F: Future<Output = ()>>(answer: &'static [u8], test: impl Fn(Handle, Rc<Pool>, Segment) -> F) {
    for multishot_end_per_mille in [0, 1000] {
        let profile = Profile { multishot_end_per_mille, ..Profile::CALM };
        let mut runtime = Runtime::simulated(&World::with_profile(7, profile));
        let handle = runtime.handle().clone();
        let address = SocketAddr::from(([10, 0, 0, 2], 80));
        let listener = TcpListener::simulated(&handle, address).unwrap();
        let endpoint = handle.clone();
        handle.spawn(async move {
            while let Ok(stream) = listener.accept().await {
                let timer = endpoint.clone();
                endpoint.spawn(async move {
                    if let Ok(Some(_)) = stream.receive().await {
                        stream.write_with(|out| out.extend_from_slice(answer)).unwrap();
                        timer.sleep(KEPT).await;
                    }
                });
            }
        });
        let segment = Segment::create(Shape { workers: 1, endpoints: 1 }).unwrap();
        let pool = Pools::new(segment.worker(0).unwrap()).of("api", address, 2, &Rc::default());
        runtime.block_on(test(handle, pool, segment));
    }
}

fn request() -> RequestHead {
    RequestHead { authority: b"a".to_vec(), path: b"/".to_vec(), ..RequestHead::new(Scheme::Http) }
}

/// A new connection that has carried one exchange, counted as open.
async fn used(handle: &Handle, pool: &Pool) -> ClientConnection<Carrier> {
    let stream = TcpStream::connect(handle, pool.address).await.unwrap();
    pool.rows.gauge_add(Metric::UpstreamActive, 1);
    let mut connection = ClientConnection::new(Carrier::Plain(stream), LIMITS);
    let (_, mut answer) = connection.open(&request(), BodyLength::Empty).unwrap();
    let mut head = ResponseHead::default();
    answer.head(Method::Get, &mut head).await.unwrap();
    while answer.next().await.unwrap().is_some() {}
    connection
}

#[test]
fn a_connection_that_its_endpoint_has_closed_is_not_taken() {
    with_pool(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", |handle, pool, segment| async move {
        let connection = used(&handle, &pool).await;
        assert!(connection.is_reusable());
        pool.put(connection, handle.now_ms());
        let connection = pool.take().expect("it is still good");
        pool.put(connection, handle.now_ms());
        handle.sleep(2 * KEPT).await;
        assert!(pool.take().is_none(), "the endpoint has closed it");
        assert_eq!(segment.sum(Metric::PoolClosedStale), 1);
        assert_eq!((segment.sum(Metric::UpstreamIdle), segment.sum(Metric::UpstreamActive)), (0, 0));
    });
}

#[test]
fn what_follows_an_answer_makes_a_connection_useless() {
    let answer =
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    with_pool(answer, |handle, pool, _| async move {
        let connection = used(&handle, &pool).await;
        assert!(!connection.is_reusable());
        pool.rows.gauge_sub(Metric::UpstreamActive, 1);
    });
}

#[test]
fn an_answer_that_was_not_read_to_its_end_makes_a_connection_useless() {
    with_pool(b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\nhi", |handle, pool, _| async move {
        let stream = TcpStream::connect(&handle, pool.address).await.unwrap();
        let mut connection = ClientConnection::new(Carrier::Plain(stream), LIMITS);
        let (_, mut answer) = connection.open(&request(), BodyLength::Empty).unwrap();
        answer.head(Method::Get, &mut ResponseHead::default()).await.unwrap();
        assert_eq!(answer.next().await.unwrap().as_deref(), Some(&b"hi"[..]));
        assert!(!connection.is_reusable(), "198 bytes are to come");
    });
}

#[test]
fn the_bound_on_idle_connections_closes_the_oldest() {
    with_pool(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", |handle, pool, segment| async move {
        for _ in 0..3 {
            let connection = used(&handle, &pool).await;
            pool.put(connection, handle.now_ms());
        }
        assert_eq!((segment.sum(Metric::UpstreamIdle), segment.sum(Metric::PoolClosedFull)), (2, 1));
        pool.sweep(handle.now_ms() + 100, 100);
        assert_eq!((segment.sum(Metric::UpstreamIdle), segment.sum(Metric::PoolClosedIdle)), (0, 2));
        assert_eq!(segment.sum(Metric::UpstreamActive), 0);
    });
}
