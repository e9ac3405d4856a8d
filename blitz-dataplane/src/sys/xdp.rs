//! AF_XDP sockets: frames of one receive queue of a network interface, past the kernel's stack (kernel documentation,
//! networking/af_xdp).
//!
//! Each socket has memory of its own (UMEM) and all four rings, so that a queue that stalls holds nothing that another
//! needs, and all ends with the descriptor. One memory for all queues of a worker would ask for a fill and a completion
//! ring for each queue all the same (Linux 5.10), and save a few pages.
//!
//! Owns: registering, binding, the two directions, waking the kernel. Does not own: who creates the socket (that takes
//! CAP_NET_RAW: `blitz-ctl`), what frames say, when to look.

mod frames;
mod ring;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

pub use frames::Account;
use frames::Frames;
use ring::{Broken, Consumer, Descriptor, Entry, Places, Producer};

use crate::sys::mmap::SharedMapping;

/// Bytes that the kernel keeps free before a frame that it fills (XDP_PACKET_HEADROOM).
const HEADROOM_BYTES: u32 = 256;

/// System calls of one [`XdpSender::wake`], at most: the kernel sends 32 frames in each when it copies.
const KICKS_MAX: u32 = 64;

/// Memory of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Frames (count), a power of two: half of them for what comes, half for what goes.
    pub frames: u32,
    /// Bytes of each: 2048 or 4096.
    pub frame_bytes: u32,
}

impl Shape {
    /// Bytes that count against RLIMIT_MEMLOCK.
    pub fn locked_bytes(self) -> u64 {
        u64::from(self.frames) * u64::from(self.frame_bytes)
    }

    /// The longest frame that can come; longer ones the kernel drops.
    pub fn receive_bytes_max(self) -> u32 {
        self.frame_bytes.saturating_sub(HEADROOM_BYTES)
    }

    fn half(self) -> u32 {
        self.frames / 2
    }
}

/// Whether frames are copied between the driver's memory and ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copying {
    /// They are: every driver can, and nothing is lost when a socket comes or goes.
    #[default]
    Always,
    /// They are not; the bind fails where the driver cannot.
    Never,
    /// They are where the driver cannot do without.
    IfNeeded,
}

/// What the kernel has counted for a socket (`XDP_STATISTICS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames dropped because they were too long, or, where they are copied, because the fill ring was empty.
    pub receive_dropped: u64,
    /// Frames dropped because the receive ring was full.
    pub receive_ring_full: u64,
    /// Times that the fill ring was empty when a frame came.
    pub fill_ring_empty: u64,
    /// Descriptors of ours that the kernel refused, in both directions.
    pub invalid: u64,
}

/// An AF_XDP socket with its memory, not yet in use. Its two directions share nothing but the descriptor.
#[derive(Debug)]
pub struct XdpSocket {
    /// What comes.
    pub receiver: XdpReceiver,
    /// What goes.
    pub sender: XdpSender,
}

/// The receiving direction.
pub struct XdpReceiver {
    fd: Arc<OwnedFd>,
    fill: Producer,
    ring: Consumer,
    frames: Frames,
    nonsense: u64,
}

/// The sending direction.
pub struct XdpSender {
    fd: Arc<OwnedFd>,
    ring: Producer,
    completion: Consumer,
    frames: Frames,
    nonsense: u64,
}

