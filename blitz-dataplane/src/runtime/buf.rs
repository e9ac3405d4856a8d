//! Receive memory: the shared pool of small slots, heap buffers for bulk, and the [`Chunk`] that
//! hands either to a reader.
//!
//! ```text
//! pool   | slot 0 | slot 1 | ... | slot n-1 |      n x slot_bytes, mapped once
//!          ^ owned by the kernel (in the buffer ring), or by `refs[slot]` chunks
//! ```
//! Invariant: a slot is in the kernel's ring or among the free exactly when `refs[slot] == 0`.
//!
//! The kernel takes from its ring first in, first out: with all slots in it, each receive would land in
//! the memory that was used longest ago, out of every cache. So the ring is given few, and always
//! those used last. When a burst finds it empty, it is given twice as many, until it has been quiet
//! for a while.
//!
//! Owns: the memory and who holds it. Does not own: which socket receives what (see `reactor`).

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;

use io_uring::types::BufRingEntry;

use crate::sys::mapping::Mapping;

/// Largest buffer a bulk receive uses, in bytes. One system call moves this much.
pub(super) const BULK_BYTES: usize = 64 * 1024;

/// Slots that the kernel's ring is given at first (count): the completions of a usual turn.
const OFFERED_AT_FIRST: u16 = 64;

/// Quiet turns after which the ring is given half as many (count).
const QUIET_TURNS: u16 = 1000;

/// Bytes between the starts of two slots beyond their size: three cache lines, so that the first
/// lines of all slots do not compete for the same sets of a cache.
const STAGGER_BYTES: u32 = 3 * 64;

/// Slots whose memory is given back, at least (count): fewer are not worth the system calls.
const COOLED_AT_ONCE: usize = 64;

/// Bulk buffers a worker keeps for reuse (count): 32 x 64 KiB = 2 MiB. Beyond it they are freed.
const BULK_KEPT: usize = 32;

/// The pool of receive slots of one runtime.
pub(super) struct Pool {
    memory: Mapping,
    slot_bytes: u32,
    slots: u16,
    refs: Box<[Cell<u16>]>,
    taken: Cell<u16>,
    free: Free,
}

struct Free {
    /// Free slots outside the ring; the last one in is the first one out.
    slots: RefCell<Vec<u16>>,
    /// The fewest of them since the last look: so many from the front have not been used.
    least: Cell<usize>,
    /// So many from the front have no memory: it was given back, and they were not used since.
    cold: Cell<usize>,
    /// The ring that the kernel takes from; absent when the driver takes slots itself.
    ring: Option<Ring>,
}

impl Free {
    fn pop(&self) -> Option<u16> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.pop();
        self.least.set(self.least.get().min(slots.len()));
        self.cold.set(self.cold.get().min(slots.len()));
        slot
    }
}

struct Ring {
    memory: Mapping,
    tail: Cell<u16>,
    /// Slots in the ring.
    offered: Cell<u16>,
    /// Slots that the ring is filled up to at each turn.
    target: Cell<u16>,
    /// Whether the target has been raised in this turn.
    is_wider: Cell<bool>,
    /// Turns in a row that took less than a quarter of the target.
    quiet_turns: Cell<u16>,
    /// The most that a turn has taken since the last [`Pool::cool`].
    busiest: Cell<u16>,
}

impl Pool {
    /// A pool whose free slots the driver takes itself.
    pub(super) fn listed(slots: u16, slot_bytes: u32) -> io::Result<Rc<Self>> {
        Ok(Rc::new(Self::new(slots, slot_bytes, None)?))
    }

    /// A pool whose free slots lie in a kernel buffer ring. `slots` is a power of two.
    pub(super) fn ringed(slots: u16, slot_bytes: u32) -> io::Result<Rc<Self>> {
        let memory = Mapping::anonymous(usize::from(slots) * size_of::<BufRingEntry>())?;
        let target = Cell::new(OFFERED_AT_FIRST.min(slots));
        let ring = Ring {
            memory,
            tail: Cell::new(0),
            offered: Cell::new(0),
            target,
            is_wider: Cell::new(false),
            quiet_turns: Cell::new(0),
            busiest: Cell::new(0),
        };
        let pool = Self::new(slots, slot_bytes, Some(ring))?;
        pool.refill();
        Ok(Rc::new(pool))
    }

