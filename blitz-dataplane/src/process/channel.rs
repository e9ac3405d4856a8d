//! The channel between the supervisor and a worker: frames over a Unix stream socket.
//!
//! Owns: framing, bounds, descriptors that travel with a frame. Does not own: what frames say (see
//! [`super::messages`]).
//!
//! A frame is a header of 12 bytes and a payload:
//!
//! ```text
//! 0..4    "BLZC"
//! 4..6    version of header and messages, little endian: 1
//! 6..8    number of descriptors that travel with this frame, little endian
//! 8..12   bytes of the payload, little endian, at most 16 MiB
//! 12..    the payload: one JSON value
//! ```
//! Descriptors travel as SCM_RIGHTS with the first byte of their frame. Both ends are the same build; the
//! version is there so that an upgrade notices when they are not.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;

use crate::sys::fdpass;

/// Most bytes of a payload: room for about 150,000 routes. A larger configuration is refused where it is
/// encoded.
pub const PAYLOAD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most descriptors of a frame.
pub const FDS_MAX: usize = fdpass::FDS_MAX;

const MAGIC: [u8; 4] = *b"BLZC";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 12;
/// One read: a small message in one call, 1 MiB of configuration in 16.
const READ_BYTES: usize = 64 * 1024;

/// Why a channel broke. None of them can be recovered from: the worker is replaced.
#[derive(Debug)]
pub enum ChannelError {
    /// The socket failed.
    Io(io::Error),
    /// The peer closed in the middle of a frame.
    Truncated,
    /// The peer sent something that is no frame of this version.
    Protocol(String),
    /// A message to be sent is larger than [`PAYLOAD_BYTES_MAX`], or carries more than [`FDS_MAX`]
    /// descriptors.
    TooLarge(usize),
}

impl std::fmt::Display for ChannelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => write!(f, "the channel failed: {error}"),
            Self::Truncated => f.write_str("the channel ended within a message"),
            Self::Protocol(what) => write!(f, "the channel carried {what}"),
            Self::TooLarge(size) => {
                write!(
                    f,
                    "a message of {size} bytes or descriptors is too large (at most {PAYLOAD_BYTES_MAX} and {FDS_MAX})"
                )
            }
        }
    }
}

impl std::error::Error for ChannelError {}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A message and the descriptors that came with it.
pub type Received<T> = (T, Vec<OwnedFd>);

/// A message ready to be sent.
#[derive(Debug)]
pub struct Frame {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Frame {
    /// Encodes `message`.
    ///
    /// # Errors
    /// [`ChannelError::TooLarge`].
    pub fn new<T: Serialize>(message: &T, fds: Vec<OwnedFd>) -> Result<Self, ChannelError> {
        let mut bytes = vec![0; HEADER_BYTES];
        serde_json::to_writer(&mut bytes, message).map_err(|error| ChannelError::Io(error.into()))?;
        let payload = bytes.len() - HEADER_BYTES;
        if payload > PAYLOAD_BYTES_MAX {
            return Err(ChannelError::TooLarge(payload));
        }
        let fd_count = u16::try_from(fds.len()).ok().filter(|count| usize::from(*count) <= FDS_MAX);
        let (Some(fd_count), Ok(payload)) = (fd_count, u32::try_from(payload)) else {
            return Err(ChannelError::TooLarge(fds.len()));
        };
        let fields =
            [&MAGIC[..], &VERSION.to_le_bytes(), &fd_count.to_le_bytes(), &payload.to_le_bytes()].concat();
        for (slot, byte) in bytes.iter_mut().zip(fields) {
            *slot = byte;
        }
        Ok(Self { bytes, fds })
    }

