//! Scripted upstreams, named by what they do wrong.
//!
//! Owns: a listener, a thread for each connection, a record of what was received. Does not own: a real
//! server (see [`crate::nginx`]).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::sys;

/// A request as an upstream got it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Request line and fields.
    pub head: String,
    /// The body without its transfer coding. Empty when it was only counted.
    pub body: Vec<u8>,
    /// Bytes of the body.
    pub body_bytes: u64,
    /// Trailer fields.
    pub trailers: String,
}

impl Request {
    /// The value of a field; of several lines the first.
    pub fn field(&self, name: &str) -> Option<&str> {
        crate::client::field(&self.head, name)
    }

    /// Every value of the fields of this name, joined.
    pub fn fields(&self, name: &str) -> String {
        crate::client::fields(&self.head, name)
    }

    /// The second word of the request line.
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }
}

/// One accepted connection, in the hands of a script.
#[derive(Debug)]
pub struct Conn {
    reader: BufReader<TcpStream>,
    record: Arc<Record>,
    /// Whether bodies are kept; big ones are only counted.
    keeps_bodies: bool,
}

/// Bodies above this many bytes are counted and not kept.
const KEPT_BODY_BYTES_MAX: u64 = 64 << 20;

impl Conn {
    /// The head of the next request; `None` when the peer closed.
    pub fn head(&mut self) -> Option<Request> {
        let mut request = Request::default();
        loop {
            let mut line = String::new();
            match self.reader.read_line(&mut line) {
                Ok(0) | Err(_) => return None,
                Ok(_) if line == "\r\n" => return Some(request),
                Ok(_) => request.head += &line,
            }
        }
    }

    /// The body that belongs to a head. `None` when it ends too early.
    pub fn body(&mut self, request: &mut Request) -> Option<()> {
        if let Some(length) = request.field("content-length") {
            let length = length.parse().ok()?;
            return self.bytes(length, request);
        }
        if request.field("transfer-encoding").is_none() {
            return Some(());
        }
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).ok()?;
            let size = u64::from_str_radix(line.trim_end(), 16).ok()?;
            if size == 0 {
                break;
            }
            self.bytes(size, request)?;
            self.reader.read_exact(&mut [0; 2]).ok()?;
        }
        loop {
            let mut line = String::new();
            match self.reader.read_line(&mut line).ok()? {
                0 => return None,
                _ if line == "\r\n" => return Some(()),
                _ => request.trailers += &line,
            }
        }
    }

    /// The next chunk of a body; `None` at its end.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        self.reader.read_line(&mut line).ok()?;
        let size = usize::from_str_radix(line.trim_end(), 16).ok()?;
        let mut chunk = vec![0; size];
        self.reader.read_exact(&mut chunk).ok()?;
        self.reader.read_exact(&mut [0; 2]).ok()?;
        (size > 0).then_some(chunk)
    }

    fn bytes(&mut self, count: u64, request: &mut Request) -> Option<()> {
        let mut part = (&mut self.reader).take(count);
        let copied = if self.keeps_bodies && request.body_bytes + count <= KEPT_BODY_BYTES_MAX {
            std::io::copy(&mut part, &mut request.body)
        } else {
            std::io::copy(&mut part, &mut std::io::sink())
        };
        let copied = copied.ok()?;
        request.body_bytes += copied;
        (copied == count).then_some(())
    }

    /// A whole request, recorded.
    pub fn request(&mut self) -> Option<Request> {
        let mut request = self.head()?;
        self.body(&mut request)?;
        self.record(request.clone());
        Some(request)
    }

    /// Puts a request on record.
    pub fn record(&self, request: Request) {
        self.record.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    }

    /// Sends bytes; `None` when the peer takes no more.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Option<()> {
        self.reader.get_mut().write_all(bytes.as_ref()).ok()
    }

    /// Sends an answer with this body and a length.
    pub fn answer(&mut self, status: &str, body: impl AsRef<[u8]>) -> Option<()> {
        let body = body.as_ref();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        self.send([head.as_bytes(), body].concat())
    }

    /// So many bytes, as they come; `None` when the peer closes before.
    pub fn read(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Everything until the peer closes, and whether that was a reset.
    pub fn rest(&mut self) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        let was_reset = self.reader.read_to_end(&mut bytes).is_err();
        (bytes, was_reset)
    }

    /// Whether nothing has come that was not read.
    pub fn is_silent(&mut self) -> bool {
        let _ = self.reader.get_ref().set_nonblocking(true);
        let peeked = self.reader.get_ref().peek(&mut [0]);
        let _ = self.reader.get_ref().set_nonblocking(false);
        self.reader.buffer().is_empty() && peeked.is_err()
    }

    /// Says that no more will be sent (FIN).
    pub fn finish(&mut self) {
        let _ = self.reader.get_ref().shutdown(std::net::Shutdown::Write);
    }

    /// Makes the end of the script a reset.
    pub fn cut(&mut self) {
        sys::reset_on_close(self.reader.get_ref());
    }

    /// Waits until the peer closes, taking whatever it sends.
    pub fn until_closed(&mut self) {
        let _ = std::io::copy(&mut self.reader, &mut std::io::sink());
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        sys::reset_on_close(self.reader.get_ref());
    }
}

