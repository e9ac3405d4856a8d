//! Interleaved rounds: every contestant runs once in each, and what counts is the ratio within a round.
//!
//! Owns: what a run counts, its flags, the table, the ratios. Does not own: making load (`load.rs`, `h2load.rs`).

use serde_json::{Value, json};

use crate::servers::Server;
use crate::stats::Quartiles;
use crate::{Result, account};

/// Below this share of its core the server waited for the generator, and the rate is not its limit.
const BUSY_MIN: f64 = 0.95;
/// CPU-seconds per second used by anything else; beyond it a round is flagged.
const FOREIGN_MAX: f64 = 0.15;

/// What a generator counted in one run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    /// What was asked for and came: requests or handshakes.
    pub(crate) done: f64,
    pub(crate) seconds: f64,
    /// Latency in microseconds, where the generator knows it: median and 99th percentile, or twice the mean.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Connections that failed, what timed out, answers that were not 2xx or 3xx.
    pub(crate) bad: f64,
}

/// One contestant's run in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    per_cpu_second: f64,
    rate: f64,
    p50_us: f64,
    p99_us: f64,
    busy: f64,
    foreign: f64,
    bad: f64,
}

impl Run {
    /// A program that measured its own processor time and waits for nobody.
    pub(crate) fn alone(per_cpu_second: f64) -> Self {
        Self {
            per_cpu_second,
            rate: per_cpu_second,
            p50_us: 0.0,
            p99_us: 0.0,
            busy: 1.0,
            foreign: 0.0,
            bad: 0.0,
        }
    }

    fn flags(&self) -> String {
        let idle = if self.busy < BUSY_MIN { " server-not-busy" } else { "" };
        let foreign = if self.foreign > FOREIGN_MAX { " foreign-load" } else { "" };
        format!("{idle}{foreign}")
    }
}

/// Who takes part, and how it runs once.
pub(crate) struct Contestant<'a> {
    pub(crate) name: String,
    pub(crate) run: Box<dyn FnMut() -> Result<Run> + 'a>,
}

/// Puts load on a server and counts what its processes used meanwhile.
pub(crate) fn measure(server: &Server, load: impl FnOnce() -> Result<Load>) -> Result<Run> {
    // All that we started is below us; the generator has ended when we look again, and its time is in ours.
    let beside = || server.beside.iter().map(|thread| account::cpu_seconds(*thread)).sum::<f64>();
    let ours = || account::cpu_seconds(std::process::id()) + beside();
    let servers = || account::cpu_seconds(server.pid()) + beside();
    let busy_before = account::machine_busy_seconds();
    let (server_before, ours_before) = (servers(), ours());
    let load = load()?;
    let cpu = servers() - server_before;
    let known = ours() - ours_before;
    let busy = account::machine_busy_seconds() - busy_before;
    if load.done < 1.0 || cpu <= 0.0 {
        return Err(format!("{} did {} in {cpu} CPU-seconds", server.name, load.done));
    }
    Ok(Run {
        per_cpu_second: load.done / cpu,
        rate: load.done / load.seconds,
        p50_us: load.p50_us,
        p99_us: load.p99_us,
        busy: cpu / load.seconds,
        foreign: ((busy - known) / load.seconds).max(0.0),
        bad: load.bad,
    })
}

/// Runs all contestants in turn, `pairs` times, and reports. `unit`: what is counted.
pub(crate) fn compete(
    title: &str,
    unit: &str,
    contestants: &mut [Contestant<'_>],
    pairs: usize,
) -> Result<Value> {
    let mut runs: Vec<Vec<Run>> = contestants.iter().map(|_| Vec::new()).collect();
    for round in 1..=pairs {
        for (contestant, runs) in contestants.iter_mut().zip(&mut runs) {
            let run = (contestant.run)().map_err(|error| format!("{}: {error}", contestant.name))?;
            println!(
                "round {round:>2} {:<14} {:>9.0} {unit}/CPU-s {:>9.0} a second  busy {:>3.0} %  foreign {:.2}{}",
                contestant.name,
                run.per_cpu_second,
                run.rate,
                run.busy * 100.0,
                run.foreign,
                run.flags()
            );
            runs.push(run);
        }
    }
    let names: Vec<&str> = contestants.iter().map(|contestant| contestant.name.as_str()).collect();
    Ok(report(title, unit, &names, &runs))
}

/// Prints the table as docs/performance.md has it.
fn report(title: &str, unit: &str, names: &[&str], runs: &[Vec<Run>]) -> Value {
    let column = |runs: &[Run], of: fn(&Run) -> f64| {
        let values: Vec<f64> = runs.iter().map(of).collect();
        Quartiles::of(&values).unwrap_or(Quartiles { lower: 0.0, median: 0.0, upper: 0.0 })
    };
    println!("\n| {title} | {unit} per CPU-second | blitz / it, q1 | p50 / p99 us | busy | bad | flagged |");
    println!("|---|---|---|---|---|---|---|");
    let (mut peers, mut ratios) = (serde_json::Map::new(), serde_json::Map::new());
    let ours = runs.first().filter(|_| names.first() == Some(&"blitz"));
    for (name, runs) in names.iter().zip(runs) {
        let rate = column(runs, |run| run.per_cpu_second);
        let (rps, busy) = (column(runs, |run| run.rate), column(runs, |run| run.busy));
        let (p50, p99) = (column(runs, |run| run.p50_us), column(runs, |run| run.p99_us));
        let bad: f64 = runs.iter().map(|run| run.bad).sum();
        let flagged = runs.iter().filter(|run| !run.flags().is_empty()).count();
        let ratio = ours.filter(|_| *name != "blitz").and_then(|ours| {
            let pairs = ours.iter().zip(runs);
            let values: Vec<f64> =
                pairs.map(|(ours, theirs)| ours.per_cpu_second / theirs.per_cpu_second).collect();
            Quartiles::of(&values)
        });
        let shown = ratio.map_or(String::new(), |ratio| format!("**{:.2}**", ratio.lower));
        println!(
            "| {name} | {} [{}..{}] | {shown} | {:.0} / {:.0} | {:.0} % | {bad:.0} | {flagged} of {} |",
            grouped(rate.median),
            grouped(rate.lower),
            grouped(rate.upper),
            p50.median,
            p99.median,
            busy.median * 100.0,
            runs.len()
        );
        let rounds = runs.iter().map(|run| {
            json!({
                "per_cpu_second": run.per_cpu_second, "rate": run.rate, "p50_us": run.p50_us,
                "p99_us": run.p99_us, "busy": run.busy, "foreign": run.foreign, "bad": run.bad,
                "flags": run.flags().trim(),
            })
        });
        let rounds: Vec<Value> = rounds.collect();
        peers.insert(
            (*name).to_owned(),
            json!({
                "per_cpu_second": rate.json(), "rate": rps.json(), "p50_us": p50.json(), "p99_us": p99.json(),
                "busy": busy.json(), "bad": bad, "rounds": rounds,
            }),
        );
        if let Some(ratio) = ratio {
            ratios.insert((*name).to_owned(), ratio.json());
        }
    }
    json!({ "unit": unit, "peers": peers, "blitz_over": ratios })
}

/// A whole number with a comma between thousands.
pub(crate) fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped(0.4), "0");
        assert_eq!(grouped(999.0), "999");
        assert_eq!(grouped(1000.0), "1,000");
        assert_eq!(grouped(-123_456.0), "-123,456");
        assert_eq!(grouped(1_234_567.8), "1,234,568");
    }
}
