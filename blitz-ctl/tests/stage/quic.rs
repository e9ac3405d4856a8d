//! Datagrams of QUIC: one line for each way they can go, and what holds for all of them.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd as _;
use std::sync::LazyLock;

use blitz_ctl::image::Image;
use blitz_ctl::object::OBJECT;
use blitz_ctl::rehearsal::{Options, Rehearsal};
use blitz_ctl::twin::Twin;
use blitz_ebpf_common::cid::{Codec, Keys, Parity, Routing, WORKERS_MAX};
use blitz_ebpf_common::layout::Verdict::{self, *};
use blitz_ebpf_common::layout::{Fault, STEER_VERSION, Seat, Steer, Steered};
use blitz_tests::{require, xdp_socket};
use proptest::prelude::*;

use super::fixtures::{Fixture, f};
use super::packets::{DESTINATION_OPTIONS, Frame};
use super::{is_root, world};

/// The generation that new connections go to; the one before is still there.
const CURRENT: u32 = 4;
const BEFORE: u32 = 3;
const PORT: u16 = 4443;
const FROM: &str = "172.28.0.1";
const TO: &str = "10.9.9.9";

pub(crate) fn steer(issues: Parity) -> Steer {
    let codec = Codec::new(Keys { even: [1, 2, 3, 4], odd: [5, 6, 7, 8], issues });
    // Far in the future of any clock that counts from boot.
    Steer { drop_until: u64::MAX / 2, version: STEER_VERSION, generation: CURRENT, codec, reserved: 0 }
}

pub(crate) fn seat(generation: u32, worker: u32) -> Seat {
    Seat::new(generation, worker).expect("a worker")
}

/// Workers 0 and 1 of the current generation, worker 0 of the one before.
pub(crate) fn workers() -> BTreeSet<Seat> {
    BTreeSet::from([seat(CURRENT, 0), seat(CURRENT, 1), seat(BEFORE, 0)])
}

/// Who owns the receive queue.
pub(crate) fn owner() -> Seat {
    seat(CURRENT, 0)
}

/// A connection ID of ours.
fn cid(generation: u32, worker: u32) -> [u8; 16] {
    let routing = Routing::new(0xbeef, generation, worker).expect("a worker");
    steer(Parity::Even).codec.encode(routing, 0x0123_4567_89ab_cdef ^ u64::from(worker))
}

fn short(cid: &[u8]) -> Vec<u8> {
    [&[0x41], cid, &[0x77; 30]].concat()
}

/// A long header whose first octet has the bits of `kind`, in a datagram of `length` octets.
fn long(kind: u8, version: u32, dcid: &[u8], length: usize) -> Vec<u8> {
    let head = [&[0xc0 | kind << 4][..], &version.to_be_bytes(), &[dcid.len() as u8], dcid, &[3, 1, 2, 3]];
    let mut datagram = head.concat();
    datagram.resize(datagram.len().max(length), 0x77);
    datagram
}

const INITIAL: u8 = 0;
const ZERO_RTT: u8 = 1;
const HANDSHAKE: u8 = 2;

fn to(content: Vec<u8>) -> Frame {
    Frame::udp(FROM, TO, PORT).content(content)
}

fn to6(content: Vec<u8>) -> Frame {
    Frame::udp("2001:db8:5::1", "2001:db8:9::9", PORT).content(content)
}

