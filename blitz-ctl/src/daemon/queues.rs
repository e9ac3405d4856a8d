//! Receive queues for workers: what there is, sockets for them, and their place in the stage.
//!
//! A worker has no right to make an AF_XDP socket, and none to write the stage's maps; it binds by itself. No copy of a
//! socket stays here: the next worker could not bind to its queue.
//!
//! Owns: that. Does not own: which worker asks for which queue (the data plane), the maps ([`crate::steering`]).
#![forbid(unsafe_code)]

use std::os::fd::{AsFd as _, OwnedFd};

use blitz_ctl_protocol::message::{QueueSeat, Queues, SeatXdp};
use blitz_ebpf_common::layout::Seat;

use crate::error::{Error, Kind};
use crate::pins::Pins;
use crate::stage::Stage;
use crate::{link_facts, netlink, sys};

/// What a worker has to know of an interface.
pub(super) fn facts(pins: &Pins, interface: &str) -> Result<Queues, String> {
    let sentence = |error: Error| error.to_string();
    let found = netlink::interface(interface).map_err(sentence)?;
    let facts = link_facts::collect(&found);
    let seats = match Stage::open(pins, interface) {
        Ok(stage) => Some(stage.queues().map_err(sentence)?),
        Err(error) if error.kind() == Kind::NotAttached => None,
        Err(error) => return Err(sentence(error)),
    };
    let seat = |(queue, seat): (u32, Seat)| QueueSeat {
        queue,
        generation: seat.generation(),
        worker: seat.worker(),
    };
    Ok(Queues {
        index: found.index,
        mtu: facts.mtu,
        queues: facts.rx_queues,
        seats: seats.map(|seats| seats.into_iter().map(seat).collect()),
    })
}

/// A socket that is bound to nothing.
pub(super) fn open() -> Result<OwnedFd, String> {
    sys::xdp::socket().map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            format!("no AF_XDP socket: {error}; the daemon's unit must leave it CAP_NET_RAW")
        }
        _ => format!("no AF_XDP socket: {error}; the kernel needs CONFIG_XDP_SOCKETS"),
    })
}

/// Has the stage send to `socket` what is for its worker. The copy closes at the end.
pub(super) fn seat(pins: &Pins, wanted: &SeatXdp, socket: OwnedFd) -> Result<(), String> {
    let QueueSeat { queue, generation, worker } = wanted.seat;
    let seat = Seat::new(generation, worker).ok_or_else(|| format!("no worker has the number {worker}"))?;
    let bind = || {
        let lock = pins.lock()?;
        Stage::open(pins, &wanted.interface)?.bind_queue(&lock, queue, seat, socket.as_fd())
    };
    bind().map_err(|error| error.to_string())?;
    log::info!("{}: receive queue {queue} belongs to worker {worker}", wanted.interface);
    Ok(())
}
