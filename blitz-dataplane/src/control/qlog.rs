//! `/qlog`: one HTTP/3 connection, recorded while whoever asked reads.
//!
//! Owns: the question, the bound on recordings, the body that comes out of the pipe. Does not own: the records
//! (`http3/qlog.rs`), the path's place in the API ([`super::admin`]).
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::unix::pipe;

use crate::sys;

/// The media type of the serialization (draft-ietf-quic-qlog-main-schema section 11.2).
pub(super) const CONTENT_TYPE: &str = "application/qlog+json-seq";

/// Recordings under way at once (count). A further one is refused.
const RECORDINGS_MAX: u32 = 4;

/// Bytes between a worker and the reader. Records that find no room are dropped by the worker, and counted.
const PIPE_BYTES: i32 = 1 << 20;

/// Bytes taken out of the pipe at once.
const PIECE_BYTES: usize = 64 * 1024;

/// How long a worker may take to begin. It does so within one turn of its loop.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(2);

static UNDER_WAY: AtomicU32 = AtomicU32::new(0);

/// Which connection: as `/connections` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) worker: u32,
    pub(super) connection: u64,
}

impl Chosen {
    /// Reads `worker=W&connection=ID`.
    ///
    /// # Errors
    /// A sentence that says how to ask.
    pub(super) fn of(query: Option<&str>) -> Result<Self, String> {
        let (mut worker, mut connection) = (None, None);
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let is_number = match name {
                "worker" => value.parse().map(|number| worker = Some(number)).is_ok(),
                "connection" => value.parse().map(|number| connection = Some(number)).is_ok(),
                _ => return Err(format!("{name:?} is not known here; {HOW}")),
            };
            if !is_number {
                return Err(format!("{name} is a number; {HOW}"));
            }
        }
        match (worker, connection) {
            (Some(worker), Some(connection)) => Ok(Self { worker, connection }),
            _ => Err(HOW.to_owned()),
        }
    }
}

const HOW: &str = "ask for /qlog?worker=W&connection=ID, with the numbers that /connections shows";

/// Why there is no recording.
#[derive(Debug)]
pub(super) enum Refusal {
    /// There are [`RECORDINGS_MAX`] already.
    TooMany,
    /// There is no such connection, or it does not speak HTTP/3, or the worker is gone.
    Nothing,
    /// No pipe could be made.
    System(io::Error),
}

/// A recording as the body of an answer. It ends with the connection; dropping it ends the recording.
pub(super) struct Recording {
    pipe: pipe::Receiver,
    first: Option<Bytes>,
    _permit: Permit,
}

impl Recording {
    /// Begins one: `tell` hands the writing end to the worker.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub(super) async fn begin<F: Future<Output = ()>>(
        tell: impl FnOnce(OwnedFd) -> F,
    ) -> Result<Self, Refusal> {
        let permit = Permit::take().ok_or(Refusal::TooMany)?;
        let (read, write) = sys::pipe::non_blocking(PIPE_BYTES).map_err(Refusal::System)?;
        let mut pipe = pipe::Receiver::from_owned_fd(read).map_err(Refusal::System)?;
        tell(write).await;
        let mut piece = vec![0; PIECE_BYTES];
        let first = tokio::time::timeout(BEGIN_TIMEOUT, pipe.read(&mut piece)).await;
        match first {
            Ok(Ok(len @ 1..)) => {
                piece.truncate(len);
                Ok(Self { pipe, first: Some(piece.into()), _permit: permit })
            }
            _ => Err(Refusal::Nothing),
        }
    }
}

impl Body for Recording {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let mut piece = vec![0; PIECE_BYTES];
        let mut buffer = ReadBuf::new(&mut piece);
        let read = ready!(Pin::new(&mut self.pipe).poll_read(cx, &mut buffer));
        let len = buffer.filled().len();
        piece.truncate(len);
        Poll::Ready(match read {
            Ok(()) if len == 0 => None,
            Ok(()) => Some(Ok(Frame::data(piece.into()))),
            Err(error) => Some(Err(error)),
        })
    }
}

/// One of the [`RECORDINGS_MAX`].
struct Permit;

impl Permit {
    fn take() -> Option<Self> {
        let more = |under_way: u32| (under_way < RECORDINGS_MAX).then_some(under_way + 1);
        UNDER_WAY.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::Chosen;

    #[test]
    fn a_connection_is_named_by_two_numbers() {
        let named = Chosen { worker: 1, connection: 17 };
        assert_eq!(Chosen::of(Some("worker=1&connection=17")), Ok(named));
        assert_eq!(Chosen::of(Some("connection=17&worker=1")), Ok(named));
        for wrong in [
            None,
            Some("connection=17"),
            Some("worker=x&connection=17"),
            Some("worker=1&connection=-1"),
            Some("worker=1&connection=17&level=extra"),
        ] {
            let said = Chosen::of(wrong).expect_err("it is refused");
            assert!(said.contains("/qlog?worker=W&connection=ID"), "{said}");
        }
    }
}
