//! The client: one call per request.
//!
//! Owns: the client's side of the handshake and the order of request and answer. Does not own: frames (see
//! [`crate::connection`]), when to ask or to ask again (the caller).
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use crate::message::{
    Bank, BankSteered, Blocked, DescriptorFacts, GiveDescriptor, Hello, ListBlocked, OpenBank, OpenSocket,
    OpenXdp, PlaceSocket, QueueSeat, Queues, QueuesQuery, Report, ReportDone, Request, SeatDone, SeatXdp,
    SocketFacts, SocketPlaced, Status, StatusQuery, Steer, SteerBank, SteerDone, TEXT_BYTES_MAX, Unblock,
    UnblockDone, Welcome, XdpSocket,
};
use crate::{Connection, Error, VERSIONS, sys};

/// Pages that [`Client::list_blocked`] asks for at most (count): the largest blocklist and some more.
const PAGES_MAX: usize = 1024;

/// A conversation with the daemon. Blocks in each call, at most for the deadline; keep it on a thread that
/// may wait. After an error other than [`Error::Refused`] make a new one.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    timeout: Duration,
    version: u32,
}

impl Client {
    /// Connects to the daemon at `path` and shakes hands. `name` says who asks, for the daemon's log; it is
    /// cut to [`TEXT_BYTES_MAX`] octets. `timeout` (not zero) bounds each later call, too.
    ///
    /// # Errors
    /// [`Error::Io`] when nobody listens there, [`Error::Refused`] when the daemon does not talk to this user
    /// or speaks no version of ours, else what broke the conversation.
    pub fn connect(path: &Path, name: &str, timeout: Duration) -> Result<Self, Error> {
        let stream = sys::connect(path, timeout)
            .map_err(|error| Error::Io("cannot connect to the control socket", error))?;
        let mut client = Self { connection: Connection::new(stream), timeout, version: 0 };
        let hello = Hello { versions: VERSIONS.to_vec(), name: cut(name).to_owned() };
        let (welcome, _) = client.ask(&hello, &[])?;
        let Welcome { version } = welcome;
        if !VERSIONS.contains(&version) {
            return Err(Error::Refused(format!(
                "the daemon chose version {version} of the control protocol, which was not offered; run \
                 blitz and blitz-ctl of one release"
            )));
        }
        client.version = version;
        Ok(client)
    }

    /// The version that both ends speak.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Reports a source for the blocklist.
    ///
    /// # Errors
    /// As every call of a client: [`Error::Refused`] for a report that makes no sense, else what broke.
    pub fn report(&mut self, report: &Report) -> Result<ReportDone, Error> {
        Ok(self.ask(report, &[])?.0)
    }

    /// Takes a source off the blocklist; returns whether it was there.
    ///
    /// # Errors
    /// See [`Self::report`].
    pub fn unblock(&mut self, source: std::net::IpAddr) -> Result<bool, Error> {
        let (UnblockDone { was_blocked }, _) = self.ask(&Unblock { source }, &[])?;
        Ok(was_blocked)
    }

    /// The whole blocklist, page by page: entries that come and go meanwhile may or may not be in it.
    ///
    /// # Errors
    /// See [`Self::report`].
    pub fn list_blocked(&mut self) -> Result<Vec<Blocked>, Error> {
        let mut rows = Vec::new();
        let mut after = None;
        for _ in 0..PAGES_MAX {
            let (page, _) = self.ask(&ListBlocked { after }, &[])?;
            after = page.rows.last().map(|row| row.source);
            rows.extend(page.rows);
            if !page.more || after.is_none() {
                break;
            }
        }
        Ok(rows)
    }

    /// How the daemon is.
    ///
    /// # Errors
    /// See [`Self::report`].
    pub fn status(&mut self) -> Result<Status, Error> {
        Ok(self.ask(&StatusQuery {}, &[])?.0)
    }

    /// A socket that the daemon has bound; TCP sockets listen.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason why there is none: the port is in use, or the daemon may not.
    pub fn open_socket(&mut self, socket: &OpenSocket) -> Result<OwnedFd, Error> {
        let (_, mut descriptors) = self.ask(socket, &[])?;
        descriptors.pop().ok_or(Error::Descriptors { found: 0, expected: 1 })
    }