    fn new(slots: u16, slot_bytes: u32, ring: Option<Ring>) -> io::Result<Self> {
        let memory = Mapping::anonymous(usize::from(slots) * (slot_bytes + STAGGER_BYTES) as usize)?;
        let refs = (0..slots).map(|_| Cell::new(0)).collect();
        let (least, cold) = (Cell::new(usize::from(slots)), Cell::new(usize::from(slots)));
        let free = Free { slots: RefCell::new((0..slots).rev().collect()), least, cold, ring };
        Ok(Self { memory, slot_bytes, slots, refs, taken: Cell::new(0), free })
    }

    /// Address of the buffer ring and its entries, to register with the kernel.
    pub(super) fn ring(&self) -> Option<(u64, u16)> {
        self.free.ring.as_ref().map(|ring| (ring.memory.as_ptr() as u64, self.slots))
    }

    /// Fills the kernel's ring up to its target; once a turn.
    pub(super) fn refill(&self) {
        let Some(ring) = &self.free.ring else { return };
        ring.is_wider.set(false);
        let target = ring.target.get();
        let used = target.saturating_sub(ring.offered.get());
        ring.busiest.set(ring.busiest.get().max(used));
        let is_quiet = target > OFFERED_AT_FIRST && used < target / 4;
        ring.quiet_turns.set(if is_quiet { ring.quiet_turns.get() + 1 } else { 0 });
        if ring.quiet_turns.get() >= QUIET_TURNS {
            ring.quiet_turns.set(0);
            ring.target.set(target / 2);
        }
        while ring.offered.get() < ring.target.get() {
            let Some(slot) = self.free.pop() else { break };
            self.publish(ring, slot);
        }
    }

    /// A receive found no slot. Whether there are some to be had now: the ring gets more from now on.
    pub(super) fn widen(&self) -> bool {
        let had_more = !self.free.slots.borrow().is_empty();
        // Once a turn: a burst that finds the ring empty does so for many sockets.
        if let Some(ring) = &self.free.ring
            && !ring.is_wider.get()
        {
            ring.target.set(ring.target.get().saturating_mul(2).min(self.slots));
            self.refill();
            ring.is_wider.set(true);
        }
        had_more
    }

    pub(super) fn slot_bytes(&self) -> u32 {
        self.slot_bytes
    }

    /// Slots held by chunks (count).
    pub(super) fn taken(&self) -> u16 {
        self.taken.get()
    }

    /// Whether more than half the slots are held by chunks.
    pub(super) fn is_scarce(&self) -> bool {
        u32::from(self.taken()) * 2 > u32::from(self.slots())
    }

    /// Slots in all (count).
    pub(super) fn slots(&self) -> u16 {
        self.slots
    }

    /// Takes a free slot, for a driver that receives by itself. It stays taken until
    /// [`Pool::give_back`] or the last chunk on it.
    pub(super) fn take_slot(&self) -> Option<u16> {
        debug_assert!(self.free.ring.is_none(), "the kernel takes from its ring");
        self.free.pop()
    }

