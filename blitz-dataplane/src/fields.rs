//! A field section: the header or trailer fields of one message, whatever the HTTP version.
//!
//! Owns: the bytes and offsets of the fields, the identity of the fields that the gateway treats itself ([`Known`]),
//! and lists of tokens in field values. Does not own: what a field means for framing (`http1/`), which fields are
//! forwarded (`exchange/forward.rs`).
//!
//! Invariant: `bytes` is the exact HTTP/1.1 wire form of all entries in order (`name ":" OWS value OWS CRLF` each), and
//! no byte in it can end a field early: every way in checks names for tokens and values for control bytes. Therefore a
//! codec may send runs of entries with one copy, and a value can never smuggle a second field.
//!
//! All storage is reused by [`Fields::clear`]; in steady state nothing is allocated.

#![forbid(unsafe_code)]

mod known;
mod list;
#[cfg(test)]
mod tests;

pub use known::{Known, KnownSet};
pub use list::{ListMembers, has_token, list_members};

/// Most bytes that one section holds, in wire form. A push beyond it fails with [`FieldError::SectionFull`].
/// One mebibyte: far above every configured head limit, so only a mistake inside the gateway reaches it.
pub const SECTION_BYTES_MAX: usize = 1024 * 1024;

/// Most bytes of a field name; a longer one fails with [`FieldError::Name`].
pub const NAME_BYTES_MAX: usize = u16::MAX as usize;

/// Bytes of storage that survive [`Fields::clear`]; a larger buffer is given back, so that one large head does not
/// stay on a connection for its lifetime.
const RETAINED_BYTES_MAX: usize = 16 * 1024;

/// Lines of storage that survive [`Fields::clear`], 16 bytes each; what the largest head needs.
const RETAINED_LINES_MAX: usize = 256;

/// Why a field was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldError {
    /// The name is empty, too long or not a token (RFC 9110 section 5.6.2).
    Name,
    /// The value holds a control byte other than a tab (RFC 9110 section 5.5).
    Value,
    /// The section would exceed [`SECTION_BYTES_MAX`].
    SectionFull,
    /// The parsed fields do not lie in the given bytes line by line, each line ended by CRLF.
    Layout,
}

/// One field line: where it lies in the section's bytes.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Offset of the first byte of the name; the line ends where the next entry starts.
    start: u32,
    /// Offset of the first byte of the value, outer whitespace not counted.
    value_start: u32,
    /// Bytes of the value, outer whitespace not counted.
    value_len: u32,
    /// Bytes of the name.
    name_len: u16,
    /// Which field it is.
    known: Known,
    /// The line no longer counts; its bytes stay until the next `clear`.
    removed: bool,
}

/// How often a field occurs that may occur once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occurrence<'a> {
    /// There is none.
    Absent,
    /// One line with this value.
    Once(&'a [u8]),
    /// Several lines.
    Repeated,
}

/// The fields of one message in the order received.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// Known fields with at least one live line.
    present: KnownSet,
    /// Live lines.
    live: usize,
}