/// Every fixture. Worker 0 of the current generation owns the queue, and its socket is there.
pub(crate) fn fixtures() -> Vec<Fixture> {
    let (edge, edge6) = ("service:quic", "service:quic6");
    let own = || short(&cid(CURRENT, 0));
    let changed = |at: usize, bit: u8| {
        let mut datagram = own();
        datagram[1 + at] ^= bit;
        datagram
    };
    let odd = steer(Parity::Odd).codec.encode(Routing::new(1, CURRENT, 0).expect("a worker"), 77);
    let mut like_ours = cid(CURRENT, 1);
    like_ours[15] ^= 1;
    let cut = |length: usize| own()[..length].to_vec();
    let initial = |length| long(INITIAL, 1, &[9; 8], length);
    // 42 octets lie before the datagram, the length of UDP at 38.
    let lying = |length: u16| {
        let mut frame = to(own()).build();
        frame[38..40].copy_from_slice(&length.to_be_bytes());
        frame
    };
    let padded = [to(initial(1199)).build(), vec![0; 8]].concat();
    let q = |about, frame: Frame, verdict, rule, found| f(about, frame, verdict, rule).steered(found);
    vec![
        q("a short header of the queue's owner", to(own()), Redirected, edge, Steered::Owner),
        q("the same over IPv6", to6(own()), Redirected, edge6, Steered::Owner),
        q("behind a VLAN tag", to(own()).vlan(0x8100), Redirected, edge, Steered::Owner),
        q("behind IPv4 options", to(own()).options(3), Redirected, edge, Steered::Owner),
        q(
            "behind an extension header",
            to6(own()).extension(DESTINATION_OPTIONS, 14),
            Redirected,
            edge6,
            Steered::Owner,
        ),
        q("an atomic fragment is whole", to6(own()).fragment(0, false), Redirected, edge6, Steered::Owner),
        q("under the key of the other epoch", to(short(&odd)), Redirected, edge, Steered::Owner),
        q("no octet more than a connection ID", to(cut(17)), Redirected, edge, Steered::Owner),
        q("a Handshake", to(long(HANDSHAKE, 1, &cid(CURRENT, 0), 100)), Redirected, edge, Steered::Owner),
        q(
            "a second Initial, to the connection ID of ours",
            to(long(INITIAL, 1, &cid(CURRENT, 0), 1200)),
            Redirected,
            edge,
            Steered::Owner,
        ),
        q("of a worker on no queue", to(short(&cid(CURRENT, 1))), PassService, edge, Steered::Elsewhere),
        q("of the generation before", to(short(&cid(BEFORE, 0))), PassService, edge, Steered::Elsewhere),
        q(
            "a Handshake of a worker on no queue",
            to(long(HANDSHAKE, 1, &cid(CURRENT, 1), 100)),
            PassService,
            edge,
            Steered::Elsewhere,
        ),
        q(
            "of a worker that nobody is",
            to(short(&cid(CURRENT, 7))),
            PassService,
            edge,
            Steered::UnknownWorker,
        ),
        q(
            "of a generation that is over, in the place of another",
            to(short(&cid(CURRENT - 2, 0))),
            PassService,
            edge,
            Steered::UnknownWorker,
        ),
        q("with one bit of the tag changed", to(changed(15, 1)), PassService, edge, Steered::BadCid),
        q("with one bit of the routing changed", to(changed(11, 1)), PassService, edge, Steered::BadCid),
        q("with one bit of the nonce changed", to(changed(3, 4)), PassService, edge, Steered::BadCid),
        q("of another format", to(changed(0, 0x80)), PassService, edge, Steered::BadCid),
        q("one octet short of a connection ID", to(cut(16)), PassService, edge, Steered::Cut),
        q("an empty datagram", to(Vec::new()), PassService, edge, Steered::Cut),
        f("a length of UDP below its header", lying(7), PassService, edge).steered(Steered::Cut),
        f("a length of UDP beyond the frame", lying(200), PassService, edge).steered(Steered::Cut),
        f("a length of UDP that cuts the connection ID", lying(8 + 16), PassService, edge)
            .steered(Steered::Cut),
        q("an Initial of a new client", to(initial(1200)), Redirected, edge, Steered::Fresh),
        q("the same over IPv6", to6(initial(1200)), Redirected, edge6, Steered::Fresh),
        q(
            "0-RTT is as small as it likes",
            to(long(ZERO_RTT, 1, &[9; 8], 60)),
            Redirected,
            edge,
            Steered::Fresh,
        ),
        q(
            "a client's connection ID that looks like ours",
            to(long(ZERO_RTT, 1, &like_ours, 60)),
            Redirected,
            edge,
            Steered::Fresh,
        ),
        q("an Initial that is too small", to(initial(1199)), DropQuic, "", Steered::SmallInitial),
        f("padding of the frame makes no Initial larger", padded, DropQuic, "")
            .steered(Steered::SmallInitial),
        q(
            "a small Initial to a connection ID of ours",
            to(long(INITIAL, 1, &cid(CURRENT, 0), 300)),
            DropQuic,
            "",
            Steered::SmallInitial,
        ),
        q(
            "a small Initial of an allowed source",
            Frame::udp("198.51.100.1", TO, PORT).content(initial(400)),
            DropQuic,
            "",
            Steered::SmallInitial,
        ),
        q(
            "a connection ID too long for version 1",
            to(long(ZERO_RTT, 1, &[9; 21], 90)),
            PassService,
            edge,
            Steered::BadCid,
        ),
        q(
            "Version Negotiation",
            to(long(INITIAL, 0, &[9; 8], 100)),
            PassService,
            edge,
            Steered::VersionNegotiation,
        ),
        q("version 2", to(long(INITIAL, 0x6b33_43cf, &[9; 8], 1200)), PassService, edge, Steered::Version),
        q(
            "a version of long connection IDs",
            to(long(3, 7, &[9; 255], 90)),
            PassService,
            edge,
            Steered::Version,
        ),
        q(
            "a greased version",
            to6(long(0, 0x1a2a_3a4a, &[9; 8], 1200)),
            PassService,
            edge6,
            Steered::Version,
        ),
        q(
            "unknown versions beyond the rate",
            to(long(0, 7, &[9; 8], 1200)),
            DropQuic,
            "",
            Steered::VersionOver,
        ),
        q("a first fragment", to(own()).fragment(0, true), PassService, edge, Steered::Fragment),
        q("a later fragment", later(), PassService, "service:quic_alone", Steered::Fragment),
        q("a first fragment over IPv6", to6(own()).fragment(0, true), PassService, edge6, Steered::Fragment),
        q(
            "an allowed source's, to its owner",
            Frame::udp("198.51.100.1", TO, PORT).content(own()),
            Redirected,
            edge,
            Steered::Owner,
        ),
        q(
            "an allowed source's, to a worker on no queue",
            Frame::udp("198.51.100.1", TO, PORT).content(short(&cid(CURRENT, 1))),
            PassAllowed,
            edge,
            Steered::Elsewhere,
        ),
        f("a denied source's", Frame::udp("192.0.2.1", TO, PORT).content(own()), DropDenied, "deny:config"),
        f(
            "a blocked source's",
            Frame::udp("192.168.7.1", TO, PORT).content(own()),
            DropBlocked,
            "block:operator",
        ),
        f("TCP to the same port", Frame::tcp(FROM, TO, PORT), PassService, edge),
        f(
            "the same octets to a service of another kind",
            Frame::udp(FROM, TO, 53).content(own()),
            PassService,
            "service:dns",
        ),
        f(
            "a small Initial to a service of another kind",
            Frame::udp(FROM, TO, 53).content(initial(90)),
            PassService,
            "service:dns",
        ),
        q(
            "within the limit of its source",
            Frame::udp("172.28.1.1", "10.0.0.8", PORT + 1).content(own()),
            Redirected,
            "service:quic_limited",
            Steered::Owner,
        )
        .after(2),
        f(
            "beyond the limit of its source it goes nowhere",
            Frame::udp("172.28.1.2", "10.0.0.8", PORT + 1).content(own()),
            DropSourcePackets,
            "limit:packets",
        )
        .after(3),
    ]
}

