//! Entry points for fuzzing; no part of the interface.

mod quic;

pub use quic::{cid, steer};

use crate::packet::{OFFSET_MAX, Packet, TRANSPORT_MAX, parse};

/// Octets of a VLAN tag.
const TAG: usize = 4;
/// Frames of more octets are cut.
const FRAME_MAX: usize = 1600;

/// Parses arbitrary octets as a frame.
///
/// # Panics
/// When an invariant breaks: a packet that changes with what follows its headers, or with a VLAN tag in
/// front of them.
pub fn packet(data: &[u8]) {
    let data = data.get(..FRAME_MAX).unwrap_or(data);
    let Some(packet) = parse(data) else { return };
    let mut longer = [0xff; FRAME_MAX + 64];
    for (to, from) in longer.iter_mut().zip(data) {
        *to = *from;
    }
    assert_eq!(parse(&longer[..]), Some(packet), "what follows the headers counts");

    // A tag goes in front of the ethertype; the addresses before it stay.
    let Some((addresses, rest)) = data.split_at_checked(12) else { return };
    let mut tagged = [0; FRAME_MAX + TAG];
    let octets = addresses.iter().chain(&[0x81, 0x00, 0x00, 0x07]).chain(rest);
    for (to, from) in tagged.iter_mut().zip(octets) {
        *to = *from;
    }
    let tagged = parse(tagged.get(..data.len() + TAG).unwrap_or_default());
    let has_two_tags = |at: usize| matches!(data.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8]));
    match tagged {
        // Headers that a tag moves beyond the bound are hidden. Where they lie is what their lengths claim, which
        // may be far behind the end of the frame.
        Some(tagged) if tagged.hidden && !packet.hidden => {
            let beyond = |at: &usize| (TRANSPORT_MAX - TAG + 1..=TRANSPORT_MAX).contains(at);
            assert!(extension_ends(data).any(|at| beyond(&at)), "a tag hides headers");
        }
        Some(tagged) => {
            let moved = if packet.transport_at == 0 { 0 } else { TAG };
            let packet = Packet { transport_at: packet.transport_at + moved, ..packet };
            assert_eq!(tagged, packet, "a tag changes the packet");
        }
        // Two tags are followed, and no header beyond the bound.
        None => assert!(has_two_tags(16) || data.len() + TAG > OFFSET_MAX - 20, "a tag hides the packet"),
    }
}

/// Where the extension headers of an IPv6 frame end, one after the other, by the lengths that they claim: a walk of
/// its own, which knows no bound and no kind but that fragments and authentication count differently.
fn extension_ends(data: &[u8]) -> impl Iterator<Item = usize> {
    let octet = |at: usize| data.get(at).copied().map(usize::from);
    let mut at = 12;
    while matches!(data.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8])) {
        at += TAG;
    }
    let mut next = octet(at + 2 + 6);
    at += 2 + 40;
    core::iter::from_fn(move || {
        let length = match next? {
            44 => 8,
            51 => (octet(at + 1)? + 2) * 4,
            _ => (octet(at + 1)? + 1) * 8,
        };
        next = octet(at);
        at += length;
        Some(at)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    /// Frames that look like IP more often than chance would have it.
    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let ethertype = prop_oneof![
            Just(Vec::from([0x08, 0x00])),
            Just(Vec::from([0x86, 0xdd])),
            Just(Vec::from([0x81, 0x00, 0x00, 0x05, 0x08, 0x00])),
            Just(Vec::from([0x88, 0xa8, 0x00, 0x05, 0x81, 0x00, 0x00, 0x05, 0x86, 0xdd])),
            prop::collection::vec(any::<u8>(), 2),
        ];
        let protocol =
            prop_oneof![Just(6u8), Just(17), Just(0), Just(43), Just(44), Just(51), Just(60), any::<u8>()];
        let content = prop::collection::vec(any::<u8>(), 0..1200);
        (ethertype, protocol, content, any::<bool>()).prop_map(
            |(ethertype, protocol, mut content, is_six)| {
                if let Some(first) = content.first_mut() {
                    *first = if is_six { 0x60 } else { 0x45 };
                }
                for at in if is_six { [6, 40] } else { [9, 9] } {
                    if let Some(octet) = content.get_mut(at) {
                        *octet = protocol;
                    }
                }
                [Vec::from([0; 12]), ethertype, content].concat()
            },
        )
    }

    #[test]
    fn every_seed_passes() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/packet");
        let files = std::fs::read_dir(&folder).expect("the seeds");
        let frames: Vec<_> =
            files.map(|file| std::fs::read(file.expect("a seed").path()).expect("a seed")).collect();
        assert!(frames.iter().filter(|frame| crate::packet::parse(&frame[..]).is_some()).count() >= 9);
        frames.iter().for_each(|frame| super::packet(frame));
    }

    /// A header whose claimed length ends just before the bound, in a frame that is short: a tag moves that end
    /// beyond the bound, and nothing is wrong with that.
    #[test]
    fn a_claimed_length_at_the_bound_is_no_fault() {
        // Ethernet and IPv6 take 54 octets: 54 + 956 = 1010, and 1014 lies beyond 1011. Authentication counts in words.
        let mut frame = Vec::from([0; 12]);
        frame.extend([0x86, 0xdd, 0x60]);
        frame.extend([0; 39]);
        frame[12 + 2 + 6] = 51;
        frame.extend([59, (956 / 4 - 2) as u8]);
        assert!(crate::packet::parse(&frame[..]).is_some_and(|packet| !packet.hidden));
        super::packet(&frame);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..Default::default() })]
        #[test]
        fn headers_decide_and_nothing_else(frame in frame()) {
            super::packet(&frame);
        }
    }
}
