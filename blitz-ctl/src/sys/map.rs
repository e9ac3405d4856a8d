//! Typed access to BPF maps that are pinned.
//!
//! Owns: lookups, updates, deletions and batches on one map (bpf(2)), with the sizes of key and value
//! checked once, when the map is opened. Does not own: which maps there are (see [`crate::maps`]), or
//! creating them (aya does, from the object).
//!
//! None of this needs more than CAP_BPF and access to the pin.

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use aya::Pod;
use aya::maps::{MapData, MapError};

use super::{Command, bpf};

/// Entries moved by one system call of a batch. 4096 of the largest pair (a prefix and its note, 148
/// octets) are 600 KiB.
const BATCH: usize = 4096;

/// Attributes of the calls on one entry.
#[repr(C)]
struct Entry {
    map: u32,
    hole: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Attributes of the calls on many entries.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    entry_flags: u64,
    flags: u64,
}

/// Where a batch goes on: for hash tables a bucket number, for others the last key. Large enough for
/// the largest key.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Token([u8; 64]);

/// What one value of a map is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    /// One.
    One,
    /// One for each possible CPU, each padded to 8 octets.
    PerCpu,
}

/// A pinned map whose keys are `K` and whose values are `V`.
pub struct Table<K, V> {
    data: MapData,
    entries_max: u32,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> std::fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("data", &self.data).finish_non_exhaustive()
    }
}

/// A pinned per-CPU array of `V`.
#[derive(Debug)]
pub struct PerCpuTable<V> {
    data: MapData,
    entries_max: u32,
    cpus: usize,
    types: PhantomData<fn() -> V>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Opens the map pinned at `path`.
    ///
    /// # Errors
    /// ENOENT, EACCES and EPERM from the file; EINVAL when it is no map, or its key or value has another
    /// size.
    pub fn open(path: &Path) -> io::Result<Self> {
        const { assert!(size_of::<K>() <= size_of::<Token>()) };
        let (data, entries_max) = open(path, size_of::<K>(), size_of::<V>(), Values::One)?;
        Ok(Self { data, entries_max, types: PhantomData })
    }

    /// Entries that the map can hold.
    pub fn entries_max(&self) -> u32 {
        self.entries_max
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// What bpf(2) reports; an absent key is `None`.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::zeroed();
        let mut entry = self.entry(std::ptr::from_ref(key) as u64, value.as_mut_ptr() as u64, 0);
        // SAFETY: the map's key and value have the sizes of `K` and `V` (checked by `open`); both are live.
        match unsafe { bpf(Command::MapLookup, &mut entry) } {
            // SAFETY: `V` is `Pod`: the zeroed octets and any that the kernel wrote are a valid value.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores `value` under `key`.
    ///
    /// # Errors
    /// What bpf(2) reports; E2BIG (hash) or ENOSPC (trie) when the map is full.
    pub fn put(&self, key: &K, value: &V) -> io::Result<()> {
        let mut entry = self.entry(std::ptr::from_ref(key) as u64, std::ptr::from_ref(value) as u64, 0);
        // SAFETY: the map's key and value have the sizes of `K` and `V` (checked by `open`); both are live.
        unsafe { bpf(Command::MapUpdate, &mut entry) }.map(drop)
    }

    /// Removes `key`; false when it was not there.
    ///
    /// # Errors
    /// What bpf(2) reports; arrays cannot lose entries (EINVAL).
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        let mut entry = self.entry(std::ptr::from_ref(key) as u64, 0, 0);
        // SAFETY: the map's key has the size of `K` (checked by `open`); it is live.
        match unsafe { bpf(Command::MapDelete, &mut entry) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Every entry. Entries that are added or removed meanwhile may be in it or not.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut found = Vec::new();
        self.walk(|part| found.extend_from_slice(part))?;
        Ok(found)
    }

    /// Shows every entry to `visit`, some thousand at a time. Entries that are added or removed meanwhile may
    /// be among them or not. What `visit` does between, such as waiting, holds nothing up.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn walk(&self, mut visit: impl FnMut(&[(K, V)])) -> io::Result<()> {
        let mut part = Vec::new();
        let room = BATCH.min(self.entries_max as usize).max(1);
        let mut keys = vec![MaybeUninit::<K>::zeroed(); room];
        let mut values = vec![MaybeUninit::<V>::zeroed(); room];
        let (mut here, mut next) = (Token([0; 64]), Token([0; 64]));
        let mut is_first = true;
        loop {
            let mut batch = Batch {
                in_batch: if is_first { 0 } else { std::ptr::from_ref(&here) as u64 },
                out_batch: std::ptr::from_mut(&mut next) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: keys.len() as u32,
                map: self.descriptor(),
                entry_flags: 0,
                flags: 0,
            };
            // SAFETY: keys and values have room for `count` entries of the sizes that `open` checked, and the
            // tokens for the largest key; all are live.
            let result = unsafe { bpf(Command::MapLookupBatch, &mut batch) };
            let is_last = match result {
                Ok(_) => false,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => true,
                    // A hash bucket with more entries than there is room for: with one entry per bucket on
                    // average this means a very small map, or a very unlucky one.
                    Some(libc::ENOSPC) if keys.len() < self.entries_max as usize + BATCH => {
                        let more = keys.len() * 2;
                        keys.resize(more, MaybeUninit::zeroed());
                        values.resize(more, MaybeUninit::zeroed());
                        continue;
                    }
                    _ => return Err(error),
                },
            };
            for (key, value) in keys.iter().zip(&values).take(batch.count as usize) {
                // SAFETY: `K` is `Pod` and was zeroed or written by the kernel.
                let key = unsafe { key.assume_init() };
                // SAFETY: `V` is `Pod` and was zeroed or written by the kernel.
                let value = unsafe { value.assume_init() };
                part.push((key, value));
            }
            visit(&part);
            part.clear();
            if is_last {
                return Ok(());
            }
            here = next;
            is_first = false;
        }
    }

