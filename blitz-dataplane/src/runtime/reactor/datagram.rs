//! Datagram sockets: one receive, which goes on, and one send in flight for each entry.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::task::{Context, Poll, Waker};

use super::{Body, Entry, Reactor, gone, os_error, register, wake};
use crate::runtime::aggregate;
use crate::runtime::buf::Chunk;
use crate::runtime::driver::{Driver, Kind, Message, Token};
use crate::runtime::slab::Key;
use crate::runtime::udp::{self, ReceiveBuffer, Received, Transmit};
use crate::sys::net::RawAddress;

pub(super) struct DatagramEntry {
    /// The header that a receive is started with.
    template: Box<libc::msghdr>,
    pub(super) receive_armed: bool,
    /// What has come. Bounded by the slots that there are.
    inbox: VecDeque<Chunk>,
    /// Why the last receive has ended.
    failed: Option<i32>,
    receive_waker: Option<Waker>,
    pub(super) send: Box<Message>,
    pub(super) send_buffer: Box<[u8]>,
    pub(super) sending: bool,
    pub(super) sent: Option<i32>,
    pub(super) send_waker: Option<Waker>,
}

impl Reactor {
    pub(in crate::runtime) fn adopt_datagram(&mut self, fd: RawFd) -> io::Result<Key> {
        if matches!(self.driver, Driver::Epoll(_)) {
            crate::sys::net::set_nonblocking(fd, true)?;
        }
        self.insert(
            fd,
            Body::Datagram(Box::new(DatagramEntry {
                template: Box::new(aggregate::template()),
                receive_armed: false,
                inbox: VecDeque::new(),
                failed: None,
                receive_waker: None,
                send: Message::new(),
                send_buffer: Box::default(),
                sending: false,
                sent: None,
                send_waker: None,
            })),
        )
    }

    /// A datagram socket of the simulated network.
    pub(in crate::runtime) fn simulated_datagram(&mut self, address: SocketAddr) -> io::Result<RawFd> {
        self.driver.simulated_datagram(address)
    }

    /// Another descriptor for a socket of the simulated network.
    pub(in crate::runtime) fn simulated_lane(&mut self, fd: RawFd) -> io::Result<RawFd> {
        self.driver.simulated_lane(fd)
    }

    pub(in crate::runtime) fn rebind_simulated(&mut self, key: Key, seen_as: SocketAddr) -> io::Result<()> {
        let fd = self.fd(key)?;
        self.driver.rebind_simulated(fd, seen_as)
    }

    pub(super) fn datagram(&mut self, key: Key) -> Option<(RawFd, &mut DatagramEntry)> {
        match self.entries.get_mut(key) {
            Some(Entry { fd, closing: false, body: Body::Datagram(datagram), .. }) => Some((*fd, datagram)),
            _ => None,
        }
    }

    /// A receive has brought something, or has ended.
    pub(super) fn datagrams_received(
        datagram: &mut DatagramEntry,
        result: i32,
        slot: Option<Chunk>,
        more: bool,
    ) {
        datagram.receive_armed = more;
        match slot {
            Some(slot) => datagram.inbox.push_back(slot),
            // No slot was left: those that there are come back as they are read, and then it is started again.
            None if result == -libc::ENOBUFS => {}
            None => datagram.failed = Some(result),
        }
        wake(&mut datagram.receive_waker);
    }

    /// One datagram, or several of one size merged by GRO, in `buffer`.
    pub(in crate::runtime) fn poll_receive_datagram(
        &mut self,
        key: Key,
        cx: &Context<'_>,
        buffer: &mut ReceiveBuffer,
    ) -> Poll<io::Result<Received>> {
        let Some((fd, datagram)) = self.datagram(key) else {
            return Poll::Ready(Err(gone()));
        };
        while let Some(slot) = datagram.inbox.pop_front() {
            if let Some((received, payload_at)) = aggregate::read(&slot) {
                buffer.fill(slot, payload_at);
                return Poll::Ready(Ok(received));
            }
        }
        if let Some(result) = datagram.failed.take() {
            return Poll::Ready(Err(os_error(-result)));
        }
        register(&mut datagram.receive_waker, cx);
        if !datagram.receive_armed {
            datagram.receive_armed = true;
            let template = &raw const *datagram.template;
            // SAFETY: the template is boxed in the entry and left alone until the last completion.
            unsafe {
                self.driver.receive_datagrams(fd, Token { key, kind: Kind::ReceiveDatagram }, template)
            };
            self.started(key);
        }
        Poll::Pending
    }

    /// Starts a send of the first `len` bytes of `buffer`, which is exchanged for that of the send before.
    pub(in crate::runtime) fn start_send_datagram(
        &mut self,
        key: Key,
        buffer: &mut Box<[u8]>,
        len: usize,
        transmit: Transmit,
    ) -> io::Result<()> {
        if buffer.len() < len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let Some((fd, datagram)) = self.datagram(key) else {
            return Err(gone());
        };
        if datagram.sending || datagram.sent.is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        datagram.sending = true;
        std::mem::swap(&mut datagram.send_buffer, buffer);
        let message = &mut datagram.send;
        message.address = RawAddress::new(transmit.to);
        message.pieces[0] = libc::iovec { iov_base: datagram.send_buffer.as_mut_ptr().cast(), iov_len: len };
        message.header.msg_namelen = message.address.len();
        message.header.msg_name = message.address.as_mut_ptr().cast();
        message.header.msg_iov = message.pieces.as_mut_ptr();
        message.header.msg_iovlen = 1;
        message.header.msg_controllen = udp::send_control(&mut message.control, &transmit);
        message.header.msg_control = match message.header.msg_controllen {
            0 => std::ptr::null_mut(),
            _ => message.control.as_mut_ptr().cast(),
        };
        let message: *const Message = &raw const **message;
        // SAFETY: message and buffer are boxed in the entry and left alone until the completion.
        unsafe { self.driver.send_message(fd, Token { key, kind: Kind::SendDatagram }, message) };
        self.started(key);
        Ok(())
    }

    pub(in crate::runtime) fn poll_datagram_sent(
        &mut self,
        key: Key,
        cx: &Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let Some((_, datagram)) = self.datagram(key) else {
            return Poll::Ready(Err(gone()));
        };
        match datagram.sent.take() {
            Some(result) => Poll::Ready(usize::try_from(result).map_err(|_| os_error(-result))),
            None => {
                register(&mut datagram.send_waker, cx);
                Poll::Pending
            }
        }
    }
}
