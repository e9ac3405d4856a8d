//! Programs that choose a socket of a SO_REUSEPORT group, or refuse what reaches one (socket(7)).
//!
//! Owns: attaching programs, and the kernel's count of what a socket refused. Does not own: the programs
//! (`blitz_ebpf_common::cbpf`), the group's sockets (the supervisor).
//!
//! No right is needed for any of this.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use blitz_ebpf_common::cbpf::{Instruction, REFUSE_ALL};

/// Lets `program` choose the socket for each datagram to the group that `socket` is in. Replaces the one before in
/// one step: a datagram meets the one or the other.
///
/// Its result is the index of a socket, in the order in which they were bound. For an index that none has the kernel
/// chooses by a hash, so a program must not give one.
///
/// # Errors
/// `EINVAL`: the kernel refuses the program, or the socket is in no group. `ENOMEM`: the program is longer than
/// `net.core.optmem_max` allows. `ENOPROTOOPT` before Linux 4.5.
pub fn choose(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_REUSEPORT_CBPF, program)
}

/// The same with a loaded `sk_reuseport` program, which may belong to another process.
///
/// # Errors
/// `EINVAL`: it is no such program, or the socket is in no group.
pub fn choose_by(socket: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let program: libc::c_int = program.as_raw_fd();
    let (from, length) = ((&raw const program).cast(), size_of_val(&program) as libc::socklen_t);
    let option = libc::SO_ATTACH_REUSEPORT_EBPF;
    // SAFETY: the descriptor's number is live and of this length; the kernel only reads it.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, from, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes `socket` refuse every datagram that reaches it. The kernel counts them, see [`refused`], and tells nobody
/// else: a sender gets no ICMP error.
///
/// # Errors
/// What setsockopt(2) reports.
pub fn refuse_all(socket: BorrowedFd<'_>) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_FILTER, &REFUSE_ALL)
}

/// Datagrams that reached `socket` and were not put into its queue: refused by its filter, or no room. Wraps.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 4.12.
pub fn refused(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // SK_MEMINFO_DROPS is the last of the nine words that SO_MEMINFO gives (linux/sock_diag.h).
    let mut words = [0u32; 9];
    let mut length = size_of_val(&words) as libc::socklen_t;
    let into = words.as_mut_ptr().cast();
    // SAFETY: the words are live and writable, and `length` is their size.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, into, &raw mut length)
    };
    if result == 0 { Ok(words[8]) } else { Err(io::Error::last_os_error()) }
}

fn attach(socket: BorrowedFd<'_>, option: i32, program: &[Instruction]) -> io::Result<()> {
    let count = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // `struct sock_filter`, field by field: the kernel reads the program as it lies here.
    const {
        assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>());
        assert!(align_of::<Instruction>() == align_of::<libc::sock_filter>());
        assert!(std::mem::offset_of!(Instruction, jt) == std::mem::offset_of!(libc::sock_filter, jt));
        assert!(std::mem::offset_of!(Instruction, jf) == std::mem::offset_of!(libc::sock_filter, jf));
        assert!(std::mem::offset_of!(Instruction, k) == std::mem::offset_of!(libc::sock_filter, k));
    }
    let filter = program.as_ptr().cast::<libc::sock_filter>().cast_mut();
    let program = libc::sock_fprog { len: count, filter };
    let length = size_of_val(&program) as libc::socklen_t;
    let from = (&raw const program).cast();
    // SAFETY: the description is live and of this length, and it names `count` live instructions; the kernel only
    // reads both, though the pointer's type has no `const`.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, from, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
