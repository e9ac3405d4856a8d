//! The daemon's end of a connection.
//!
//! Owns: the check of credentials, the daemon's side of the handshake, requests as one enum. Does not own:
//! the listening socket and what a request does (`blitz-ctl`).
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::frame::Frame;
use crate::message::{
    GiveDescriptor, HELLO_VERSIONS_MAX, Hello, Kind, ListBlocked, Message, OpenBank, OpenSocket, OpenXdp,
    PlaceSocket, QueuesQuery, Report, SeatXdp, Sentence, StatusQuery, Steer, SteerBank, TEXT_BYTES_MAX,
    Unblock, Welcome,
};
use crate::{Connection, Credentials, Error, VERSIONS, sys};

/// A client that was let in.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    credentials: Credentials,
    name: String,
    timeout: Duration,
}

/// What a client asks.
#[derive(Debug)]
pub enum Incoming {
    /// See [`Report`].
    Report(Report),
    /// See [`Unblock`].
    Unblock(Unblock),
    /// See [`ListBlocked`].
    ListBlocked(ListBlocked),
    /// See [`StatusQuery`].
    Status,
    /// See [`OpenSocket`].
    OpenSocket(OpenSocket),
    /// See [`GiveDescriptor`]; what was given.
    GiveDescriptor(OwnedFd),
    /// See [`Steer`]; the file of the keys.
    Steer(Steer, OwnedFd),
    /// See [`OpenBank`]; the file of the keys.
    OpenBank(OwnedFd),
    /// See [`PlaceSocket`]; the socket.
    PlaceSocket(PlaceSocket, OwnedFd),
    /// See [`SteerBank`].
    SteerBank {
        /// The bank's map.
        map: OwnedFd,
        /// The file of the keys.
        keys: OwnedFd,
    },
    /// See [`QueuesQuery`].
    Queues(QueuesQuery),
    /// See [`OpenXdp`].
    OpenXdp,
    /// See [`SeatXdp`]; the socket.
    SeatXdp(SeatXdp, OwnedFd),
}

impl Session {
    /// Checks the peer of a fresh connection with `admit`, which returns a sentence for those it refuses,
    /// and shakes hands. `timeout` bounds each step, and later each answer and each frame once it has begun.
    ///
    /// # Errors
    /// [`Error::Refused`] with the sentence that the client was told, else what broke.
    pub fn accept(
        stream: UnixStream,
        timeout: Duration,
        admit: impl FnOnce(Credentials) -> Result<(), String>,
    ) -> Result<Self, Error> {
        let credentials = sys::peer_credentials(stream.as_fd())
            .map_err(|error| Error::Io("cannot tell who the peer of a control connection is", error))?;
        let mut session =
            Self { connection: Connection::new(stream), credentials, name: String::new(), timeout };
        if let Err(sentence) = admit(credentials) {
            // Nothing is read from a stranger.
            return Err(session.end(sentence));
        }
        let frame = session.connection.receive(Some(timeout), timeout)?;
        let (hello, _) = match frame.open::<Hello>() {
            Ok(hello) => hello,
            Err(error) => return Err(session.end(format!("the first frame must be a hello: {error}"))),
        };
        if hello.name.len() > TEXT_BYTES_MAX || hello.versions.len() > HELLO_VERSIONS_MAX {
            return Err(session.end(format!(
                "a hello has a name of at most {TEXT_BYTES_MAX} octets and at most {HELLO_VERSIONS_MAX} versions"
            )));
        }
        let common = VERSIONS.iter().copied().filter(|version| hello.versions.contains(version)).max();
        let Some(version) = common else {
            return Err(session.end(format!(
                "the client speaks the versions {:?} of the control protocol and this daemon {VERSIONS:?}; \
                 run blitz and blitz-ctl of one release",
                hello.versions
            )));
        };
        session.connection.send(&Welcome { version }, &[], timeout)?;
        session.name = hello.name;
        Ok(session)
    }

    /// Who the client is.
    pub fn credentials(&self) -> Credentials {
        self.credentials
    }

    /// What the client calls itself; from its hello, so its own word only.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The stream, so that another thread can shut it down.
    pub fn stream(&self) -> &UnixStream {
        self.connection.stream()
    }

