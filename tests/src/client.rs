//! A raw HTTP/1.1 client: bytes out, answers in, a deadline on everything.
//!
//! Owns: reading answers by the rules of RFC 9112 section 6, and seeing a close. It adds nothing to what
//! a test sends. Does not own: load (see [`crate::load`]).

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::PATIENCE;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Status line and fields, as received.
    pub head: String,
    /// The body, without its transfer coding.
    pub body: Vec<u8>,
    /// Trailer fields, as received.
    pub trailers: String,
    /// Whether the body came to the end that its framing announced.
    pub is_complete: bool,
}

impl Response {
    /// The value of a field; of several lines the first.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The value of the first field of this name in a head.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}

/// Every value of the fields of this name, joined by commas (RFC 9110 section 5.3).
pub fn fields(head: &str, name: &str) -> String {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let values: Vec<_> =
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).collect();
    values.join(", ")
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    /// Received and not yet taken.
    received: Vec<u8>,
    /// It ended with a reset.
    was_reset: bool,
}

impl Client {
    /// Connects.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => Self::from(stream),
            Err(error) => panic!("{address} does not take connections: {error}"),
        }
    }

    /// Connects from an address of this machine, to be another source.
    #[track_caller]
    pub fn connect_from(source: Ipv4Addr, address: SocketAddr) -> Self {
        let SocketAddr::V4(target) = address else { panic!("{address} is not of the source's family") };
        match crate::sys::connect_from(source, target, PATIENCE) {
            Ok(stream) => Self::from(stream),
            Err(error) => panic!("{address} does not take connections from {source}: {error}"),
        }
    }

    /// Sends all of it.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the peer takes what is sent");
    }

    /// Sends what the peer still takes; whether that was all. For requests that may be refused half-way.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Says that no more will be sent (FIN).
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Closes with a reset.
    pub fn reset(self) {
        crate::sys::reset_on_close(&self.stream);
    }

    /// The answer to anything but HEAD.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.response_to("GET")
    }

    /// The final answer to a request with this method; 1xx answers are passed over.
    #[track_caller]
    pub fn response_to(&mut self, method: &str) -> Response {
        loop {
            let head = self.head();
            let status = status(&head);
            if !(100..200).contains(&status) || status == 101 {
                return self.body_after(head, status, method);
            }
        }
    }

    /// The next head, be it of an interim or a final answer, with its empty line taken and left out.
    #[track_caller]
    pub fn head(&mut self) -> String {
        let end = self.fill_until(|bytes| find(bytes, b"\r\n\r\n"));
        let Some(end) = end else {
            panic!("closed before a whole head; received {:?}", String::from_utf8_lossy(&self.received));
        };
        let head = self.take(end + 4);
        String::from_utf8_lossy(&head[..end + 2]).into_owned()
    }

    /// Whether the peer closes (or resets) without sending anything more; waits up to [`PATIENCE`].
    #[track_caller]
    pub fn is_closed_without_bytes(&mut self) -> bool {
        let first = self.fill_until(|bytes| (!bytes.is_empty()).then_some(()));
        first.is_none()
    }

    /// Everything until the peer closes.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        self.fill_until(|_| None::<()>);
        std::mem::take(&mut self.received)
    }

    /// So many bytes, as they come.
    #[track_caller]
    pub fn read(&mut self, count: usize) -> Vec<u8> {
        let whole = self.fill_until(|bytes| (bytes.len() >= count).then_some(()));
        assert!(whole.is_some(), "closed after {} of {count} bytes", self.received.len());
        self.take(count)
    }

    /// Everything until the peer closes, and whether that was a reset.
    #[track_caller]
    pub fn rest_and_reset(&mut self) -> (Vec<u8>, bool) {
        (self.rest(), self.was_reset)
    }

    /// Whether the connection is open and silent at this moment.
    pub fn is_open_and_silent(&mut self) -> bool {
        if !self.received.is_empty() {
            return false;
        }
        let _ = self.stream.set_nonblocking(true);
        let peeked = self.stream.peek(&mut [0]);
        let _ = self.stream.set_nonblocking(false);
        matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    pub(crate) fn body_after(&mut self, head: String, status: u16, method: &str) -> Response {
        let mut response =
            Response { status, head, body: Vec::new(), trailers: String::new(), is_complete: true };
        if method == "HEAD" || matches!(status, 101 | 204 | 304) {
            return response;
        }
        if response.field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            response.is_complete = self.chunks(&mut response).is_some();
        } else if let Some(length) = response.field("content-length") {
            let length: usize = length.parse().expect("Content-Length is a number");
            let whole = self.fill_until(|bytes| (bytes.len() >= length).then_some(()));
            response.is_complete = whole.is_some();
            response.body = self.take(length);
        } else {
            response.body = self.rest();
        }
        response
    }

    /// One chunk, or several, of an answer's body: so many bytes in all.
    #[track_caller]
    pub(crate) fn chunk(&mut self, bytes: usize) -> Vec<u8> {
        let mut body = Vec::new();
        while body.len() < bytes {
            let end = self.fill_until(|bytes| find(bytes, b"\r\n")).expect("a chunk");
            let line = self.take(end + 2);
            let digits = String::from_utf8_lossy(&line[..end]).into_owned();
            let size = usize::from_str_radix(&digits, 16).unwrap_or_else(|_| panic!("chunk size {digits:?}"));
            self.fill_until(|bytes| (bytes.len() >= size + 2).then_some(())).expect("a whole chunk");
            let chunk = self.take(size + 2);
            body.extend_from_slice(&chunk[..size]);
        }
        body
    }

    /// Whether anything comes before the peer closes.
    #[track_caller]
    pub(crate) fn has_bytes(&mut self) -> bool {
        self.fill_until(|bytes| (!bytes.is_empty()).then_some(())).is_some()
    }

    fn chunks(&mut self, response: &mut Response) -> Option<()> {
        loop {
            let end = self.fill_until(|bytes| find(bytes, b"\r\n"))?;
            let line = self.take(end + 2);
            let digits = String::from_utf8_lossy(&line[..end]).into_owned();
            let size = usize::from_str_radix(&digits, 16).unwrap_or_else(|_| panic!("chunk size {digits:?}"));
            if size == 0 {
                break;
            }
            self.fill_until(|bytes| (bytes.len() >= size + 2).then_some(()))?;
            let chunk = self.take(size + 2);
            assert_eq!(&chunk[size..], b"\r\n", "a chunk ends with CRLF");
            response.body.extend_from_slice(&chunk[..size]);
        }
        loop {
            let end = self.fill_until(|bytes| find(bytes, b"\r\n"))?;
            let line = self.take(end + 2);
            if end == 0 {
                return Some(());
            }
            response.trailers += &String::from_utf8_lossy(&line);
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let count = count.min(self.received.len());
        self.received.drain(..count).collect()
    }

    /// Reads until `is_enough` finds what it wants. `None` when the peer closes first.
    #[track_caller]
    fn fill_until<T>(&mut self, is_enough: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let begun = Instant::now();
        let mut bytes = vec![0; 64 * 1024];
        loop {
            if let Some(found) = is_enough(&self.received) {
                return Some(found);
            }
            let left = PATIENCE.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).expect("a read timeout can be set");
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(n) => self.received.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    let text = String::from_utf8_lossy(&self.received);
                    panic!("nothing more came within {PATIENCE:?}; received so far {text:?}");
                }
                // A reset is a close.
                Err(_) => {
                    self.was_reset = true;
                    return None;
                }
            }
        }
    }
}

impl From<TcpStream> for Client {
    fn from(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("TCP_NODELAY can be set");
        stream.set_write_timeout(Some(PATIENCE)).expect("a write timeout can be set");
        Self { stream, received: Vec::new(), was_reset: false }
    }
}

/// The code in a status line.
fn status(head: &str) -> u16 {
    let line = head.lines().next().unwrap_or_default();
    assert!(line.starts_with("HTTP/1."), "no status line: {line:?}");
    line.split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no status in {line:?}"))
}

pub(crate) fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}
