//! The rings of an AF_XDP socket: one side writes entries, the other reads them, neither locks.
//!
//! Owns: indices and their memory ordering, and mistrust of what the other side has written. Does not own: what entries
//! mean ([`super::frames`]), or where the kernel has the rings (`super`).
//!
//! Two counters that only grow, and wrap: the producer's counts entries written, the consumer's entries read. Each is
//! written by one side alone, which is why this side keeps its own beside the ring and never reads it back.
//!
//! Ordering. A producer writes entries, then publishes its counter with Release; a consumer reads that counter with
//! Acquire, so it sees the entries, and the frames that they name. A consumer reads entries, then publishes its counter
//! with Release; a producer reads that with Acquire before it writes over them. The entries themselves are atomics,
//! read and written Relaxed, so that a kernel that broke the rule would give wrong numbers and no undefined behaviour.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::sys::mmap::SharedMapping;

/// In the flags of a ring: the kernel sleeps, and has to be told.
const NEED_WAKEUP: u32 = libc::XDP_RING_NEED_WAKEUP;

/// Where the parts of a ring lie in its mapping (bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) producer: usize,
    pub(super) consumer: usize,
    pub(super) flags: usize,
    pub(super) entries: usize,
}

/// What a ring holds.
pub(super) trait Entry: Copy {
    /// Words of an entry (count).
    const WORDS: usize;
    /// From the words; `word` gives each.
    fn read(word: impl Fn(usize) -> u64) -> Self;
    /// Into the words.
    fn write(self, word: impl FnMut(usize, u64));
}

/// An address within the UMEM: what the fill and the completion ring hold.
impl Entry for u64 {
    const WORDS: usize = 1;

    fn read(word: impl Fn(usize) -> u64) -> Self {
        word(0)
    }

    fn write(self, mut word: impl FnMut(usize, u64)) {
        word(0, self);
    }
}

/// `struct xdp_desc`: what the receive and the transmit ring hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) options: u32,
}

impl Entry for Descriptor {
    const WORDS: usize = 2;

    fn read(word: impl Fn(usize) -> u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word(1).to_ne_bytes();
        let length = u32::from_ne_bytes([a, b, c, d]);
        Self { address: word(0), length, options: u32::from_ne_bytes([e, f, g, h]) }
    }

    fn write(self, mut word: impl FnMut(usize, u64)) {
        let ([a, b, c, d], [e, f, g, h]) = (self.length.to_ne_bytes(), self.options.to_ne_bytes());
        word(0, self.address);
        word(1, u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
    }
}

const _: () = {
    assert!(size_of::<libc::xdp_desc>() == 8 * Descriptor::WORDS);
    assert!(std::mem::offset_of!(libc::xdp_desc, len) == 8);
    assert!(std::mem::offset_of!(libc::xdp_desc, options) == 12);
};

/// The other side's counter cannot be: it is further away than the ring is long. Nothing of the ring can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// A ring in shared memory. `own` is this side's counter.
#[derive(Debug)]
struct Ring {
    memory: SharedMapping,
    places: Places,
    /// Entries (count), a power of two.
    size: u32,
    own: u32,
}

impl Ring {
    /// `None` when a part would leave the mapping, or the size is no power of two.
    fn new(memory: SharedMapping, places: Places, size: u32, words: usize) -> Option<Self> {
        let all = [places.producer, places.consumer, places.flags];
        let counters = all.iter().all(|place| memory.view::<AtomicU32>(*place).is_some());
        let entries = memory.slice::<AtomicU64>(places.entries, size as usize * words).is_some();
        (size.is_power_of_two() && counters && entries).then_some(Self { memory, places, size, own: 0 })
    }

    fn counter(&self, place: usize) -> Result<&AtomicU32, Broken> {
        self.memory.view(place).ok_or(Broken)
    }

    fn entry(&self, index: u32, words: usize) -> Result<&[AtomicU64], Broken> {
        let at = (index & (self.size - 1)) as usize * words * size_of::<u64>();
        self.memory.slice(self.places.entries + at, words).ok_or(Broken)
    }

    fn read<E: Entry>(&self, index: u32) -> Result<E, Broken> {
        let words = self.entry(index, E::WORDS)?;
        Ok(E::read(|at| words.get(at).map_or(0, |word| word.load(Ordering::Relaxed))))
    }

    fn write<E: Entry>(&self, index: u32, entry: E) -> Result<(), Broken> {
        let words = self.entry(index, E::WORDS)?;
        entry.write(|at, value| {
            if let Some(word) = words.get(at) {
                word.store(value, Ordering::Relaxed);
            }
        });
        Ok(())
    }

