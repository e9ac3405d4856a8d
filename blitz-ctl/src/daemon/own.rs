//! Which addresses are this machine's.
//!
//! Owns: the question to the kernel's routing. Does not own: what follows from the answer.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Whether `address` is an address of this machine, in this network namespace.
///
/// A UDP socket is connected to it, which sends nothing: to an own address, and to no other, the kernel
/// chooses that same address as the source. False when there is no route to it at all.
pub(super) fn is_own(address: IpAddr) -> bool {
    let any = match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // Port 9 is `discard`; nothing is sent there.
    let chosen = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    chosen.is_ok_and(|chosen| chosen.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_own_and_documentation_is_not() {
        assert!(is_own(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(!is_own(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))));
        assert!(!is_own("2001:db8::1".parse().expect("address")));
    }
}
