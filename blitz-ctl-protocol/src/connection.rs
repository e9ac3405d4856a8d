//! A connection: frames over a Unix stream socket, each with a deadline.
//!
//! Owns: waiting, deadlines, the rule that nothing follows a failure. Does not own: octets of a frame (see
//! [`crate::frame`]), or who speaks when (see [`crate::client`] and [`crate::server`]).
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::client::cut;
use crate::frame::{self, Decoder, Frame};
use crate::message::{Kind, Message, Sentence};
use crate::{DESCRIPTORS_MAX, Error, sys};

/// One read (octets): most frames whole.
const READ_BYTES: usize = 4096;
/// Octets of a last sentence that are sent whole.
const SENTENCE_BYTES_MAX: usize = 1024;

/// One end of a control connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    is_broken: bool,
}

impl Connection {
    /// A connection over a connected, blocking stream.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::default(), is_broken: false }
    }

    /// The stream, for what is not frames: credentials, shutdown from another thread.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a message and its descriptors within `timeout`.
    ///
    /// # Errors
    /// [`Error::TooLarge`] and [`Error::Descriptors`] before anything is sent; else [`Error::TimedOut`],
    /// [`Error::Io`] or [`Error::Closed`], after which the connection is of no more use.
    pub fn send<M: Message>(
        &mut self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<(), Error> {
        let payload = serde_json::to_vec(message).map_err(Error::Payload)?;
        let octets = frame::encode(M::KIND as u16, &payload)?;
        let expected = M::KIND.descriptors();
        if descriptors.len() != expected || descriptors.len() > DESCRIPTORS_MAX {
            return Err(Error::Descriptors { found: descriptors.len(), expected });
        }
        if self.is_broken {
            return Err(Error::Closed);
        }
        let sent = self.send_octets(&octets, descriptors, Instant::now() + timeout);
        self.is_broken |= sent.is_err();
        sent
    }

    fn send_octets(
        &self,
        octets: &[u8],
        mut descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut rest = octets;
        while !rest.is_empty() {
            let left = time_left(deadline)?;
            self.stream.set_write_timeout(Some(left)).map_err(|error| Error::Io("the deadline", error))?;
            match sys::send(self.stream.as_fd(), rest, descriptors) {
                Ok(count) => {
                    // Attached to the first octet, gone with it.
                    descriptors = &[];
                    rest = rest.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => return Err(Error::TimedOut),
                Err(error) => return Err(Error::Io("sending on the control connection", error)),
            }
        }
        Ok(())
    }

    /// Receives the next frame: its first octet within `first` (`None` waits for as long as it takes), the
    /// whole of it within `whole` from there on.
    ///
    /// # Errors
    /// [`Error::Closed`] at the end of the stream between two frames, [`Error::TimedOut`], and what
    /// [`Decoder::feed`] says. The connection is of no more use then, and descriptors that came are closed.
    pub fn receive(&mut self, first: Option<Duration>, whole: Duration) -> Result<Frame, Error> {
        if self.is_broken {
            return Err(Error::Closed);
        }
        let received = self.receive_frame(first, whole);
        if received.is_err() {
            self.is_broken = true;
            self.decoder = Decoder::default();
        }
        received
    }

    /// Sends an error as the last frame, also on a stream that cannot be followed any further. Whether it
    /// arrives is the peer's matter: it may have left.
    pub(crate) fn say_farewell(&mut self, sentence: &str, timeout: Duration) {
        self.is_broken = true;
        // Sentences quote what a client sent; a frame must still hold them.
        let sentence = if sentence.len() <= SENTENCE_BYTES_MAX { sentence } else { cut(sentence) };
        let octets = serde_json::to_vec(&Sentence { sentence: sentence.to_owned() })
            .ok()
            .and_then(|payload| frame::encode(Kind::Error as u16, &payload).ok());
        if let Some(octets) = octets
            && self.send_octets(&octets, &[], Instant::now() + timeout).is_ok()
        {
            let _end = self.stream.shutdown(std::net::Shutdown::Write);
        }
    }

    /// The sentence that the peer sent before it hung up, if there is one. The connection is of no use
    /// afterwards.
    pub(crate) fn last_words(&mut self, timeout: Duration) -> Option<String> {
        self.is_broken = true;
        let frame = self.receive_frame(Some(timeout), timeout).ok()?;
        match frame.open::<Sentence>() {
            Ok((sentence, _)) => Some(sentence.sentence),
            Err(_) => None,
        }
    }

    fn receive_frame(&mut self, first: Option<Duration>, whole: Duration) -> Result<Frame, Error> {
        let mut deadline = first.map(|first| Instant::now() + first);
        let mut buffer = [0; READ_BYTES];
        loop {
            let left = deadline.map(time_left).transpose()?;
            self.stream.set_read_timeout(left).map_err(|error| Error::Io("the deadline", error))?;
            let wanted = self.decoder.wanted().min(READ_BYTES);
            let Some(room) = buffer.get_mut(..wanted) else { return Err(Error::Closed) };
            let mut descriptors = Vec::new();
            let count = match sys::receive(self.stream.as_fd(), room, &mut descriptors) {
                Ok(0) if self.decoder.is_within() => return Err(Error::Truncated),
                Ok(0) => return Err(Error::Closed),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is_timeout(&error) => return Err(Error::TimedOut),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(Error::Closed),
                Err(error) => return Err(Error::Io("receiving on the control connection", error)),
            };
            if !self.decoder.is_within() {
                deadline = Some(Instant::now() + whole);
            }
            let Some(octets) = room.get(..count) else { return Err(Error::Closed) };
            if let Some(frame) = self.decoder.feed(octets, descriptors)? {
                return Ok(frame);
            }
        }
    }
}

impl Frame {
    /// The message of a frame that must be of type `M`, and its descriptors, as many as its kind takes.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is the daemon's sentence instead, [`Error::Kind`], [`Error::Descriptors`],
    /// [`Error::Payload`]. Descriptors that came are closed.
    pub fn open<M: Message>(self) -> Result<(M, Vec<OwnedFd>), Error> {
        let expected = M::KIND.descriptors();
        if self.kind == Kind::Error as u16 && M::KIND != Kind::Error {
            let sentence: Sentence = serde_json::from_slice(&self.payload).map_err(Error::Payload)?;
            return Err(Error::Refused(sentence.sentence));
        }
        if self.kind != M::KIND as u16 {
            return Err(Error::Kind(self.kind));
        }
        if self.descriptors.len() != expected {
            return Err(Error::Descriptors { found: self.descriptors.len(), expected });
        }
        let message = serde_json::from_slice(&self.payload).map_err(Error::Payload)?;
        Ok((message, self.descriptors))
    }
}

fn time_left(deadline: Instant) -> Result<Duration, Error> {
    // The kernel counts in microseconds and takes zero for no deadline at all.
    let left = deadline.saturating_duration_since(Instant::now());
    if left < Duration::from_micros(1) { Err(Error::TimedOut) } else { Ok(left) }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
