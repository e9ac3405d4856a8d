//! The frames of an AF_XDP socket, and who has each.
//!
//! A frame is with exactly one: free, lent to the kernel for what comes, being read, or being sent. The kernel names
//! frames by numbers that it writes into shared memory; a number that is out of range, or names a frame that the kernel
//! does not have, is refused here, so that no two ever hold the same bytes.
//!
//! Owns: the memory (UMEM), the account. Does not own: the rings ([`super::ring`]).

use std::ops::Range;
use std::sync::Arc;

use super::ring::Descriptor;
use crate::sys::mapping::Mapping;

/// Who has a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// Nobody: it is in the list of free ones, or its user is at work on it.
    Free,
    /// The kernel, to fill it: in the fill ring, in the driver, or in the receive ring.
    Receiving,
    /// The user, who reads it.
    Reading,
    /// The kernel, to send it: in the transmit ring, in the driver, or in the completion ring.
    Sending,
}

/// How many frames each has (count).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Free ones.
    pub free: u32,
    /// Lent to the kernel for what comes.
    pub receiving: u32,
    /// Being read.
    pub reading: u32,
    /// Being sent, or sent and not yet reaped.
    pub sending: u32,
}

/// The frames of one direction: a part of the UMEM that no other value refers to.
pub(super) struct Frames {
    area: Arc<Mapping>,
    /// Where the part begins (bytes).
    start: usize,
    frame_bytes: usize,
    holders: Vec<Holder>,
    free: Vec<u32>,
}

/// A frame that is being read, and where its bytes lie.
#[derive(Debug)]
pub(super) struct Arrived {
    index: u32,
    place: Range<usize>,
}

impl Frames {
    /// A UMEM of twice `count` frames of `frame_bytes` each, all free: one half for each direction.
    pub(super) fn halves(count: u32, frame_bytes: u32) -> std::io::Result<(Self, Self)> {
        let (half, bytes) = (count as usize * frame_bytes as usize, frame_bytes as usize);
        let area = Arc::new(Mapping::anonymous(half * 2)?);
        let part = |start| Self {
            area: Arc::clone(&area),
            start,
            frame_bytes: bytes,
            holders: vec![Holder::Free; count as usize],
            free: (0..count).rev().collect(),
        };
        Ok((part(0), part(half)))
    }

    /// The whole UMEM, which lives for as long as one of its halves.
    pub(super) fn area(&self) -> &Mapping {
        &self.area
    }

