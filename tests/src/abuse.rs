//! The ways to burden a server over HTTP/2, and a campaign that runs one of them at full speed beside good requests.
//!
//! Owns: what is sent, how a connection has to end, the attacker that begins again at once, the good client on a fixed
//! schedule, what both saw. Does not own: frames ([`crate::h2raw`]), or the verdict's consequence: tests fail, the
//! bench exits.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::gateway::one_upstream;
use crate::h2raw::{
    H2, PREFACE, code, data, field_indexed, flag, frame, get, headers, integer, kind, ping, request, reset,
    settings, window_update,
};
use crate::{Cell, Gateway, PATIENCE, Setup, Upstream, process, wait_until};

/// How a connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// GOAWAY with `ENHANCE_YOUR_CALM`.
    Calm,
    /// A reset of TCP: nobody would read a GOAWAY.
    Reset,
}

/// One way.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    /// What it is called here.
    pub name: &'static str,
    /// The label it is counted under.
    pub label: &'static str,
    /// What operators know it by.
    pub known_as: &'static str,
    /// Settings that the attacker announces.
    pub settings: &'static [(u16, u32)],
    /// Sent once, behind the settings.
    pub begin: fn() -> Vec<u8>,
    /// Sent again and again; the argument counts from 0.
    pub repeat: fn(u32) -> Vec<u8>,
    /// How often at most.
    pub repeats_max: u32,
    /// How the connection ends.
    pub end: End,
    /// Connections at the same time.
    pub connections: usize,
    /// How long it takes at least until one is ended.
    pub takes: Duration,
}

const FLOOD: Attack = Attack {
    name: "",
    label: "",
    known_as: "",
    settings: &[],
    begin: Vec::new,
    repeat: |_| Vec::new(),
    repeats_max: u32::MAX,
    end: End::Calm,
    connections: 4,
    takes: Duration::ZERO,
};

/// A request that puts a field of 4,000 bytes into the dynamic table.
fn fill_table() -> Vec<u8> {
    let block = [request("GET", "/hello", &[]), field_indexed(b"x", &[b'a'; 4000])].concat();
    headers(1, flag::WHOLE, &block)
}

/// A request that asks for that field so many times.
fn bomb(stream: u32, times: usize) -> Vec<u8> {
    let block = [request("GET", "/hello", &[]), integer(62, 7, 0x80).repeat(times)].concat();
    headers(stream, flag::WHOLE, &block)
}

fn post(stream: u32) -> Vec<u8> {
    headers(stream, flag::END_HEADERS, &request("POST", "/echo/x", &[]))
}

/// Requests that are reset as soon as they are made.
pub const RAPID_RESET: Attack = Attack {
    name: "rapid reset",
    label: "rapid_reset",
    known_as: "CVE-2023-44487",
    repeat: |n| [get(2 * n + 1, "/hello"), reset(2 * n + 1, code::CANCEL)].concat(),
    ..FLOOD
};

/// The same with requests that reach an endpoint.
pub const RAPID_RESET_PROXIED: Attack = Attack {
    name: "rapid reset proxied",
    repeat: |n| [get(2 * n + 1, "/abused"), reset(2 * n + 1, code::CANCEL)].concat(),
    ..RAPID_RESET
};

/// Requests that have to be reset: the length is wrong.
pub const MADE_YOU_RESET: Attack = Attack {
    name: "made you reset",
    label: "made_you_reset",
    known_as: "CVE-2025-8671",
    repeat: |n| {
        let block = request("POST", "/echo/x", &[("content-length", "1")]);
        headers(2 * n + 1, flag::WHOLE, &block)
    },
    ..FLOOD
};

/// Requests that have to be reset: the window overflows.
pub const MADE_YOU_RESET_BY_WINDOWS: Attack = Attack {
    name: "made you reset by windows",
    repeat: |n| [post(2 * n + 1), window_update(2 * n + 1, (1 << 31) - 1)].concat(),
    ..MADE_YOU_RESET
};

/// A field block that never ends.
pub const CONTINUATION_FLOOD: Attack = Attack {
    name: "CONTINUATION flood",
    label: "continuation_flood",
    known_as: "CVE-2024-27316, CVE-2024-24549 and others",
    begin: || headers(1, flag::END_STREAM, &request("GET", "/hello", &[])),
    repeat: |_| frame(kind::CONTINUATION, 0, 1, b""),
    ..FLOOD
};

