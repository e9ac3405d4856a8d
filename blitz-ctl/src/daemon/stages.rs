//! The stages that the daemon manages, and the blocklist in them.
//!
//! Owns: one block in every stage, the settings flag that makes the program look at the list. Does not own:
//! a single stage (see [`crate::stage`]), or who is blocked (see [`super::blocklist`]).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use blitz_ctl_protocol::message::Reason;
use blitz_ebpf_common::layout::{Block, BlockKey, SETTING_BLOCK, Settings};

use super::blocklist::{Held, Stages};
use crate::blocklist::key_prefix;
use crate::counters;
use crate::error::{Error, Kind, Result};
use crate::lock;
use crate::netlink;
use crate::pins::{InterfacePins, Pins};
use crate::stage::{Stage, pinned_link};

/// How long a report waits for another writer, when its block is the first and the program must be told to
/// look at the list.
const PATIENCE: Duration = Duration::from_millis(50);

/// A stage with what is looked up often.
#[derive(Debug)]
pub struct Managed {
    stage: Stage,
    /// Inode of the directory of its pins: another one is another stage.
    directory: Option<u64>,
    /// Rule numbers of the reasons in this stage.
    rules: BTreeMap<Reason, u32>,
}

impl Managed {
    /// Takes over a stage; reads the numbers of its rules, which an applied image may change.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn new(stage: Stage) -> Result<Self> {
        let names = counters::rule_names(stage.maps())
            .map_err(|error| Error::io(format!("{}: read RULE_NAMES", stage.interface()), &error))?;
        let number = |name: &str| names.iter().find(|(_, found)| found == name).map(|(number, _)| *number);
        let rules = Reason::ALL
            .into_iter()
            .filter_map(|reason| Some((reason, number(reason.rule_name())?)))
            .collect();
        let directory = inode(stage.pins());
        Ok(Self { stage, directory, rules })
    }

    /// Whether somebody has detached it and attached another in its place: these maps filter nothing then.
    pub fn is_replaced(&self) -> bool {
        let now = inode(self.stage.pins());
        now.is_some() && now != self.directory
    }

    /// The stage.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The program in the link of this stage; `None` when the link or the interface is gone.
    ///
    /// # Errors
    /// What bpf(2) and netlink report.
    pub fn running(&self) -> Result<Option<Running>> {
        let Some(link) = pinned_link(self.stage.pins())?.filter(|link| link.interface_index != 0) else {
            return Ok(None);
        };
        let Ok(interface) = netlink::interface(self.stage.interface()) else { return Ok(None) };
        let running = interface.xdp.filter(|_| interface.index == link.interface_index);
        Ok(running.map(|running| Running { program_id: link.program_id, mode: running.mode.label() }))
    }

    fn reason(&self, rule: u32) -> Option<Reason> {
        self.rules.iter().find(|(_, number)| **number == rule).map(|(reason, _)| *reason)
    }

    fn failed(&self, what: &str, error: &io::Error) -> Error {
        match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => Error::new(
                Kind::Full,
                format!("{}: the blocklist is full", self.stage.interface()),
                "blocks end by themselves; `blitz-ctl deny list` shows them",
            ),
            _ => Error::io(format!("{}: {what}", self.stage.interface()), error),
        }
    }
}

fn inode(pins: &InterfacePins) -> Option<u64> {
    std::fs::metadata(pins.directory()).ok().map(|directory| directory.ino())
}

/// A program that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its number.
    pub program_id: u32,
    /// `native`, `generic` or `offloaded`.
    pub mode: &'static str,
}

/// All stages, with where they are pinned.
#[derive(Clone, Debug)]
pub struct All {
    /// Where they are pinned.
    pub pins: Pins,
    /// By interface, in order.
    pub stages: Arc<Vec<Managed>>,
}

impl All {
    /// Does `act` to every stage, whatever happens to the others; the first failure is returned.
    fn each(&self, mut act: impl FnMut(&Managed) -> Result<()>) -> Result<()> {
        let mut result = Ok(());
        for managed in self.stages.iter() {
            let done = act(managed);
            if result.is_ok() {
                result = done;
            }
        }
        result
    }
}

