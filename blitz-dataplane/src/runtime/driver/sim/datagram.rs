//! Datagrams of the simulated network: late, lost, doubled, out of order, too large, or for an address that is no more.
//!
//! Owns: sockets' mailboxes, the way between them. Does not own: how foul the weather is (`runtime::sim::Weather`), the
//! clock and the operations (`super`).

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::Rc;

use super::{Attempt, Event, Sim};
use crate::runtime::aggregate;
use crate::runtime::driver::{Kind, Message};
use crate::runtime::sim::{Passage, Passing};
use crate::runtime::udp::{self, CONTROL_WORDS, SEGMENTS_MAX, SEND_BYTES_MAX};
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
        let room =
            mailbox.filter(|(_, mailbox)| mailbox.arrived_bytes + datagram.bytes.len() <= QUEUE_BYTES_MAX);
        let Some((index, _)) = room else { return self.note(&datagram, Passage::Lost) };
        self.note(&datagram, Passage::Arrived);
        if let Some(mailbox) = self.socket_mut(index).and_then(|socket| socket.mailbox.as_mut()) {
            mailbox.arrived_bytes += datagram.bytes.len();
            mailbox.arrived.push_back(datagram);
        }
        self.attempt_soon(index, Kind::ReceiveDatagram);
    }

    /// Hands over what has come in a slot: one datagram, or several of one size (GRO).
    pub(super) fn try_receive_datagrams(&mut self, index: usize) -> Attempt {
        let (rng, merge) = (self.rng.clone(), self.profile.weather.merge_per_mille);
        let aggregates = Rc::clone(&self.aggregates);
        let Some(mailbox) = self.socket_mut(index).and_then(|socket| socket.mailbox.as_mut()) else {
            return Attempt::NotYet;
        };
        if mailbox.arrived.is_empty() {
            return Attempt::NotYet;
        }
        let Some(slot) = aggregates.take_slot() else { return Attempt::Ends(-libc::ENOBUFS, None) };
        let mut taken: Vec<Datagram> = mailbox.arrived.pop_front().into_iter().collect();
        let (from, to, segment) = (taken[0].from, taken[0].to, taken[0].bytes.len());
        let mut bytes = taken[0].bytes.clone();
        while let Some(next) = mailbox.arrived.front()
            && taken.len() < SEGMENTS_MAX
            && taken.last().is_some_and(|last| last.bytes.len() == segment)
            && (next.from, next.to) == (from, to)
            && next.bytes.len() <= segment
            && bytes.len() + next.bytes.len() <= SEND_BYTES_MAX
            && rng.chance(merge)
        {
            bytes.extend_from_slice(&next.bytes);
            taken.extend(mailbox.arrived.pop_front());
        }
        mailbox.arrived_bytes -= bytes.len();
        let merged = (taken.len() > 1).then(|| u16::try_from(segment).ok()).flatten();
        let mut control = [0; CONTROL_WORDS];
        let control_bytes = udp::simulated_control(&mut control, to.ip(), merged);
        let source = RawAddress::new(from);
        let mut piece = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let memory = aggregates.slot_ptr(slot);
        let mut header = aggregate::header(memory.cast(), &mut piece);
        // SAFETY: the slot is ours, and has room for a source where the header says.
        unsafe {
            std::ptr::copy_nonoverlapping(source.as_ptr().cast(), header.msg_name, source.len() as usize)
        };
        // SAFETY: likewise for as many words of control messages.
        unsafe { std::ptr::copy_nonoverlapping(control.as_ptr().cast(), header.msg_control, control_bytes) };
        // SAFETY: likewise for the payload, which is no longer than one packet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), piece.iov_base, bytes.len()) };
        (header.msg_namelen, header.msg_controllen) = (source.len(), control_bytes);
        let (lengths, used) = aggregate::lengths(&header, bytes.len() as u32);
        // SAFETY: likewise for the lengths in front.
        unsafe { std::ptr::copy_nonoverlapping(lengths.as_ptr(), memory.cast(), lengths.len()) };
        for datagram in &taken {
            self.note(datagram, Passage::Read);
        }
        Attempt::Goes(used as i32, Some(slot))
    }
}
