//! The log: one line per record on standard error, with a fixed prefix.
//!
//! Owns: the prefix, the escaping of control characters, the limit on repeated lines, panics as lines. Does
//! not own: what is said. Payloads are never logged; fields that carry secrets are told apart by
//! [`is_secret_field`].
//!
//! ```text
//! 2026-03-04T05:06:07.089Z info ctl reloaded generation 7 in 12 ms
//! 2026-03-04T05:06:07.090Z warn w3 upstream api 127.0.0.1:9001 taken out for 10 s (12 such lines left out)
//! ```
//! A line of code that logs more than [`BURST`] lines at once is cut to [`LINES_PER_SECOND`]; how many were
//! left out is said in its next line. Lines of target [`TRACE_TARGET`] are exempt: whoever asks for `-t`
//! wants all of them.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Lines that one place in the code may log at once.
pub const BURST: u32 = 20;
/// Lines per second that one place in the code may log for long.
pub const LINES_PER_SECOND: u32 = 2;
/// Target of `-t` lines.
pub const TRACE_TARGET: &str = "trace";

/// Buckets of the limiter (count). Places in the code share buckets by hash: with a few hundred of them,
/// rarely.
const BUCKETS: usize = 512;
/// Bytes of one line; what is beyond is cut. Below PIPE_BUF (4096), so that lines of several workers in one
/// pipe never mix.
const LINE_BYTES_MAX: usize = 4000;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The supervisor.
    Control,
    /// A worker.
    Worker(u32),
}

thread_local! {
    static WHO: Cell<Who> = const { Cell::new(Who::Control) };
}

/// Names the speaker of all lines that the calling thread logs.
pub fn name_thread(who: Who) {
    WHO.set(who);
}

/// Installs the sink and turns panics into lines of level err. Later calls change the level only.
pub fn install(level: LevelFilter) {
    static SINK: OnceLock<Sink> = OnceLock::new();
    let sink = SINK.get_or_init(|| Sink { limiter: Mutex::new(Limiter::new(Instant::now())) });
    if log::set_logger(sink).is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let text = panic.payload_as_str().unwrap_or("no text");
            let place = panic
                .location()
                .map_or_else(String::new, |place| format!("{}:{}", place.file(), place.line()));
            log::error!("panic at {place}: {text}");
        }));
    }
    log::set_max_level(level);
}

/// Whether a field's value must not be shown: credentials and session identifiers (RFC 9110 sections 11.6 and
/// 11.7, RFC 6265).
pub fn is_secret_field(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 7] = [
        b"authorization",
        b"proxy-authorization",
        b"cookie",
        b"set-cookie",
        b"x-api-key",
        b"x-auth-token",
        b"x-csrf-token",
    ];
    NAMES.iter().any(|secret| name.eq_ignore_ascii_case(secret))
}

