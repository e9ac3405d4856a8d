//! A sealed stream over TCP, for codecs that do not know of TLS.
//!
//! Owns: opening what is received, sealing what is sent, the sizes of records, the orderly end (close_notify, RFC 8446
//! section 6.1) and telling it from a cut, at either end of a connection. Does not own: the handshake's outcome and its
//! deadline ([`super::handshake`], [`super::connector`]).
//!
//! Received bytes are opened in memory that the worker's connections share, or, while a record is incomplete, in the
//! connection's own; what is sent is sealed into what the kernel will be given. So an idle connection holds neither.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::task::{Context, Poll, Waker};

use rustls::CommonState;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};

use crate::runtime::{Chunk, Handle, TcpStream, Transport};

/// Bytes of content in a record at first: with header and tag it fits into one segment of a usual path, so that the
/// client can open it as soon as that segment is there.
const SMALL_RECORD_BYTES: usize = 1350;

/// Bytes after which records become large: what a new connection may have in flight (RFC 6928: 10 segments).
const SMALL_RECORDS_TOTAL: usize = 10 * SMALL_RECORD_BYTES;

/// Bytes of content in a record afterwards: the most that there is (RFC 8446 section 5.1).
const LARGE_RECORD_BYTES: usize = 16 * 1024;

/// Bytes that sealing adds to a record, at most: header, explicit nonce of TLS 1.2, content type, tag.
const RECORD_OVERHEAD_BYTES: usize = 5 + 8 + 1 + 16;

/// Bytes of content up to which records are sealed behind what already waits to be sent; more gets memory of its own
/// that is sent from where it is.
const APPENDED_BYTES_MAX: usize = 4096;

/// Bytes received that cannot be opened yet, at most: a record has 16 KiB and a little, a message of the handshake
/// perhaps more; the largest in use are chains of post-quantum certificates, with some 20 KiB.
const UNOPENED_BYTES_MAX: usize = 32 * 1024;

/// Bytes of the shared memory that a worker keeps; it grows for one large receive and shrinks after it.
const SCRATCH_KEPT_BYTES: usize = 256 * 1024;

