//! Paths: the addresses that a client has moved to.
//!
//! quiche keeps each to the end of its connection (30 KB, as measured in mid-download), and drops packets from one more
//! than it may keep without a word. So paths are counted, of a connection and of all of a worker's, and who has used up
//! either is closed in plain words: its client comes anew, from where it is now.
//!
//! quiche keeps to each path what it sent there, and takes for lost only what was sent before something that was
//! acknowledged. What was under way when a client moved is behind that, would never be sent again, and a download would
//! hang. So quiche is asked for a PING on the path that was left, and again when its timer says that this was lost; it
//! goes to where the client is now. Its acknowledgement shows quiche what else is lost.
//!
//! Owns: both counts, where a connection was. Does not own: closing, sending (`server.rs`).

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use crate::runtime::Transmit;

/// Paths that quiche keeps of a connection (count); it is closed when the last is used, so that its client may move
/// [`PATHS_MAX`] - 2 times.
pub(super) const PATHS_MAX: u64 = 32;

/// Paths of a worker's connections beyond the first of each (count).
#[derive(Debug, Default)]
pub struct WorkerPaths(Cell<u64>);

/// Paths of one connection beyond the first. Taken out of the worker's count with the connection.
pub(super) struct Paths {
    of_worker: Rc<WorkerPaths>,
    count: u64,
}

/// What a connection has used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UsedUp {
    /// Its own paths.
    Connection,
    /// Those of all connections of the worker.
    Worker,
}

impl Paths {
    /// Of a connection that has not moved.
    pub(super) fn new(of_worker: &Rc<WorkerPaths>) -> Self {
        Self { of_worker: Rc::clone(of_worker), count: 0 }
    }

    /// One more is used; what that was too much for.
    pub(super) fn add(&mut self, worker_max: u32) -> Option<UsedUp> {
        self.count += 1;
        let of_worker = self.of_worker.0.get() + 1;
        self.of_worker.0.set(of_worker);
        if self.count + 1 >= PATHS_MAX {
            Some(UsedUp::Connection)
        } else {
            (of_worker > u64::from(worker_max)).then_some(UsedUp::Worker)
        }
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        self.of_worker.0.set(self.of_worker.0.get().saturating_sub(self.count));
    }
}

/// Bytes of a datagram that quiche drops: a short header, a connection ID, what is too short for a packet.
const NONSENSE_BYTES: usize = 24;

/// Times what came from an address that may go there before it is proved (RFC 9000 section 8.1).
const AMPLIFICATION_MAX: u64 = 3;

/// A path: our address, the client's.
type Ends = (SocketAddr, SocketAddr);

/// A path that is not the current one.
#[derive(Clone, Copy, Debug)]
struct Other {
    ends: Ends,
    /// The client has shown that it receives there.
    is_proved: bool,
    /// What quiche had for it went elsewhere before, a challenge maybe: an answer to that proves nothing.
    is_suspect: bool,
    /// quiche was asked for a PING.
    is_asked: bool,
}

/// Where a connection is, and where it was.
#[derive(Debug, Default)]
pub(super) struct Route {
    current: Option<Ends>,
    /// See [`Other::is_suspect`].
    is_current_suspect: bool,
    /// Those that were current, then the others in the order in which they were seen. At most as many as quiche keeps.
    others: Vec<Other>,
    /// The first so many of them may have something to send (count).
    due: usize,
    /// The last that was seen, when quiche has given up the proof for it: after three probe timeouts, which a client on
    /// a busy machine needs before it answers (RFC 9000 section 8.2.4 wants three of a second at least).
    doubtful: Option<Ends>,
}

impl Route {
    /// Of a connection that has not moved.
    pub(super) fn of(quic: &quiche::Connection) -> Self {
        let active = quic.path_stats().find(|path| path.active);
        Self { current: active.map(|path| (path.local_addr, path.peer_addr)), ..Self::default() }
    }

    /// Something came from there.
    pub(super) fn seen(&mut self, ends: Ends) {
        self.others.push(Other { ends, is_proved: false, is_suspect: false, is_asked: false });
        self.doubtful = None;
    }

    /// The client has shown that it receives there.
    pub(super) fn proved(&mut self, ends: Ends) {
        let proved = self.others.iter_mut().filter(|other| other.ends == ends && !other.is_suspect);
        proved.for_each(|other| other.is_proved = true);
    }

