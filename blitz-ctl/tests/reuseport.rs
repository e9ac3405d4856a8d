//! The `sk_reuseport` program in the kernel: the rule of `blitz_ebpf_common::steer`, socket by socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;

use blitz_ctl::reuseport::BankProgram;
use blitz_ebpf_common::chaskey::Key;
use blitz_ebpf_common::cid::{Codec, Keys, Parity, Routing};
use blitz_ebpf_common::steer::{Aim, Bank as Shape, Refusal, Steering};
use blitz_tests::bank::Bank;
use blitz_tests::require;

const WORKERS: u32 = 3;
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn steering(generation: u32) -> Steering {
    let keys = Keys { even: [1, 2, 3, 4], odd: [5, 6, 7, 8], issues: Parity::Odd };
    let bank = Shape::new(WORKERS, generation).expect("3 workers");
    Steering { codec: Codec::new(keys), pick: Key::new([9; 4]), bank }
}

/// Whether programs may be loaded; says why not.
fn may_load() -> bool {
    if !require::is_root() {
        require::skip("loading BPF needs root");
    }
    require::is_root()
}

/// Both families, where the machine has both.
fn hosts() -> Vec<IpAddr> {
    let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let has_v6 = UdpSocket::bind((v6, 0)).is_ok();
    if !has_v6 {
        require::skip("over IPv6: this machine has no [::1]");
    }
    [V4].into_iter().chain(has_v6.then_some(v6)).collect()
}

/// A bank with its sockets placed and the program attached.
fn steered(host: IpAddr, generation: u32) -> (Bank, BankProgram) {
    let bank = Bank::bind(host, steering(generation));
    let mut program = BankProgram::load().expect("the kernel takes it");
    program.steer(&bank.steering).expect("an entry");
    for (index, socket) in (0..).zip(bank.sockets()) {
        program.place(index, socket.as_fd()).expect("a free place");
    }
    program.attach(bank.sockets()[0].as_fd()).expect("attached");
    (bank, program)
}

fn cid(generation: u32, worker: u32) -> [u8; 16] {
    let routing = Routing::new(0x0a0b, generation, worker).expect("a worker");
    steering(0).codec.encode(routing, u64::from(worker) << 40 | 0x1234_5678)
}

fn short(cid: &[u8], length: usize) -> Vec<u8> {
    let mut datagram = [&[0x40], cid].concat();
    datagram.resize(length, 0x77);
    datagram
}

fn long(version: u32, dcid: &[u8]) -> Vec<u8> {
    let head = [&[0xc0][..], &version.to_be_bytes(), &[dcid.len() as u8], dcid, &[3, 1, 2, 3]];
    let mut datagram = head.concat();
    datagram.resize(datagram.len().max(1200), 0x77);
    datagram
}

fn count(program: &BankProgram, label: &str) -> u64 {
    let aims = program.aims().expect("counters");
    aims.into_iter().find(|(name, _)| *name == label).expect("a counter of this label").1
}

#[test]
fn every_worker_of_both_generations_gets_its_own() {
    if !may_load() {
        return;
    }
    for host in hosts() {
        let (mut bank, program) = steered(host, 5);
        let mut sent = 0;
        for generation in [4, 5, 63] {
            for worker in 0..WORKERS {
                let owner = Aim::Owner((generation & 1) * WORKERS + worker);
                // 60,000 octets do not fit into the linear part: the program finds its header in the pieces.
                for length in [17, 40, 1400, 60_000] {
                    assert_eq!(bank.follows(&short(&cid(generation, worker), length)), owner);
                }
                assert_eq!(bank.follows(&long(1, &cid(generation, worker))), owner);
                sent += 5;
            }
        }
        assert_eq!(count(&program, "owner"), sent);
    }
}

#[test]
fn a_new_connection_stays_with_one_worker_of_the_new_generation() {
    if !may_load() {
        return;
    }
    let (mut bank, mut program) = steered(V4, 8);
    for n in 0..64u8 {
        let dcid = vec![n; usize::from(n) * 4];
        let first = bank.follows(&long(1, &dcid));
        assert!(matches!(first, Aim::Fresh(0..WORKERS)), "{first:?}");
        assert_eq!(bank.follows(&long(1, &dcid)), first);
    }
    assert_eq!(count(&program, "fresh"), 128);
    // The next generation takes the new ones as soon as the entry says so; owners stay.
    bank.steering.bank = Shape::new(WORKERS, 9).expect("3 workers");
    program.steer(&bank.steering).expect("an entry");
    for n in 0..16u8 {
        assert!(matches!(bank.follows(&long(1, &[n; 8])), Aim::Fresh(WORKERS..)));
    }
    assert_eq!(bank.follows(&short(&cid(8, 2), 100)), Aim::Owner(2));
}

