//! Sockets: creation, options, addresses (socket(2), setsockopt(2), getpeername(2)).

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A socket address as the kernel reads it, with its length.
#[derive(Clone, Copy)]
pub struct RawAddress {
    storage: libc::sockaddr_in6,
    len: libc::socklen_t,
}

// The IPv4 form is written into the same storage: it must fit, and both start with the family.
const _: () = assert!(size_of::<libc::sockaddr_in>() <= size_of::<libc::sockaddr_in6>());

impl RawAddress {
    /// The kernel's form of `address` (ports and addresses in network byte order).
    pub fn new(address: SocketAddr) -> Self {
        // An all-zero sockaddr_in6 is a valid value of plain integers.
        let mut raw = Self::empty();
        match address {
            SocketAddr::V4(v4) => {
                let inet = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is larger than a sockaddr_in (asserted above) and at least as aligned.
                unsafe { std::ptr::from_mut(&mut raw.storage).cast::<libc::sockaddr_in>().write(inet) };
                raw.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(v6) => {
                raw.storage.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                raw.storage.sin6_port = v6.port().to_be();
                raw.storage.sin6_addr = libc::in6_addr { s6_addr: v6.ip().octets() };
                raw.storage.sin6_scope_id = v6.scope_id();
                raw.storage.sin6_flowinfo = v6.flowinfo();
                raw.len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
        raw
    }

    /// Room for the kernel to write an address into.
    pub fn empty() -> Self {
        Self {
            storage: libc::sockaddr_in6 {
                sin6_family: 0,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
                sin6_scope_id: 0,
            },
            len: size_of::<libc::sockaddr_in6>() as libc::socklen_t,
        }
    }

    /// Pointer for the kernel to read.
    pub fn as_ptr(&self) -> *const libc::sockaddr {
        std::ptr::from_ref(&self.storage).cast()
    }

    /// Pointer for the kernel to write.
    pub fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        std::ptr::from_mut(&mut self.storage).cast()
    }

    /// Length in bytes.
    pub fn len(&self) -> libc::socklen_t {
        self.len
    }

    /// Whether no address has been written.
    pub fn is_empty(&self) -> bool {
        self.storage.sin6_family == 0
    }

    /// The address, when it is IPv4 or IPv6.
    pub fn to_socket_addr(&self) -> Option<SocketAddr> {
        match i32::from(self.storage.sin6_family) {
            libc::AF_INET => {
                // SAFETY: the family says that the kernel (or `new`) wrote a sockaddr_in here.
                let inet = unsafe { std::ptr::from_ref(&self.storage).cast::<libc::sockaddr_in>().read() };
                let ip = Ipv4Addr::from(inet.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(inet.sin_port)))
            }
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(self.storage.sin6_addr.s6_addr);
                Some(SocketAddr::V6(std::net::SocketAddrV6::new(
                    ip,
                    u16::from_be(self.storage.sin6_port),
                    self.storage.sin6_flowinfo,
                    self.storage.sin6_scope_id,
                )))
            }
            _ => None,
        }
    }
}

/// Makes a socket; close-on-exec always, non-blocking when asked.
///
/// # Errors
/// `EMFILE` and `ENFILE` when descriptors run out, `EAFNOSUPPORT` when the host has no such family.
pub fn socket(address: SocketAddr, kind: libc::c_int, nonblocking: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: socket(2) takes plain integers.
    let fd = unsafe { libc::socket(family, kind | flags, 0) };
    owned(fd)
}

/// A TCP socket to connect with; `TCP_NODELAY`, so that a body's first piece does not wait for the
/// acknowledgement of its head.
///
/// # Errors
/// As for [`socket`].
pub fn stream_socket(address: SocketAddr, nonblocking: bool) -> io::Result<OwnedFd> {
    let fd = socket(address, libc::SOCK_STREAM, nonblocking)?;
    set_option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    Ok(fd)
}

/// Sets an integer socket option.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is a live c_int of the size given; the kernel copies it during the call.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), size) };
    check(result).map(drop)
}

