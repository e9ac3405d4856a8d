//! The HTTP/2 floor: the h2 crate over memory, and what rustls adds.
//!
//! `floor_h2 direct|proxied clear|sealed SECONDS`. A client and a server of the crate take turns on 16 connections with
//! 32 requests each; only the server's turns are timed, by the thread's own clock. With `sealed` the server's bytes are
//! opened and sealed by rustls (TLS 1.3, AES-128-GCM), which is timed as well. There is no socket, no runtime, no
//! request of ours: what the gateway needs beyond this is the kernel's or its own.
//!
//! Prints `RESULT ` and requests per CPU-second.

use std::cell::RefCell;
use std::error::Error;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use blitz_bench::floor;
use blitz_bench::tls::{client_config, thread_cpu_time};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use rustls::ClientConnection;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The gateway's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONNECTIONS: usize = 16;
const STREAMS: usize = 32;
/// Bytes of content in a record at most (RFC 8446 section 5.1).
const RECORD_BYTES: usize = 16 * 1024;

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let scenario: String = floor::argument(1, "scenario, direct or proxied")?;
    let kind: String = floor::argument(2, "kind, clear or sealed")?;
    let seconds: u64 = floor::argument(3, "number of seconds")?;
    let answer = Answer::new(&scenario).ok_or("the scenario is direct or proxied")?;
    let mut pairs = Vec::new();
    for _ in 0..CONNECTIONS {
        pairs.push(Pair::new(kind == "sealed")?);
    }
    // To learn the names and values that HPACK will refer to.
    for pair in &mut pairs {
        pair.turn(&answer)?;
    }
    let begun = Instant::now();
    let (mut used, mut requests) = (Duration::ZERO, 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        for pair in &mut pairs {
            used += pair.turn(&answer)?;
            requests += STREAMS;
        }
    }
    println!("RESULT {:.0}", requests as f64 / used.as_secs_f64());
    Ok(())
}

/// What the server answers with.
struct Answer {
    fields: Vec<(header::HeaderName, &'static str)>,
    body: Bytes,
}

impl Answer {
    fn new(scenario: &str) -> Option<Self> {
        let mut fields =
            vec![(header::CONTENT_TYPE, "text/plain"), (header::DATE, "Thu, 01 Jan 1970 00:00:00 GMT")];
        let body = match scenario {
            "direct" => Bytes::from_static(b"Hello from Blitz\n"),
            "proxied" => {
                fields.extend([(header::SERVER, "nginx/1.22.1"), (header::VIA, "1.1 blitz")]);
                Bytes::from(vec![b'x'; 1024])
            }
            _ => return None,
        };
        Some(Self { fields, body })
    }

    fn head(&self) -> Response<()> {
        let mut response = Response::new(());
        let headers = response.headers_mut();
        for (name, value) in &self.fields {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        response
    }
}

type Bytestream = Rc<RefCell<Vec<u8>>>;

/// One end of a connection in memory.
#[derive(Clone, Default)]
struct End {
    receives: Bytestream,
    sends: Bytestream,
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut bytes = self.receives.borrow_mut();
        if bytes.is_empty() {
            return Poll::Pending;
        }
        let count = buf.remaining().min(bytes.len());
        buf.put_slice(&bytes[..count]);
        bytes.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.sends.borrow_mut().extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut bytes = self.sends.borrow_mut();
        bufs.iter().for_each(|buf| bytes.extend_from_slice(buf));
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A client and a server of one connection.
struct Pair {
    requests: h2::client::SendRequest<Bytes>,
    client: h2::client::Connection<End, Bytes>,
    server: h2::server::Connection<End, Bytes>,
    /// What the client has written, and what the server is to write.
    upward: Bytestream,
    downward: Bytestream,
    /// What lies between them where they are sealed.
    server_reads: Bytestream,
    client_reads: Bytestream,
    tls: Option<Tls>,
}

impl Pair {
    fn new(is_sealed: bool) -> Result<Self, Failure> {
        let client_end = End::default();
        let server_end = End::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut client = Box::pin(h2::client::handshake(client_end.clone()));
        let mut builder = h2::server::Builder::new();
        builder.initial_connection_window_size(1 << 20).max_concurrent_streams(128);
        let mut server = Box::pin(builder.handshake(server_end.clone()));
        let (requests, client) = ready(client.as_mut().poll(&mut cx))??;
        server_end.receives.borrow_mut().append(&mut client_end.sends.borrow_mut());
        let server = ready(server.as_mut().poll(&mut cx))??;
        Ok(Self {
            requests,
            client,
            server,
            upward: client_end.sends,
            downward: server_end.sends,
            server_reads: server_end.receives,
            client_reads: client_end.receives,
            tls: is_sealed.then(Tls::new).transpose()?,
        })
    }

    /// 32 requests and their answers. Gives the processor time of the server's part.
    fn turn(&mut self, answer: &Answer) -> Result<Duration, Failure> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut waiting = Vec::with_capacity(STREAMS);
        for _ in 0..STREAMS {
            let request = Request::get("https://localhost/hello").header("user-agent", "floor").body(())?;
            waiting.push(self.requests.send_request(request, true)?.0);
        }
        // Pending: it has written what it could.
        let _ = Pin::new(&mut self.client).poll(&mut cx)?;
        let mut sent = std::mem::take(&mut *self.upward.borrow_mut());
        if let Some(tls) = &mut self.tls {
            sent = tls.client_seals(&sent)?;
        }

