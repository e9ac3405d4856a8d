//! Datagrams of the simulated network: late, lost, doubled, out of order, too large, or for an address that is no more.
//!
//! Owns: sockets' mailboxes, the way between them. Does not own: how foul the weather is (`runtime::sim::Weather`), the
//! clock and the operations (`super`).

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use super::{Attempt, Event, Sim};
use crate::runtime::driver::{Kind, Message};
use crate::runtime::sim::{Passage, Passing};
use crate::runtime::udp::{self, SEGMENTS_MAX, SEND_BYTES_MAX};
use crate::sys::net::RawAddress;

/// Bytes that wait at a socket to be read; beyond it they are lost.
const QUEUE_BYTES_MAX: usize = 512 * 1024;

/// Datagrams on their way at a time (count); beyond it they are lost.
const UNDER_WAY_MAX: usize = 16 * 1024;

/// How long a datagram waits for its link at most.
const LINK_WAIT_NS_MAX: u64 = 100_000_000;

/// What a datagram socket has besides what others have.
pub(super) struct Mailbox {
    /// The address that others know it by.
    pub(super) seen_as: SocketAddr,
    arrived: VecDeque<Datagram>,
    arrived_bytes: usize,
    /// When the link before it is free again.
    link_free_ns: u64,
    /// When the last in order arrives.
    last_arrival_ns: u64,
}

