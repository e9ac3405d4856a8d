//! The daemon's log: one line per record on standard error, in the form of `blitz`'s own.
//!
//! Owns: the prefix, the escaping of control characters. Does not own: what is said.
//!
//! ```text
//! 2026-03-04T05:06:07.089Z info xdp eth0: adopted, program 17, layout 1
//! ```
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Bytes of one line; what is beyond is cut.
const LINE_BYTES_MAX: usize = 4000;

struct Sink;

/// Installs the sink and turns panics into lines of level err.
pub fn install(level: LevelFilter) {
    if log::set_logger(&Sink).is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let text = panic.payload_as_str().unwrap_or("no text");
            let place = panic.location().map_or_else(String::new, ToString::to_string);
            log::error!("panic at {place}: {text}");
        }));
    }
    log::set_max_level(level);
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries speak of their inner life at info and debug; only their warnings are of use.
        metadata.level() <= log::max_level()
            && (metadata.level() <= Level::Warn || metadata.target().starts_with("blitz"))
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = line(SystemTime::now(), record.level(), &record.args().to_string());
            // Nobody can be told that standard error is gone.
            let _lost = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

fn line(time: SystemTime, level: Level, message: &str) -> String {
    let mut line = String::with_capacity(message.len() + 64);
    timestamp(&mut line, time);
    line.push_str(match level {
        Level::Error => " err xdp ",
        Level::Warn => " warn xdp ",
        Level::Info => " info xdp ",
        Level::Debug | Level::Trace => " debug xdp ",
    });
    for c in message.chars() {
        if line.len() >= LINE_BYTES_MAX {
            line.push_str("[cut]");
            break;
        }
        // A message with control characters could forge lines or drive a terminal.
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line.push('\n');
    line
}

/// RFC 3339 in UTC with milliseconds. A clock before 1970 shows as 1970.
fn timestamp(line: &mut String, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let second = since.as_secs() % 86_400;
    let (mut days, mut year) = (since.as_secs() / 86_400, 1970);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // A few dozen steps; a clock beyond the year 9999 stays there.
    while days >= 365 + u64::from(is_leap(year)) && year < 9999 {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (day, milli) = (days + 1, since.subsec_millis());
    // Writing to a string cannot fail.
    let _infallible =
        write!(line, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_line_has_the_same_prefix() {
        let time = UNIX_EPOCH + Duration::from_millis(1_772_600_767_089);
        assert_eq!(line(time, Level::Warn, "a\nb"), "2026-03-04T05:06:07.089Z warn xdp a\\nb\n");
        let long = line(time, Level::Info, &"é".repeat(9000));
        assert!(long.len() < 4096 && long.ends_with("[cut]\n"));
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
        assert_eq!(show(1_735_689_599), "2024-12-31T23:59:59.000Z");
    }
}