impl Stages for All {
    fn count(&self) -> u32 {
        // The maps of one that was detached by hand are still open here, and filter nothing.
        let pinned = self.stages.iter().filter(|managed| managed.stage.pins().exists()).count();
        u32::try_from(pinned).unwrap_or(u32::MAX)
    }

    fn block(&self, key: &BlockKey, held: &Held) -> Result<()> {
        self.each(|managed| {
            // A stage without the rule counts the packet under no rule; its verdict says it was blocked.
            let rule = held.reason.and_then(|reason| managed.rules.get(&reason)).copied().unwrap_or(0);
            let block = Block { expires: held.expires, since: held.since, rule, flags: 0 };
            let stored = managed.stage.maps().blocked.put(key, &block);
            stored.map_err(|error| managed.failed("write BLOCKED", &error))
        })
    }

    fn unblock(&self, key: &BlockKey) -> Result<bool> {
        let mut was_there = false;
        self.each(|managed| {
            let removed = managed.stage.maps().blocked.remove(key);
            was_there |= removed.map_err(|error| managed.failed("write BLOCKED", &error))?;
            managed.stage.forget_block_note(key_prefix(key))
        })?;
        Ok(was_there)
    }

    fn expire(&self, key: &BlockKey, now: u64) -> Result<()> {
        // The command line may block the source anew between our look and the removal. While another writer is
        // at work the entry stays; it does nothing, and the next reading of the maps brings it back to a sweep.
        let Ok(_lock) = lock::take(self.pins.base(), Duration::ZERO) else { return Ok(()) };
        self.each(|managed| {
            let blocked = &managed.stage.maps().blocked;
            // The command line may have given it another end.
            let found = blocked.get(key).map_err(|error| managed.failed("read BLOCKED", &error))?;
            if found.is_some_and(|block| block.expires != 0 && block.expires <= now) {
                blocked.remove(key).map_err(|error| managed.failed("write BLOCKED", &error))?;
                managed.stage.forget_block_note(key_prefix(key))?;
            }
            Ok(())
        })
    }

    fn blocks(&self) -> Result<Vec<(BlockKey, Block, Option<Reason>)>> {
        let mut found = Vec::new();
        for managed in self.stages.iter() {
            let entries = managed.stage.maps().blocked.entries();
            let entries = entries.map_err(|error| managed.failed("read BLOCKED", &error))?;
            found.extend(entries.into_iter().map(|(key, block)| (key, block, managed.reason(block.rule))));
        }
        Ok(found)
    }

    fn use_blocklist(&self, used: bool) -> Result<()> {
        let has = |settings: Settings| settings.flags & SETTING_BLOCK != 0;
        let mut is_needed = false;
        for managed in self.stages.iter() {
            is_needed |= has(managed.stage.settings()?) != used;
        }
        if !is_needed {
            return Ok(());
        }
        let lock = lock::take(self.pins.base(), PATIENCE);
        let Ok(_lock) = lock else {
            // Somebody writes a long list. Nobody who reports waits for that: the next sweep, a second from
            // now, tries again.
            log::debug!("the switch of the blocklist waits for another writer");
            return Ok(());
        };
        self.each(|managed| {
            let table = &managed.stage.maps().settings;
            let settings = managed.stage.settings()?;
            if !used {
                // Somebody may have blocked a source since the list was last read.
                let entries = managed.stage.maps().blocked.entries();
                if !entries.map_err(|error| managed.failed("read BLOCKED", &error))?.is_empty() {
                    return Ok(());
                }
            }
            let flags = if used { settings.flags | SETTING_BLOCK } else { settings.flags & !SETTING_BLOCK };
            if flags == settings.flags {
                return Ok(());
            }
            let stored = table.put(&0, &Settings { flags, ..settings });
            stored.map_err(|error| managed.failed("write SETTINGS", &error))
        })
    }
}
