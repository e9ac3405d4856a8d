#![forbid(unsafe_code)]
//! Sets of denied prefixes as the program looks them up: a hash of prefixes, and an index of the
//! lengths that are worth trying.
//!
//! Owns: the invariant of the index: each prefix in the set is found by trying the lengths of its
//! bucket and those tried everywhere. Does not own: the maps (see `maps`), or what
//! an entry means (`blitz_ebpf_common::layout::Deny`).
//!
//! An LPM trie costs about 90 ns at 100,000 prefixes, for hits and misses alike. Here a miss mostly
//! costs one array lookup, and a hit one hash lookup more per length that occurs in the same /16 (IPv4)
//! or in the same hash of a /32 (IPv6).

use std::collections::{BTreeMap, HashMap, btree_map};
use std::net::IpAddr;

use blitz_ebpf_common::layout::{
    Deny, EVERYWHERE_MAX, Everywhere, LENGTHS_MAX, Lengths, PIVOT4, PIVOT6, Prefix4, Prefix6, index4, index6,
};
use blitz_ebpf_common::packet::{Family, Words, words4};

/// An address prefix of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Prefix {
    /// IPv4, slot 0.
    V4(Prefix4),
    /// IPv6, slot 0.
    V6(Prefix6),
}

impl Prefix {
    /// The prefix of `length` bits that holds `address`. An IPv4-mapped IPv6 address of 96 bits or more
    /// is the IPv4 prefix, since that is what the wire carries. Lengths beyond the family's are cut.
    pub fn new(address: IpAddr, length: u8) -> Self {
        match address {
            IpAddr::V4(v4) => Self::V4(Prefix4::of(v4.into(), length.into(), 0)),
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) if length >= 96 => Self::V4(Prefix4::of(v4.into(), u32::from(length) - 96, 0)),
                _ => Self::V6(Prefix6::of(&words6(v6.octets()), length.into(), 0)),
            },
        }
    }

    /// The network address.
    pub fn address(self) -> IpAddr {
        match self {
            Self::V4(prefix) => IpAddr::V4(prefix.address.into()),
            Self::V6(prefix) => IpAddr::V6(octets6(prefix.address).into()),
        }
    }

    /// The length in bits, of the own family.
    pub fn length(self) -> u8 {
        match self {
            Self::V4(prefix) => prefix.length as u8,
            Self::V6(prefix) => prefix.length as u8,
        }
    }

    /// The key of [`blitz_ebpf_common::layout::maps::DENY_NOTES`]: IPv4 in its mapped form.
    pub fn noted(self) -> Prefix6 {
        match self {
            Self::V4(prefix) => {
                Prefix6 { address: words4(prefix.address), length: 96 + prefix.length, slot: 0 }
            }
            Self::V6(prefix) => prefix,
        }
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address(), self.length())
    }
}

/// The family and the words of an address as the program sees it on the wire.
pub fn wire(address: IpAddr) -> (Family, Words) {
    match address.to_canonical() {
        IpAddr::V4(v4) => (Family::V4, words4(v4.into())),
        IpAddr::V6(v6) => (Family::V6, words6(v6.octets())),
    }
}

/// The address that the program sees as these words.
pub fn address((family, words): (Family, Words)) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(words[3].into()),
        Family::V6 => IpAddr::V6(octets6(words).into()),
    }
}

fn words6(octets: [u8; 16]) -> Words {
    let mut words = [0; 4];
    for (word, octets) in words.iter_mut().zip(octets.chunks_exact(4)) {
        *word = octets.iter().fold(0, |word, octet| word << 8 | u32::from(*octet));
    }
    words
}

fn octets6(words: Words) -> [u8; 16] {
    let mut octets = [0; 16];
    for (octets, word) in octets.chunks_exact_mut(4).zip(words) {
        octets.copy_from_slice(&word.to_be_bytes());
    }
    octets
}

/// The lengths tried for every source would need more than [`EVERYWHERE_MAX`] entries. Only IPv6 can
/// come here, with more than 40 different lengths that are short or crowd one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyLengths;

