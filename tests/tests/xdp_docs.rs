//! The tables of `docs/xdp.md` say what the code says.

use std::fmt::Write;
use std::path::Path;

use blitz_ebpf_common::decide::FAIL_DIRECTIONS;
use blitz_ebpf_common::layout::{
    ALLOW_MAX, BLOCKED_MAX, Block, Buckets, Count, DENY_MAX, Deny, Everywhere, Fault, INDEX4, INDEX6,
    LIMITS_MAX, Layout, Lengths, Limit, NOTES_MAX, Note, PORTS, Ports, Prefix4, Prefix6, QUEUES_MAX,
    RULES_MAX, RuleCount, RuleName, SEATS, SERVICE_AT_MAX, SERVICES_MAX, SOURCES_MAX, Seat, Service,
    ServiceKey, Settings, SourceKey, Steer, Steered, Verdict, maps,
};
use blitz_ebpf_common::sources::{Set, WAYS};

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/xdp.md");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[track_caller]
fn assert_has(table: &str) {
    assert!(page().contains(table), "docs/xdp.md lacks these lines:\n\n{table}");
}

#[test]
fn the_fail_directions_are_those_of_the_program() {
    let mut table = String::new();
    for (step, when, direction) in FAIL_DIRECTIONS {
        let _ = writeln!(table, "| {step} | {when} | {direction} |");
    }
    assert_has(&table);
}

#[test]
fn the_memory_of_each_map_is_that_of_its_layout() {
    // The key of a trie is the length and the address.
    let trie = |address: usize| 4 + address;
    let index = size_of::<u32>();
    let rows = [
        Row::array(maps::LAYOUT, 1, size_of::<Layout>()),
        Row::array(maps::SETTINGS, 1, size_of::<Settings>()),
        Row::array(maps::PORTS, PORTS, size_of::<Ports>()),
        Row::hash(maps::SERVICE_AT, SERVICE_AT_MAX, size_of::<ServiceKey>(), index).at_once(),
        Row::array(maps::SERVICES, SERVICES_MAX, size_of::<Service>()),
        Row::hash(maps::ALLOW4, ALLOW_MAX, trie(4), 4),
        Row::hash(maps::ALLOW6, ALLOW_MAX, trie(16), 4),
        Row::hash(maps::BLOCKED, BLOCKED_MAX, size_of::<SourceKey>(), size_of::<Block>()),
        Row::hash(maps::DENY4, DENY_MAX, size_of::<Prefix4>(), size_of::<Deny>()),
        Row::hash(maps::DENY6, DENY_MAX, size_of::<Prefix6>(), size_of::<Deny>()),
        Row::array(maps::DENY_INDEX4, 2 * INDEX4, size_of::<Lengths>()),
        Row::array(maps::DENY_INDEX6, 2 * INDEX6, size_of::<Lengths>()),
        Row::array(maps::DENY_LENGTHS, 2, size_of::<Everywhere>()),
        Row::array(maps::LIMITS, LIMITS_MAX, size_of::<Limit>()),
        Row::array(maps::SOURCES, SOURCES_MAX / WAYS as u32, size_of::<Set<u64>>()),
        Row::array(maps::SERVICE_WORDS, LIMITS_MAX, size_of::<Buckets>()),
        Row::array(maps::SERVICE_CREDIT, LIMITS_MAX, size_of::<Buckets>()).per_cpu(),
        Row::array(maps::STEER, 1, size_of::<Steer>()),
        Row::array(maps::WORKERS, SEATS, size_of::<Seat>()),
        Row::array(maps::QUEUES, QUEUES_MAX, size_of::<Seat>()),
        // The kernel keeps a pointer for each descriptor.
        Row::array(maps::XSKS, QUEUES_MAX, size_of::<u64>()),
        Row::array(maps::VERSIONS, 1, size_of::<u64>()),
        Row::array(maps::STEERED, Steered::ALL.len() as u32, size_of::<u64>()).per_cpu(),
        Row::array(maps::VERDICTS, Verdict::ALL.len() as u32, size_of::<Count>()).per_cpu(),
        Row::array(maps::RULES, RULES_MAX, size_of::<RuleCount>()).per_cpu(),
        Row::array(maps::FAULTS, Fault::ALL.len() as u32, size_of::<u64>()).per_cpu(),
        Row::array(maps::RULE_NAMES, RULES_MAX, size_of::<RuleName>()),
        Row::hash(maps::DENY_NOTES, NOTES_MAX, size_of::<Prefix6>(), size_of::<Note>()),
    ];
    assert_eq!(rows.each_ref().map(|row| row.name), maps::ALL);
    assert_has(&rows.iter().map(Row::line).collect::<String>());
}

/// A line of the table of memory.
struct Row {
    name: &'static str,
    entries: u32,
    key: usize,
    value: usize,
    is_at_once: bool,
    is_per_cpu: bool,
}

impl Row {
    fn array(name: &'static str, entries: u32, value: usize) -> Self {
        Self { name, entries, key: 0, value, is_at_once: true, is_per_cpu: false }
    }

    fn hash(name: &'static str, entries: u32, key: usize, value: usize) -> Self {
        Self { name, entries, key, value, is_at_once: false, is_per_cpu: false }
    }

    fn at_once(mut self) -> Self {
        self.is_at_once = true;
        self
    }

    fn per_cpu(mut self) -> Self {
        self.is_per_cpu = true;
        self
    }

    fn line(&self) -> String {
        let octets = self.entries as usize * (self.key + self.value);
        let all = match octets {
            0..1024 => format!("{octets} B"),
            1024..1_048_576 => format!("{:.1} KiB", octets as f64 / 1024.0),
            _ => format!("{:.1} MiB", octets as f64 / 1_048_576.0),
        };
        let all = if self.is_per_cpu { format!("{all} × C") } else { all };
        let each =
            if self.key == 0 { self.value.to_string() } else { format!("{} + {}", self.key, self.value) };
        let when = if self.is_at_once { "at once" } else { "as it fills" };
        format!("| `{}` | {} | {each} | {all} | {when} |\n", self.name, self.entries)
    }
}