impl Fields {
    /// An empty section without storage.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), entries: Vec::new(), present: KnownSet::EMPTY, live: 0 }
    }

    /// Forgets all fields and keeps the storage, up to 16 KiB of bytes and 256 lines.
    pub fn clear(&mut self) {
        self.bytes.clear();
        if self.bytes.capacity() > RETAINED_BYTES_MAX {
            self.bytes.shrink_to(RETAINED_BYTES_MAX);
        }
        self.entries.clear();
        if self.entries.capacity() > RETAINED_LINES_MAX {
            self.entries.shrink_to(RETAINED_LINES_MAX);
        }
        self.present = KnownSet::EMPTY;
        self.live = 0;
    }

    /// Number of field lines.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.live
    }

    /// Whether there is no field line.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Bytes of the live lines in HTTP/1.1 wire form (name, colon, whitespace, value, CRLF). Linear in the lines only
    /// when some were removed.
    #[must_use]
    pub fn bytes_len(&self) -> usize {
        if self.live == self.entries.len() {
            return self.bytes.len();
        }
        self.wire_runs(KnownSet::EMPTY).map(<[u8]>::len).sum()
    }

    /// Appends a field line. Outer whitespace of the value is dropped.
    ///
    /// # Errors
    /// [`FieldError::Name`] and [`FieldError::Value`] for bytes that RFC 9110 section 5 forbids,
    /// [`FieldError::SectionFull`] beyond [`SECTION_BYTES_MAX`]. The section is unchanged then.
    pub fn push(&mut self, name: &[u8], value: &[u8]) -> Result<(), FieldError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.iter().all(|b| is_token_byte(*b)) {
            return Err(FieldError::Name);
        }
        self.append(Known::lookup(name), name, &[value])
    }

    /// Appends a field line of a known field, spelled as [`Known::name`] spells it.
    ///
    /// # Errors
    /// As [`Self::push`]; [`FieldError::Name`] for [`Known::Other`], which has no name.
    pub fn push_known(&mut self, known: Known, value: &[u8]) -> Result<(), FieldError> {
        self.push_known_parts(known, &[value])
    }

    /// As [`Self::push_known`], the value given in pieces so that the caller need not join them first.
    ///
    /// # Errors
    /// As [`Self::push_known`].
    pub fn push_known_parts(&mut self, known: Known, parts: &[&[u8]]) -> Result<(), FieldError> {
        if matches!(known, Known::Other) {
            return Err(FieldError::Name);
        }
        self.append(known, known.name().as_bytes(), parts)
    }

    /// Writes one line; the name has been checked.
    fn append(&mut self, known: Known, name: &[u8], parts: &[&[u8]]) -> Result<(), FieldError> {
        let before = self.bytes.len();
        let value_len: usize = parts.iter().map(|part| part.len()).sum();
        // 4: colon, space, CR, LF.
        if before + name.len() + value_len + 4 > SECTION_BYTES_MAX {
            return Err(FieldError::SectionFull);
        }
        if parts.iter().any(|part| !is_value(part)) {
            return Err(FieldError::Value);
        }
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(b": ");
        let value_at = self.bytes.len();
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        let value = self.bytes.get(value_at..).unwrap_or_default();
        let leading = value.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let (value_start, value_len) = (value_at + leading, trim_ows(value).len());
        self.bytes.extend_from_slice(b"\r\n");
        self.record(before, name.len(), value_start, value_len, known);
        Ok(())
    }

    /// Appends all live lines of another section. One copy when none of them was removed, which makes a section
    /// prepared beforehand the cheapest way to add the same lines to many messages.
    ///
    /// # Errors
    /// [`FieldError::SectionFull`] beyond [`SECTION_BYTES_MAX`]; the section is unchanged then.
    pub fn extend(&mut self, other: &Self) -> Result<(), FieldError> {
        if self.bytes.len() + other.bytes_len() > SECTION_BYTES_MAX {
            return Err(FieldError::SectionFull);
        }
        if other.live != other.entries.len() {
            return other.iter().try_for_each(|(known, name, value)| self.append(known, name, &[value]));
        }
        // Fits because of the check above.
        let shift = self.bytes.len() as u32;
        self.bytes.extend_from_slice(&other.bytes);
        self.entries.extend(other.entries.iter().map(|entry| Entry {
            start: entry.start + shift,
            value_start: entry.value_start + shift,
            ..*entry
        }));
        self.present = self.present.union(other.present);
        self.live += other.live;
        Ok(())
    }

    /// Notes a line whose bytes are in place. Offsets fit because of `SECTION_BYTES_MAX` and `NAME_BYTES_MAX`.
    fn record(&mut self, start: usize, name_len: usize, value_start: usize, value_len: usize, known: Known) {
        self.entries.push(Entry {
            start: start as u32,
            value_start: value_start as u32,
            value_len: value_len as u32,
            name_len: name_len as u16,
            known,
            removed: false,
        });
        self.present.insert(known);
        self.live += 1;
    }

    /// Replaces the whole section by the fields that `httparse` found in `head`, with one copy of their bytes.
    ///
    /// `headers` must be httparse's result for `head` and lie in it; `head` ends with the empty line. The layout is
    /// checked, not assumed: each line must be ended by CRLF, so a bare LF that httparse tolerates is refused here.
    ///
    /// # Errors
    /// [`FieldError::Layout`] when a line is not where it should be, [`FieldError::Name`] for a name beyond
    /// [`NAME_BYTES_MAX`], [`FieldError::SectionFull`] beyond [`SECTION_BYTES_MAX`]. The section is empty then.
    pub fn set_from_head(&mut self, head: &[u8], headers: &[httparse::Header<'_>]) -> Result<(), FieldError> {
        self.clear();
        let outcome = self.fill_from_head(head, headers);
        if outcome.is_err() {
            self.clear();
        }
        outcome
    }

    fn fill_from_head(&mut self, head: &[u8], headers: &[httparse::Header<'_>]) -> Result<(), FieldError> {
        if !head.ends_with(b"\r\n\r\n") {
            return Err(FieldError::Layout);
        }
        let Some(first) = headers.first() else {
            return Ok(());
        };
        let base = head.as_ptr() as usize;
        let lines_start = (first.name.as_ptr() as usize).wrapping_sub(base);
        // The final CRLF is the empty line, not part of a field.
        let lines_end = head.len() - 2;
        let lines = head.get(lines_start..lines_end).ok_or(FieldError::Layout)?;
        if lines.len() > SECTION_BYTES_MAX {
            return Err(FieldError::SectionFull);
        }
        let lines_base = lines.as_ptr() as usize;
        self.entries.reserve(headers.len());
        for header in headers {
            let name = header.name.as_bytes();
            let start = (name.as_ptr() as usize).wrapping_sub(lines_base);
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(FieldError::Name);
            }
            // The two bytes before a line end the one before it (or the start line).
            let ended =
                (lines_start + start.min(lines.len())).checked_sub(2).and_then(|at| head.get(at..at + 2));
            if ended != Some(b"\r\n") || start >= lines.len() {
                return Err(FieldError::Layout);
            }
            let name_end = start + name.len();
            let value_start = match header.value {
                // httparse lets an empty value point anywhere.
                [] => name_end + 1,
                value => (value.as_ptr() as usize).wrapping_sub(lines_base),
            };
            let value_end = value_start.checked_add(header.value.len()).ok_or(FieldError::Layout)?;
            if value_start <= name_end || value_end + 2 > lines.len() {
                return Err(FieldError::Layout);
            }
            self.record(start, name.len(), value_start, header.value.len(), Known::lookup(name));
        }
        self.bytes.extend_from_slice(lines);
        Ok(())
    }

    /// All live lines in order: which field, its name as received, its value.
    pub fn iter(&self) -> impl Iterator<Item = (Known, &[u8], &[u8])> {
        self.entries
            .iter()
            .filter(|entry| !entry.removed)
            .map(|entry| (entry.known, self.name_of(entry), self.value_of(entry)))
    }

    /// Whether the field has a live line.
    #[must_use]
    pub const fn contains(&self, known: Known) -> bool {
        self.present.contains(known)
    }

    /// Whether any field of the set has a live line; constant cost.
    #[must_use]
    pub const fn contains_any(&self, set: KnownSet) -> bool {
        self.present.intersects(set)
    }

    /// The value of the field's first live line.
    #[must_use]
    pub fn get(&self, known: Known) -> Option<&[u8]> {
        self.get_all(known).next()
    }

    /// The values of all live lines of the field, in order.
    pub fn get_all(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        let entries = if self.present.contains(known) { self.entries.as_slice() } else { &[] };
        entries
            .iter()
            .filter(move |entry| entry.known == known && !entry.removed)
            .map(|entry| self.value_of(entry))
    }

    /// The field's only value, or that it is absent or repeated.
    #[must_use]
    pub fn occurrence(&self, known: Known) -> Occurrence<'_> {
        let mut values = self.get_all(known);
        match (values.next(), values.next()) {
            (None, _) => Occurrence::Absent,
            (Some(value), None) => Occurrence::Once(value),
            (Some(_), Some(_)) => Occurrence::Repeated,
        }
    }

    /// The value of the first live line with this name, compared without case.
    #[must_use]
    pub fn get_named(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(_, found, _)| found.eq_ignore_ascii_case(name)).map(|(_, _, value)| value)
    }

    /// Removes all lines of the field; says how many there were.
    pub fn remove(&mut self, known: Known) -> usize {
        if !self.present.contains(known) {
            return 0;
        }
        self.remove_set(KnownSet::EMPTY.with(known))
    }

    /// Removes all lines of every field of the set; says how many there were. One pass, none when no field is there.
    pub fn remove_set(&mut self, set: KnownSet) -> usize {
        if !self.present.intersects(set) {
            return 0;
        }
        let mut removed = 0;
        for entry in &mut self.entries {
            if set.contains(entry.known) && !entry.removed {
                entry.removed = true;
                removed += 1;
            }
        }
        self.present = self.present.without(set);
        self.live -= removed;
        removed
    }

    /// Removes all lines with this name, compared without case; says how many there were.
    pub fn remove_named(&mut self, name: &[u8]) -> usize {
        let known = Known::lookup(name);
        if known != Known::Other {
            return self.remove(known);
        }
        if !self.present.contains(Known::Other) {
            return 0;
        }
        let mut removed = 0;
        let mut others_left = false;
        for entry in &mut self.entries {
            if entry.known != Known::Other || entry.removed {
                continue;
            }
            let start = entry.start as usize;
            let found = self.bytes.get(start..start + usize::from(entry.name_len)).unwrap_or_default();
            if found.eq_ignore_ascii_case(name) {
                entry.removed = true;
                removed += 1;
            } else {
                others_left = true;
            }
        }
        if !others_left {
            self.present = self.present.without(KnownSet::EMPTY.with(Known::Other));
        }
        self.live -= removed;
        removed
    }

    /// Removes all lines of the field but the last.
    pub fn keep_last(&mut self, known: Known) {
        let mut is_last = true;
        for entry in self.entries.iter_mut().rev().filter(|entry| entry.known == known && !entry.removed) {
            if !std::mem::take(&mut is_last) {
                entry.removed = true;
                self.live -= 1;
            }
        }
    }

    /// The live lines in HTTP/1.1 wire form, without those of `except`, as the longest possible runs of bytes; each run
    /// ends with CRLF. Sending all of them one after the other sends the section.
    pub fn wire_runs(&self, except: KnownSet) -> impl Iterator<Item = &[u8]> {
        let whole = self.live == self.entries.len() && !self.present.intersects(except);
        let mut next = if whole { self.entries.len() } else { 0 };
        let mut whole_left = whole && !self.bytes.is_empty();
        std::iter::from_fn(move || {
            if std::mem::take(&mut whole_left) {
                return Some(self.bytes.as_slice());
            }
            let is_out = |entry: &Entry| entry.removed || except.contains(entry.known);
            let first = next + self.entries.get(next..)?.iter().position(|entry| !is_out(entry))?;
            let rest = self.entries.get(first..)?;
            let run_end = rest.iter().position(is_out).map_or(self.entries.len(), |count| first + count);
            next = run_end;
            let start = self.entries.get(first)?.start as usize;
            let end = self.entries.get(run_end).map_or(self.bytes.len(), |entry| entry.start as usize);
            self.bytes.get(start..end)
        })
    }

    fn name_of(&self, entry: &Entry) -> &[u8] {
        let start = entry.start as usize;
        self.bytes.get(start..start + usize::from(entry.name_len)).unwrap_or_default()
    }

    fn value_of(&self, entry: &Entry) -> &[u8] {
        let start = entry.value_start as usize;
        self.bytes.get(start..start + entry.value_len as usize).unwrap_or_default()
    }
}

/// Two sections are equal when they hold the same lines in the same order, names compared without case.
impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        self.live == other.live
            && self.iter().zip(other.iter()).all(|(a, b)| a.1.eq_ignore_ascii_case(b.1) && a.2 == b.2)
    }
}

impl Eq for Fields {}

/// Whether the byte may stand in a token (RFC 9110 section 5.6.2).
#[must_use]
pub const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Whether the byte may stand in a field value: visible, space, tab or above ASCII (RFC 9110 section 5.5).
#[must_use]
pub const fn is_value_byte(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=0x7e | 0x80..=0xff)
}

/// Whether all bytes may stand in a field value. No early exit within, so that the loop is vectorised.
fn is_value(bytes: &[u8]) -> bool {
    !bytes.iter().fold(false, |bad, byte| bad | !is_value_byte(*byte))
}

/// The bytes without optional whitespace (space, tab; RFC 9110 section 5.6.3) at both ends.
#[must_use]
pub fn trim_ows(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}