/// Denied prefixes and the index over them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixSet {
    entries: BTreeMap<Prefix, Deny>,
    index4: BTreeMap<u32, Lengths>,
    index6: BTreeMap<u32, Lengths>,
    everywhere: Everywhere,
}

impl PrefixSet {
    /// A set without prefixes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts the lengths of each bucket in order, those with the most prefixes first: they are tried in
    /// this order, and most hits should need one try.
    pub fn order_by_use(&mut self) {
        let mut uses: HashMap<(bool, u32, u8), u32> = HashMap::new();
        for prefix in self.entries.keys() {
            let (six, bucket, length) = match prefix {
                Prefix::V4(p) => (false, index4(0, p.address), p.length),
                Prefix::V6(p) => (true, index6(0, p.address[0]), p.length),
            };
            *uses.entry((six, bucket, listed(length))).or_default() += 1;
        }
        for (six, index) in [(false, &mut self.index4), (true, &mut self.index6)] {
            for (bucket, lengths) in index {
                let mut octets = unpack(&[lengths.packed]);
                octets.sort_by_key(|octet| std::cmp::Reverse(uses.get(&(six, *bucket, *octet)).copied()));
                lengths.packed = pack::<1>(&octets)[0];
            }
        }
    }

    /// Adds a prefix, or replaces its entry. On an error the set is as before.
    pub fn insert(&mut self, prefix: Prefix, deny: Deny) -> Result<(), TooManyLengths> {
        let everywhere = &mut self.everywhere;
        match prefix {
            Prefix::V4(p) if u32::from(p.length) < PIVOT4 => add_everywhere(&mut everywhere.v4, p.length)?,
            Prefix::V4(p) => add(&mut self.index4, index4(0, p.address), p.length, &mut everywhere.v4)?,
            Prefix::V6(p) if u32::from(p.length) < PIVOT6 => add_everywhere(&mut everywhere.v6, p.length)?,
            Prefix::V6(p) => add(&mut self.index6, index6(0, p.address[0]), p.length, &mut everywhere.v6)?,
        }
        self.entries.insert(prefix, deny);
        Ok(())
    }

    /// The prefixes and their entries, in order.
    pub fn entries(&self) -> btree_map::Iter<'_, Prefix, Deny> {
        self.entries.iter()
    }

    /// The entry of exactly this prefix.
    pub fn get(&self, prefix: &Prefix) -> Option<&Deny> {
        self.entries.get(prefix)
    }

    /// How many prefixes of each family: IPv4, IPv6.
    pub fn counts(&self) -> (usize, usize) {
        let v4 = self.entries.keys().filter(|prefix| matches!(prefix, Prefix::V4(_))).count();
        (v4, self.entries.len() - v4)
    }

    /// Whether there is no prefix.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// One bucket of the IPv4 index, for slot 0.
    pub fn index4_at(&self, bucket: u32) -> Lengths {
        self.index4.get(&bucket).copied().unwrap_or_default()
    }

    /// One bucket of the IPv6 index, for slot 0.
    pub fn index6_at(&self, bucket: u32) -> Lengths {
        self.index6.get(&bucket).copied().unwrap_or_default()
    }

    /// Buckets of the IPv4 index that are not empty, for slot 0.
    pub fn index4(&self) -> btree_map::Iter<'_, u32, Lengths> {
        self.index4.iter()
    }

    /// Buckets of the IPv6 index that are not empty, for slot 0.
    pub fn index6(&self) -> btree_map::Iter<'_, u32, Lengths> {
        self.index6.iter()
    }

    /// The lengths tried for every source.
    pub fn everywhere(&self) -> Everywhere {
        self.everywhere
    }
}

