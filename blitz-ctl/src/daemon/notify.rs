//! Telling the service manager how far we are (sd_notify(3)).
//!
//! Owns: one datagram to `NOTIFY_SOCKET`. Does not own: when it is sent (see [`super::run`]).
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `state`, such as `READY=1`, to the service manager; does nothing without one.
pub fn send(state: &str) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send_to(&socket, state)
    {
        log::warn!("the service manager was not told {state:?}: {error}");
    }
}

fn send_to(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        Some((b'/', _)) => SocketAddr::from_pathname(socket)?,
        // vsock and the like, which only virtual machines' managers use.
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "NOTIFY_SOCKET is no Unix socket")),
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_hears_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bind");
        send_to(path.as_os_str(), "READY=1").expect("send");
        let mut buffer = [0; 32];
        let count = manager.recv(&mut buffer).expect("receive");
        assert_eq!(&buffer[..count], b"READY=1");
        let name = format!("blitz-ctl-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("name");
        let manager = UnixDatagram::bind_addr(&address).expect("bind");
        send_to(OsStr::new(&format!("@{name}")), "STOPPING=1").expect("send");
        let count = manager.recv(&mut buffer).expect("receive");
        assert_eq!(&buffer[..count], b"STOPPING=1");
        assert!(send_to(OsStr::new("vsock:2:1"), "READY=1").is_err());
    }
}
