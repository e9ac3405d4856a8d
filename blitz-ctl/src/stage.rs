//! The kernel stage of one interface: a pinned link, program and maps.
//!
//! Owns: adopting what is pinned, what is known about it, taking it away. Does not own: putting it there
//! (see [`attach`]), what is written into its maps (see [`crate::apply`], [`crate::blocklist`],
//! [`crate::deny`], [`crate::allow`], [`crate::limits`]).
//!
//! A stage outlives the process that made it: it filters until it is detached, its interface goes, or
//! the machine ends. Everything that changes one takes the writers' [`Lock`].
#![forbid(unsafe_code)]

pub mod attach;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use aya::programs::ProgramInfo;
use blitz_ebpf_common::gcra;
use blitz_ebpf_common::layout::{DENY_CONFIGURED, Settings};
use serde::Serialize;

use crate::counters::{self, Counters};
use crate::error::{Error, Kind, Result};
use crate::image::InForce;
use crate::lock::Lock;
use crate::maps::{Maps, Sizes};
use crate::netlink;
use crate::pins::{InterfacePins, Pins};
use crate::sys::clock;
use crate::sys::link::{self, PinnedLinkFacts};

/// The stage of one interface, adopted from its pins.
#[derive(Debug)]
pub struct Stage {
    interface: String,
    pins: InterfacePins,
    sizes: Sizes,
    maps: Maps,
}

/// What is known about a stage.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The interface's name.
    pub interface: String,
    /// What runs on it: `attached`, `detached` (the interface or the link is gone), `elsewhere` (the
    /// interface is in another network namespace).
    pub state: &'static str,
    /// The program's number.
    pub program_id: Option<u32>,
    /// `native`, `generic` or `offloaded`.
    pub mode: Option<&'static str>,
    /// Since the program was loaded, seconds.
    pub age_seconds: Option<u64>,
    /// Version of the layout of the maps.
    pub layout_version: u32,
    /// Sizes that it was made with.
    pub sizes: Sizes,
    /// Nothing is dropped: what would be is counted.
    pub shadow: bool,
    /// What the tables hold.
    pub tables: Vec<Occupancy>,
    /// How QUIC is steered.
    pub steering: Steering,
}

/// How QUIC is steered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Steering {
    /// The generation that new connections go to; `None` when nobody has said how to steer.
    pub generation: Option<u32>,
    /// Workers that live (count).
    pub workers: usize,
    /// Receive queues that belong to a worker.
    pub queues: Vec<Queue>,
}

/// A receive queue that belongs to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// Number of the queue.
    pub queue: u32,
    /// The worker's generation, as connection IDs have it.
    pub generation: u32,
    /// The worker.
    pub worker: u32,
}

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Occupancy {
    /// What it holds.
    pub table: &'static str,
    /// Entries in it (count).
    pub used: usize,
    /// Entries that fit (count).
    pub room: usize,
}

impl Stage {
    /// Adopts the stage that is pinned for `interface`. The layout is checked before anything else.
    ///
    /// # Errors
    /// [`Kind::NotAttached`], [`Kind::Layout`], [`Kind::Foreign`], [`Kind::Rights`].
    pub fn open(pins: &Pins, interface: &str) -> Result<Self> {
        netlink::check_name(interface)?;
        let own = pins.of(interface);
        let (maps, sizes) = Maps::open(&own).map_err(|error| match error.kind() {
            Kind::NotAttached => Error::new(
                Kind::NotAttached,
                format!("{interface} has no kernel stage"),
                format!("blitz-ctl attach {interface}"),
            ),
            _ => error.about(interface),
        })?;
        Ok(Self { interface: interface.to_owned(), pins: own, sizes, maps })
    }

    /// Adopts every stage.
    ///
    /// # Errors
    /// That of the first that cannot be adopted.
    pub fn open_all(pins: &Pins) -> Result<Vec<Self>> {
        pins.interfaces()?.iter().map(|interface| Self::open(pins, interface)).collect()
    }

    /// Takes the stage of `interface` away: traffic flows untouched from the removal of the link on. Pins
    /// that another version left are taken away too, and what an attach that was killed had built. True when a
    /// program was running.
    ///
    /// # Errors
    /// [`Kind::Interface`] for what is no name of one; [`Kind::NotAttached`] when nothing is pinned;
    /// [`Kind::Foreign`] when the link there is not an XDP link.
    pub fn detach(pins: &Pins, _lock: &Lock, interface: &str) -> Result<bool> {
        netlink::check_name(interface)?;
        let own = pins.of(interface);
        // Under the lock nobody is building there: whoever was died, perhaps with the link made already.
        let staging = pins.staging(interface);
        let left_over = if staging.exists() { pinned_link(&staging)? } else { None };
        let is_left_over = staging.exists();
        if is_left_over {
            staging.remove()?;
        }
        if !own.exists() && is_left_over {
            return Ok(left_over.is_some_and(|found| found.interface_index != 0));
        }
        if !own.exists() {
            return Err(Error::new(
                Kind::NotAttached,
                format!("{interface} has no kernel stage"),
                "`blitz-ctl status` lists the interfaces that have one",
            ));
        }
        let found = pinned_link(&own)?;
        own.remove()?;
        Ok(found.is_some_and(|found| found.interface_index != 0))
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Where it is pinned.
    pub fn pins(&self) -> &InterfacePins {
        &self.pins
    }

    /// The sizes of its tables.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Its maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// What the settings are now.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn settings(&self) -> Result<Settings> {
        Ok(self.maps.settings.get(&0).map_err(|error| self.io("read SETTINGS", &error))?.unwrap_or_default())
    }

