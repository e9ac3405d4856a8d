//! Reading and writing HTTP/1 in the simulation, apart from the gateway's codec, so that a mistake in
//! one cannot hide a mistake in the other. Simple and strict: it is used to check.
//!
//! Owns: the raw connection, the trace of its bytes. Does not own: what a message should have said
//! (`oracle.rs`).
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::runtime::{Handle, TcpStream};

/// Why nothing more can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The stream ended in order.
    Ended,
    /// The connection was reset.
    Reset,
    /// What came is not HTTP.
    Malformed(String),
}

/// A hash of all bytes that were exchanged and their virtual times (FNV-1a).
#[derive(Clone, Default)]
pub(super) struct Trace(Rc<Cell<u64>>);

impl Trace {
    pub(super) fn note(&self, now_ns: u64, end: u64, bytes: &[u8]) {
        let mut hash = self.0.get() ^ 0xCBF2_9CE4_8422_2325;
        let numbers = [now_ns, end, bytes.len() as u64];
        for byte in numbers.iter().flat_map(|number| number.to_le_bytes()).chain(bytes.iter().copied()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        self.0.set(hash);
    }

    pub(super) fn hash(&self) -> u64 {
        self.0.get()
    }
}

/// A head: its first line and its fields, names in lower case.
#[derive(Clone, Debug, Default)]
pub(super) struct Head {
    pub(super) start: String,
    pub(super) fields: Vec<(String, String)>,
}

impl Head {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn count(&self, name: &str) -> usize {
        self.fields.iter().filter(|(other, _)| other == name).count()
    }

    pub(super) fn says(&self, name: &str, token: &str) -> bool {
        let mut values = self.fields.iter().filter(|(other, _)| other == name);
        values.any(|(_, value)| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    }

    pub(super) fn length(&self) -> Result<Option<usize>, Fault> {
        match (self.count("content-length"), self.get("content-length")) {
            (0, _) => Ok(None),
            (1, Some(text)) => {
                text.parse().map(Some).map_err(|_| Fault::Malformed(format!("length {text:?}")))
            }
            _ => Err(Fault::Malformed("several lengths".to_owned())),
        }
    }
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Nothing,
    Length(usize),
    Chunked,
    UntilEnd,
}

/// One end of a raw connection.
pub(super) struct Wire {
    pub(super) stream: Rc<TcpStream>,
    pub(super) handle: Handle,
    unread: Vec<u8>,
    trace: Trace,
    end: u64,
    /// A slow reader sleeps so long after each 4 KiB.
    pub(super) pause: Option<Duration>,
    since_pause: usize,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, trace: &Trace, end: u64) -> Self {
        let handle = stream.handle().clone();
        let trace = trace.clone();
        Self { stream: Rc::new(stream), handle, unread: Vec::new(), trace, end, pause: None, since_pause: 0 }
    }

    /// Takes what comes next into the buffer.
    async fn fill(&mut self) -> Result<(), Fault> {
        if let Some(pause) = self.pause
            && self.since_pause >= 4096
        {
            self.since_pause = 0;
            self.handle.sleep(pause).await;
        }
        let received = self.stream.receive().await;
        let now_ns = self.handle.now_ns();
        match received {
            Ok(Some(chunk)) => {
                self.trace.note(now_ns, self.end, &chunk);
                self.since_pause += chunk.len();
                self.unread.extend_from_slice(&chunk);
                Ok(())
            }
            Ok(None) => {
                self.trace.note(now_ns, self.end | 1 << 62, b"");
                Err(Fault::Ended)
            }
            Err(error) => {
                self.trace.note(now_ns, self.end | 1 << 63, b"");
                match error.kind() {
                    io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Err(Fault::Reset),
                    kind => Err(Fault::Malformed(format!("receive: {kind}"))),
                }
            }
        }
    }

