//! The codec: every routing, every flipped bit, and what a look at many connection IDs shows.

use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const EVEN: [u32; 4] = [0x0011_2233, 0x4455_6677, 0x8899_aabb, 0xccdd_eeff];
const ODD: [u32; 4] = [0xdead_beef, 1, 2, 3];

fn codec(issues: Parity) -> Codec {
    Codec::new(Keys { even: EVEN, odd: ODD, issues })
}

/// SplitMix64: as good as random to a statistic, and the same in every run.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

fn routing(host: u16, generation: u32, worker: u32) -> Routing {
    Routing::new(host, generation, worker).expect("a worker below the bound")
}

/// Bits in which two connection IDs differ.
fn difference(one: [u8; CID_BYTES], other: [u8; CID_BYTES]) -> u128 {
    u128::from_be_bytes(one) ^ u128::from_be_bytes(other)
}

/// Fails when `ones` of `trials` fair coins lie further from the half than six standard deviations: over the 10,000
/// coins of a test, once in 50,000 tests.
#[track_caller]
fn assert_fair(ones: u32, trials: u32, what: &str) {
    let distance = f64::from(ones) - f64::from(trials) / 2.0;
    let deviation = f64::from(trials).sqrt() / 2.0;
    assert!(distance.abs() < 6.0 * deviation, "{what}: {ones} of {trials}");
}

/// The layout is a promise to connections that are alive while the gateway is upgraded: it may only change together
/// with the format's number. These two were made by another text in another language.
#[test]
fn the_layout_stays() {
    let routing = routing(0x1234, 5, 678);
    let nonce = 0x0123_4567_89ab_cdef;
    let known = [
        (Parity::Even, 0x4123_4567_89ab_cdef_b197_ac40_9a93_78db_u128),
        (Parity::Odd, 0x6123_4567_89ab_cdef_d29c_0420_51a6_2615),
    ];
    for (issues, cid) in known {
        assert_eq!(codec(issues).encode(routing, nonce), cid.to_be_bytes(), "{issues:?}");
        assert_eq!(codec(issues).decode(&cid.to_be_bytes()), Ok(routing));
    }
}

#[test]
fn every_worker_and_every_generation_comes_back() {
    let codec = codec(Parity::Even);
    let mut nonces = 1;
    for host in [0, 1, 0x5555, 0xffff] {
        for generation in 0..GENERATIONS {
            for worker in 0..WORKERS_MAX {
                let routing = routing(host, generation, worker);
                let fields = (routing.host(), routing.generation(), routing.worker());
                assert_eq!(fields, (host, generation, worker));
                let cid = codec.encode(routing, random(&mut nonces));
                assert_eq!(codec.route(&cid), Some(routing));
                assert_eq!(codec.decode(&cid), Ok(routing));
            }
        }
    }
}

#[test]
fn every_host_comes_back() {
    let codec = codec(Parity::Odd);
    for host in 0..=u16::MAX {
        let routing = routing(host, 63, 1023);
        assert_eq!((routing.host(), routing.generation(), routing.worker()), (host, 63, 1023));
        assert_eq!(codec.decode(&codec.encode(routing, u64::from(host))), Ok(routing));
    }
}

#[test]
fn a_worker_beyond_the_bound_has_no_routing_and_generations_repeat() {
    assert_eq!(Routing::new(0, 0, WORKERS_MAX), None);
    assert_eq!(Routing::new(7, 64 + 3, 9), Routing::new(7, 3, 9));
}

/// Three bits of the first octet are in clear, format and key; all others of the connection IDs of one worker are as
/// good as coins, and no two of them agree more than two strangers do.
#[test]
fn connection_ids_of_one_worker_share_no_visible_bit() {
    const COUNT: u32 = 20_000;
    let codec = codec(Parity::Even);
    let mut state = 2;
    let mut next = || u128::from_be_bytes(codec.encode(routing(1, 2, 3), random(&mut state)));
    let cids: Vec<_> = (0..COUNT).map(|_| next()).collect();
    for bit in 0..128 {
        let ones = cids.iter().filter(|cid| *cid >> bit & 1 == 1).count() as u32;
        match bit {
            127 | 125 => assert_eq!(ones, 0),
            126 => assert_eq!(ones, COUNT),
            _ => assert_fair(ones, COUNT, &std::format!("bit {bit}")),
        }
        // Between each and the next: neither equal nor opposite more often than chance has it.
        let changes = cids.windows(2).filter(|pair| (pair[0] ^ pair[1]) >> bit & 1 == 1).count() as u32;
        if bit < 125 {
            assert_fair(changes, COUNT - 1, &std::format!("changes of bit {bit}"));
        }
    }
}

