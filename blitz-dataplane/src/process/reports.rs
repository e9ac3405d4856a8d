//! A worker's way to report a source.
//!
//! Owns: the bound on reports that have not left the worker. Does not own: who is reported (see
//! `crate::proxy::misconduct`), or what becomes of a report (see [`crate::control`]).
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;

use super::messages::{BlockReport, FromWorker, Leaving};

/// Reports that may wait to be written to the channel (count). The thread that writes them does nothing else,
/// so as many wait only when the supervisor is stuck; a report beyond them is dropped and counted.
pub const REPORTS_WAITING_MAX: usize = 64;

/// Sends reports to the supervisor. Never blocks.
#[derive(Clone, Debug)]
pub struct Reports {
    outbox: Sender<FromWorker>,
    waiting: Arc<AtomicUsize>,
}

impl Reports {
    /// Reports that leave by `outbox`.
    pub fn new(outbox: Sender<FromWorker>) -> Self {
        Self { outbox, waiting: Arc::default() }
    }

    /// Whether a report may be sent now.
    pub fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < REPORTS_WAITING_MAX
    }

    /// Sends a report.
    pub fn send(&self, report: BlockReport) {
        let leaving = Leaving::counted_by(Arc::clone(&self.waiting));
        // The outbox ends with the worker; then nobody asks any more.
        let _ended = self.outbox.send(FromWorker::Report { report, leaving });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blitz_ctl_protocol::message::Reason;
    use std::net::SocketAddr;
    use std::sync::mpsc;

    #[test]
    fn reports_wait_in_a_bounded_number() {
        let (outbox, outgoing) = mpsc::channel();
        let reports = Reports::new(outbox);
        let address = SocketAddr::from(([192, 0, 2, 1], 1));
        let report = BlockReport {
            reason: Reason::Framing,
            peer: address,
            local: address,
            note: "obs_fold".to_owned(),
        };
        for _ in 0..REPORTS_WAITING_MAX {
            assert!(reports.has_room());
            reports.send(report.clone());
        }
        assert!(!reports.has_room());
        let first = outgoing.recv().expect("a report");
        let text = serde_json::to_string(&first).expect("text");
        assert!(matches!(&first, FromWorker::Report { report: received, .. } if *received == report));
        drop(first);
        assert!(reports.has_room(), "what has been written makes room");
        let arrived: FromWorker = serde_json::from_str(&text).expect("the same message");
        assert!(matches!(arrived, FromWorker::Report { report: received, .. } if received == report));
    }
}
