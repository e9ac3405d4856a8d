//! The packets of the XDP bench.
//!
//! Owns: Ethernet, IPv4, IPv6, TCP and UDP headers with right lengths. Checksums are zero: neither the
//! stage nor what it is compared with looks at them before it drops or passes.

use std::net::IpAddr;

/// Hardware address of the receiving end.
pub(super) const HOST_MAC: [u8; 6] = [2, 0xb1, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0xb1, 0, 0, 0, 2];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A TCP segment with ACK and no payload. Both addresses are of one family.
pub(super) fn tcp(source: IpAddr, destination: IpAddr, port: u16) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(40_000_u16.to_be_bytes());
    segment.extend(port.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1]);
    // Five words of header, ACK, a window of 65,535.
    segment.extend([0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame(source, destination, TCP, &segment)
}

/// A UDP datagram of 18 octets: the smallest Ethernet frame.
pub(super) fn udp(source: IpAddr, destination: IpAddr, port: u16) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(40_000_u16.to_be_bytes());
    segment.extend(port.to_be_bytes());
    segment.extend(26_u16.to_be_bytes());
    segment.extend([0; 2 + 18]);
    frame(source, destination, UDP, &segment)
}

/// A UDP datagram with this content.
pub(super) fn datagram(source: IpAddr, destination: IpAddr, port: u16, content: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(40_000_u16.to_be_bytes());
    segment.extend(port.to_be_bytes());
    segment.extend((8 + content.len() as u16).to_be_bytes());
    segment.extend([0; 2]);
    segment.extend(content);
    frame(source, destination, UDP, &segment)
}

fn frame(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> Vec<u8> {
    let mut frame = [HOST_MAC, PEER_MAC].concat();
    let length = segment.len() as u16;
    match (source.to_canonical(), destination.to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((20 + length).to_be_bytes());
            // No fragment, do not fragment, 64 hops.
            frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (source, destination) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(octets(source));
            frame.extend(octets(destination));
        }
    }
    frame.extend(segment);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_lengths_they_name() {
        let (a, b) = ([192, 0, 2, 1].into(), [10, 0, 0, 1].into());
        let frame = udp(a, b, 443);
        assert_eq!(frame.len(), 60);
        assert_eq!(u16::from_be_bytes([frame[16], frame[17]]), 60 - 14);
        let (a, b) = (IpAddr::V6(1.into()), IpAddr::V6(2.into()));
        let frame = tcp(a, b, 443);
        assert_eq!(frame.len(), 14 + 40 + 20);
        assert_eq!(u16::from_be_bytes([frame[18], frame[19]]), 20);
    }
}
