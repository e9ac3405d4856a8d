//! Deny lists of a realistic mix, and sources inside and outside of them.
//!
//! Owns: what is drawn. Deterministic: every run measures the same lists. Networks are spread evenly over
//! the address space, so that most buckets of the stage's index hold something: lists of the wild crowd
//! in fewer buckets, which a miss would leave sooner.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use blitz_ctl::prefixes::{Prefix, PrefixSet};
use blitz_ebpf_common::layout::Deny;

/// Prefixes of each list.
pub(super) const PREFIXES: usize = 100_000;

/// SplitMix64 (Steele, Lea, Flood 2014): good enough to draw addresses.
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Below `end`; the bias of the remainder is below 2^-32 for what is drawn here.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A unicast IPv4 address that is neither private nor of the host itself.
    fn v4(&mut self) -> Ipv4Addr {
        loop {
            let address = Ipv4Addr::from_bits(self.next() as u32);
            if (1..224).contains(&address.octets()[0]) && !matches!(address.octets()[0], 10 | 127) {
                return address;
            }
        }
    }

    /// A global unicast IPv6 address, 2000::/3.
    fn v6(&mut self) -> Ipv6Addr {
        let bits = u128::from(self.next()) << 64 | u128::from(self.next());
        Ipv6Addr::from_bits(bits >> 3 | 1 << 125)
    }

    fn address(&mut self, is_v6: bool) -> IpAddr {
        if is_v6 { self.v6().into() } else { self.v4().into() }
    }

    /// 60 % /24, 20 % /32, the rest /16 to /23; of IPv6 60 % /48, 20 % /64, 10 % /128, the rest /32 to /44.
    fn length(&mut self, is_v6: bool) -> u8 {
        match (is_v6, self.below(100)) {
            (false, 0..60) => 24,
            (false, 60..80) => 32,
            (false, _) => 16 + self.below(8) as u8,
            (true, 0..60) => 48,
            (true, 60..80) => 64,
            (true, 80..90) => 128,
            (true, _) => 32 + 4 * self.below(4) as u8,
        }
    }

    /// [`PREFIXES`] different prefixes of one family, of the mix.
    pub(super) fn mix(&mut self, set: &mut PrefixSet, is_v6: bool, deny: Deny) -> Result<(), String> {
        let mut count = 0;
        while count < PREFIXES {
            let prefix = Prefix::new(self.address(is_v6), self.length(is_v6));
            if set.get(&prefix).is_none() {
                set.insert(prefix, deny).map_err(|_| format!("{prefix} finds no room in the index"))?;
                count += 1;
            }
        }
        Ok(())
    }

    /// Sources inside: each in a prefix drawn from the list, so that lengths come in the mix's shares.
    pub(super) fn inside(&mut self, set: &PrefixSet, is_v6: bool, count: usize) -> Vec<IpAddr> {
        let prefixes: Vec<&Prefix> = set
            .entries()
            .map(|(prefix, _)| prefix)
            .filter(|prefix| prefix.address().is_ipv6() == is_v6)
            .collect();
        let mut sources = Vec::new();
        while sources.len() < count && !prefixes.is_empty() {
            let Some(prefix) = prefixes.get(self.below(prefixes.len() as u64) as usize) else { continue };
            let length = u32::from(prefix.length());
            let host = self.next();
            sources.push(match prefix.address() {
                IpAddr::V4(network) => {
                    let mask = u32::MAX.checked_shr(length).unwrap_or(0);
                    Ipv4Addr::from_bits(network.to_bits() | host as u32 & mask).into()
                }
                IpAddr::V6(network) => {
                    let mask = u128::MAX.checked_shr(length).unwrap_or(0);
                    Ipv6Addr::from_bits(network.to_bits() | u128::from(host) & mask).into()
                }
            });
        }
        sources
    }

    /// Sources that no prefix of the list holds.
    pub(super) fn outside(&mut self, set: &PrefixSet, is_v6: bool, count: usize) -> Vec<IpAddr> {
        let mut sources = Vec::new();
        while sources.len() < count {
            let address = self.address(is_v6);
            if !holds(set, address) {
                sources.push(address);
            }
        }
        sources
    }
}

/// Whether some prefix of the list holds the address.
pub(super) fn holds(set: &PrefixSet, address: IpAddr) -> bool {
    (0..=if address.is_ipv6() { 128 } else { 32 })
        .any(|length| set.get(&Prefix::new(address, length)).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_is_as_said_and_sources_are_where_they_should_be() {
        for is_v6 in [false, true] {
            let (mut draw, mut set) = (Draw::new(1), PrefixSet::new());
            draw.mix(&mut set, is_v6, Deny::default()).expect("room");
            let of = |length| set.entries().filter(|(prefix, _)| prefix.length() == length).count();
            let (often, seldom) = if is_v6 { (of(48), of(64)) } else { (of(24), of(32)) };
            assert!(often.abs_diff(60_000) < 1000 && seldom.abs_diff(20_000) < 1000, "{often} {seldom}");
            assert_eq!(set.entries().count(), PREFIXES);
            assert!(draw.inside(&set, is_v6, 100).iter().all(|source| holds(&set, *source)));
            assert!(draw.outside(&set, is_v6, 100).iter().all(|source| !holds(&set, *source)));
        }
    }
}
