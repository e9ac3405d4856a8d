//! Scripted HTTP/2 endpoints (prior knowledge): a script decides what is sent, right or wrong.
//!
//! Owns: a listener, a thread for each connection, the bookkeeping that no script wants to do (prefaces,
//! acknowledgements, windows in both directions), a record of what was received. Does not own: frames
//! ([`crate::h2raw`]), or a real server.

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::PATIENCE;
use crate::h2raw::{H2, PREFACE, data, field, flag, frame, headers, kind, settings, window_update};
use crate::hpack::{List, find};

/// The most payload of one DATA frame that a peer takes unless it says otherwise (RFC 9113 section 4.2).
const FRAME_BYTES_MAX: i64 = 16_384;
/// Bodies above this many bytes are counted and not kept.
const KEPT_BODY_BYTES_MAX: usize = 64 << 20;

/// A request as the endpoint got it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct H2Request {
    /// Which connection it came by, counted from 0.
    pub connection: usize,
    /// Its stream.
    pub stream: u32,
    /// Pseudo-header fields and fields.
    pub fields: List,
    /// The body, unless it was too large to keep.
    pub body: Vec<u8>,
    /// Bytes of the body.
    pub body_bytes: u64,
    /// Trailer fields.
    pub trailers: List,
    /// It came whole.
    pub is_whole: bool,
}

impl H2Request {
    /// The value of the first field of this name, pseudo-header fields included.
    pub fn field(&self, name: &str) -> Option<&str> {
        find(&self.fields, name)
    }

    /// `:path`.
    pub fn path(&self) -> &str {
        self.field(":path").unwrap_or_default()
    }
}

/// What the gateway did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request began. Its fields are in [`H2Conn::stream`].
    Head(u32),
    /// A piece of its body came.
    Data(u32, Vec<u8>),
    /// A request is whole, trailers included. Follows the event that ended it.
    End(u32),
    /// The stream was reset with this code.
    Reset(u32, u32),
    /// GOAWAY with this code.
    GoAway(u32),
    /// An acknowledgement of our PING.
    Pong([u8; 8]),
}

impl Event {
    /// The stream that it is about.
    pub fn stream(&self) -> Option<u32> {
        match self {
            Self::Head(stream) | Self::Data(stream, _) | Self::End(stream) | Self::Reset(stream, _) => {
                Some(*stream)
            }
            Self::GoAway(_) | Self::Pong(_) => None,
        }
    }
}

/// One accepted connection, in the hands of a script.
#[derive(Debug)]
pub struct H2Conn {
    h2: H2,
    record: Arc<Record>,
    /// Which one it is, counted from 0.
    pub number: usize,
    /// Whether received bytes are given back to the windows at once.
    pub gives_windows: bool,
    /// Requests that have begun.
    streams: BTreeMap<u32, H2Request>,
    /// Seen while waiting for a window.
    seen: VecDeque<Event>,
    /// What the gateway lets us send, on the connection and on each stream.
    window: i64,
    windows: BTreeMap<u32, i64>,
    initial_window: i64,
}

