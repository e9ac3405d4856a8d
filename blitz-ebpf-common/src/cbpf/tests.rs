//! The program against the rule that it states; `fuzz::steer` does the same with datagrams of any kind.

use std::collections::BTreeSet;
use std::vec::Vec;

use super::*;
use crate::cid::{Codec, GENERATIONS, Keys, Parity, Routing};
use crate::steer::Aim;

fn steering(workers: u32, generation: u32) -> Steering {
    let keys = Keys { even: [1, 2, 3, u32::MAX], odd: [5, 6, 7, 8], issues: Parity::Odd };
    let bank = Bank::new(workers, generation).expect("workers");
    Steering { codec: Codec::new(keys), pick: Key::new([9; 4]), bank }
}

fn short(cid: [u8; CID_BYTES]) -> [u8; 40] {
    let mut datagram = [0x40; 40];
    datagram[1..17].copy_from_slice(&cid);
    datagram
}

fn long(cid: [u8; CID_BYTES]) -> [u8; 40] {
    let mut datagram = [0; 40];
    datagram[..6].copy_from_slice(&[0xe0, 0, 0, 0, 1, 16]);
    datagram[6..22].copy_from_slice(&cid);
    datagram
}

/// All workers of two generations, and all generations of two workers, of the largest bank, by both headers.
#[test]
fn every_worker_and_every_generation_is_found() {
    let steering = steering(WORKERS_MAX, 0);
    let program = program(&steering);
    let workers = (0..2).flat_map(|generation| (0..WORKERS_MAX).map(move |worker| (generation, worker)));
    let generations =
        (0..GENERATIONS).flat_map(|generation| [(generation, 0), (generation, WORKERS_MAX - 1)]);
    for (nonce, (generation, worker)) in workers.chain(generations).enumerate() {
        let routing = Routing::new(0xffff, generation, worker).expect("a worker");
        let cid = steering.codec.encode(routing, (nonce as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let owner = (generation & 1) * WORKERS_MAX + worker;
        assert_eq!(machine::run(&program, &short(cid)), owner);
        assert_eq!(machine::run(&program, &long(cid)), owner);
    }
}

/// Every length of a datagram and of both connection IDs, as far as they meet.
#[test]
fn every_length_is_treated_alike() {
    let steering = steering(5, 1);
    let program = program(&steering);
    let mut datagram: [u8; 560] = core::array::from_fn(|at| (at * 29) as u8);
    datagram[0] = 0xc0;
    for dcid_length in (0..24).chain([254, 255]) {
        datagram[5] = dcid_length;
        for scid_length in [0, 1, 20, 255] {
            let scid_length_at = 6 + usize::from(dcid_length);
            let kept = core::mem::replace(&mut datagram[scid_length_at], scid_length);
            for length in (0..60).chain(260..300).chain(510..530) {
                let index = match steering.aim(&datagram[..length], 0, length) {
                    Aim::Owner(index) | Aim::Fresh(index) => index,
                    Aim::Drop(_) => steering.bank.sink(),
                };
                assert_eq!(
                    machine::run(&program, &datagram[..length]),
                    index,
                    "{dcid_length} {scid_length} {length}"
                );
            }
            datagram[scid_length_at] = kept;
        }
    }
}

#[test]
fn it_fits_and_every_jump_stays_inside() {
    let text = program(&steering(1, 0));
    for (at, instruction) in text.iter().enumerate() {
        let targets = match instruction.code {
            JA => [at + 1 + instruction.k as usize; 2],
            RET_A | RET_K => continue,
            _ => [at + 1 + usize::from(instruction.jt), at + 1 + usize::from(instruction.jf)],
        };
        assert!(targets.iter().all(|target| *target < text.len()), "{at}: {instruction:?}");
    }
    // Nobody is served by a result that is none of the program's own.
    let results: BTreeSet<_> = text
        .iter()
        .filter(|instruction| instruction.code == RET_K)
        .map(|instruction| instruction.k)
        .collect();
    assert_eq!(results, BTreeSet::from([2]));
}

/// The lengths of the text do not tell keys apart: it is one text with other operands.
#[test]
fn other_keys_change_operands_only() {
    let shape = |steering: &Steering| -> Vec<_> {
        program(steering)
            .iter()
            .map(|instruction| (instruction.code, instruction.jt, instruction.jf))
            .collect()
    };
    let keys = Keys { even: [0; 4], odd: [0; 4], issues: Parity::Even };
    let other = Steering { codec: Codec::new(keys), ..steering(7, 1) };
    assert_eq!(shape(&steering(7, 1)), shape(&other));
}

#[test]
fn the_sink_takes_nothing() {
    assert_eq!(machine::run(&REFUSE_ALL, &[1, 2, 3]), 0);
}
