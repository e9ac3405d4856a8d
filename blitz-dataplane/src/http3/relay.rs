//! Datagrams that reached a worker and belong to another: passed on, and taken.
//!
//! The kernel merges datagrams that share both addresses and ports, and steers them by the first. Those behind it may
//! be of other connections, of other workers. They go to their owner's inbox, a datagram socket of the supervisor's,
//! with the addresses that they came with:
//!
//! ```text
//! octets 0 .. 22    where it came from    (IPv6 address, IPv4 mapped (16) | port (2) | scope (4); network order)
//!       22 .. 44    where it was sent to
//!       44 .. 66    where the listener is bound
//!       66 ..       the datagram
//! ```
//! What was passed on is never passed on again, and who passes it on answers nothing: only its owner knows what is due.
//!
//! Owns: the sockets' ends of a worker, the form of a message. Does not own: making the sockets (`process::relays`),
//! whose a datagram is (`keys.rs`), what becomes of it (`listener.rs`).

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::rc::{Rc, Weak};

use super::listener::{QuicListener, Way};
use crate::afxdp::port::Hop;
use crate::metrics::names::Metric;
use crate::runtime::{Handle, yield_now};
use crate::segment::WorkerRows;

/// Bytes of an address in a message.
const ADDRESS_BYTES: usize = 16 + 2 + 4;

/// Bytes before the datagram.
const HEADER_BYTES: usize = 3 * ADDRESS_BYTES;

/// Bytes of the longest message: no datagram is longer than this.
const MESSAGE_BYTES_MAX: usize = HEADER_BYTES + 65_535;

/// Messages that are taken before others get their turn (count).
const MESSAGES_MAX: u32 = 64;

/// A worker's way to the other workers, and theirs to it.
pub struct Relay {
    /// `None` when there are no others.
    inbox: Option<UnixDatagram>,
    /// By the number of their worker.
    outboxes: Vec<UnixDatagram>,
    /// Where a message is put together.
    message: RefCell<Box<[u8]>>,
    listeners: RefCell<Vec<Weak<QuicListener>>>,
}

/// The addresses that a datagram came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    /// The listener's own; differs from `to` when that is bound to every address of the host.
    pub(super) bound: SocketAddr,
}

impl Relay {
    /// Takes over the sockets: the worker's inbox, then the way to each worker; none when it reaches nobody.
    pub fn adopt(sockets: Vec<OwnedFd>) -> Rc<Self> {
        let mut sockets = sockets.into_iter().map(UnixDatagram::from);
        let inbox = sockets.next();
        let bytes = if inbox.is_some() { MESSAGE_BYTES_MAX } else { 0 };
        Rc::new(Self {
            inbox,
            outboxes: sockets.collect(),
            message: RefCell::new(vec![0; bytes].into_boxed_slice()),
            listeners: RefCell::default(),
        })
    }

    /// Names a listener, which takes what others pass on to it for as long as it lives.
    pub(super) fn add(&self, listener: &Rc<QuicListener>) {
        let mut listeners = self.listeners.borrow_mut();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Rc::downgrade(listener));
    }

    /// Gives a datagram that came by AF_XDP to the listener that it is for; whether there is one.
    pub fn take_framed(&self, datagram: &mut [u8], from: SocketAddr, to: SocketAddr, hop: &Hop) -> bool {
        let listeners = self.listeners.borrow();
        let listener = listeners.iter().filter_map(Weak::upgrade).find(|listener| listener.is_for(to));
        drop(listeners);
        listener.map(|listener| listener.take_framed(datagram, from, to, hop)).is_some()
    }

    /// Passes a datagram on to `worker`; what became of it.
    pub(super) fn pass_on(&self, worker: u32, addresses: &Addresses, datagram: &[u8]) -> Metric {
        let Some(outbox) = self.outboxes.get(worker as usize) else { return Metric::QuicStranger };
        let mut message = self.message.borrow_mut();
        let Some(length) = write(&mut message, addresses, datagram) else { return Metric::QuicMalformed };
        // It never waits: what does not fit is lost, as on the way, and QUIC sends it again.
        match outbox.send(message.get(..length).unwrap_or_default()) {
            Ok(_) => Metric::QuicForwarded,
            Err(_) => Metric::QuicForwardFull,
        }
    }

    /// Takes what others pass on, to the worker's end.
    pub async fn serve(self: Rc<Self>, handle: Handle, rows: WorkerRows) {
        let Some(inbox) = &self.inbox else { return };
        let mut readiness = handle.readiness(inbox.as_raw_fd());
        let mut message = vec![0; MESSAGE_BYTES_MAX].into_boxed_slice();
        while let Ok(()) = readiness.ready().await {
            let mut taken = 0;
            loop {
                match inbox.recv(&mut message) {
                    Ok(length) => rows.add(self.take(message.get_mut(..length).unwrap_or_default()), 1),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => log::debug!("a datagram of another worker: {error}"),
                }
                taken += 1;
                if taken % MESSAGES_MAX == 0 {
                    yield_now().await;
                }
            }
        }
        log::error!("the inbox cannot be watched: what other workers pass on is lost");
    }

    fn take(&self, message: &mut [u8]) -> Metric {
        let Some((addresses, datagram)) = read(message) else { return Metric::QuicRelayedDropped };
        let listeners = self.listeners.borrow();
        let mut listeners = listeners.iter().filter_map(Weak::upgrade);
        // It may have been closed, or not opened yet.
        let Some(listener) = listeners.find(|listener| listener.is_bound_to(addresses.bound)) else {
            return Metric::QuicRelayedDropped;
        };
        match listener.datagram(datagram, &addresses, Way::Relayed) {
            Metric::QuicDelivered => Metric::QuicRelayedDelivered,
            Metric::QuicNew => Metric::QuicRelayedNew,
            Metric::QuicReset | Metric::QuicRetry | Metric::QuicVersion => Metric::QuicRelayedAnswered,
            _ => Metric::QuicRelayedDropped,
        }
    }
}

