//! A raw HTTP/2 client: frames out, frames in, a deadline on everything.
//!
//! Owns: building frames and HPACK blocks byte by byte, right or wrong, and reading what comes back. It keeps no rule
//! of RFC 9113 by itself. Does not own: reading HPACK ([`crate::hpack`]), the other side ([`crate::h2endpoint`]), load,
//! or a real client.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::PATIENCE;
use crate::hpack::{Decoder, List, find};

/// The client connection preface (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (RFC 9113 section 6).
#[allow(missing_docs, reason = "the names are those of the RFC")]
pub mod kind {
    pub const DATA: u8 = 0x0;
    pub const HEADERS: u8 = 0x1;
    pub const PRIORITY: u8 = 0x2;
    pub const RST_STREAM: u8 = 0x3;
    pub const SETTINGS: u8 = 0x4;
    pub const PUSH_PROMISE: u8 = 0x5;
    pub const PING: u8 = 0x6;
    pub const GOAWAY: u8 = 0x7;
    pub const WINDOW_UPDATE: u8 = 0x8;
    pub const CONTINUATION: u8 = 0x9;
}

/// Flags (RFC 9113 section 6).
#[allow(missing_docs, reason = "the names are those of the RFC")]
pub mod flag {
    pub const END_STREAM: u8 = 0x1;
    pub const ACK: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
    /// END_STREAM and END_HEADERS: a request without a body.
    pub const WHOLE: u8 = 0x5;
}

/// Error codes (RFC 9113 section 7).
#[allow(missing_docs, reason = "the names are those of the RFC")]
pub mod code {
    pub const NO_ERROR: u32 = 0x0;
    pub const PROTOCOL_ERROR: u32 = 0x1;
    pub const INTERNAL_ERROR: u32 = 0x2;
    pub const FLOW_CONTROL_ERROR: u32 = 0x3;
    pub const STREAM_CLOSED: u32 = 0x5;
    pub const FRAME_SIZE_ERROR: u32 = 0x6;
    pub const REFUSED_STREAM: u32 = 0x7;
    pub const CANCEL: u32 = 0x8;
    pub const COMPRESSION_ERROR: u32 = 0x9;
    pub const ENHANCE_YOUR_CALM: u32 = 0xb;
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// See [`kind`].
    pub kind: u8,
    /// See [`flag`].
    pub flags: u8,
    /// The stream.
    pub stream: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The 32-bit number at this place of the payload; 0 beyond its end.
    pub fn number(&self, at: usize) -> u32 {
        self.payload
            .get(at..at + 4)
            .map_or(0, |bytes| u32::from_be_bytes(bytes.try_into().unwrap_or_default()))
    }

    /// Whether any of the flags is set.
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}

/// A frame on the wire. The length is the payload's, the type and flags whatever is given.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// HEADERS.
pub fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(kind::HEADERS, flags, stream, block)
}

/// DATA.
pub fn data(stream: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    frame(kind::DATA, flags, stream, payload)
}

/// SETTINGS with these entries.
pub fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = entries
        .iter()
        .flat_map(|(id, value)| [id.to_be_bytes().as_slice(), &value.to_be_bytes()].concat())
        .collect();
    frame(kind::SETTINGS, 0, 0, &payload)
}

/// WINDOW_UPDATE.
pub fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

/// RST_STREAM.
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// GOAWAY.
pub fn goaway(last_stream: u32, code: u32) -> Vec<u8> {
    frame(kind::GOAWAY, 0, 0, &[last_stream.to_be_bytes(), code.to_be_bytes()].concat())
}

/// PING.
pub fn ping(payload: &[u8; 8]) -> Vec<u8> {
    frame(kind::PING, 0, 0, payload)
}

/// A field as a literal that is not indexed, with a new name and no Huffman code (RFC 7541 section 6.2.2).
pub fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0][..], &string(name), &string(value)].concat()
}

/// The same, to be added to the dynamic table (RFC 7541 section 6.2.1).
pub fn field_indexed(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0x40][..], &string(name), &string(value)].concat()
}