/// A field of 4,000 bytes, asked for again and again: 4 bytes on the wire are 16 KiB.
pub const HPACK_BOMB: Attack = Attack {
    name: "HPACK bomb",
    label: "hpack_bomb",
    known_as: "CVE-2016-6581, CVE-2023-44488",
    settings: &[(4, 0)],
    begin: fill_table,
    repeat: |n| bomb(2 * n + 3, 100),
    ..FLOOD
};

/// The same, each just beyond the limit and answered with 431.
pub const HPACK_BOMB_IN_SMALL: Attack =
    Attack { name: "HPACK bomb in small", repeat: |n| bomb(2 * n + 3, 5), ..HPACK_BOMB };

/// Pings.
pub const PING_FLOOD: Attack = Attack {
    name: "PING flood",
    label: "ping_flood",
    known_as: "CVE-2019-9512",
    repeat: |_| ping(b"12345678"),
    ..FLOOD
};

/// Settings.
pub const SETTINGS_FLOOD: Attack = Attack {
    name: "SETTINGS flood",
    label: "settings_flood",
    known_as: "CVE-2019-9515",
    repeat: |_| settings(&[(4, 65_535)]),
    ..FLOOD
};

/// Priorities.
pub const PRIORITY_FLOOD: Attack = Attack {
    name: "PRIORITY flood",
    label: "priority_flood",
    known_as: "CVE-2019-9513",
    repeat: |n| frame(kind::PRIORITY, 0, 2 * (n % (1 << 30)) + 1, &[0, 0, 0, 0, 1]),
    ..FLOOD
};

/// Windows that are opened by a byte.
pub const WINDOW_UPDATE_FLOOD: Attack = Attack {
    name: "WINDOW_UPDATE flood",
    label: "window_update_flood",
    known_as: "CVE-2019-9511",
    repeat: |_| window_update(0, 1),
    ..FLOOD
};

/// DATA without data.
pub const EMPTY_DATA_FLOOD: Attack = Attack {
    name: "empty DATA flood",
    label: "empty_data_flood",
    known_as: "CVE-2019-9518",
    begin: || post(1),
    repeat: |_| data(1, 0, b""),
    ..FLOOD
};

/// DATA with nothing but padding.
pub const PADDING_FLOOD: Attack =
    Attack { name: "padding flood", repeat: |_| data(1, flag::PADDED, &[3, 0, 0, 0]), ..EMPTY_DATA_FLOOD };

/// Frames that nobody knows.
pub const UNKNOWN_FRAME_FLOOD: Attack = Attack {
    name: "unknown frame flood",
    label: "unknown_frame_flood",
    known_as: "",
    repeat: |_| frame(0xfa, 0, 0, b"x"),
    ..FLOOD
};

/// Answers that are asked for and given no window.
pub const STALLED_WINDOW: Attack = Attack {
    name: "stalled windows",
    label: "stalled_window",
    known_as: "CVE-2019-9517",
    settings: &[(4, 0)],
    repeat: |n| get(2 * n + 1, "/hello"),
    repeats_max: 100,
    connections: 64,
    takes: SEND_PROGRESS,
    ..FLOOD
};

/// A large answer that is asked for and not read.
pub const SLOW_READER: Attack = Attack {
    name: "slow reader",
    label: "slow_reader",
    known_as: "CVE-2019-9517",
    settings: &[(4, 0x7fff_ffff)],
    begin: || [window_update(0, 0x7fff_0000), get(1, "/big")].concat(),
    repeats_max: 0,
    end: End::Reset,
    connections: 16,
    takes: SEND_PROGRESS,
    ..FLOOD
};

/// All of them.
pub const ATTACKS: &[Attack] = &[
    RAPID_RESET,
    RAPID_RESET_PROXIED,
    MADE_YOU_RESET,
    MADE_YOU_RESET_BY_WINDOWS,
    CONTINUATION_FLOOD,
    HPACK_BOMB,
    HPACK_BOMB_IN_SMALL,
    PING_FLOOD,
    SETTINGS_FLOOD,
    PRIORITY_FLOOD,
    WINDOW_UPDATE_FLOOD,
    EMPTY_DATA_FLOOD,
    PADDING_FLOOD,
    UNKNOWN_FRAME_FLOOD,
    STALLED_WINDOW,
    SLOW_READER,
];

