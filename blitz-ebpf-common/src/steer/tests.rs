//! The rule, case by case.

use std::vec::Vec;

use super::*;
use crate::cid::{Keys, Parity};

const WORKERS: u32 = 3;

fn steering(generation: u32) -> Steering {
    let keys = Keys { even: [1, 2, 3, 4], odd: [5, 6, 7, 8], issues: Parity::Even };
    let bank = Bank::new(WORKERS, generation).expect("3 workers");
    Steering { codec: Codec::new(keys), pick: Key::new([9; 4]), bank }
}

fn cid(generation: u32, worker: u32) -> [u8; CID_BYTES] {
    let routing = Routing::new(77, generation, worker).expect("a worker");
    steering(0).codec.encode(routing, 0x0102_0304_0506_0708)
}

fn short(cid: &[u8]) -> Vec<u8> {
    [&[0x41], cid, &[0; 30]].concat()
}

fn long(version: u32, dcid: &[u8]) -> Vec<u8> {
    [&[0xc0][..], &version.to_be_bytes(), &[dcid.len() as u8], dcid, &[5], &[0xaa; 5], &[0; 1200]].concat()
}

fn aim(steering: &Steering, datagram: &[u8]) -> Aim {
    steering.aim(datagram, 0, datagram.len())
}

#[test]
fn a_connection_id_leads_to_its_owner_whichever_generation_is_new() {
    for current in [6, 7] {
        for generation in [6, 7, 8, 63] {
            for worker in 0..WORKERS {
                let owner = Aim::Owner((generation & 1) * WORKERS + worker);
                let cid = cid(generation, worker);
                assert_eq!(aim(&steering(current), &short(&cid)), owner);
                assert_eq!(aim(&steering(current), &long(1, &cid)), owner);
            }
        }
    }
}

#[test]
fn a_worker_that_the_bank_does_not_have_gets_nothing() {
    let dropped = Aim::Drop(Refusal::Worker);
    assert_eq!(aim(&steering(0), &short(&cid(0, WORKERS))), dropped);
    assert_eq!(aim(&steering(0), &long(1, &cid(1, 1023))), dropped);
}

#[test]
fn a_clients_choice_stays_within_the_generation_that_is_new() {
    let mut hits = [0u32; 2 * WORKERS as usize];
    for generation in [4, 5] {
        for n in 0..3000u32 {
            let dcid = [n.to_be_bytes(), [1, 2, 3, 4]].concat();
            let Aim::Fresh(index) = aim(&steering(generation), &long(1, &dcid)) else { panic!("{n}") };
            assert_eq!(index / WORKERS, generation & 1);
            hits[index as usize] += 1;
        }
    }
    // 1000 on average, a standard deviation of 26.
    assert!(hits.iter().all(|hits| hits.abs_diff(1000) < 150), "{hits:?}");
}

#[test]
fn a_repeated_initial_meets_the_same_worker_whatever_else_changes() {
    let dcid = [0x5a; 18];
    let first = aim(&steering(0), &long(1, &dcid));
    let mut again = long(1, &dcid);
    again[0] = 0xd3;
    again.truncate(200);
    assert_eq!(aim(&steering(0), &again), first);
    // Other keys for connection IDs change nothing, either.
    let keys = Keys { even: [1, 2, 3, 4], odd: [0; 4], issues: Parity::Odd };
    assert_eq!(aim(&Steering { codec: Codec::new(keys), ..steering(0) }, &long(1, &dcid)), first);
}

#[test]
fn a_client_that_chooses_16_octets_of_our_format_is_new_all_the_same() {
    let mut stranger = cid(1, 1);
    stranger[15] ^= 1;
    assert!(matches!(aim(&steering(0), &long(1, &stranger)), Aim::Fresh(0..WORKERS)));
    // In a short header nobody looks at the tag: the worker will.
    assert_eq!(aim(&steering(0), &short(&stranger)), Aim::Owner(WORKERS + 1));
}

#[test]
fn every_length_of_a_connection_id_is_steered() {
    for length in 0..=255 {
        let datagram = long(0x1a2a_3a4a, &std::vec![3; length]);
        assert!(matches!(aim(&steering(0), &datagram), Aim::Fresh(0..WORKERS)), "{length}");
    }
}

/// Of a short one all octets count, and none behind it.
#[test]
fn only_the_connection_id_counts() {
    for length in 0..=12u8 {
        for bit in 0..64u8 {
            let window = 1u64 << (63 - bit);
            let counts = bit < 8 * length;
            assert_eq!(counting(length) & window != 0, counts, "bit {bit} of {length} octets");
        }
    }
}

#[test]
fn what_is_no_packet_of_a_client_is_dropped() {
    let cases = [
        (Vec::new(), Refusal::Empty),
        (short(&cid(0, 0))[..16].to_vec(), Refusal::Cut),
        (short(&[0x80; CID_BYTES]), Refusal::Format),
        (long(1, &[1; 8])[..19].to_vec(), Refusal::Cut),
        ([&[0xc0, 0, 0, 0, 1, 0, 0][..], &[0; 6]].concat(), Refusal::Cut),
        (long(0, &cid(0, 0)), Refusal::VersionNegotiation),
    ];
    for (datagram, why) in cases {
        assert_eq!(aim(&steering(0), &datagram), Aim::Drop(why), "{datagram:02x?}");
    }
}

#[test]
fn a_bank_has_room_for_two_generations_and_the_sink() {
    let bank = Bank::new(4, 9).expect("4 workers");
    assert_eq!((bank.sockets(), bank.sink(), bank.base()), (9, 8, 4));
    assert_eq!((bank.index(8, 3), bank.index(9, 0), bank.index(9, 4)), (Some(3), Some(4), None));
    assert_eq!((Bank::new(0, 0), Bank::new(WORKERS_MAX + 1, 0)), (None, None));
    assert!(Bank::new(WORKERS_MAX, 0).is_some());
}

#[test]
fn every_aim_has_a_counter_with_a_label_of_its_own() {
    let aims = [Aim::Owner(1), Aim::Fresh(1)].into_iter().chain(Refusal::ALL.map(Aim::Drop));
    let numbers: Vec<_> = aims.map(Aim::number).collect();
    assert_eq!(numbers, (0..Aim::LABELS.len() as u32).collect::<Vec<_>>());
    let labels: std::collections::BTreeSet<_> = Aim::LABELS.into_iter().collect();
    assert_eq!(labels.len(), Aim::LABELS.len());
    assert_eq!(Aim::Drop(Refusal::Worker).as_str(), "worker");
    assert_eq!(Aim::Drop(Refusal::Unset).as_str(), "unset");
}

#[test]
fn what_is_handed_on_steers_alike() {
    let before = steering(7);
    let after = Steering::from_bytes(&before.to_bytes()).expect("what was handed on");
    assert_eq!(after.bank, before.bank);
    for worker in 0..WORKERS {
        assert_eq!(aim(&after, &short(&cid(6, worker))), Aim::Owner(worker));
    }
    for n in 0..16 {
        assert_eq!(aim(&after, &long(1, &[n; 8])), aim(&before, &long(1, &[n; 8])));
    }
    // No workers, and a key that is neither of the two.
    for (at, octet) in [(STEERING_BYTES - 8, 0), (64, 1)] {
        let mut bytes = before.to_bytes();
        bytes[at] = octet;
        assert!(Steering::from_bytes(&bytes).is_none(), "{at}");
    }
}
