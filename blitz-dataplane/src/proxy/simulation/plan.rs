//! What is asked in the simulation, and what a scripted upstream does with it.
//!
//! A request carries its number and the upstream's behaviour in its path, so that the client, the
//! upstream and the oracle agree on what must happen without talking to each other.
#![forbid(unsafe_code)]

use crate::runtime::sim::Rng;

/// What an upstream does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Behaviour {
    Length,
    Chunked,
    Trailers,
    UntilEnd,
    NoContent,
    NotModified,
    Continues,
    Hints,
    Slow,
    EarlyAnswer,
    CloseSaid,
    CloseAfter,
    CloseBefore,
    ResetBefore,
    CloseInHead,
    CloseMid,
    ResetMid,
    Garbage,
    LengthAndCoding,
    BigHead,
    UnknownCoding,
    BadChunk,
    BigTrailers,
    StallFirst,
    StallMid,
    NeverReads,
    Switches,
    HintFlood,
}

/// What a client must get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The upstream's answer with this status, whole.
    Own(u16),
    /// The gateway's own answer with this status.
    Error(u16),
    /// The beginning of the upstream's answer, which must not look whole.
    Cut,
}

impl Behaviour {
    /// Those that answer whole.
    pub(super) const GOOD: [Self; 12] = [
        Self::Length,
        Self::Length,
        Self::Chunked,
        Self::Trailers,
        Self::UntilEnd,
        Self::NoContent,
        Self::NotModified,
        Self::Continues,
        Self::Hints,
        Self::Slow,
        Self::CloseSaid,
        Self::CloseAfter,
    ];

    /// Those that do not.
    pub(super) const BAD: [Self; 15] = [
        Self::CloseBefore,
        Self::ResetBefore,
        Self::CloseInHead,
        Self::CloseMid,
        Self::ResetMid,
        Self::Garbage,
        Self::LengthAndCoding,
        Self::BigHead,
        Self::UnknownCoding,
        Self::BadChunk,
        Self::BigTrailers,
        Self::StallFirst,
        Self::StallMid,
        Self::Switches,
        Self::HintFlood,
    ];

    const ALL: [Self; 28] = [
        Self::Length,
        Self::Chunked,
        Self::Trailers,
        Self::UntilEnd,
        Self::NoContent,
        Self::NotModified,
        Self::Continues,
        Self::Hints,
        Self::Slow,
        Self::EarlyAnswer,
        Self::CloseSaid,
        Self::CloseAfter,
        Self::CloseBefore,
        Self::ResetBefore,
        Self::CloseInHead,
        Self::CloseMid,
        Self::ResetMid,
        Self::Garbage,
        Self::LengthAndCoding,
        Self::BigHead,
        Self::UnknownCoding,
        Self::BadChunk,
        Self::BigTrailers,
        Self::StallFirst,
        Self::StallMid,
        Self::NeverReads,
        Self::Switches,
        Self::HintFlood,
    ];

    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::NoContent => Outcome::Own(204),
            Self::NotModified => Outcome::Own(304),
            Self::CloseMid | Self::ResetMid | Self::BadChunk | Self::BigTrailers | Self::StallMid => {
                Outcome::Cut
            }
            Self::StallFirst | Self::NeverReads => Outcome::Error(504),
            Self::CloseBefore
            | Self::ResetBefore
            | Self::CloseInHead
            | Self::Garbage
            | Self::LengthAndCoding
            | Self::BigHead
            | Self::UnknownCoding
            | Self::Switches
            | Self::HintFlood => Outcome::Error(502),
            _ => Outcome::Own(200),
        }
    }
}

/// Where a request is routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// Two live endpoints.
    Main,
    /// One refuses, one lives.
    Mixed,
    Refused,
    BlackHole,
    Unreachable,
    /// No address.
    Nameless,
    /// Only GET and HEAD are routed.
    ReadOnly,
    /// No route.
    Unknown,
}

impl Group {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Mixed => "mixed",
            Self::Refused => "refused",
            Self::BlackHole => "blackhole",
            Self::Unreachable => "unreachable",
            Self::Nameless => "nameless",
            Self::ReadOnly => "readonly",
            Self::Unknown => "unknown",
        }
    }
}

/// How a request carries its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upload {
    Nothing,
    Length(usize),
    Chunked(usize),
    /// Chunked, with a trailer that says the number again.
    Trailers(usize),
}

impl Upload {
    pub(super) fn len(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Length(len) | Self::Chunked(len) | Self::Trailers(len) => len,
        }
    }
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) method: &'static str,
    pub(super) group: Group,
    pub(super) behaviour: Behaviour,
    /// Bytes of the answer's body.
    pub(super) size: usize,
    pub(super) upload: Upload,
    pub(super) is_http10: bool,
    pub(super) is_http3: bool,
    /// `Connection: close`, or for HTTP/1.0 no `keep-alive`.
    pub(super) closes: bool,
    pub(super) expects_continue: bool,
    /// A field that `Connection` names and that must not reach the upstream.
    pub(super) has_hop_field: bool,
}

impl Request {
    pub(super) fn target(&self) -> String {
        format!("/{}/{:016x}/{:?}/{}", self.group.name(), self.id, self.behaviour, self.size)
    }

    /// Reads number, behaviour and size back out of a target.
    pub(super) fn read_target(target: &str) -> Option<(u64, Behaviour, usize)> {
        let mut parts = target.strip_prefix('/')?.split('/').skip(1);
        let id = u64::from_str_radix(parts.next()?, 16).ok()?;
        let name = parts.next()?;
        let behaviour = Behaviour::ALL.into_iter().find(|behaviour| format!("{behaviour:?}") == name)?;
        let size = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some((id, behaviour, size))
    }