/// How long the gateway waits for a client that takes nothing.
const SEND_PROGRESS: Duration = Duration::from_millis(500);
/// Good requests a second.
const GOOD_PER_SECOND: u32 = 500;
/// Connections that they are spread over.
const GOOD_CONNECTIONS: u32 = 8;
/// Good requests under way on one connection: fewer than the gateway announces.
const GOOD_STREAMS_MAX: u32 = 100;
/// Bytes of the large answer.
const BIG_BYTES: usize = 64 << 20;
/// How much of the memory before may be there more afterwards.
const MEMORY_SHARE_MAX: f64 = 0.05;

/// Bytes by which pools may be larger once a worker has been attacked: the slots for receiving, all of which are in
/// use then, bodies in flight, blocks for exchanges.
const POOLS_BYTES_MAX: u64 = 8 << 20;
/// Attacks at most until one leaves the memory that it found.
const ROUNDS_MAX: u32 = 3;
/// Into how many parts the first attack goes that the second has.
const FIRST_PARTS: u32 = 4;

/// What a campaign saw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Times that the repeated bytes were sent.
    pub attacks: u64,
    /// Connections of the attacker that ended as they have to.
    pub ended_well: u64,
    /// Connections that ended otherwise: a sentence for the first.
    pub ended_otherwise: Option<String>,
    /// What the gateway has counted under the attack's label, and under any.
    pub counted: [u64; 2],
    /// What else it has counted.
    pub other_names: String,
    /// Connections that were open when the time was over.
    pub left_open: u64,
    /// Good requests made.
    pub good: u64,
    /// Those that were not answered with 200.
    pub good_failed: u64,
    /// What was wrong with one of these.
    pub first_failure: Option<String>,
    /// Time from when a good request was due to its whole answer: median, 99th percentile, most.
    pub latency: [Duration; 3],
    /// Resident bytes of the worker: after good requests only, before (an attack has been), at most, afterwards.
    pub memory: [u64; 4],
}

impl Report {
    /// Both together; what cannot be added is this one's.
    fn with(self, other: Self) -> Self {
        Self {
            attacks: self.attacks + other.attacks,
            ended_well: self.ended_well + other.ended_well,
            ended_otherwise: self.ended_otherwise.or(other.ended_otherwise),
            left_open: self.left_open + other.left_open,
            good: self.good + other.good,
            good_failed: self.good_failed + other.good_failed,
            first_failure: self.first_failure.or(other.first_failure),
            ..self
        }
    }

    /// What is not as it has to be.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.good_failed > 0 {
            let why = self.first_failure.as_deref().unwrap_or_default();
            faults.push(format!("{} of {} good requests failed: {why}", self.good_failed, self.good));
        }
        if self.ended_well == 0 {
            faults.push("no connection of the attacker was ended".to_owned());
        }
        if let Some(how) = &self.ended_otherwise {
            faults.push(format!("a connection of the attacker ended otherwise: {how}"));
        }
        let [named, all] = self.counted;
        if named != all {
            faults.push(format!(
                "{all} abuses are counted, {named} of them under the right name: {}",
                self.other_names
            ));
        }
        if named < self.ended_well || named > self.ended_well + self.left_open {
            faults.push(format!("{} connections were ended, {named} are counted", self.ended_well));
        }
        let [fresh, before, _, after] = self.memory;
        if !is_within(after, before) || after > fresh + POOLS_BYTES_MAX {
            let kib = [fresh, before, after].map(|bytes| bytes >> 10);
            faults.push(format!("KiB of memory without an attack, before, afterwards: {kib:?}"));
        }
        faults
    }
}

/// Whether memory is back.
fn is_within(after: u64, before: u64) -> bool {
    after as f64 <= before as f64 * (1.0 + MEMORY_SHARE_MAX)
}

