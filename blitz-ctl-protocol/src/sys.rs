//! Bytes and descriptors over a Unix stream socket (unix(7), SCM_RIGHTS), and what a socket says about
//! itself and its peer.
//!
//! Owns: one sendmsg(2), recvmsg(2), connect(2) or getsockopt(2). Does not own: frames (see [`crate::frame`],
//! and the channel between supervisor and workers in `blitz-dataplane`), or what a peer may ask.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Most descriptors of one message: the kernel's SCM_MAX_FD.
pub const FDS_MAX: usize = 253;

const FD_BYTES_MAX: usize = FDS_MAX * size_of::<RawFd>();
// One word more than CMSG_SPACE(FD_BYTES_MAX), so that rounding never matters.
const CONTROL_WORDS: usize = (size_of::<libc::cmsghdr>() + FD_BYTES_MAX) / 8 + 2;

/// Room for the control part of a message, aligned for a `cmsghdr`.
type Control = [u64; CONTROL_WORDS];

/// Sends some of `bytes` (not empty) with all of `fds` attached to the first of them. Returns how many bytes
/// went; when that is at least one, all descriptors went too.
///
/// # Errors
/// EINVAL for more than [`FDS_MAX`] descriptors, else what sendmsg(2) reports; EPIPE without a signal.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.len() > FDS_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut control: Control = [0; CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut message = empty_message(&mut iov);
    if !fds.is_empty() {
        let data_len = u32::try_from(size_of_val(fds)).unwrap_or(u32::MAX);
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(data_len) } as _;
        // SAFETY: msg_control points to `control`, which is larger than a cmsghdr.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        let value = libc::cmsghdr {
            // SAFETY: CMSG_LEN only computes.
            cmsg_len: unsafe { libc::CMSG_LEN(data_len) } as _,
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        };
        // SAFETY: `header` is the aligned start of `control`, which is larger than a cmsghdr.
        unsafe { header.write(value) };
        // SAFETY: the data of a header within `control` begins within `control`.
        let data = unsafe { libc::CMSG_DATA(header) };
        // A BorrowedFd is a transparent descriptor number, so the slice is already what the kernel wants.
        // SAFETY: `control` has room for FDS_MAX descriptors after the header, and there are no more than
        // that.
        unsafe { std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), data, size_of_val(fds)) };
    }
    // SAFETY: all pointers in `message` lead to locals or to `bytes`, which live through the call; the kernel
    // only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives into `bytes` (not empty) and appends received descriptors, close-on-exec, to `fds`. Returns the
/// number of bytes; 0 is the end of the stream.
///
/// # Errors
/// What recvmsg(2) reports, and `InvalidData` when the kernel had to drop descriptors because this process has
/// none left (those that arrived are closed).
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut control: Control = [0; CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut message = empty_message(&mut iov);
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: all pointers in `message` lead to live, writable locals or to `bytes`, with their true lengths.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    let before = fds.len();
    // SAFETY: the kernel has filled msg_control, which is `control`, and set its length.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: a header that CMSG_FIRSTHDR or CMSG_NXTHDR returns lies whole within `control` and is
        // aligned.
        let value = unsafe { header.read() };
        if value.cmsg_level == libc::SOL_SOCKET && value.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN only computes.
            let overhead = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = (value.cmsg_len as usize).saturating_sub(overhead) / size_of::<RawFd>();
            // SAFETY: the data of a header within `control` begins within `control`.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            for index in 0..count {
                // SAFETY: the kernel wrote `count` descriptors here, as cmsg_len says.
                let slot = unsafe { data.add(index) };
                // SAFETY: as above; the read does not need alignment.
                let fd = unsafe { slot.read_unaligned() };
                // SAFETY: SCM_RIGHTS installs new descriptors in this process, owned by the receiver.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: `header` was returned by these macros for this message.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        fds.truncate(before);
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "descriptors were lost: too many are open in this process",
        ));
    }
    Ok(received)
}

/// Who is at the other end of a Unix socket, as of its connect(2) (SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process.
    pub pid: u32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

/// The credentials of the peer of a connected Unix socket. The kernel took them from the peer at its
/// connect(2), so they cannot be forged and do not follow a later change of user.
///
/// # Errors
/// ENOTCONN and the like: the socket is no connected Unix socket.
pub fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let mut value = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `value` is live and writable and `len` is its size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // Without a peer (a socket that listens) the kernel answers with process 0 and user -1, which is nobody.
    let pid = u32::try_from(value.pid).unwrap_or(0);
    Ok(Credentials { pid, uid: value.uid, gid: value.gid })
}