/// A string without Huffman code (RFC 7541 section 5.2).
pub fn string(text: &[u8]) -> Vec<u8> {
    let mut bytes = integer(text.len(), 7, 0);
    bytes.extend(text);
    bytes
}

/// An integer with a prefix of so many bits, the bits above them given (RFC 7541 section 5.1).
pub fn integer(value: usize, prefix_bits: u32, above: u8) -> Vec<u8> {
    let most = (1_usize << prefix_bits) - 1;
    if value < most {
        return vec![above | value as u8];
    }
    let mut bytes = vec![above | most as u8];
    let mut left = value - most;
    while left >= 128 {
        bytes.push((left % 128) as u8 | 0x80);
        left /= 128;
    }
    bytes.push(left as u8);
    bytes
}

/// The block of a request, from the pseudo-header fields and what follows them.
pub fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut block = [
        field(b":method", method.as_bytes()),
        field(b":scheme", b"http"),
        field(b":authority", b"test"),
        field(b":path", path.as_bytes()),
    ]
    .concat();
    for (name, value) in more {
        block.extend(field(name.as_bytes(), value.as_bytes()));
    }
    block
}

/// A GET without a body, whole.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    headers(stream, flag::WHOLE, &request("GET", path, &[]))
}

/// What came of a stream, or of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A final answer with this status.
    Answer(u16),
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY with this code.
    GoAway(u32),
    /// The connection ended without a word.
    Closed,
    /// Nothing of the kind came in time.
    Silence,
}

/// Nothing came in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout;

/// One connection.
#[derive(Debug)]
pub struct H2 {
    stream: TcpStream,
    received: VecDeque<u8>,
    decoder: Decoder,
    /// Heads begun that are not complete.
    block: Vec<u8>,
    /// The settings that the server announced.
    pub settings: Vec<(u16, u32)>,
}

