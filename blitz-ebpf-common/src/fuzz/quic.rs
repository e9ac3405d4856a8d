//! Entry points for fuzzing what steers QUIC; no part of the interface.

use crate::cbpf::{self, machine};
use crate::cid::{CID_BYTES, Codec, Keys, Parity, Routing, WORKERS_MAX};
use crate::quic::{self, Header, LONG, LONG_DCID_AT, SHORT_DCID_AT};
use crate::steer::{Aim, Bank, Steering};

/// Datagrams of more octets are cut.
const DATAGRAM_MAX: usize = 600;
/// Octets in front of the datagram when it lies in a frame.
const IN_FRONT: usize = 42;

/// The keys of every run: an input means the same in each.
const KEYS: Keys = Keys {
    even: [0x0011_2233, 0x4455_6677, 0x8899_aabb, 0xccdd_eeff],
    odd: [0xdead_beef, 1, 2, 3],
    issues: Parity::Even,
};

/// Reads arbitrary octets as a connection ID, and makes one of them.
///
/// # Panics
/// When an invariant breaks: an accepted one is not what would be issued for its routing and nonce, the two ways to
/// read it disagree, or what was made is not read as it was made.
pub fn cid(data: &[u8]) {
    let Some((cid, rest)) = data.split_first_chunk::<CID_BYTES>() else { return };
    let nonce = u64::from_be_bytes(*cid.first_chunk().expect("16 octets"));
    let issues = if nonce >> 61 & 1 == 0 { Parity::Even } else { Parity::Odd };
    let codec = Codec::new(Keys { issues, ..KEYS });
    if let Ok(routing) = codec.decode(cid) {
        assert_eq!(codec.encode(routing, nonce), *cid, "accepted, but would not be issued");
        assert_eq!(codec.route(cid), Some(routing), "the tag changes the routing");
    }
    let Some(&[a, b, c, d]) = rest.first_chunk::<4>() else { return };
    let worker = u32::from_be_bytes([0, 0, a, b]) % WORKERS_MAX;
    let routing = Routing::new(u16::from_be_bytes([c, d]), u32::from(a), worker).expect("below the bound");
    assert_eq!(codec.decode(&codec.encode(routing, nonce)), Ok(routing), "not read as it was made");
}

/// Steers an arbitrary datagram, with the Rust text and with the classic BPF program.
///
/// The first octets say: what is done to the datagram (bit 0: a short header of ours, bit 1: a long header with a
/// connection ID of ours, bit 2: with a flipped bit), the bank's workers and generation.
///
/// # Panics
/// When an invariant breaks: the two disagree; what lies in front of the datagram or behind it counts; the aim is no
/// worker's socket; a connection ID of ours leads elsewhere than to its owner.
pub fn steer(data: &[u8]) {
    let Some((&[shape, workers, generation, worker], datagram)) = data.split_first_chunk() else { return };
    let bank = Bank::new(u32::from(workers) * 4 + 1, u32::from(generation)).expect("1 to 1021 workers");
    let steering = Steering { codec: Codec::new(KEYS), pick: crate::chaskey::Key::new([7; 4]), bank };
    let length = datagram.len().min(DATAGRAM_MAX);
    let mut octets = [0xff; IN_FRONT + DATAGRAM_MAX + 16];
    octets[IN_FRONT..][..length].copy_from_slice(&datagram[..length]);
    let routing = Routing::new(0, u32::from(generation), u32::from(worker)).expect("below the bound");
    let owner = overlay(&steering, &mut octets[IN_FRONT..][..length], shape, routing);
    let datagram = &octets[IN_FRONT..][..length];

    let aim = steering.aim(datagram, 0, length);
    assert_eq!(steering.aim(&octets[..], IN_FRONT, length), aim, "what is around it counts");
    let index = match aim {
        Aim::Owner(index) => {
            assert!(index < bank.sink(), "no worker's socket");
            index
        }
        Aim::Fresh(index) => {
            assert!(
                (bank.base()..bank.base() + bank.workers()).contains(&index),
                "no worker that takes new ones"
            );
            assert!(
                matches!(quic::parse(datagram, 0, length), Ok(Header::Long { .. })),
                "a short header is never new"
            );
            index
        }
        Aim::Drop(_) => bank.sink(),
    };
    assert_eq!(machine::run(&cbpf::program(&steering), datagram), index, "classic BPF disagrees");
    if let Some(owner) = owner {
        assert_eq!(index, owner.unwrap_or(bank.sink()), "a connection of ours goes elsewhere");
    }
}