/// Puts a message together; its length. `None` when there is no room for it.
fn write(message: &mut [u8], addresses: &Addresses, datagram: &[u8]) -> Option<usize> {
    let (header, room) = message.split_at_mut_checked(HEADER_BYTES)?;
    let Addresses { from, to, bound } = addresses;
    for (room, address) in header.chunks_exact_mut(ADDRESS_BYTES).zip([from, to, bound]) {
        let (ip, scope) = match address {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        let fields = ip.octets().into_iter().chain(address.port().to_be_bytes()).chain(scope.to_be_bytes());
        room.iter_mut().zip(fields).for_each(|(slot, octet)| *slot = octet);
    }
    room.get_mut(..datagram.len())?.copy_from_slice(datagram);
    Some(HEADER_BYTES + datagram.len())
}

/// Takes a message apart; `None` when it is none.
fn read(message: &mut [u8]) -> Option<(Addresses, &mut [u8])> {
    let (header, datagram) = message.split_at_mut_checked(HEADER_BYTES)?;
    let mut addresses = header.chunks_exact(ADDRESS_BYTES).map(|octets| {
        let (ip, rest) = octets.split_first_chunk::<16>()?;
        let (port, rest) = rest.split_first_chunk()?;
        let (port, scope) = (u16::from_be_bytes(*port), u32::from_be_bytes(*rest.first_chunk()?));
        let ip = Ipv6Addr::from(*ip);
        Some(match ip.to_canonical() {
            IpAddr::V4(v4) => SocketAddr::new(v4.into(), port),
            IpAddr::V6(_) => SocketAddrV6::new(ip, port, 0, scope).into(),
        })
    });
    let (from, to, bound) = (addresses.next()??, addresses.next()??, addresses.next()??);
    Some((Addresses { from, to, bound }, datagram))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_every_kind_of_address() {
        let (v4, v6) = (SocketAddr::from(([192, 0, 2, 1], 4433)), SocketAddr::from((Ipv6Addr::LOCALHOST, 1)));
        let scoped = SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), 65_535, 0, 7).into();
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 443));
        let mut message = [0xaa; HEADER_BYTES + 8];
        for (from, to, bound) in [(v4, v4, SocketAddr::from(([0; 4], 443))), (scoped, v6, any)] {
            let addresses = Addresses { from, to, bound };
            for datagram in [&b""[..], b"datagram"] {
                let length = write(&mut message, &addresses, datagram).expect("room");
                let mut copy = message[..length].to_vec();
                assert_eq!(read(&mut copy), Some((addresses, datagram.to_vec().as_mut_slice())));
            }
            assert_eq!(write(&mut message, &addresses, b"too large"), None);
        }
        assert_eq!(read(&mut [0; HEADER_BYTES - 1]), None);
    }

    #[test]
    fn who_reaches_nobody_passes_nothing_on() {
        let address = SocketAddr::from(([192, 0, 2, 1], 4433));
        let addresses = Addresses { from: address, to: address, bound: address };
        assert_eq!(Relay::adopt(Vec::new()).pass_on(0, &addresses, b"x"), Metric::QuicStranger);
    }
}
