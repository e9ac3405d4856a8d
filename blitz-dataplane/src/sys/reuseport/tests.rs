//! The steering program in the kernel: real sockets, each case to its socket and to no other.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use blitz_ebpf_common::cbpf;
use blitz_ebpf_common::chaskey::Key;
use blitz_ebpf_common::cid::{Codec, Keys, Parity, Routing};
use blitz_ebpf_common::steer::{Aim, Bank, Refusal, Steering};

use super::*;
use crate::sys::{net, privilege};

const WORKERS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(10);

/// A bank as the supervisor will hold it, and a client.
struct Group {
    steering: Steering,
    sockets: Vec<UdpSocket>,
    client: UdpSocket,
    /// What the sink has refused.
    refused: u32,
}

impl Group {
    fn new(host: SocketAddr, generation: u32) -> Self {
        let keys = Keys { even: [1, 2, 3, 4], odd: [5, 6, 7, 8], issues: Parity::Odd };
        let bank = Bank::new(WORKERS, generation).expect("3 workers");
        let steering = Steering { codec: Codec::new(keys), pick: Key::new([9; 4]), bank };
        let mut address = host;
        let mut sockets = Vec::new();
        for _ in 0..bank.sockets() {
            let socket = net::socket(host, libc::SOCK_DGRAM, false).expect("a socket");
            net::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).expect("an option");
            net::bind(socket.as_fd(), address).expect("bound");
            let socket = UdpSocket::from(socket);
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            address = socket.local_addr().expect("an address");
            sockets.push(socket);
        }
        refuse_all(sockets[bank.sink() as usize].as_fd()).expect("the sink");
        let client = UdpSocket::bind(SocketAddr::new(host.ip(), 0)).expect("a client");
        // Connected, so that an ICMP error would come back as an error of the socket.
        client.connect(address).expect("connected");
        let group = Self { steering, sockets, client, refused: 0 };
        group.attach();
        group
    }

    /// The program for what `steering` is now.
    fn attach(&self) {
        choose(self.sockets[0].as_fd(), &cbpf::program(&self.steering)).expect("the kernel takes it");
    }

    fn cid(&self, generation: u32, worker: u32) -> [u8; 16] {
        let routing = Routing::new(0x0a0b, generation, worker).expect("a worker");
        self.steering.codec.encode(routing, u64::from(worker) << 40 | 0x1234_5678)
    }

    /// Sends, and sees it arrive where the rule says, or be refused where it says nothing.
    #[track_caller]
    fn follows(&mut self, datagram: &[u8]) -> Aim {
        let aim = self.steering.aim(datagram, 0, datagram.len());
        self.client.send(datagram).expect("sent");
        match aim {
            Aim::Owner(index) | Aim::Fresh(index) => {
                let mut buffer = [0; 65536];
                let length =
                    self.sockets[index as usize].recv(&mut buffer).expect("the socket of the rule has it");
                assert_eq!(&buffer[..length], datagram);
            }
            Aim::Drop(_) => {
                self.refused += 1;
                let sink = self.sockets[self.steering.bank.sink() as usize].as_fd();
                let deadline = Instant::now() + PATIENCE;
                while refused(sink).expect("a count") != self.refused {
                    assert!(Instant::now() < deadline, "the sink has it");
                    std::thread::yield_now();
                }
            }
        }
        self.nobody_has_more();
        aim
    }

    #[track_caller]
    fn nobody_has_more(&self) {
        for (index, socket) in self.sockets.iter().enumerate() {
            socket.set_nonblocking(true).expect("an option");
            let more = socket.recv(&mut [0; 16]).map_err(|error| error.kind());
            assert_eq!(more, Err(ErrorKind::WouldBlock), "socket {index}");
            socket.set_nonblocking(false).expect("an option");
        }
        // No ICMP error came back.
        assert!(self.client.take_error().expect("an option").is_none());
    }
}

fn short(cid: &[u8], length: usize) -> Vec<u8> {
    let mut datagram = [&[0x40], cid].concat();
    datagram.resize(length, 0x77);
    datagram
}

fn long(version: u32, dcid: &[u8]) -> Vec<u8> {
    let mut datagram =
        [&[0xc0][..], &version.to_be_bytes(), &[dcid.len() as u8], dcid, &[3, 1, 2, 3]].concat();
    datagram.resize(1200, 0x77);
    datagram
}

/// In a thread without any right, as a worker or a plain user is.
fn unprivileged(test: impl FnOnce() + Send + 'static) {
    let without_rights = std::thread::spawn(|| {
        privilege::drop_capabilities().expect("capabilities are given up");
        assert_eq!(privilege::capabilities().expect("capabilities"), (0, 0));
        test();
    });
    without_rights.join().expect("the test");
}

const V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Both families, where the machine has both.
fn hosts() -> Vec<SocketAddr> {
    let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 0);
    let has_v6 = UdpSocket::bind(v6).is_ok();
    if !has_v6 {
        eprintln!("only over IPv4: this machine has no [::1]");
    }
    [V4].into_iter().chain(has_v6.then_some(v6)).collect()
}

