//! The supervisor's sockets between workers: an inbox for each, into which all others put datagrams.
//!
//! Owns: the sockets, for as long as the gateway runs; so what waits for a worker that dies is its successor's. Does
//! not own: what is sent over them (`crate::http3::relay`).
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use crate::sys::net;

/// Workers that reach each other, at most (count): each holds one descriptor for each of them, and they come with its
/// first message, which carries [`super::channel::FDS_MAX`]. Where there are more, none reaches another.
pub const RELAYED_WORKERS_MAX: u32 = 128;

/// Bytes that may wait for one worker, with what the kernel adds to each datagram (about 1 KiB). The kernel cuts it to
/// `net.core.wmem_max`. What does not fit is refused at once: a full inbox never holds its sender up.
const WAITING_BYTES_MAX: i32 = 1024 * 1024;

/// The pairs, by worker: the end that it reads, the end that the others write.
#[derive(Debug, Default)]
pub struct Relays(Vec<(UnixDatagram, UnixDatagram)>);

impl Relays {
    /// For `workers` workers; none for a single one, which has nobody to reach.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn new(workers: u32) -> io::Result<Self> {
        if !(2..=RELAYED_WORKERS_MAX).contains(&workers) {
            return Ok(Self::default());
        }
        let pair = |_| {
            let (inbox, outbox) = UnixDatagram::pair()?;
            inbox.set_nonblocking(true)?;
            outbox.set_nonblocking(true)?;
            net::set_option(outbox.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, WAITING_BYTES_MAX)?;
            Ok((inbox, outbox))
        };
        (0..workers).map(pair).collect::<io::Result<_>>().map(Self)
    }

    /// The sockets of `worker`: its inbox, then the way into each one's. None when it reaches nobody.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn sockets(&self, worker: u32) -> io::Result<Vec<OwnedFd>> {
        let Some((inbox, _)) = self.0.get(worker as usize) else { return Ok(Vec::new()) };
        let outboxes = self.0.iter().map(|(_, outbox)| outbox);
        std::iter::once(inbox).chain(outboxes).map(|socket| socket.as_fd().try_clone_to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    fn ends(relays: &Relays, worker: u32) -> Vec<UnixDatagram> {
        relays.sockets(worker).expect("copies").into_iter().map(UnixDatagram::from).collect()
    }

    #[test]
    fn what_waits_outlives_its_reader_and_is_bounded() {
        let relays = Relays::new(3).expect("sockets");
        let (first, second) = (ends(&relays, 0), ends(&relays, 1));
        assert_eq!((first.len(), second.len(), ends(&relays, 3).len()), (4, 4, 0));
        first[1 + 1].send(b"to the second").expect("room");
        drop(second);
        let successor = ends(&relays, 1);
        let mut buffer = [0; 64];
        let length = successor[0].recv(&mut buffer).expect("it has waited");
        assert_eq!(&buffer[..length], b"to the second");
        let full = loop {
            if let Err(error) = first[1 + 1].send(&[0; 1200]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        // That of another is not full.
        first[1 + 2].send(b"x").expect("room");
        assert!(successor[0].recv(&mut buffer).is_ok());
    }

    #[test]
    fn nobody_is_reached_by_one_worker_nor_by_too_many() {
        for workers in [1, RELAYED_WORKERS_MAX + 1] {
            assert!(ends(&Relays::new(workers).expect("nothing to make"), 0).is_empty());
        }
    }
}
