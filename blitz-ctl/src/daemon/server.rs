//! The control socket's daemon side: listening, bounds on connections, one thread for each.
//!
//! Owns: the socket file and its lock, who may hold how many connections, turning requests into calls of
//! [`Requests`]. Does not own: frames and handshake (`blitz_ctl_protocol`), what a request does
//! ([`super::state`]).
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blitz_ctl_protocol::message::{
    Bank, BankSteered, BlockedPage, DescriptorFacts, OpenSocket, Queues, Reason, Report, ReportDone,
    SeatDone, SeatXdp, Socket, SocketFacts, SocketPlaced, SocketProtocol, Status, Steer, SteerDone,
    UnblockDone, XdpSocket,
};
use blitz_ctl_protocol::server::{Incoming, Session};
use blitz_ctl_protocol::{Error as Broken, sys};

use super::peers::Peers;
use super::steering;
use crate::error::{Error, Kind, Result};
use crate::reuseport::BankProgram;

/// Connections at once (count). A further one is closed at once, and counted.
pub const CONNECTIONS_MAX: usize = 64;
/// Connections of one user other than root (count), so that root always gets in.
pub const CONNECTIONS_OF_USER_MAX: usize = 32;
/// Connections of all users that may not use the socket (count), while they are told so. They take no place of
/// those who may.
pub const STRANGERS_MAX: usize = 8;
/// Longest step of a conversation: the hello, a frame that has begun, an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest silence of a client. The data plane connects again when it has something to say.
const IDLE: Duration = Duration::from_secs(600);

/// What requests do.
pub trait Requests: Send + Sync + 'static {
    /// A source was reported.
    ///
    /// # Errors
    /// The sentence for the client.
    fn report(&self, report: &Report) -> std::result::Result<ReportDone, String>;
    /// A source is to be unblocked.
    ///
    /// # Errors
    /// The sentence for the client.
    fn unblock(&self, source: IpAddr) -> std::result::Result<bool, String>;
    /// A page of the blocklist.
    fn list_blocked(&self, after: Option<IpAddr>) -> BlockedPage;
    /// How the daemon is.
    fn status(&self) -> Status;
    /// How QUIC is steered; returns the interfaces whose stage steers so now.
    ///
    /// # Errors
    /// The sentence for the client.
    fn steer(&self, steer: &Steer, keys: OwnedFd) -> std::result::Result<Vec<String>, String>;
    /// What there is to know of the receive queues of an interface.
    ///
    /// # Errors
    /// The sentence for the client.
    fn queues(&self, interface: &str) -> std::result::Result<Queues, String>;
    /// A new AF_XDP socket.
    ///
    /// # Errors
    /// The sentence for the client.
    fn open_xdp(&self) -> std::result::Result<OwnedFd, String>;
    /// An AF_XDP socket is to get what comes on its queue.
    ///
    /// # Errors
    /// The sentence for the client.
    fn seat_xdp(&self, wanted: &SeatXdp, socket: OwnedFd) -> std::result::Result<(), String>;
    /// A connection was turned away.
    fn refused(&self, cause: Refusal);
    /// How many connections there are now.
    fn connections(&self, count: usize);
}

/// Why a connection is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// Its user may not use the socket.
    User,
    /// There are too many connections.
    TooMany,
    /// It did not speak the protocol.
    Protocol,
}

impl Refusal {
    /// Every cause.
    pub const ALL: [Self; 3] = [Self::User, Self::TooMany, Self::Protocol];

    /// The value of the metric label `cause`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::TooMany => "too_many",
            Self::Protocol => "protocol",
        }
    }
}

/// The listening socket. The file goes when this is dropped; after a crash the next daemon removes it.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Held for as long as we serve: whoever has it may remove a socket file that is left over.
    _lock: File,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Nothing can be done about a file that does not go; the next daemon removes it.
        let _left = std::fs::remove_file(&self.path);
    }
}

/// Listens at `path`; makes its directory when it is missing.
///
/// # Errors
/// A sentence: another daemon serves there, something that is no socket is there, or no right to write.
pub fn listen(path: &Path) -> Result<Listener> {
    let shown = path.display();
    let failed =
        |what: &str, error: &io::Error| Error::io(format!("the control socket {shown}: {what}"), error);
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(|error| failed("its directory", &error))?;
    }
    let taken = || {
        Error::new(
            Kind::System,
            format!("another blitz-ctl serves the control socket {shown}"),
            "end that one (systemctl stop blitz-ctl), or give this one another path with --socket",
        )
    };
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    // Whoever can open it can hold its lock, and so keep a daemon from starting.
    let private = std::fs::Permissions::from_mode(0o600);
    let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
    let lock = lock.and_then(|lock| lock.set_permissions(private).map(|()| lock));
    let lock = lock.map_err(|error| failed("its lock file", &error))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(taken()),
        Err(TryLockError::Error(error)) => return Err(failed("its lock file", &error)),
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("looking for an old one", &error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::new(
                Kind::System,
                format!("{shown} is there and is no socket"),
                "remove it, or give another path with --socket",
            ));
        }
        // The lock is ours, so nobody of ours listens; somebody else might.
        Ok(_) => match sys::connect(path, TIMEOUT) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|error| failed("removing the old one", &error))?;
                log::info!("{shown} was left over by a daemon that did not end in order; removed");
            }
            _ => return Err(taken()),
        },
    }
    let listener = UnixListener::bind(path).map_err(|error| failed("bind", &error))?;
    // Everybody may connect; who may speak is decided by the kernel's word on who the peer is.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
        .map_err(|error| failed("its permissions", &error))?;
    Ok(Listener { listener, path: path.to_owned(), _lock: lock })
}

