//! The client's view of an exchange.
//!
//! Owns: a request that has begun, and what comes of it. Does not own: the endpoint ([`super::served`]).

use super::{chunk, last_chunk, lines};
use crate::h2raw::{code, data, field, flag, headers, kind, reset, window_update};
use crate::hpack::List;
use crate::{Client, H2, H3};

/// An exchange at the client.
#[derive(Debug)]
pub enum Call {
    /// Over HTTP/1.1.
    #[allow(missing_docs, reason = "the parts of an exchange")]
    H1 { client: Client, method: String, is_chunked: bool },
    /// Over HTTP/2, on stream 1.
    #[allow(missing_docs, reason = "the parts of an exchange")]
    H2 { h2: H2 },
    /// Over HTTP/3. The body is read when it is asked for, and not before.
    H3(H3Call),
}

/// An exchange over HTTP/3.
#[derive(Debug)]
pub struct H3Call {
    h3: Box<H3>,
    id: u64,
    /// Heads that were asked for (count).
    heads: usize,
    /// Bytes of the body that were asked for.
    bytes: usize,
}

impl H3Call {
    /// Begins an exchange on a connection.
    pub fn begin(mut h3: Box<H3>, fields: &[(&str, &str)], is_end: bool) -> Self {
        let id = h3.begin(fields, is_end);
        h3.hold(id, true);
        Self { h3, id, heads: 0, bytes: 0 }
    }

    /// The next head; `None` when the stream ends before.
    fn head(&mut self) -> Option<List> {
        let Self { h3, id, heads, .. } = self;
        h3.until("a head", |h3| h3.got(*id).heads.len() > *heads || h3.is_over(*id));
        let list = h3.got(*id).heads.get(*heads)?.clone();
        *heads += 1;
        Some(list)
    }

    /// So many bytes more of the body.
    #[track_caller]
    fn piece(&mut self, count: usize) -> Vec<u8> {
        let Self { h3, id, bytes, .. } = self;
        let end = *bytes + count;
        h3.hold(*id, false);
        h3.until("a piece", |h3| h3.got(*id).body.len() >= end || h3.is_over(*id));
        h3.hold(*id, true);
        let piece = h3.got(*id).body.get(*bytes..end).expect("a piece").to_vec();
        *bytes = end;
        piece
    }
}

/// An answer, whole or as far as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The final status.
    pub status: u16,
    /// Fields, names in small letters.
    pub fields: List,
    /// The body.
    pub body: Vec<u8>,
    /// Trailers as lines, in small letters.
    pub trailers: String,
    /// It came to its end.
    pub is_whole: bool,
}

impl Answer {
    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        crate::hpack::find(&self.fields, name)
    }
}