    /// Hands a descriptor to the daemon; it is a copy, `descriptor` stays open here.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is no socket.
    pub fn give_descriptor(&mut self, descriptor: impl AsFd) -> Result<SocketFacts, Error> {
        let (DescriptorFacts(facts), _) = self.ask(&GiveDescriptor {}, &[descriptor.as_fd()])?;
        Ok(facts)
    }

    /// Says how QUIC is steered, and which workers live; returns the interfaces whose stage steers so now. `keys` is
    /// the file that [`Steer`] describes.
    ///
    /// # Errors
    /// [`Error::Refused`] when the file is something else, or the maps cannot be written.
    pub fn steer(&mut self, alive: Vec<(u32, u32)>, keys: impl AsFd) -> Result<Vec<String>, Error> {
        let (SteerDone { interfaces }, _) = self.ask(&Steer { alive }, &[keys.as_fd()])?;
        Ok(interfaces)
    }

    /// A program that steers among `sockets`, which are all of one UDP address in the order of their bank; to be
    /// attached to any of them. With it the map for [`Self::steer_bank`].
    ///
    /// # Errors
    /// [`Error::Refused`] when the daemon may not load programs, or a socket lies in a bank already.
    pub fn bank<'a>(
        &mut self,
        keys: impl AsFd,
        sockets: impl Iterator<Item = BorrowedFd<'a>>,
    ) -> Result<(OwnedFd, OwnedFd), Error> {
        let (Bank {}, mut descriptors) = self.ask(&OpenBank {}, &[keys.as_fd()])?;
        let (map, program) = (descriptors.pop(), descriptors.pop());
        let (Some(program), Some(map)) = (program, map) else {
            return Err(Error::Descriptors { found: 0, expected: 2 });
        };
        for (index, socket) in (0..).zip(sockets) {
            let (SocketPlaced {}, _) = self.ask(&PlaceSocket { index }, &[socket])?;
        }
        Ok((program, map))
    }

    /// Says how a bank's program steers from now on. `map` came with the program.
    ///
    /// # Errors
    /// See [`Self::steer`].
    pub fn steer_bank(&mut self, map: impl AsFd, keys: impl AsFd) -> Result<(), Error> {
        let (BankSteered {}, _) = self.ask(&SteerBank {}, &[map.as_fd(), keys.as_fd()])?;
        Ok(())
    }

    /// What there is to know of the receive queues of an interface.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such interface.
    pub fn queues(&mut self, interface: &str) -> Result<Queues, Error> {
        Ok(self.ask(&QueuesQuery { interface: interface.to_owned() }, &[])?.0)
    }

    /// A new AF_XDP socket.
    ///
    /// # Errors
    /// [`Error::Refused`] when the daemon may make none.
    pub fn open_xdp(&mut self) -> Result<OwnedFd, Error> {
        let (XdpSocket {}, mut descriptors) = self.ask(&OpenXdp {}, &[])?;
        descriptors.pop().ok_or(Error::Descriptors { found: 0, expected: 1 })
    }

    /// Puts an AF_XDP socket, which is bound, to work in the stage of an interface. `socket` stays open here.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no stage, or the kernel does not take the socket.
    pub fn seat_xdp(&mut self, interface: &str, seat: QueueSeat, socket: impl AsFd) -> Result<(), Error> {
        let request = SeatXdp { interface: interface.to_owned(), seat };
        let (SeatDone {}, _) = self.ask(&request, &[socket.as_fd()])?;
        Ok(())
    }

    fn ask<R: Request>(
        &mut self,
        request: &R,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(R::Answer, Vec<OwnedFd>), Error> {
        let broken = match self.connection.send(request, descriptors, self.timeout) {
            Ok(()) => None,
            // A daemon that refuses says so before it hangs up: its sentence is the better answer.
            Err(error @ Error::Io(..)) => Some(error),
            Err(error) => return Err(error),
        };
        if let Some(error) = broken {
            return match self.connection.last_words(self.timeout) {
                Some(sentence) => Err(Error::Refused(sentence)),
                None => Err(error),
            };
        }
        self.connection.receive(Some(self.timeout), self.timeout)?.open()
    }
}

/// At most [`TEXT_BYTES_MAX`] octets of `text`, whole characters.
pub fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
