//! One exchange in the hands of a test, whatever protocol either side speaks.
//!
//! Owns: a client's and an endpoint's view of an exchange over HTTP/1.1 and HTTP/2, raw: nothing is sent that a test
//! does not ask for. Does not own: bytes and frames ([`crate::client`], [`crate::upstream`], [`crate::h2raw`],
//! [`crate::h2endpoint`]), large bodies (windows of a client are not kept: 65,535 bytes each way).

use std::net::SocketAddr;

use crate::gateway::one_upstream;
use crate::h2endpoint::{Event, H2Conn};
use crate::h2raw::{code, data, field, flag, headers, kind, request, reset, window_update};
use crate::hpack::List;
use crate::upstream::{Conn, Request};
use crate::{Cell, Client, Gateway, H2, H2Endpoint, Setup, Upstream};

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1.
    H1,
    /// HTTP/2 with prior knowledge.
    H2,
}

/// What both sides speak, on one engine and in one mode.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Engine and mode.
    pub cell: Cell,
    /// The clients.
    pub down: Http,
    /// The endpoints.
    pub up: Http,
}

/// Makes sixteen tests of each function that takes a [`Pair`]: two protocols on either side, in each cell.
#[macro_export]
macro_rules! pairs {
    (@test $name:ident $down:ident $up:ident $test:ident $io:ident $mode:ident) => {
        #[test]
        fn $test() {
            let (down, up) = ($crate::pair::Http::$down, $crate::pair::Http::$up);
            if let Some(cell) = $crate::Cell::available($crate::Io::$io, $crate::Mode::$mode) {
                super::super::$name($crate::pair::Pair { cell, down, up });
            }
        }
    };
    (@cells $name:ident $pair:ident $down:ident $up:ident) => {
        mod $pair {
            $crate::pairs!(@test $name $down $up uring_mp Uring Mp);
            $crate::pairs!(@test $name $down $up uring_sp Uring Sp);
            $crate::pairs!(@test $name $down $up epoll_mp Epoll Mp);
            $crate::pairs!(@test $name $down $up epoll_sp Epoll Sp);
        }
    };
    ($($(#[$meta:meta])* fn $name:ident($pair:ident) $body:block)+) => { $(
        $(#[$meta])*
        fn $name($pair: $crate::pair::Pair) $body
        mod $name {
            $crate::pairs!(@pair $name);
        }
    )+ };
    (@pair $name:ident) => {
        $crate::pairs!(@cells $name h1_h1 H1 H1);
        $crate::pairs!(@cells $name h1_h2 H1 H2);
        $crate::pairs!(@cells $name h2_h1 H2 H1);
        $crate::pairs!(@cells $name h2_h2 H2 H2);
    };
}

impl Pair {
    /// A gateway between the two, with `more` in its configuration.
    #[track_caller]
    pub fn gateway(self, endpoint: SocketAddr, more: &str) -> Gateway {
        let (spoken, protocol) = match self.up {
            Http::H1 => ("h1", "[\"h1\", \"h2\"]"),
            Http::H2 => ("h2", "[\"h1\", \"h2\"]"),
        };
        let toml = one_upstream(&[endpoint], more)
            .replace("[\"h1\"]", protocol)
            .replace("[upstreams.pool]", &format!("[upstreams.pool]\nprotocol = \"{spoken}\""));
        Setup::new(self.cell).config(&toml).start()
    }

    /// An endpoint that has a script for each request.
    pub fn endpoint(
        self,
        script: impl Fn(&mut Served<'_>) -> Option<()> + Send + Sync + 'static,
    ) -> Endpoint {
        match self.up {
            Http::H1 => Endpoint::H1(Upstream::start(move |conn| {
                loop {
                    let head = conn.head()?;
                    script(&mut Served::H1 { conn, head, is_chunked: false })?;
                }
            })),
            Http::H2 => Endpoint::H2(H2Endpoint::start(move |conn| {
                loop {
                    let stream = conn.head()?.stream;
                    script(&mut Served::H2 { conn, stream })?;
                }
            })),
        }
    }

    /// Begins an exchange on a connection of its own.
    #[track_caller]
    pub fn call(self, gateway: &Gateway, method: &str, more: &[(&str, &str)], length: Length) -> Call {
        let mut more = more.to_vec();
        let digits;
        if let Length::Known(bytes) = length {
            digits = bytes.to_string();
            more.push(("content-length", &digits));
        }
        match self.down {
            Http::H1 => {
                let is_chunked = length == Length::Unknown;
                if is_chunked {
                    more.push(("transfer-encoding", "chunked"));
                }
                if more.iter().any(|(name, _)| *name == "te") {
                    more.push(("connection", "te"));
                }
                let lines: String = more.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let mut client = Client::connect(gateway.address);
                client.send(format!("{method} /x HTTP/1.1\r\nhost: test\r\n{lines}\r\n"));
                Call::H1 { client, method: method.to_owned(), is_chunked }
            }
            Http::H2 => {
                let flags = flag::END_HEADERS | if length == Length::None { flag::END_STREAM } else { 0 };
                let mut h2 = H2::connect(gateway.address);
                h2.send(headers(1, flags, &request(method, "/x", &more)));
                Call::H2 { h2 }
            }
        }
    }
}

/// What a head says of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// There is none.
    None,
    /// So many bytes.
    Known(usize),
    /// The end will tell.
    Unknown,
}

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

/// An exchange at the client.
#[derive(Debug)]
pub enum Call {
    /// Over HTTP/1.1.
    #[allow(missing_docs, reason = "the parts of an exchange")]
    H1 { client: Client, method: String, is_chunked: bool },
    /// Over HTTP/2, on stream 1.
    #[allow(missing_docs, reason = "the parts of an exchange")]
    H2 { h2: H2 },
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
        }
    }

    /// Ends the body.
    pub fn end(&mut self, trailers: &[(&str, &str)]) {
        let _taken = match self {
            Self::H1 { client, is_chunked: true, .. } => client.try_send(last_chunk(trailers)),
            Self::H1 { .. } => true,
            Self::H2 { h2 } if trailers.is_empty() => h2.try_send(data(1, flag::END_STREAM, b"")),
            Self::H2 { h2 } => h2.try_send(headers(1, flag::WHOLE, &block(trailers))),
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
                    let status = crate::hpack::find(&fields, ":status").and_then(|text| text.parse().ok());
                    fields.retain(|(name, _)| name != ":status");
                    if frame.has(flag::END_STREAM) {
                        // The body's end, for whoever looks for it.
                        fields.push((END.to_owned(), String::new()));
                    }
                    return (status.expect("a status"), fields);
                }
                assert_ne!(frame.kind, kind::RST_STREAM, "reset with {} before a head", frame.number(0));
            },
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
                let status = crate::hpack::find(&fields, ":status").and_then(|text| text.parse().ok())?;
                if frame.has(flag::END_STREAM) {
                    fields.push((END.to_owned(), String::new()));
                }
                return Some(self.rest(status, fields));
            },
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
        }
    }

    /// Gives the exchange up: over HTTP/1.1 by a reset of TCP (a close may be the end of its sending side only), over
    /// HTTP/2 by a reset of the stream. The connection of the latter stays, for as long as what is returned.
    pub fn cancel(self) -> Option<H2> {
        match self {
            Self::H1 { client, .. } => {
                client.reset();
                None
            }
            Self::H2 { mut h2 } => {
                h2.send(reset(1, code::CANCEL));
                Some(h2)
            }
        }
    }
}

/// Marks the fields of a head that is all there is of an answer.
const END: &str = ":end";

fn head(status: u16, fields: &[(&str, &str)]) -> String {
    let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {status} X\r\n{lines}\r\n")
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn last_chunk(trailers: &[(&str, &str)]) -> String {
    let lines: String = trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("0\r\n{lines}\r\n")
}

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes())).collect()
}

fn lines(fields: &[(String, String)]) -> String {
    fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
}
