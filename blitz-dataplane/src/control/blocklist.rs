//! Reports of sources to `blitz-ctl`, over its control socket.
//!
//! Owns: the thread that talks to the daemon, the bound on what waits for it, connecting again. Does not own:
//! the protocol ([`blitz_ctl_protocol`]), who is reported (`crate::proxy::misconduct`), or the blocklist
//! (`blitz-ctl`).
//!
//! A report is worth something for seconds: it is delivered at once or not at all. While nobody listens on the
//! socket, each is counted as unreachable and the source goes on being refused by the workers.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use blitz_ctl_protocol::message::{ConnectionFacts, Report};
use blitz_ctl_protocol::{Client, Error, client};
use tokio::sync::mpsc;

use super::Event;
use crate::metrics::names::ReportOutcome;
use crate::process::messages::BlockReport;

/// Reports that may wait for the daemon (count), of all workers. A report beyond them is dropped and counted.
const WAITING_MAX: usize = 256;
/// How long the daemon may take for one step.
const STEP: Duration = Duration::from_millis(500);
/// From one failed connect to the next try: doubled each time, from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// What the daemon's log calls us.
const NAME: &str = "blitz";

/// The supervisor's end: reports go in, [`Event::Reported`] comes out for each that went in.
#[derive(Debug)]
pub(super) struct Reporter {
    waiting: SyncSender<(BlockReport, Duration)>,
}

impl Reporter {
    /// Starts the thread that talks to the daemon at `socket`. It ends when the reporter is dropped.
    ///
    /// # Errors
    /// No thread or memory left.
    pub(super) fn start(socket: PathBuf, events: mpsc::Sender<Event>) -> io::Result<Self> {
        let (waiting, reports) = sync_channel(WAITING_MAX);
        let talk = move || Conversation::new(socket).carry(&reports, &events);
        std::thread::Builder::new().name("blocklist".to_owned()).spawn(talk)?;
        Ok(Self { waiting })
    }

