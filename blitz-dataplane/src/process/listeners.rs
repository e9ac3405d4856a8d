//! The supervisor's listening sockets: for each address a bank, one socket for each worker.
//!
//! Owns: the sockets, for as long as their address is configured. Does not own: accepting from them (the
//! workers do), or the socket calls (see [`crate::sys::socket`]).
//!
//! The sockets of a bank form one SO_REUSEPORT group, bound in the order of the workers; the kernel spreads
//! new connections over them. A bank of datagrams has two sockets for each worker and one more, and a program steers
//! by connection ID among them ([`blitz_ebpf_common::steer`]). Worker w gets a copy of socket w only. When it dies,
//! its socket and the connections that wait in it stay here, and its successor gets the same socket.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use blitz_ebpf_common::cbpf;
use blitz_ebpf_common::steer::Steering;

use super::messages::{BankPlace, ListenerAddress, SocketKind};
use crate::http3::QuicKeys;
use crate::sys::reuseport;
use crate::sys::socket::{self, Share};

/// All banks.
#[derive(Debug)]
pub struct Banks {
    banks: BTreeMap<BankPlace, Bank>,
    /// By which the kernel steers datagrams.
    keys: QuicKeys,
    /// The epochs of the keys that it has been given.
    epochs: [u64; 2],
}

/// The sockets of one address.
#[derive(Debug)]
pub struct Bank {
    address: ListenerAddress,
    sockets: Vec<OwnedFd>,
}

impl Banks {
    /// None yet.
    pub fn new(keys: QuicKeys) -> Self {
        let (epochs, _) = keys.live_epochs();
        Self { banks: BTreeMap::new(), keys, epochs }
    }

    /// The keys of QUIC.
    pub fn keys(&self) -> &QuicKeys {
        &self.keys
    }

    /// Gives the kernel the keys of now, where it has others, and says whether it had. Every bank is steered by its
    /// classic program then, also one that had a better one: that has to be asked for again. A datagram meets the
    /// program before or the one after; and since the key that goes names no connection any more, and the one that
    /// comes none yet, it makes no difference.
    ///
    /// # Errors
    /// The kernel refuses the program; the banks behind it keep the one before. To be tried again.
    pub fn follow_keys(&mut self) -> io::Result<bool> {
        let (epochs, _) = self.keys.live_epochs();
        if epochs == self.epochs {
            return Ok(false);
        }
        for bank in self.banks.values().filter(|bank| bank.address.kind == SocketKind::Datagram) {
            let workers = u32::try_from(bank.sockets.len() / 2).unwrap_or(u32::MAX);
            let steering = self.keys.steering(workers).ok_or(io::ErrorKind::InvalidInput)?;
            if let Some(first) = bank.sockets.first() {
                reuseport::choose(first.as_fd(), &cbpf::program(&steering))?;
            }
        }
        self.epochs = epochs;
        Ok(true)
    }

    /// Binds a bank of `workers` sockets for each of `places` that has none yet. Nothing is kept when one
    /// fails.
    ///
    /// # Errors
    /// A sentence that names the address, the cause and the remedy.
    pub fn bind_missing(&self, places: &[BankPlace], workers: u32) -> Result<Vec<Bank>, String> {
        let mut banks: Vec<Bank> = Vec::new();
        for place in places.iter().filter(|place| !self.banks.contains_key(place)) {
            // Where the kernel chooses the port of the one, the other takes the same: answers over TCP name it.
            let beside = self.banks.values().chain(&banks).map(|bank| bank.address);
            let mut beside =
                beside.filter(|other| other.configured == place.address && place.address.port() == 0);
            let bound = beside.next().map_or(place.address, |other| other.bound);
            let bank = self.bind(*place, bound, workers).map_err(|error| explain(*place, &error))?;
            banks.push(bank);
        }
        Ok(banks)
    }

    /// Adds banks that were bound.
    pub fn add(&mut self, banks: Vec<Bank>) {
        self.banks.extend(banks.into_iter().map(|bank| (bank.address.place(), bank)));
    }

    /// Places that have a bank and are not among `wanted`.
    pub fn superfluous(&self, wanted: &[BankPlace]) -> Vec<BankPlace> {
        self.banks.keys().filter(|place| !wanted.contains(place)).copied().collect()
    }

    /// Closes our copies of the sockets of `places`.
    pub fn close(&mut self, places: &[BankPlace]) {
        self.banks.retain(|place, _| !places.contains(place));
    }

    /// Closes our copies of all sockets.
    pub fn close_all(&mut self) {
        self.banks.clear();
    }

    /// What is bound.
    pub fn addresses(&self) -> Vec<ListenerAddress> {
        self.banks.values().map(|bank| bank.address).collect()
    }

    /// How the kernel steers datagrams among `workers`.
    pub fn steering(&self, workers: u32) -> Option<Steering> {
        self.keys.steering(workers)
    }