impl Call {
    /// Sends a piece of the body; whether it was taken.
    pub fn data(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::H1 { client, is_chunked: true, .. } => client.try_send(chunk(bytes)),
            Self::H1 { client, .. } => client.try_send(bytes),
            Self::H2 { h2 } => h2.try_send(data(1, 0, bytes)),
            Self::H3(call) => call.h3.send(call.id, bytes, false),
        }
    }

    /// Ends the body.
    pub fn end(&mut self, trailers: &[(&str, &str)]) {
        let _taken = match self {
            Self::H1 { client, is_chunked: true, .. } => client.try_send(last_chunk(trailers)),
            Self::H1 { .. } => true,
            Self::H2 { h2 } if trailers.is_empty() => h2.try_send(data(1, flag::END_STREAM, b"")),
            Self::H2 { h2 } => h2.try_send(headers(1, flag::WHOLE, &block(trailers))),
            Self::H3(call) if trailers.is_empty() => call.h3.send(call.id, b"", true),
            Self::H3(call) => {
                call.h3.send_trailers(call.id, trailers);
                true
            }
        };
    }

    /// The next head: an interim one or the final one. Its status and fields.
    #[track_caller]
    pub fn head(&mut self) -> (u16, List) {
        match self {
            Self::H1 { client, .. } => {
                let head = client.head();
                let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
                let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
                (
                    status,
                    fields
                        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                        .collect(),
                )
            }
            Self::H2 { h2 } => loop {
                let frame = h2.frame().expect("a head");
                if let Some(mut fields) = h2.fields(&frame) {
                    if frame.has(flag::END_STREAM) {
                        // The body's end, for whoever looks for it.
                        fields.push((END.to_owned(), String::new()));
                    }
                    return split(fields);
                }
                assert_ne!(frame.kind, kind::RST_STREAM, "reset with {} before a head", frame.number(0));
            },
            Self::H3(call) => split(call.head().expect("a head")),
        }
    }

    /// The final answer; interim ones are passed over.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        loop {
            let (status, fields) = self.head();
            if status >= 200 {
                return self.rest(status, fields);
            }
        }
    }

    /// The final answer; `None` when the exchange ends without the head of one.
    #[track_caller]
    pub fn outcome(&mut self) -> Option<Answer> {
        match self {
            Self::H1 { client, .. } => client.has_bytes().then(|| self.answer()),
            Self::H2 { h2 } => loop {
                let frame = h2.frame()?;
                if frame.kind == kind::RST_STREAM {
                    return None;
                }
                let Some(mut fields) = h2.fields(&frame) else { continue };
                if frame.has(flag::END_STREAM) {
                    fields.push((END.to_owned(), String::new()));
                }
                let (status, fields) = split(fields);
                return Some(self.rest(status, fields));
            },
            Self::H3(call) => {
                let (status, fields) = split(call.head()?);
                Some(self.rest(status, fields))
            }
        }
    }

    /// What follows a final head, with all the window that it needs.
    #[track_caller]
    pub fn rest_with_window(&mut self, status: u16, fields: List) -> Answer {
        if let Self::H2 { h2 } = self {
            h2.send([window_update(0, 0x7fff_0000), window_update(1, 0x7fff_0000)].concat());
        }
        self.rest(status, fields)
    }

    /// What follows a final head.
    #[track_caller]
    pub fn rest(&mut self, status: u16, fields: List) -> Answer {
        let mut answer = Answer { status, fields, ..Answer::default() };
        match self {
            Self::H1 { client, method, .. } => {
                let lines: String =
                    answer.fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let response = client.body_after(format!("HTTP/1.1 {status}\r\n{lines}"), status, method);
                (answer.body, answer.is_whole) = (response.body, response.is_complete);
                answer.trailers = response.trailers.to_ascii_lowercase();
            }
            Self::H2 { h2 } => {
                let count = answer.fields.len();
                answer.fields.retain(|(name, _)| name != END);
                answer.is_whole = answer.fields.len() < count;
                while !answer.is_whole {
                    let Some(frame) = h2.frame() else { break };
                    if let Some(fields) = h2.fields(&frame) {
                        answer.trailers = lines(&fields);
                    }
                    match frame.kind {
                        kind::DATA => answer.body.extend(&frame.payload),
                        kind::HEADERS => {}
                        kind::RST_STREAM => break,
                        _ => continue,
                    }
                    answer.is_whole = frame.has(flag::END_STREAM);
                }
            }
            Self::H3(H3Call { h3, id, bytes, .. }) => {
                h3.hold(*id, false);
                let got = h3.outcome(*id);
                answer.body = got.body.get(*bytes..).unwrap_or_default().to_vec();
                (answer.trailers, answer.is_whole) = (lines(&got.trailers), got.is_whole);
            }
        }
        answer
    }

    /// The next piece of the answer's body, of which so many bytes have to come.
    #[track_caller]
    pub fn piece(&mut self, bytes: usize) -> Vec<u8> {
        match self {
            Self::H1 { client, .. } => client.chunk(bytes),
            Self::H2 { h2 } => {
                let mut piece = Vec::new();
                while piece.len() < bytes {
                    let frame = h2.next_of(kind::DATA).expect("a piece");
                    piece.extend(&frame.payload);
                }
                piece
            }
            Self::H3(call) => call.piece(bytes),
        }
    }

    /// Lets time pass at a client whose transport is in this process: packets are taken and acknowledged.
    pub fn turn(&mut self) {
        if let Self::H3(call) = self {
            call.h3.turn();
        }
    }

    /// Gives the exchange up: over HTTP/1.1 by a reset of TCP (a close may be the end of its sending side only), over
    /// the others by a reset of the stream. The connection of the latter stays, for as long as what is returned.
    pub fn cancel(self) -> Option<Self> {
        match self {
            Self::H1 { client, .. } => {
                client.reset();
                None
            }
            Self::H2 { mut h2 } => {
                h2.send(reset(1, code::CANCEL));
                Some(Self::H2 { h2 })
            }
            Self::H3(mut call) => {
                call.h3.cancel(call.id);
                Some(Self::H3(call))
            }
        }
    }
}

/// Marks the fields of a head that is all there is of an answer.
const END: &str = ":end";

/// The status of a head, and its fields.
#[track_caller]
fn split(mut fields: List) -> (u16, List) {
    let status = crate::hpack::find(&fields, ":status").and_then(|text| text.parse().ok());
    fields.retain(|(name, _)| name != ":status");
    (status.expect("a status"), fields)
}

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes())).collect()
}