#[derive(Debug, Default)]
struct Record {
    accepted: AtomicUsize,
    requests: Mutex<Vec<Request>>,
}

/// A scripted upstream on a free port of 127.0.0.1.
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    record: Arc<Record>,
}

impl Upstream {
    /// Runs `script` for each connection, on a thread of its own.
    pub fn start(script: impl Fn(&mut Conn) -> Option<()> + Send + Sync + 'static) -> Self {
        Self::start_taking(move |mut conn| {
            let _ = script(&mut conn);
        })
    }

    fn start_taking(script: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port of 127.0.0.1 can be bound");
        let address = listener.local_addr().expect("a bound socket has an address");
        let record = Arc::new(Record::default());
        let (script, shared) = (Arc::new(script), Arc::clone(&record));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                // A test that hangs must end by its own deadline, and its threads some time after it.
                let _ = stream.set_read_timeout(Some(Duration::from_secs(120)));
                let _ = stream.set_nodelay(true);
                let record = Arc::clone(&shared);
                let conn = Conn { reader: BufReader::new(stream), record, keeps_bodies: true };
                let script = Arc::clone(&script);
                std::thread::spawn(move || script(conn));
            }
        });
        Self { address, record }
    }

    /// Answers every request with 200 and this body.
    pub fn answering(body: &'static str) -> Self {
        Self::start(move |conn| {
            loop {
                conn.request()?;
                conn.answer("200 OK", body)?;
            }
        })
    }

    /// Answers every request with 200 and its target as the body.
    pub fn echoing_targets() -> Self {
        Self::start(|conn| {
            loop {
                let request = conn.request()?;
                conn.answer("200 OK", request.target())?;
            }
        })
    }

    /// Takes each request whole, then sends these bytes and closes.
    pub fn sending(bytes: &'static [u8]) -> Self {
        Self::start(move |conn| {
            conn.request()?;
            conn.send(bytes)
        })
    }

    /// Resets each connection as soon as it is accepted.
    pub fn resetting_after_accept() -> Self {
        Self::start_taking(Conn::reset)
    }

    /// Takes the request and resets.
    pub fn resetting_after_request() -> Self {
        Self::start_taking(|mut conn| {
            let _ = conn.request();
            conn.reset();
        })
    }

    /// Takes the request and never answers.
    pub fn never_answering() -> Self {
        Self::start(|conn| {
            conn.request()?;
            conn.until_closed();
            Some(())
        })
    }

    /// Counts the body of each request, keeps none of it, and answers with the count.
    pub fn counting() -> Self {
        Self::start_taking(|mut conn| {
            conn.keeps_bodies = false;
            while let Some(request) = conn.request() {
                if conn.answer("200 OK", request.body_bytes.to_string()).is_none() {
                    return;
                }
            }
        })
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.record.accepted.load(Ordering::SeqCst)
    }

    /// Requests received so far.
    pub fn requests(&self) -> Vec<Request> {
        self.record.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last request received.
    #[track_caller]
    pub fn last_request(&self) -> Request {
        self.requests().pop().expect("the upstream got a request")
    }
}