    /// quiche has gone back to another path, since the client has not answered from there.
    pub(super) fn doubted(&mut self, quic: &mut quiche::Connection, ends: Ends) {
        self.doubtful = self.others.last().map(|other| other.ends).filter(|last| *last == ends);
        self.probe(quic);
    }

    /// Asks again for the proof that is missing.
    fn probe(&self, quic: &mut quiche::Connection) {
        if let Some((local, peer)) = self.doubtful {
            // quiche has seen it.
            let _unknown = quic.probe_path(local, peer);
        }
    }

    /// The client goes on from there.
    pub(super) fn moved(&mut self, quic: &mut quiche::Connection, ends: Ends) {
        // What was seen later may be where the client is: quiche also goes back by itself, when a proof takes too long.
        let seen_before = self.others.iter().position(|other| other.ends == ends).unwrap_or(0);
        self.doubtful = self.doubtful.filter(|doubtful| *doubtful != ends);
        let before = self.current.replace(ends).filter(|before| *before != ends);
        let is_suspect = self.is_current_suspect;
        let before = before.map(|ends| Other { ends, is_proved: !is_suspect, is_suspect, is_asked: false });
        if before.is_some() {
            self.is_current_suspect = self.others.iter().any(|other| other.ends == ends && other.is_suspect);
        }
        let asked = self.others.iter_mut().take(seen_before);
        for other in asked.filter(|other| !other.is_asked) {
            other.is_asked = quic.send_ack_eliciting_on_path(other.ends.0, other.ends.1).is_ok();
        }
        self.others.retain(|other| other.ends != ends);
        if let Some(mut before) = before {
            before.is_asked = quic.send_ack_eliciting_on_path(before.ends.0, before.ends.1).is_ok();
            self.others.insert(0, before);
        }
        self.due = self.others.len();
    }

    /// quiche may want to probe a path.
    pub(super) fn timed_out(&mut self, quic: &mut quiche::Connection) {
        self.probe(quic);
        self.due = self.others.len();
    }

    /// Whether what quiche has written last for a path may not go there: more than three times what came from it, and
    /// it is not proved (RFC 9000 section 8.1). quiche counts as well, and is misled by [`Self::send`].
    pub(super) fn is_too_much(&self, quic: &quiche::Connection, ends: Ends) -> bool {
        let is_suspect = self.is_current_suspect && self.current == Some(ends)
            || self.others.iter().any(|other| other.ends == ends && other.is_suspect);
        is_suspect
            && quic
                .path_stats()
                .find(|path| (path.local_addr, path.peer_addr) == ends)
                .is_some_and(|path| path.sent_bytes > path.recv_bytes.saturating_mul(AMPLIFICATION_MAX))
    }

    /// Whether there may be something to send for another path than the current one.
    pub(super) fn is_due(&self) -> bool {
        self.due > 0
    }

    /// Writes what quiche has to send on one of them, if it has, and says where that goes.
    pub(super) fn send(
        &mut self,
        quic: &mut quiche::Connection,
        room: &mut [u8],
    ) -> Option<(usize, Transmit)> {
        self.due = self.due.checked_sub(1)?;
        let other = self.others.get_mut(self.due).filter(|other| other.is_asked)?;
        let ((local, peer), (from, to)) = (other.ends, self.current?);
        if !other.is_proved {
            other.is_suspect = true;
            // As much may have been sent as may go there before. This goes elsewhere; and whatever comes from there
            // makes room for as much again.
            let _dropped = quic.recv(&mut [0x40; NONSENSE_BYTES], quiche::RecvInfo { from: peer, to: local });
        }
        let (written, _) = quic.send_on_path(room, Some(local), Some(peer)).ok()?;
        Some((written, Transmit { to, from: source(from), segment: None }))
    }
}

/// The address to send from; unspecified when the kernel has not said.
pub(super) fn source(from: SocketAddr) -> Option<IpAddr> {
    Some(from.ip()).filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_and_a_worker_use_up_their_paths() {
        let worker = Rc::new(WorkerPaths::default());
        let mut first = Paths::new(&worker);
        for _ in 0..PATHS_MAX - 2 {
            assert_eq!(first.add(100), None);
        }
        assert_eq!(first.add(100), Some(UsedUp::Connection));
        let mut second = Paths::new(&worker);
        assert_eq!(second.add(PATHS_MAX as u32), None);
        assert_eq!(second.add(PATHS_MAX as u32), Some(UsedUp::Worker));
        drop(first);
        assert_eq!(second.add(PATHS_MAX as u32), None);
        drop(second);
        assert_eq!(worker.0.get(), 0);
    }
}