    /// Hands a report over, to block the source for `ttl`. `false` when too many wait. Does not block.
    pub(super) fn offer(&self, report: BlockReport, ttl: Duration) -> bool {
        match self.waiting.try_send((report, ttl)) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

/// The conversation with the daemon.
struct Conversation {
    socket: PathBuf,
    client: Option<Client>,
    /// When to connect again, and how long to wait after the next failure.
    retry: (Option<Instant>, Duration),
    /// Whether the log knows that nobody listens.
    is_known_absent: bool,
}

impl Conversation {
    fn new(socket: PathBuf) -> Self {
        Self { socket, client: None, retry: (None, BACKOFF.0), is_known_absent: false }
    }

    fn carry(mut self, reports: &Receiver<(BlockReport, Duration)>, events: &mpsc::Sender<Event>) {
        while let Ok((report, ttl)) = reports.recv() {
            let reason = report.reason;
            let outcome = self.deliver(report, ttl);
            if events.blocking_send(Event::Reported { reason, outcome }).is_err() {
                return;
            }
        }
    }

    fn deliver(&mut self, report: BlockReport, ttl: Duration) -> ReportOutcome {
        let BlockReport { reason, peer, local, note } = report;
        let report = Report {
            source: peer.ip().to_canonical(),
            reason,
            ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
            connection: ConnectionFacts { peer, local, note: client::cut(&note).to_owned() },
        };
        // Twice: the daemon may have been restarted since the last report, or have closed an idle connection.
        for _ in 0..2 {
            let is_old = self.client.is_some();
            let Some(client) = self.connected() else { break };
            match client.report(&report) {
                Ok(done) => return done.outcome.into(),
                Err(Error::Refused(sentence)) => {
                    log::warn!("blitz-ctl refused the report of {}: {sentence}", report.source);
                    return ReportOutcome::Refused;
                }
                Err(error) => {
                    log::debug!("the control socket is of no more use: {error}");
                    self.client = None;
                    if !is_old {
                        self.failed(&error);
                        break;
                    }
                }
            }
        }
        ReportOutcome::Unreachable
    }

    /// The connection, made now when there is none and it is time to try.
    fn connected(&mut self) -> Option<&mut Client> {
        if self.client.is_none() {
            if self.retry.0.is_some_and(|retry_at| Instant::now() < retry_at) {
                return None;
            }
            match Client::connect(&self.socket, NAME, STEP) {
                Ok(client) => {
                    if self.is_known_absent {
                        log::info!("blitz-ctl listens on {}: sources can be blocked", self.socket.display());
                    }
                    self.is_known_absent = false;
                    self.retry = (None, BACKOFF.0);
                    self.client = Some(client);
                }
                Err(error) => {
                    self.failed(&error);
                    return None;
                }
            }
        }
        self.client.as_mut()
    }

    fn failed(&mut self, error: &Error) {
        let wait = self.retry.1;
        self.retry = (Instant::now().checked_add(wait), (wait * 2).min(BACKOFF.1));
        if !self.is_known_absent {
            self.is_known_absent = true;
            log::info!(
                "no source is blocked in the kernel until blitz-ctl answers on {}: {error}; \
                 start it with `blitz-ctl run`, or name its socket with --ctl-socket",
                self.socket.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blitz_ctl_protocol::message::{Outcome, Reason, ReportDone};
    use blitz_ctl_protocol::server::{Incoming, Session};
    use std::net::SocketAddr;
    use std::os::unix::net::UnixListener;

    fn report(host: u8) -> BlockReport {
        BlockReport {
            reason: Reason::Framing,
            peer: SocketAddr::from(([192, 0, 2, host], 4321)),
            local: SocketAddr::from(([192, 0, 2, 200], 80)),
            note: "length_and_coding".to_owned(),
        }
    }

    /// Answers `count` reports on each of `sessions` connections.
    fn daemon(
        socket: &std::path::Path,
        sessions: usize,
        count: usize,
    ) -> std::thread::JoinHandle<Vec<Report>> {
        let listener = UnixListener::bind(socket).expect("bind");
        std::thread::spawn(move || {
            let mut seen = Vec::new();
            for _ in 0..sessions {
                let (stream, _) = listener.accept().expect("a client");
                let mut session = Session::accept(stream, Duration::from_secs(5), |_| Ok(())).expect("hello");
                for _ in 0..count {
                    let Ok(Incoming::Report(report)) = session.next(None) else { panic!("no report") };
                    seen.push(report);
                    let outcome = if seen.len() == 1 { Outcome::Blocked } else { Outcome::Already };
                    session.answer(&ReportDone { outcome, remaining_ms: 1 }, &[]).expect("answer");
                }
            }
            seen
        })
    }

    #[test]
    fn reports_reach_a_daemon_that_comes_late_and_one_that_was_restarted() {
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join("ctl.sock");
        let (events, mut happened) = mpsc::channel(16);
        let reporter = Reporter::start(socket.clone(), events).expect("thread");
        let ttl = Duration::from_secs(60);
        let mut outcome = |host| {
            assert!(reporter.offer(report(host), ttl));
            match happened.blocking_recv() {
                Some(Event::Reported { reason: Reason::Framing, outcome }) => outcome,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(outcome(1), ReportOutcome::Unreachable);
        let daemon = daemon(&socket, 2, 2);
        // The daemon is found as soon as the backoff allows.
        let deadline = Instant::now() + Duration::from_secs(10);
        let first = loop {
            match outcome(2) {
                ReportOutcome::Unreachable => assert!(Instant::now() < deadline),
                first => break first,
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(first, ReportOutcome::Blocked);
        // The second session begins where the first was closed.
        let rest: Vec<_> = (3..6).map(&mut outcome).collect();
        assert_eq!(rest, [ReportOutcome::Already; 3]);
        let seen = daemon.join().expect("no panic");
        assert_eq!(seen.len(), 4);
        assert_eq!((seen[1].source.to_string(), seen[1].ttl_ms), ("192.0.2.3".to_owned(), 60_000));
        assert_eq!(seen[1].connection.note, "length_and_coding");
    }
}
