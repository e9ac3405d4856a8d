//! The frame meter: judges each frame by its header before the h2 crate sees it, and counts what a client makes the
//! gateway do.
//!
//! Two duties. It refuses frames that RFC 9113 calls a connection error and says with which code, since the crate has
//! one code for most of them. And it keeps a budget for every kind of frame that costs the sender less than the
//! receiver, names the abuse, and ends the connection.
//!
//! A budget is a bucket that takes [`BURST_SECONDS`] seconds' worth at once and drains at its rate. Where a frame is
//! the answer to something that the gateway sends (a WINDOW_UPDATE to DATA), what is sent drains it too, so that a fast
//! transfer is no flood.
//!
//! Owns: the rules, the budgets, the names. Does not own: the clock (an argument), the bytes (passed by, never kept),
//! what follows from a fault (`server.rs`).

use blitz_config::model::Http2Limits;

use super::frame::{Code, FRAME_BYTES_MAX, HEADER_BYTES, Header, PREFACE, flag, kind};
use super::streams::StreamSet;
use super::walk::{Step, Walk};

/// How many seconds' worth of a budget may come at once.
pub const BURST_SECONDS: u32 = 4;

/// Declares the abuses and their labels in one table.
macro_rules! abuses {
    ($($(#[doc = $doc:literal])* $abuse:ident = $label:literal,)*) => {
        /// What a client does to burden the gateway.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Abuse {
            $($(#[doc = $doc])* $abuse,)*
        }

        impl Abuse {
            /// Every abuse.
            pub const ALL: &[Self] = &[$(Self::$abuse,)*];

            /// The name in metrics and logs.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$abuse => $label,)*
                }
            }
        }
    };
}

abuses! {
    /// Requests that are reset as soon as they are made (CVE-2023-44487).
    RapidReset = "rapid_reset",
    /// Frames that make the gateway reset the stream, so that its work is lost (CVE-2025-8671).
    MadeYouReset = "made_you_reset",
    /// A field block in more frames than it needs (CVE-2024-27316 and its kin).
    ContinuationFlood = "continuation_flood",
    /// Field blocks that are small on the wire and large when decompressed.
    HpackBomb = "hpack_bomb",
    /// Pings (CVE-2019-9512).
    PingFlood = "ping_flood",
    /// Settings (CVE-2019-9515).
    SettingsFlood = "settings_flood",
    /// Priorities (CVE-2019-9513).
    PriorityFlood = "priority_flood",
    /// Windows opened by a little, again and again.
    WindowUpdateFlood = "window_update_flood",
    /// DATA that carries nothing (CVE-2019-9518), or next to nothing.
    EmptyDataFlood = "empty_data_flood",
    /// Frames of unknown types.
    UnknownFrameFlood = "unknown_frame_flood",
    /// Streams whose answer the client asks for and gives no window to (CVE-2019-9517).
    StalledWindow = "stalled_window",
    /// A connection that takes nothing of what it has asked for.
    SlowReader = "slow_reader",
}

/// Why a connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The code of the GOAWAY.
    pub code: Code,
    /// The name of the abuse; none where a frame is merely wrong.
    pub abuse: Option<Abuse>,
    /// The name of the rule that was broken, for logs.
    pub detail: &'static str,
}

impl Fault {
    const fn new(code: Code, detail: &'static str) -> Self {
        Self { code, abuse: None, detail }
    }

    /// The fault of an abuse.
    #[must_use]
    pub const fn abuse(abuse: Abuse) -> Self {
        Self { code: Code::EnhanceYourCalm, abuse: Some(abuse), detail: abuse.label() }
    }
}

/// What stops the flow of received bytes to the crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A field block has ended here.
    ///
    /// What follows is to be handed over with a call of its own, so that an error of the crate belongs to this block.
    Block(BlockEnd),
    /// The frame that begins here must not be handed over.
    Fault(Fault),
}

/// A field block that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockEnd {
    /// Its stream.
    pub stream: u32,
    /// It opens the stream.
    pub is_opening: bool,
}

