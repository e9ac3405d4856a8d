//! The maps of one stage, typed, from their pins.
//!
//! Owns: what each map of [`blitz_ebpf_common::layout::maps`] must look like, the check of pinned maps
//! against that, the estimate of their memory, and a handle to each. Does not own: what is written
//! (see [`crate::apply`], [`crate::lists`]), or raw access (see [`crate::sys::map`]).
//!
//! Opening them takes CAP_BPF and access to the pins, not CAP_SYS_ADMIN.
#![forbid(unsafe_code)]

use std::io;

use aya::maps::lpm_trie::Key;
use aya::maps::{MapInfo, MapType};
use blitz_ebpf_common::layout::{
    self, Block, BlockKey, Buckets, Count, Deny, Everywhere, Fault, Layout, Lengths, Limit, Note, Ports,
    Prefix4, Prefix6, RuleCount, RuleName, Seat, Service, ServiceKey, Settings, Steer, Steered, Verdict,
    maps,
};
use blitz_ebpf_common::packet::Words;
use blitz_ebpf_common::sources::{self, Set};
use serde::Serialize;

use crate::error::{Error, Kind, Result};
use crate::pins::InterfacePins;
use crate::sys::map::{PerCpuTable, Table};

/// Sizes that a configuration chooses; all others are fixed by the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Sources whose buckets are kept (count).
    pub sources_max: u32,
    /// Denied prefixes of each family that may be in force (count).
    pub deny_max: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { sources_max: layout::SOURCES_MAX, deny_max: layout::DENY_MAX / 2 }
    }
}

impl Sizes {
    /// The sizes that stages of this configuration have.
    pub fn of(xdp: &blitz_config::model::Xdp) -> Self {
        Self { sources_max: xdp.sources_max, deny_max: xdp.deny_max }
    }

    /// Sets of the table of sources.
    pub fn source_sets(self) -> u32 {
        self.sources_max.div_ceil(sources::WAYS as u32).max(1)
    }

    /// Entries of each deny hash: a new list is written beside the one in force.
    pub fn deny_entries(self) -> u32 {
        self.deny_max.saturating_mul(2)
    }
}

/// What a map must look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// Its name in the object and among the pins.
    pub name: &'static str,
    /// Its kind.
    pub kind: MapType,
    /// Octets of a key.
    pub key_bytes: usize,
    /// Octets of a value, of one CPU where there are several.
    pub value_bytes: usize,
    /// Entries that it can hold (count).
    pub entries_max: u32,
}

const fn spec<K, V>(name: &'static str, kind: MapType, entries_max: u32) -> Spec {
    Spec { name, kind, key_bytes: size_of::<K>(), value_bytes: size_of::<V>(), entries_max }
}