    /// A request that nothing is wrong with.
    pub(super) fn good(rng: &Rng, id: u64, size_max: usize) -> Self {
        let method = ["GET", "GET", "HEAD", "POST", "PUT", "DELETE"][rng.below(6) as usize];
        let has_body = matches!(method, "POST" | "PUT");
        let is_http10 = rng.chance(120);
        let len = size(rng, size_max);
        let upload = match rng.below(4) {
            _ if !has_body => Upload::Nothing,
            0 | 1 => Upload::Length(len),
            _ if is_http10 => Upload::Length(len),
            2 => Upload::Chunked(len),
            _ => Upload::Trailers(len),
        };
        let mut behaviour = Behaviour::GOOD[rng.below(Behaviour::GOOD.len() as u64) as usize];
        if has_body && rng.chance(100) {
            behaviour = Behaviour::EarlyAnswer;
        }
        if method == "HEAD" {
            behaviour = [Behaviour::Length, Behaviour::Chunked][rng.below(2) as usize];
        }
        Self {
            id,
            method,
            group: if rng.chance(200) { Group::Mixed } else { Group::Main },
            behaviour,
            size: size(rng, size_max),
            upload,
            is_http10,
            is_http3: false,
            closes: rng.chance(if is_http10 { 500 } else { 80 }),
            expects_continue: has_body && upload.len() > 0 && !is_http10 && rng.chance(250),
            has_hop_field: rng.chance(200),
        }
    }

    /// The size of the answer: what is to be cut must have two halves.
    pub(super) fn behaves(&mut self, behaviour: Behaviour) {
        self.behaviour = behaviour;
        self.size = self.size.max(2);
        self.expects_continue = false;
    }

    /// What must come of it.
    pub(super) fn outcome(&self) -> Outcome {
        match self.group {
            Group::Main | Group::Mixed => self.behaviour.outcome(),
            Group::ReadOnly if matches!(self.method, "GET" | "HEAD") => self.behaviour.outcome(),
            Group::ReadOnly => Outcome::Error(405),
            Group::Refused | Group::Unreachable => Outcome::Error(502),
            Group::BlackHole => Outcome::Error(504),
            Group::Nameless => Outcome::Error(503),
            Group::Unknown => Outcome::Error(404),
        }
    }

    /// What an upstream is told of the gateway.
    pub(super) fn via(&self) -> &'static str {
        match (self.is_http3, self.is_http10) {
            (true, _) => "3 blitz",
            (false, true) => "1.0 blitz",
            (false, false) => "1.1 blitz",
        }
    }

    /// The head's bytes.
    pub(super) fn head(&self) -> Vec<u8> {
        let version = if self.is_http10 { "1.0" } else { "1.1" };
        let mut text = format!("{} {} HTTP/{version}\r\nHost: sim.test\r\n", self.method, self.target());
        text += &format!("X-Body: {}\r\n", self.upload.len());
        let mut options = Vec::new();
        match (self.is_http10, self.closes) {
            (false, true) => options.push("close"),
            (true, false) => options.push("keep-alive"),
            _ => {}
        }
        if self.has_hop_field {
            options.push("x-hop");
            text += "X-Hop: for the gateway only\r\nKeep-Alive: timeout=5\r\n";
        }
        if !options.is_empty() {
            text += &format!("Connection: {}\r\n", options.join(", "));
        }
        if self.expects_continue {
            text += "Expect: 100-continue\r\n";
        }
        match self.upload {
            Upload::Nothing => {}
            Upload::Length(len) => text += &format!("Content-Length: {len}\r\n"),
            Upload::Chunked(_) => text += "Transfer-Encoding: chunked\r\n",
            Upload::Trailers(_) => text += "X-Trailers: 1\r\nTransfer-Encoding: chunked\r\n",
        }
        text += "\r\n";
        text.into_bytes()
    }

    /// The body's bytes with their framing.
    pub(super) fn body(&self, rng: &Rng) -> Vec<u8> {
        match self.upload {
            Upload::Nothing => Vec::new(),
            Upload::Length(len) => pattern(self.id, len),
            Upload::Chunked(len) => chunked(rng, &pattern(self.id, len), ""),
            Upload::Trailers(len) => {
                chunked(rng, &pattern(self.id, len), &format!("X-Sum: {:016x}\r\n", self.id))
            }
        }
    }
}

/// A size of a body: often nothing or little, seldom much.
fn size(rng: &Rng, max: usize) -> usize {
    let max = max as u64;
    (match rng.below(6) {
        0 => 0,
        1 => 1 + rng.below(16),
        2 | 3 => rng.below(max / 16 + 1),
        4 => rng.below(max / 4 + 1),
        _ => rng.below(max + 1),
    }) as usize
}

/// The body that belongs to a number: any shift, mix-up or loss shows.
pub(super) fn pattern(id: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut word = id | 1;
    while bytes.len() < len {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The number whose pattern is the body of the answer to `id`.
pub(super) fn answer_id(id: u64) -> u64 {
    id ^ 0xA5A5_0000_5A5A_0000
}

/// Chunks of random sizes.
pub(super) fn chunked(rng: &Rng, body: &[u8], trailers: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 64);
    let mut rest = body;
    while !rest.is_empty() {
        let take = 1 + rng.below((rest.len() as u64).min(if rng.chance(300) { 40 } else { 20_000 })) as usize;
        let (now, later) = rest.split_at(take);
        let extension = if rng.chance(100) { ";a=\"b\"" } else { "" };
        out.extend_from_slice(format!("{take:X}{extension}\r\n").as_bytes());
        out.extend_from_slice(now);
        out.extend_from_slice(b"\r\n");
        rest = later;
    }
    out.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
    out
}
