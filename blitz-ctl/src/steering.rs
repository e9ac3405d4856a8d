//! What steers QUIC in a running stage: keys, workers, receive queues.
//!
//! Owns: the order in which the steering maps are written under traffic. Does not own: the rule
//! (`blitz_ebpf_common::decide`), who says what is to be written (the gateway's supervisor, over the control socket),
//! AF_XDP sockets (the workers).
//!
//! Whatever is written half way, or stays when its writer dies, fails towards the kernel: without keys everything
//! passes, and so does what comes on a queue whose socket is gone.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use blitz_ebpf_common::cid::{Codec, GENERATIONS, Keys, Parity};
use blitz_ebpf_common::layout::{QUEUES_MAX, SEATS, STEER_VERSION, Seat, Steer};
use blitz_ebpf_common::steer::Steering;

use crate::error::{Error, Kind, Result};
use crate::lock::Lock;
use crate::stage::Stage;

impl Stage {
    /// Says how to read connection IDs from now on, and until when a bad one may be dropped (CLOCK_MONOTONIC,
    /// nanoseconds). Also what renews that time alone.
    ///
    /// # Errors
    /// What bpf(2) reports. Then everything passes, or all is as before.
    pub fn steer(&self, _lock: &Lock, steering: &Steering, drop_until: u64) -> Result<()> {
        let entry = Steer {
            drop_until,
            version: STEER_VERSION,
            generation: steering.bank.generation() % GENERATIONS,
            codec: steering.codec,
            reserved: 0,
        };
        let put =
            |entry: &Steer| self.maps().steer.put(&0, entry).map_err(|error| self.io("write STEER", &error));
        // A packet may meet the entry half written. Out of force, the keys are not looked at while they change.
        if !self.steered()?.is_some_and(|before| before.codec == entry.codec) {
            put(&Steer { version: 0, drop_until: 0, ..entry })?;
        }
        put(&entry)
    }

    /// Forgets how to read connection IDs, and who lives: everything passes to the kernel. Queues keep their sockets.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn unsteer(&self, lock: &Lock) -> Result<()> {
        if let Some(before) = self.steered()? {
            let out_of_force = Steer { version: 0, drop_until: 0, ..before };
            let none = Codec::new(Keys { even: [0; 4], odd: [0; 4], issues: Parity::Even });
            // Out of force first, then the keys, which are of no more use to anybody.
            for entry in [out_of_force, Steer { codec: none, ..out_of_force }] {
                self.maps().steer.put(&0, &entry).map_err(|error| self.io("write STEER", &error))?;
            }
        }
        self.seat_workers(lock, &BTreeSet::new())
    }

    /// How connection IDs are read; `None` when nobody has said so.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn steered(&self) -> Result<Option<Steer>> {
        let entry = self.maps().steer.get(&0).map_err(|error| self.io("read STEER", &error))?;
        Ok(entry.filter(|entry| entry.version == STEER_VERSION))
    }

    /// Says which workers live: these and no others.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn seat_workers(&self, _lock: &Lock, alive: &BTreeSet<Seat>) -> Result<()> {
        let table = &self.maps().workers;
        let failed = |error| self.io("write WORKERS", &error);
        let mut wanted = vec![Seat::NOBODY; SEATS as usize];
        for seat in alive {
            if let Some(place) = wanted.get_mut(seat.index() as usize) {
                *place = *seat;
            }
        }
        // One word each, and only those that change.
        for ((index, before), after) in table.entries().map_err(failed)?.into_iter().zip(wanted) {
            if before != after {
                table.put(&index, &after).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The workers that live.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn workers(&self) -> Result<BTreeSet<Seat>> {
        let entries =
            self.maps().workers.entries().map_err(|error| self.io("read WORKERS", &error))?.into_iter();
        Ok(entries.map(|(_, seat)| seat).filter(|seat| seat.is_taken()).collect())
    }

    /// Gives a receive queue to a worker: what is for it and comes there goes to `socket`, which has to be an AF_XDP
    /// socket with a receive ring. It should be bound to this queue of this interface already: what comes before is
    /// lost. The map holds no reference that keeps the socket open.
    ///
    /// # Errors
    /// [`Kind::Full`] for a queue that has no place; what bpf(2) reports: EOPNOTSUPP, it is no such socket.
    pub fn bind_queue(&self, _lock: &Lock, queue: u32, worker: Seat, socket: BorrowedFd<'_>) -> Result<()> {
        if queue >= QUEUES_MAX {
            return Err(Error::new(
                Kind::Full,
                format!(
                    "{}: receive queue {queue} has no place in a table of {QUEUES_MAX}",
                    self.interface()
                ),
                "give the interface fewer queues (ethtool -L)",
            ));
        }
        let owner =
            |seat| self.maps().queues.put(&queue, &seat).map_err(|error| self.io("write QUEUES", &error));
        // Nobody's while the socket changes: the next owner's datagrams must not end at the one before.
        owner(Seat::NOBODY)?;
        let number = socket.as_raw_fd().unsigned_abs();
        self.maps().xsks.put(&queue, &number).map_err(|error| self.io("write XSKS", &error))?;
        owner(worker)
    }

    /// Takes a receive queue back: what comes there goes to the kernel. A queue that nobody has is no error.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn free_queue(&self, _lock: &Lock, queue: u32) -> Result<()> {
        if queue >= QUEUES_MAX {
            return Ok(());
        }
        let maps = self.maps();
        maps.queues.put(&queue, &Seat::NOBODY).map_err(|error| self.io("write QUEUES", &error))?;
        // Gone already when the socket was closed.
        match maps.xsks.remove(&queue) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.io("write XSKS", &error)),
        }
    }

    /// The receive queues that belong to a worker.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn queues(&self) -> Result<Vec<(u32, Seat)>> {
        let entries =
            self.maps().queues.entries().map_err(|error| self.io("read QUEUES", &error))?.into_iter();
        Ok(entries.filter(|(_, seat)| seat.is_taken()).collect())
    }
}