impl XdpSocket {
    /// Gives a new socket its memory and rings, and lends the kernel the frames for what comes. It receives nothing
    /// before [`Self::bind`].
    ///
    /// # Errors
    /// `ENOBUFS`: more memory than RLIMIT_MEMLOCK allows, for all processes of this user together. `EINVAL`: a size
    /// that the kernel does not take, or a socket that is no new one.
    pub fn register(fd: OwnedFd, shape: Shape) -> io::Result<Self> {
        let entries = shape.half();
        let (mut incoming, outgoing) = Frames::halves(entries, shape.frame_bytes)?;
        let area = libc::xdp_umem_reg {
            addr: incoming.area().as_ptr() as u64,
            len: shape.locked_bytes(),
            chunk_size: shape.frame_bytes,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set(&fd, libc::XDP_UMEM_REG, &area)?;
        for ring in
            [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING, libc::XDP_TX_RING]
        {
            set(&fd, ring, &entries)?;
        }
        let offsets: libc::xdp_mmap_offsets = get(&fd, libc::XDP_MMAP_OFFSETS, Whole::Yes)?;
        let at = |place: u64| i64::try_from(place).unwrap_or(i64::MAX);
        let fill = map::<u64>(&fd, offsets.fr, at(libc::XDP_UMEM_PGOFF_FILL_RING), entries)?;
        let completion = map::<u64>(&fd, offsets.cr, at(libc::XDP_UMEM_PGOFF_COMPLETION_RING), entries)?;
        let receive = map::<Descriptor>(&fd, offsets.rx, libc::XDP_PGOFF_RX_RING, entries)?;
        let transmit = map::<Descriptor>(&fd, offsets.tx, libc::XDP_PGOFF_TX_RING, entries)?;
        let odd = || io::Error::from(io::ErrorKind::InvalidData);
        let mut fill = Producer::new::<u64>(fill.0, fill.1, entries).ok_or_else(odd)?;
        let completion = Consumer::new::<u64>(completion.0, completion.1, entries).ok_or_else(odd)?;
        let receive = Consumer::new::<Descriptor>(receive.0, receive.1, entries).ok_or_else(odd)?;
        let transmit = Producer::new::<Descriptor>(transmit.0, transmit.1, entries).ok_or_else(odd)?;
        let lent: Vec<u64> = std::iter::from_fn(|| incoming.lend()).collect();
        fill.push(lent)?;
        let fd = Arc::new(fd);
        Ok(Self {
            receiver: XdpReceiver { fd: Arc::clone(&fd), fill, ring: receive, frames: incoming, nonsense: 0 },
            sender: XdpSender { fd, ring: transmit, completion, frames: outgoing, nonsense: 0 },
        })
    }

    /// Binds to a queue. Frames come once the socket is in the map of an XDP program that redirects to it.
    ///
    /// # Errors
    /// `EBUSY`: another socket has the queue, or had it a moment ago. `EOPNOTSUPP`: the driver cannot do without
    /// copying. `ENODEV`, `EINVAL`: no such interface or queue.
    pub fn bind(&self, interface: u32, queue: u32, copying: Copying) -> io::Result<()> {
        let copying = match copying {
            Copying::Always => libc::XDP_COPY,
            Copying::Never => libc::XDP_ZEROCOPY,
            Copying::IfNeeded => 0,
        };
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_USE_NEED_WAKEUP | copying,
            sxdp_ifindex: interface,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        let length = size_of_val(&address) as libc::socklen_t;
        let fd = self.receiver.fd.as_raw_fd();
        // SAFETY: the address is live and of this length; the kernel only reads it.
        let bound = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
        if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Whether frames go without a copy; known once it is bound.
    ///
    /// # Errors
    /// What getsockopt(2) reports.
    pub fn is_zero_copy(&self) -> io::Result<bool> {
        let options: libc::xdp_options = get(&self.receiver.fd, libc::XDP_OPTIONS, Whole::Yes)?;
        Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }
}

impl AsFd for XdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

impl XdpReceiver {
    /// Shows `each` up to `max` frames that have come, and lends them to the kernel again; returns how many there were.
    ///
    /// # Errors
    /// The rings make no sense, or the interface is gone; the socket is of no more use.
    pub fn receive(&mut self, max: u32, mut each: impl FnMut(&mut [u8])) -> io::Result<u32> {
        let mut count = 0;
        while count < max
            && let Some(descriptor) = self.ring.pop::<Descriptor>()?
        {
            count += 1;
            let Some(arrived) = self.frames.arrived(descriptor) else {
                self.nonsense += 1;
                continue;
            };
            each(self.frames.bytes(&arrived));
            // There is room: the ring has as many entries as there are frames for it.
            let address = self.frames.read(arrived);
            if self.fill.push(address)? == 0 {
                self.nonsense += 1;
            }
        }
        if count > 0 {
            self.ring.release()?;
            self.wake_if_asked()?;
        }
        Ok(count)
    }

    /// Tells the driver that there are frames to fill, when it wants to be told; returns whether it did.
    ///
    /// # Errors
    /// As for [`Self::receive`].
    pub fn wake_if_asked(&self) -> io::Result<bool> {
        let is_asked = self.fill.needs_wakeup();
        if is_asked {
            self.wake()?;
        }
        Ok(is_asked)
    }

    /// Tells the driver that the fill ring has frames again.
    fn wake(&self) -> io::Result<()> {
        // SAFETY: no buffer and no address; plain integers.
        let woken = unsafe {
            let (none, nowhere) = (std::ptr::null_mut(), std::ptr::null_mut());
            libc::recvfrom(self.fd.as_raw_fd(), none, 0, libc::MSG_DONTWAIT, nowhere, std::ptr::null_mut())
        };
        if woken >= 0 { Ok(()) } else { unless_passing(io::Error::last_os_error()) }
    }

    /// What has gone wrong with the socket since the last call: its interface is gone (`ENETDOWN`).
    pub fn pending_error(&self) -> Option<io::Error> {
        let code = super::net::pending_error(self.fd.as_raw_fd());
        (code != 0).then(|| io::Error::from_raw_os_error(code))
    }

    /// Who has the frames of this direction. Walks over all of them.
    pub fn account(&self) -> Account {
        self.frames.account()
    }

    /// Descriptors of the kernel that could not be, and were not believed (count).
    pub fn nonsense(&self) -> u64 {
        self.nonsense
    }

    /// What the kernel has counted for both directions.
    ///
    /// # Errors
    /// What getsockopt(2) reports.
    pub fn statistics(&self) -> io::Result<Statistics> {
        let counted: libc::xdp_statistics = get(&self.fd, libc::XDP_STATISTICS, Whole::No)?;
        Ok(Statistics {
            receive_dropped: counted.rx_dropped,
            receive_ring_full: counted.rx_ring_full,
            fill_ring_empty: counted.rx_fill_ring_empty_descs,
            invalid: counted.rx_invalid_descs.saturating_add(counted.tx_invalid_descs),
        })
    }
}

impl AsFd for XdpReceiver {
    /// Readable while frames wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl XdpSender {
    /// Frames of this direction, whoever has them (count).
    pub fn frames(&self) -> u32 {
        self.frames.count()
    }

    /// Frames that [`Self::send`] would take now (count).
    pub fn room(&self) -> u32 {
        self.frames.free()
    }

    /// Puts a frame that `build` writes, and whose length it returns, into the transmit ring. `false`: no frame is
    /// free, or `build` has made nothing. [`Self::wake`] sends it.
    ///
    /// # Errors
    /// The rings make no sense; the socket is of no more use.
    pub fn send(&mut self, build: impl FnOnce(&mut [u8]) -> Option<usize>) -> io::Result<bool> {
        let Some(descriptor) = self.frames.send(build) else { return Ok(false) };
        // There is room: the ring has as many entries as there are frames for it.
        if self.ring.push([descriptor])? == 0 {
            self.nonsense += 1;
        }
        Ok(true)
    }

    /// Tells the kernel that there is something to send, when it wants to be told; returns the system calls (count).
    ///
    /// # Errors
    /// The interface is down (`ENETDOWN`) or gone (`ENXIO`), or as for [`Self::send`].
    pub fn wake(&mut self) -> io::Result<u32> {
        let mut kicks = 0;
        let mut waiting = self.ring.waiting()?;
        while waiting > 0 && kicks < KICKS_MAX && self.ring.needs_wakeup() {
            kicks += 1;
            // SAFETY: no buffer and no address; plain integers.
            let sent = unsafe {
                let (none, nowhere) = (std::ptr::null(), std::ptr::null());
                libc::sendto(self.fd.as_raw_fd(), none, 0, libc::MSG_DONTWAIT, nowhere, 0)
            };
            if sent < 0 {
                unless_passing(io::Error::last_os_error())?;
            }
            let left = self.ring.waiting()?;
            if left == waiting {
                break;
            }
            waiting = left;
        }
        Ok(kicks)
    }

    /// Takes back the frames that were sent; returns how many.
    ///
    /// # Errors
    /// As for [`Self::send`].
    pub fn reap(&mut self) -> io::Result<u32> {
        let mut count = 0;
        while let Some(address) = self.completion.pop::<u64>()? {
            match self.frames.sent(address) {
                Some(()) => count += 1,
                None => self.nonsense += 1,
            }
        }
        self.completion.release()?;
        Ok(count)
    }

    /// Who has the frames of this direction. Walks over all of them.
    pub fn account(&self) -> Account {
        self.frames.account()
    }

    /// Descriptors of the kernel that could not be, and were not believed (count).
    pub fn nonsense(&self) -> u64 {
        self.nonsense
    }
}

/// Whether a call that wakes the kernel may be tried again: its budget is used up, or the device is busy.
fn unless_passing(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR) => Ok(()),
        _ => Err(error),
    }
}

