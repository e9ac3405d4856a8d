//! What is asked from outside: questions of the admin API, signals, the end.
//!
//! Owns: answers to questions, the stages of the end. Does not own: HTTP (see [`crate::control::admin`]) or
//! how a worker drains (its loop does).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use super::{
    CONNECTIONS_MAX, CONNECTIONS_TIMEOUT, Control, DRAIN_GRACE, KILL_GRACE, Outcome, QUESTIONS_MAX, Question,
    STOP_GRACE,
};
use crate::control::{Command, EndStage, Event, Signal};
use crate::process::messages::ToWorker;

impl Control {
    pub(super) fn commanded(&mut self, command: Command) {
        match command {
            Command::Reload(reply) => self.begin_reload(Some(reply)),
            Command::Drain(reply) => {
                self.drain("the admin API");
                let _gone = reply.send(());
            }
            Command::Record { worker, connection, pipe } => {
                self.workers.tell(worker, &ToWorker::Record { connection }, vec![pipe]);
            }
            Command::ListConnections(reply) => {
                let waiting_for: BTreeSet<u32> = self.workers.alive().into_iter().collect();
                if waiting_for.is_empty() || self.questions.len() >= QUESTIONS_MAX {
                    let _gone = reply.send(Vec::new());
                    return;
                }
                let request = self.next_question;
                self.next_question += 1;
                self.questions.insert(request, Question { waiting_for, rows: Vec::new(), reply });
                let rows_max = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
                self.workers.tell_all(&ToWorker::ListConnections { request, rows_max });
                self.later(CONNECTIONS_TIMEOUT, Event::ConnectionsDeadline { request });
            }
        }
    }

    pub(super) fn answer_question(&mut self, request: u64) {
        if let Some(question) = self.questions.remove(&request) {
            let _gone = question.reply.send(question.rows);
        }
    }

    pub(super) fn signalled(&mut self, signal: Signal) {
        match signal {
            Signal::Reload => self.begin_reload(None),
            Signal::Drain if self.ending.is_some() => self.stop("a second SIGTERM"),
            Signal::Drain => self.drain("SIGTERM"),
            Signal::Stop => self.stop("SIGINT"),
            Signal::Upgrade => {
                log::warn!(
                    "SIGUSR2: this release has no binary upgrade; nothing is done (stop and start it instead)"
                );
            }
        }
    }

    fn drain(&mut self, why: &str) {
        if self.ending.is_some() {
            return;
        }
        let deadline = self.current.config.timeouts.drain;
        log::info!("{why}: no new connections; those open have {:.1} s to end", deadline.as_secs_f64());
        self.ending = Some(EndStage::Drain);
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        self.workers.tell_all(&ToWorker::Drain { deadline_ms });
        // The workers' copies keep the addresses open until they have taken what is queued; ours would keep
        // the kernel accepting connections that nobody takes.
        self.banks.close_all();
        self.later(deadline.saturating_add(DRAIN_GRACE), Event::EndDeadline { stage: EndStage::Drain });
        self.publish();
    }

    fn stop(&mut self, why: &str) {
        if self.ending >= Some(EndStage::Stop) {
            return;
        }
        log::info!("{why}: stopping at once");
        self.ending = Some(EndStage::Stop);
        self.workers.tell_all(&ToWorker::Stop);
        self.banks.close_all();
        self.later(STOP_GRACE, Event::EndDeadline { stage: EndStage::Stop });
        self.publish();
    }

    pub(super) fn end_overdue(&mut self, stage: EndStage) -> Option<Outcome> {
        match stage {
            EndStage::Drain => self.stop("the drain deadline has passed"),
            EndStage::Stop => {
                log::error!("workers {:?} do not end and are killed", self.workers.alive());
                self.was_forced = true;
                self.ending = Some(EndStage::Kill);
                self.workers.kill_all();
                self.later(KILL_GRACE, Event::EndDeadline { stage: EndStage::Kill });
            }
            EndStage::Kill => return Some(Outcome::Forced),
        }
        None
    }
}
