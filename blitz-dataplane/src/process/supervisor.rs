//! The supervisor's table of workers: who lives, what each has applied, who is to be started again.
//!
//! Owns: starting, replacing, telling and ending workers. Does not own: configurations and sockets that it
//! hands them (the control loop passes them in, see [`crate::control::run`]), or the launch itself (see
//! [`super::launch`]).
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};

use super::channel::{self, Decoder, Frame};
use super::launch::{Exit, Launcher, Running};
use super::messages::{FromWorker, ToWorker};
use super::respawn::Deaths;
use crate::control::Event;
use crate::metrics::Metric;
use crate::segment::{Segment, WorkerRows};

/// Frames that wait for a worker to read them (count). A worker that lets so many wait is stuck and is
/// replaced.
const FRAMES_MAX: usize = 64;

/// What a worker's channel brought.
#[derive(Debug)]
pub enum WorkerEvent {
    /// A message.
    Message(FromWorker),
    /// The worker is gone.
    Ended(Exit),
}

/// All workers.
#[derive(Debug)]
pub struct Workers {
    launcher: Launcher,
    segment: Segment,
    own_rows: WorkerRows,
    events: mpsc::Sender<Event>,
    slots: Vec<Slot>,
}

#[derive(Debug, Default)]
struct Slot {
    /// How often this worker was started.
    incarnation: u64,
    live: Option<Live>,
    deaths: Deaths,
    died_at: Option<Instant>,
}

#[derive(Debug)]
struct Live {
    frames: mpsc::Sender<Frame>,
    kill: Arc<Notify>,
    /// Generation that the worker uses; 0 before the first.
    applied: u64,
    failure: Option<String>,
}

/// What is to be done about a dead worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// Why: a sentence without subject.
    pub reason: String,
    /// Whether it ended by order.
    pub is_clean: bool,
    /// How long to wait before the next start.
    pub delay: Duration,
}

impl Workers {
    /// A table of as many workers as the segment has rows for; none is started.
    pub fn new(
        launcher: Launcher,
        segment: Segment,
        own_rows: WorkerRows,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let slots = (0..segment.shape().workers).map(|_| Slot::default()).collect();
        Self { launcher, segment, own_rows, events, slots }
    }

    /// How many there are, alive or not.
    pub fn count(&self) -> u32 {
        self.segment.shape().workers
    }

    /// The number that the next start of worker `index` will have.
    pub fn next_incarnation(&self, index: u32) -> u64 {
        self.slots.get(index as usize).map_or(1, |slot| slot.incarnation + 1)
    }