/// Connections by user.
#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_user: HashMap<u32, usize>,
    strangers: usize,
}

struct Shared<R> {
    requests: Arc<R>,
    peers: Peers,
    counts: Mutex<Counts>,
}

/// Serves `listener` on a thread of its own for as long as the process lives.
///
/// # Errors
/// No thread, or no second descriptor of the listener.
pub fn start<R: Requests>(listener: &Listener, peers: Peers, requests: Arc<R>) -> io::Result<()> {
    let listener = listener.listener.try_clone()?;
    let shared = Arc::new(Shared { requests, peers, counts: Mutex::default() });
    std::thread::Builder::new().name("ctl-accept".to_owned()).spawn(move || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => accept(stream, &shared),
                Err(error) => {
                    // Out of descriptors, mostly: wait for some to close instead of spinning.
                    log::warn!("the control socket cannot accept: {error}");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    })?;
    Ok(())
}

fn accept<R: Requests>(stream: UnixStream, shared: &Arc<Shared<R>>) {
    let Ok(peer) = sys::peer_credentials(stream.as_fd()) else { return };
    let admitted = shared.peers.admit(peer);
    let seat = if admitted.is_ok() { Seat::User(peer.uid) } else { Seat::Stranger };
    if !shared.enter(seat) {
        let cause = if admitted.is_ok() { Refusal::TooMany } else { Refusal::User };
        shared.requests.refused(cause);
        return;
    }
    let theirs = Arc::clone(shared);
    let spawned = std::thread::Builder::new().name("ctl-client".to_owned()).spawn(move || {
        let _place = Place { shared: &theirs, seat };
        if let Err(error) = converse(stream, admitted, &theirs) {
            log::debug!("control connection of process {} (user {}): {error}", peer.pid, peer.uid);
        }
    });
    if let Err(error) = spawned {
        log::warn!("no thread for a control connection: {error}");
        shared.leave(seat);
    }
}

/// Whose place a connection takes.
#[derive(Clone, Copy, Debug)]
enum Seat {
    /// That of a user who may use the socket.
    User(u32),
    /// One of those for users who may not.
    Stranger,
}

/// A connection's place, given back also when its thread panics.
struct Place<'a, R: Requests> {
    shared: &'a Shared<R>,
    seat: Seat,
}

impl<R: Requests> Drop for Place<'_, R> {
    fn drop(&mut self) {
        self.shared.leave(self.seat);
    }
}

impl<R: Requests> Shared<R> {
    fn enter(&self, seat: Seat) -> bool {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Seat::User(uid) = seat else {
            let has_room = counts.strangers < STRANGERS_MAX;
            counts.strangers += usize::from(has_room);
            return has_room;
        };
        let of_user = counts.by_user.get(&uid).copied().unwrap_or(0);
        if counts.all >= CONNECTIONS_MAX || (uid != 0 && of_user >= CONNECTIONS_OF_USER_MAX) {
            return false;
        }
        counts.all += 1;
        counts.by_user.insert(uid, of_user + 1);
        self.requests.connections(counts.all);
        true
    }

    fn leave(&self, seat: Seat) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Seat::User(uid) = seat else {
            counts.strangers = counts.strangers.saturating_sub(1);
            return;
        };
        counts.all = counts.all.saturating_sub(1);
        if let Some(of_user) = counts.by_user.get_mut(&uid) {
            *of_user = of_user.saturating_sub(1);
            if *of_user == 0 {
                counts.by_user.remove(&uid);
            }
        }
        self.requests.connections(counts.all);
    }
}

fn converse<R: Requests>(
    stream: UnixStream,
    admitted: std::result::Result<(), String>,
    shared: &Shared<R>,
) -> std::result::Result<(), Broken> {
    let is_stranger = admitted.is_err();
    let session = Session::accept(stream, TIMEOUT, |_| admitted);
    let mut session = match session {
        Ok(session) => session,
        Err(error) => {
            shared.requests.refused(if is_stranger { Refusal::User } else { Refusal::Protocol });
            return Err(error);
        }
    };
    let peer = session.credentials();
    log::debug!("{:?} (process {}, user {}) is connected", session.name(), peer.pid, peer.uid);
    // The bank that this client has opened last. What it has become stays with the sockets.
    let mut bank = None;
    loop {
        let request = match session.next(Some(IDLE)) {
            Ok(request) => request,
            Err(Broken::Closed | Broken::TimedOut) => return Ok(()),
            Err(error) => {
                shared.requests.refused(Refusal::Protocol);
                return Err(error);
            }
        };
        answer(&mut session, request, &*shared.requests, &mut bank)?;
    }
}