    /// Bytes on the wire.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is nothing to send; a frame has a header, so never.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Splits received bytes into messages. Holds at most one payload and what one read brought beyond it.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    consumed: usize,
    fds: VecDeque<OwnedFd>,
}

impl Decoder {
    /// Takes what one read brought.
    ///
    /// # Errors
    /// [`ChannelError::Protocol`] when more descriptors pile up than two frames may carry.
    pub fn feed(&mut self, bytes: &[u8], fds: &mut Vec<OwnedFd>) -> Result<(), ChannelError> {
        if self.consumed > 0 {
            self.bytes.drain(..self.consumed);
            self.consumed = 0;
        }
        self.bytes.extend_from_slice(bytes);
        self.fds.extend(fds.drain(..));
        if self.fds.len() > 2 * FDS_MAX {
            return Err(ChannelError::Protocol("more descriptors than its messages name".to_owned()));
        }
        Ok(())
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    /// [`ChannelError::Protocol`] for anything that is no frame of this version.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<Received<T>>, ChannelError> {
        let protocol = |what: String| Err(ChannelError::Protocol(what));
        let pending = self.bytes.get(self.consumed..).unwrap_or_default();
        let Some((header, rest)) = pending.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [m0, m1, m2, m3, v0, v1, f0, f1, p0, p1, p2, p3] = *header;
        if [m0, m1, m2, m3] != MAGIC {
            return protocol("bytes that are no message".to_owned());
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != VERSION {
            return protocol(format!("version {version} of the messages, this program speaks {VERSION}"));
        }
        let payload_len = u32::from_le_bytes([p0, p1, p2, p3]) as usize;
        if payload_len > PAYLOAD_BYTES_MAX {
            return protocol(format!(
                "a message of {payload_len} bytes, at most {PAYLOAD_BYTES_MAX} are allowed"
            ));
        }
        let Some(payload) = rest.get(..payload_len) else {
            return Ok(None);
        };
        let fd_count = usize::from(u16::from_le_bytes([f0, f1]));
        if fd_count > self.fds.len() {
            return protocol(format!("{} descriptors where {fd_count} were announced", self.fds.len()));
        }
        let message = match serde_json::from_slice(payload) {
            Ok(message) => message,
            Err(error) => return protocol(format!("a message that cannot be read: {error}")),
        };
        self.consumed += HEADER_BYTES + payload_len;
        let fds = self.fds.drain(..fd_count).collect();
        Ok(Some((message, fds)))
    }

    /// What the end of the stream means now.
    fn end<T>(&self) -> Result<Option<T>, ChannelError> {
        if self.consumed == self.bytes.len() { Ok(None) } else { Err(ChannelError::Truncated) }
    }
}

/// The worker's receiving half: blocks its thread.
#[derive(Debug)]
pub struct BlockingReceiver {
    stream: UnixStream,
    decoder: Decoder,
}

impl BlockingReceiver {
    /// Receives from `stream`, which must be blocking.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::default() }
    }

