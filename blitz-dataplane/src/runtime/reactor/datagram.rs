//! Datagram sockets: one receive and one send in flight for each entry.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::task::{Context, Poll, Waker};

use super::{Body, Entry, Reactor, gone, os_error, register};
use crate::runtime::driver::{Driver, Kind, Message, Token};
use crate::runtime::slab::Key;
use crate::runtime::udp::{self, Received, Transmit};
use crate::sys::net::RawAddress;

pub(super) struct DatagramEntry {
    pub(super) receive: Box<Message>,
    /// Empty until the first receive.
    pub(super) buffer: Box<[u8]>,
    pub(super) receive_armed: bool,
    pub(super) received: Option<i32>,
    pub(super) receive_waker: Option<Waker>,
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
                receive: Message::new(),
                buffer: Box::default(),
                receive_armed: false,
                received: None,
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

    /// One datagram, or several of one size merged by GRO. Their bytes are in `buffer`, whose memory takes the place of
    /// what they came in.
    pub(in crate::runtime) fn poll_receive_datagram(
        &mut self,
        key: Key,
        cx: &Context<'_>,
        buffer: &mut Box<[u8]>,
    ) -> Poll<io::Result<Received>> {
        let Some((fd, datagram)) = self.datagram(key) else {
            return Poll::Ready(Err(gone()));
        };
        if let Some(result) = datagram.received.take() {
            let Ok(len) = usize::try_from(result) else {
                return Poll::Ready(Err(os_error(-result)));
            };
            let message = &datagram.receive;
            let (segment, destination) =
                udp::read_control(&message.control, message.header.msg_controllen);
            let source = message.address.to_socket_addr();
            std::mem::swap(buffer, &mut datagram.buffer);
            return Poll::Ready(Ok(Received { len, source, destination, segment }));
        }
        register(&mut datagram.receive_waker, cx);
        if !datagram.receive_armed {
            datagram.receive_armed = true;
            if datagram.buffer.len() != buffer.len() {
                datagram.buffer = vec![0; buffer.len()].into_boxed_slice();
            }
            let message = &mut datagram.receive;
            message.pieces[0] =
                libc::iovec { iov_base: datagram.buffer.as_mut_ptr().cast(), iov_len: datagram.buffer.len() };
            message.header.msg_name = message.address.as_mut_ptr().cast();
            message.header.msg_namelen = RawAddress::empty().len();
            message.header.msg_iov = message.pieces.as_mut_ptr();
            message.header.msg_iovlen = 1;
            message.header.msg_control = message.control.as_mut_ptr().cast();
            message.header.msg_controllen = size_of_val(&message.control);
            let message: *mut Message = &raw mut **message;
            // SAFETY: message and buffer are boxed in the entry and left alone until the completion.
            unsafe { self.driver.receive_message(fd, Token { key, kind: Kind::ReceiveDatagram }, message) };
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