/// Runs an attack for so long, and as much longer as it takes, against one worker with good requests beside it.
///
/// # Panics
/// When the gateway cannot be started, or a panic was caught in it.
#[track_caller]
pub fn campaign(cell: Cell, attack: &Attack, length: Duration) -> Report {
    // As often as it takes on a busy machine.
    let length = length + attack.takes * 4;
    // One for the attacker: what it does to its endpoint is not what is looked at.
    let (good, abused) = (endpoint(), endpoint());
    let gateway = Setup::new(cell).config(&configuration(good.address, abused.address)).start();
    warm_up(gateway.address);
    let fresh = memory(&gateway);
    // A first attack, so that the pools have the size that they keep. Memory is back when another leaves what it found.
    let mut report = attacker(gateway.address, attack, length / FIRST_PARTS + attack.takes * 4);
    let mut before = settled(&gateway);
    for _ in 0..ROUNDS_MAX {
        let (round, peak) = gateway.peak_memory(|| {
            std::thread::scope(|scope| {
                let attacker = scope.spawn(|| attacker(gateway.address, attack, length));
                let good = good_client(gateway.address, length);
                let attack = attacker.join().expect("the attacker does not panic");
                good.with(attack)
            })
        });
        report = round.with(report);
        let after = settled(&gateway);
        report.memory = [fresh, before, peak, after];
        if is_within(after, before) {
            break;
        }
        before = after;
    }
    wait_until("the endpoints are free", PATIENCE, || gateway.in_flight() == Some(0));
    let metrics = gateway.admin("/metrics").text();
    let sum = |prefix: &str| {
        let lines = metrics.lines().filter(|line| line.starts_with(prefix));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    };
    let named = format!("blitz_h2_abuse_total{{abuse=\"{}\"}}", attack.label);
    report.counted = [sum(&named), sum("blitz_h2_abuse_total{")];
    let others = metrics.lines().filter(|line| line.starts_with("blitz_h2_abuse_total{"));
    let others: Vec<_> = others.filter(|line| !line.starts_with(&named) && !line.ends_with(" 0")).collect();
    report.other_names = others.join(", ");
    assert_eq!(sum("blitz_panics_total"), 0, "panics");
    gateway.stop();
    report
}

/// Answers every request, the one for `/big` with a large answer.
fn endpoint() -> Upstream {
    Upstream::start(|conn| {
        loop {
            if conn.request()?.target() != "/big" {
                conn.answer("200 OK", "fine")?;
                continue;
            }
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG_BYTES}\r\n\r\n"))?;
            for _ in 0..BIG_BYTES >> 16 {
                conn.send([b'x'; 1 << 16])?;
            }
        }
    })
}

/// One listener; `/good` leads to one endpoint, `/abused` and `/big` to the other, and the gateway answers the rest.
fn configuration(good: SocketAddr, abused: SocketAddr) -> String {
    let more = format!(
        "[upstreams.other]\nendpoints = [{{ address = \"{abused}\" }}]\n\
         [[routes]]\npath = \"/big\"\nupstream = \"other\"\n\
         [[routes]]\npath = \"/abused\"\nupstream = \"other\"\n\
         [timeouts]\nsend_progress_ms = {}\n[http2]\nstalled_streams_max = 8\n",
        SEND_PROGRESS.as_millis()
    );
    one_upstream(&[good], &more).replace("\"/*rest\"", "\"/good\"").replace("[\"h1\"]", "[\"h1\", \"h2\"]")
}

/// Resident memory once what was going on has come to its end: when it has not fallen for as long as a worker needs to
/// see that something is free.
fn settled(gateway: &Gateway) -> u64 {
    let (mut least, mut since) = (memory(gateway), Instant::now());
    while since.elapsed() < Duration::from_millis(2300) {
        std::thread::sleep(Duration::from_millis(50));
        let now = memory(gateway);
        // By more than a page now and then.
        if now + (64 << 10) < least {
            since = Instant::now();
        }
        least = least.min(now);
    }
    least
}

fn memory(gateway: &Gateway) -> u64 {
    gateway.workers().into_iter().map(process::resident_bytes).sum()
}

/// Has so many requests under way at once as a worker keeps memory for: from then on it has what it keeps.
fn warm_up(address: SocketAddr) {
    let streams = || (1..200).step_by(2);
    let mut connections: Vec<H2> = (0..3).map(|_| H2::connect(address)).collect();
    for h2 in &mut connections {
        let block = request("POST", "/good", &[]);
        h2.send(streams().flat_map(|stream| headers(stream, flag::END_HEADERS, &block)).collect::<Vec<u8>>());
    }
    for h2 in &mut connections {
        h2.send(streams().flat_map(|stream| data(stream, flag::END_STREAM, b"x")).collect::<Vec<u8>>());
    }
    for h2 in &mut connections {
        let (_, failed) = answers(h2, 100, &AtomicU32::new(0), |_| Instant::now());
        assert!(failed.is_empty(), "{failed:?}");
    }
}