    /// All banks.
    pub fn iter(&self) -> impl Iterator<Item = &Bank> {
        self.banks.values()
    }

    fn bind(&self, place: BankPlace, mut bound: SocketAddr, workers: u32) -> io::Result<Bank> {
        let BankPlace { kind, address: configured } = place;
        // Another program of the same user that also sets SO_REUSEPORT (an older Blitz, say) would share the
        // port without a word. A socket without that option cannot bind beside any listener, so it tells. Our
        // own listener on an overlapping address (`0.0.0.0:80` beside `127.0.0.1:80`) would refuse it too,
        // and then we know.
        let is_ours =
            self.banks.keys().any(|other| other.kind == kind && other.address.port() == configured.port());
        let open = match kind {
            SocketKind::Stream => socket::listen,
            SocketKind::Datagram => socket::datagram,
        };
        if !is_ours {
            drop(open(bound, Share::Alone)?);
        }
        let steering = match kind {
            SocketKind::Stream => None,
            SocketKind::Datagram => Some(self.keys.steering(workers).ok_or(io::ErrorKind::InvalidInput)?),
        };
        let count = steering.map_or(workers, |steering| steering.bank.sockets());
        let mut sockets = Vec::with_capacity(count as usize);
        for index in 0..count {
            let socket = open(bound, Share::Group)?;
            // Port 0: the first socket learns the port, the others follow it.
            let (socket, address) = match kind {
                SocketKind::Stream => {
                    let listener = TcpListener::from(socket);
                    let address = listener.local_addr()?;
                    (OwnedFd::from(listener), address)
                }
                SocketKind::Datagram => {
                    let socket = UdpSocket::from(socket);
                    let address = socket.local_addr()?;
                    (OwnedFd::from(socket), address)
                }
            };
            bound = address;
            if let Some(steering) = &steering {
                if index == 0 {
                    reuseport::choose(socket.as_fd(), &cbpf::program(steering))?;
                }
                // Nobody reads from those of the other generation, nor from the sink.
                if index.checked_sub(steering.bank.base()).is_none_or(|worker| worker >= workers) {
                    reuseport::refuse_all(socket.as_fd())?;
                }
            }
            sockets.push(socket);
        }
        Ok(Bank { address: ListenerAddress { kind, configured, bound }, sockets })
    }
}

impl Bank {
    /// The address.
    pub fn address(&self) -> ListenerAddress {
        self.address
    }

    /// Copies of all its sockets, in order.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        self.sockets.iter().map(OwnedFd::try_clone).collect()
    }

    /// The socket of worker `worker`.
    pub fn socket(&self, worker: u32) -> Option<BorrowedFd<'_>> {
        self.sockets.get(worker as usize).map(AsFd::as_fd)
    }
}