/// Every map of a stage of these sizes, in the order of [`maps::ALL`].
pub fn specs(sizes: Sizes) -> [Spec; maps::ALL.len()] {
    use MapType::{Array, Hash, LpmTrie, PerCpuArray, XskMap};
    [
        spec::<u32, Layout>(maps::LAYOUT, Array, 1),
        spec::<u32, Settings>(maps::SETTINGS, Array, 1),
        spec::<u32, Ports>(maps::PORTS, Array, layout::PORTS),
        spec::<ServiceKey, u32>(maps::SERVICE_AT, Hash, layout::SERVICE_AT_MAX),
        spec::<u32, Service>(maps::SERVICES, Array, layout::SERVICES_MAX),
        spec::<Key<u32>, u32>(maps::ALLOW4, LpmTrie, layout::ALLOW_MAX),
        spec::<Key<Words>, u32>(maps::ALLOW6, LpmTrie, layout::ALLOW_MAX),
        spec::<BlockKey, Block>(maps::BLOCKED, Hash, layout::BLOCKED_MAX),
        spec::<Prefix4, Deny>(maps::DENY4, Hash, sizes.deny_entries()),
        spec::<Prefix6, Deny>(maps::DENY6, Hash, sizes.deny_entries()),
        spec::<u32, Lengths>(maps::DENY_INDEX4, Array, 2 * layout::INDEX4),
        spec::<u32, Lengths>(maps::DENY_INDEX6, Array, 2 * layout::INDEX6),
        spec::<u32, Everywhere>(maps::DENY_LENGTHS, Array, 2),
        spec::<u32, Limit>(maps::LIMITS, Array, layout::LIMITS_MAX),
        spec::<u32, Set<u64>>(maps::SOURCES, Array, sizes.source_sets()),
        spec::<u32, Buckets>(maps::SERVICE_WORDS, Array, layout::LIMITS_MAX),
        spec::<u32, Buckets>(maps::SERVICE_CREDIT, PerCpuArray, layout::LIMITS_MAX),
        spec::<u32, Steer>(maps::STEER, Array, 1),
        spec::<u32, Seat>(maps::WORKERS, Array, layout::SEATS),
        spec::<u32, Seat>(maps::QUEUES, Array, layout::QUEUES_MAX),
        spec::<u32, u32>(maps::XSKS, XskMap, layout::QUEUES_MAX),
        spec::<u32, u64>(maps::VERSIONS, Array, 1),
        spec::<u32, u64>(maps::STEERED, PerCpuArray, Steered::ALL.len() as u32),
        spec::<u32, Count>(maps::VERDICTS, PerCpuArray, Verdict::ALL.len() as u32),
        spec::<u32, RuleCount>(maps::RULES, PerCpuArray, layout::RULES_MAX),
        spec::<u32, u64>(maps::FAULTS, PerCpuArray, Fault::ALL.len() as u32),
        spec::<u32, RuleName>(maps::RULE_NAMES, Array, layout::RULES_MAX),
        spec::<Prefix6, Note>(maps::DENY_NOTES, Hash, layout::NOTES_MAX),
    ]
}

impl Spec {
    /// Octets of kernel memory: with the map full, and as far as it is known before. An estimate from the
    /// kernel's structures: 16 octets a hash bucket, 48 for the head of a hash element, 40 for a trie's node.
    pub fn memory_bytes(&self, cpus: usize) -> u64 {
        let round = |octets: usize| octets.next_multiple_of(8) as u64;
        let entries = u64::from(self.entries_max);
        let pair = round(self.key_bytes) + round(self.value_bytes);
        match self.kind {
            MapType::PerCpuArray => entries * (8 + round(self.value_bytes) * cpus as u64),
            MapType::Hash => entries * (48 + pair) + 16 * entries.next_power_of_two(),
            // Inner nodes: as many as leaves at worst.
            MapType::LpmTrie => entries * 2 * (40 + pair),
            _ => entries * round(self.value_bytes),
        }
    }
}

/// A handle to every map of a stage.
#[derive(Debug)]
pub struct Maps {
    /// See [`maps::LAYOUT`].
    pub layout: Table<u32, Layout>,
    /// See [`maps::SETTINGS`].
    pub settings: Table<u32, Settings>,
    /// See [`maps::PORTS`].
    pub ports: Table<u32, Ports>,
    /// See [`maps::SERVICE_AT`].
    pub service_at: Table<ServiceKey, u32>,
    /// See [`maps::SERVICES`].
    pub services: Table<u32, Service>,
    /// See [`maps::ALLOW4`].
    pub allow4: Table<Key<u32>, u32>,
    /// See [`maps::ALLOW6`].
    pub allow6: Table<Key<Words>, u32>,
    /// See [`maps::BLOCKED`].
    pub blocked: Table<BlockKey, Block>,
    /// See [`maps::DENY4`].
    pub deny4: Table<Prefix4, Deny>,
    /// See [`maps::DENY6`].
    pub deny6: Table<Prefix6, Deny>,
    /// See [`maps::DENY_INDEX4`].
    pub index4: Table<u32, Lengths>,
    /// See [`maps::DENY_INDEX6`].
    pub index6: Table<u32, Lengths>,
    /// See [`maps::DENY_LENGTHS`].
    pub everywhere: Table<u32, Everywhere>,
    /// See [`maps::LIMITS`].
    pub limits: Table<u32, Limit>,
    /// See [`maps::SOURCES`].
    pub sources: Table<u32, Set<u64>>,
    /// See [`maps::SERVICE_WORDS`].
    pub service_words: Table<u32, Buckets>,
    /// See [`maps::SERVICE_CREDIT`].
    pub service_credit: PerCpuTable<Buckets>,
    /// See [`maps::STEER`].
    pub steer: Table<u32, Steer>,
    /// See [`maps::WORKERS`].
    pub workers: Table<u32, Seat>,
    /// See [`maps::QUEUES`].
    pub queues: Table<u32, Seat>,
    /// See [`maps::XSKS`]; what is written is a descriptor's number, and nothing can be read.
    pub xsks: Table<u32, u32>,
    /// See [`maps::STEERED`].
    pub steered: PerCpuTable<u64>,
    /// See [`maps::VERDICTS`].
    pub verdicts: PerCpuTable<Count>,
    /// See [`maps::RULES`].
    pub rules: PerCpuTable<RuleCount>,
    /// See [`maps::FAULTS`].
    pub faults: PerCpuTable<u64>,
    /// See [`maps::RULE_NAMES`].
    pub rule_names: Table<u32, RuleName>,
    /// See [`maps::DENY_NOTES`].
    pub notes: Table<Prefix6, Note>,
}

