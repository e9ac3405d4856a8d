//! `status`, `counters`, `route list`.
//!
//! Owns: how they are shown. Does not own: the figures.
#![forbid(unsafe_code)]

use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{duration, table};
use super::{Context, Selection};
use crate::counters;
use crate::error::Result;
use crate::limits;
use crate::stage;
use crate::stage::Stage;

/// See [`Stage::status`].
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    selection: Selection,
}

impl Status {
    pub(super) fn execute(self, context: &Context) -> Result<()> {
        let stages = match self.selection.interface {
            Some(_) => context.stages(&self.selection)?,
            // Nothing attached is an answer here, not an error.
            None => Stage::open_all(&context.pins)?,
        };
        let found = stages.iter().map(Stage::status).collect::<Result<Vec<stage::Status>>>()?;
        context.output.show(&serde_json::json!({ "interfaces": found }), || {
            if found.is_empty() {
                return "no interface has a kernel stage; blitz-ctl attach IFACE --config FILE".to_owned();
            }
            let rows: Vec<Vec<String>> = found
                .iter()
                .map(|status| {
                    vec![
                        status.interface.clone(),
                        status.state.to_owned(),
                        status.program_id.map_or_else(|| "-".to_owned(), |id| id.to_string()),
                        status.mode.unwrap_or("-").to_owned(),
                        status.age_seconds.map_or_else(|| "-".to_owned(), duration),
                        status.layout_version.to_string(),
                        if status.shadow { "yes" } else { "no" }.to_owned(),
                    ]
                })
                .collect();
            let mut text =
                table(&["INTERFACE", "STATE", ">PROGRAM", "MODE", "AGE", ">LAYOUT", "SHADOW"], &rows);
            for status in &found {
                text.push_str(&format!("\n{}:\n", status.interface));
                let rows: Vec<Vec<String>> = status
                    .tables
                    .iter()
                    .map(|t| vec![format!("  {}", t.table), t.used.to_string(), t.room.to_string()])
                    .collect();
                text.push_str(&table(&["  TABLE", ">USED", ">ROOM"], &rows));
                text.push_str(&steering(&status.steering));
            }
            text
        });
        Ok(())
    }
}

/// How QUIC is steered, in a line, and the receive queues that have a worker.
fn steering(steering: &stage::Steering) -> String {
    let Some(generation) = steering.generation else {
        return "  quic: nobody has said how to steer; everything passes to the kernel\n".to_owned();
    };
    let mut text = format!("  quic: generation {generation}, {} workers\n", steering.workers);
    for queue in &steering.queues {
        text.push_str(&format!(
            "  quic: receive queue {} belongs to worker {} of generation {}\n",
            queue.queue, queue.worker, queue.generation
        ));
    }
    text
}

/// See [`Stage::counters`].
#[derive(Debug, Args)]
pub(super) struct Counters {
    #[command(flatten)]
    selection: Selection,
}

#[derive(Debug, Serialize)]
struct InterfaceCounters {
    interface: String,
    verdicts: Vec<Counted>,
    rules: Vec<counters::RuleSum>,
    quic: Vec<Steered>,
    faults: std::collections::BTreeMap<&'static str, u64>,
}

/// Datagrams to services that speak QUIC.
#[derive(Debug, Serialize)]
struct Steered {
    reason: &'static str,
    packets: u64,
}

#[derive(Debug, Serialize)]
struct Counted {
    verdict: &'static str,
    #[serde(flatten)]
    sum: counters::Sum,
}

