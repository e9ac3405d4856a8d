//! How results are shown: tables for people, JSON for programs.
//!
//! Owns: the choice between them, tables, durations and counts in words. Does not own: what is shown.
#![forbid(unsafe_code)]

use std::io::Write as _;

use serde::Serialize;

use crate::error::Error;

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    /// One JSON document instead of words.
    pub(super) json: bool,
}

impl Output {
    /// Shows a result: `value` as JSON, or what `words` makes.
    pub(super) fn show(self, value: &impl Serialize, words: impl FnOnce() -> String) {
        let text = match self.json {
            true => serde_json::to_string_pretty(value)
                .unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}")),
            false => words(),
        };
        // A reader that has gone away has seen what it wanted.
        let _unheard = writeln!(std::io::stdout(), "{}", text.trim_end());
    }

    /// Shows an error, on standard error.
    pub(super) fn error(self, error: &Error) {
        let text = match self.json {
            true => serde_json::json!({
                "error": { "kind": error.kind().label(), "cause": error.cause(), "remedy": error.remedy() }
            })
            .to_string(),
            false => format!("blitz-ctl: {error}"),
        };
        let _unheard = writeln!(std::io::stderr(), "{text}");
    }
}

/// Rows under a head, each column as wide as its widest cell. Columns whose head starts with `>` are
/// flush right.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        let name = head.get(column).map_or(0, |name| name.trim_start_matches('>').chars().count());
        cells.max().unwrap_or(0).max(name)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for ((cell, width), name) in cells.zip(&widths).zip(head) {
            match name.starts_with('>') {
                true => text.push_str(&format!("{cell:>width$}  ")),
                false => text.push_str(&format!("{cell:<width$}  ")),
            }
        }
        text.trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut head.iter().map(|name| name.trim_start_matches('>')));
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// Seconds as `3d 4h`, `5m 6s`: the two largest units.
pub(super) fn duration(seconds: u64) -> String {
    let parts =
        [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let mut shown: Vec<String> = parts
        .iter()
        .skip_while(|(count, _)| *count == 0)
        .take(2)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    if shown.is_empty() {
        shown.push("0s".to_owned());
    }
    shown.join(" ")
}

/// What is left until a moment of CLOCK_MONOTONIC, in seconds; `None` for one that never comes.
pub(super) fn left_seconds(expires: u64, now: u64) -> Option<u64> {
    (expires != 0).then(|| expires.saturating_sub(now).div_ceil(1_000_000_000))
}

/// `1 service`, `2 services`.
pub(super) fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ if noun.ends_with('x') => format!("{number} {noun}es"),
        _ => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up() {
        let rows = [vec!["eth0".to_owned(), "7".to_owned()], vec!["lo".to_owned(), "1234".to_owned()]];
        assert_eq!(table(&["NAME", ">COUNT"], &rows), "NAME  COUNT\neth0      7\nlo     1234\n");
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3600, "1h 0m"), (90_061, "1d 1h")] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn counts_have_a_noun() {
        assert_eq!(
            [count(1, "prefix"), count(2, "prefix"), count(0, "service")],
            ["1 prefix", "2 prefixes", "0 services"]
        );
    }
}
