//! The `sk_reuseport` program of one bank of UDP sockets.
//!
//! Owns: loading it with maps of its own, what is written into them, attaching. Does not own: the rule
//! (`blitz_ebpf_common::steer`), the sockets (the supervisor of `blitz`), keys and their epochs.
//!
//! A socket lies in one bank only, and a bank is one group: one program for each UDP address. It stays with the group
//! until the last socket of that is closed, also when the process that loaded it ends.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, ReusePortSockArray};
use aya::programs::{ProgramFd, SkReuseport};
use aya::{Ebpf, EbpfLoader};
use blitz_ebpf_common::steer::{Aim, Entry, PROGRAM, Steering, VERSION, maps};

use crate::capabilities::{self, Capability};
use crate::error::{Error, Kind, Result};
use crate::object;
use crate::stage::attach::{load_error, program_error};

/// A program with its bank, in the kernel.
#[derive(Debug)]
pub struct BankProgram {
    object: Ebpf,
}

impl BankProgram {
    /// Loads the program with empty maps. It drops everything until [`Self::steer`] and [`Self::place`] were called.
    ///
    /// # Errors
    /// [`Kind::Rights`] without CAP_BPF and CAP_PERFMON; [`Kind::Kernel`] when the verifier refuses it.
    pub fn load() -> Result<Self> {
        capabilities::require(&[Capability::Bpf, Capability::Perfmon])?;
        let object = EbpfLoader::new().load(object::REUSEPORT).map_err(|error| load_error(&error))?;
        let mut loaded = Self { object };
        let program: Option<&mut SkReuseport> =
            loaded.object.program_mut(PROGRAM).and_then(|program| program.try_into().ok());
        let program = program.ok_or_else(|| misbuilt(&format!("sk_reuseport program {PROGRAM}")))?;
        program
            .load()
            .map_err(|error| program_error("the kernel refused the sk_reuseport program", &error))?;
        Ok(loaded)
    }

    /// Says how to steer from now on. What may change while datagrams come is written at
    /// [`Entry`](blitz_ebpf_common::steer::Entry).
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn steer(&mut self, steering: &Steering) -> Result<()> {
        let map = self.object.map_mut(maps::STEERING).ok_or_else(|| no_map(maps::STEERING))?;
        let mut map =
            Array::<&mut MapData, Entry>::try_from(map).map_err(|error| map_error(maps::STEERING, &error))?;
        let entry = Entry { version: VERSION, steering: *steering };
        map.set(0, entry, 0).map_err(|error| map_error(maps::STEERING, &error))
    }

    /// Puts a socket at its index. A place that is taken keeps its socket: a second one is an error.
    ///
    /// # Errors
    /// EEXIST: the place is taken. EBUSY: the socket lies in another place or in another bank. EINVAL: it is in no
    /// group.
    pub fn place(&mut self, index: u32, socket: BorrowedFd<'_>) -> Result<()> {
        /// `BPF_NOEXIST`.
        const ONLY_NEW: u64 = 1;
        self.bank()?
            .set(index, &Raw(socket.as_raw_fd()), ONLY_NEW)
            .map_err(|error| map_error(maps::BANK, &error))
    }

    /// Empties a place. What comes for it is dropped, and counted as `slot`.
    ///
    /// # Errors
    /// ENOENT: it is empty.
    pub fn clear(&mut self, index: u32) -> Result<()> {
        self.bank()?.clear_index(&index).map_err(|error| map_error(maps::BANK, &error))
    }

    /// Lets the program choose for the group that `socket` is in, in place of any other program. A datagram meets the
    /// one or the other.
    ///
    /// # Errors
    /// EINVAL: the socket is in no group.
    pub fn attach(&self, socket: BorrowedFd<'_>) -> Result<()> {
        let program: Option<&SkReuseport> =
            self.object.program(PROGRAM).and_then(|program| program.try_into().ok());
        let program = program.ok_or_else(|| misbuilt(&format!("sk_reuseport program {PROGRAM}")))?;
        program
            .attach(socket)
            .map_err(|error| Error::new(Kind::System, format!("attach {PROGRAM}: {error}"), "check `dmesg`"))
    }

    /// The program, to be attached by somebody else.
    ///
    /// # Errors
    /// It was not loaded.
    pub fn program(&self) -> Result<&ProgramFd> {
        let program: Option<&SkReuseport> =
            self.object.program(PROGRAM).and_then(|program| program.try_into().ok());
        program
            .and_then(|program| program.fd().ok())
            .ok_or_else(|| misbuilt(&format!("sk_reuseport program {PROGRAM}")))
    }

    /// The map that [`steer`] writes to, to be kept by somebody else.
    ///
    /// # Errors
    /// It is not there.
    pub fn map(&self) -> Result<BorrowedFd<'_>> {
        match self.object.map(maps::STEERING) {
            Some(Map::Array(map)) => Ok(map.fd().as_fd()),
            _ => Err(no_map(maps::STEERING)),
        }
    }

    /// How often each aim was decided, with its label, since the program was loaded. An aggregate counts once.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn aims(&self) -> Result<Vec<(&'static str, u64)>> {
        let map = self.object.map(maps::AIMS).ok_or_else(|| no_map(maps::AIMS))?;
        let map =
            PerCpuArray::<&MapData, u64>::try_from(map).map_err(|error| map_error(maps::AIMS, &error))?;
        let count = |(number, label)| {
            let values = map.get(&number, 0).map_err(|error| map_error(maps::AIMS, &error))?;
            Ok((label, values.iter().sum()))
        };
        (0..).zip(Aim::LABELS).map(count).collect()
    }

    fn bank(&mut self) -> Result<ReusePortSockArray<&mut MapData>> {
        let map = self.object.map_mut(maps::BANK).ok_or_else(|| no_map(maps::BANK))?;
        map.try_into().map_err(|error| map_error(maps::BANK, &error))
    }
}

/// Says how the program of a bank steers from now on, as [`BankProgram::steer`] does. `map`: [`BankProgram::map`].
///
/// # Errors
/// [`Kind::Usage`] when it is something else; what bpf(2) reports.
pub fn steer(map: OwnedFd, steering: &Steering) -> Result<()> {
    let other = || {
        Error::new(
            Kind::Usage,
            format!("what was given is no map {}", maps::STEERING),
            "run blitz and blitz-ctl of one release",
        )
    };
    let data = MapData::from_fd(map).map_err(|_| other())?;
    let mut map = Array::<MapData, Entry>::try_from(Map::Array(data)).map_err(|_| other())?;
    let entry = Entry { version: VERSION, steering: *steering };
    map.set(0, entry, 0).map_err(|error| map_error(maps::STEERING, &error))
}

/// A descriptor by its number, as aya wants it.
struct Raw(RawFd);

impl AsRawFd for Raw {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

fn no_map(name: &str) -> Error {
    misbuilt(&format!("map {name}"))
}

fn misbuilt(what: &str) -> Error {
    Error::new(
        Kind::System,
        format!("the sk_reuseport object in this program has no {what}"),
        "it was not built from this source: `cargo xtask build-ebpf`",
    )
}

fn map_error(name: &str, error: &MapError) -> Error {
    match error {
        MapError::SyscallError(error) => Error::io(format!("write or read {name}"), &error.io_error),
        other => Error::new(Kind::System, format!("{name}: {other}"), "check `dmesg`"),
    }
}