    /// Stores every entry, in order.
    ///
    /// # Errors
    /// How many entries were stored, and what bpf(2) reports about the next; E2BIG when the map is full.
    pub fn put_all(&self, entries: &[(K, V)]) -> Result<(), (usize, io::Error)> {
        let mut done = 0;
        for part in entries.chunks(BATCH) {
            let keys: Vec<K> = part.iter().map(|(key, _)| *key).collect();
            let values: Vec<V> = part.iter().map(|(_, value)| *value).collect();
            let mut batch = Batch {
                in_batch: 0,
                out_batch: 0,
                keys: keys.as_ptr() as u64,
                values: values.as_ptr() as u64,
                count: part.len() as u32,
                map: self.descriptor(),
                entry_flags: 0,
                flags: 0,
            };
            // SAFETY: keys and values hold `count` entries of the sizes that `open` checked; the kernel only
            // reads them.
            match unsafe { bpf(Command::MapUpdateBatch, &mut batch) } {
                Ok(_) => done += part.len(),
                Err(error) => return Err((done + (batch.count as usize).min(part.len()), error)),
            }
        }
        Ok(())
    }

    fn descriptor(&self) -> u32 {
        self.data.fd().as_fd().as_raw_fd().unsigned_abs()
    }

    fn entry(&self, key: u64, value: u64, flags: u64) -> Entry {
        Entry { map: self.descriptor(), hole: 0, key, value, flags }
    }
}

impl<V: Pod> PerCpuTable<V> {
    /// Opens the per-CPU array pinned at `path`.
    ///
    /// # Errors
    /// As [`Table::open`], and what reading the number of possible CPUs from sysfs reports.
    pub fn open(path: &Path) -> io::Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let (data, entries_max) = open(path, size_of::<u32>(), size_of::<V>(), Values::PerCpu)?;
        Ok(Self { data, entries_max, cpus, types: PhantomData })
    }

    /// Entries that the array has.
    pub fn entries_max(&self) -> u32 {
        self.entries_max
    }

    /// The values of entry `index`, one for each possible CPU.
    ///
    /// # Errors
    /// What bpf(2) reports; ENOENT beyond the end.
    pub fn get(&self, index: u32) -> io::Result<Vec<V>> {
        let stride = size_of::<V>().next_multiple_of(8);
        // Words, so that the buffer is aligned for any `V` of 8 octets alignment.
        let mut buffer = vec![0_u64; stride / 8 * self.cpus];
        let mut entry = Entry {
            map: self.data.fd().as_fd().as_raw_fd().unsigned_abs(),
            hole: 0,
            key: std::ptr::from_ref(&index) as u64,
            value: buffer.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the key is 4 octets as for every array, and the buffer holds a value, rounded up to 8 octets,
        // for each possible CPU; both are live.
        unsafe { bpf(Command::MapLookup, &mut entry) }?;
        let read = |words: &[u64]| {
            // SAFETY: `stride` octets are at least a `V`, which is `Pod`, and the read needs no alignment.
            unsafe { words.as_ptr().cast::<V>().read_unaligned() }
        };
        Ok(buffer.chunks_exact(stride / 8).map(read).collect())
    }
}

/// Opens a pinned map and checks the sizes that the callers' safety rests on.
fn open(path: &Path, key: usize, value: usize, values: Values) -> io::Result<(MapData, u32)> {
    let data = MapData::from_pin(path).map_err(map_error)?;
    let info = data.info().map_err(map_error)?;
    let is_per_cpu = matches!(
        info.map_type().map_err(map_error)?,
        aya::maps::MapType::PerCpuArray
            | aya::maps::MapType::PerCpuHash
            | aya::maps::MapType::LruPerCpuHash
            | aya::maps::MapType::PerCpuCgroupStorage
    );
    let fits = info.key_size() as usize == key
        && info.value_size() as usize == value
        && is_per_cpu == (values == Values::PerCpu);
    if fits { Ok((data, info.max_entries())) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

/// The error number within an error of aya.
fn map_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::IoError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}