    /// The next message; `None` when the peer has closed.
    ///
    /// # Errors
    /// As [`ChannelError`] says.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<Received<T>>, ChannelError> {
        let mut bytes = vec![0; READ_BYTES];
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(Some(message));
            }
            let mut fds = Vec::new();
            match fdpass::receive(self.stream.as_fd(), &mut bytes, &mut fds) {
                Ok(0) => return self.decoder.end(),
                Ok(count) => self.decoder.feed(bytes.get(..count).unwrap_or_default(), &mut fds)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return self.decoder.end();
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Sends `frame` over a blocking stream, whole.
///
/// # Errors
/// [`ChannelError::Io`]; EPIPE when the peer is gone.
pub fn send_blocking(stream: &UnixStream, frame: &Frame) -> Result<(), ChannelError> {
    let mut progress = Progress::new(frame);
    while !progress.is_done() {
        match progress.send_some(stream.as_fd()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Receives the next message from a stream of the control thread; `None` when the peer has closed.
///
/// # Errors
/// As [`ChannelError`] says.
///
/// # Cancel safety
/// Safe: what has been read stays in `decoder`.
pub async fn receive<T: DeserializeOwned>(
    stream: &tokio::net::UnixStream,
    decoder: &mut Decoder,
) -> Result<Option<Received<T>>, ChannelError> {
    loop {
        if let Some(message) = decoder.next_message()? {
            return Ok(Some(message));
        }
        let mut bytes = vec![0; READ_BYTES];
        let mut fds = Vec::new();
        let read = |fds: &mut Vec<OwnedFd>, bytes: &mut [u8]| fdpass::receive(stream.as_fd(), bytes, fds);
        match stream.async_io(Interest::READABLE, || read(&mut fds, &mut bytes)).await {
            Ok(0) => return decoder.end(),
            Ok(count) => decoder.feed(bytes.get(..count).unwrap_or_default(), &mut fds)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A worker that dies with unread orders in its socket resets the stream instead of ending it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return decoder.end(),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends `frame` from the control thread, whole.
///
/// # Errors
/// [`ChannelError::Io`]; EPIPE when the peer is gone.
///
/// # Cancel safety
/// Not safe: a part of the frame may have gone.
pub async fn send(stream: &tokio::net::UnixStream, frame: &Frame) -> Result<(), ChannelError> {
    let mut progress = Progress::new(frame);
    while !progress.is_done() {
        match stream.async_io(Interest::WRITABLE, || progress.send_some(stream.as_fd())).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// How far a frame has been sent.
struct Progress<'a> {
    frame: &'a Frame,
    sent: usize,
}

impl<'a> Progress<'a> {
    fn new(frame: &'a Frame) -> Self {
        Self { frame, sent: 0 }
    }

    fn is_done(&self) -> bool {
        self.sent >= self.frame.bytes.len()
    }

    fn send_some(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let rest = self.frame.bytes.get(self.sent..).unwrap_or_default();
        let fds: Vec<_> =
            if self.sent == 0 { self.frame.fds.iter().map(AsFd::as_fd).collect() } else { Vec::new() };
        self.sent += fdpass::send(socket, rest, &fds)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn frames_survive_every_split_and_keep_their_descriptors() {
        let (reader, _writer) = std::io::pipe().expect("pipe");
        let first = Frame::new(&"first", vec![reader.into()]).expect("frame");
        let second = Frame::new(&vec![1u8, 2], Vec::new()).expect("frame");
        let stream: Vec<u8> = [first.bytes.as_slice(), &second.bytes].concat();
        for split in 0..=stream.len() {
            let mut decoder = Decoder::default();
            let mut fds: Vec<OwnedFd> = first.fds.iter().map(|fd| fd.try_clone().expect("dup")).collect();
            let (head, tail) = stream.split_at(split);
            decoder.feed(head, &mut fds).expect("feed");
            let early: Option<Received<String>> = decoder.next_message().expect("decode");
            decoder.feed(tail, &mut fds).expect("feed");
            let (text, fds) = match early {
                Some(message) => message,
                None => decoder.next_message().expect("decode").expect("whole"),
            };
            assert_eq!((text.as_str(), fds.len()), ("first", 1));
            let (bytes, fds): Received<Vec<u8>> = decoder.next_message().expect("decode").expect("whole");
            assert_eq!((bytes, fds.len()), (vec![1, 2], 0));
            assert!(decoder.end::<()>().expect("boundary").is_none());
        }
    }

    #[test]
    fn a_large_message_passes_between_a_thread_and_the_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let (near, far) = UnixStream::pair().expect("pair");
        near.set_nonblocking(true).expect("nonblocking");
        let text = "x".repeat(3 * 1024 * 1024);
        let expected = text.clone();
        let echo = std::thread::spawn(move || {
            let mut receiver = BlockingReceiver::new(far.try_clone().expect("dup"));
            let (text, _): Received<String> = receiver.receive().expect("receive").expect("message");
            send_blocking(&far, &Frame::new(&text, Vec::new()).expect("frame")).expect("send");
            assert!(receiver.receive::<String>().expect("end").is_none());
        });
        runtime.block_on(async {
            let near = tokio::net::UnixStream::from_std(near).expect("stream");
            send(&near, &Frame::new(&text, Vec::new()).expect("frame")).await.expect("send");
            let mut decoder = Decoder::default();
            let (text, _): Received<String> =
                receive(&near, &mut decoder).await.expect("receive").expect("message");
            assert!(text == expected);
        });
        echo.join().expect("echo");
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let refuse = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.feed(bytes, &mut Vec::new()).expect("feed");
            decoder.next_message::<String>().expect_err("refused").to_string()
        };
        assert!(refuse(b"GET / HTTP/1").contains("no message"));
        assert!(refuse(b"BLZC\x02\0\0\0\0\0\0\0").contains("version 2"));
        assert!(refuse(b"BLZC\x01\0\0\0\xff\xff\xff\xff").contains("4294967295 bytes"));
        assert!(refuse(b"BLZC\x01\0\x01\0\x02\0\0\0\"\"").contains("0 descriptors where 1"));
        assert!(refuse(b"BLZC\x01\0\0\0\x02\0\0\0{]").contains("cannot be read"));
        let huge = "x".repeat(PAYLOAD_BYTES_MAX);
        assert!(matches!(Frame::new(&huge, Vec::new()), Err(ChannelError::TooLarge(_))));
        let (mut near, far) = UnixStream::pair().expect("pair");
        near.write_all(b"BLZC").expect("write");
        drop(near);
        assert!(matches!(BlockingReceiver::new(far).receive::<String>(), Err(ChannelError::Truncated)));
    }
}