impl H2Conn {
    /// What happens next; `None` when the connection ends, or when nothing happens for long.
    pub fn event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.seen.pop_front() {
                return Some(event);
            }
            self.step()?;
        }
    }

    /// What happens next on a stream; what happens on others waits.
    pub fn event_of(&mut self, stream: u32) -> Option<Event> {
        loop {
            if let Some(place) = self.seen.iter().position(|event| event.stream() == Some(stream)) {
                return self.seen.remove(place);
            }
            self.step()?;
        }
    }

    /// Reads one frame and notes what it means.
    fn step(&mut self) -> Option<()> {
        let received = self.h2.frame_within(12 * PATIENCE).ok()??;
        let stream = received.stream;
        let fields = self.h2.fields(&received);
        match received.kind {
            kind::SETTINGS if !received.has(flag::ACK) => {
                let initial = self.h2.settings.iter().find(|(id, _)| *id == 4);
                if let Some(&(_, initial)) = initial {
                    let more = i64::from(initial) - self.initial_window;
                    self.windows.values_mut().for_each(|window| *window += more);
                    self.initial_window = i64::from(initial);
                }
                self.send(frame(kind::SETTINGS, flag::ACK, 0, b""))?;
            }
            kind::PING if received.has(flag::ACK) => {
                self.seen.push_back(Event::Pong(received.payload.try_into().unwrap_or_default()));
            }
            kind::PING => self.send(frame(kind::PING, flag::ACK, 0, &received.payload))?,
            kind::WINDOW_UPDATE if stream == 0 => self.window += i64::from(received.number(0)),
            kind::WINDOW_UPDATE => *self.window_of(stream) += i64::from(received.number(0)),
            kind::RST_STREAM => {
                self.record.resets().push((self.number, stream, received.number(0)));
                self.seen.push_back(Event::Reset(stream, received.number(0)));
            }
            kind::GOAWAY => self.seen.push_back(Event::GoAway(received.number(4))),
            kind::DATA => self.take_data(stream, received.payload)?,
            _ => {}
        }
        if let Some(fields) = fields {
            let is_head = !self.streams.contains_key(&stream);
            let connection = self.number;
            let request = self.streams.entry(stream).or_default();
            if is_head {
                *request = H2Request { connection, stream, fields, ..H2Request::default() };
                self.record.begun.fetch_add(1, Ordering::SeqCst);
                self.seen.push_back(Event::Head(stream));
            } else {
                request.trailers = fields;
            }
        }
        // A block goes on in CONTINUATION; its HEADERS frame says whether the stream ends (RFC 9113 section 6.2).
        if matches!(received.kind, kind::HEADERS | kind::DATA)
            && received.flags & flag::END_STREAM != 0
            && let Some(request) = self.streams.get_mut(&stream)
        {
            request.is_whole = true;
            self.record.requests().push(request.clone());
            self.seen.push_back(Event::End(stream));
        }
        Some(())
    }

    fn take_data(&mut self, stream: u32, payload: Vec<u8>) -> Option<()> {
        if let Some(request) = self.streams.get_mut(&stream) {
            request.body_bytes += payload.len() as u64;
            if request.body.len() + payload.len() <= KEPT_BODY_BYTES_MAX {
                request.body.extend(&payload);
            }
        }
        if self.gives_windows && !payload.is_empty() {
            self.give_window(stream, payload.len() as u32)?;
        }
        self.seen.push_back(Event::Data(stream, payload));
        Some(())
    }

    /// Lets the gateway send so many bytes more, on the stream and on the connection.
    pub fn give_window(&mut self, stream: u32, bytes: u32) -> Option<()> {
        self.send([window_update(0, bytes), window_update(stream, bytes)].concat())
    }

    /// The request on a stream, as far as it came.
    #[track_caller]
    pub fn stream(&self, stream: u32) -> &H2Request {
        self.streams.get(&stream).expect("the stream has begun")
    }

    /// The next request whose head has come, whatever else happens before.
    pub fn head(&mut self) -> Option<H2Request> {
        loop {
            if let Event::Head(stream) = self.event()? {
                return self.streams.get(&stream).cloned();
            }
        }
    }

    /// The next request that is whole, whatever else happens before. Requests on other streams go on meanwhile.
    pub fn request(&mut self) -> Option<H2Request> {
        loop {
            if let Event::End(stream) = self.event()? {
                return self.streams.get(&stream).cloned();
            }
        }
    }

    /// Waits until the gateway resets a stream; the code. What happens on others waits.
    pub fn reset(&mut self, stream: u32) -> Option<u32> {
        loop {
            if let Event::Reset(_, code) = self.event_of(stream)? {
                return Some(code);
            }
        }
    }

    /// Sends bytes; `None` when the gateway takes no more.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Option<()> {
        self.h2.send_within(bytes, 12 * PATIENCE).then_some(())
    }

    /// Sends a head of an answer. `flags` beside END_HEADERS: [`flag::END_STREAM`] or 0.
    pub fn answer_head(
        &mut self,
        stream: u32,
        flags: u8,
        status: u16,
        fields: &[(&str, &str)],
    ) -> Option<()> {
        let status = status.to_string();
        let all = [&[(":status", status.as_str())], fields].concat();
        self.send(headers(stream, flags | flag::END_HEADERS, &block(&all)))
    }

    /// Sends trailers.
    pub fn answer_trailers(&mut self, stream: u32, fields: &[(&str, &str)]) -> Option<()> {
        self.send(headers(stream, flag::WHOLE, &block(fields)))
    }

    /// Sends a piece of a body as the windows allow, waiting for them; `None` when they do not open, or when the stream
    /// was reset meanwhile (which [`Self::event`] still tells).
    pub fn answer_data(&mut self, stream: u32, flags: u8, bytes: &[u8]) -> Option<()> {
        let mut rest = bytes;
        loop {
            let room = (*self.window_of(stream)).min(self.window).clamp(0, FRAME_BYTES_MAX);
            let count = rest.len().min(room as usize);
            if count == 0 && !rest.is_empty() {
                self.step()?;
                if self.seen.iter().any(|event| matches!(event, Event::Reset(of, _) if *of == stream)) {
                    return None;
                }
                continue;
            }
            let (part, left) = rest.split_at(count);
            rest = left;
            self.window -= count as i64;
            *self.window_of(stream) -= count as i64;
            self.send(data(stream, if rest.is_empty() { flags } else { 0 }, part))?;
            if rest.is_empty() {
                return Some(());
            }
        }
    }

    /// Sends a whole answer with a length.
    pub fn answer(&mut self, stream: u32, status: u16, body: impl AsRef<[u8]>) -> Option<()> {
        let body = body.as_ref();
        self.answer_head(stream, 0, status, &[("content-length", &body.len().to_string())])?;
        self.answer_data(stream, flag::END_STREAM, body)
    }

    /// Waits until the gateway closes, taking whatever it sends.
    pub fn until_closed(&mut self) {
        while self.event().is_some() {}
    }

    fn window_of(&mut self, stream: u32) -> &mut i64 {
        self.windows.entry(stream).or_insert(self.initial_window)
    }
}