#[test]
fn every_worker_of_both_generations_gets_its_own() {
    unprivileged(|| {
        for host in hosts() {
            let mut group = Group::new(host, 5);
            for generation in [4, 5, 63] {
                for worker in 0..WORKERS {
                    let owner = Aim::Owner((generation & 1) * WORKERS + worker);
                    let cid = group.cid(generation, worker);
                    for length in [17, 40, 1400, 60_000] {
                        assert_eq!(group.follows(&short(&cid, length)), owner);
                    }
                    assert_eq!(group.follows(&long(1, &cid)), owner);
                }
            }
        }
    });
}

#[test]
fn a_new_connection_stays_with_one_worker_of_the_new_generation() {
    unprivileged(|| {
        let mut group = Group::new(V4, 8);
        let mut seen = [false; 2 * WORKERS as usize];
        for n in 0..64u8 {
            let dcid = [n; 18];
            let first = group.follows(&long(1, &dcid[..8 + usize::from(n % 11)]));
            let Aim::Fresh(index) = first else { panic!("{first:?}") };
            seen[index as usize] = true;
            assert_eq!(group.follows(&long(1, &dcid[..8 + usize::from(n % 11)])), first);
        }
        assert_eq!(seen, [true, true, true, false, false, false]);
        // The next generation takes the new ones as soon as its program is there; owners stay.
        group.steering.bank = Bank::new(WORKERS, 9).expect("3 workers");
        group.attach();
        for n in 0..16u8 {
            assert!(matches!(group.follows(&long(1, &[n; 8])), Aim::Fresh(WORKERS..)));
        }
        let cid = group.cid(8, 2);
        assert_eq!(group.follows(&short(&cid, 100)), Aim::Owner(2));
    });
}

#[test]
fn what_nobody_gets_is_refused_without_a_word() {
    unprivileged(|| {
        for host in hosts() {
            let mut group = Group::new(host, 4);
            let mut stranger = group.cid(4, 0);
            stranger[0] ^= 0x80;
            let nowhere = group.cid(4, WORKERS);
            let cases = [
                Vec::new(),
                vec![0x40],
                short(&group.cid(4, 0), 40)[..16].to_vec(),
                short(&stranger, 40),
                short(&nowhere, 40),
                long(1, &nowhere),
                long(1, &[1; 8])[..17].to_vec(),
                vec![0xc0; 13],
                long(0, &group.cid(4, 0)),
            ];
            for datagram in cases {
                assert!(matches!(group.follows(&datagram), Aim::Drop(_)), "{datagram:02x?}");
            }
            assert_eq!(group.follows(&short(&nowhere, 40)), Aim::Drop(Refusal::Worker));
        }
    });
}

/// What came as one send, or was merged on its way, is decided once, by the first datagram. The owner of the socket has
/// to look at the others.
#[test]
fn an_aggregate_goes_where_its_first_datagram_goes() {
    let group = Group::new(V4, 4);
    let pieces =
        [(4, 1), (5, 2), (4, 0)].map(|(generation, worker)| short(&group.cid(generation, worker), 100));
    net::set_option(group.client.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 100).expect("Linux 4.18");
    group.client.send(&pieces.concat()).expect("sent");
    for piece in pieces {
        let mut buffer = [0; 4096];
        let length = group.sockets[1].recv(&mut buffer).expect("the first one's owner has it");
        assert_eq!(buffer[..length], piece);
    }
    group.nobody_has_more();
}

/// Why the bank has a sink: without a socket for what nobody gets, the kernel chooses some worker's.
#[test]
fn an_index_that_no_socket_has_falls_back_to_the_hash() {
    let mut group = Group::new(V4, 4);
    let ret = |k| cbpf::Instruction { code: 0x06, jt: 0, jf: 0, k };
    choose(group.sockets[0].as_fd(), &[ret(group.sockets.len() as u32)]).expect("a program");
    // The sink, one of seven, is chosen too; that all of 64 flows meet it happens once in 10^54.
    let mut arrived = 0;
    for _ in 0..64 {
        group.client = UdpSocket::bind("127.0.0.1:0").expect("a client");
        group.client.connect(group.sockets[0].local_addr().expect("an address")).expect("connected");
        group.client.send(&short(&[0; 16], 40)).expect("sent");
    }
    let sink = group.steering.bank.sink() as usize;
    let deadline = Instant::now() + PATIENCE;
    while arrived + refused(group.sockets[sink].as_fd()).expect("a count") < 64 {
        assert!(Instant::now() < deadline, "{arrived} arrived");
        for socket in &group.sockets[..sink] {
            socket.set_nonblocking(true).expect("an option");
            arrived += u32::from(socket.recv(&mut [0; 64]).is_ok());
        }
    }
    assert!(arrived > 0);
}

#[test]
fn a_program_that_the_kernel_refuses_is_an_error() {
    let group = Group::new(V4, 4);
    let socket = group.sockets[0].as_fd();
    let cut = &cbpf::program(&group.steering)[..100];
    for program in [cut, &[]] {
        assert_eq!(choose(socket, program).map_err(|error| error.kind()), Err(ErrorKind::InvalidInput));
    }
}