/// One integer of a socket, such as SO_DOMAIN, SO_TYPE or SO_PROTOCOL of level SOL_SOCKET.
///
/// # Errors
/// ENOTSOCK when `fd` is something else.
pub fn socket_option(fd: BorrowedFd<'_>, option: i32) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is live and writable and `len` is its size; the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut len)
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Connects to the Unix socket at `path` and waits at most `timeout` (not zero) while its queue is full. The
/// stream's write timeout is `timeout` afterwards.
///
/// # Errors
/// ENAMETOOLONG for a path of more than 107 bytes, `WouldBlock` when the time is over, else what connect(2)
/// reports: ENOENT, ECONNREFUSED, EACCES.
pub fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
    let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    stream.set_write_timeout(Some(timeout))?;
    let mut address =
        libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    let bytes = path.as_os_str().as_bytes();
    // One byte stays zero: the end of the path.
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) || bytes.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (slot, byte) in address.sun_path.iter_mut().zip(bytes) {
        *slot = libc::c_char::from_ne_bytes([*byte]);
    }
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `address` is live and `len` is its size; the kernel only reads it.
    let result = unsafe { libc::connect(stream.as_raw_fd(), (&raw const address).cast(), len) };
    if result == 0 { Ok(stream) } else { Err(io::Error::last_os_error()) }
}

fn empty_message(iov: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: msghdr is made of integers and pointers; all zeroes is a valid, empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iov;
    message.msg_iovlen = 1;
    message
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_with_the_first_byte_and_work() {
        let (a, b) = UnixStream::pair().expect("pair");
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        let many = vec![writer.as_fd(); FDS_MAX];
        assert_eq!(send(a.as_fd(), b"abc", &many).expect("send"), 3);
        assert!(send(a.as_fd(), b"x", &vec![writer.as_fd(); FDS_MAX + 1]).is_err());
        drop(writer);
        let mut fds = Vec::new();
        let mut byte = [0; 1];
        assert_eq!(receive(b.as_fd(), &mut byte, &mut fds).expect("receive"), 1);
        assert_eq!((byte, fds.len()), (*b"a", FDS_MAX));
        let mut rest = [0; 8];
        assert_eq!(receive(b.as_fd(), &mut rest, &mut fds).expect("receive"), 2);
        assert_eq!(fds.len(), FDS_MAX);
        let mut passed = std::fs::File::from(fds.pop().expect("descriptor"));
        passed.write_all(b"through").expect("write");
        drop((passed, fds));
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("all copies are closed");
        assert_eq!(text, "through");
        drop(a);
        assert_eq!(receive(b.as_fd(), &mut rest, &mut Vec::new()).expect("end"), 0);
        assert_eq!(send(b.as_fd(), b"x", &[]).expect_err("closed").raw_os_error(), Some(libc::EPIPE));
    }

    #[test]
    fn a_peer_is_who_it_is() {
        let (a, _b) = UnixStream::pair().expect("pair");
        let peer = peer_credentials(a.as_fd()).expect("credentials");
        assert_eq!(peer.pid, std::process::id());
        let (reader, _writer) = std::io::pipe().expect("pipe");
        assert!(peer_credentials(reader.as_fd()).is_err());
    }

    #[test]
    fn a_socket_names_its_domain_and_type() {
        let socket = std::net::UdpSocket::bind(("::1", 0)).expect("bind");
        assert_eq!(socket_option(socket.as_fd(), libc::SO_DOMAIN).expect("domain"), libc::AF_INET6);
        assert_eq!(socket_option(socket.as_fd(), libc::SO_TYPE).expect("type"), libc::SOCK_DGRAM);
        assert_eq!(socket_option(socket.as_fd(), libc::SO_PROTOCOL).expect("protocol"), libc::IPPROTO_UDP);
    }

    #[test]
    fn connecting_waits_no_longer_than_it_was_told() {
        let directory = std::env::temp_dir().join(format!("blitz-ctl-protocol-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("directory");
        let path = directory.join("s");
        let missing = connect(&path, Duration::from_secs(1)).expect_err("nothing is there");
        assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
        let long = directory.join("x".repeat(108));
        let long = connect(&long, Duration::from_secs(1)).expect_err("too long");
        assert_eq!(long.raw_os_error(), Some(libc::ENAMETOOLONG));
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("listen");
        let mut streams = Vec::new();
        let started = std::time::Instant::now();
        // Nobody accepts: the queue fills up, and the next connect waits.
        let full = loop {
            match connect(&path, Duration::from_millis(50)) {
                Ok(stream) => streams.push(stream),
                Err(error) => break error,
            }
            assert!(streams.len() < 10_000, "the queue never fills");
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert!(started.elapsed() < Duration::from_secs(20));
        drop(listener);
        std::fs::remove_dir_all(&directory).expect("remove");
    }
}
