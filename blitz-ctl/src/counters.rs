//! What the stage has counted, summed over processors.
//!
//! Owns: reading verdicts, rules, faults. Does not own: how they are shown (see [`crate::cli`]) or
//! exported (see the daemon).
#![forbid(unsafe_code)]

use std::io;

use blitz_ebpf_common::gcra;
use blitz_ebpf_common::layout::{Count, Fault, RuleCount, RuleName, Steered, Verdict};
use blitz_ebpf_common::sources::{Set, WAYS};
use serde::Serialize;

use crate::maps::Maps;

/// Packets and octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// Packets (count).
    pub packets: u64,
    /// Octets of frames, without the frame check sequence.
    pub bytes: u64,
}

impl Sum {
    fn add(&mut self, count: &Count) {
        // Counters of one CPU never wrap in practice; their sum must not panic either.
        self.packets = self.packets.wrapping_add(count.packets);
        self.bytes = self.bytes.wrapping_add(count.bytes);
    }
}

/// What one rule did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RuleSum {
    /// Its number.
    pub number: u32,
    /// Its name, such as `limit:per_source`.
    pub name: String,
    /// What it decided.
    pub decided: Sum,
    /// What it would have dropped without `shadow`.
    pub shadow: Sum,
}

/// Everything that one stage has counted since it was attached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// By verdict, in the order of [`Verdict::ALL`].
    pub verdicts: Vec<(&'static str, Sum)>,
    /// By rule, for every rule that has a name.
    pub rules: Vec<RuleSum>,
    /// Datagrams to services that speak QUIC by what was found out, in the order of [`Steered::ALL`].
    pub steered: Vec<(&'static str, u64)>,
    /// By fault, in the order of [`Fault::ALL`].
    pub faults: Vec<(&'static str, u64)>,
}

impl Counters {
    /// Reads all of them. Each value is read whole; packets go on being counted meanwhile, so sums of
    /// different lines may differ by what arrived between.
    ///
    /// # Errors
    /// What bpf(2) reports.
    pub fn read(maps: &Maps) -> io::Result<Self> {
        let mut counters = Self::default();
        for verdict in Verdict::ALL {
            let mut sum = Sum::default();
            maps.verdicts.get(verdict as u32)?.iter().for_each(|count| sum.add(count));
            counters.verdicts.push((verdict.label(), sum));
        }
        for (number, name) in rule_names(maps)? {
            let per_cpu: Vec<RuleCount> = maps.rules.get(number)?;
            let mut rule = RuleSum { number, name, ..RuleSum::default() };
            for count in &per_cpu {
                rule.decided.add(&count.decided);
                rule.shadow.add(&count.shadow);
            }
            counters.rules.push(rule);
        }
        let sum = |counts: Vec<u64>| counts.into_iter().fold(0, u64::wrapping_add);
        for found in Steered::ALL {
            counters.steered.push((found.label(), sum(maps.steered.get(found as u32)?)));
        }
        for fault in Fault::ALL {
            counters.faults.push((fault.label(), sum(maps.faults.get(fault as u32)?)));
        }
        Ok(counters)
    }

    /// What the verdict with this label did.
    pub fn verdict(&self, verdict: Verdict) -> Sum {
        let found = self.verdicts.iter().find(|(label, _)| *label == verdict.label());
        found.map_or_else(Sum::default, |(_, sum)| *sum)
    }

    /// Datagrams of QUIC about which this was found out.
    pub fn steered(&self, found: Steered) -> u64 {
        self.steered.iter().find(|(label, _)| *label == found.label()).map_or(0, |(_, sum)| *sum)
    }

    /// What the rule of this name did.
    pub fn rule(&self, name: &str) -> Option<&RuleSum> {
        self.rules.iter().find(|rule| rule.name == name)
    }

    /// All packets and octets that the stage has seen.
    pub fn total(&self) -> Sum {
        let mut total = Sum::default();
        for (_, sum) in &self.verdicts {
            total.add(&Count { packets: sum.packets, bytes: sum.bytes });
        }
        total
    }
}

/// Sources of a set that have used some of their budget and not yet earned it back. Only they need their
/// place: that of any other is free for a new source.
pub(crate) fn sources_in_debt(set: &Set<u64>, now: u64) -> u64 {
    let is_in_debt = |way: usize| {
        set.tags.get(way).is_some_and(|tag| *tag != 0)
            && set.words.iter().filter_map(|words| words.get(way)).any(|word| gcra::ahead(*word, now) != 0)
    };
    (0..WAYS).filter(|way| is_in_debt(*way)).count() as u64
}

/// The rules that have a name, by number.
///
/// # Errors
/// What bpf(2) reports.
pub fn rule_names(maps: &Maps) -> io::Result<Vec<(u32, String)>> {
    let entries = maps.rule_names.entries()?;
    Ok(entries.iter().filter_map(|(number, name)| Some((*number, rule_text(name)?))).collect())
}

/// The text of a rule's name; `None` for a free number.
pub(crate) fn rule_text(name: &RuleName) -> Option<String> {
    let text = name.text.split(|octet| *octet == 0).next().unwrap_or_default();
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}

/// A rule's name as the map holds it; cut at a character's edge when it is too long.
pub(crate) fn rule_name(text: &str) -> RuleName {
    let mut name = RuleName { text: [0; blitz_ebpf_common::layout::RULE_NAME_MAX] };
    fill(&mut name.text, text);
    name
}

/// Copies as much of `text` as fits, whole characters only; the rest of `room` stays zero.
pub(crate) fn fill(room: &mut [u8], text: &str) {
    let mut length = text.len().min(room.len());
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    for (slot, octet) in room.iter_mut().zip(text.as_bytes().iter().take(length)) {
        *slot = *octet;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_has_earned_back_what_it_used_takes_no_place() {
        // The first is ahead in packets, the second in SYNs, the third was; the last place is nobody's.
        let set = Set { tags: [7, 8, 9, 0], words: [[150, 0, 90, 150], [0; 4], [0, 101, 0, 0]] };
        assert_eq!(sources_in_debt(&set, 100), 2);
        assert_eq!(sources_in_debt(&set, 101), 1);
        assert_eq!(sources_in_debt(&set, 150), 0);
    }

    #[test]
    fn names_survive_the_map() {
        assert_eq!(rule_text(&rule_name("deny:config")).as_deref(), Some("deny:config"));
        assert_eq!(rule_text(&rule_name("")), None);
        let long = "ö".repeat(64);
        assert_eq!(rule_text(&rule_name(&long)).as_deref(), Some("ö".repeat(32).as_str()));
        let odd = format!("a{long}");
        assert_eq!(rule_text(&rule_name(&odd)).expect("a name").chars().count(), 1 + 31);
    }
}