impl H2 {
    /// Connects and sends nothing.
    #[track_caller]
    pub fn bare(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)
            .unwrap_or_else(|error| panic!("{address} does not take connections: {error}"));
        Self::over(stream)
    }

    /// Takes a connection over, on either side of it, and sends nothing.
    pub(crate) fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket can be set");
        Self {
            stream,
            received: VecDeque::new(),
            decoder: Decoder::default(),
            block: Vec::new(),
            settings: Vec::new(),
        }
    }

    /// Takes so many bytes that are no frame; `None` when the connection ends before.
    pub(crate) fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a socket can be set");
        self.stream.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Connects, exchanges prefaces and acknowledges the server's settings.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, &[])
    }

    /// The same with settings.
    #[track_caller]
    pub fn connect_with(address: SocketAddr, entries: &[(u16, u32)]) -> Self {
        let mut h2 = Self::bare(address);
        h2.send([PREFACE, &settings(entries)].concat());
        loop {
            let frame = h2.frame().expect("the server answers the preface");
            if frame.kind == kind::SETTINGS && frame.has(flag::ACK) {
                break;
            }
        }
        h2.send(frame(kind::SETTINGS, flag::ACK, 0, b""));
        h2
    }

    /// Sends all of it.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the peer takes what is sent");
    }

    /// Sends what the peer still takes; whether that was all.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.send_within(bytes, Duration::from_secs(1))
    }

    /// The same with a limit on how long nothing is taken.
    pub fn send_within(&mut self, bytes: impl AsRef<[u8]>, limit: Duration) -> bool {
        let _ = self.stream.set_write_timeout(Some(limit));
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Another hold on the connection, to send on from another thread.
    pub fn sender(&self) -> TcpStream {
        self.stream.try_clone().expect("a socket can be duplicated")
    }

    /// Closes with a reset of TCP.
    pub fn abort(self) {
        crate::sys::reset_on_close(&self.stream);
    }

    /// Says that no more will be sent.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next frame; `None` at the end of the connection.
    #[track_caller]
    pub fn frame(&mut self) -> Option<Frame> {
        self.frame_within(PATIENCE).unwrap_or_else(|Timeout| panic!("no frame within {PATIENCE:?}"))
    }

    /// The next frame.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn frame_within(&mut self, limit: Duration) -> Result<Option<Frame>, Timeout> {
        let deadline = Instant::now() + limit;
        let mut room = Vec::new();
        loop {
            if let Some(frame) = self.take_frame() {
                if frame.kind == kind::SETTINGS && !frame.has(flag::ACK) {
                    self.settings = frame
                        .payload
                        .chunks_exact(6)
                        .map(|entry| {
                            (
                                u16::from_be_bytes([entry[0], entry[1]]),
                                Frame { payload: entry[2..].to_vec(), ..frame.clone() }.number(0),
                            )
                        })
                        .collect();
                }
                return Ok(Some(frame));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Timeout);
            }
            self.stream.set_read_timeout(Some(left)).expect("a socket can be set");
            room.resize(64 * 1024, 0);
            match self.stream.read(&mut room) {
                Ok(0) => return Ok(None),
                Ok(count) => self.received.extend(&room[..count]),
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock
                            | std::io::ErrorKind::TimedOut
                            | std::io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => return Ok(None),
            }
        }
    }

    fn take_frame(&mut self) -> Option<Frame> {
        let bytes = self.received.make_contiguous();
        let header = bytes.get(..9)?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let (kind, flags) = (header[3], header[4]);
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]) & 0x7fff_ffff;
        let payload = bytes.get(9..9 + length)?.to_vec();
        self.received.drain(..9 + length);
        Some(Frame { kind, flags, stream, payload })
    }

    /// The fields of the head or of the trailers that this frame completes, if it completes any. Every HEADERS and
    /// CONTINUATION frame has to pass here in order.
    pub fn fields(&mut self, frame: &Frame) -> Option<List> {
        if !matches!(frame.kind, kind::HEADERS | kind::CONTINUATION) {
            return None;
        }
        self.block.extend(&frame.payload);
        if !frame.has(flag::END_HEADERS) {
            return None;
        }
        let block = std::mem::take(&mut self.block);
        Some(self.decoder.block(&block).expect("the peer writes field blocks right"))
    }

    /// The status of the head that this frame completes, as [`Self::fields`].
    pub fn status(&mut self, frame: &Frame) -> Option<u16> {
        let fields = self.fields(frame)?;
        find(&fields, ":status")?.parse().ok()
    }

    /// Reads until a stream has its final answer's head or a reset, or the connection ends.
    #[track_caller]
    pub fn outcome(&mut self, stream: u32) -> Outcome {
        loop {
            let frame = match self.frame_within(PATIENCE) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Outcome::Closed,
                Err(Timeout) => return Outcome::Silence,
            };
            let status = self.status(&frame);
            match frame.kind {
                kind::GOAWAY if frame.number(4) != code::NO_ERROR => return Outcome::GoAway(frame.number(4)),
                kind::RST_STREAM if frame.stream == stream => return Outcome::Reset(frame.number(0)),
                kind::HEADERS | kind::CONTINUATION if frame.stream == stream => {
                    if let Some(status) = status
                        && status >= 200
                    {
                        return Outcome::Answer(status);
                    }
                }
                _ => {}
            }
        }
    }

    /// The next frame of a kind; `None` when the connection ends before.
    #[track_caller]
    pub fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.frame()?;
            self.status(&frame);
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// The rest of a stream's DATA after its head, to END_STREAM. Nothing is given back to the windows.
    #[track_caller]
    pub fn body(&mut self, stream: u32) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let frame = self.frame().expect("the stream ends before the connection");
            self.status(&frame);
            if frame.stream != stream {
                continue;
            }
            if frame.kind == kind::DATA {
                body.extend(&frame.payload);
            }
            if matches!(frame.kind, kind::DATA | kind::HEADERS) && frame.has(flag::END_STREAM) {
                return body;
            }
        }
    }

    /// The code of the GOAWAY that ends the connection; `None` when it ends without one.
    #[track_caller]
    pub fn goaway(&mut self) -> Option<u32> {
        loop {
            let frame = self.frame()?;
            if frame.kind == kind::GOAWAY && frame.number(4) != code::NO_ERROR {
                return Some(frame.number(4));
            }
        }
    }

    /// Whether the connection ends, whatever comes before.
    #[track_caller]
    pub fn ends(&mut self) -> bool {
        while self.frame().is_some() {}
        true
    }
}
