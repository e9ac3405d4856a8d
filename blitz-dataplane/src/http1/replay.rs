//! Feeds one message to the codec in chosen pieces and notes everything that came out.
//!
//! Owns: the loop that a connection would run, without IO, and the checks of what every step may consume. Used by the
//! corpus, the property tests and the fuzz targets; does not own: their inputs or expectations.

use super::{
    BodyDecoder, BodyFraming, H1Error, HeadKind, HeadLimits, HeadScanner, RequestFraming, ResponseFraming,
    Step, read_request, read_response,
};
use crate::exchange::{Method, RequestHead, ResponseHead, Scheme};
use crate::fields::{Fields, KnownSet};

/// What the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A request with its body.
    Request,
    /// A response to a request with this method, with its body.
    Response(Method),
    /// A chunked body alone.
    Chunked,
}

/// The head that was parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Request(Box<RequestHead>, RequestFraming),
    Response(Box<ResponseHead>, ResponseFraming),
}

/// Everything that came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Transcript {
    /// The head, if there was a complete and valid one.
    pub(super) head: Option<Head>,
    /// The body bytes delivered.
    pub(super) content: Vec<u8>,
    /// The trailers in wire form.
    pub(super) trailers: Vec<u8>,
    /// Whether the message is complete.
    pub(super) complete: bool,
    /// Bytes after the end of a complete message.
    pub(super) left: usize,
    /// Why the message was refused.
    pub(super) error: Option<H1Error>,
}

/// Feeds `bytes` in pieces whose lengths `next_piece` gives (0 counts as 1), then ends the connection.
pub(super) fn replay(
    kind: Kind,
    limits: &HeadLimits,
    bytes: &[u8],
    next_piece: &mut dyn FnMut() -> usize,
) -> Transcript {
    let mut transcript = Transcript::default();
    if let Err(error) = feed(kind, limits, bytes, next_piece, &mut transcript) {
        transcript.error = Some(error);
    }
    transcript
}

fn feed(
    kind: Kind,
    limits: &HeadLimits,
    bytes: &[u8],
    next_piece: &mut dyn FnMut() -> usize,
    transcript: &mut Transcript,
) -> Result<(), H1Error> {
    let scanner_kind = if kind == Kind::Request { HeadKind::Request } else { HeadKind::Response };
    let mut scanner = HeadScanner::new(scanner_kind, limits.head_bytes_max);
    let mut decoder = (kind == Kind::Chunked).then(|| BodyFraming::Chunked.decoder());
    let mut received = 0;
    // Where the bytes not yet consumed begin.
    let mut at = 0;
    while received < bytes.len() {
        received = received.saturating_add(next_piece().max(1)).min(bytes.len());
        if decoder.is_none() {
            let Some((framing, end)) = read(kind, &mut scanner, &bytes[..received], limits, transcript)?
            else {
                continue;
            };
            assert!(0 < end && end <= received, "a head outside the bytes received");
            decoder = Some(framing.decoder());
            at = end;
        }
        if let Some(decoder) = &mut decoder {
            at += take_body(decoder, &bytes[at..received], transcript)?;
            if transcript.complete {
                transcript.left = bytes.len() - at;
                return Ok(());
            }
        }
    }
    // A message without a byte of head is not an error; an incomplete one is.
    match decoder {
        Some(decoder) => {
            decoder.on_eof()?;
            transcript.complete = true;
            Ok(())
        }
        None if scanner.has_begun() => Err(H1Error::UnexpectedEof),
        None => Ok(()),
    }
}

/// Reads the head and notes it.
fn read(
    kind: Kind,
    scanner: &mut HeadScanner,
    bytes: &[u8],
    limits: &HeadLimits,
    transcript: &mut Transcript,
) -> Result<Option<(BodyFraming, usize)>, H1Error> {
    if let Kind::Response(method) = kind {
        let mut out = ResponseHead::default();
        let found = read_response(scanner, bytes, limits, &method, &mut out)?;
        Ok(found.map(|(framing, end)| {
            transcript.head = Some(Head::Response(Box::new(out), framing));
            (framing.body, end)
        }))
    } else {
        let mut out = RequestHead::new(Scheme::Http);
        let found = read_request(scanner, bytes, limits, &mut out)?;
        Ok(found.map(|(framing, end)| {
            transcript.head = Some(Head::Request(Box::new(out), framing));
            (framing.body, end)
        }))
    }
}

/// Takes what there is of the body; says how much was consumed.
fn take_body(decoder: &mut BodyDecoder, input: &[u8], transcript: &mut Transcript) -> Result<usize, H1Error> {
    let mut at = 0;
    loop {
        let rest = &input[at..];
        let step = decoder.decode(rest)?;
        assert!(step.consumed() <= rest.len(), "more consumed than given");
        at += step.consumed();
        match step {
            Step::NeedMore { consumed } => {
                assert_eq!(consumed, rest.len(), "asks for more and leaves some");
                return Ok(at);
            }
            Step::Data(range) => {
                assert!(!range.is_empty(), "data without bytes");
                transcript.content.extend_from_slice(&rest[range]);
            }
            Step::End { .. } => {
                assert!(decoder.is_complete(), "ended and not complete");
                transcript.complete = true;
                transcript.trailers = decoder.trailers().map(wire).unwrap_or_default();
                return Ok(at);
            }
        }
    }
}

/// The section in wire form.
pub(super) fn wire(fields: &Fields) -> Vec<u8> {
    fields.wire_runs(KnownSet::EMPTY).collect::<Vec<_>>().concat()
}
