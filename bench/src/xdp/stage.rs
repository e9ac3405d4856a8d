//! What the stage costs for each packet, by BPF_PROG_TEST_RUN.
//!
//! Owns: the rounds, the floor beside each figure, the flags, the table. Does not own: the cases (see
//! `cases.rs`).

use std::time::{Duration, Instant};

use blitz_ebpf_common::layout::{Fault, Verdict};
use serde_json::{Value, json};

use super::bare::Bare;
use super::cases::{self, Case, PACKETS};
use super::sys;
use crate::stats::Quartiles;
use crate::{Options, Result, account};

/// Share by which a measurement's floor may differ from the median floor; beyond it the figure is flagged.
const FLOOR_SPREAD_MAX: f64 = 0.15;
/// Wall time over processor time; beyond it another task ran in between and the figure is flagged.
const WALL_MAX: f64 = 1.1;
/// Processor seconds per second used by anything else; beyond it a round is flagged.
const FOREIGN_MAX: f64 = 0.15;

/// One case in one round.
struct Run {
    floor_ns: f64,
    ns: f64,
    preempted: bool,
    foreign: f64,
}

impl Run {
    fn over(&self) -> f64 {
        self.ns - self.floor_ns
    }

    fn flags(&self, floor: f64) -> String {
        let unsteady =
            if (self.floor_ns / floor - 1.0).abs() > FLOOR_SPREAD_MAX { " unsteady-floor" } else { "" };
        let preempted = if self.preempted { " preempted" } else { "" };
        let foreign = if self.foreign > FOREIGN_MAX { " foreign-load" } else { "" };
        format!("{unsteady}{preempted}{foreign}")
    }
}

/// Measures all cases on the processor `cpu`.
pub(super) fn run(options: &Options, object: &[u8], cpu: usize) -> Result<Value> {
    println!("\n== stage: ns per packet over a bare XDP_DROP, {} packets a round", PACKETS);
    let mut bare = Bare::new()?;
    let mut cases = cases::all(object)?;
    sys::pin(0, cpu).map_err(|error| format!("processor {cpu}: {error}"))?;
    let mut refused: Vec<Option<String>> = cases.iter().map(|_| None).collect();
    let mut runs: Vec<Vec<Run>> = cases.iter().map(|_| Vec::new()).collect();
    // Round 0 fills tables and caches and is not measured.
    for round in 0..=options.pairs {
        let begun = Instant::now();
        let (machine, own) = (account::machine_busy_seconds(), account::cpu_seconds(std::process::id()));
        for ((case, runs), refused) in cases.iter_mut().zip(&mut runs).zip(&mut refused) {
            let run = measure(&mut bare, case, round == 0)?;
            match run {
                Ok(run) if round > 0 => runs.push(run),
                Ok(_) => {}
                Err(why) => *refused = Some(why),
            }
        }
        let used = account::cpu_seconds(std::process::id()) - own;
        let foreign =
            (account::machine_busy_seconds() - machine - used).max(0.0) / begun.elapsed().as_secs_f64();
        if round > 0 {
            for run in runs.iter_mut().filter_map(|runs| runs.get_mut(round - 1)) {
                run.foreign = foreign;
            }
            println!("round {round:>2}  {:.1} s  foreign {foreign:.2}", begun.elapsed().as_secs_f64());
        }
    }
    for (case, refused) in cases.iter().zip(&mut refused) {
        if let Some(why) = sources_differ(case)? {
            *refused = Some(why);
        }
    }
    report(&cases, &runs, &refused)
}

/// One round of a case behind one of the floor. The inner error is a refusal: packets took another path.
fn measure(bare: &mut Bare, case: &mut Case, is_warm_up: bool) -> Result<std::result::Result<Run, String>> {
    let frame = case.frames.first().cloned().unwrap_or_default();
    let slices = case.frames.len().max(1);
    let repeats = u32::try_from(PACKETS / slices as u64).map_err(|error| error.to_string())?;
    let floor = timed(slices, |_| bare.run(&frame, repeats))?;
    let failed = |error| format!("{}: {error}", case.name.trim());
    let before = case.rehearsal.verdicts().map_err(failed)?;
    let faults_before = faults(case)?;
    let (rehearsal, frames) = (&mut case.rehearsal, &case.frames);
    let stage = timed(slices, |slice| {
        let Some(frame) = frames.get(slice) else {
            return Err("a case without packets".to_owned());
        };
        rehearsal.time(frame, repeats).map(drop).map_err(failed)
    })?;
    let after = case.rehearsal.verdicts().map_err(failed)?;
    let mut decided =
        Verdict::ALL.iter().zip(after.iter().zip(before)).map(|(v, (after, before))| (*v, after - before));
    let total: u64 = decided.clone().map(|(_, count)| count).sum();
    let expected = decided.find(|(verdict, _)| *verdict == case.verdict).map_or(0, |(_, count)| count);
    // The first packet of a source that is over its limit afterwards is within it.
    let strays = case.strays + u64::from(is_warm_up && case.strays > 0) * slices as u64;
    if total != PACKETS || expected + strays < PACKETS {
        let label = case.verdict.label();
        return Ok(Err(format!("{expected} of {PACKETS} packets got {label}, {total} were counted")));
    }
    let faults = faults(case)? - faults_before;
    if faults > case.faults_max {
        return Ok(Err(format!("{faults} faults of {PACKETS} packets")));
    }
    Ok(Ok(Run {
        floor_ns: floor.ns,
        ns: stage.ns,
        preempted: floor.wall > WALL_MAX || stage.wall > WALL_MAX,
        foreign: 0.0,
    }))
}