        let begun = thread_cpu_time();
        match &mut self.tls {
            Some(tls) => tls.server_opens(&mut sent, &mut self.server_reads.borrow_mut())?,
            None => self.server_reads.borrow_mut().append(&mut sent),
        }
        let mut accepted = 0;
        while let Poll::Ready(Some(taken)) = self.server.poll_accept(&mut cx) {
            let (_request, mut respond) = taken?;
            let mut stream = respond.send_response(answer.head(), false)?;
            stream.send_data(answer.body.clone(), true)?;
            accepted += 1;
        }
        let mut received = std::mem::take(&mut *self.downward.borrow_mut());
        if let Some(tls) = &mut self.tls {
            received = tls.server_seals(&received)?;
        }
        let used = thread_cpu_time().saturating_sub(begun);

        if accepted != STREAMS {
            return Err(format!("the server took {accepted} of {STREAMS} requests").into());
        }
        if let Some(tls) = &mut self.tls {
            received = tls.client_opens(&received)?;
        }
        self.client_reads.borrow_mut().append(&mut received);
        let _ = Pin::new(&mut self.client).poll(&mut cx)?;
        for mut response in waiting {
            let response = ready(Pin::new(&mut response).poll(&mut cx))??;
            let mut body = response.into_body();
            let mut bytes = 0;
            while !body.is_end_stream() {
                let Some(part) = ready(body.poll_data(&mut cx))? else { break };
                let part = part?;
                bytes += part.len();
                body.flow_control().release_capacity(part.len())?;
            }
            if bytes != answer.body.len() {
                return Err(format!("{bytes} bytes of an answer came").into());
            }
        }
        Ok(used)
    }
}

/// What must be there, since all bytes are.
fn ready<T>(poll: Poll<T>) -> Result<T, Failure> {
    match poll {
        Poll::Ready(value) => Ok(value),
        Poll::Pending => Err("one end waits for the other".into()),
    }
}

/// A TLS connection between the two.
struct Tls {
    client: ClientConnection,
    server: UnbufferedServerConnection,
}

impl Tls {
    fn new() -> Result<Self, Failure> {
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(["localhost".to_owned()])?.self_signed(&key)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        let name = ServerName::try_from("localhost")?;
        let client = ClientConnection::new(Arc::new(client_config("X25519")?), name)?;
        let mut tls = Self { client, server: UnbufferedServerConnection::new(Arc::new(config))? };
        while tls.client.is_handshaking() {
            let mut bytes = Vec::new();
            while tls.client.wants_write() {
                tls.client.write_tls(&mut bytes)?;
            }
            let said = tls.answer(&mut bytes)?;
            tls.take(&said)?;
        }
        let mut last = tls.client_seals(b"")?;
        let tickets = tls.answer(&mut last)?;
        tls.take(&tickets)?;
        Ok(tls)
    }

    /// The server's side of the handshake.
    fn answer(&mut self, bytes: &mut [u8]) -> Result<Vec<u8>, Failure> {
        let (mut at, mut said) = (0, Vec::new());
        loop {
            let UnbufferedStatus { discard, state, .. } = self.server.process_tls_records(&mut bytes[at..]);
            match state? {
                ConnectionState::EncodeTlsData(mut record) => {
                    if let Err(EncodeError::InsufficientSize(size)) = record.encode(&mut []) {
                        let before = said.len();
                        said.resize(before + size.required_size, 0);
                        record.encode(&mut said[before..])?;
                    }
                }
                ConnectionState::TransmitTlsData(transmit) => transmit.done(),
                _ => return Ok(said),
            }
            at += discard;
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            self.client.read_tls(&mut bytes)?;
            self.client.process_new_packets()?;
        }
        Ok(())
    }

    fn client_seals(&mut self, content: &[u8]) -> Result<Vec<u8>, Failure> {
        self.client.writer().write_all(content)?;
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes)?;
        }
        Ok(bytes)
    }

    fn client_opens(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut content = Vec::new();
        while !bytes.is_empty() {
            self.client.read_tls(&mut bytes)?;
            let state = self.client.process_new_packets()?;
            let before = content.len();
            content.resize(before + state.plaintext_bytes_to_read(), 0);
            self.client.reader().read_exact(&mut content[before..])?;
        }
        Ok(content)
    }

    fn server_opens(&mut self, bytes: &mut [u8], content: &mut Vec<u8>) -> Result<(), Failure> {
        let mut at = 0;
        loop {
            let UnbufferedStatus { mut discard, state, .. } =
                self.server.process_tls_records(&mut bytes[at..]);
            match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        content.extend_from_slice(record.payload);
                    }
                }
                _ => return Ok(()),
            }
            at += discard;
        }
    }

    fn server_seals(&mut self, content: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::with_capacity(content.len() + content.len().div_ceil(RECORD_BYTES) * 32);
        for record in content.chunks(RECORD_BYTES) {
            let UnbufferedStatus { state, .. } = self.server.process_tls_records(&mut []);
            let ConnectionState::WriteTraffic(mut traffic) = state? else {
                return Err("rustls does not want to write".into());
            };
            let before = bytes.len();
            bytes.resize(before + record.len() + 32, 0);
            let written = traffic.encrypt(record, &mut bytes[before..])?;
            bytes.truncate(before + written);
        }
        Ok(bytes)
    }
}