    /// All frames (count).
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.holders.len()).unwrap_or(u32::MAX)
    }

    /// Free frames (count).
    pub(super) fn free(&self) -> u32 {
        u32::try_from(self.free.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn account(&self) -> Account {
        let count = |holder| self.holders.iter().filter(|held| **held == holder).count() as u32;
        Account {
            free: self.free(),
            receiving: count(Holder::Receiving),
            reading: count(Holder::Reading),
            sending: count(Holder::Sending),
        }
    }

    /// A free frame for the fill ring: its address.
    pub(super) fn lend(&mut self) -> Option<u64> {
        let index = self.free.pop()?;
        self.hold(index, Holder::Free, Holder::Receiving)?;
        Some(self.address(index))
    }

    /// What the receive ring says has come. `None`: it names no frame that the kernel had for this, or bytes outside.
    pub(super) fn arrived(&mut self, descriptor: Descriptor) -> Option<Arrived> {
        let (index, at) = self.locate(descriptor.address)?;
        let length = usize::try_from(descriptor.length).ok()?;
        let end = at.checked_add(length).filter(|end| *end <= self.frame_bytes)?;
        self.hold(index, Holder::Receiving, Holder::Reading)?;
        Some(Arrived { index, place: at..end })
    }

    /// The bytes of a frame that is being read.
    pub(super) fn bytes(&mut self, arrived: &Arrived) -> &mut [u8] {
        self.memory(arrived.index).get_mut(arrived.place.clone()).unwrap_or_default()
    }

    /// Lends a frame again that was read: its address.
    pub(super) fn read(&mut self, arrived: Arrived) -> Option<u64> {
        self.hold(arrived.index, Holder::Reading, Holder::Receiving)?;
        Some(self.address(arrived.index))
    }

    /// Writes a frame with `build`, for the transmit ring. `None`: none is free, or `build` has made nothing.
    pub(super) fn send(&mut self, build: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<Descriptor> {
        let index = *self.free.last()?;
        let length = build(self.memory(index)).filter(|length| *length <= self.frame_bytes)?;
        self.free.pop();
        self.hold(index, Holder::Free, Holder::Sending)?;
        Some(Descriptor { address: self.address(index), length: u32::try_from(length).ok()?, options: 0 })
    }

    /// What the completion ring says was sent. `None`: it names no frame that was being sent.
    pub(super) fn sent(&mut self, address: u64) -> Option<()> {
        let (index, _) = self.locate(address)?;
        self.hold(index, Holder::Sending, Holder::Free)?;
        self.free.push(index);
        Some(())
    }

    fn address(&self, index: u32) -> u64 {
        self.start as u64 + u64::from(index) * self.frame_bytes as u64
    }

    /// The frame of an address, and how far within it the address lies.
    fn locate(&self, address: u64) -> Option<(u32, usize)> {
        let address = usize::try_from(address).ok()?.checked_sub(self.start)?;
        let (index, at) = (address / self.frame_bytes, address % self.frame_bytes);
        (index < self.holders.len()).then_some((u32::try_from(index).ok()?, at))
    }

    /// Passes a frame on; `None` when `from` does not have it.
    fn hold(&mut self, index: u32, from: Holder, to: Holder) -> Option<()> {
        let holder = self.holders.get_mut(index as usize).filter(|holder| **holder == from)?;
        *holder = to;
        Some(())
    }

    /// The memory of a frame that the kernel does not have.
    fn memory(&mut self, index: u32) -> &mut [u8] {
        let kernel_has_it = !matches!(self.holders.get(index as usize), Some(Holder::Free | Holder::Reading));
        if kernel_has_it {
            return &mut [];
        }
        // SAFETY: `index` is below the number of holders (there is one for it), and the area has that many frames
        // from `start` on (see `halves`), so the first byte of this one lies within.
        let start = unsafe { self.area.as_ptr().add(self.start + index as usize * self.frame_bytes) };
        // SAFETY: all `frame_bytes` from there lie within the area, for the same reason; plain bytes, zeroed at
        // first. Nobody else refers to them: the kernel has given this frame back, as its holder says, the other half
        // has other frames, and other views of this half borrow `self` exclusively, as this one does.
        unsafe { std::slice::from_raw_parts_mut(start, self.frame_bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAME_BYTES: u32 = 2048;

    fn descriptor(address: u64, length: u32) -> Descriptor {
        Descriptor { address, length, options: 0 }
    }

    #[test]
    fn what_the_kernel_does_not_have_it_cannot_give() {
        let (mut frames, mut other) = Frames::halves(4, FRAME_BYTES).expect("memory");
        let lent = frames.lend().expect("a free frame");
        let beyond = 4 * u64::from(FRAME_BYTES);
        for wrong in [
            descriptor(lent + 2048, 10),
            descriptor(beyond, 10),
            descriptor(u64::MAX, 10),
            descriptor(lent + 2000, 49),
            descriptor(lent + 1, u32::MAX),
        ] {
            assert!(frames.arrived(wrong).is_none(), "{wrong:?}");
        }
        assert!(frames.sent(lent).is_none(), "it was not being sent");
        let arrived = frames.arrived(descriptor(lent + 256, 1792)).expect("lent");
        assert_eq!(frames.bytes(&arrived).len(), 1792);
        assert!(frames.arrived(descriptor(lent + 256, 1)).is_none(), "twice");
        assert_eq!(frames.read(arrived), Some(lent));

        let sent = frames.send(|room| (room.len() == 2048).then_some(60)).expect("a free frame");
        assert_eq!(sent.length, 60);
        assert!(frames.arrived(sent).is_none(), "it is being sent");
        assert!(frames.sent(sent.address).is_some());
        assert!(frames.sent(sent.address).is_none(), "twice");
        assert!(frames.send(|_| None).is_none());
        assert!(frames.send(|room| Some(room.len() + 1)).is_none());
        assert_eq!(frames.account(), Account { free: 3, receiving: 1, ..Account::default() });

        let theirs = other.lend().expect("a free frame");
        assert!(theirs >= beyond, "halves do not overlap");
        assert!(
            frames.arrived(descriptor(theirs, 1)).is_none() && other.arrived(descriptor(lent, 1)).is_none()
        );
    }

    proptest! {
        /// Whatever the kernel says, each frame has one holder, none is lost, and no two hold the same bytes.
        #[test]
        fn no_frame_is_lost_or_held_twice(
            steps in prop::collection::vec((0_u8..5, 0_u64..20 * 2048, 0_u32..2100), 0..200),
        ) {
            const COUNT: u32 = 16;
            let (mut frames, _) = Frames::halves(COUNT, FRAME_BYTES).expect("memory");
            let mut reading = Vec::new();
            for (what, address, length) in steps {
                match what {
                    0 => drop(frames.lend()),
                    1 => reading.extend(frames.arrived(descriptor(address, length))),
                    2 => {
                        if let Some(arrived) = reading.pop() {
                            prop_assert!(frames.read(arrived).is_some());
                        }
                    }
                    3 => drop(frames.send(|_| Some(length as usize))),
                    _ => drop(frames.sent(address)),
                }
                let account = frames.account();
                prop_assert_eq!(account.reading, reading.len() as u32);
                prop_assert_eq!(account.free + account.receiving + account.reading + account.sending, COUNT);
                let mut indices: Vec<u32> = reading.iter().map(|arrived| arrived.index).collect();
                indices.extend(&frames.free);
                indices.sort_unstable();
                let all = indices.len();
                indices.dedup();
                prop_assert_eq!(indices.len(), all);
            }
        }
    }
}