struct Sink {
    limiter: Mutex<Limiter>,
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level() && is_ours(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let left_out = if record.target() == TRACE_TARGET {
            0
        } else {
            let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
            match limiter.admit(place_of(record), Instant::now()) {
                Some(left_out) => left_out,
                None => return,
            }
        };
        let line = line(SystemTime::now(), record.level(), WHO.get(), &record.args().to_string(), left_out);
        // Nobody can be told that standard error is gone.
        let _lost = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Libraries speak of their inner life at info and debug; only their warnings are of use to an operator.
fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.level() <= Level::Warn
        || metadata.target().starts_with("blitz")
        || metadata.target() == TRACE_TARGET
}

fn place_of(record: &Record<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (record.file(), record.line(), record.level()).hash(&mut hasher);
    hasher.finish()
}

fn line(time: SystemTime, level: Level, who: Who, message: &str, left_out: u64) -> String {
    let mut line = String::with_capacity(message.len() + 64);
    timestamp(&mut line, time);
    line.push_str(match level {
        Level::Error => " err ",
        Level::Warn => " warn ",
        Level::Info => " info ",
        Level::Debug | Level::Trace => " debug ",
    });
    // Writing to a string cannot fail.
    let _infallible = match who {
        Who::Control => write!(line, "ctl "),
        Who::Worker(worker) => write!(line, "w{worker} "),
    };
    for c in message.chars() {
        if line.len() >= LINE_BYTES_MAX {
            line.push_str("[cut]");
            break;
        }
        // A message with control characters could forge lines or drive a terminal.
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    if left_out > 0 {
        let _infallible = write!(line, " ({left_out} such lines left out)");
    }
    line.push('\n');
    line
}

/// RFC 3339 in UTC with milliseconds. A clock before 1970 shows as 1970.
fn timestamp(line: &mut String, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to year, month, day: the year is counted from March, so that the leap day is its last. An era of
    // the Gregorian calendar has 400 years or 146,097 days; 719,468 days lie between 0000-03-01 and
    // 1970-01-01.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let milli = since.subsec_millis();
    let _infallible =
        write!(line, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z");
}

/// A token bucket for each place in the code.
struct Limiter {
    buckets: Vec<Bucket>,
}

#[derive(Clone, Copy)]
struct Bucket {
    /// In thousandths of a line.
    tokens: u64,
    filled: Instant,
    left_out: u64,
}

impl Limiter {
    fn new(now: Instant) -> Self {
        Self { buckets: vec![Bucket { tokens: u64::from(BURST) * 1000, filled: now, left_out: 0 }; BUCKETS] }
    }

    /// `Some` when a line may pass, with the number of lines left out before it.
    fn admit(&mut self, place: u64, now: Instant) -> Option<u64> {
        let index = usize::try_from(place % BUCKETS as u64).unwrap_or(0);
        let bucket = self.buckets.get_mut(index)?;
        let elapsed_ms =
            u64::try_from(now.saturating_duration_since(bucket.filled).as_millis()).unwrap_or(u64::MAX);
        if elapsed_ms > 0 {
            let gained = elapsed_ms.saturating_mul(u64::from(LINES_PER_SECOND));
            bucket.tokens = bucket.tokens.saturating_add(gained).min(u64::from(BURST) * 1000);
            bucket.filled = now;
        }
        if bucket.tokens < 1000 {
            bucket.left_out += 1;
            return None;
        }
        bucket.tokens -= 1000;
        Some(std::mem::take(&mut bucket.left_out))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_line_has_the_same_prefix() {
        let time = UNIX_EPOCH + Duration::from_millis(1_772_600_767_089);
        let text = line(time, Level::Warn, Who::Worker(3), "upstream \"api\" is out", 0);
        assert_eq!(text, "2026-03-04T05:06:07.089Z warn w3 upstream \"api\" is out\n");
        assert!(
            line(time, Level::Error, Who::Control, "x", 12)
                .ends_with(" err ctl x (12 such lines left out)\n")
        );
    }

    #[test]
    fn dates_at_the_edges_of_the_calendar() {
        let show = |seconds: u64| {
            let mut text = String::new();
            timestamp(&mut text, UNIX_EPOCH + Duration::from_secs(seconds));
            text
        };
        assert_eq!(show(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(show(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(show(951_868_799), "2000-02-29T23:59:59.000Z");
        assert_eq!(show(4_107_542_399), "2100-02-28T23:59:59.000Z");
        assert_eq!(show(4_107_542_400), "2100-03-01T00:00:00.000Z");
        assert_eq!(show(1_735_689_599), "2024-12-31T23:59:59.000Z");
    }

    #[test]
    fn a_message_cannot_forge_a_line_and_is_cut() {
        let text = line(UNIX_EPOCH, Level::Info, Who::Control, "a\nb\x1b[2J", 0);
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.contains("a\\nb\\u{1b}[2J"), "{text}");
        let long = line(UNIX_EPOCH, Level::Info, Who::Control, &"é".repeat(9000), 0);
        assert!(long.len() < 4096 && long.ends_with("[cut]\n"));
    }

    #[test]
    fn repeated_lines_are_counted_instead_of_written() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let passed = (0..100).filter(|_| limiter.admit(7, start).is_some()).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(limiter.admit(8, start), Some(0), "another place is not concerned");
        let later = start + Duration::from_secs(1);
        assert_eq!(limiter.admit(7, later), Some(80));
        assert_eq!(limiter.admit(7, later), Some(0));
        assert_eq!(limiter.admit(7, later), None);
    }

    #[test]
    fn fields_with_credentials_are_known_in_any_case() {
        assert!(
            is_secret_field(b"Authorization") && is_secret_field(b"COOKIE") && !is_secret_field(b"accept")
        );
    }
}