fn later() -> Frame {
    Frame::udp(FROM, "10.0.0.7", PORT).fragment(1480, false).payload(64)
}

/// The stage of the test's world beside its twin, told how to steer.
struct Pair {
    twin: Twin,
    kernel: Option<Rehearsal>,
}

impl Pair {
    fn new(change: impl FnOnce(&mut Image)) -> Self {
        let mut image = world::image();
        change(&mut image);
        let blocked = HashMap::new();
        let kernel = match Rehearsal::new(OBJECT, &image, &blocked, Options::default()) {
            Ok(kernel) => Some(kernel),
            Err(error) => {
                assert!(!is_root(), "the object does not load: {error}");
                require::skip(&format!("loading BPF needs root here: {error}"));
                None
            }
        };
        let twin = Twin::new(image, blocked);
        twin.now.set(1 << 40);
        Self { twin, kernel }
    }

    fn steer(&mut self, steer: Steer, workers: &BTreeSet<Seat>, queue: Seat) {
        if let Some(kernel) = &mut self.kernel {
            kernel.steer(&steer, workers, queue).expect("written");
        }
        self.twin.steer = Some(steer);
        self.twin.workers.clone_from(workers);
        self.twin.queue = queue;
    }

    /// What both make of a frame.
    #[track_caller]
    fn decides(&mut self, frame: &[u8]) -> (Verdict, Option<Steered>) {
        self.twin.steered.borrow_mut().clear();
        let verdict = self.twin.decide(frame).verdict;
        let steered = self.twin.steered.borrow().clone();
        assert!(steered.len() <= 1, "{steered:?}");
        if let Some(kernel) = &mut self.kernel {
            let before = (kernel.verdicts().expect("counters"), kernel.steered().expect("counters"));
            assert_eq!(kernel.passes(frame).expect("a run"), !verdict.drops(), "{steered:?}");
            let after = (kernel.verdicts().expect("counters"), kernel.steered().expect("counters"));
            assert_eq!(after.0[verdict as usize], before.0[verdict as usize] + 1, "{verdict:?} {steered:?}");
            for found in Steered::ALL {
                let count = after.1[found as usize] - before.1[found as usize];
                assert_eq!(count, u64::from(steered.contains(&found)), "{}: {steered:?}", found.label());
            }
        }
        (verdict, steered.first().copied())
    }
}