    async fn line(&mut self) -> Result<String, Fault> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let line =
                    line.strip_suffix(b"\r\n").ok_or_else(|| Fault::Malformed("bare LF".to_owned()))?;
                return String::from_utf8(line.to_vec()).map_err(|_| Fault::Malformed("bytes".to_owned()));
            }
            if self.unread.len() > 1 << 20 {
                return Err(Fault::Malformed("an endless line".to_owned()));
            }
            self.fill().await?;
        }
    }

    async fn fields(&mut self) -> Result<Vec<(String, String)>, Fault> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) =
                line.split_once(':').ok_or_else(|| Fault::Malformed(format!("field line {line:?}")))?;
            if name.is_empty() || name.contains([' ', '\t']) {
                return Err(Fault::Malformed(format!("field name {name:?}")));
            }
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// Reads a head. [`Fault::Ended`] and [`Fault::Reset`] come for a connection that ended before it
    /// was complete; `has_begun` then tells whether a part of it came.
    pub(super) async fn head(&mut self) -> Result<Head, Fault> {
        let start = self.line().await?;
        let fields = self.fields().await?;
        Ok(Head { start, fields })
    }

    /// Reads a body, adding what comes to `into` even when it does not come whole, and its trailers.
    pub(super) async fn body(
        &mut self,
        framing: Framing,
        into: &mut Vec<u8>,
    ) -> Result<Vec<(String, String)>, Fault> {
        match framing {
            Framing::Nothing => Ok(Vec::new()),
            Framing::Length(length) => self.exact(length, into).await.map(|()| Vec::new()),
            Framing::UntilEnd => loop {
                into.append(&mut self.unread);
                match self.fill().await {
                    Ok(()) => {}
                    Err(Fault::Ended) => return Ok(Vec::new()),
                    Err(fault) => return Err(fault),
                }
            },
            Framing::Chunked => loop {
                let line = self.line().await?;
                let digits = line.split(';').next().unwrap_or_default();
                let length = usize::from_str_radix(digits, 16)
                    .map_err(|_| Fault::Malformed(format!("chunk size {line:?}")))?;
                if length == 0 {
                    return self.fields().await;
                }
                self.exact(length, into).await?;
                if !self.line().await?.is_empty() {
                    return Err(Fault::Malformed("chunk data that is too long".to_owned()));
                }
            },
        }
    }

    async fn exact(&mut self, length: usize, into: &mut Vec<u8>) -> Result<(), Fault> {
        let mut left = length;
        while left > 0 {
            if self.unread.is_empty() {
                self.fill().await?;
            }
            let taken = left.min(self.unread.len());
            into.extend(self.unread.drain(..taken));
            left -= taken;
        }
        Ok(())
    }

    /// Reads to the end and says what came and how it ended.
    pub(super) async fn rest(&mut self) -> (Vec<u8>, Fault) {
        loop {
            if let Err(fault) = self.fill().await {
                return (std::mem::take(&mut self.unread), fault);
            }
        }
    }

    pub(super) fn sender(&self) -> Sender {
        Sender { stream: Rc::clone(&self.stream), trace: self.trace.clone(), end: self.end | 1 << 61 }
    }

    pub(super) async fn send(&self, bytes: &[u8]) -> Result<(), Fault> {
        self.sender().send(bytes).await
    }
}

/// The sending half, for a task of its own.
pub(super) struct Sender {
    pub(super) stream: Rc<TcpStream>,
    trace: Trace,
    end: u64,
}

impl Sender {
    /// Sends, held back by the peer.
    pub(super) async fn send(&self, bytes: &[u8]) -> Result<(), Fault> {
        for piece in bytes.chunks(4096) {
            self.stream.writable().await.map_err(|_| Fault::Reset)?;
            self.stream.write_with(|out| out.extend_from_slice(piece)).map_err(|_| Fault::Reset)?;
            self.trace.note(self.stream.handle().now_ns(), self.end, piece);
        }
        Ok(())
    }
}