    /// Gives back the memory of slots that were not used since the last call.
    pub(super) fn cool(&self) {
        // Where nothing happens no turns are counted either.
        if let Some(ring) = &self.free.ring
            && ring.target.get() > OFFERED_AT_FIRST
            && ring.busiest.replace(0) < ring.target.get() / 4
        {
            ring.target.set(ring.target.get() / 2);
        }
        let free = self.free.slots.borrow();
        let unused = self.free.least.replace(free.len());
        if unused < self.free.cold.get() + COOLED_AT_ONCE {
            return;
        }
        let mut slots = free.get(..unused).unwrap_or_default().to_vec();
        slots.sort_unstable();
        let stride = (self.slot_bytes + STAGGER_BYTES) as usize;
        for run in slots.chunk_by(|slot, next| slot + 1 == *next) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let range = usize::from(*first) * stride..(usize::from(*last) + 1) * stride;
            // SAFETY: the slots are free: no chunk refers to them, the kernel's ring does not hold them, and what they
            // held was consumed.
            unsafe { self.memory.discard(range) };
        }
        self.free.cold.set(unused);
    }

    /// Returns a slot that was taken and not filled.
    pub(super) fn give_back(&self, slot: u16) {
        self.consumed();
        self.free.slots.borrow_mut().push(slot);
    }

    /// The kernel has taken a slot out of its ring.
    fn consumed(&self) {
        if let Some(ring) = &self.free.ring {
            debug_assert!(ring.offered.get() > 0, "the kernel took a slot that it was not given");
            ring.offered.set(ring.offered.get().saturating_sub(1));
        }
    }

    /// Start of a slot's memory.
    pub(super) fn slot_ptr(&self, slot: u16) -> *mut u8 {
        let offset = usize::from(slot % self.slots) * (self.slot_bytes + STAGGER_BYTES) as usize;
        // SAFETY: a slot's number is below `slots` because of the modulo above, so it lies whole in the
        // mapping of `slots` such strides.
        unsafe { self.memory.as_ptr().add(offset) }
    }

    /// Turns a slot that the driver has filled with `len` bytes into a chunk.
    ///
    /// A slot number that is out of range or already held is a broken driver: it yields no data.
    pub(super) fn filled(self: &Rc<Self>, slot: u16, len: u32) -> Option<Chunk> {
        let refs = self.refs.get(usize::from(slot))?;
        if refs.get() != 0 || len > self.slot_bytes {
            debug_assert!(false, "slot {slot} with {len} bytes is not the driver's to give");
            return None;
        }
        self.consumed();
        refs.set(1);
        self.taken.set(self.taken.get() + 1);
        Some(Chunk { memory: Memory::Slot { pool: Rc::clone(self), slot }, start: 0, end: len })
    }

    fn retain(&self, slot: u16) {
        let refs = &self.refs[usize::from(slot)];
        refs.set(refs.get().checked_add(1).expect("fewer than 65,536 chunks share one slot of 4 KiB"));
    }

    fn release(&self, slot: u16) {
        let refs = &self.refs[usize::from(slot)];
        refs.set(refs.get() - 1);
        if refs.get() == 0 {
            self.taken.set(self.taken.get() - 1);
            self.free.slots.borrow_mut().push(slot);
        }
    }

    /// Puts a free slot into the kernel's ring.
    fn publish(&self, ring: &Ring, slot: u16) {
        let index = usize::from(ring.tail.get() & (self.slots - 1));
        let entries = ring.memory.as_ptr().cast::<BufRingEntry>();
        // SAFETY: index < slots, and the ring mapping holds `slots` entries.
        let entry = unsafe { entries.add(index) };
        // SAFETY: the entry lies in our mapping; the kernel reads only entries below the tail that is
        // published further down, so nobody reads this one now.
        let entry = unsafe { &mut *entry };
        entry.set_addr(self.slot_ptr(slot) as u64);
        entry.set_len(self.slot_bytes);
        entry.set_bid(slot);
        ring.tail.set(ring.tail.get().wrapping_add(1));
        ring.offered.set(ring.offered.get() + 1);
        // SAFETY: the mapping holds at least one entry, in which the ABI keeps the tail.
        let shared_tail = unsafe { BufRingEntry::tail(entries) }.cast_mut();
        // SAFETY: the tail field is two aligned bytes inside our mapping; the kernel only reads it, and
        // reads it atomically.
        let shared_tail = unsafe { std::sync::atomic::AtomicU16::from_ptr(shared_tail) };
        shared_tail.store(ring.tail.get(), std::sync::atomic::Ordering::Release);
    }

    /// A slot's bytes.
    fn bytes(&self, slot: u16) -> &[u8] {
        // SAFETY: the slot's memory is `slot_bytes` long, initialised (anonymous mapping), and not
        // written while a chunk holds it: the kernel only writes slots that were offered to it.
        unsafe { std::slice::from_raw_parts(self.slot_ptr(slot), self.slot_bytes as usize) }
    }
}

/// Bulk buffers of one runtime, kept for reuse.
pub(super) struct BulkCache {
    kept: RefCell<Vec<Vec<u8>>>,
}

impl BulkCache {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self { kept: RefCell::new(Vec::new()) })
    }

    /// An empty buffer with capacity [`BULK_BYTES`].
    pub(super) fn take(&self) -> Vec<u8> {
        self.kept.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(BULK_BYTES))
    }

    /// Takes a buffer back.
    pub(super) fn put(&self, mut buffer: Vec<u8>) {
        let mut kept = self.kept.borrow_mut();
        if kept.len() < BULK_KEPT && buffer.capacity() >= BULK_BYTES {
            buffer.clear();
            kept.push(buffer);
        }
    }
}

/// A heap buffer shared by chunks; goes back to its cache with the last of them.
struct Shared {
    data: Vec<u8>,
    cache: Option<Rc<BulkCache>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(cache) = &self.cache {
            cache.put(std::mem::take(&mut self.data));
        }
    }
}

