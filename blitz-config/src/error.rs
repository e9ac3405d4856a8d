//! What is wrong with a configuration, in words that an operator can act on.
//!
//! Owns: one issue (where, which key, what), the bounded list of them, and how a value from the
//! file is quoted. Does not own: the checks that find issues (see [`crate::file`] and
//! [`mod@crate::validate`]).
#![forbid(unsafe_code)]

use std::fmt;

/// Issues kept by one error (count). More are counted and named in a last line, not kept: a file
/// of 10,000 broken routes must not become 10,000 lines of log.
pub const ISSUES_MAX: usize = 20;

/// Characters of a value or key that a message repeats. The rest is cut and marked with `…`.
const QUOTED_CHARS_MAX: usize = 80;

/// Why a configuration was refused. Holds at least one issue.
///
/// `Display` writes one line per issue, without a final newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    issues: Vec<Issue>,
    omitted: usize,
}

/// One thing that is wrong, on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// The file's name, or `command line`.
    pub source: String,
    /// Where in the text, when the text could not be read as JSON or TOML at all.
    pub position: Option<Position>,
    /// The key path such as `upstreams.api.endpoints[1].address`, or the flag. Empty: the whole source.
    pub path: String,
    /// The value, what is wrong with it, and what is accepted.
    pub message: String,
}

/// A place in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// From 1. Characters in TOML, bytes in JSON.
    pub column: usize,
}

impl ConfigError {
    /// An error of one issue.
    pub(crate) fn one(issue: Issue) -> Self {
        Self { issues: vec![issue], omitted: 0 }
    }

    /// What was found, in the order of the checks, at most [`ISSUES_MAX`].
    pub fn issues(&self) -> &[Issue] {
        &self.issues
    }

    /// How many more were found than are kept.
    pub fn omitted(&self) -> usize {
        self.omitted
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, issue) in self.issues.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            issue.fmt(f)?;
        }
        if self.omitted > 0 {
            let source = self.issues.first().map_or("", |issue| issue.source.as_str());
            write!(f, "\n{source}: {} more not shown", self.omitted)?;
        }
        Ok(())
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        f.write_str(": ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Collects issues of one source up to [`ISSUES_MAX`].
#[derive(Debug)]
pub(crate) struct Issues {
    source: String,
    found: Vec<Issue>,
    omitted: usize,
}

impl Issues {
    pub(crate) fn new(source: &str) -> Self {
        Self { source: one_line(source), found: Vec::new(), omitted: 0 }
    }

    /// Notes an issue of this collector's own source.
    pub(crate) fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.add_with(|| (path.into(), message.into()));
    }

    /// As `add`, for a path and message that cost something: made only when they are kept, or
    /// 100,000 wrong routes would each look for the upstream they might have meant.
    pub(crate) fn add_with(&mut self, issue: impl FnOnce() -> (String, String)) {
        if self.found.len() >= ISSUES_MAX {
            self.omitted += 1;
            return;
        }
        let (path, message) = issue();
        let source = self.source.clone();
        self.found.push(Issue { source, position: None, path, message: one_line(&message) });
    }

    /// Notes the issues of another source behind the own ones: a flag's behind a file's.
    pub(crate) fn append(&mut self, other: Self) {
        let room = ISSUES_MAX.saturating_sub(self.found.len());
        self.omitted += other.omitted + other.found.len().saturating_sub(room);
        self.found.extend(other.found.into_iter().take(room));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// `value` when nothing was found, else the error.
    pub(crate) fn into_result<T>(self, value: T) -> Result<T, ConfigError> {
        if self.is_empty() {
            Ok(value)
        } else {
            Err(ConfigError { issues: self.found, omitted: self.omitted })
        }
    }
}

/// A string from the file in double quotes, control characters escaped, cut at a readable length:
/// a message stays one line whatever the file holds.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for (count, c) in text.chars().enumerate() {
        if count == QUOTED_CHARS_MAX {
            out.push('…');
            break;
        }
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if is_unprintable(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The text with its control characters escaped, so that it cannot break the line it is put into.
pub(crate) fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unprintable(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Control characters, and those that reorder or break a line on a terminal.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}
