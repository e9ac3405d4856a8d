//! Body framing of either side (RFC 9112 section 6).
//!
//! Owns: the four ways a body ends, and the choice of the decoder. Does not own: chunks (`chunked.rs`), buffers, limits
//! on the size of a body (the proxy's).

use super::chunked::{ChunkedDecoder, Step};
use super::error::H1Error;
use crate::exchange::BodyLength;
use crate::fields::Fields;

/// How a body is framed on an HTTP/1 connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// No body.
    Empty,
    /// So many bytes.
    Exact(u64),
    /// Chunks (RFC 9112 section 7.1).
    Chunked,
    /// Everything until the peer closes; responses only.
    UntilClose,
}

impl BodyFraming {
    /// The length for those above the codec.
    #[must_use]
    pub const fn length(self) -> BodyLength {
        match self {
            Self::Empty => BodyLength::Empty,
            Self::Exact(length) => BodyLength::Exact(length),
            Self::Chunked | Self::UntilClose => BodyLength::Unknown,
        }
    }

    /// A decoder for such a body.
    #[must_use]
    pub fn decoder(self) -> BodyDecoder {
        match self {
            Self::Empty => BodyDecoder::Empty,
            Self::Exact(left) => BodyDecoder::Exact { left },
            Self::Chunked => BodyDecoder::Chunked(ChunkedDecoder::new()),
            Self::UntilClose => BodyDecoder::UntilClose,
        }
    }
}

/// Reads one body.
#[derive(Clone, Debug)]
pub enum BodyDecoder {
    /// There is none.
    Empty,
    /// A body of known length.
    Exact {
        /// Bytes still to come.
        left: u64,
    },
    /// A body in chunks.
    Chunked(ChunkedDecoder),
    /// A body that ends with the connection.
    UntilClose,
}

impl BodyDecoder {
    /// Looks at the bytes received and not yet consumed. Data comes as a range of `input`; nothing is copied. Call
    /// again with what is left after [`Step::consumed`] bytes until the step is [`Step::NeedMore`] or [`Step::End`].
    ///
    /// # Errors
    /// Those of [`ChunkedDecoder::decode`].
    pub fn decode(&mut self, input: &[u8]) -> Result<Step, H1Error> {
        match self {
            Self::Empty | Self::Exact { left: 0 } => Ok(Step::End { consumed: 0 }),
            Self::Exact { .. } | Self::UntilClose if input.is_empty() => Ok(Step::NeedMore { consumed: 0 }),
            Self::Exact { left } => {
                let taken = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= taken as u64;
                Ok(Step::Data(0..taken))
            }
            Self::Chunked(decoder) => decoder.decode(input),
            Self::UntilClose => Ok(Step::Data(0..input.len())),
        }
    }

    /// Whether the body is complete, without a further look at input: after the data step that completes a body of
    /// known length it saves a call.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        match self {
            Self::Empty | Self::Exact { left: 0 } => true,
            Self::Exact { .. } | Self::UntilClose => false,
            Self::Chunked(decoder) => decoder.is_complete(),
        }
    }

    /// The peer closed: whether the body ends properly with that.
    ///
    /// # Errors
    /// [`H1Error::UnexpectedEof`] when more had been announced; what was forwarded must not look complete then
    /// (RFC 9112 section 8).
    pub const fn on_eof(&self) -> Result<(), H1Error> {
        if self.is_complete() || matches!(self, Self::UntilClose) {
            Ok(())
        } else {
            Err(H1Error::UnexpectedEof)
        }
    }

    /// The trailers of a complete chunked body that had any.
    #[must_use]
    pub fn trailers(&self) -> Option<&Fields> {
        match self {
            Self::Chunked(decoder) => decoder.trailers(),
            _ => None,
        }
    }
}