impl Maps {
    /// Reads the layout of what is pinned, before anything else is touched.
    ///
    /// # Errors
    /// [`Kind::NotAttached`] when nothing is pinned, [`Kind::Foreign`] when it is not ours,
    /// [`Kind::Layout`] when it is of another version.
    pub fn layout(pins: &InterfacePins) -> Result<Layout> {
        let path = pins.map(maps::LAYOUT);
        let table =
            Table::<u32, Layout>::open(&path).map_err(|error| open_error(pins, maps::LAYOUT, &error))?;
        let read = table.get(&0).map_err(|error| Error::io(path.display(), &error))?;
        let found = read.unwrap_or_default();
        if found.magic != layout::LAYOUT_MAGIC {
            return Err(foreign(pins, "the map LAYOUT there was not written by Blitz".to_owned()));
        }
        if found.version != layout::LAYOUT_VERSION {
            return Err(Error::new(
                Kind::Layout,
                format!(
                    "the maps in {} have layout {}, and this blitz-ctl speaks layout {}",
                    pins.directory().display(),
                    found.version,
                    layout::LAYOUT_VERSION
                ),
                "use the blitz-ctl that made them, or detach and attach with this one (counters begin at zero)",
            ));
        }
        Ok(found)
    }

    /// Opens every map, after [`Self::layout`] has been read and all of them were found to fit.
    ///
    /// # Errors
    /// As [`Self::layout`]; [`Kind::Foreign`] for a map of another kind or size.
    pub fn open(pins: &InterfacePins) -> Result<(Self, Sizes)> {
        let found = Self::layout(pins)?;
        let sizes = Sizes { sources_max: found.sources_max, deny_max: found.deny_max };
        check(pins, sizes)?;
        Ok((Self::open_unchecked(pins)?, sizes))
    }

    /// Opens maps that have just been made.
    pub(crate) fn open_unchecked(pins: &InterfacePins) -> Result<Self> {
        fn table<K: aya::Pod, V: aya::Pod>(pins: &InterfacePins, name: &str) -> Result<Table<K, V>> {
            Table::open(&pins.map(name)).map_err(|error| open_error(pins, name, &error))
        }
        fn per_cpu<V: aya::Pod>(pins: &InterfacePins, name: &str) -> Result<PerCpuTable<V>> {
            PerCpuTable::open(&pins.map(name)).map_err(|error| open_error(pins, name, &error))
        }
        Ok(Self {
            layout: table(pins, maps::LAYOUT)?,
            settings: table(pins, maps::SETTINGS)?,
            ports: table(pins, maps::PORTS)?,
            service_at: table(pins, maps::SERVICE_AT)?,
            services: table(pins, maps::SERVICES)?,
            allow4: table(pins, maps::ALLOW4)?,
            allow6: table(pins, maps::ALLOW6)?,
            blocked: table(pins, maps::BLOCKED)?,
            deny4: table(pins, maps::DENY4)?,
            deny6: table(pins, maps::DENY6)?,
            index4: table(pins, maps::DENY_INDEX4)?,
            index6: table(pins, maps::DENY_INDEX6)?,
            everywhere: table(pins, maps::DENY_LENGTHS)?,
            limits: table(pins, maps::LIMITS)?,
            sources: table(pins, maps::SOURCES)?,
            service_words: table(pins, maps::SERVICE_WORDS)?,
            service_credit: per_cpu(pins, maps::SERVICE_CREDIT)?,
            steer: table(pins, maps::STEER)?,
            workers: table(pins, maps::WORKERS)?,
            queues: table(pins, maps::QUEUES)?,
            xsks: table(pins, maps::XSKS)?,
            steered: per_cpu(pins, maps::STEERED)?,
            verdicts: per_cpu(pins, maps::VERDICTS)?,
            rules: per_cpu(pins, maps::RULES)?,
            faults: per_cpu(pins, maps::FAULTS)?,
            rule_names: table(pins, maps::RULE_NAMES)?,
            notes: table(pins, maps::DENY_NOTES)?,
        })
    }
}

