//! System calls that the standard library lacks, each behind a safe function.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// Sends a signal to a process, or to the group `-pid`.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if matches!(pid, 0 | -1) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: kill takes no pointer, and pids that mean many processes were refused above.
    let status = unsafe { libc::kill(pid, signal) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Asks the kernel to kill the child when the thread that starts it ends, however it ends.
pub(crate) fn die_with_thread(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe system call.
    unsafe { command.pre_exec(ask_for_sigkill) };
}

/// Lets the process that `command` starts lock so many bytes of memory.
pub(crate) fn limit_locked_memory(command: &mut Command, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    let set = move || {
        // SAFETY: the limit is live for the call, which only reads it.
        let status = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe system call.
    unsafe { command.pre_exec(set) };
}

fn ask_for_sigkill() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and no pointer.
    let status = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the close of a connection a reset (RST) instead of a FIN.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let len = size_of::<libc::linger>() as libc::socklen_t;
    let (fd, value) = (stream.as_raw_fd(), (&raw const linger).cast());
    // SAFETY: the pointer leads to a whole linger that lives across the call, and the length is its size.
    unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, value, len) };
}

/// Whether the kernel lets this process set up an io_uring.
pub(crate) fn has_io_uring() -> bool {
    // SAFETY: with zero entries the kernel refuses before it looks at the second argument, which is null.
    let status = unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, std::ptr::null_mut::<libc::c_void>()) };
    let error = io::Error::last_os_error().raw_os_error();
    status >= 0 || !matches!(error, Some(libc::ENOSYS | libc::EPERM | libc::EACCES))
}

/// Moves the calling thread into the network namespace that the file stands for.
pub(crate) fn enter_network(namespace: &File) -> io::Result<()> {
    set_network(namespace.as_raw_fd())
}