    /// Everything that it has counted.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn counters(&self) -> Result<Counters> {
        Counters::read(&self.maps).map_err(|error| self.io("read counters", &error))
    }

    /// Rules, services and limits as they are, for an image that keeps their numbers.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn in_force(&self) -> Result<InForce> {
        let read = |error| self.io("read rules", &error);
        let rules: BTreeMap<u32, String> =
            counters::rule_names(&self.maps).map_err(read)?.into_iter().collect();
        let services = self.maps.services.entries().map_err(read)?;
        let limits = self.maps.limits.entries().map_err(read)?;
        Ok(InForce {
            rules,
            services: services.into_iter().map(|(_, service)| service).collect(),
            limits: limits.into_iter().map(|(_, limit)| limit).collect(),
        })
    }

    /// State, age and occupancy.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn status(&self) -> Result<Status> {
        let link = pinned_link(&self.pins)?;
        let interface = netlink::interface(&self.interface).ok();
        let running = interface.as_ref().and_then(|found| found.xdp);
        let state = match link {
            Some(link) if link.interface_index == 0 => "detached",
            Some(link) if interface.as_ref().is_some_and(|found| found.index == link.interface_index) => {
                "attached"
            }
            Some(_) => "elsewhere",
            None => "detached",
        };
        let age = ProgramInfo::from_pin(self.pins.program()).ok().and_then(|program| program.loaded_at());
        let age = age.and_then(|loaded| SystemTime::now().duration_since(loaded).ok());
        Ok(Status {
            interface: self.interface.clone(),
            state,
            program_id: link.map(|link| link.program_id),
            mode: running.filter(|_| state == "attached").map(|running| running.mode.label()),
            age_seconds: age.as_ref().map(Duration::as_secs),
            layout_version: blitz_ebpf_common::layout::LAYOUT_VERSION,
            sizes: self.sizes,
            shadow: self.settings()?.flags & blitz_ebpf_common::layout::SETTING_SHADOW != 0,
            tables: self.occupancy()?,
            steering: Steering {
                generation: self.steered()?.map(|steer| steer.generation),
                workers: self.workers()?.len(),
                queues: self
                    .queues()?
                    .into_iter()
                    .map(|(queue, seat)| Queue {
                        queue,
                        generation: seat.generation(),
                        worker: seat.worker(),
                    })
                    .collect(),
            },
        })
    }

    /// How full each table is that can be full. Counting walks the tables: milliseconds for 100,000 entries.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn occupancy(&self) -> Result<Vec<Occupancy>> {
        let read = |error| self.io("read tables", &error);
        let maps = &self.maps;
        let slot = self.settings()?.deny_slot;
        let deny4 = maps.deny4.entries().map_err(read)?;
        let deny6 = maps.deny6.entries().map_err(read)?;
        let in_force = |entry_slot: u16| u32::from(entry_slot) == slot;
        let used4 = deny4.iter().filter(|(prefix, _)| in_force(prefix.slot)).count();
        let used6 = deny6.iter().filter(|(prefix, _)| in_force(prefix.slot)).count();
        let allow = maps.allow4.entries().map_err(read)?.len() + maps.allow6.entries().map_err(read)?.len();
        let rules = counters::rule_names(maps).map_err(read)?.len();
        let services = maps.services.entries().map_err(read)?;
        let limits = maps.limits.entries().map_err(read)?;
        let room = |entries: u32| entries as usize;
        let of = |table, used, room| Occupancy { table, used, room };
        let sets = maps.sources.entries().map_err(read)?;
        let now = gcra::units(clock::monotonic_nanoseconds());
        let sources = sets.iter().map(|(_, set)| counters::sources_in_debt(set, now)).sum::<u64>() as usize;
        Ok(vec![
            of(
                "services",
                services.iter().filter(|(_, s)| s.rule != 0).count(),
                room(maps.services.entries_max()) - 1,
            ),
            of(
                "limits",
                limits.iter().filter(|(_, l)| l.rule != 0).count(),
                room(maps.limits.entries_max()) - 1,
            ),
            of("rules", rules, room(maps.rule_names.entries_max()) - 1),
            of("allow", allow, 2 * room(maps.allow4.entries_max())),
            of("deny_v4", used4, room(self.sizes.deny_max)),
            of("deny_v6", used6, room(self.sizes.deny_max)),
            of("blocked", maps.blocked.entries().map_err(read)?.len(), room(maps.blocked.entries_max())),
            of("sources", sources, room(self.sizes.sources_max)),
        ])
    }

    /// How many deny entries came from the configuration and how many from elsewhere.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn deny_origins(&self) -> Result<(usize, usize)> {
        let denied = self.denied()?;
        let configured = denied.entries().filter(|(_, deny)| deny.flags & DENY_CONFIGURED != 0).count();
        let (v4, v6) = denied.counts();
        Ok((configured, v4 + v6 - configured))
    }

    /// The error of a system call on this stage.
    pub(crate) fn io(&self, what: &str, error: &std::io::Error) -> Error {
        Error::io(format!("{}: {what}", self.interface), error)
    }
}

/// The link pinned there, if any.
pub(crate) fn pinned_link(pins: &InterfacePins) -> Result<Option<PinnedLinkFacts>> {
    let path = pins.link();
    match link::pinned(&path) {
        Ok(found) if found.kind == link::LINK_TYPE_XDP => Ok(Some(found)),
        Ok(_) => Err(crate::maps::foreign(pins, "the link there is no XDP link".to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Err(crate::maps::foreign(pins, "what lies there under the name `link` is none".to_owned()))
        }
        Err(error) => Err(Error::io(path.display(), &error)),
    }
}