impl std::fmt::Debug for XdpReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XdpReceiver").field("fd", &self.fd).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for XdpSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XdpSender").field("fd", &self.fd).finish_non_exhaustive()
    }
}

impl From<Broken> for io::Error {
    fn from(_: Broken) -> Self {
        Self::new(io::ErrorKind::InvalidData, "a ring's counters cannot be")
    }
}

/// Maps a ring, and says where its parts lie.
fn map<E: Entry>(
    fd: &OwnedFd,
    offsets: libc::xdp_ring_offset,
    at: i64,
    entries: u32,
) -> io::Result<(SharedMapping, Places)> {
    let place = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
    let places = Places {
        producer: place(offsets.producer),
        consumer: place(offsets.consumer),
        flags: place(offsets.flags),
        entries: place(offsets.desc),
    };
    let length = places.entries.checked_add(entries as usize * E::WORDS * size_of::<u64>());
    let length = length.ok_or(io::ErrorKind::InvalidData)?;
    Ok((SharedMapping::map_at(fd.as_fd(), length, at)?, places))
}

/// A structure of plain integers that the kernel reads or writes.
///
/// # Safety
/// `repr(C)`, every bit pattern valid, no padding that the kernel would read.
unsafe trait Plain: Copy {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: `repr(C)`, two 64-bit and four 32-bit integers: no gap.
unsafe impl Plain for libc::xdp_umem_reg {}
// SAFETY: `repr(C)`, 64-bit integers only.
unsafe impl Plain for libc::xdp_mmap_offsets {}
// SAFETY: `repr(C)`, 64-bit integers only.
unsafe impl Plain for libc::xdp_statistics {}
// SAFETY: one integer.
unsafe impl Plain for libc::xdp_options {}

fn set<T: Plain>(fd: &OwnedFd, option: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let from = std::ptr::from_ref(value).cast();
    // SAFETY: the value is live and of this length; the kernel only reads it.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, from, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether an older kernel's shorter form of an option will do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whole {
    Yes,
    No,
}

fn get<T: Plain>(fd: &OwnedFd, option: i32, whole: Whole) -> io::Result<T> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    let into = value.as_mut_ptr().cast();
    // SAFETY: the value is live and writable, and `length` is its size.
    let result = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, into, &raw mut length) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if whole == Whole::Yes && length as usize != size_of::<T>() {
        // Linux before 5.4 knows no flags of rings.
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: `Plain` is valid for every bit pattern, and what the kernel has not written is zero.
    Ok(unsafe { value.assume_init() })
}

#[cfg(test)]
mod tests;
