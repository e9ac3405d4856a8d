//! What a connection does, written down for whoever looks for a fault (qlog, draft-ietf-quic-qlog-main-schema).
//!
//! Owns: getting quiche's records into a pipe without ever waiting for its reader, and without what would let the
//! reader speak for a client. Does not own: what else is recorded (quiche), who asked for it (`control/qlog.rs`).

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::metrics::names::Metric;
use crate::segment::WorkerRows;

/// Bytes of one record, at most. A longer one is dropped.
const RECORD_BYTES_MAX: usize = 64 * 1024;

/// What a record may hold that is nobody's business: the values of fields (cookies, credentials, what is asked for),
/// and the tokens by which a client is known or its connection ended.
const FIELDS: &str = "headers";
const TOKENS: [&str; 2] = ["stateless_reset_token", "token"];

/// Fields whose values are recorded.
const SHOWN: [&str; 2] = [":method", ":status"];

/// Takes records (RFC 7464: RS, JSON, LF) in the small pieces that a serializer writes, and puts each whole into the
/// pipe. What the pipe has no room for is dropped and counted: the reader sees a gap in the times, never half a record.
pub(super) struct Recorder {
    pipe: File,
    /// The record that is being written.
    record: Vec<u8>,
    /// The rest of one of which the pipe has taken a part.
    rest: Vec<u8>,
    is_too_long: bool,
    /// Nobody reads any more.
    is_over: bool,
    /// quiche wants what can be shared; nobody ever waits for it.
    rows: Mutex<WorkerRows>,
}

impl Recorder {
    /// Writes to `pipe`, which does not block.
    pub(super) fn new(pipe: OwnedFd, rows: WorkerRows) -> Self {
        let (record, rest) = (Vec::new(), Vec::new());
        Self {
            pipe: File::from(pipe),
            record,
            rest,
            is_too_long: false,
            is_over: false,
            rows: Mutex::new(rows),
        }
    }

    /// Puts as much of `bytes` into the pipe as it takes now; how much that was.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let mut put = 0;
        while let Some(left) = bytes.get(put..).filter(|left| !left.is_empty() && !self.is_over) {
            match self.pipe.write(left) {
                Ok(taken) => put += taken,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_over = error.kind() != ErrorKind::WouldBlock;
                    break;
                }
            }
        }
        put
    }

    fn end_record(&mut self) {
        let mut rest = std::mem::take(&mut self.rest);
        rest.drain(..self.put(&rest));
        self.rest = rest;
        let record = std::mem::take(&mut self.record);
        let shown = if self.is_too_long { None } else { without_secrets(&record) };
        let put = match &shown {
            Some(shown) if self.rest.is_empty() => self.put(shown),
            _ => 0,
        };
        let fate = if put == 0 { Metric::QlogDropped } else { Metric::QlogRecorded };
        self.rows.get_mut().unwrap_or_else(PoisonError::into_inner).add(fate, 1);
        if let Some(shown) = shown
            && put > 0
        {
            self.rest.extend_from_slice(shown.get(put..).unwrap_or_default());
        }
        self.record = record;
        self.record.clear();
        self.is_too_long = false;
    }
}

/// The record without what nobody shall read in it; `None` when it cannot be told.
fn without_secrets(record: &[u8]) -> Option<Cow<'_, [u8]>> {
    let names = TOKENS.iter().chain([&FIELDS]);
    let has = |name: &&str| {
        record.windows(name.len() + 1).any(|part| part.strip_suffix(b"\"") == Some(name.as_bytes()))
    };
    if !names.clone().any(has) {
        return Some(Cow::Borrowed(record));
    }
    let json = record.strip_prefix(SEPARATOR).unwrap_or(record);
    let mut value: Value = serde_json::from_slice(json).ok()?;
    hide(&mut value);
    let mut shown = SEPARATOR.to_vec();
    serde_json::to_writer(&mut shown, &value).ok()?;
    shown.push(b'\n');
    Some(Cow::Owned(shown))
}

/// What stands before a record (RFC 7464).
const SEPARATOR: &[u8] = b"\x1e";