fn answer(
    session: &mut Session,
    request: Incoming,
    requests: &impl Requests,
    bank: &mut Option<BankProgram>,
) -> std::result::Result<(), Broken> {
    match request {
        Incoming::Report(report) => {
            if report.reason == Reason::Operator && session.credentials().uid != 0 {
                return session.refuse("only root blocks a source as an operator");
            }
            match requests.report(&report) {
                Ok(done) => session.answer(&done, &[]),
                Err(sentence) => session.refuse(&sentence),
            }
        }
        Incoming::Unblock(unblock) => match requests.unblock(unblock.source) {
            Ok(was_blocked) => session.answer(&UnblockDone { was_blocked }, &[]),
            Err(sentence) => session.refuse(&sentence),
        },
        Incoming::ListBlocked(list) => session.answer(&requests.list_blocked(list.after), &[]),
        Incoming::Status => session.answer(&requests.status(), &[]),
        Incoming::OpenSocket(wanted) => match open(&wanted).and_then(|fd| Ok((facts(&fd)?, fd))) {
            // Our copy closes when it has been sent.
            Ok((facts, socket)) => session.answer(&Socket(facts), &[socket.as_fd()]),
            Err(error) => session.refuse(&bind_refusal(&wanted, &error)),
        },
        Incoming::GiveDescriptor(given) => match facts(&given) {
            Ok(facts) => session.answer(&DescriptorFacts(facts), &[]),
            Err(error) => session.refuse(&format!("what was given is no socket: {error}")),
        },
        Incoming::Steer(steer, keys) => {
            // Whatever bank was opened before is filled: our copy would keep its sockets from another one.
            *bank = None;
            match requests.steer(&steer, keys) {
                Ok(interfaces) => session.answer(&SteerDone { interfaces }, &[]),
                Err(sentence) => session.refuse(&sentence),
            }
        }
        Incoming::OpenBank(keys) => match steering::open_bank(keys) {
            Ok(opened) => match steering::descriptors(bank.insert(opened)) {
                Ok(descriptors) => session.answer(&Bank {}, &descriptors),
                Err(sentence) => session.refuse(&sentence),
            },
            Err(sentence) => session.refuse(&sentence),
        },
        Incoming::PlaceSocket(place, socket) => {
            match steering::place(bank.as_mut(), place.index, socket.as_fd()) {
                Ok(()) => session.answer(&SocketPlaced {}, &[]),
                Err(sentence) => session.refuse(&sentence),
            }
        }
        Incoming::SteerBank { map, keys } => match steering::steer_bank(map, keys) {
            Ok(()) => session.answer(&BankSteered {}, &[]),
            Err(sentence) => session.refuse(&sentence),
        },
        Incoming::Queues(query) => match requests.queues(&query.interface) {
            Ok(queues) => session.answer(&queues, &[]),
            Err(sentence) => session.refuse(&sentence),
        },
        Incoming::OpenXdp => match requests.open_xdp() {
            // Our copy closes when it has been sent.
            Ok(socket) => session.answer(&XdpSocket {}, &[socket.as_fd()]),
            Err(sentence) => session.refuse(&sentence),
        },
        Incoming::SeatXdp(wanted, socket) => match requests.seat_xdp(&wanted, socket) {
            Ok(()) => session.answer(&SeatDone {}, &[]),
            Err(sentence) => session.refuse(&sentence),
        },
    }
}

fn open(wanted: &OpenSocket) -> io::Result<OwnedFd> {
    Ok(match wanted.protocol {
        SocketProtocol::Tcp => TcpListener::bind(wanted.address)?.into(),
        SocketProtocol::Udp => UdpSocket::bind(wanted.address)?.into(),
    })
}

fn facts(fd: &OwnedFd) -> io::Result<SocketFacts> {
    let read = |option| sys::socket_option(fd.as_fd(), option);
    Ok(SocketFacts {
        domain: read(libc::SO_DOMAIN)?,
        kind: read(libc::SO_TYPE)?,
        protocol: read(libc::SO_PROTOCOL)?,
    })
}

fn bind_refusal(wanted: &OpenSocket, error: &io::Error) -> String {
    let protocol = match wanted.protocol {
        SocketProtocol::Tcp => "tcp",
        SocketProtocol::Udp => "udp",
    };
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; the daemon has no CAP_NET_BIND_SERVICE: lower net.ipv4.ip_unprivileged_port_start, or let blitz \
             bind the port itself"
        }
        io::ErrorKind::AddrInUse => "; another program has the port",
        io::ErrorKind::AddrNotAvailable => "; the address is not this machine's",
        _ => "",
    };
    format!("cannot bind {protocol} {}: {error}{remedy}", wanted.address)
}

#[cfg(test)]
mod tests;