    /// The next request; waits for it for `idle`. A frame of a kind that is no request, or whose payload is
    /// not what its kind says, is answered with an error and skipped.
    ///
    /// # Errors
    /// [`Error::Closed`] when the client has left, [`Error::TimedOut`] when it was silent for too long, and
    /// what broke the stream, descriptors without a place included. The client has been told.
    pub fn next(&mut self, idle: Option<Duration>) -> Result<Incoming, Error> {
        loop {
            let frame = match self.connection.receive(idle, self.timeout) {
                Ok(frame) => frame,
                Err(error @ (Error::Closed | Error::TimedOut | Error::Truncated | Error::Io(..))) => {
                    return Err(error);
                }
                Err(error) => {
                    self.connection.say_farewell(&error.to_string(), self.timeout);
                    return Err(error);
                }
            };
            match request(frame) {
                Ok(request) => return Ok(request),
                Err(error @ Error::Descriptors { .. }) => {
                    self.connection.say_farewell(&error.to_string(), self.timeout);
                    return Err(error);
                }
                Err(error) => self.refuse(&error.to_string())?,
            }
        }
    }

    /// Answers the request at hand.
    ///
    /// # Errors
    /// Those of [`Connection::send`].
    pub fn answer<M: Message>(&mut self, answer: &M, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.connection.send(answer, descriptors, self.timeout)
    }

    /// Declines the request at hand; the conversation goes on.
    ///
    /// # Errors
    /// Those of [`Connection::send`].
    pub fn refuse(&mut self, sentence: &str) -> Result<(), Error> {
        self.answer(&Sentence { sentence: sentence.to_owned() }, &[])
    }

    /// Tells the client why there is no conversation.
    fn end(&mut self, sentence: String) -> Error {
        self.connection.say_farewell(&sentence, self.timeout);
        Error::Refused(sentence)
    }
}

fn request(frame: Frame) -> Result<Incoming, Error> {
    let number = frame.kind;
    let Some(kind) = Kind::from_number(number) else {
        // A later version may give descriptors a meaning here; they are closed with the frame.
        return Err(Error::Kind(number));
    };
    let (found, expected) = (frame.descriptors.len(), kind.descriptors());
    if found != expected {
        return Err(Error::Descriptors { found, expected });
    }
    let mut descriptors = frame.descriptors.into_iter();
    // As many as were counted.
    let mut next = || descriptors.next().ok_or(Error::Descriptors { found, expected });
    let payload = frame.payload;
    match kind {
        Kind::Report => {
            let report: Report = parse(&payload)?;
            text(&report.connection.note)?;
            Ok(Incoming::Report(report))
        }
        Kind::Unblock => Ok(Incoming::Unblock(parse(&payload)?)),
        Kind::ListBlocked => Ok(Incoming::ListBlocked(parse(&payload)?)),
        Kind::Status => parse(&payload).map(|StatusQuery {}| Incoming::Status),
        Kind::OpenSocket => Ok(Incoming::OpenSocket(parse(&payload)?)),
        Kind::GiveDescriptor => {
            let GiveDescriptor {} = parse(&payload)?;
            Ok(Incoming::GiveDescriptor(next()?))
        }
        Kind::Steer => Ok(Incoming::Steer(parse(&payload)?, next()?)),
        Kind::OpenBank => {
            let OpenBank {} = parse(&payload)?;
            Ok(Incoming::OpenBank(next()?))
        }
        Kind::PlaceSocket => Ok(Incoming::PlaceSocket(parse(&payload)?, next()?)),
        Kind::SteerBank => {
            let SteerBank {} = parse(&payload)?;
            Ok(Incoming::SteerBank { map: next()?, keys: next()? })
        }
        Kind::QueuesQuery => {
            let query: QueuesQuery = parse(&payload)?;
            text(&query.interface)?;
            Ok(Incoming::Queues(query))
        }
        Kind::OpenXdp => parse(&payload).map(|OpenXdp {}| Incoming::OpenXdp),
        Kind::SeatXdp => {
            let seat: SeatXdp = parse(&payload)?;
            text(&seat.interface)?;
            Ok(Incoming::SeatXdp(seat, next()?))
        }
        _ => Err(Error::Kind(number)),
    }
}

/// Refuses a text that is longer than allowed.
fn text(text: &str) -> Result<(), Error> {
    if text.len() <= TEXT_BYTES_MAX { Ok(()) } else { Err(Error::TooLarge(text.len())) }
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(payload).map_err(Error::Payload)
}
