//! Finds the end of a head in bytes that arrive in any pieces.
//!
//! Owns: line ends, folding, empty lines before the start line, the size limit. Does not own: the syntax within a line
//! (`request.rs`, `response.rs`), or the buffer.
//!
//! Each byte is looked at once per search however the input is split, so the cost is linear in the bytes. The verdict
//! does not depend on the split either: of several faults of this module's kind, the first in the bytes is reported.

use super::error::H1Error;

/// Which kind of head is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// At most [`EMPTY_LINES_MAX`] empty lines before the request line are skipped (RFC 9112 section 2.2).
    Request,
    /// No empty line may stand before the status line.
    Response,
}

/// Empty lines that a client may send before a request line. RFC 9112 section 2.2 asks for at least one, for old
/// clients that end a body with an extra CRLF; the second is for those that did so and then were kept alive.
pub const EMPTY_LINES_MAX: u8 = 2;

/// What the scanner knows after a look at the bytes so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// The head is not complete.
    Partial,
    /// The head is `bytes[start..end]`, its empty line included; what follows `end` is not looked at.
    Complete {
        /// Where the start line begins, after skipped empty lines.
        start: usize,
        /// Where the head ends.
        end: usize,
    },
}

/// Remembers how far a head has been looked at.
#[derive(Clone, Copy, Debug)]
pub struct HeadScanner {
    kind: HeadKind,
    empty_lines: u8,
    bytes_max: u32,
    /// Where the start line begins.
    start: u32,
    /// All bytes before have been searched for LF.
    searched: u32,
    /// Where the line now searched begins.
    line: u32,
    /// All bytes before have been searched for NUL and bare CR.
    checked: u32,
}

impl HeadScanner {
    /// A scanner for a head of at most `bytes_max` bytes, skipped empty lines included.
    #[must_use]
    pub fn new(kind: HeadKind, bytes_max: usize) -> Self {
        let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX);
        Self { kind, empty_lines: 0, bytes_max, start: 0, searched: 0, line: 0, checked: 0 }
    }

    /// Starts over for the next head.
    pub fn reset(&mut self) {
        *self = Self::new(self.kind, self.bytes_max as usize);
    }

    /// Looks at the head's bytes so far: all of them, from the first to the last received, in one piece. Each call gets
    /// the bytes of the call before, and more.
    ///
    /// # Errors
    /// [`H1Error::BareLf`], [`H1Error::BareCr`], [`H1Error::Nul`], [`H1Error::ObsFold`], [`H1Error::EmptyLines`] as
    /// soon as they are seen; [`H1Error::HeadTooLarge`] when the limit is reached before the end, or
    /// [`H1Error::TargetTooLong`] when not even the request line has ended by then.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Scan, H1Error> {
        let limit = self.bytes_max as usize;
        let seen = bytes.get(..limit).unwrap_or(bytes);
        let mut searched = self.searched as usize;
        loop {
            let rest = seen.get(searched..).unwrap_or_default();
            let Some(found) = memchr::memchr(b'\n', rest) else {
                break;
            };
            let lf = searched + found;
            let line_start = self.line as usize;
            let line = seen.get(line_start..lf).unwrap_or_default();
            if line_start > self.start as usize && matches!(line, [b' ' | b'\t', ..]) {
                return Err(self.first_fault(seen, line_start, H1Error::ObsFold));
            }
            // The line without its LF; it must end with CR.
            let Some((b'\r', text)) = line.split_last() else {
                return Err(self.first_fault(seen, lf, H1Error::BareLf));
            };
            searched = lf + 1;
            self.searched = searched as u32;
            self.line = searched as u32;
            match text {
                [] if line_start > self.start as usize => {
                    let start = self.start as usize;
                    return Ok(Scan::Complete { start, end: searched });
                }
                [] => {
                    self.empty_lines += 1;
                    if self.kind == HeadKind::Response || self.empty_lines > EMPTY_LINES_MAX {
                        return Err(self.first_fault(seen, lf, H1Error::EmptyLines));
                    }
                    self.start = searched as u32;
                }
                _ => {}
            }
        }
        self.searched = seen.len() as u32;
        self.check_incomplete(seen)?;
        if seen.len() == limit {
            let within_start_line = self.line == self.start;
            let is_target = within_start_line && self.kind == HeadKind::Request;
            return Err(if is_target { H1Error::TargetTooLong } else { H1Error::HeadTooLarge });
        }
        Ok(Scan::Partial)
    }

    /// Whether nothing has been looked at yet.
    pub(super) const fn is_fresh(&self) -> bool {
        self.searched == 0
    }

    /// Whether a byte of the start line has been seen; empty lines before it do not count.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        self.searched > self.line || self.line > self.start
    }

    /// What can be said of a head that has not ended: NUL, bare CR, and the first byte of the unfinished line. A
    /// complete head is not searched for NUL and CR here, since the parser looks at each byte anyway.
    fn check_incomplete(&mut self, seen: &[u8]) -> Result<(), H1Error> {
        if let Some((at, fault)) = first_control(seen, self.checked as usize) {
            // A fold in an earlier byte comes first.
            let fold = self.unfinished_fold(seen).filter(|fold_at| *fold_at < at);
            return Err(fold.map_or(fault, |_| H1Error::ObsFold));
        }
        // A CR at the very end may still get its LF.
        let checked = if seen.last() == Some(&b'\r') { seen.len() - 1 } else { seen.len() };
        self.checked = checked as u32;
        match self.unfinished_fold(seen) {
            Some(_) => Err(H1Error::ObsFold),
            None => Ok(()),
        }
    }

    /// Where the unfinished line begins with whitespace, if it does and is not the start line.
    fn unfinished_fold(&self, seen: &[u8]) -> Option<usize> {
        let line = self.line as usize;
        let is_fold = self.line > self.start && matches!(seen.get(line), Some(b' ' | b'\t'));
        is_fold.then_some(line)
    }

    /// The fault found at `at`, unless an earlier byte holds one that only the search for control bytes sees.
    fn first_fault(&self, seen: &[u8], at: usize, fault: H1Error) -> H1Error {
        let before = seen.get(..at).unwrap_or_default();
        first_control(before, self.checked as usize).map_or(fault, |(_, earlier)| earlier)
    }
}

/// The first NUL, or CR with another byte than LF after it, from `from` on. A CR at the end is not yet bare.
pub(super) fn first_control(bytes: &[u8], from: usize) -> Option<(usize, H1Error)> {
    let rest = bytes.get(from..)?;
    memchr::memchr2_iter(b'\r', b'\0', rest).map(|at| from + at).find_map(|at| match bytes.get(at) {
        Some(b'\0') => Some((at, H1Error::Nul)),
        _ => match bytes.get(at + 1) {
            None | Some(b'\n') => None,
            Some(_) => Some((at, H1Error::BareCr)),
        },
    })
}
