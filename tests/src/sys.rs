//! System calls that the standard library lacks, each behind a safe function.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

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

/// Connects from an address of this machine, as another client would.
pub(crate) fn connect_from(source: Ipv4Addr, target: SocketAddrV4) -> io::Result<TcpStream> {
    let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointer.
    let fd = unsafe { libc::socket(libc::AF_INET, flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let (local, remote) = (sockaddr(SocketAddrV4::new(source, 0)), sockaddr(target));
    let len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the pointer leads to a whole sockaddr_in that lives across the call, and the length is its size.
    let status = unsafe { libc::bind(fd.as_raw_fd(), (&raw const local).cast(), len) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    let status = unsafe { libc::connect(fd.as_raw_fd(), (&raw const remote).cast(), len) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TcpStream::from(fd))
}

fn sockaddr(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: address.ip().to_bits().to_be() },
        sin_zero: [0; 8],
    }
}
