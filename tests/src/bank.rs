//! A bank of UDP sockets as the gateway holds it, with the sink, and a client of it.
//!
//! Owns: binding in order, sending, where a datagram arrived. Does not own: the program that chooses, which the test
//! attaches, or what is expected.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use blitz_ebpf_common::steer::{Aim, Steering};

use crate::net::wait_until;
use crate::sys;

const PATIENCE: Duration = Duration::from_secs(10);

/// The sockets, and the client.
#[derive(Debug)]
pub struct Bank {
    /// How it is steered; a test that attaches another program changes this with it.
    pub steering: Steering,
    sockets: Vec<UdpSocket>,
    client: UdpSocket,
    refused: u64,
}

impl Bank {
    /// Binds the sockets on a free port of `host`, and connects the client.
    ///
    /// # Panics
    /// When the machine does not allow it.
    pub fn bind(host: IpAddr, steering: Steering) -> Self {
        let mut address = SocketAddr::new(host, 0);
        let sockets: Vec<_> = (0..steering.bank.sockets())
            .map(|_| {
                let socket = sys::socket_of_group(address).expect("a socket of the group");
                address = socket.local_addr().expect("an address");
                socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                socket
            })
            .collect();
        sys::refuse_all(&sockets[steering.bank.sink() as usize]).expect("a filter");
        let client = UdpSocket::bind(SocketAddr::new(host, 0)).expect("a client");
        // Connected, so that an ICMP error would come back as an error of the socket.
        client.connect(address).expect("connected");
        Self { steering, sockets, client, refused: 0 }
    }

    /// The sockets, by index.
    pub fn sockets(&self) -> &[UdpSocket] {
        &self.sockets
    }

    /// Sends `datagram`, waits until it has arrived where the rule says, and until the sink has it where the rule says
    /// nothing. No other socket got it, and no ICMP error came back.
    ///
    /// # Panics
    /// When it is not so.
    #[track_caller]
    pub fn follows(&mut self, datagram: &[u8]) -> Aim {
        let aim = self.steering.aim(datagram, 0, datagram.len());
        match aim {
            Aim::Owner(index) | Aim::Fresh(index) => self.arrives(index, datagram),
            Aim::Drop(_) => self.is_refused(datagram),
        }
        aim
    }

    /// Sends `datagram`, which has to arrive at the socket of this index.
    ///
    /// # Panics
    /// When it does not, or another got it.
    #[track_caller]
    pub fn arrives(&mut self, index: u32, datagram: &[u8]) {
        self.client.send(datagram).expect("sent");
        let mut buffer = [0; 65_536];
        let length = self.sockets[index as usize].recv(&mut buffer).expect("the socket of the rule has it");
        assert_eq!(&buffer[..length], datagram);
        self.nobody_has_more();
    }

    /// Sends `datagram`, which only the sink may get.
    ///
    /// # Panics
    /// When it does not, or the sender is told.
    #[track_caller]
    pub fn is_refused(&mut self, datagram: &[u8]) {
        self.client.send(datagram).expect("sent");
        self.refused += 1;
        let sink = &self.sockets[self.steering.bank.sink() as usize];
        wait_until("the sink has it", PATIENCE, || sys::socket_drops(sink).expect("a count") == self.refused);
        self.nobody_has_more();
        assert!(self.client.take_error().expect("an option").is_none(), "an ICMP error came back");
    }

    /// Sends `datagram`, for which the kernel has to answer with an ICMP error.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn is_answered_with_an_error(&mut self, datagram: &[u8]) {
        self.client.send(datagram).expect("sent");
        self.client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let answer = self.client.recv(&mut [0; 16]).map_err(|error| error.kind());
        assert_eq!(answer, Err(ErrorKind::ConnectionRefused));
        self.nobody_has_more();
    }

    #[track_caller]
    fn nobody_has_more(&self) {
        for (index, socket) in self.sockets.iter().enumerate() {
            socket.set_nonblocking(true).expect("an option");
            let more = socket.recv(&mut [0; 16]).map_err(|error| error.kind());
            assert_eq!(more, Err(ErrorKind::WouldBlock), "socket {index}");
            socket.set_nonblocking(false).expect("an option");
        }
    }
}