#[derive(Clone)]
enum Bytes {
    Heap(Rc<Shared>),
    Static(&'static [u8]),
    /// What a library has received.
    Counted(bytes::Bytes),
}

enum Memory {
    Slot { pool: Rc<Pool>, slot: u16 },
    Other(Bytes),
}

/// Received bytes, readable and divisible without copying. Holds its slot or buffer until dropped.
pub struct Chunk {
    memory: Memory,
    start: u32,
    end: u32,
}

impl Chunk {
    /// Bytes that live for ever.
    pub fn from_static(bytes: &'static [u8]) -> Self {
        let end = u32::try_from(bytes.len()).expect("static answers are far below 4 GiB");
        Self { memory: Memory::Other(Bytes::Static(bytes)), start: 0, end }
    }

    /// A chunk over bytes that a library counts the holders of. At most 4 GiB; longer input is cut.
    pub fn from_bytes(bytes: bytes::Bytes) -> Self {
        let end = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Self { memory: Memory::Other(Bytes::Counted(bytes)), start: 0, end }
    }

    /// A chunk over a buffer of its own. At most 4 GiB; longer input is cut.
    pub fn from_vec(data: Vec<u8>) -> Self {
        Self::heap(data, None)
    }

    pub(super) fn bulk(data: Vec<u8>, cache: &Rc<BulkCache>) -> Self {
        Self::heap(data, Some(Rc::clone(cache)))
    }

    fn heap(data: Vec<u8>, cache: Option<Rc<BulkCache>>) -> Self {
        let end = u32::try_from(data.len()).unwrap_or(u32::MAX);
        Self { memory: Memory::Other(Bytes::Heap(Rc::new(Shared { data, cache }))), start: 0, end }
    }

    /// The bytes, to be changed where they lie; `None` unless it is the only holder of a slot.
    pub(super) fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        let Memory::Slot { pool, slot } = &self.memory else { return None };
        if pool.refs.get(usize::from(*slot))?.get() != 1 {
            return None;
        }
        // SAFETY: the slot's memory is `slot_bytes` long and initialised (anonymous mapping); this is its only chunk,
        // borrowed mutably, and neither kernel nor driver writes into what a chunk holds.
        let bytes = unsafe { std::slice::from_raw_parts_mut(pool.slot_ptr(*slot), pool.slot_bytes as usize) };
        bytes.get_mut(self.start as usize..self.end as usize)
    }

    /// Whether it occupies a slot of the shared pool.
    pub(super) fn is_pooled(&self) -> bool {
        matches!(self.memory, Memory::Slot { .. })
    }

    /// Moves the bytes out of the shared pool, so that a slow reader does not hold its neighbours' slots.
    pub fn spill(&mut self) {
        if self.is_pooled() {
            *self = Self::from_vec(self.to_vec());
        }
    }

    /// Moves the bytes into memory of their size when they lie in a bulk buffer that a short receive
    /// has filled to less than a quarter.
    pub fn compact(&mut self) {
        if let Memory::Other(Bytes::Heap(shared)) = &self.memory
            && shared.cache.is_some()
            && shared.data.len() < shared.data.capacity() / 4
        {
            *self = Self::from_vec(self.to_vec());
        }
    }

    /// Drops the first `n` bytes (all when there are fewer).
    pub fn advance(&mut self, n: usize) {
        self.start += (n.min(self.len())) as u32;
    }

    /// Cuts to the first `n` bytes.
    pub fn truncate(&mut self, n: usize) {
        self.end = self.start + (n.min(self.len())) as u32;
    }

    /// Takes the first `n` bytes (all when there are fewer) off as a chunk of their own.
    pub fn split_to(&mut self, n: usize) -> Chunk {
        let mut front = self.share();
        front.truncate(n);
        self.advance(n);
        front
    }

    /// A second holder of the same bytes.
    pub fn share(&self) -> Chunk {
        let memory = match &self.memory {
            Memory::Slot { pool, slot } => {
                pool.retain(*slot);
                Memory::Slot { pool: Rc::clone(pool), slot: *slot }
            }
            Memory::Other(bytes) => Memory::Other(bytes.clone()),
        };
        Chunk { memory, start: self.start, end: self.end }
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let whole = match &self.memory {
            Memory::Slot { pool, slot } => pool.bytes(*slot),
            Memory::Other(Bytes::Heap(shared)) => &shared.data,
            Memory::Other(Bytes::Static(bytes)) => bytes,
            Memory::Other(Bytes::Counted(bytes)) => bytes,
        };
        // start <= end <= len by construction: every change above clamps.
        &whole[self.start as usize..self.end as usize]
    }
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chunk({} bytes)", self.len())
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Memory::Slot { pool, slot } = &self.memory {
            pool.release(*slot);
        }
    }
}