/// Puts a connection ID of ours where `shape` says. Then where the datagram has to go: the owner's socket, or none when
/// the bank has none; no answer when that is open.
fn overlay(steering: &Steering, datagram: &mut [u8], shape: u8, routing: Routing) -> Option<Option<u32>> {
    let is_long = match shape & 3 {
        1 => false,
        2 => true,
        _ => return None,
    };
    let first = datagram.first_mut()?;
    *first = if is_long { *first | LONG } else { *first & !LONG };
    if is_long {
        *datagram.get_mut(LONG_DCID_AT - 1)? = CID_BYTES as u8;
    }
    let nonce = u64::from_be_bytes(*datagram.first_chunk().unwrap_or(&[0; 8]));
    let mut cid = steering.codec.encode(routing, nonce);
    if shape & 4 != 0 {
        let bit = usize::from(shape >> 3);
        // Within the first four octets: format, key and nonce.
        *cid.get_mut(bit / 8)? ^= 1 << (bit % 8);
    }
    let at = if is_long { LONG_DCID_AT } else { SHORT_DCID_AT };
    datagram.get_mut(at..at + CID_BYTES)?.copy_from_slice(&cid);
    let is_whole = match quic::parse(&*datagram, 0, datagram.len()) {
        Ok(Header::Long { version, .. }) => version != quic::VERSION_NEGOTIATION,
        Ok(Header::Short { .. }) => true,
        Err(_) => false,
    };
    let is_ours = shape & 4 == 0 && is_whole;
    is_ours.then(|| steering.bank.index(routing.generation(), routing.worker()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    fn replay(target: &str, entry: fn(&[u8])) -> Vec<Vec<u8>> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
        let files = std::fs::read_dir(&folder).expect("the seeds");
        let seeds: Vec<_> =
            files.map(|file| std::fs::read(file.expect("a seed").path()).expect("a seed")).collect();
        seeds.iter().for_each(|seed| entry(seed));
        seeds
    }

    #[test]
    fn every_seed_of_steer_passes() {
        let seeds = replay("steer", steer);
        let of = |kind: u8| {
            seeds.iter().filter(|seed| seed.first().is_some_and(|shape| shape & 3 == kind)).count()
        };
        assert!(of(0) >= 4 && of(1) >= 2 && of(2) >= 2, "{} seeds", seeds.len());
    }

    #[test]
    fn every_seed_of_cid_passes() {
        let seeds = replay("cid", cid);
        let accepted =
            |seed: &&Vec<u8>| seed.first_chunk().is_some_and(|cid| Codec::new(KEYS).decode(cid).is_ok());
        assert_eq!(seeds.iter().filter(accepted).count(), 2, "of both keys");
    }

    /// Datagrams that look like QUIC more often than chance would have it.
    fn datagram() -> impl Strategy<Value = Vec<u8>> {
        let length = prop_oneof![0u8..=24, any::<u8>()];
        let version = prop_oneof![Just(1u32), Just(0), any::<u32>()];
        let long = (any::<u8>(), version, length.clone(), length, prop::collection::vec(any::<u8>(), 0..560))
            .prop_map(|(first, version, dcid, scid, mut rest)| {
                if let Some(octet) = rest.get_mut(usize::from(dcid)) {
                    *octet = scid;
                }
                let mut packet = Vec::from([first | LONG]);
                packet.extend(version.to_be_bytes());
                packet.push(dcid);
                packet.extend(rest);
                packet
            });
        prop_oneof![long, prop::collection::vec(any::<u8>(), 0..60)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..Default::default() })]
        #[test]
        fn rust_and_classic_bpf_agree(head in any::<[u8; 4]>(), datagram in datagram()) {
            steer(&[Vec::from(head), datagram].concat());
        }
    }
}