#[test]
fn what_nobody_gets_is_refused_without_a_word() {
    if !may_load() {
        return;
    }
    for host in hosts() {
        let (mut bank, program) = steered(host, 4);
        let mut stranger = cid(4, 0);
        stranger[0] ^= 0x80;
        let cases = [
            (Vec::new(), Refusal::Empty),
            (vec![0x40], Refusal::Cut),
            (short(&cid(4, 0), 40)[..16].to_vec(), Refusal::Cut),
            (short(&stranger, 40), Refusal::Format),
            (short(&cid(4, WORKERS), 40), Refusal::Worker),
            (long(1, &cid(5, 1023)), Refusal::Worker),
            (long(1, &[1; 8])[..17].to_vec(), Refusal::Cut),
            (vec![0xc0; 13], Refusal::Cut),
            (long(0, &cid(4, 0)), Refusal::VersionNegotiation),
        ];
        for (datagram, why) in &cases {
            assert_eq!(bank.follows(datagram), Aim::Drop(*why), "{datagram:02x?}");
        }
        for (label, expected) in
            [("empty", 1), ("cut", 4), ("format", 1), ("worker", 2), ("version_negotiation", 1)]
        {
            assert_eq!(count(&program, label), expected, "{label}");
        }
        assert_eq!(count(&program, "owner") + count(&program, "fresh"), 0);
    }
}

/// A worker whose socket is not there: its datagrams are dropped, and never end at another's.
#[test]
fn an_empty_place_drops() {
    if !may_load() {
        return;
    }
    let (mut bank, mut program) = steered(V4, 4);
    program.clear(1).expect("was taken");
    for _ in 0..32 {
        bank.is_refused(&short(&cid(4, 1), 100));
    }
    assert_eq!(count(&program, "slot"), 32);
    bank.arrives(2, &short(&cid(4, 2), 100));
    program.place(1, bank.sockets()[1].as_fd()).expect("a free place");
    bank.arrives(1, &short(&cid(4, 1), 100));
}

/// Why there is a sink: without it the kernel tells the sender that nobody listens, and clients give up.
#[test]
fn without_a_sink_a_drop_is_answered_with_an_icmp_error() {
    if !may_load() {
        return;
    }
    let (mut bank, mut program) = steered(V4, 4);
    program.clear(bank.steering.bank.sink()).expect("was taken");
    bank.is_answered_with_an_error(&short(&cid(4, WORKERS), 40));
}

#[test]
fn a_program_that_nobody_has_told_how_to_steer_drops() {
    if !may_load() {
        return;
    }
    let bank = Bank::bind(V4, steering(4));
    let mut program = BankProgram::load().expect("the kernel takes it");
    // Without an entry there is no shape, so the sink is place 0.
    program.place(0, bank.sockets()[bank.steering.bank.sink() as usize].as_fd()).expect("a free place");
    program.attach(bank.sockets()[0].as_fd()).expect("attached");
    let mut bank = bank;
    bank.is_refused(&short(&cid(4, 1), 100));
    assert_eq!(count(&program, "unset"), 1);
}

#[test]
fn a_place_is_taken_once_and_a_socket_lies_in_one_place() {
    if !may_load() {
        return;
    }
    let (bank, mut program) = steered(V4, 4);
    let error = program.place(1, bank.sockets()[2].as_fd()).expect_err("taken");
    assert!(error.cause().contains("File exists"), "{error}");
    program.clear(1).expect("was taken");
    let error = program.place(1, bank.sockets()[2].as_fd()).expect_err("lies in place 2");
    assert!(error.cause().contains("busy"), "{error}");
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    assert!(program.place(1, stranger.as_fd()).is_err(), "in no group");
    assert!(program.attach(stranger.as_fd()).is_err(), "in no group");
}