/// Refuses pinned maps that do not look as a stage of these sizes needs them.
fn check(pins: &InterfacePins, sizes: Sizes) -> Result<()> {
    for spec in specs(sizes) {
        let path = pins.map(spec.name);
        let info = MapInfo::from_pin(&path).map_err(|error| match error {
            aya::maps::MapError::SyscallError(error) => open_error(pins, spec.name, &error.io_error),
            other => foreign(pins, format!("the map {} there cannot be read ({other})", spec.name)),
        })?;
        let kind = info.map_type().unwrap_or(MapType::Unspecified);
        let facts = [
            ("keys", info.key_size() as usize, spec.key_bytes),
            ("values", info.value_size() as usize, spec.value_bytes),
        ];
        if kind != spec.kind {
            return Err(foreign(
                pins,
                format!("the map {} there is of kind {kind:?} instead of {:?}", spec.name, spec.kind),
            ));
        }
        for (what, found, wanted) in facts {
            if found != wanted {
                return Err(foreign(
                    pins,
                    format!(
                        "the {what} of the map {} there have {found} octets instead of {wanted}",
                        spec.name
                    ),
                ));
            }
        }
        if info.max_entries() != spec.entries_max {
            return Err(foreign(
                pins,
                format!(
                    "the map {} there holds {} entries instead of {}",
                    spec.name,
                    info.max_entries(),
                    spec.entries_max
                ),
            ));
        }
    }
    Ok(())
}

/// The error of a directory that holds something else than a stage of ours.
pub(crate) fn foreign(pins: &InterfacePins, what: String) -> Error {
    let directory = pins.directory().display();
    Error::new(
        Kind::Foreign,
        format!("{directory} is not a stage of this blitz-ctl: {what}"),
        format!("if nobody needs it: rm -r {directory}, then attach again"),
    )
}

fn open_error(pins: &InterfacePins, name: &str, error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOENT) if !pins.exists() => Error::new(
            Kind::NotAttached,
            format!("nothing is attached: {} does not exist", pins.directory().display()),
            "blitz-ctl attach INTERFACE",
        ),
        Some(libc::ENOENT) => foreign(pins, format!("the map {name} is missing")),
        Some(libc::EINVAL) => foreign(pins, format!("{name} there is no map, or has other keys or values")),
        _ => Error::io(pins.map(name).display(), error),
    }
}

/// The error of an insertion that found no room.
pub(crate) fn store_error(name: &str, entries_max: u32, remedy: &str, error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => {
            Error::new(Kind::Full, format!("{name} is full: it holds {entries_max} entries"), remedy)
        }
        _ => Error::io(format!("write {name}"), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_a_spec_in_order() {
        let names: Vec<&str> = specs(Sizes::default()).iter().map(|spec| spec.name).collect();
        assert_eq!(names, maps::ALL);
    }

    #[test]
    fn the_estimate_grows_with_the_sizes_and_the_processors() {
        let total = |sizes, cpus| -> u64 { specs(sizes).iter().map(|spec| spec.memory_bytes(cpus)).sum() };
        let small = total(Sizes { sources_max: 1024, deny_max: 16 }, 1);
        let large = total(Sizes { sources_max: 1_048_576, deny_max: 16 }, 1);
        // A quarter of a set of 128.
        assert_eq!(large - small, 1_047_552 * 32, "{}", large - small);
        assert!(total(Sizes::default(), 64) > total(Sizes::default(), 2));
    }
}
