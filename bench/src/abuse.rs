//! Abuses of HTTP/2 at full speed from one thread, beside good requests on a fixed schedule.
//!
//! Owns: the table, and what a failure is. Does not own: the campaign (`blitz_tests::abuse`), which the end-to-end
//! tests run for a moment too.

use std::time::Duration;

use blitz_tests::abuse::{ATTACKS, Report, campaign};
use blitz_tests::{Cell, Io, Mode};
use serde_json::{Value, json};

use crate::{Options, Result, machine};

pub(crate) fn run(options: &Options) -> Result<Value> {
    let facts = machine::facts(&options.programs);
    println!("{facts:#}");
    let is_asked = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let attacks: Vec<_> = ATTACKS.iter().filter(|attack| is_asked(attack.name)).collect();
    if attacks.is_empty() {
        let names: Vec<_> = ATTACKS.iter().map(|attack| attack.name).collect();
        return Err(format!("--only: some of {}", names.join(",")));
    }
    let Some(cell) = Cell::available(Io::Uring, Mode::Mp).or_else(|| Cell::available(Io::Epoll, Mode::Mp))
    else {
        return Err("neither io_uring nor epoll is there".to_owned());
    };
    println!(
        "\n{:<28} {:>10} {:>7} {:>7} {:>7} {:>7} {:>8} {:>8} {:>8}  RSS KiB: fresh, before, peak, after",
        "attack", "repeats", "ended", "counted", "good", "failed", "p50 ms", "p99 ms", "max ms"
    );
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for attack in attacks {
        let report = campaign(cell, attack, Duration::from_secs(options.seconds));
        let faults = report.faults();
        println!("{}", line(attack.name, &report));
        rows.push(json!({
            "attack": attack.name, "counted_as": attack.label, "repeats": report.attacks,
            "connections_ended": report.ended_well, "counted": report.counted[0],
            "good": report.good, "good_failed": report.good_failed,
            "latency_us": report.latency.map(|latency| latency.as_micros()),
            "rss_bytes": report.memory, "faults": faults,
        }));
        failures.extend(faults.into_iter().map(|fault| format!("{}: {fault}", attack.name)));
    }
    if failures.is_empty() {
        Ok(json!({ "machine": facts, "seconds": options.seconds, "attacks": rows }))
    } else {
        Err(failures.join("\n       "))
    }
}

fn line(name: &str, report: &Report) -> String {
    let [p50, p99, max] = report.latency.map(|latency| latency.as_secs_f64() * 1000.0);
    let kib = report.memory.map(|bytes| bytes >> 10);
    format!(
        "{name:<28} {:>10} {:>7} {:>7} {:>7} {:>7} {p50:>8.1} {p99:>8.1} {max:>8.1}  {}, {}, {}, {}",
        report.attacks,
        report.ended_well,
        report.counted[0],
        report.good,
        report.good_failed,
        kib[0],
        kib[1],
        kib[2],
        kib[3]
    )
}
