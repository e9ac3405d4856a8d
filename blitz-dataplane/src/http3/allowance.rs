//! What may be sent to a client that has not proven its address (RFC 9000 section 8.1).
//!
//! quiche keeps count of it, but not of the padding behind the packets of a handshake, which alone may come to more
//! than is allowed. So it is counted here as well, in whole datagrams.
//!
//! Owns: the count, and the proof. Does not own: tokens, which prove an address before (`retry.rs`), or other paths, on
//! which quiche sends no such padding.

use std::cell::Cell;
use std::net::SocketAddr;

/// Times of what has come that may be sent.
const FACTOR: usize = 3;

/// The allowance of one connection.
pub(super) struct Allowance {
    client: SocketAddr,
    left: Cell<usize>,
    is_proven: Cell<bool>,
}

impl Allowance {
    /// Of `client`, whose first datagram had so many bytes.
    pub(super) fn new(client: SocketAddr, first: usize) -> Self {
        Self { client, left: Cell::new(first.saturating_mul(FACTOR)), is_proven: Cell::new(false) }
    }

    /// Takes a datagram with `receive`, and notes what it earns and proves. `quic` counts the packets that it has
    /// opened.
    pub(super) fn earn<Q, T>(
        &self,
        quic: &mut Q,
        opened: impl Fn(&Q) -> usize,
        from: SocketAddr,
        datagram: &mut [u8],
        receive: impl FnOnce(&mut Q, &mut [u8]) -> T,
    ) -> T {
        if self.is_proven.get() {
            return receive(quic, datagram);
        }
        if from == self.client {
            self.left.set(self.left.get().saturating_add(datagram.len().saturating_mul(FACTOR)));
        }
        let (packets, has_handshake) = packets(datagram);
        let before = opened(quic);
        let outcome = receive(quic, datagram);
        // Who can make a packet of the handshake has read ours. First packets anybody can make.
        self.is_proven.set(has_handshake && opened(quic) == before + packets);
        outcome
    }

    /// Bytes that may be sent now.
    pub(super) fn left(&self) -> usize {
        if self.is_proven.get() { usize::MAX } else { self.left.get() }
    }

    /// Notes what was sent.
    pub(super) fn spend(&self, sent: usize) {
        self.left.set(self.left.get().saturating_sub(sent));
    }
}

/// How many packets of version 1 a datagram has (RFC 9000 section 12.2), and whether one is of the handshake.
fn packets(datagram: &[u8]) -> (usize, bool) {
    let (mut count, mut has_handshake, mut rest) = (0, false, datagram);
    while let Some(first) = rest.first().filter(|first| **first & FIXED != 0) {
        count += 1;
        if first & LONG == 0 {
            break;
        }
        has_handshake |= first & TYPE == HANDSHAKE;
        let Some(behind) = behind(rest, first & TYPE == INITIAL) else { break };
        rest = behind;
    }
    (count, has_handshake)
}

/// Bits of a packet's first byte (RFC 9000 section 17.2).
const LONG: u8 = 0x80;
const FIXED: u8 = 0x40;
const TYPE: u8 = 0x30;
const INITIAL: u8 = 0x00;
const HANDSHAKE: u8 = 0x20;

/// What comes behind a packet with a long header.
fn behind(packet: &[u8], has_token: bool) -> Option<&[u8]> {
    let cid = |rest: &mut &[u8]| {
        let (length, behind) = rest.split_first()?;
        *rest = behind.get(usize::from(*length)..)?;
        Some(())
    };
    let mut rest = packet.get(5..)?;
    cid(&mut rest)?;
    cid(&mut rest)?;
    if has_token {
        let token = integer(&mut rest)?;
        rest = rest.get(token..)?;
    }
    let length = integer(&mut rest)?;
    rest.get(length..)
}

/// A number of variable length (RFC 9000 section 16).
fn integer(rest: &mut &[u8]) -> Option<usize> {
    let first = *rest.first()?;
    let (bytes, behind) = rest.split_at_checked(1 << (first >> 6))?;
    *rest = behind;
    let value = bytes.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    usize::try_from(value & (u64::MAX >> (66 - 8 * bytes.len()))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);
    const INITIAL_PACKET: [u8; 14] = [0xc3, 0, 0, 0, 1, 2, 8, 8, 0, 1, 9, 0x40, 1, 7];
    const HANDSHAKE_PACKET: [u8; 12] = [0xe1, 0, 0, 0, 1, 0, 1, 5, 3, 1, 2, 3];

    #[test]
    fn packets_of_a_datagram_are_told_apart() {
        let both = [&INITIAL_PACKET[..], &HANDSHAKE_PACKET, &[0; 30]].concat();
        assert_eq!(packets(&both), (2, true));
        assert_eq!(packets(&INITIAL_PACKET), (1, false));
        assert_eq!(packets(&[&HANDSHAKE_PACKET[..], &[0x41, 1, 2, 3]].concat()), (2, true));
        assert_eq!(packets(&[]), (0, false));
        for at in 1..both.len() {
            let (count, _) = packets(&both[..at]);
            assert!((1..=2).contains(&count), "cut at {at}");
        }
        let mut rest = &[0xc0, 0, 0, 0, 0, 0, 0x12, 0x34, 9][..];
        assert_eq!((integer(&mut rest), rest), (Some(0x1234), &[9][..]));
    }

    #[test]
    fn an_address_is_proven_by_a_packet_of_the_handshake_that_was_taken() {
        let allowance = Allowance::new(CLIENT, INITIAL_PACKET.len());
        let mut opened = 0;
        let mut comes = |from, datagram: &[u8], count| {
            let mut datagram = datagram.to_vec();
            allowance.earn(&mut opened, |opened| *opened, from, &mut datagram, |opened, _| *opened += count);
        };
        assert_eq!(allowance.left(), 3 * INITIAL_PACKET.len());
        allowance.spend(40);
        assert_eq!(allowance.left(), 2);
        comes(SocketAddr::new(CLIENT.ip(), 2), &INITIAL_PACKET, 1);
        assert_eq!(allowance.left(), 2, "another address earns nothing for this one");
        let both = [&INITIAL_PACKET[..], &HANDSHAKE_PACKET].concat();
        comes(CLIENT, &both, 1);
        assert_eq!(allowance.left(), 2 + 3 * both.len(), "one that nobody could open proves nothing");
        comes(CLIENT, &both, 2);
        assert_eq!(allowance.left(), usize::MAX);
    }
}