/// A bit of the nonce changes each bit of the masked routing and of the tag in half of all cases; a bit of the routing
/// changes each bit of the tag so.
#[test]
fn one_changed_bit_changes_half_of_the_others() {
    const TRIALS: u32 = 1000;
    let codec = codec(Parity::Odd);
    let mut state = 3;
    let mut count = |changes: &dyn Fn(u64, Routing) -> [u8; CID_BYTES], low: u32, what: &str| {
        let mut flips = [0; 64];
        for _ in 0..TRIALS {
            let (nonce, routing) = (random(&mut state), Routing(random(&mut state) as u32));
            let difference = difference(codec.encode(routing, nonce), changes(nonce, routing));
            for (bit, flips) in flips.iter_mut().enumerate() {
                *flips += (difference >> bit & 1) as u32;
            }
        }
        for (bit, flips) in flips.iter().enumerate().take(low as usize) {
            assert_fair(*flips, TRIALS, &std::format!("{what} changes bit {bit}"));
        }
    };
    for bit in 0..NONCE_BITS {
        count(&|nonce, routing| codec.encode(routing, nonce ^ 1 << bit), 64, &std::format!("nonce {bit}"));
    }
    for bit in 0..32 {
        let flipped = |nonce, Routing(word)| codec.encode(Routing(word ^ 1 << bit), nonce);
        count(&flipped, 32, &std::format!("routing {bit}"));
    }
}

/// A tag of 32 bits passes one flip in 2^32: of these 256,000 none, but once in 17,000 choices of keys.
#[test]
fn every_flipped_bit_is_refused() {
    let mut state = 4;
    for issues in [Parity::Even, Parity::Odd] {
        let codec = codec(issues);
        for _ in 0..1000 {
            let cid = codec.encode(Routing(random(&mut state) as u32), random(&mut state));
            for bit in 0..128 {
                let flipped = (u128::from_be_bytes(cid) ^ 1 << bit).to_be_bytes();
                let expected = if bit >= 126 { Reject::Format } else { Reject::Tag };
                assert_eq!(codec.decode(&flipped), Err(expected), "bit {bit} of {cid:02x?}");
            }
        }
    }
}

/// Random octets with our format: none is accepted, and the tag's upper half is right as often as 16 bits are by
/// chance. `BLITZ_CID_RANDOM=10000000` takes as many.
#[test]
fn random_octets_are_refused() {
    let count = std::env::var("BLITZ_CID_RANDOM").ok().map(|count| count.parse().expect("a number"));
    let count = count.unwrap_or(1_000_000u32);
    let codec = codec(Parity::Even);
    let mut state = 5;
    let mut near = 0;
    for _ in 0..count {
        let octets = u128::from(random(&mut state)) << 64 | u128::from(random(&mut state));
        let mut cid = octets.to_be_bytes();
        cid[0] = cid[0] & !FORMAT_MASK | FORMAT;
        assert_eq!(codec.decode(&cid), Err(Reject::Tag));
        let [first, second, masked, carried] = words(&cid);
        near += u32::from((tag(codec.key(first), first, second, masked) ^ carried) >> 16 == 0);
    }
    let expected = f64::from(count) / 65536.0;
    assert!((f64::from(near) - expected).abs() < 6.0 * expected.sqrt(), "{near} of {count}");
}

#[test]
fn labels_differ() {
    let [one, other] = Reject::ALL.map(Reject::as_str);
    assert_ne!(one, other);
}

proptest! {
    #[test]
    fn what_one_makes_the_other_reads(
        even in any::<[u32; 4]>(), odd in any::<[u32; 4]>(), is_odd: bool,
        word: u32, nonce: u64,
    ) {
        let issues = if is_odd { Parity::Odd } else { Parity::Even };
        let codec = Codec::new(Keys { even, odd, issues });
        let cid = codec.encode(Routing(word), nonce);
        prop_assert_eq!(codec.decode(&cid), Ok(Routing(word)));
        // The one that issues with the other key reads it as well; one without this key does not.
        let other = if is_odd { Parity::Even } else { Parity::Odd };
        prop_assert_eq!(Codec::new(Keys { even, odd, issues: other }).decode(&cid), Ok(Routing(word)));
        let (even, odd) = if is_odd { (even, odd.map(|word| !word)) } else { (even.map(|word| !word), odd) };
        prop_assert_eq!(Codec::new(Keys { even, odd, issues }).decode(&cid), Err(Reject::Tag));
    }

    #[test]
    fn what_is_accepted_is_what_would_be_issued(octets in any::<[u8; 20]>()) {
        crate::fuzz::cid(&octets);
    }
}