thread_local! {
    /// Where received bytes are opened.
    static OPENING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Where what is to be sealed is put together.
    static SEALING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What rustls has of one end of a connection. Both ends work alike, but share no trait.
pub trait End {
    /// What only this end knows.
    type Data;

    /// The next thing to be done, given received bytes.
    fn process<'c, 'i>(&'c mut self, received: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// What both ends know.
    fn common(&self) -> &CommonState;
}

impl End for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, received: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(received)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

impl End for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, received: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(received)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

/// A TLS connection, at its server's end unless it is said otherwise.
pub struct TlsStream<E = UnbufferedServerConnection> {
    tcp: TcpStream,
    session: RefCell<Box<Session<E>>>,
}

/// A TLS connection, at its client's end.
pub type TlsClientStream = TlsStream<UnbufferedClientConnection>;

struct Session<E> {
    tls: E,
    /// Received bytes that are no whole record yet.
    unopened: Vec<u8>,
    /// Opened bytes that nobody has taken: what came behind the handshake, or while only the end was watched for.
    opened: Vec<u8>,
    /// The peer has said that it will send no more.
    has_ended: bool,
    /// We have said so, or must not.
    is_closed: bool,
    /// Why nothing can be received any more.
    failure: Option<rustls::Error>,
    /// Bytes of content sealed since the last message boundary.
    sealed: usize,
}

impl<E: End> TlsStream<E> {
    /// A connection whose handshake has not begun.
    pub(super) fn new(tcp: TcpStream, tls: E) -> Self {
        Self { tcp, session: RefCell::new(Box::new(Session::new(tls))) }
    }

    /// The connection under it.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Ready when the handshake is over.
    pub(super) fn poll_handshaken(&self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            {
                let session = self.session.borrow();
                if let Some(failure) = &session.failure {
                    return Poll::Ready(Err(Broken::Tls(failure.clone())));
                }
                if !session.tls.common().is_handshaking() {
                    return Poll::Ready(Ok(()));
                }
            }
            match self.tcp.poll_receive(cx) {
                Poll::Ready(Ok(Some(chunk))) => self.take_in(&chunk).map_err(Broken::Io)?,
                Poll::Ready(Ok(None)) => return Poll::Ready(Err(Broken::Ended)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Io(error))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Takes in bytes that were received before. Without any, a client begins its handshake.
    ///
    /// # Errors
    /// When a send has failed.
    pub(super) fn take_in(&self, received: &[u8]) -> io::Result<()> {
        let mut answer = Vec::new();
        self.session.borrow_mut().take_in(received, &mut answer);
        if answer.is_empty() { Ok(()) } else { self.tcp.write_with(|out| out.extend_from_slice(&answer)) }
    }

    /// Lends what rustls knows of the connection.
    pub(super) fn with_state<T>(&self, read: impl FnOnce(&CommonState) -> T) -> T {
        read(self.session.borrow().tls.common())
    }

    /// The protocol that was agreed on (ALPN), if one was.
    pub fn with_alpn<T>(&self, read: impl FnOnce(Option<&[u8]>) -> T) -> T {
        self.with_state(|state| read(state.alpn_protocol()))
    }

    /// Says that nothing more will be sent, once, unless the connection is cut. Whether it did.
    pub fn close_notify(&self) -> bool {
        let mut session = self.session.borrow_mut();
        if std::mem::replace(&mut session.is_closed, true) {
            return false;
        }
        // A connection that cannot be written any more is past saying anything.
        let _gone = self.tcp.write_with(|out| {
            let _unsealed = session.seal_close(out);
        });
        self.tcp.shutdown_write();
        true
    }

    fn seal(&self, content: &[u8]) -> io::Result<()> {
        let mut session = self.session.borrow_mut();
        if session.is_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if content.len() <= APPENDED_BYTES_MAX {
            let mut sealed = Ok(());
            self.tcp.write_with(|out| sealed = session.seal(content, out))?;
            return sealed;
        }
        let records = content.len().div_ceil(SMALL_RECORD_BYTES);
        let mut out = Vec::with_capacity(content.len() + records * RECORD_OVERHEAD_BYTES);
        session.seal(content, &mut out)?;
        self.tcp.write_chunk(Chunk::from_vec(out))
    }

    /// Seals what `write` puts together.
    fn seal_written(&self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut content = SEALING.take();
        content.clear();
        // Who writes only as much as there is room for shall fill a record.
        content.reserve(LARGE_RECORD_BYTES);
        write(&mut content);
        let sealed = if content.is_empty() { Ok(()) } else { self.seal(&content) };
        if content.capacity() <= SCRATCH_KEPT_BYTES {
            SEALING.set(content);
        }
        sealed
    }

    /// Receives until there is content, an end or a failure.
    fn poll_opened(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            {
                let session = self.session.borrow();
                if !session.opened.is_empty() || session.has_ended {
                    return Poll::Ready(Ok(()));
                }
                if let Some(failure) = &session.failure {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, failure.clone())));
                }
            }
            match self.tcp.poll_receive(cx) {
                Poll::Ready(Ok(Some(chunk))) => self.take_in(&chunk)?,
                // Without close_notify nobody knows whether that was all (RFC 8446 section 6.1).
                Poll::Ready(Ok(None)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// Why a handshake did not end well.
#[derive(Debug)]
pub(super) enum Broken {
    /// The peer has ended the connection.
    Ended,
    /// The connection broke.
    Io(io::Error),
    /// What came breaks the protocol, or there is nothing in common. An alert has been written.
    Tls(rustls::Error),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("the peer ended the connection"),
            Self::Io(error) => error.fmt(f),
            Self::Tls(error) => error.fmt(f),
        }
    }
}

impl<E: End> Transport for TlsStream<E> {
    fn handle(&self) -> &Handle {
        self.tcp.handle()
    }

    fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        match self.poll_opened(cx) {
            Poll::Ready(Ok(())) => {
                let opened = std::mem::take(&mut self.session.borrow_mut().opened);
                Poll::Ready(Ok((!opened.is_empty()).then(|| Chunk::from_vec(opened))))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_opened(cx) {
            // It has sent more instead. Nothing is watched until that has been taken.
            Poll::Ready(Ok(())) if !self.session.borrow().opened.is_empty() => Poll::Pending,
            other => other,
        }
    }

    fn has_news(&self) -> bool {
        if !self.tcp.has_news() && self.session.borrow().opened.is_empty() {
            return false;
        }
        // It may be no more than a session ticket.
        let mut cx = Context::from_waker(Waker::noop());
        self.poll_opened(&mut cx).is_ready()
    }

    fn settle(&self) {
        self.session.borrow_mut().sealed = 0;
        self.tcp.settle();
    }

    fn write_with(&self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.seal_written(write)
    }

    fn write_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() { Ok(()) } else { self.seal(bytes) }
    }

    fn write_chunk(&self, chunk: Chunk) -> io::Result<()> {
        if chunk.is_empty() { Ok(()) } else { self.seal(&chunk) }
    }

    fn write_framed(
        &self,
        before: impl FnOnce(&mut Vec<u8>),
        chunk: Chunk,
        behind: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<()> {
        // One copy instead of two more records.
        self.seal_written(|out| {
            before(out);
            out.extend_from_slice(&chunk);
            behind(out);
        })
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_writable(cx)
    }

    fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_flushed(cx)
    }

    fn bytes_sent(&self) -> u64 {
        self.tcp.bytes_sent()
    }

    fn shutdown_write(&self) {
        self.close_notify();
    }

    fn reset_on_close(&self) {
        self.session.borrow_mut().is_closed = true;
        self.tcp.reset_on_close();
    }
}

impl<E: End> Session<E> {
    fn new(tls: E) -> Self {
        Self {
            tls,
            unopened: Vec::new(),
            opened: Vec::new(),
            has_ended: false,
            is_closed: false,
            failure: None,
            sealed: 0,
        }
    }

    /// Opens received bytes; what has to be said in return goes to `answer`.
    fn take_in(&mut self, received: &[u8], answer: &mut Vec<u8>) {
        if self.failure.is_some() {
            return;
        }
        if !self.unopened.is_empty() {
            let mut bytes = std::mem::take(&mut self.unopened);
            bytes.extend_from_slice(received);
            let opened = self.open(&mut bytes, answer);
            bytes.drain(..opened);
            // An idle connection holds no memory, not even empty one.
            self.unopened = if bytes.is_empty() { Vec::new() } else { bytes };
        } else {
            let mut bytes = OPENING.take();
            bytes.clear();
            bytes.extend_from_slice(received);
            let opened = self.open(&mut bytes, answer);
            let rest = bytes.get(opened..).unwrap_or_default();
            if !rest.is_empty() {
                self.unopened = Vec::with_capacity(rest.len().max(record_bytes(rest)));
                self.unopened.extend_from_slice(rest);
            }
            if bytes.capacity() <= SCRATCH_KEPT_BYTES {
                OPENING.set(bytes);
            }
        }
        if self.unopened.len() > UNOPENED_BYTES_MAX && self.failure.is_none() {
            self.failure = Some(rustls::Error::General("more than a handshake message can have".to_owned()));
        }
    }

    /// Opens whole records at the front of `bytes` and says how many bytes they were.
    fn open(&mut self, bytes: &mut [u8], answer: &mut Vec<u8>) -> usize {
        let (opened, outcome) = self.process(bytes, answer);
        if let Err(error) = outcome {
            self.failure = Some(error);
            // The alert that goes with it. Nothing is opened any more, so the same bytes may be shown again.
            while self.tls.common().wants_write() {
                let UnbufferedStatus { state, .. } = self.tls.process(bytes);
                let Ok(ConnectionState::EncodeTlsData(mut record)) = state else { break };
                encode(&mut record, answer);
            }
        }
        opened.min(bytes.len())
    }

    fn process(&mut self, bytes: &mut [u8], answer: &mut Vec<u8>) -> (usize, Result<(), rustls::Error>) {
        let mut start = 0;
        loop {
            let rest = bytes.get_mut(start..).unwrap_or_default();
            let UnbufferedStatus { mut discard, state, .. } = self.tls.process(rest);
            let mut outcome = None;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                discard += record.discard;
                                self.opened.extend_from_slice(record.payload);
                            }
                            Err(error) => outcome = Some(Err(error)),
                        }
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut record)) => encode(&mut record, answer),
                Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
                Ok(ConnectionState::PeerClosed) => self.has_ended = true,
                Ok(
                    ConnectionState::WriteTraffic(_)
                    | ConnectionState::BlockedHandshake
                    | ConnectionState::Closed,
                ) => outcome = Some(Ok(())),
                // 0-RTT is off, and no other state is known.
                Ok(_) => outcome = Some(Err(rustls::Error::General("an unknown state".to_owned()))),
                Err(error) => outcome = Some(Err(error)),
            }
            start += discard;
            if let Some(outcome) = outcome {
                return (start, outcome);
            }
        }
    }

    /// Seals content into records.
    fn seal(&mut self, content: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let mut rest = content;
        while !rest.is_empty() {
            let small = SMALL_RECORDS_TOTAL.saturating_sub(self.sealed);
            let most = if small > 0 { SMALL_RECORD_BYTES } else { LARGE_RECORD_BYTES };
            let (record, behind) = rest.split_at_checked(most).unwrap_or((rest, &[]));
            self.seal_record(out, |traffic, room| traffic.encrypt(record, room), record.len())?;
            self.sealed = self.sealed.saturating_add(record.len());
            rest = behind;
        }
        Ok(())
    }

    fn seal_close(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        self.seal_record(out, |traffic, room| traffic.queue_close_notify(room), 2)
    }

    fn seal_record(
        &mut self,
        out: &mut Vec<u8>,
        mut seal: impl FnMut(&mut WriteTraffic<'_, E::Data>, &mut [u8]) -> Result<usize, EncryptError>,
        content_len: usize,
    ) -> io::Result<()> {
        if self.failure.is_some() {
            // rustls has said its last, an alert.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // A record that is half there stays with its connection: rustls remembers where it stands in it.
        let mut unopened = std::mem::take(&mut self.unopened);
        let mut start = 0;
        let outcome = loop {
            let rest = unopened.get_mut(start..).unwrap_or_default();
            let UnbufferedStatus { discard, state, .. } = self.tls.process(rest);
            let done = match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let before = out.len();
                    let mut room = content_len + RECORD_OVERHEAD_BYTES;
                    loop {
                        out.resize(before + room, 0);
                        match seal(&mut traffic, out.get_mut(before..).unwrap_or_default()) {
                            Ok(written) => {
                                out.truncate(before + written);
                                break Some(Ok(()));
                            }
                            Err(EncryptError::InsufficientSize(size)) if size.required_size > room => {
                                room = size.required_size;
                            }
                            Err(error) => {
                                out.truncate(before);
                                break Some(Err(io::Error::other(error.to_string())));
                            }
                        }
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut record)) => {
                    encode(&mut record, out);
                    None
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done();
                    None
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.has_ended = true;
                    None
                }
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        self.opened.extend_from_slice(record.payload);
                    }
                    None
                }
                Ok(_) => Some(Err(io::ErrorKind::BrokenPipe.into())),
                Err(error) => {
                    self.failure = Some(error.clone());
                    Some(Err(io::Error::new(io::ErrorKind::InvalidData, error)))
                }
            };
            start += discard;
            if let Some(done) = done {
                break done;
            }
        };
        unopened.drain(..start.min(unopened.len()));
        self.unopened = if unopened.is_empty() { Vec::new() } else { unopened };
        outcome
    }
}

/// Appends what rustls has to say.
fn encode<D>(record: &mut EncodeTlsData<'_, D>, out: &mut Vec<u8>) {
    let before = out.len();
    if let Err(EncodeError::InsufficientSize(size)) = record.encode(&mut []) {
        out.resize(before + size.required_size, 0);
        let written = record.encode(out.get_mut(before..).unwrap_or_default()).unwrap_or(0);
        out.truncate(before + written);
    }
}

/// Bytes of the record at the front, by its header (RFC 8446 section 5.1); 0 before the header is there.
fn record_bytes(bytes: &[u8]) -> usize {
    match bytes {
        [_, _, _, high, low, ..] => 5 + usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