    /// Starts worker `index` with its boot message.
    ///
    /// # Errors
    /// No descriptor, process or memory left; the worker counts as dead.
    pub fn start(&mut self, index: u32, boot: &ToWorker, fds: Vec<OwnedFd>) -> io::Result<()> {
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return Ok(());
        };
        slot.incarnation += 1;
        slot.live = None;
        let incarnation = slot.incarnation;
        let boot = Frame::new(boot, fds).map_err(io::Error::other)?;
        let (stream, running) = self.launcher.start(index)?;
        let stream = UnixStream::from_std(stream)?;
        let (frames, outgoing) = mpsc::channel(FRAMES_MAX);
        let kill = Arc::new(Notify::new());
        let attendant = Attendant {
            index,
            incarnation,
            stream,
            running,
            kill: Arc::clone(&kill),
            events: self.events.clone(),
        };
        tokio::spawn(attendant.attend(boot, outgoing));
        slot.live = Some(Live { frames, kill, applied: 0, failure: None });
        if incarnation > 1 {
            self.own_rows.add(Metric::WorkerRestarts, 1);
        }
        Ok(())
    }

    /// Whether an event of this incarnation still matters.
    pub fn is_current(&self, index: u32, incarnation: u64) -> bool {
        self.slots.get(index as usize).is_some_and(|slot| slot.incarnation == incarnation)
    }

    /// Records that worker `index` uses `generation`. Returns how long the worker had been away, the first
    /// time.
    pub fn applied(&mut self, index: u32, generation: u64) -> Option<Duration> {
        let slot = self.slots.get_mut(index as usize)?;
        let live = slot.live.as_mut()?;
        let is_first = live.applied == 0;
        live.applied = live.applied.max(generation);
        if is_first { slot.died_at.take().map(|died_at| died_at.elapsed()) } else { None }
    }

    /// Records the reason that a worker gave before its end.
    pub fn failed(&mut self, index: u32, reason: String) {
        if let Some(live) = self.live_mut(index) {
            live.failure = Some(reason);
        }
    }

    /// Records the end of worker `index`, zeroes what it had in flight, and says when to start the next.
    pub fn ended(&mut self, index: u32, exit: Exit, now: Instant) -> Option<Death> {
        let slot = self.slots.get_mut(index as usize)?;
        let live = slot.live.take();
        self.segment.zero_in_flight(index);
        slot.died_at = Some(now);
        let had_served = live.as_ref().is_some_and(|live| live.applied > 0);
        let delay = slot.deaths.record(now, had_served);
        let is_clean = exit == Exit::Clean;
        let how = match exit {
            Exit::Clean => "returned".to_owned(),
            Exit::Died(how) => how,
        };
        let reason = match live.and_then(|live| live.failure) {
            Some(failure) => format!("{how}: {failure}"),
            None => how,
        };
        Some(Death { reason, is_clean, delay })
    }

    /// Tells worker `index`; a dead one hears nothing. `fds` travel along.
    pub fn tell(&self, index: u32, message: &ToWorker, fds: Vec<OwnedFd>) {
        let Some(live) = self.live(index) else { return };
        match Frame::new(message, fds) {
            Ok(frame) => {
                if live.frames.try_send(frame).is_err() {
                    log::error!(
                        "worker {index} reads no orders ({FRAMES_MAX} wait); it is killed and replaced"
                    );
                    live.kill.notify_one();
                }
            }
            Err(error) => log::error!("an order to worker {index} could not be made: {error}"),
        }
    }

    /// Tells all live workers a message without descriptors.
    pub fn tell_all(&self, message: &ToWorker) {
        for index in self.alive() {
            self.tell(index, message, Vec::new());
        }
    }

    /// Kills all live workers. Threads cannot be killed; they end with the process.
    pub fn kill_all(&self) {
        for live in self.slots.iter().filter_map(|slot| slot.live.as_ref()) {
            live.kill.notify_one();
        }
    }

    /// Numbers of the live workers.
    pub fn alive(&self) -> Vec<u32> {
        (0..self.count()).filter(|index| self.live(*index).is_some()).collect()
    }

    /// Lowest generation that a live worker uses; `None` without live workers.
    pub fn lowest_applied(&self) -> Option<u64> {
        self.slots.iter().filter_map(|slot| slot.live.as_ref()).map(|live| live.applied).min()
    }

    /// Whether every worker lives and uses `generation` or a later one.
    pub fn all_applied(&self, generation: u64) -> bool {
        self.slots.iter().all(|slot| slot.live.as_ref().is_some_and(|live| live.applied >= generation))
    }

    /// Numbers of live workers that do not use `generation` yet.
    pub fn behind(&self, generation: u64) -> Vec<u32> {
        let is_behind = |index: &u32| self.live(*index).is_some_and(|live| live.applied < generation);
        (0..self.count()).filter(is_behind).collect()
    }

    fn live(&self, index: u32) -> Option<&Live> {
        self.slots.get(index as usize)?.live.as_ref()
    }

    fn live_mut(&mut self, index: u32) -> Option<&mut Live> {
        self.slots.get_mut(index as usize)?.live.as_mut()
    }
}

/// The task that carries one incarnation's channel and waits for its end.
struct Attendant {
    index: u32,
    incarnation: u64,
    stream: UnixStream,
    running: Running,
    kill: Arc<Notify>,
    events: mpsc::Sender<Event>,
}

impl Attendant {
    async fn attend(self, boot: Frame, mut outgoing: mpsc::Receiver<Frame>) {
        let Self { index, incarnation, stream, mut running, kill, events } = self;
        let event = |event| Event::Worker { index, incarnation, event };
        let reading = async {
            let mut decoder = Decoder::default();
            loop {
                match channel::receive::<FromWorker>(&stream, &mut decoder).await {
                    Ok(Some((message, _))) => {
                        if events.send(event(WorkerEvent::Message(message))).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => return,
                    Err(error) => {
                        log::warn!("worker {index}: {error}");
                        return;
                    }
                }
            }
        };
        let writing = async {
            let mut frame = Some(boot);
            while let Some(next) = frame {
                let sent = channel::send(&stream, &next).await;
                // Its descriptors are the worker's alone now: an end of a pipe that stayed here would keep it open.
                drop(next);
                if sent.is_err() {
                    // The reading half sees the end too, after what the worker said last.
                    break;
                }
                frame = outgoing.recv().await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = reading => {}
            () = writing => {}
            () = kill.notified() => running.kill(),
        }
        drop(stream);
        let exit = running.ended().await;
        // The control loop has ended; then nobody starts a successor either.
        let _ended = events.send(event(WorkerEvent::Ended(exit))).await;
    }
}