fn hide(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(hide),
        Value::Object(members) => {
            for (name, member) in members {
                if TOKENS.contains(&name.as_str()) {
                    *member = Value::from("hidden");
                } else if name == FIELDS {
                    member.as_array_mut().into_iter().flatten().for_each(hide_field);
                } else {
                    hide(member);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Leaves the field's name.
fn hide_field(field: &mut Value) {
    if !field["name"].as_str().is_some_and(|name| SHOWN.contains(&name)) {
        for value in ["value", "value_bytes"] {
            if let Some(value) = field.get_mut(value) {
                *value = Value::from("hidden");
            }
        }
    }
}

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_over {
            return Ok(bytes.len());
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.is_too_long |= self.record.len() + piece.len() > RECORD_BYTES_MAX;
            if !self.is_too_long {
                self.record.extend_from_slice(piece);
            }
            // In JSON a line's end stands behind a record and nowhere else.
            if piece.ends_with(b"\n") {
                self.end_record();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::segment::{Segment, Shape};

    fn recorder() -> (Recorder, io::PipeReader) {
        let (reader, writer) = crate::sys::pipe::non_blocking(4096).expect("a pipe");
        let segment = Segment::create(Shape { workers: 1, endpoints: 1 }).expect("a segment");
        let rows = segment.worker(0).expect("its rows");
        (Recorder::new(writer, rows), io::PipeReader::from(reader))
    }

    #[test]
    fn a_reader_that_is_slow_gets_whole_records_with_a_gap_between() {
        let (mut recorder, mut reader) = recorder();
        let record = |number: u32| format!("\x1e{{\"number\":{number},\"text\":\"{}\"}}\n", "x".repeat(300));
        for number in 0..1000 {
            for piece in record(number).as_bytes().chunks(7) {
                recorder.write_all(piece).expect("it takes everything");
            }
        }
        let mut got = vec![0; 1 << 16];
        let len = reader.read(&mut got).expect("the pipe is full");
        got.truncate(len);
        // The rest of the record that was cut comes before the next one.
        recorder.write_all(record(1000).as_bytes()).expect("it takes everything");
        drop(recorder);
        reader.read_to_end(&mut got).expect("the writer has gone");
        let text = String::from_utf8(got).expect("text");
        let numbers: Vec<u32> = text
            .split_terminator('\n')
            .map(|line| {
                let value: serde_json::Value =
                    serde_json::from_str(line.trim_start_matches('\x1e')).expect(line);
                u32::try_from(value["number"].as_u64().expect("a number")).expect("a small one")
            })
            .collect();
        let cut = u32::try_from(numbers.len()).expect("few") - 1;
        assert!(cut >= 10, "{cut} records fit");
        assert_eq!(numbers, (0..cut).chain([1000]).collect::<Vec<_>>());
    }

    #[test]
    fn what_would_let_the_reader_speak_for_the_client_is_hidden() {
        let (mut recorder, mut reader) = recorder();
        let record = "\x1e{\"time\":1.5,\"name\":\"x\",\"data\":{\"stateless_reset_token\":\"SECRET\",\"frames\":[\
            {\"frame_type\":\"new_connection_id\",\"stateless_reset_token\":\"SECRET\"},\
            {\"frame_type\":\"new_token\",\"token\":{\"raw\":\"SECRET\"}},\
            {\"headers\":[{\"name\":\":method\",\"value\":\"GET\"},{\"name\":\":path\",\"value\":\"/?SECRET\"},\
            {\"name\":\"cookie\",\"value\":\"SECRET\"},{\"name_bytes\":\"61\",\"value_bytes\":\"SECRET\"}]}]}}\n";
        recorder.write_all(record.as_bytes()).expect("it takes everything");
        recorder.write_all(b"\x1e{\"headers\": not JSON\n\x1e{}\n").expect("it takes everything");
        drop(recorder);
        let mut got = String::new();
        reader.read_to_string(&mut got).expect("text");
        assert!(!got.contains("SECRET"), "{got}");
        for kept in ["1.5", "new_connection_id", "new_token", "\"GET\"", ":path", "cookie", "\n\x1e{}\n"] {
            assert!(got.contains(kept), "no {kept} in {got}");
        }
        assert_eq!(got.matches('\n').count(), 2, "what cannot be read is not shown: {got}");
    }

    #[test]
    fn nobody_who_reads_and_a_record_without_end_are_borne() {
        let (mut recorder, mut reader) = recorder();
        let endless = vec![b'x'; RECORD_BYTES_MAX];
        for _ in 0..3 {
            recorder.write_all(&endless).expect("it takes everything");
        }
        assert!(recorder.record.capacity() <= 2 * RECORD_BYTES_MAX, "{}", recorder.record.capacity());
        recorder.write_all(b"\n{}\n").expect("it takes everything");
        let mut got = [0; 16];
        assert_eq!(reader.read(&mut got).expect("a record"), 3);
        drop(reader);
        recorder.write_all(b"{}\n{}\n").expect("it takes everything");
        assert!(recorder.is_over);
    }
}
