//! How QUIC is steered, as the gateway's supervisor says it over the control socket.
//!
//! Owns: reading its keys, putting them in force in every stage, programs for its banks of sockets. Does not own: one
//! stage (see [`crate::steering`]), one bank (see [`crate::reuseport`]), the conversation (see [`super::server`]).
//!
//! Nothing is kept here: the maps hold what was said, and the supervisor says it again every few seconds. So a daemon
//! that was restarted, and a stage that was attached anew, are told soon; and a supervisor that is gone is heard of no
//! more, after which no datagram is dropped for a bad connection ID.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use blitz_ctl_protocol::message::Steer;
use blitz_ebpf_common::layout::Seat;
use blitz_ebpf_common::steer::{STEERING_BYTES, Steering};

use super::stages::All;
use crate::lock;
use crate::reuseport::{self, BankProgram};
use crate::sys::{clock, wipe};

/// How long bad connection IDs may be dropped after the supervisor has spoken.
const STANDS: Duration = Duration::from_secs(60);
/// How long another writer is waited for. The supervisor comes again in a few seconds.
const PATIENCE: Duration = Duration::from_millis(200);

/// Puts what was said in force in every stage that is pinned; returns their interfaces.
///
/// # Errors
/// The sentence for the client. What was in force in other stages stays.
pub(super) fn steer(all: &All, said: &Steer, keys: OwnedFd) -> Result<Vec<String>, String> {
    let steering = read(keys)?;
    let mut alive = BTreeSet::new();
    for (generation, worker) in &said.alive {
        let seat = Seat::new(*generation, *worker).filter(|seat| seat.worker() < steering.bank.workers());
        alive.insert(seat.ok_or_else(|| format!("there is no worker {worker}"))?);
    }
    let stands = u64::try_from(STANDS.as_nanos()).unwrap_or(u64::MAX);
    let drop_until = clock::monotonic_nanoseconds().saturating_add(stands);
    let lock = lock::take(all.pins.base(), PATIENCE).map_err(|error| error.to_string())?;
    let mut interfaces = Vec::new();
    for managed in all.stages.iter().filter(|managed| managed.stage().pins().exists()) {
        let stage = managed.stage();
        let done = stage.seat_workers(&lock, &alive).and_then(|()| stage.steer(&lock, &steering, drop_until));
        done.map_err(|error| error.to_string())?;
        interfaces.push(stage.interface().to_owned());
    }
    Ok(interfaces)
}

/// A program for a bank, which is empty yet.
///
/// # Errors
/// The sentence for the client.
pub(super) fn open_bank(keys: OwnedFd) -> Result<BankProgram, String> {
    let steering = read(keys)?;
    let mut program = BankProgram::load().map_err(|error| error.to_string())?;
    program.steer(&steering).map_err(|error| error.to_string())?;
    Ok(program)
}

/// Puts a socket in its place.
///
/// # Errors
/// The sentence for the client.
pub(super) fn place(
    bank: Option<&mut BankProgram>,
    index: u32,
    socket: BorrowedFd<'_>,
) -> Result<(), String> {
    let bank = bank.ok_or("a socket has no place before a bank was opened")?;
    bank.place(index, socket).map_err(|error| error.to_string())
}

/// Says how the bank of `map` steers from now on.
///
/// # Errors
/// The sentence for the client.
pub(super) fn steer_bank(map: OwnedFd, keys: OwnedFd) -> Result<(), String> {
    let steering = read(keys)?;
    reuseport::steer(map, &steering).map_err(|error| error.to_string())
}

/// What a file says; its octets do not stay in memory.
fn read(keys: OwnedFd) -> Result<Steering, String> {
    let mut bytes = [0; STEERING_BYTES];
    let read = File::from(keys).read_exact_at(&mut bytes, 0);
    let steering = Steering::from_bytes(&bytes);
    wipe::wipe(&mut bytes);
    read.map_err(|error| format!("the file that says how to steer cannot be read: {error}"))?;
    steering.ok_or_else(|| {
        "the file says nothing about steering; run blitz and blitz-ctl of one release".to_owned()
    })
}

/// The descriptors that go to the client.
///
/// # Errors
/// The sentence for the client.
pub(super) fn descriptors(bank: &BankProgram) -> Result<[BorrowedFd<'_>; 2], String> {
    let program = bank.program().map_err(|error| error.to_string())?;
    let map = bank.map().map_err(|error| error.to_string())?;
    Ok([program.as_fd(), map])
}