#[test]
fn what_is_bad_is_dropped_where_the_policy_says_so_and_somebody_stands_by_the_keys() {
    let bad = to(short(&[0x55; 16])).build();
    let cut = to(vec![0x41; 9]).build();
    let negotiation = to(long(INITIAL, 0, &[9; 8], 100)).build();
    let good = to(short(&cid(CURRENT, 1))).build();
    let mut pair = Pair::new(|image| image.drop_bad = true);
    pair.steer(steer(Parity::Even), &workers(), Seat::NOBODY);
    for (frame, found) in
        [(&bad, Steered::BadCid), (&cut, Steered::Cut), (&negotiation, Steered::VersionNegotiation)]
    {
        assert_eq!(pair.decides(frame), (DropQuic, Some(found)));
    }
    assert_eq!(pair.decides(&good), (PassService, Some(Steered::Elsewhere)));

    // Nobody has renewed the keys for a while.
    pair.steer(Steer { drop_until: 1, ..steer(Parity::Even) }, &workers(), Seat::NOBODY);
    assert_eq!(pair.decides(&bad), (PassService, Some(Steered::BadCid)));
    assert_eq!(pair.decides(&cut), (DropQuic, Some(Steered::Cut)), "the keys have no part in this");

    // The whole stage in shadow.
    let mut pair = Pair::new(|image| (image.drop_bad, image.shadow) = (true, true));
    pair.steer(steer(Parity::Even), &workers(), Seat::NOBODY);
    assert_eq!(pair.decides(&bad), (PassService, Some(Steered::BadCid)));
    assert_eq!(pair.twin.shadowed.borrow().len(), 1);
    let small = to(long(INITIAL, 1, &[9; 8], 1199)).build();
    assert_eq!(pair.decides(&small), (PassService, Some(Steered::SmallInitial)));
}

#[test]
fn without_keys_everything_passes_to_the_kernel() {
    let mut pair = Pair::new(|image| image.drop_bad = true);
    for version in [None, Some(0), Some(STEER_VERSION + 1)] {
        if let Some(version) = version {
            pair.steer(Steer { version, ..steer(Parity::Even) }, &workers(), owner());
        }
        for datagram in [short(&cid(CURRENT, 0)), short(&[0x55; 16]), long(INITIAL, 1, &[9; 8], 1200)] {
            assert_eq!(pair.decides(&to(datagram).build()), (PassService, Some(Steered::Unset)));
        }
        let small = to(long(INITIAL, 1, &[9; 8], 1199)).build();
        assert_eq!(pair.decides(&small), (DropQuic, Some(Steered::SmallInitial)), "needs no keys");
    }
}

/// While an upgrade is under way the old worker keeps its queue, and what is its own; new clients go to the kernel, and
/// from there to the new generation.
#[test]
fn new_clients_go_to_the_current_generation_only() {
    let mut pair = Pair::new(|_| {});
    let initial = to(long(INITIAL, 1, &[9; 8], 1200)).build();
    let old = to(short(&cid(BEFORE, 0))).build();
    for (queue, fresh, owned) in [
        (seat(BEFORE, 0), Steered::FreshElsewhere, Steered::Owner),
        (seat(CURRENT, 0), Steered::Fresh, Steered::Elsewhere),
        (Seat::NOBODY, Steered::FreshElsewhere, Steered::Elsewhere),
    ] {
        pair.steer(steer(Parity::Even), &workers(), queue);
        assert_eq!(pair.decides_without_socket(&initial), Some(fresh), "{queue:?}");
        assert_eq!(pair.decides_without_socket(&old), Some(owned), "{queue:?}");
    }
}

impl Pair {
    /// What both find out about a frame, whether or not the kernel has a socket for it.
    fn decides_without_socket(&mut self, frame: &[u8]) -> Option<Steered> {
        self.twin.steered.borrow_mut().clear();
        self.twin.decide(frame);
        let found = self.twin.steered.borrow().first().copied();
        if let (Some(kernel), Some(found)) = (&mut self.kernel, found) {
            let before = kernel.steered().expect("counters")[found as usize];
            assert!(kernel.passes(frame).expect("a run"));
            assert_eq!(kernel.steered().expect("counters")[found as usize], before + 1, "{}", found.label());
        }
        found
    }
}