/// A field block without compression.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes())).collect()
}

#[derive(Debug, Default)]
struct Record {
    accepted: AtomicUsize,
    begun: AtomicUsize,
    requests: Mutex<Vec<H2Request>>,
    resets: Mutex<Vec<(usize, u32, u32)>>,
}

impl Record {
    fn requests(&self) -> std::sync::MutexGuard<'_, Vec<H2Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resets(&self) -> std::sync::MutexGuard<'_, Vec<(usize, u32, u32)>> {
        self.resets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A scripted endpoint on a free port of 127.0.0.1.
#[derive(Debug)]
pub struct H2Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    record: Arc<Record>,
}

impl H2Endpoint {
    /// Runs `script` for each connection, on a thread of its own. When it returns, the connection is closed.
    pub fn start(script: impl Fn(&mut H2Conn) -> Option<()> + Send + Sync + 'static) -> Self {
        Self::start_with(&[], script)
    }

    /// The same, announcing these settings.
    pub fn start_with(
        announced: &[(u16, u32)],
        script: impl Fn(&mut H2Conn) -> Option<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port of 127.0.0.1 can be bound");
        let address = listener.local_addr().expect("a bound socket has an address");
        let record = Arc::new(Record::default());
        let (script, shared, announced) = (Arc::new(script), Arc::clone(&record), settings(announced));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, announced) = (Arc::clone(&script), announced.clone());
                let mut conn = H2Conn {
                    h2: H2::over(stream),
                    number: shared.accepted.fetch_add(1, Ordering::SeqCst),
                    record: Arc::clone(&shared),
                    gives_windows: true,
                    streams: BTreeMap::new(),
                    seen: VecDeque::new(),
                    window: 65_535,
                    windows: BTreeMap::new(),
                    initial_window: 65_535,
                };
                std::thread::spawn(move || {
                    let is_preface = conn.h2.bytes(PREFACE.len()).is_some_and(|bytes| bytes == PREFACE);
                    if is_preface && conn.send(announced).is_some() {
                        let _ = script(&mut conn);
                    }
                });
            }
        });
        Self { address, record }
    }

    /// Answers every request with 200 and this body.
    pub fn answering(body: &'static str) -> Self {
        Self::start(move |conn| {
            loop {
                let request = conn.request()?;
                conn.answer(request.stream, 200, body)?;
            }
        })
    }

    /// Answers every request with 200 and sends back what comes, as it comes, trailers too.
    pub fn echoing() -> Self {
        Self::start(|conn| {
            loop {
                match conn.event()? {
                    Event::Head(stream) => conn.answer_head(stream, 0, 200, &[])?,
                    // A stream that was reset is told of by its own event.
                    Event::Data(stream, bytes) => drop(conn.answer_data(stream, 0, &bytes)),
                    Event::End(stream) => {
                        let trailers = conn.stream(stream).trailers.clone();
                        let trailers: Vec<_> =
                            trailers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                        if trailers.is_empty() {
                            conn.send(data(stream, flag::END_STREAM, b""))?;
                        } else {
                            conn.answer_trailers(stream, &trailers)?;
                        }
                    }
                    _ => {}
                }
            }
        })
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.record.accepted.load(Ordering::SeqCst)
    }

    /// Requests whose head has come so far.
    pub fn begun(&self) -> usize {
        self.record.begun.load(Ordering::SeqCst)
    }

    /// Requests that came whole so far, in the order of their ends.
    pub fn requests(&self) -> Vec<H2Request> {
        self.record.requests().clone()
    }

    /// The last request that came whole.
    #[track_caller]
    pub fn last_request(&self) -> H2Request {
        self.requests().pop().expect("the endpoint got a request")
    }

    /// Streams that the gateway reset so far: connection, stream, code.
    pub fn resets(&self) -> Vec<(usize, u32, u32)> {
        self.record.resets().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, H2Endpoint};
    use crate::h2raw::{
        H2, Outcome, code, data, field, flag, get, headers, kind, ping, request, reset, window_update,
    };
    use crate::{PATIENCE, wait_until};

    #[test]
    fn it_echoes_as_the_windows_allow() {
        let endpoint = H2Endpoint::echoing();
        let mut h2 = H2::connect_with(endpoint.address, &[(4, 3)]);
        h2.send(headers(1, flag::END_HEADERS, &request("POST", "/x", &[])));
        assert_eq!(h2.outcome(1), Outcome::Answer(200));
        h2.send(data(1, 0, b"four5"));
        assert_eq!(h2.next_of(kind::DATA).map(|frame| frame.payload), Some(b"fou".to_vec()));
        h2.send(ping(b"12345678"));
        while let Some(frame) = h2.frame()
            && frame.kind != kind::PING
        {
            assert_eq!(frame.kind, kind::WINDOW_UPDATE, "no window, no data");
        }
        h2.send(window_update(1, 100));
        assert_eq!(h2.next_of(kind::DATA).map(|frame| frame.payload), Some(b"r5".to_vec()));
        h2.send(headers(1, flag::WHOLE, &field(b"x-sum", b"9")));
        assert_eq!(h2.next_of(kind::HEADERS).map(|frame| frame.flags), Some(flag::WHOLE));
        let seen = endpoint.last_request();
        assert_eq!((seen.path(), seen.body.as_slice(), seen.trailers.len()), ("/x", &b"four5"[..], 1));
    }

    #[test]
    fn a_script_says_what_happens_on_each_stream() {
        let endpoint = H2Endpoint::start_with(&[(3, 7)], |conn| {
            loop {
                match conn.event()? {
                    Event::End(1) => conn.answer(1, 200, "one")?,
                    Event::End(stream @ 3) => conn.send(reset(stream, code::REFUSED_STREAM))?,
                    Event::Reset(stream, code) => {
                        return conn.send(crate::h2raw::goaway(stream, code));
                    }
                    _ => {}
                }
            }
        });
        let mut h2 = H2::connect(endpoint.address);
        assert_eq!(h2.settings, [(3, 7)]);
        h2.send([get(1, "/a"), get(3, "/b"), get(5, "/c"), reset(5, code::CANCEL)].concat());
        assert_eq!((h2.outcome(1), h2.body(1)), (Outcome::Answer(200), b"one".to_vec()));
        assert_eq!(h2.outcome(3), Outcome::Reset(code::REFUSED_STREAM));
        assert_eq!(h2.outcome(5), Outcome::GoAway(code::CANCEL));
        assert!(h2.ends());
        assert_eq!((endpoint.accepted(), endpoint.begun()), (1, 3));
        wait_until("it is on record", PATIENCE, || endpoint.resets() == [(0, 5, code::CANCEL)]);
    }
}
