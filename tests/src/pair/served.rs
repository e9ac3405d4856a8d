//! The endpoint's view of an exchange.
//!
//! Owns: a request at an endpoint, and what is answered. Does not own: the client ([`super::call`]).

use std::net::SocketAddr;

use super::{Length, chunk, last_chunk, lines};
use crate::h2endpoint::{Event, H2Conn};
use crate::h2raw::{code, data, flag, reset};
use crate::upstream::{Conn, Request};
use crate::{H2Endpoint, Upstream};

/// An endpoint of either kind.
#[derive(Debug)]
pub enum Endpoint {
    /// HTTP/1.1.
    H1(Upstream),
    /// HTTP/2.
    H2(H2Endpoint),
}

impl Endpoint {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::H1(upstream) => upstream.address,
            Self::H2(endpoint) => endpoint.address,
        }
    }
}

/// A request at an endpoint.
pub enum Served<'a> {
    /// Over HTTP/1.1.
    #[allow(missing_docs, reason = "the parts of an exchange")]
    H1 { conn: &'a mut Conn, head: Request, is_chunked: bool },
    /// Over HTTP/2.
    #[allow(missing_docs, reason = "the parts of an exchange")]
    H2 { conn: &'a mut H2Conn, stream: u32 },
}

impl Served<'_> {
    /// The request's method.
    pub fn method(&self) -> String {
        match self {
            Self::H1 { head, .. } => head.head.split(' ').next().unwrap_or_default().to_owned(),
            Self::H2 { conn, stream } => conn.stream(*stream).field(":method").unwrap_or_default().to_owned(),
        }
    }

    /// The request's path.
    pub fn path(&self) -> String {
        match self {
            Self::H1 { head, .. } => head.target().to_owned(),
            Self::H2 { conn, stream } => conn.stream(*stream).path().to_owned(),
        }
    }

    /// The value of a field of the request.
    pub fn field(&self, name: &str) -> Option<String> {
        match self {
            Self::H1 { head, .. } => head.field(name).map(str::to_owned),
            Self::H2 { conn, stream } => conn.stream(*stream).field(name).map(str::to_owned),
        }
    }

    /// The rest of the request's body, and its trailers as lines; `None` when it breaks off.
    pub fn body(&mut self) -> Option<(Vec<u8>, String)> {
        match self {
            Self::H1 { conn, head, .. } => {
                conn.body(head)?;
                Some((std::mem::take(&mut head.body), head.trailers.to_ascii_lowercase()))
            }
            Self::H2 { conn, stream } => {
                while !conn.stream(*stream).is_whole {
                    if let Event::Reset(..) = conn.event_of(*stream)? {
                        return None;
                    }
                }
                let request = conn.stream(*stream);
                Some((request.body.clone(), lines(&request.trailers)))
            }
        }
    }

    /// The next piece of the body, as it comes; `None` at its end.
    pub fn piece(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::H1 { conn, .. } => conn.chunk(),
            Self::H2 { conn, stream } => loop {
                match conn.event_of(*stream)? {
                    Event::Data(_, bytes) if !bytes.is_empty() => return Some(bytes),
                    Event::End(_) | Event::Reset(..) => return None,
                    _ => {}
                }
            },
        }
    }

    /// Sends an interim answer.
    pub fn interim(&mut self, status: u16, fields: &[(&str, &str)]) -> Option<()> {
        match self {
            Self::H1 { conn, .. } => conn.send(head(status, fields)),
            Self::H2 { conn, stream } => conn.answer_head(*stream, 0, status, fields),
        }
    }

    /// Sends the head of the answer.
    pub fn head(&mut self, status: u16, fields: &[(&str, &str)], length: Length) -> Option<()> {
        let mut fields = fields.to_vec();
        let digits;
        if let Length::Known(bytes) = length {
            digits = bytes.to_string();
            fields.push(("content-length", &digits));
        }
        match self {
            Self::H1 { conn, is_chunked, .. } => {
                *is_chunked = length == Length::Unknown;
                if *is_chunked {
                    fields.push(("transfer-encoding", "chunked"));
                }
                conn.send(head(status, &fields))
            }
            Self::H2 { conn, stream } => {
                let flags = if length == Length::None { flag::END_STREAM } else { 0 };
                conn.answer_head(*stream, flags, status, &fields)
            }
        }
    }

    /// Sends a piece of the body.
    pub fn data(&mut self, bytes: &[u8]) -> Option<()> {
        match self {
            Self::H1 { conn, is_chunked: true, .. } => conn.send(chunk(bytes)),
            Self::H1 { conn, .. } => conn.send(bytes),
            Self::H2 { conn, stream } => conn.answer_data(*stream, 0, bytes),
        }
    }

    /// Ends the body.
    pub fn end(&mut self, trailers: &[(&str, &str)]) -> Option<()> {
        match self {
            Self::H1 { conn, is_chunked: true, .. } => conn.send(last_chunk(trailers)),
            Self::H1 { .. } => Some(()),
            Self::H2 { conn, stream } if trailers.is_empty() => {
                conn.send(data(*stream, flag::END_STREAM, b""))
            }
            Self::H2 { conn, stream } => conn.answer_trailers(*stream, trailers),
        }
    }

    /// Breaks the exchange off. Over HTTP/1.1 the connection ends with it.
    pub fn break_off(&mut self) -> Option<()> {
        match self {
            Self::H1 { .. } => None,
            Self::H2 { conn, stream } => conn.send(reset(*stream, code::INTERNAL_ERROR)),
        }
    }

    /// Waits until the gateway has given the exchange up.
    pub fn until_given_up(&mut self) {
        match self {
            Self::H1 { conn, .. } => conn.until_closed(),
            Self::H2 { conn, stream } => drop(conn.reset(*stream)),
        }
    }
}

fn head(status: u16, fields: &[(&str, &str)]) -> String {
    let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {status} X\r\n{lines}\r\n")
}