/// A worker that was killed leaves its queue behind, and its socket is gone with it.
#[test]
fn a_queue_whose_socket_is_gone_passes_to_the_kernel() {
    let Some(mut kernel) = Pair::new(|_| {}).kernel else { return };
    kernel.steer(&steer(Parity::Even), &workers(), owner()).expect("written");
    let frame = to(short(&cid(CURRENT, 0))).build();
    let counts = |kernel: &Rehearsal| {
        let verdicts = kernel.verdicts().expect("counters");
        let faults = kernel.fault(Fault::NoSocket).expect("counters");
        (verdicts[Redirected as usize], verdicts[PassService as usize], faults)
    };
    assert!(kernel.passes(&frame).expect("a run"));
    assert_eq!(counts(&kernel), (0, 1, 1));
    let socket = xdp_socket().expect("an AF_XDP socket");
    kernel.place(socket.as_fd()).expect("a socket with a ring");
    assert!(kernel.passes(&frame).expect("a run"));
    assert_eq!(counts(&kernel), (1, 1, 1));
    drop(socket);
    assert!(kernel.passes(&frame).expect("a run"));
    assert_eq!(counts(&kernel), (1, 2, 2));
}

/// A datagram to the listener, and what its connection ID says if it is one of ours and whole.
fn datagram() -> impl Strategy<Value = (Vec<u8>, Option<Seat>, bool)> {
    let ours = (0..8_u32, 0..4_u32, any::<u64>(), any::<bool>(), any::<u16>());
    let theirs = prop::collection::vec(any::<u8>(), 0..=20);
    // Which bit of it is changed, if any.
    (ours, theirs, 0..4_u8, prop::option::of(0..128_usize), 1200..1300_usize).prop_map(
        |((generation, worker, nonce, is_odd, host), theirs, kind, bit, length)| {
            let issues = if is_odd { Parity::Odd } else { Parity::Even };
            let routing = Routing::new(host, generation, worker).expect("a worker");
            let mut cid = steer(issues).codec.encode(routing, nonce);
            let mut named = Some(Seat::of(routing));
            if let Some(bit) = bit {
                cid[bit / 8] ^= 1 << (bit % 8);
                named = None;
            }
            match kind {
                0 => (short(&cid), named, false),
                1 => (long(HANDSHAKE, 1, &cid, length), named, true),
                2 => (long(INITIAL, 1, &cid, length), named, true),
                // Of 16 octets they begin like ours once in four, and have a right tag once in 2^32.
                _ => (long(INITIAL, 1, &theirs, length), None, true),
            }
        },
    )
}

fn any_seat() -> impl Strategy<Value = Seat> {
    prop_oneof![
        1 => Just(Seat::NOBODY),
        4 => (0..8_u32, 0..4_u32).prop_map(|(generation, worker)| seat(generation, worker)),
    ]
}

/// Made once: a configuration is parsed for it.
static IMAGE: LazyLock<Image> = LazyLock::new(world::image);

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..Default::default() })]

    /// A socket gets what its worker is named by, and new connections of the current generation. Nothing else.
    #[test]
    fn a_socket_gets_its_workers_own_and_what_is_new(
        (datagram, named, is_long) in datagram(),
        queue in any_seat(),
        alive in prop::collection::btree_set(any_seat(), 0..8),
        generation in 0..8_u32,
    ) {
        let mut twin = Twin::new(IMAGE.clone(), HashMap::new());
        twin.steer = Some(Steer { generation, ..steer(Parity::Even) });
        // A place has room for one; its index is all that the kernel knows it by.
        let by_place: HashMap<u32, Seat> =
            alive.into_iter().filter(|seat| seat.is_taken()).map(|seat| (seat.index(), seat)).collect();
        twin.workers = by_place.values().copied().collect();
        twin.queue = queue;
        let verdict = twin.decide(&to(datagram).build()).verdict;
        let found = twin.steered.take();
        let expected = match named {
            Some(seat) if seat == queue => Steered::Owner,
            Some(seat) if twin.workers.contains(&seat) => Steered::Elsewhere,
            Some(_) => Steered::UnknownWorker,
            None if is_long && queue.is_taken() && queue.generation() == generation => Steered::Fresh,
            None if is_long => Steered::FreshElsewhere,
            None => Steered::BadCid,
        };
        prop_assert_eq!(&found, &[expected]);
        let is_redirected = matches!(expected, Steered::Owner | Steered::Fresh);
        prop_assert_eq!(verdict, if is_redirected { Redirected } else { PassService });
    }
}

/// Seats of workers with high numbers and generations do not run into one another.
#[test]
fn seats_have_places_of_their_own() {
    let mut places = HashMap::new();
    for generation in [CURRENT, CURRENT + 1] {
        for worker in 0..WORKERS_MAX {
            let seat = seat(generation, worker);
            assert_eq!(places.insert(seat.index(), seat), None);
        }
    }
}