struct Timed {
    /// Processor time of one packet. The kernel's own figure is cut to whole nanoseconds.
    ns: f64,
    /// Wall time over processor time.
    wall: f64,
}

fn timed(slices: usize, mut slice: impl FnMut(usize) -> Result<()>) -> Result<Timed> {
    let now = || sys::thread_cpu_time().map_err(|error| format!("the thread's clock: {error}"));
    let (wall, cpu) = (Instant::now(), now()?);
    for number in 0..slices {
        slice(number)?;
    }
    let cpu = now()?.saturating_sub(cpu).max(Duration::from_nanos(1));
    Ok(Timed {
        ns: cpu.as_nanos() as f64 / PACKETS as f64,
        wall: wall.elapsed().as_secs_f64() / cpu.as_secs_f64(),
    })
}

fn faults(case: &Case) -> Result<u64> {
    let mut sum = 0;
    for fault in Fault::ALL {
        sum += case.rehearsal.fault(fault).map_err(|error| format!("{}: {error}", case.name.trim()))?;
    }
    Ok(sum)
}

/// Why the table of sources is not as full as the case says.
fn sources_differ(case: &Case) -> Result<Option<String>> {
    let Some((least, most)) = case.sources else { return Ok(None) };
    let held = case.rehearsal.sources().map_err(|error| format!("{}: {error}", case.name.trim()))?;
    let fits = (least..=most).contains(&held);
    Ok((!fits).then(|| format!("{held} sources are in the table, {least} to {most} should be")))
}

fn report(cases: &[Case], runs: &[Vec<Run>], refused: &[Option<String>]) -> Result<Value> {
    let floors: Vec<f64> = runs.iter().flatten().map(|run| run.floor_ns).collect();
    let floor = Quartiles::of(&floors).ok_or("nothing was measured")?;
    println!(
        "\nbare XDP_DROP {:.2} ns [{:.2}..{:.2}], in it what a run of BPF_PROG_TEST_RUN costs",
        floor.median, floor.lower, floor.upper
    );
    println!(
        "{:<54} {:>6} {:>6} {:>6}  {:>11} {:>11} {:>8}",
        "ns per packet over it", "q1", "median", "q3", "to pass", "aim", "flagged"
    );
    let mut lines = Vec::new();
    for ((case, runs), refused) in cases.iter().zip(runs).zip(refused) {
        if let Some(why) = refused {
            println!("{:<54} refused: {why}", case.name);
            lines.push(json!({ "case": case.name.trim(), "refused": why }));
            continue;
        }
        let over: Vec<f64> = runs.iter().map(Run::over).collect();
        let Some(over) = Quartiles::of(&over) else { continue };
        let flagged = runs.iter().filter(|run| !run.flags(floor.median).is_empty()).count();
        let verdict = |mark: f64| if over.upper <= mark { "met" } else { "missed" };
        let (pass, aim) = match case.mark {
            Some(mark) => (
                format!("{:.0} {}", mark.pass, verdict(mark.pass)),
                format!("{:.0} {}", mark.aim, verdict(mark.aim)),
            ),
            None => Default::default(),
        };
        println!(
            "{:<54} {:>6.1} {:>6.1} {:>6.1}  {pass:>11} {aim:>11} {flagged:>8}",
            case.name, over.lower, over.median, over.upper
        );
        let rounds: Vec<Value> = runs
            .iter()
            .map(|run| {
                json!({
                    "ns": run.ns, "floor_ns": run.floor_ns, "foreign": run.foreign,
                    "flags": run.flags(floor.median).trim(),
                })
            })
            .collect();
        lines.push(json!({
            "case": case.name.trim(), "over_ns": over.json(), "rounds": rounds,
            "to_pass_ns": case.mark.map(|mark| mark.pass), "aim_ns": case.mark.map(|mark| mark.aim),
        }));
    }
    println!("a mark is met when the upper quartile, the worse one of a cost, is not above it");
    Ok(json!({ "packets_a_round": PACKETS, "floor_ns": floor.json(), "cases": lines }))
}