    fn needs_wakeup(&self) -> bool {
        // The kernel sets the flag and then looks at the counter once more; we publish the counter and then look at the
        // flag. Without a full barrier between the two, both could see the other's old value, and nobody would wake.
        fence(Ordering::SeqCst);
        self.counter(self.places.flags).is_ok_and(|flags| flags.load(Ordering::Relaxed) & NEED_WAKEUP != 0)
    }
}

/// A ring that this side writes: fill, transmit.
#[derive(Debug)]
pub(super) struct Producer(Ring);

impl Producer {
    /// A ring that is new, or whose counters both are where they were.
    pub(super) fn new<E: Entry>(memory: SharedMapping, places: Places, size: u32) -> Option<Self> {
        let mut ring = Ring::new(memory, places, size, E::WORDS)?;
        ring.own = ring.counter(places.producer).ok()?.load(Ordering::Relaxed);
        Some(Self(ring))
    }

    /// Entries that the other side has not read (count), unpublished ones included.
    pub(super) fn waiting(&self) -> Result<u32, Broken> {
        let read = self.0.counter(self.0.places.consumer)?.load(Ordering::Acquire);
        let waiting = self.0.own.wrapping_sub(read);
        if waiting > self.0.size { Err(Broken) } else { Ok(waiting) }
    }

    /// Writes as many of `entries` as there is room for, and publishes them; returns how many.
    pub(super) fn push<E: Entry>(&mut self, entries: impl IntoIterator<Item = E>) -> Result<u32, Broken> {
        let room = self.0.size - self.waiting()?;
        let mut written = 0;
        for entry in entries.into_iter().take(room as usize) {
            self.0.write(self.0.own.wrapping_add(written), entry)?;
            written += 1;
        }
        self.0.own = self.0.own.wrapping_add(written);
        self.0.counter(self.0.places.producer)?.store(self.0.own, Ordering::Release);
        Ok(written)
    }

    /// Whether the kernel has to be told of what was published.
    pub(super) fn needs_wakeup(&self) -> bool {
        self.0.needs_wakeup()
    }

    /// As a driver does that wants to be told.
    #[cfg(test)]
    pub(super) fn ask(&self) {
        self.0.counter(self.0.places.flags).expect("flags").fetch_or(NEED_WAKEUP, Ordering::Relaxed);
    }
}

/// A ring that this side reads: completion, receive.
#[derive(Debug)]
pub(super) struct Consumer(Ring);

impl Consumer {
    /// A ring that is new, or whose counters both are where they were.
    pub(super) fn new<E: Entry>(memory: SharedMapping, places: Places, size: u32) -> Option<Self> {
        let mut ring = Ring::new(memory, places, size, E::WORDS)?;
        ring.own = ring.counter(places.consumer).ok()?.load(Ordering::Relaxed);
        Some(Self(ring))
    }

    /// Entries that wait to be read (count).
    pub(super) fn waiting(&self) -> Result<u32, Broken> {
        let written = self.0.counter(self.0.places.producer)?.load(Ordering::Acquire);
        let waiting = written.wrapping_sub(self.0.own);
        if waiting > self.0.size { Err(Broken) } else { Ok(waiting) }
    }

    /// Reads the next entry, if there is one. The other side may not write over it before [`Self::release`].
    pub(super) fn pop<E: Entry>(&mut self) -> Result<Option<E>, Broken> {
        if self.waiting()? == 0 {
            return Ok(None);
        }
        let entry = self.0.read(self.0.own)?;
        self.0.own = self.0.own.wrapping_add(1);
        Ok(Some(entry))
    }