/// Keeps the start of a heap buffer's memory valid across moves of its owner, for the kernel to read.
pub(super) fn heap_ptr(chunk: &[u8]) -> NonNull<u8> {
    NonNull::from(chunk).cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_returns_with_the_last_chunk_on_it() {
        let pool = Pool::listed(2, 64).unwrap();
        let slot = pool.take_slot().unwrap();
        let mut chunk = pool.filled(slot, 10).unwrap();
        let front = chunk.split_to(4);
        assert_eq!((front.len(), chunk.len()), (4, 6));
        drop(chunk);
        assert_eq!(pool.taken(), 1);
        drop(front);
        assert_eq!(pool.taken(), 0);
        assert!(pool.take_slot().is_some() && pool.take_slot().is_some());
        assert!(pool.take_slot().is_none());
    }

    #[test]
    fn only_the_single_holder_of_a_slot_may_change_it() {
        let pool = Pool::listed(1, 64).unwrap();
        let slot = pool.take_slot().unwrap();
        let mut chunk = pool.filled(slot, 10).unwrap();
        chunk.advance(2);
        chunk.bytes_mut().unwrap().fill(b'x');
        assert_eq!(&*chunk, b"xxxxxxxx");
        let other = chunk.share();
        assert!(chunk.bytes_mut().is_none());
        drop(other);
        assert!(chunk.bytes_mut().is_some());
        assert!(Chunk::from_static(b"x").bytes_mut().is_none());
    }

    #[test]
    fn slots_that_rest_lose_their_memory() {
        let pool = Pool::listed(256, 4096).unwrap();
        let use_all = || {
            let slots: Vec<u16> = std::iter::from_fn(|| pool.take_slot()).collect();
            for slot in &slots {
                // SAFETY: slot memory is 4096 bytes and no chunk holds it yet.
                unsafe { pool.slot_ptr(*slot).write(b'x') };
            }
            slots.into_iter().for_each(|slot| pool.give_back(slot));
        };
        let first_byte = |slot: u16| {
            // SAFETY: slot memory is 4096 bytes and no chunk holds it.
            unsafe { pool.slot_ptr(slot).read() }
        };
        use_all();
        pool.cool();
        assert_eq!(first_byte(100), b'x', "used since");
        // One is used all the time.
        let busy = pool.take_slot().unwrap();
        pool.give_back(busy);
        pool.cool();
        assert_eq!((first_byte(100), first_byte(busy)), (0, b'x'));
        use_all();
        pool.cool();
        assert_eq!(first_byte(100), b'x', "in use again");
    }

    #[test]
    fn spilling_frees_the_slot_and_keeps_the_bytes() {
        let pool = Pool::listed(1, 64).unwrap();
        let slot = pool.take_slot().unwrap();
        // SAFETY: slot memory is 64 bytes and no chunk holds it yet.
        unsafe { pool.slot_ptr(slot).write(b'x') };
        let mut chunk = pool.filled(slot, 1).unwrap();
        chunk.spill();
        assert_eq!(pool.taken(), 0);
        assert_eq!(&*chunk, b"x");
    }

    #[test]
    fn a_short_receive_that_has_to_wait_frees_its_bulk_buffer() {
        let cache = BulkCache::new();
        for (len, is_freed) in [(5_000, true), (BULK_BYTES / 4, false)] {
            let mut buffer = cache.take();
            buffer.resize(len, b'x');
            let address = buffer.as_ptr();
            let mut chunk = Chunk::bulk(buffer, &cache);
            chunk.compact();
            assert!(chunk.len() == len && chunk.iter().all(|byte| *byte == b'x'));
            let next = cache.take();
            assert_eq!(next.as_ptr() == address, is_freed);
        }
    }

    #[test]
    fn bulk_buffers_are_reused() {
        let cache = BulkCache::new();
        let buffer = cache.take();
        let address = buffer.as_ptr();
        drop(Chunk::bulk(buffer, &cache));
        let again = cache.take();
        assert_eq!(again.as_ptr(), address);
    }
}