/// Makes requests on a fixed schedule, whatever becomes of the ones before (open loop).
fn good_client(address: SocketAddr, length: Duration) -> Report {
    let mut connections: Vec<H2> = (0..GOOD_CONNECTIONS)
        .map(|_| {
            let mut h2 = H2::connect(address);
            h2.send(window_update(0, 0x7fff_0000));
            h2
        })
        .collect();
    let mut senders: Vec<TcpStream> = connections.iter().map(H2::sender).collect();
    let every = Duration::from_secs(1) / GOOD_PER_SECOND;
    // The same number on each connection.
    let each = (length.div_duration_f64(every) as u32).div_ceil(GOOD_CONNECTIONS);
    let begun = Instant::now();
    let is_over = AtomicBool::new(false);
    // Requests that have ended, by connection: no more are under way than the gateway allows.
    let ended: Vec<AtomicU32> = (0..GOOD_CONNECTIONS).map(|_| AtomicU32::new(0)).collect();
    let (latencies, failed) = std::thread::scope(|scope| {
        scope.spawn(|| {
            for nth in 0..each * GOOD_CONNECTIONS {
                std::thread::sleep((begun + every * nth).saturating_duration_since(Instant::now()));
                let (place, of_place) = ((nth % GOOD_CONNECTIONS) as usize, nth / GOOD_CONNECTIONS);
                while of_place >= ended[place].load(Ordering::SeqCst) + GOOD_STREAMS_MAX {
                    if is_over.load(Ordering::SeqCst) {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                let path = if nth % 3 == 0 { "/good" } else { "/hello" };
                // One that fails is seen by whoever reads.
                let _ = senders[place].write_all(&get(2 * of_place + 1, path));
            }
        });
        let readers: Vec<_> = (0..)
            .zip(&mut connections)
            .zip(&ended)
            .map(|((place, h2), ended)| {
                let due = move |stream: u32| begun + every * ((stream - 1) / 2 * GOOD_CONNECTIONS + place);
                scope.spawn(move || answers(h2, each, ended, due))
            })
            .collect();
        let (mut latencies, mut failed) = (Vec::new(), Vec::new());
        for reader in readers {
            let (some, bad) = reader.join().expect("a reader does not panic");
            latencies.extend(some);
            failed.extend(bad);
        }
        is_over.store(true, Ordering::SeqCst);
        (latencies, failed)
    });
    let mut latencies = latencies;
    latencies.sort_unstable();
    let at = |share: f64| {
        let place = (latencies.len().saturating_sub(1) as f64 * share) as usize;
        latencies.get(place).copied().unwrap_or_default()
    };
    Report {
        good: u64::from(each * GOOD_CONNECTIONS),
        good_failed: failed.len() as u64,
        first_failure: failed.into_iter().next(),
        latency: [at(0.5), at(0.99), at(1.0)],
        ..Report::default()
    }
}

/// Waits for the ends of so many requests on a connection: the time that each took since it was due, and a word for
/// each that failed.
fn answers(
    h2: &mut H2,
    count: u32,
    ended: &AtomicU32,
    due: impl Fn(u32) -> Instant,
) -> (Vec<Duration>, Vec<String>) {
    let (mut latencies, mut failed) = (Vec::new(), Vec::new());
    while latencies.len() + failed.len() < count as usize {
        ended.store((latencies.len() + failed.len()) as u32, Ordering::SeqCst);
        let frame = match h2.frame_within(PATIENCE) {
            Ok(Some(frame)) => frame,
            // Then none of the others has an end either.
            ended => {
                let left = count as usize - latencies.len() - failed.len();
                failed.extend(std::iter::repeat_n(format!("no end: {ended:?}"), left));
                break;
            }
        };
        let status = h2.status(&frame);
        if frame.kind == kind::RST_STREAM {
            failed.push(format!("reset with {}", frame.number(0)));
        } else if let Some(status) = status.filter(|status| *status != 200) {
            failed.push(format!("answered with {status}"));
        } else if matches!(frame.kind, kind::HEADERS | kind::DATA) && frame.has(flag::END_STREAM) {
            latencies.push(due(frame.stream).elapsed());
        }
    }
    (latencies, failed)
}

/// One thread that attacks over several connections and begins a new one for each that ends.
fn attacker(address: SocketAddr, attack: &Attack, length: Duration) -> Report {
    let begun = Instant::now();
    let mut report = Report::default();
    let mut lines: Vec<Option<Line>> = Vec::new();
    lines.resize_with(attack.connections, || None);
    while begun.elapsed() < length {
        let mut is_idle = true;
        for slot in &mut lines {
            let line = match slot {
                Some(line) => line,
                None => match Line::begin(address, attack) {
                    Ok(line) => slot.insert(line),
                    Err(error) => {
                        report.ended_otherwise.get_or_insert(format!("no connection: {error}"));
                        continue;
                    }
                },
            };
            match line.step(attack) {
                Step::Goes(has_moved) => is_idle &= !has_moved,
                Step::Ended(seen) => {
                    report.attacks += u64::from(line.repeats);
                    if seen == Some(attack.end) {
                        report.ended_well += 1;
                    } else {
                        report.ended_otherwise.get_or_insert(format!("{seen:?}"));
                    }
                    *slot = None;
                    is_idle = false;
                }
            }
        }
        if is_idle {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    for line in lines.into_iter().flatten() {
        report.left_open += 1;
        report.attacks += u64::from(line.repeats);
    }
    report
}

/// One connection of the attacker.
struct Line {
    stream: TcpStream,
    unsent: VecDeque<u8>,
    received: Vec<u8>,
    repeats: u32,
}

enum Step {
    /// Whether anything was sent or received.
    Goes(bool),
    /// It has ended, like this if the gateway said how.
    Ended(Option<End>),
}

impl Line {
    fn begin(address: SocketAddr, attack: &Attack) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let unsent = [PREFACE, &settings(attack.settings), &(attack.begin)()].concat().into();
        Ok(Self { stream, unsent, received: Vec::new(), repeats: 0 })
    }

    /// Sends what the kernel takes, and reads unless the attack is not to.
    fn step(&mut self, attack: &Attack) -> Step {
        while self.unsent.len() < 1 << 14 && self.repeats < attack.repeats_max.min(1 << 29) {
            self.unsent.extend((attack.repeat)(self.repeats));
            self.repeats += 1;
        }
        let mut has_moved = false;
        let (front, _) = self.unsent.as_slices();
        match self.stream.write(front) {
            Ok(count) => {
                self.unsent.drain(..count);
                has_moved = count > 0;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // There may be a word about it.
            Err(_) if attack.end == End::Calm => return Step::Ended(self.rest()),
            Err(_) => return Step::Ended(Some(End::Reset)),
        }
        if attack.end == End::Reset {
            return match self.stream.take_error() {
                Ok(None) => Step::Goes(has_moved),
                _ => Step::Ended(Some(End::Reset)),
            };
        }
        match self.receive() {
            Some(true) if self.is_told_to_calm() => Step::Ended(Some(End::Calm)),
            Some(has_received) => Step::Goes(has_moved | has_received),
            None => Step::Ended(self.is_told_to_calm().then_some(End::Calm)),
        }
    }

    /// What was said at the end.
    fn rest(&mut self) -> Option<End> {
        while self.receive() == Some(true) {}
        self.is_told_to_calm().then_some(End::Calm)
    }

    /// Whether anything came; `None` at the end of the connection.
    fn receive(&mut self) -> Option<bool> {
        let mut room = [0; 16 * 1024];
        match self.stream.read(&mut room) {
            Ok(0) => None,
            Ok(count) => {
                self.received.extend_from_slice(&room[..count]);
                Some(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(false),
            Err(_) => None,
        }
    }

    /// Passes over the frames that are whole; whether a GOAWAY with the right code is among them.
    fn is_told_to_calm(&mut self) -> bool {
        let mut at = 0;
        let mut is_told = false;
        while let Some(&[a, b, c, of_kind, ..]) = self.received.get(at..).and_then(<[u8]>::first_chunk::<9>) {
            let end = at + 9 + u32::from_be_bytes([0, a, b, c]) as usize;
            let Some(payload) = self.received.get(at + 9..end) else { break };
            let said =
                payload.get(4..8).map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap_or_default()));
            is_told |= of_kind == kind::GOAWAY && said == Some(code::ENHANCE_YOUR_CALM);
            at = end;
        }
        self.received.drain(..at);
        is_told
    }
}