    /// Gives the places of all entries read back to the other side.
    pub(super) fn release(&self) -> Result<(), Broken> {
        self.0.counter(self.0.places.consumer)?.store(self.0.own, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memfd;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::os::fd::{AsFd as _, OwnedFd};

    const PLACES: Places = Places { producer: 0, consumer: 64, flags: 128, entries: 192 };

    fn memory(fd: &OwnedFd, len: usize) -> SharedMapping {
        SharedMapping::map(fd.as_fd(), len).expect("a mapping")
    }

    /// Plain memory, and the two ends of a ring of `size` in it, whose counters begin at `start`.
    fn ring<E: Entry>(size: u32, start: u32) -> (SharedMapping, Producer, Consumer) {
        let len = PLACES.entries + size as usize * E::WORDS * 8;
        let fd = memfd::create_sized(c"ring", len as u64).expect("memory");
        let view = memory(&fd, len);
        for place in [PLACES.producer, PLACES.consumer] {
            view.view::<AtomicU32>(place).expect("a counter").store(start, Ordering::Relaxed);
        }
        let producer = Producer::new::<E>(memory(&fd, len), PLACES, size).expect("a ring");
        let consumer = Consumer::new::<E>(memory(&fd, len), PLACES, size).expect("a ring");
        (view, producer, consumer)
    }

    #[test]
    fn parts_beyond_the_mapping_and_odd_sizes_are_refused() {
        let fd = memfd::create_sized(c"ring", 4096).expect("memory");
        let try_one = |places, size| Producer::new::<u64>(memory(&fd, 4096), places, size).is_some();
        assert!(try_one(PLACES, 256));
        assert!(!try_one(PLACES, 512), "the entries leave the mapping");
        assert!(!try_one(PLACES, 3), "no power of two");
        assert!(!try_one(PLACES, 0));
        assert!(!try_one(Places { producer: 4094, ..PLACES }, 4));
        assert!(!try_one(Places { flags: usize::MAX, ..PLACES }, 4));
        assert!(!try_one(Places { consumer: 65, ..PLACES }, 4), "misaligned");
    }

    #[test]
    fn counters_that_cannot_be_are_told() {
        let (view, producer, mut consumer) = ring::<u64>(4, u32::MAX - 1);
        let counter = |place: usize, value: u32| {
            view.view::<AtomicU32>(place).expect("a counter").store(value, Ordering::Relaxed);
        };
        counter(PLACES.consumer, u32::MAX);
        assert_eq!(producer.waiting(), Err(Broken), "more was read than written");
        counter(PLACES.consumer, u32::MAX - 6);
        assert_eq!(producer.waiting(), Err(Broken), "more is waiting than fits");
        counter(PLACES.producer, 3);
        assert_eq!(consumer.waiting(), Err(Broken), "more was written than fits");
        assert_eq!(consumer.pop::<u64>(), Err(Broken));
        counter(PLACES.producer, u32::MAX - 2);
        assert_eq!(consumer.waiting(), Err(Broken), "the counter went back");
        counter(PLACES.producer, 2);
        assert_eq!(consumer.waiting(), Ok(4), "across the wrap");
    }

    #[test]
    fn the_flag_is_read() {
        let (_, producer, _) = ring::<u64>(4, 0);
        assert!(!producer.needs_wakeup());
        producer.ask();
        assert!(producer.needs_wakeup());
    }

    #[test]
    fn entries_pass_between_threads_with_what_they_point_to() {
        const COUNT: u64 = 200_000;
        let (_, mut producer, mut consumer) = ring::<Descriptor>(64, u32::MAX - 100);
        // What an entry speaks of, written before it and with no ordering of its own.
        let data: Vec<AtomicU64> = (0..64).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut next = 0;
                while next < COUNT {
                    if producer.waiting() == Ok(64) {
                        std::thread::yield_now();
                        continue;
                    }
                    data[next as usize % 64].store(next, Ordering::Relaxed);
                    let entry = Descriptor { address: next, length: next as u32, options: 7 };
                    assert_eq!(producer.push([entry]), Ok(1));
                    next += 1;
                }
            });
            let mut next = 0;
            while next < COUNT {
                let Some(entry) = consumer.pop::<Descriptor>().expect("sound") else {
                    std::thread::yield_now();
                    continue;
                };
                assert_eq!(entry, Descriptor { address: next, length: next as u32, options: 7 });
                assert_eq!(data[next as usize % 64].load(Ordering::Relaxed), next);
                consumer.release().expect("sound");
                next += 1;
            }
        });
    }

    proptest! {
        /// Against a queue, from any start, the wrap of the counters included.
        #[test]
        fn a_ring_is_a_bounded_queue(
            start in prop_oneof![any::<u32>(), (u32::MAX - 40)..=u32::MAX],
            power in 0_u32..5,
            steps in prop::collection::vec((any::<bool>(), 0_u32..24), 1..120),
        ) {
            let size = 1 << power;
            let (_, mut producer, mut consumer) = ring::<Descriptor>(size, start);
            let (mut queue, mut unreleased, mut next) = (VecDeque::new(), 0, 0_u64);
            for (is_push, count) in steps {
                if is_push {
                    let entries = (0..count).map(|at| {
                        let address = next + u64::from(at);
                        Descriptor { address, length: address as u32 ^ 0x5a5a, options: 0 }
                    });
                    let entries: Vec<_> = entries.collect();
                    let room = size - queue.len() as u32 - unreleased;
                    let pushed = producer.push(entries.iter().copied());
                    prop_assert_eq!(pushed, Ok(count.min(room)));
                    queue.extend(entries.into_iter().take(count.min(room) as usize));
                    next += u64::from(count.min(room));
                } else {
                    for _ in 0..count {
                        let expected = queue.pop_front();
                        unreleased += u32::from(expected.is_some());
                        prop_assert_eq!(consumer.pop::<Descriptor>(), Ok(expected));
                    }
                    prop_assert_eq!(producer.waiting(), Ok(queue.len() as u32 + unreleased));
                    consumer.release().expect("sound");
                    unreleased = 0;
                }
                prop_assert_eq!(consumer.waiting(), Ok(queue.len() as u32));
            }
        }
    }
}
