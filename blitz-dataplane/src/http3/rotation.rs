//! When a connection replaces its connection IDs: after their epoch, and once the client has all that it was given.
//!
//! Of quiche's NEW_CONNECTION_ID frames each says how far the client shall retire, as of when it is written; also one
//! that is written again because it was lost. A client that reads one which asks for its own retirement ends the
//! connection (RFC 9000 section 19.15). So before it is told to retire any it has to have got them all. quiche does
//! not say which frames have arrived, so the client is asked for packets, and when it has answered often enough, what
//! was sent before has arrived, or was found lost and has been sent again.
//!
//! Owns: when, and how many. Does not own: epochs (`keys.rs`), doing it (`server.rs`).

use std::time::Duration;

use super::keys::Cids;

/// Answers in a row (count) between which nothing was lost.
const CLEAN_MIN: u32 = 2;

/// Answers (count) that are enough even where something is lost all the time.
const ANSWERS_MAX: u32 = 8;

/// A client may take so long to acknowledge (RFC 9000 section 18.2: 25 ms unless it says otherwise), twice.
const ACK_DELAY: Duration = Duration::from_millis(50);

/// The time of one connection to replace.
pub(super) struct Rotation {
    /// How far it lags behind the clock (seconds).
    lag: u64,
    /// The epoch of its connection IDs.
    epoch: u64,
    /// The client is being asked.
    asking: Option<Asking>,
    /// Connection IDs of the epoch before (count) that the client is still to be told to give up.
    stale: usize,
    /// How many quiche keeps, those that the client has not retired yet included: one less than twice what the client
    /// takes. One more is refused, but raises Retire Prior To all the same.
    room: usize,
}

struct Asking {
    since_ms: u64,
    /// How long an answer takes.
    wait_ms: u64,
    /// Packets received and lost before (count).
    received: usize,
    lost: usize,
    has_answered: bool,
    clean: u32,
    answers: u32,
}

impl Rotation {
    pub(super) fn new(cids: &Cids) -> Self {
        let lag = cids.lag();
        let (epoch, _) = cids.epoch(lag);
        Self { lag, epoch, asking: None, stale: 0, room: 0 }
    }

    /// Whether to give the client a new connection ID in the place of its oldest.
    pub(super) fn is_due(&self, quic: &quiche::Connection) -> bool {
        self.stale > 0 && quic.active_scids() < self.room
    }

    /// It was done.
    pub(super) fn done(&mut self) {
        self.stale = self.stale.saturating_sub(1);
    }

    /// Looks whether it is time, for a client that has as many as it takes. To be called whenever something has come,
    /// and when [`Self::next_look`] says.
    pub(super) fn follow(&mut self, quic: &mut quiche::Connection, cids: &Cids, now_ms: u64) {
        let (epoch, _) = cids.epoch(self.lag);
        if epoch == self.epoch {
            return;
        }
        let stats = quic.stats();
        let (mut clean, mut answers) = (0, 0);
        if let Some(asking) = &mut self.asking {
            asking.has_answered |= stats.recv != asking.received;
            if !asking.has_answered || now_ms.saturating_sub(asking.since_ms) < asking.wait_ms {
                return;
            }
            clean = if stats.lost == asking.lost { asking.clean + 1 } else { 0 };
            answers = asking.answers + 1;
        }
        if clean >= CLEAN_MIN || answers >= ANSWERS_MAX {
            self.epoch = epoch;
            self.asking = None;
            self.stale = quic.active_scids();
            self.room = (self.stale * 2).saturating_sub(1);
            return;
        }
        // It may be closed already.
        let _closed = quic.send_ack_eliciting();
        let rtt = quic.path_stats().find(|path| path.active).map_or(Duration::ZERO, |path| path.rtt);
        let wait_ms = u64::try_from((rtt * 2 + ACK_DELAY).as_millis()).unwrap_or(u64::MAX);
        let (received, lost) = (stats.recv, stats.lost);
        self.asking =
            Some(Asking { since_ms: now_ms, wait_ms, received, lost, has_answered: false, clean, answers });
    }

    /// When to look again at the latest.
    pub(super) fn next_look(&self, cids: &Cids, now_ms: u64) -> Duration {
        match &self.asking {
            Some(asking) if asking.has_answered => {
                Duration::from_millis((asking.since_ms + asking.wait_ms).saturating_sub(now_ms))
            }
            // The answer wakes.
            Some(_) => Duration::from_secs(60),
            None => Duration::from_secs(cids.epoch(self.lag).1),
        }
    }
}
