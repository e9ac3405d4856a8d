//! Chunked transfer coding, decoder (RFC 9112 section 7.1).
//!
//! Owns: the parse state, the bounds on lines, extensions and trailers, the trailer fields. Does not own: buffers, the
//! limit on the size of a body, deadlines; the encoder is in `encode.rs`.
//!
//! Chunk extensions: well-formed ones are checked, counted against a bound and dropped, since RFC 9112 section 7.1.1
//! asks recipients to ignore those they do not know and some senders use them. Malformed ones are refused: peers
//! disagree on where such a line ends (a bare LF, an open quote), which is how requests are smuggled. "Bad whitespace"
//! around `;` and `=`, or after the size, is refused too; no sender known to us produces it.
//!
//! Trailers: fields that would change framing, routing or the connection are refused; others that RFC 9110 section
//! 6.5.1 forbids in trailers (authentication, content format, caching and every other field known to the gateway) are
//! dropped; the rest is kept for forwarding.

use std::ops::Range;

use super::error::H1Error;
use super::head::name_field_error;
use crate::fields::{Fields, Known, KnownSet, is_token_byte, is_value_byte};

/// Most bytes of one chunk line after its size, the `;` included. Beyond: [`H1Error::ChunkExtensionTooLong`].
pub const CHUNK_LINE_BYTES_MAX: u32 = 256;

/// Most extension bytes in one body, so that a body of tiny chunks with long extensions does not cost many times its
/// size. Beyond: [`H1Error::ChunkExtensionTooLong`].
pub const EXTENSION_BYTES_PER_BODY_MAX: u32 = 16 * 1024;

/// Most bytes of a trailer section with its line ends. Beyond: [`H1Error::TrailersTooLarge`].
pub const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// Most fields of a trailer section. Beyond: [`H1Error::TrailersTooLarge`].
pub const TRAILER_FIELDS_MAX: usize = 64;

/// Most digits of a chunk size, leading zeros included: 64 bits, so a size never overflows.
const SIZE_DIGITS_MAX: u8 = 64 / 4;

/// Trailer fields that change framing, routing or the connection: a sender that puts them there is broken or hostile.
const REFUSED_TRAILERS: KnownSet = KnownSet::of(&[
    Known::Connection,
    Known::ContentLength,
    Known::Host,
    Known::KeepAlive,
    Known::ProxyConnection,
    Known::Te,
    Known::Trailer,
    Known::TransferEncoding,
    Known::Upgrade,
]);

/// Known fields that are fine as trailers: they describe what is known only at the end of the body.
const KEPT_TRAILERS: KnownSet = KnownSet::of(&[
    Known::Other,
    Known::Date,
    Known::ETag,
    Known::LastModified,
    Known::ProxyStatus,
    Known::Server,
]);

/// What one look at a body gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// All input is consumed and the body goes on.
    NeedMore {
        /// Bytes of the input that are done with: all of them.
        consumed: usize,
    },
    /// A piece of the body lies in the input; everything up to its end is consumed.
    Data(Range<usize>),
    /// The body is complete; what follows belongs to the next message.
    End {
        /// Bytes of the input that belonged to the body.
        consumed: usize,
    },
}

impl Step {
    /// Bytes of the input that are done with once the data has been taken.
    #[must_use]
    pub const fn consumed(&self) -> usize {
        match self {
            Self::NeedMore { consumed } | Self::End { consumed } => *consumed,
            Self::Data(range) => range.end,
        }
    }
}

/// Where in the coding the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the digits of a size; so many seen.
    Size { digits: u8 },
    /// After `;`, in the name of an extension; whether it has a byte yet.
    ExtensionName { is_empty: bool },
    /// After `=`.
    ExtensionValueStart,
    /// In a token as value.
    ExtensionToken,
    /// In a quoted string as value.
    ExtensionQuoted,
    /// After a backslash in a quoted string.
    ExtensionEscaped,
    /// After the closing quote.
    ExtensionQuoteEnd,
    /// After the CR of a size line.
    SizeLf,
    /// In the data of a chunk; `left` bytes are to come.
    Data,
    /// After the data.
    DataCr,
    /// After the data's CR.
    DataLf,
    /// At the start of a trailer line, or of the final empty line.
    TrailerLine,
    /// In a trailer line.
    Trailer,
    /// After the CR of a trailer line.
    TrailerLf,
    /// After the CR of the final empty line.
    FinalLf,
    /// Complete.
    End,
}

