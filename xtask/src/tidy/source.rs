//! Checks on one file's text.
//!
//! Owns: lines, markers, the unsafe fence, metric names, headers, dependency reasons. Does not own:
//! whether a file belongs to a module tree (see [`super::modules`]) or links (see [`super::links`]).

use std::path::Path;

use super::Finding;

/// Characters in a line of Rust.
const LINE_CHARS_MAX: usize = 120;
/// Lines in a file of Rust. Beyond it a file holds two concepts.
const FILE_LINES_MAX: usize = 900;

/// Written in halves, so that this file does not find itself.
const MARKERS: &[&str] = &[
    concat!("to", "do!"),
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("db", "g!"),
    concat!("unimple", "mented!"),
];

/// Folders that exist on somebody's machine and on no other.
const MACHINE_PATHS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Us", "ers/")];

/// Where `unsafe` may be written: system calls, rings, the shared segment, BPF maps
/// and packets, and what only measures or tests. This tool forbids it in its own root and only speaks of it.
const UNSAFE_FENCE: &[&str] = &[
    "blitz-ctl-protocol/src/sys.rs",
    "blitz-dataplane/src/sys/",
    "blitz-dataplane/src/runtime/",
    "blitz-dataplane/src/segment/",
    "blitz-ctl/src/sys/",
    "blitz-ebpf/src/atomic.rs",
    "blitz-ebpf/src/datagram.rs",
    "blitz-ebpf/src/frame.rs",
    "blitz-ebpf/src/main.rs",
    "blitz-ebpf/src/reuseport.rs",
    "blitz-ebpf/src/rotate.rs",
    "blitz-ebpf/src/tables.rs",
    "blitz-ebpf-common/src/user.rs",
    "bench/",
    "tests/",
    "xtask/",
];

/// Checks that hold for any text file.
pub(super) fn check_text(file: &Path, text: &str, findings: &mut Vec<Finding>) {
    let is_markdown = file.extension().is_some_and(|ending| ending == "md");
    let mut found = |line, what: String| findings.push(Finding { file: file.to_owned(), line, what });
    for (at, line) in (1..).zip(text.lines()) {
        if line.ends_with([' ', '\t', '\r']) {
            found(at, "trailing blank".to_owned());
        }
        for path in MACHINE_PATHS {
            if line.contains(path) {
                found(at, format!("{path} is a path of one machine"));
            }
        }
        for marker in MARKERS {
            if has_word(line, marker) && !is_markdown {
                found(at, format!("leftover marker {marker}"));
            }
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        found(text.lines().count(), "the last line does not end".to_owned());
    }
}

/// Checks on a file of Rust.
pub(super) fn check_rust(file: &Path, text: &str, findings: &mut Vec<Finding>) {
    let mut found = |line, what: String| findings.push(Finding { file: file.to_owned(), line, what });
    let first = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
    if !first.is_some_and(|line| line.starts_with("//!")) {
        found(1, "no `//!` header that says what this file owns".to_owned());
    }
    let count = text.lines().count();
    if count > FILE_LINES_MAX {
        found(0, format!("{count} lines; more than {FILE_LINES_MAX} ask to be two files"));
    }
    let fenced = UNSAFE_FENCE.iter().any(|fence| file.starts_with(fence));
    // The programs' own names; what tests and tools look for is written where they look.
    let names_metrics = (file.starts_with("blitz-dataplane/src") && !file.ends_with("metrics/names.rs"))
        || (file.starts_with("blitz-ctl/src") && !file.ends_with("daemon/names.rs"));
    let mut is_test = file.ends_with("tests.rs")
        || file.ends_with("corpus.rs")
        || file.components().any(|part| part.as_os_str() == "tests");
    for (at, line) in (1..).zip(text.lines()) {
        // Unit tests stand at the end of their file.
        is_test |= line == "#[cfg(test)]";
        // Data of a test is easier to read on one long line than cut into pieces.
        let chars = if is_test { without_literals(line).chars().count() } else { line.chars().count() };
        if chars > LINE_CHARS_MAX {
            found(at, format!("{chars} characters; at most {LINE_CHARS_MAX}"));
        }
        let code = without_comment(line);
        if !fenced && has_word(&without_literals(code), concat!("un", "safe")) {
            found(at, "unsafe code outside its fence".to_owned());
        }
        if names_metrics && !is_test && has_metric_name(code) {
            found(at, "a metric name outside the names module of its crate".to_owned());
        }
    }
}

/// Each line of the version table says why the crate is there.
pub(super) fn check_dependencies(file: &Path, text: &str, findings: &mut Vec<Finding>) {
    let mut in_table = false;
    for (at, line) in (1..).zip(text.lines()) {
        if line.starts_with('[') {
            in_table = line.trim() == "[workspace.dependencies]";
        } else if in_table
            && let Some((name, value)) = line.split_once('=')
            && !line.trim_start().starts_with('#')
            && !value.contains("path =")
            && !value.contains('#')
        {
            let what = format!("{}: no word on why this dependency is here", name.trim());
            findings.push(Finding { file: file.to_owned(), line: at, what });
        }
    }
}

/// Moves the last words of an over-long `//` comment to the next line of the same comment, or to a new one.
pub(super) fn rewrap_comments(text: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at].clone();
        let rest = line.trim_start();
        let mark = ["///", "//!", "//"].into_iter().find(|mark| rest.starts_with(mark));
        if let Some(mark) = mark.filter(|_| line.chars().count() > LINE_CHARS_MAX) {
            let prefix = format!("{}{mark} ", &line[..line.len() - rest.len()]);
            let limit = line.char_indices().nth(LINE_CHARS_MAX).map_or(line.len(), |(byte, _)| byte);
            // The blank to cut at, if there is one behind the prefix.
            if let Some(cut) = line[..=limit].rfind(' ').filter(|cut| *cut >= prefix.len()) {
                let moved = line[cut + 1..].to_owned();
                lines[at].truncate(cut);
                let next = lines.get(at + 1).and_then(|next| next.strip_prefix(&prefix)).map(str::to_owned);
                // A list item, a table or an indented line is a line of its own.
                let joins =
                    |next: &String| !next.starts_with(['-', '*', '|', ' ', '#', '`']) && !next.is_empty();
                match next.filter(joins) {
                    Some(next) => lines[at + 1] = format!("{prefix}{moved} {next}"),
                    None => lines.insert(at + 1, format!("{prefix}{moved}")),
                }
            }
        }
        at += 1;
    }
    lines.join("\n") + "\n"
}

/// The line without what stands between quotes.
fn without_literals(line: &str) -> String {
    let plain = line.replace("\\\"", "");
    plain.split('"').step_by(2).collect()
}

/// A literal such as `"blitz_requests_total"`, but not a crate's name used as a log target.
fn has_metric_name(code: &str) -> bool {
    let crates = ["dataplane", "config", "ctl", "tests", "bench", "ebpf"];
    code.match_indices("\"blitz_").any(|(at, literal)| {
        let rest = &code[at + literal.len()..];
        !crates.iter().any(|name| rest.starts_with(name))
    })
}

/// Whether `word` stands in `line` with no letter, digit or underscore around it.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && (word.ends_with('!') || !after.is_some_and(is_part))
    })
}

/// The line up to `//`, unless it stands in a string such as a URL.
fn without_comment(line: &str) -> &str {
    let cut = line.match_indices("//").find(|(at, _)| line[..*at].matches('"').count().is_multiple_of(2));
    cut.map_or(line, |(at, _)| &line[..at])
}
