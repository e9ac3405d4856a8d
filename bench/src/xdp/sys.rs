//! System calls of the XDP bench, each behind a safe function.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Keeps a thread (0: the calling one) on one processor.
pub(super) fn pin(thread: i32, cpu: usize) -> io::Result<()> {
    let mut words = [0_u64; 16];
    let Some(word) = words.get_mut(cpu / 64) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    *word = 1 << (cpu % 64);
    let set = (&raw const words).cast::<libc::cpu_set_t>();
    // SAFETY: a CPU set is 128 octets of bits, lowest processor first, which is what the array holds.
    let status = unsafe { libc::sched_setaffinity(thread, size_of_val(&words), set) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Processor time that the calling thread has used. Time in which another task ran is not in it.
pub(super) fn thread_cpu_time() -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer leads to a timespec that lives across the call.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32))
}

/// The number of an interface of this network namespace.
pub(super) fn interface_number(name: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: the pointer leads to a string with its zero that lives across the call.
    let number = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if number == 0 { Err(io::Error::last_os_error()) } else { Ok(number) }
}

/// A socket that sends whole frames through one interface (packet(7)). It receives nothing.
pub(super) struct FrameSocket(OwnedFd);

impl FrameSocket {
    pub(super) fn open(interface: u32) -> io::Result<Self> {
        // SAFETY: socket takes numbers only.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and nothing else owns it.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: interface.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointer leads to a whole sockaddr_ll that lives across the call.
        let status = unsafe { libc::bind(socket.0.as_raw_fd(), (&raw const address).cast(), length) };
        if status == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends `frame` as often as `messages` says, as far as the device takes it; how often that was. An
    /// error is about the first one.
    pub(super) fn send(&self, frame: &[u8], messages: usize) -> io::Result<usize> {
        let part = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
        let message = libc::mmsghdr {
            msg_hdr: libc::msghdr {
                msg_name: std::ptr::null_mut(),
                msg_namelen: 0,
                msg_iov: (&raw const part).cast_mut(),
                msg_iovlen: 1,
                msg_control: std::ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            },
            msg_len: 0,
        };
        let mut list = [message; BATCH_MAX];
        let count = messages.min(BATCH_MAX) as u32;
        // SAFETY: list and count describe an array that lives across the call, as do `part` and `frame`;
        // sending only reads through the pointers of a message.
        let sent = unsafe { libc::sendmmsg(self.0.as_raw_fd(), list.as_mut_ptr(), count, 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent.unsigned_abs() as usize) }
    }
}

/// Messages in one call at most.
pub(super) const BATCH_MAX: usize = 64;