fn set_network(namespace: RawFd) -> io::Result<()> {
    // SAFETY: setns takes a descriptor and a flag and no pointer; a wrong descriptor is an error.
    let status = unsafe { libc::setns(namespace, libc::CLONE_NEWNET) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the child start in a network namespace. `namespace` must stay open until it has been started.
pub(crate) fn start_in_network(command: &mut Command, namespace: &File) {
    let namespace = namespace.as_raw_fd();
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe system call.
    unsafe { command.pre_exec(move || set_network(namespace)) };
}

/// Keeps a thread (0: the calling one) on one CPU.
pub(crate) fn pin(thread: i32, cpu: usize) -> io::Result<()> {
    let mut word = [0_u64; 16];
    let Some(mask) = word.get_mut(cpu / 64) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    *mask = 1 << (cpu % 64);
    let set = (&raw const word).cast::<libc::cpu_set_t>();
    // SAFETY: a CPU set is 128 octets of bits, lowest CPU first, which is what the array holds.
    let status = unsafe { libc::sched_setaffinity(thread, size_of_val(&word), set) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the receive buffer of a socket beyond the system's limit; needs CAP_NET_ADMIN.
pub(crate) fn force_receive_buffer(socket: &UdpSocket, bytes: i32) -> io::Result<()> {
    let (fd, value) = (socket.as_raw_fd(), (&raw const bytes).cast());
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointer leads to an i32 that lives across the call, and the length is its size.
    let status = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, len) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A socket that sends whole frames through one interface of the calling thread's namespace.
#[derive(Debug)]
pub(crate) struct FrameSocket(OwnedFd);

impl FrameSocket {
    pub(crate) fn open(interface: u32) -> io::Result<Self> {
        // Protocol 0: it receives nothing.
        let socket = packet_socket(interface, 0)?;
        // Straight to the driver, through the transmit queue that belongs to the sender's CPU.
        let (on, len) = (1_i32, size_of::<i32>() as libc::socklen_t);
        let (level, option) = (libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS);
        // SAFETY: the pointer leads to an i32 that lives across the call, and the length is its size.
        let status =
            unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), len) };
        if status == 0 { Ok(Self(socket)) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends frames in order, as many as the device takes; how many that were. An error is about the
    /// first one that it did not take.
    pub(crate) fn send<F: AsRef<[u8]>>(&self, frames: &[F]) -> io::Result<usize> {
        let parts: Vec<libc::iovec> = frames
            .iter()
            .map(|frame| libc::iovec {
                iov_base: frame.as_ref().as_ptr().cast_mut().cast(),
                iov_len: frame.as_ref().len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter()
            .map(|part| libc::mmsghdr {
                msg_hdr: libc::msghdr {
                    msg_name: std::ptr::null_mut(),
                    msg_namelen: 0,
                    msg_iov: (&raw const *part).cast_mut(),
                    msg_iovlen: 1,
                    msg_control: std::ptr::null_mut(),
                    msg_controllen: 0,
                    msg_flags: 0,
                },
                msg_len: 0,
            })
            .collect();
        let (list, count) = (messages.as_mut_ptr(), messages.len() as u32);
        // SAFETY: list and count describe `messages`; it, `parts` and `frames` live across the call, and
        // sending only reads through the pointers.
        let sent = unsafe { libc::sendmmsg(self.0.as_raw_fd(), list, count, 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent.unsigned_abs() as usize) }
    }
}

/// A socket that receives a copy of each frame with IPv4 that reaches an interface of the calling thread's namespace,
/// its Ethernet header included. The standard library has no type for it: that of UDP has the same calls.
pub(crate) fn tap_ipv4(interface: u32) -> io::Result<UdpSocket> {
    packet_socket(interface, (libc::ETH_P_IP as u16).to_be()).map(UdpSocket::from)
}

/// A socket for the frames of an interface, with their Ethernet headers (packet(7)).
fn packet_socket(interface: u32, protocol: u16) -> io::Result<OwnedFd> {
    // Protocol 0: nothing comes before it is bound to the interface.
    // SAFETY: socket takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: interface.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer leads to a whole sockaddr_ll that lives across the call.
    let status = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if status == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// The number of an interface of the calling thread's namespace.
pub(crate) fn interface_number(name: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: the pointer leads to a string with its zero that lives across the call.
    let number = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if number == 0 { Err(io::Error::last_os_error()) } else { Ok(number) }
}

/// Sends the bytes as datagrams of `segment` bytes each, the last shorter, in one aggregate (UDP_SEGMENT, udp(7)).
pub(crate) fn send_segments(
    socket: &UdpSocket,
    bytes: &[u8],
    segment: u16,
    to: SocketAddr,
) -> io::Result<usize> {
    set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, &i32::from(segment))?;
    socket.send_to(bytes, to)
}

/// Lets an interface of the calling thread's namespace merge what it receives (generic receive offload).
pub(crate) fn merge_received(interface: &str) -> io::Result<()> {
    /// ETHTOOL_SGRO of linux/ethtool.h, with its argument.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const ETHTOOL_SGRO: u32 = 0x2c;
    let mut value = Value { command: ETHTOOL_SGRO, data: 1 };
    // SAFETY: all-zero octets are a request without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, octet) in request.ifr_name.iter_mut().zip(interface.bytes().take(libc::IFNAMSIZ - 1)) {
        *slot = octet.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let argument = &raw mut request;
    // SAFETY: the request and the value that it leads to live across the call.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, argument) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Datagrams that a socket had no room for (SO_MEMINFO, Linux 4.12).
pub(crate) fn socket_drops(socket: &UdpSocket) -> io::Result<u64> {
    // linux/sock_diag.h: SK_MEMINFO_DROPS is the last of nine words.
    let mut words = [0_u32; 9];
    let mut len = size_of_val(&words) as libc::socklen_t;
    let (fd, value) = (socket.as_raw_fd(), (&raw mut words).cast());
    // SAFETY: the pointer leads to as many octets as `len` says, which live across the call.
    let status = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, value, &raw mut len) };
    if status == 0 { Ok(u64::from(words[8])) } else { Err(io::Error::last_os_error()) }
}

/// A UDP socket of the group (SO_REUSEPORT) on `address`.
pub(crate) fn socket_of_group(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: socket takes numbers only.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
    let socket = unsafe { UdpSocket::from_raw_fd(fd) };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, &1)?;
    let status = match address {
        SocketAddr::V4(address) => {
            let raw = sockaddr(address);
            let len = size_of_val(&raw) as libc::socklen_t;
            // SAFETY: the pointer leads to an address of this length that lives across the call.
            unsafe { libc::bind(fd, (&raw const raw).cast(), len) }
        }
        SocketAddr::V6(address) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: 0,
            };
            let len = size_of_val(&raw) as libc::socklen_t;
            // SAFETY: as above.
            unsafe { libc::bind(fd, (&raw const raw).cast(), len) }
        }
    };
    if status == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Lets a socket refuse whatever reaches it.
pub(crate) fn refuse_all(socket: &UdpSocket) -> io::Result<()> {
    // BPF_RET | BPF_K: keep no octet.
    let mut program = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn set_option<T>(socket: &UdpSocket, level: i32, option: i32, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer leads to a value that lives across the call, and the length is its size; what it leads to in
    // turn is only read.
    let status =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), len) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Connects from an address of this machine, as another client would, in no more time than `limit`.
pub(crate) fn connect_from(source: Ipv4Addr, target: SocketAddrV4, limit: Duration) -> io::Result<TcpStream> {
    let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointer.
    let fd = unsafe { libc::socket(libc::AF_INET, flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
    let stream = TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    // The send timeout bounds connect(2) too (socket(7)).
    stream.set_write_timeout(Some(limit))?;
    let (local, remote) = (sockaddr(SocketAddrV4::new(source, 0)), sockaddr(target));
    let len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the pointer leads to a whole sockaddr_in that lives across the call, and the length is its size.
    let status = unsafe { libc::bind(stream.as_raw_fd(), (&raw const local).cast(), len) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    let status = unsafe { libc::connect(stream.as_raw_fd(), (&raw const remote).cast(), len) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stream)
}

fn sockaddr(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: address.ip().to_bits().to_be() },
        sin_zero: [0; 8],
    }
}

/// An AF_XDP socket with a receive ring, which is all that a map of such sockets asks for. It is bound to nothing.
///
/// # Errors
/// EPERM without CAP_NET_RAW.
pub fn xdp_socket() -> io::Result<OwnedFd> {
    let entries: u32 = 64;
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let (value, length) = ((&raw const entries).cast(), size_of::<u32>() as libc::socklen_t);
    // SAFETY: the pointer leads to a whole word that lives across the call, and the length is its size.
    let status = unsafe { libc::setsockopt(fd, libc::SOL_XDP, libc::XDP_RX_RING, value, length) };
    if status == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Writes nonsense over the frames that a process has lent to the kernel for what comes, on each of its descriptors
/// of an AF_XDP socket with so many: as if they had been lost. Returns how many there were.
///
/// # Errors
/// Who may not trace the process may not have its descriptors (EPERM).
pub fn lose_lent_frames(pid: u32, frames: usize) -> io::Result<usize> {
    // SAFETY: plain integers.
    let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let mut count = 0;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        // SAFETY: plain integers, and a descriptor that is open.
        let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
        let copy = owned(copy)?;
        if option::<i32>(&copy, libc::SOL_SOCKET, libc::SO_DOMAIN).ok() == Some(libc::AF_XDP) {
            lose_frames(&copy, frames)?;
            count += 1;
        }
    }
    Ok(count)
}

fn lose_frames(socket: &OwnedFd, frames: usize) -> io::Result<()> {
    let offsets = option::<libc::xdp_mmap_offsets>(socket, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)?;
    let (start, at) = (offsets.fr.desc as usize, libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t);
    let length = start + frames * size_of::<u64>();
    let (nowhere, rights) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: a new mapping, where the kernel likes it.
    let ring = unsafe { libc::mmap(nowhere, length, rights, libc::MAP_SHARED, socket.as_raw_fd(), at) };
    if ring == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    for byte in start..length {
        // SAFETY: within the mapping.
        let place = unsafe { ring.cast::<u8>().add(byte) };
        // SAFETY: mapped and writable; the kernel takes any number for an address, and looks whether it is one.
        unsafe { place.write_volatile(0xff) };
    }
    // SAFETY: the whole of the mapping, to which nothing leads any more.
    let status = unsafe { libc::munmap(ring, length) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A value that the kernel gives for a socket.
fn option<T: Plain>(socket: &OwnedFd, level: i32, name: i32) -> io::Result<T> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    let into = value.as_mut_ptr().cast();
    // SAFETY: the value is live and writable, and `length` is its size.
    let status = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, into, &raw mut length) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `Plain` is valid for every bit pattern, and what the kernel has not written is zero.
    Ok(unsafe { value.assume_init() })
}

/// A structure of plain integers.
///
/// # Safety
/// Every bit pattern is valid.
unsafe trait Plain: Copy {}
// SAFETY: an integer.
unsafe impl Plain for i32 {}
// SAFETY: integers only.
unsafe impl Plain for libc::xdp_mmap_offsets {}

/// The descriptor that a system call has returned.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(result) {
        // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