pub(super) struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl Sim {
    pub(in crate::runtime::driver) fn datagram(&mut self, address: SocketAddr) -> io::Result<RawFd> {
        if self.mailboxes.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let index = self.add(address, None);
        if let Some(socket) = self.socket_mut(index) {
            socket.mailbox = Some(Box::new(Mailbox {
                seen_as: address,
                arrived: VecDeque::new(),
                arrived_bytes: 0,
                link_free_ns: 0,
                last_arrival_ns: 0,
            }));
        }
        self.mailboxes.insert(address, index);
        Ok(index as RawFd)
    }

    pub(in crate::runtime::driver) fn lane(&mut self, fd: RawFd) -> io::Result<RawFd> {
        let socket = self.socket(fd).ok_or(io::ErrorKind::NotConnected)?;
        let (local, of) = (socket.local, (fd as usize, socket.serial));
        let lane = self.add(local, None);
        if let Some(socket) = self.socket_mut(lane) {
            socket.lane_of = Some(of);
        }
        Ok(lane as RawFd)
    }

    pub(in crate::runtime::driver) fn rebind(&mut self, fd: RawFd, seen_as: SocketAddr) -> io::Result<()> {
        if self.mailboxes.contains_key(&seen_as) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let index = fd as usize;
        let mailbox = self.socket_mut(index).and_then(|socket| socket.mailbox.as_mut());
        let before = std::mem::replace(&mut mailbox.ok_or(io::ErrorKind::NotConnected)?.seen_as, seen_as);
        self.mailboxes.remove(&before);
        self.mailboxes.insert(seen_as, index);
        Ok(())
    }

    /// The address that what is sent on a socket comes from, in the eyes of others.
    fn sender(&self, index: usize) -> Option<SocketAddr> {
        let socket = self.sockets.get(index)?.as_ref()?;
        let origin = match socket.lane_of {
            Some(of) => self.sockets.get(self.peer_of(of)?)?.as_ref()?,
            None => socket,
        };
        Some(origin.mailbox.as_ref()?.seen_as)
    }

    fn note(&self, datagram: &Datagram, what: Passage) {
        if let Some(tap) = &self.tap {
            let Datagram { from, to, bytes } = datagram;
            (tap.0)(&Passing { now_ns: self.now_ns, from: *from, to: *to, bytes, what });
        }
    }

    /// A send, of several datagrams when it says so (GSO).
    pub(super) fn try_send_datagrams(&mut self, index: usize, message: &Message, bytes: &[u8]) -> Attempt {
        let Some(to) = message.address.to_socket_addr() else { return Attempt::Done(-libc::EINVAL) };
        // The socket of a lane is closed after it.
        let Some(mut from) = self.sender(index) else { return Attempt::Done(-libc::EBADF) };
        let (segment, local) = udp::read_control(&message.control, message.header.msg_controllen);
        if let Some(local) = local.filter(|_| from.ip().is_unspecified()) {
            from.set_ip(local);
        }
        let segment = segment.map_or(bytes.len().max(1), |segment| usize::from(segment).max(1));
        if bytes.len().div_ceil(segment) > SEGMENTS_MAX || bytes.len() > SEND_BYTES_MAX {
            return Attempt::Done(-libc::EINVAL);
        }
        if self.rng.chance(self.profile.weather.send_error_per_mille) {
            return Attempt::Done(-libc::EPERM);
        }
        for bytes in bytes.chunks(segment) {
            let datagram = Datagram { from, to, bytes: bytes.to_vec() };
            self.note(&datagram, Passage::Sent);
            if self.rng.chance(self.profile.weather.duplicate_per_mille) {
                self.dispatch(Datagram { from, to, bytes: bytes.to_vec() });
            }
            self.dispatch(datagram);
        }
        Attempt::Done(bytes.len() as i32)
    }

    /// Sends a datagram on its way, unless it is lost there.
    fn dispatch(&mut self, datagram: Datagram) {
        let (weather, now_ns) = (self.profile.weather, self.now_ns);
        let is_lost = self.rng.chance(weather.loss_per_mille)
            || datagram.bytes.len() > weather.mtu_bytes
            || self.under_way.len() >= UNDER_WAY_MAX;
        let is_late = self.rng.chance(weather.late_per_mille);
        let jitter_us = self.rng.below(weather.jitter_us_max + 1);
        let late_us = self.rng.below(weather.late_us_max + 1);
        let mailbox = self.mailboxes.get(&datagram.to).copied();
        let mailbox = mailbox.and_then(|index| self.socket_mut(index)?.mailbox.as_mut());
        let Some(mailbox) = mailbox.filter(|_| !is_lost) else { return self.note(&datagram, Passage::Lost) };
        let begins_ns = mailbox.link_free_ns.max(now_ns);
        if begins_ns - now_ns > LINK_WAIT_NS_MAX {
            return self.note(&datagram, Passage::Lost);
        }
        mailbox.link_free_ns = begins_ns + datagram.bytes.len() as u64 * weather.byte_ns;
        let mut arrival_ns = mailbox.link_free_ns + (weather.delay_us + jitter_us) * 1000;
        if is_late {
            arrival_ns += late_us * 1000;
        } else {
            arrival_ns = arrival_ns.max(mailbox.last_arrival_ns + 1);
            mailbox.last_arrival_ns = arrival_ns;
        }
        self.sequence += 1;
        let number = self.sequence;
        self.under_way.insert(number, datagram);
        self.schedule(arrival_ns, Event::Deliver { number });
    }

    /// A datagram comes to whoever has its address now.
    pub(super) fn deliver(&mut self, number: u64) {
        let Some(datagram) = self.under_way.remove(&number) else { return };
        let index = self.mailboxes.get(&datagram.to).copied();
        let mailbox = index.and_then(|index| Some((index, self.socket_mut(index)?.mailbox.as_mut()?)));
        let room = mailbox.filter(|(_, mailbox)| mailbox.arrived_bytes + datagram.bytes.len() <= QUEUE_BYTES_MAX);
        let Some((index, _)) = room else { return self.note(&datagram, Passage::Lost) };
        self.note(&datagram, Passage::Arrived);
        if let Some(mailbox) = self.socket_mut(index).and_then(|socket| socket.mailbox.as_mut()) {
            mailbox.arrived_bytes += datagram.bytes.len();
            mailbox.arrived.push_back(datagram);
        }
        self.attempt_soon(index, Kind::ReceiveDatagram);
    }

    /// Hands over what has come: one datagram, or several of one size (GRO).
    pub(super) fn try_receive_datagrams(&mut self, index: usize, message: &mut Message) -> Attempt {
        let (rng, merge) = (self.rng.clone(), self.profile.weather.merge_per_mille);
        let room = message.pieces[0].iov_len;
        let Some(mailbox) = self.socket_mut(index).and_then(|socket| socket.mailbox.as_mut()) else {
            return Attempt::NotYet;
        };
        let Some(first) = mailbox.arrived.pop_front() else { return Attempt::NotYet };
        let segment = first.bytes.len();
        let mut len = segment.min(room);
        let mut taken = vec![first];
        while let Some(next) = mailbox.arrived.front()
            && taken.len() < SEGMENTS_MAX
            && taken.last().is_some_and(|last| last.bytes.len() == segment)
            && (next.from, next.to) == (taken[0].from, taken[0].to)
            && next.bytes.len() <= segment
            && len + next.bytes.len() <= room
            && rng.chance(merge)
        {
            len += next.bytes.len();
            taken.extend(mailbox.arrived.pop_front());
        }
        mailbox.arrived_bytes -= taken.iter().map(|datagram| datagram.bytes.len()).sum::<usize>();
        let has_more = !mailbox.arrived.is_empty();
        let bytes: Vec<u8> = taken.iter().flat_map(|datagram| datagram.bytes.iter().copied()).take(room).collect();
        // SAFETY: the starter vouched for the piece, which has room for `bytes`.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), message.pieces[0].iov_base.cast::<u8>(), bytes.len());
        }
        message.address = RawAddress::new(taken[0].from);
        let merged = (taken.len() > 1).then(|| u16::try_from(segment).ok()).flatten();
        message.header.msg_controllen =
            udp::simulated_control(&mut message.control, taken[0].to.ip(), merged);
        for datagram in &taken {
            self.note(datagram, Passage::Read);
        }
        if has_more {
            self.attempt_soon(index, Kind::ReceiveDatagram);
        }
        Attempt::Done(len as i32)
    }
}