/// What the gateway sends, as far as somebody wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A HEADERS frame that ends its stream.
    LastHeaders(u32),
    /// The budget of resets is used up.
    Fault(Fault),
}

/// A field block under way.
#[derive(Clone, Copy, Debug)]
struct Block {
    stream: u32,
    opens: bool,
    continuations: u32,
    since_ms: u64,
}

/// The meter of one connection. About 1.5 KiB; nothing is allocated.
#[derive(Clone, Debug)]
pub struct Meter {
    limits: Http2Limits,
    inbound: Walk,
    outbound: Walk,
    preface_left: u8,
    /// The first frame has come.
    has_begun: bool,
    block: Option<Block>,
    /// The highest stream that the client has opened.
    last_stream: u32,
    /// Streams that the client has opened, and those of which it has ended its side.
    opened: StreamSet,
    ended: StreamSet,
    buckets: [Bucket; Abuse::ALL.len()],
    frames: [u64; FRAME_KINDS],
}

/// Frame types that are counted apart; all others are the last.
const FRAME_KINDS: usize = 11;

impl Meter {
    /// A meter for a connection whose client preface is still to come.
    #[must_use]
    pub fn new(limits: &Http2Limits) -> Self {
        Self {
            limits: *limits,
            inbound: Walk::default(),
            outbound: Walk::default(),
            preface_left: PREFACE.len() as u8,
            has_begun: false,
            block: None,
            last_stream: 0,
            opened: StreamSet::default(),
            ended: StreamSet::default(),
            buckets: [Bucket::default(); Abuse::ALL.len()],
            frames: [0; FRAME_KINDS],
        }
    }

    /// Frames received, by type (RFC 9113 section 6, in the order of their numbers; then all others).
    #[must_use]
    pub const fn frames(&self) -> &[u64; FRAME_KINDS] {
        &self.frames
    }

    /// Since when a field block has been under way, if one is.
    #[must_use]
    pub fn block_since_ms(&self) -> Option<u64> {
        self.block.map(|block| block.since_ms)
    }

    /// Whether what is being sent stands within a frame.
    #[must_use]
    pub const fn is_sending(&self) -> bool {
        self.outbound.is_within_frame()
    }

    /// Judges received bytes. Says how many of them may be handed over, and what stops the flow behind these.
    pub fn received(&mut self, bytes: &[u8], now_ms: u64) -> (usize, Option<Stop>) {
        let skipped = bytes.len().min(usize::from(self.preface_left));
        self.preface_left -= skipped as u8;
        let mut at = skipped;
        // Where the frame begins; in an earlier call, when it is not known here.
        let mut start = skipped;
        loop {
            let is_between = !self.inbound.is_within_frame();
            if is_between {
                start = at;
            }
            let (taken, step) = self.inbound.next(bytes.get(at..).unwrap_or_default());
            at += taken;
            let outcome = match step {
                None => return (at, None),
                Some(Step::Header(frame)) => self.judge(&frame, now_ms),
                Some(Step::Prefix(frame, prefix)) => self.judge_payload(&frame, prefix, now_ms),
                Some(Step::End(frame)) => {
                    if let Some(stop) = self.ended(&frame) {
                        return (at, Some(stop));
                    }
                    Ok(())
                }
            };
            if let Err(fault) = outcome {
                return (start, Some(Stop::Fault(fault)));
            }
        }
    }