/// Why an address cannot be bound, and what to do.
pub fn explain(place: BankPlace, error: &io::Error) -> String {
    let BankPlace { kind, address } = place;
    let port = address.port();
    let (tell, suffix) = match kind {
        SocketKind::Stream => ("-ltnp", ""),
        SocketKind::Datagram => ("-lunp", "/udp"),
    };
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program or another blitz listens there (`ss {tell} 'sport = :{port}'` names it); \
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
        _ => return format!("cannot listen on {address}{suffix}: {error}"),
    };
    format!("cannot listen on {address}{suffix}: {}: {remedy}", short(error))
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
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use blitz_ebpf_common::cid::Routing;

    use super::*;
    use crate::secret::Secret;

    fn none() -> Banks {
        Banks::new(QuicKeys::new(&Secret::generate().expect("random bytes"), 3600))
    }

    fn tcp(address: SocketAddr) -> BankPlace {
        BankPlace { kind: SocketKind::Stream, address }
    }

    #[test]
    fn a_bank_is_one_group_on_one_port_and_keeps_waiting_connections() {
        let mut banks = none();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let bound = banks.bind_missing(&[tcp(any)], 3).expect("bind");
        banks.add(bound);
        let address = banks.addresses()[0];
        assert_eq!(address.configured, any);
        assert_ne!(address.bound.port(), 0);
        assert!(banks.bind_missing(&[tcp(any)], 3).expect("nothing to do").is_empty());
        let _client = TcpStream::connect(address.bound).expect("the kernel answers before anybody accepts");
        let bank = banks.iter().next().expect("bank");
        assert!(bank.socket(2).is_some() && bank.socket(3).is_none());
        let rival = none().bind_missing(&[tcp(address.bound)], 1).expect_err("in use");
        assert!(rival.contains(&format!("sport = :{}", address.bound.port())), "{rival}");
        assert_eq!(banks.superfluous(&[]), [tcp(any)]);
        banks.close(&[tcp(any)]);
        assert!(TcpStream::connect(address.bound).is_err());
    }

    #[test]
    fn a_bank_of_datagrams_takes_the_port_that_the_streams_got() {
        let mut banks = none();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let udp = BankPlace { kind: SocketKind::Datagram, address };
        let bound = banks.bind_missing(&[tcp(address), udp], 2).expect("bind");
        banks.add(bound);
        let [streams, datagrams] = banks.addresses()[..] else { panic!("two banks") };
        assert_eq!((streams.kind, datagrams.kind), (SocketKind::Stream, SocketKind::Datagram));
        assert_eq!(streams.bound, datagrams.bound);
        assert!(datagrams.to_string().ends_with("/udp"));
        let rival = BankPlace { kind: SocketKind::Datagram, address: datagrams.bound };
        let rival = none().bind_missing(&[rival], 1).expect_err("in use");
        assert!(rival.contains("/udp") && rival.contains("ss -lunp"), "{rival}");
        assert_eq!(banks.superfluous(&[tcp(address)]), [udp]);
        banks.close(&[udp]);
        assert!(UdpSocket::bind(datagrams.bound).is_ok());
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A live connection through eight half epochs: every datagram reaches its worker, with the connection ID of
    /// the half epoch before and with that of the current one.
    #[test]
    fn no_datagram_is_lost_while_keys_change() {
        static NOW: AtomicU64 = AtomicU64::new(700);
        let keys = QuicKeys::new(&Secret::generate().expect("random bytes"), 100);
        let mut banks = Banks::new(keys.with_clock(|| NOW.load(Ordering::SeqCst)));
        let place = BankPlace { kind: SocketKind::Datagram, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let bound = banks.bind_missing(&[place], 2).expect("bind");
        banks.add(bound);
        let bank = banks.iter().next().expect("bank");
        let address = bank.address().bound;
        let [other, own] = [0, 1].map(|worker| {
            let socket = bank.socket(worker).expect("a worker").try_clone_to_owned().expect("dup");
            UdpSocket::from(socket)
        });
        [&other, &own].into_iter().for_each(|socket| socket.set_nonblocking(true).expect("a flag"));
        let routing = Routing::new(0, 0, 1).expect("a worker");
        let draw = |banks: &Banks, nonce| {
            banks.keys().steering(2).expect("few workers").codec.encode(routing, nonce)
        };
        let cids = Mutex::new(vec![draw(&banks, 1)]);
        let (sent, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        let (mut received, mut changes) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
                let begun = Instant::now();
                while !is_over.load(Ordering::SeqCst) && begun.elapsed() < 2 * PATIENCE {
                    for cid in cids.lock().expect("a lock").iter() {
                        socket.send_to(&[&[0x40], &cid[..], &[0; 20]].concat(), address).expect("it is sent");
                        sent.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
            let mut until = |count: u64| {
                let (begun, more) = (Instant::now(), received + count);
                while received < more {
                    match own.recv(&mut [0; 64]) {
                        Ok(_) => received += 1,
                        Err(_) if begun.elapsed() < PATIENCE => std::thread::yield_now(),
                        Err(error) => panic!("{received} of {more}: {error}"),
                    }
                }
            };
            for nonce in 2..10 {
                until(500);
                {
                    // Retired in time: that of the half epoch before the last.
                    let mut cids = cids.lock().expect("a lock");
                    let last = cids.len() - 1;
                    cids.drain(..last);
                }
                NOW.fetch_add(50, Ordering::SeqCst);
                changes += u32::from(banks.follow_keys().expect("a program"));
                let drawn = draw(&banks, nonce);
                cids.lock().expect("a lock").push(drawn);
            }
            until(500);
            is_over.store(true, Ordering::SeqCst);
        });
        while own.recv(&mut [0; 64]).is_ok() {
            received += 1;
        }
        assert_eq!(received, sent.load(Ordering::SeqCst));
        assert!(other.recv(&mut [0; 64]).is_err(), "a stranger got one");
        assert_eq!((banks.keys().live_epochs().0, changes), ([10, 11], 4));
    }

    #[test]
    fn an_address_that_overlaps_our_own_can_be_added() {
        let mut banks = none();
        let wide = banks.bind_missing(&[tcp(SocketAddr::from(([0, 0, 0, 0], 0)))], 1).expect("bind");
        let port = wide[0].address().bound.port();
        drop(wide);
        let wide = banks.bind_missing(&[tcp(SocketAddr::from(([0, 0, 0, 0], port)))], 2).expect("bind");
        banks.add(wide);
        let narrow = banks.bind_missing(&[tcp(SocketAddr::from(([127, 0, 0, 1], port)))], 2).expect("bind");
        assert_eq!(narrow[0].address().bound, SocketAddr::from(([127, 0, 0, 1], port)));
    }

    #[test]
    fn refusals_name_the_remedy() {
        let error =
            none().bind_missing(&[tcp(SocketAddr::from(([192, 0, 2, 1], 0)))], 1).expect_err("foreign");
        assert!(error.contains("no address 192.0.2.1"), "{error}");
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        assert!(explain(tcp(SocketAddr::from(([0, 0, 0, 0], 80))), &denied).contains("CAP_NET_BIND_SERVICE"));
    }
}