/// Binds a socket.
///
/// # Errors
/// `EADDRINUSE`, `EACCES` (a port below 1024 without rights), `EADDRNOTAVAIL`.
pub fn bind(fd: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    let raw = RawAddress::new(address);
    // SAFETY: pointer and length describe a live address; the kernel copies it during the call.
    let result = unsafe { libc::bind(fd.as_raw_fd(), raw.as_ptr(), raw.len()) };
    check(result).map(drop)
}

/// Starts listening; `backlog` is a count of established, not yet accepted connections.
///
/// # Errors
/// What listen(2) says.
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: listen(2) takes plain integers.
    let result = unsafe { libc::listen(fd.as_raw_fd(), backlog) };
    check(result).map(drop)
}

/// A TCP listener: `SO_REUSEADDR`, `SO_REUSEPORT` when asked, and `TCP_NODELAY`, which accepted
/// sockets inherit, so that no call is needed for each of them.
///
/// # Errors
/// As for [`socket`], [`bind`] and [`listen`].
pub fn tcp_listener(address: SocketAddr, reuse_port: bool, backlog: i32) -> io::Result<OwnedFd> {
    let fd = socket(address, libc::SOCK_STREAM, false)?;
    set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if reuse_port {
        set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    set_option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    if address.is_ipv6() {
        set_option(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    bind(fd.as_fd(), address)?;
    listen(fd.as_fd(), backlog)?;
    Ok(fd)
}

/// The address at the other end.
///
/// # Errors
/// `ENOTCONN` when it is gone.
pub fn peer_address(fd: RawFd) -> io::Result<SocketAddr> {
    address_by(|storage, len| {
        // SAFETY: storage and len describe room for an address; the kernel writes at most `len` bytes.
        unsafe { libc::getpeername(fd, storage, len) }
    })
}

/// The address at this end.
///
/// # Errors
/// What getsockname(2) says.
pub fn local_address(fd: RawFd) -> io::Result<SocketAddr> {
    address_by(|storage, len| {
        // SAFETY: storage and len describe room for an address; the kernel writes at most `len` bytes.
        unsafe { libc::getsockname(fd, storage, len) }
    })
}

fn address_by(call: impl FnOnce(*mut libc::sockaddr, *mut libc::socklen_t) -> i32) -> io::Result<SocketAddr> {
    let mut raw = RawAddress::empty();
    let mut len = raw.len();
    check(call(raw.as_mut_ptr(), &raw mut len))?;
    raw.to_socket_addr().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

/// Makes a descriptor non-blocking.
///
/// # Errors
/// What fcntl(2) says.
pub fn set_nonblocking(fd: RawFd, nonblocking: bool) -> io::Result<()> {
    // SAFETY: F_GETFL takes and returns plain integers.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    let wanted = if nonblocking { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    if wanted == flags {
        return Ok(());
    }
    // SAFETY: F_SETFL takes plain integers.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, wanted) }).map(drop)
}

/// The pending error of a socket (`SO_ERROR`), as an errno; zero when there is none.
pub fn pending_error(fd: RawFd) -> i32 {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let pointer = std::ptr::from_mut(&mut value).cast();
    // SAFETY: value and len describe a live c_int for the kernel to write.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, pointer, &raw mut len) };
    if result == 0 { value } else { io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) }
}

/// Makes every close of the socket a reset with nothing kept (`SO_LINGER` of zero).
pub fn reset_on_close(fd: RawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the value is a live linger of the size given; the kernel copies it during the call.
    // A failure only means an orderly close, so the result is not looked at.
    unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, std::ptr::from_ref(&linger).cast(), size)
    };
}

/// Closes a descriptor that was taken out of its owner.
pub fn close(fd: RawFd) {
    // SAFETY: the caller owned `fd` and gives it up here; it is not used afterwards.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn monotonic_ns() -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the kernel writes one timespec; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, time.as_mut_ptr()) };
    // SAFETY: clock_gettime with a valid clock and pointer has filled it.
    let time = unsafe { time.assume_init() };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    check(fd)?;
    // SAFETY: the call just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