    /// Looks at bytes that are being sent. What is found last counts; faults before all.
    pub fn sent(&mut self, mut bytes: &[u8], now_ms: u64, mut found: impl FnMut(Sent)) {
        loop {
            let (taken, step) = self.outbound.next(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
            match step {
                None => return,
                Some(Step::Header(frame)) => match frame.kind {
                    kind::DATA => {
                        self.drain(Abuse::WindowUpdateFlood, 4);
                        self.drain(Abuse::PingFlood, 1);
                    }
                    kind::HEADERS if frame.has(flag::END_STREAM) => found(Sent::LastHeaders(frame.stream)),
                    _ => {}
                },
                Some(Step::Prefix(frame, [a, b, c, d, ..])) if frame.kind == kind::RST_STREAM => {
                    let is_clients_doing = [
                        Code::ProtocolError,
                        Code::FlowControlError,
                        Code::StreamClosed,
                        Code::FrameSizeError,
                        Code::RefusedStream,
                        Code::EnhanceYourCalm,
                    ]
                    .iter()
                    .any(|code| *code as u32 == u32::from_be_bytes([a, b, c, d]));
                    if is_clients_doing && let Err(fault) = self.charge(Abuse::MadeYouReset, 1, now_ms) {
                        found(Sent::Fault(fault));
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// Counts an event that is no frame.
    ///
    /// # Errors
    /// When its budget is used up.
    pub fn charge(&mut self, abuse: Abuse, events: u32, now_ms: u64) -> Result<(), Fault> {
        let limits = &self.limits;
        let rate = match abuse {
            Abuse::RapidReset => limits.resets_per_second,
            Abuse::MadeYouReset => limits.faults_per_second,
            Abuse::HpackBomb => limits.oversize_heads_per_second,
            Abuse::PingFlood => limits.pings_per_second,
            Abuse::SettingsFlood => limits.settings_per_second,
            Abuse::PriorityFlood => limits.priorities_per_second,
            Abuse::WindowUpdateFlood => limits.window_updates_per_second,
            Abuse::EmptyDataFlood => limits.empty_data_per_second,
            Abuse::UnknownFrameFlood => limits.unknown_frames_per_second,
            Abuse::StalledWindow => {
                // A count over the connection's life.
                let most = u64::from(limits.stalled_streams_max);
                let is_over = self.bucket(abuse).is_none_or(|bucket| bucket.add(events, most));
                return if is_over { Err(Fault::abuse(abuse)) } else { Ok(()) };
            }
            Abuse::ContinuationFlood | Abuse::SlowReader => return Err(Fault::abuse(abuse)),
        };
        let is_over = self.bucket(abuse).is_none_or(|bucket| {
            bucket.pass(rate, now_ms);
            bucket.add(events, u64::from(rate) * u64::from(BURST_SECONDS))
        });
        if is_over { Err(Fault::abuse(abuse)) } else { Ok(()) }
    }

    fn drain(&mut self, abuse: Abuse, events: u64) {
        if let Some(bucket) = self.bucket(abuse) {
            bucket.level = bucket.level.saturating_sub(events * EVENT);
        }
    }

    fn bucket(&mut self, abuse: Abuse) -> Option<&mut Bucket> {
        self.buckets.get_mut(abuse as usize)
    }

    /// Judges a frame by its header.
    fn judge(&mut self, frame: &Header, now_ms: u64) -> Result<(), Fault> {
        if let Some(count) = self.frames.get_mut(usize::from(frame.kind).min(FRAME_KINDS - 1)) {
            *count += 1;
        }
        if frame.length > FRAME_BYTES_MAX {
            return Err(Fault::new(Code::FrameSizeError, "frame_too_large"));
        }
        if !self.has_begun {
            if frame.kind != kind::SETTINGS || frame.has(flag::ACK) {
                return Err(PREFACE_SETTINGS);
            }
            self.has_begun = true;
        }
        if let Some(block) = &mut self.block {
            if frame.kind != kind::CONTINUATION || frame.stream != block.stream {
                return Err(Fault::new(Code::ProtocolError, "field_block_interrupted"));
            }
            block.continuations += 1;
            if block.continuations > self.limits.continuations_max {
                return Err(Fault::abuse(Abuse::ContinuationFlood));
            }
            return Ok(());
        }
        let wants = match frame.kind {
            kind::SETTINGS | kind::PING | kind::GOAWAY => Place::Connection,
            kind::DATA | kind::RST_STREAM => Place::OpenedStream,
            kind::HEADERS | kind::PRIORITY => Place::AnyStream,
            _ => Place::Anywhere,
        };
        self.check_place(frame, wants)?;
        check_length(frame)?;
        match frame.kind {
            kind::HEADERS => self.begin_block(frame, now_ms),
            kind::PRIORITY | kind::PRIORITY_UPDATE => self.charge(Abuse::PriorityFlood, 1, now_ms),
            kind::RST_STREAM => self.charge(Abuse::RapidReset, 1, now_ms),
            // Each setting costs something, and a frame holds up to 2,730 of them.
            kind::SETTINGS => self.charge(Abuse::SettingsFlood, 1 + frame.length / 60, now_ms),
            kind::PING => self.charge(Abuse::PingFlood, 1, now_ms),
            kind::WINDOW_UPDATE => {
                if frame.stream > self.last_stream || (frame.stream != 0 && frame.stream.is_multiple_of(2)) {
                    return Err(Fault::new(Code::ProtocolError, "idle_stream"));
                }
                self.charge(Abuse::WindowUpdateFlood, 1, now_ms)
            }
            kind::DATA => {
                self.check_open(frame)?;
                if frame.length == 0 && !frame.has(flag::END_STREAM) {
                    return self.charge(Abuse::EmptyDataFlood, 1, now_ms);
                }
                Ok(())
            }
            kind::PUSH_PROMISE => Err(Fault::new(Code::ProtocolError, "push_from_client")),
            kind::CONTINUATION => Err(Fault::new(Code::ProtocolError, "continuation_without_block")),
            // GOAWAY, too: one is enough.
            _ => self.charge(Abuse::UnknownFrameFlood, 1, now_ms),
        }
    }

    fn check_place(&self, frame: &Header, wants: Place) -> Result<(), Fault> {
        let is_right = match wants {
            Place::Anywhere => true,
            Place::Connection => frame.stream == 0,
            Place::AnyStream => frame.stream != 0,
            Place::OpenedStream if frame.stream != 0 => {
                if frame.stream > self.last_stream || frame.stream.is_multiple_of(2) {
                    return Err(Fault::new(Code::ProtocolError, "idle_stream"));
                }
                true
            }
            Place::OpenedStream => false,
        };
        if is_right { Ok(()) } else { Err(Fault::new(Code::ProtocolError, "stream_identifier")) }
    }

    /// RFC 9113 section 5.1: frames that only a stream takes whose client has not ended its side.
    fn check_open(&mut self, frame: &Header) -> Result<(), Fault> {
        let (stream, highest) = (frame.stream, self.last_stream);
        let was_opened = self.opened.get(stream, highest);
        if was_opened == Some(false) && frame.kind == kind::HEADERS {
            // Section 5.1.1.
            return Err(Fault::new(Code::ProtocolError, "stream_below_another"));
        }
        if was_opened == Some(false) || self.ended.get(stream, highest) == Some(true) {
            return Err(Fault::new(Code::StreamClosed, "stream_closed"));
        }
        if frame.has(flag::END_STREAM) {
            self.ended.set(stream, true);
        }
        Ok(())
    }

    fn begin_block(&mut self, frame: &Header, now_ms: u64) -> Result<(), Fault> {
        if frame.stream.is_multiple_of(2) {
            return Err(Fault::new(Code::ProtocolError, "even_stream"));
        }
        let opens = frame.stream > self.last_stream;
        if opens {
            self.opened.advance(self.last_stream, frame.stream);
            self.ended.advance(self.last_stream, frame.stream);
            self.opened.set(frame.stream, true);
            self.last_stream = frame.stream;
            self.drain(Abuse::PriorityFlood, 2);
        }
        self.check_open(frame)?;
        self.block = Some(Block { stream: frame.stream, opens, continuations: 0, since_ms: now_ms });
        Ok(())
    }

    /// Judges a frame by the first bytes of its payload.
    fn judge_payload(&mut self, frame: &Header, prefix: [u8; 6], now_ms: u64) -> Result<(), Fault> {
        let [pad, ..] = prefix;
        match frame.kind {
            kind::DATA | kind::HEADERS if frame.has(flag::PADDED) => {
                let fixed = if frame.kind == kind::HEADERS && frame.has(flag::PRIORITY) { 6 } else { 1 };
                let padded = fixed + u32::from(pad);
                if padded > frame.length {
                    return Err(Fault::new(Code::ProtocolError, "padding"));
                }
                if frame.kind == kind::DATA && padded == frame.length && !frame.has(flag::END_STREAM) {
                    return self.charge(Abuse::EmptyDataFlood, 1, now_ms);
                }
                Ok(())
            }
            kind::SETTINGS if frame.length > 0 => {
                let [id0, id1, v0, v1, v2, v3] = prefix;
                check_setting(u16::from_be_bytes([id0, id1]), u32::from_be_bytes([v0, v1, v2, v3]))
            }
            kind::WINDOW_UPDATE if frame.stream == 0 => {
                let [a, b, c, d, ..] = prefix;
                if u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff == 0 {
                    return Err(Fault::new(Code::ProtocolError, "window_increment"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn ended(&mut self, frame: &Header) -> Option<Stop> {
        let is_part = matches!(frame.kind, kind::HEADERS | kind::CONTINUATION);
        if is_part && frame.has(flag::END_HEADERS) {
            let block = self.block.take()?;
            return Some(Stop::Block(BlockEnd { stream: block.stream, is_opening: block.opens }));
        }
        None
    }
}

/// Where a frame type may occur.
enum Place {
    Anywhere,
    Connection,
    AnyStream,
    OpenedStream,
}

/// RFC 9113 section 3.4.
const PREFACE_SETTINGS: Fault = Fault::new(Code::ProtocolError, "preface_settings");

/// Lengths that RFC 9113 section 6 fixes.
fn check_length(frame: &Header) -> Result<(), Fault> {
    let padding = u32::from(frame.has(flag::PADDED));
    let is_right = match frame.kind {
        kind::DATA => frame.length >= padding,
        kind::HEADERS => frame.length >= padding + if frame.has(flag::PRIORITY) { 5 } else { 0 },
        kind::PRIORITY => frame.length == 5,
        kind::RST_STREAM | kind::WINDOW_UPDATE => frame.length == 4,
        kind::SETTINGS if frame.has(flag::ACK) => frame.length == 0,
        kind::SETTINGS => frame.length.is_multiple_of(6),
        kind::PING => frame.length == 8,
        kind::GOAWAY => frame.length >= 8,
        _ => true,
    };
    if is_right { Ok(()) } else { Err(Fault::new(Code::FrameSizeError, "frame_length")) }
}

/// Values that RFC 9113 section 6.5.2 and RFC 8441 section 3 refuse.
fn check_setting(id: u16, value: u32) -> Result<(), Fault> {
    match id {
        // ENABLE_PUSH and ENABLE_CONNECT_PROTOCOL.
        0x2 | 0x8 if value > 1 => Err(Fault::new(Code::ProtocolError, "setting_value")),
        // INITIAL_WINDOW_SIZE.
        0x4 if value > 0x7fff_ffff => Err(Fault::new(Code::FlowControlError, "setting_window")),
        // MAX_FRAME_SIZE.
        0x5 if !(16_384..=16_777_215).contains(&value) => {
            Err(Fault::new(Code::ProtocolError, "setting_value"))
        }
        _ => Ok(()),
    }
}

/// One event in the units of a bucket: so that a rate of one a second drains one unit a millisecond.
const EVENT: u64 = 1000;

/// What has come and not yet drained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bucket {
    level: u64,
    at_ms: u64,
}

impl Bucket {
    /// Lets time pass.
    fn pass(&mut self, per_second: u32, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.at_ms);
        self.at_ms = self.at_ms.max(now_ms);
        self.level = self.level.saturating_sub(passed.saturating_mul(u64::from(per_second)));
    }

    /// Adds events; whether there are more than `most` now.
    fn add(&mut self, events: u32, most: u64) -> bool {
        self.level = self.level.saturating_add(u64::from(events) * EVENT);
        self.level > most * EVENT
    }
}

/// Frame headers fit into the smallest read.
const _: () = assert!(HEADER_BYTES < FRAME_BYTES_MAX as usize);

#[cfg(test)]
#[path = "meter_tests.rs"]
mod tests;