/// Decodes one chunked body. Holds no buffer unless the body has trailers.
#[derive(Clone, Debug)]
pub struct ChunkedDecoder {
    state: State,
    /// The size read so far, then the bytes of the chunk still to come.
    left: u64,
    /// Bytes of this line after its size.
    line_bytes: u32,
    /// Extension bytes of the body.
    extension_bytes: u32,
    trailers: Option<Box<Trailers>>,
}

/// The trailer section of a body that has one.
#[derive(Clone, Debug, Default)]
struct Trailers {
    /// The lines as received, at most [`TRAILER_BYTES_MAX`].
    raw: Vec<u8>,
    fields: Fields,
}

impl Default for ChunkedDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl ChunkedDecoder {
    /// A decoder at the start of a body.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: State::Size { digits: 0 }, left: 0, line_bytes: 0, extension_bytes: 0, trailers: None }
    }

    /// Whether the body is complete.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// The trailers of a complete body that had any.
    #[must_use]
    pub fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_ref().filter(|_| self.is_complete()).map(|trailers| &trailers.fields)
    }

    /// Consumes framing up to the next piece of data, the end of the body or the end of the input.
    ///
    /// # Errors
    /// [`H1Error::BadChunkSize`], [`H1Error::BadChunkExtension`], [`H1Error::ChunkExtensionTooLong`],
    /// [`H1Error::BadChunkEnd`], [`H1Error::BadTrailer`], [`H1Error::ForbiddenTrailer`], [`H1Error::TrailersTooLarge`].
    /// The decoder must not be used after an error.
    pub fn decode(&mut self, input: &[u8]) -> Result<Step, H1Error> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            match self.state {
                State::End => break,
                State::Data => {
                    let rest = input.len() - at;
                    let taken = usize::try_from(self.left).map_or(rest, |left| left.min(rest));
                    self.left -= taken as u64;
                    if self.left == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Step::Data(at..at + taken));
                }
                State::TrailerLine | State::Trailer | State::TrailerLf => self.trailer_byte(byte)?,
                _ => self.framing_byte(byte)?,
            }
            at += 1;
        }
        Ok(if self.is_complete() { Step::End { consumed: at } } else { Step::NeedMore { consumed: at } })
    }

    /// One byte of a size line, of the line end after data, or of the last line end.
    fn framing_byte(&mut self, byte: u8) -> Result<(), H1Error> {
        self.state = match (self.state, byte) {
            (State::Size { digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == SIZE_DIGITS_MAX {
                    return Err(H1Error::BadChunkSize);
                }
                self.left = self.left << 4 | hex_value(byte);
                State::Size { digits: digits + 1 }
            }
            (State::Size { digits: 0 }, _) => return Err(H1Error::BadChunkSize),
            (State::Size { .. }, b'\r') => State::SizeLf,
            (State::Size { .. }, b';') => self.extension_byte(State::ExtensionName { is_empty: true })?,
            (State::Size { .. }, b'\n') => return Err(H1Error::BadChunkEnd),
            (State::Size { .. }, _) => return Err(H1Error::BadChunkSize),

            // chunk-ext = *( ";" chunk-ext-name [ "=" chunk-ext-val ] ), RFC 9112 section 7.1.1.
            (State::ExtensionName { .. } | State::ExtensionToken, b) if is_token_byte(b) => {
                let next = if self.state == State::ExtensionToken {
                    State::ExtensionToken
                } else {
                    State::ExtensionName { is_empty: false }
                };
                self.extension_byte(next)?
            }
            (State::ExtensionName { is_empty: false }, b'=') => {
                self.extension_byte(State::ExtensionValueStart)?
            }
            (State::ExtensionValueStart, b'"') => self.extension_byte(State::ExtensionQuoted)?,
            (State::ExtensionValueStart, b) if is_token_byte(b) => {
                self.extension_byte(State::ExtensionToken)?
            }
            (State::ExtensionQuoted, b'"') => self.extension_byte(State::ExtensionQuoteEnd)?,
            (State::ExtensionQuoted, b'\\') => self.extension_byte(State::ExtensionEscaped)?,
            (State::ExtensionQuoted | State::ExtensionEscaped, b) if is_value_byte(b) => {
                self.extension_byte(State::ExtensionQuoted)?
            }
            (
                State::ExtensionName { is_empty: false } | State::ExtensionToken | State::ExtensionQuoteEnd,
                b';',
            ) => self.extension_byte(State::ExtensionName { is_empty: true })?,
            (
                State::ExtensionName { is_empty: false } | State::ExtensionToken | State::ExtensionQuoteEnd,
                b'\r',
            ) => State::SizeLf,

            (State::SizeLf, b'\n') => {
                self.line_bytes = 0;
                if self.left == 0 { State::TrailerLine } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { digits: 0 },
            (State::FinalLf, b'\n') => {
                self.finish_trailers()?;
                State::End
            }
            (State::SizeLf | State::DataCr | State::DataLf | State::FinalLf, _) => {
                return Err(H1Error::BadChunkEnd);
            }
            _ => return Err(H1Error::BadChunkExtension),
        };
        Ok(())
    }

    /// Counts a byte of an extension and goes on to `next`.
    const fn extension_byte(&mut self, next: State) -> Result<State, H1Error> {
        self.line_bytes += 1;
        self.extension_bytes += 1;
        if self.line_bytes > CHUNK_LINE_BYTES_MAX || self.extension_bytes > EXTENSION_BYTES_PER_BODY_MAX {
            return Err(H1Error::ChunkExtensionTooLong);
        }
        Ok(next)
    }

    /// One byte of the trailer section.
    fn trailer_byte(&mut self, byte: u8) -> Result<(), H1Error> {
        self.state = match (self.state, byte) {
            (State::TrailerLine, b'\r') => {
                self.state = State::FinalLf;
                return Ok(());
            }
            // A line must begin with a name: a fold, a bare LF or a colon does not.
            (State::TrailerLine, b) if !is_token_byte(b) => return Err(H1Error::BadTrailer),
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerLine | State::Trailer, b) if is_value_byte(b) => State::Trailer,
            (State::TrailerLf, b'\n') => State::TrailerLine,
            _ => return Err(H1Error::BadTrailer),
        };
        let raw = &mut self.trailers.get_or_insert_default().raw;
        if raw.len() == TRAILER_BYTES_MAX {
            return Err(H1Error::TrailersTooLarge);
        }
        raw.push(byte);
        Ok(())
    }

    /// Reads the trailer lines into fields.
    fn finish_trailers(&mut self) -> Result<(), H1Error> {
        let Some(trailers) = self.trailers.as_deref_mut() else {
            return Ok(());
        };
        trailers.raw.extend_from_slice(b"\r\n");
        let mut room = [httparse::EMPTY_HEADER; TRAILER_FIELDS_MAX];
        let found = match httparse::parse_headers(&trailers.raw, &mut room) {
            Ok(httparse::Status::Complete((consumed, found))) if consumed == trailers.raw.len() => found,
            Err(httparse::Error::TooManyHeaders) => return Err(H1Error::TrailersTooLarge),
            _ => return Err(H1Error::BadTrailer),
        };
        for header in found {
            let known = Known::lookup(header.name.as_bytes());
            if REFUSED_TRAILERS.contains(known) {
                return Err(H1Error::ForbiddenTrailer);
            }
            if KEPT_TRAILERS.contains(known) {
                trailers.fields.push(header.name.as_bytes(), header.value).map_err(name_field_error)?;
            }
        }
        trailers.raw = Vec::new();
        Ok(())
    }
}

/// The value of a hexadecimal digit; the caller has checked that it is one.
const fn hex_value(digit: u8) -> u64 {
    match digit {
        b'0'..=b'9' => (digit - b'0') as u64,
        _ => ((digit | 0x20) - b'a' + 10) as u64,
    }
}
