//! The supervisor's listening sockets: for each address a bank, one socket for each worker.
//!
//! Owns: the sockets, for as long as their address is configured. Does not own: accepting from them (the
//! workers do), or the socket calls (see [`crate::sys::socket`]).
//!
//! The sockets of a bank form one SO_REUSEPORT group, bound in the order of the workers; the kernel spreads
//! new connections over them. Worker w gets a copy of socket w only. When it dies, its socket and the
//! connections that wait in it stay here, and its successor gets the same socket.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::messages::ListenerAddress;
use crate::sys::socket::{self, Share};

/// All banks, by configured address.
#[derive(Debug, Default)]
pub struct Banks(BTreeMap<SocketAddr, Bank>);

/// The sockets of one address.
#[derive(Debug)]
pub struct Bank {
    address: ListenerAddress,
    sockets: Vec<OwnedFd>,
}

impl Banks {
    /// Binds a bank of `workers` sockets for each of `addresses` that has none yet. Nothing is kept when one
    /// fails.
    ///
    /// # Errors
    /// A sentence that names the address, the cause and the remedy.
    pub fn bind_missing(&self, addresses: &[SocketAddr], workers: u32) -> Result<Vec<Bank>, String> {
        let missing = addresses.iter().filter(|address| !self.0.contains_key(address));
        missing
            .map(|address| self.bind(*address, workers).map_err(|error| explain(*address, &error)))
            .collect()
    }

    /// Adds banks that were bound.
    pub fn add(&mut self, banks: Vec<Bank>) {
        self.0.extend(banks.into_iter().map(|bank| (bank.address.configured, bank)));
    }

    /// Configured addresses that have a bank and are not among `wanted`.
    pub fn superfluous(&self, wanted: &[SocketAddr]) -> Vec<SocketAddr> {
        self.0.keys().filter(|address| !wanted.contains(address)).copied().collect()
    }

    /// Closes our copies of the sockets of `addresses`.
    pub fn close(&mut self, addresses: &[SocketAddr]) {
        self.0.retain(|address, _| !addresses.contains(address));
    }

    /// Closes our copies of all sockets.
    pub fn close_all(&mut self) {
        self.0.clear();
    }

    /// What is bound.
    pub fn addresses(&self) -> Vec<ListenerAddress> {
        self.0.values().map(|bank| bank.address).collect()
    }

    /// All banks.
    pub fn iter(&self) -> impl Iterator<Item = &Bank> {
        self.0.values()
    }

    fn bind(&self, configured: SocketAddr, workers: u32) -> io::Result<Bank> {
        // Another program of the same user that also sets SO_REUSEPORT (an older Blitz, say) would share the
        // port without a word. A socket without that option cannot bind beside any listener, so it tells. Our
        // own listener on an overlapping address (`0.0.0.0:80` beside `127.0.0.1:80`) would refuse it too,
        // and then we know.
        let is_ours = self.0.keys().any(|address| address.port() == configured.port());
        if !is_ours {
            drop(socket::listen(configured, Share::Alone)?);
        }
        let mut bound = configured;
        let mut sockets = Vec::with_capacity(workers as usize);
        for _ in 0..workers {
            let listener = TcpListener::from(socket::listen(bound, Share::Group)?);
            // Port 0: the first socket learns the port, the others follow it.
            bound = listener.local_addr()?;
            sockets.push(OwnedFd::from(listener));
        }
        Ok(Bank { address: ListenerAddress { configured, bound }, sockets })
    }
}

impl Bank {
    /// The address.
    pub fn address(&self) -> ListenerAddress {
        self.address
    }

    /// The socket of worker `worker`.
    pub fn socket(&self, worker: u32) -> Option<BorrowedFd<'_>> {
        self.sockets.get(worker as usize).map(AsFd::as_fd)
    }
}

/// Why an address cannot be bound, and what to do.
pub fn explain(address: SocketAddr, error: &io::Error) -> String {
    let port = address.port();
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program or another blitz listens there (`ss -ltnp 'sport = :{port}'` names it); \
             stop it, or choose another port"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "ports below net.ipv4.ip_unprivileged_port_start need a right; grant CAP_NET_BIND_SERVICE (systemd: \
             AmbientCapabilities=CAP_NET_BIND_SERVICE), or `sysctl -w net.ipv4.ip_unprivileged_port_start={port}`"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "this machine has no address {}; use one that `ip address` lists, or 0.0.0.0 or [::]",
                address.ip()
            )
        }
        _ if error.raw_os_error() == Some(libc::EMFILE) => {
            "this process may open no more descriptors; raise the limit (ulimit -n, systemd: LimitNOFILE)"
                .to_owned()
        }
        _ => return format!("cannot listen on {address}: {error}"),
    };
    format!("cannot listen on {address}: {}: {remedy}", short(error))
}

fn short(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the address is in use",
        io::ErrorKind::PermissionDenied => "permission denied",
        io::ErrorKind::AddrNotAvailable => "no such address here",
        _ => "too many open descriptors",
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_bank_is_one_group_on_one_port_and_keeps_waiting_connections() {
        let mut banks = Banks::default();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let bound = banks.bind_missing(&[any], 3).expect("bind");
        banks.add(bound);
        let address = banks.addresses()[0];
        assert_eq!(address.configured, any);
        assert_ne!(address.bound.port(), 0);
        assert!(banks.bind_missing(&[any], 3).expect("nothing to do").is_empty());
        let _client = TcpStream::connect(address.bound).expect("the kernel answers before anybody accepts");
        let bank = banks.iter().next().expect("bank");
        assert!(bank.socket(2).is_some() && bank.socket(3).is_none());
        let rival = Banks::default().bind_missing(&[address.bound], 1).expect_err("in use");
        assert!(rival.contains(&format!("sport = :{}", address.bound.port())), "{rival}");
        assert_eq!(banks.superfluous(&[]), [any]);
        banks.close(&[any]);
        assert!(TcpStream::connect(address.bound).is_err());
    }

    #[test]
    fn an_address_that_overlaps_our_own_can_be_added() {
        let mut banks = Banks::default();
        let wide = banks.bind_missing(&[SocketAddr::from(([0, 0, 0, 0], 0))], 1).expect("bind");
        let port = wide[0].address().bound.port();
        drop(wide);
        let wide = banks.bind_missing(&[SocketAddr::from(([0, 0, 0, 0], port))], 2).expect("bind");
        banks.add(wide);
        let narrow = banks.bind_missing(&[SocketAddr::from(([127, 0, 0, 1], port))], 2).expect("bind");
        assert_eq!(narrow[0].address().bound, SocketAddr::from(([127, 0, 0, 1], port)));
    }

    #[test]
    fn refusals_name_the_remedy() {
        let error =
            Banks::default().bind_missing(&[SocketAddr::from(([192, 0, 2, 1], 0))], 1).expect_err("foreign");
        assert!(error.contains("no address 192.0.2.1"), "{error}");
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        assert!(explain(SocketAddr::from(([0, 0, 0, 0], 80)), &denied).contains("CAP_NET_BIND_SERVICE"));
    }
}