impl Counters {
    pub(super) fn execute(self, context: &Context) -> Result<()> {
        let read = |stage: &Stage| {
            let counters = stage.counters()?;
            let verdicts = counters.verdicts.into_iter().map(|(verdict, sum)| Counted { verdict, sum });
            Ok(InterfaceCounters {
                interface: stage.interface().to_owned(),
                verdicts: verdicts.collect(),
                rules: counters.rules,
                quic: counters
                    .steered
                    .into_iter()
                    .map(|(reason, packets)| Steered { reason, packets })
                    .collect(),
                faults: counters.faults.into_iter().collect(),
            })
        };
        let stages = context.stages(&self.selection)?;
        let found = stages.iter().map(read).collect::<Result<Vec<InterfaceCounters>>>()?;
        context.output.show(&serde_json::json!({ "interfaces": found }), || {
            found.iter().map(words).collect::<Vec<String>>().join("\n")
        });
        Ok(())
    }
}

fn words(found: &InterfaceCounters) -> String {
    let number = |count: u64| count.to_string();
    let mut text = format!("{}:\n", found.interface);
    let verdicts: Vec<Vec<String>> = found
        .verdicts
        .iter()
        .map(|c| vec![format!("  {}", c.verdict), number(c.sum.packets), number(c.sum.bytes)])
        .collect();
    text.push_str(&table(&["  VERDICT", ">PACKETS", ">BYTES"], &verdicts));
    let rules: Vec<Vec<String>> = found
        .rules
        .iter()
        .map(|rule| {
            vec![
                format!("  {}", rule.name),
                number(rule.decided.packets),
                number(rule.decided.bytes),
                number(rule.shadow.packets),
                number(rule.shadow.bytes),
            ]
        })
        .collect();
    if !rules.is_empty() {
        text.push('\n');
        let head = ["  RULE", ">PACKETS", ">BYTES", ">SHADOW PACKETS", ">SHADOW BYTES"];
        text.push_str(&table(&head, &rules));
    }
    // Of no interest where nothing speaks QUIC.
    if found.quic.iter().any(|steered| steered.packets != 0) {
        let rows: Vec<Vec<String>> = found
            .quic
            .iter()
            .map(|steered| vec![format!("  {}", steered.reason), number(steered.packets)])
            .collect();
        text.push('\n');
        text.push_str(&table(&["  QUIC", ">PACKETS"], &rows));
    }
    let faults: Vec<String> = found
        .faults
        .iter()
        .filter(|(_, count)| **count != 0)
        .map(|(fault, count)| format!("{fault} {count}"))
        .collect();
    match faults.is_empty() {
        true => text.push_str("\n  faults: none\n"),
        false => text.push_str(&format!("\n  faults: {}\n", faults.join(", "))),
    }
    text
}

/// Which packets belong to which service.
#[derive(Debug, Subcommand)]
pub(super) enum Route {
    /// Lists services, where their packets go, and the limits that hold for them
    List(Selection),
}

impl Route {
    pub(super) fn execute(self, context: &Context) -> Result<()> {
        let Self::List(selection) = self;
        let read = |stage: &Stage| Ok((stage.interface().to_owned(), stage.routes()?));
        let stages = context.stages(&selection)?;
        let found = stages.iter().map(read);
        let found = found.collect::<Result<Vec<(String, Vec<limits::Route>)>>>()?;
        let value: Vec<_> = found
            .iter()
            .map(|(interface, routes)| serde_json::json!({ "interface": interface, "routes": routes }))
            .collect();
        context.output.show(&serde_json::json!({ "interfaces": value }), || {
            let mut rows = Vec::new();
            for (interface, routes) in &found {
                for route in routes {
                    let none = || "-".to_owned();
                    rows.push(vec![
                        interface.clone(),
                        route.service.clone(),
                        route.places.join(", "),
                        route.source_limit.clone().unwrap_or_else(none),
                        route.service_limit.clone().unwrap_or_else(none),
                    ]);
                }
            }
            match rows.is_empty() {
                true => "no service is configured: everything passes".to_owned(),
                false => {
                    table(&["INTERFACE", "SERVICE", "PACKETS TO", "SOURCE LIMIT", "SERVICE LIMIT"], &rows)
                }
            }
        });
        Ok(())
    }
}