/// Adds a length to a bucket of an index; when the bucket is full, to the lengths tried everywhere.
fn add(
    index: &mut BTreeMap<u32, Lengths>,
    bucket: u32,
    length: u16,
    everywhere: &mut [u64; EVERYWHERE_MAX / 8],
) -> Result<(), TooManyLengths> {
    let lengths = index.get(&bucket).copied().unwrap_or_default();
    match with_length(lengths, length) {
        Some(lengths) => {
            index.insert(bucket, lengths);
            Ok(())
        }
        None => add_everywhere(everywhere, length),
    }
}

/// `lengths` with `length` among them; `None` when there is no room for it.
pub fn with_length(lengths: Lengths, length: u16) -> Option<Lengths> {
    let mut octets = unpack(&[lengths.packed]);
    add_to(&mut octets, length);
    (octets.len() <= LENGTHS_MAX).then(|| Lengths { packed: pack::<1>(&octets)[0] })
}

/// Adds `length` to the lengths tried for every source of a family.
pub fn add_everywhere(words: &mut [u64; EVERYWHERE_MAX / 8], length: u16) -> Result<(), TooManyLengths> {
    let mut octets = unpack(words);
    add_to(&mut octets, length);
    if octets.len() > EVERYWHERE_MAX {
        return Err(TooManyLengths);
    }
    *words = pack(&octets);
    Ok(())
}

fn add_to(octets: &mut Vec<u8>, length: u16) {
    if !octets.contains(&listed(length)) {
        octets.push(listed(length));
    }
}

/// A length as the lists hold it. It is at most 128, so the sum fits.
fn listed(length: u16) -> u8 {
    (length + 1) as u8
}

fn unpack(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).take_while(|octet| *octet != 0).collect()
}

fn pack<const N: usize>(octets: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, octets) in words.iter_mut().zip(octets.chunks(8)) {
        *word = octets.iter().rev().fold(0, |word, octet| word << 8 | u64::from(*octet));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').expect("a slash");
        Prefix::new(address.parse().expect("an address"), length.parse().expect("a length"))
    }

    #[test]
    fn a_prefix_is_masked_and_shown_as_its_network() {
        assert_eq!(prefix("192.0.2.77/24").to_string(), "192.0.2.0/24");
        assert_eq!(prefix("2001:db8:1:2:3::/48").to_string(), "2001:db8:1::/48");
        assert_eq!(prefix("::ffff:192.0.2.1/128").to_string(), "192.0.2.1/32");
        assert_eq!(prefix("0.0.0.0/0").to_string(), "0.0.0.0/0");
        assert_eq!(prefix("::/0").to_string(), "::/0");
    }

    #[test]
    fn lengths_are_kept_once_and_the_most_frequent_come_first() {
        let mut set = PrefixSet::new();
        for text in ["10.0.1.0/32", "10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24", "10.0.4.0/32", "10.0.0.0/20"]
        {
            set.insert(prefix(text), Deny::default()).expect("room");
        }
        set.order_by_use();
        assert_eq!(set.index4_at(index4(0, 0x0a00_0000)).packed.to_le_bytes(), [25, 33, 21, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_ninth_length_of_a_bucket_is_tried_everywhere() {
        let mut set = PrefixSet::new();
        for length in 16..=32 {
            set.insert(Prefix::new([10, 0, 0, 0].into(), length), Deny::default()).expect("room");
        }
        assert_eq!(set.index4().count(), 1);
        assert_eq!(unpack(&set.everywhere().v4).len(), 17 - LENGTHS_MAX);
    }

    #[test]
    fn all_lengths_of_ipv4_fit_and_too_many_of_ipv6_are_refused_and_change_nothing() {
        let mut set = PrefixSet::new();
        for length in 0..=32 {
            set.insert(Prefix::new([10, 0, 0, 0].into(), length), Deny::default()).expect("room");
        }
        let mut refused = 0;
        for length in 0..=128 {
            let before = set.clone();
            if set.insert(Prefix::new(IpAddr::V6(0x2001_u128.into()), length), Deny::default()).is_err() {
                refused += 1;
                assert_eq!(set, before);
            }
        }
        assert_eq!(refused, 129 - EVERYWHERE_MAX - LENGTHS_MAX);
    }
}
