//! `attach`, `detach`, `check`.
//!
//! Owns: their flags and what they print. Does not own: the steps (see [`crate::stage::attach`]).
#![forbid(unsafe_code)]

use std::path::PathBuf;

use blitz_config::model::XdpMode;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Context;
use super::output::count;
use crate::config;
use crate::error::{Error, Kind, Result};
use crate::image::{Image, InForce};
use crate::maps::{Maps, Sizes, specs};
use crate::stage::Stage;
use crate::stage::attach::AttachKind;

/// How a program is attached.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// In the driver where it can, else generic; says which and why
    Auto,
    /// In the driver, before the kernel allocates a packet buffer, or not at all
    Native,
    /// In the kernel's stack: works on every interface, more slowly
    Generic,
}

/// See [`Stage::attach`].
#[derive(Debug, Args)]
pub(super) struct Attach {
    /// The interface
    #[arg(value_name = "IFACE")]
    interface: String,
    /// The configuration whose listeners, [[limits]] and [xdp] go into the kernel; without it a new stage lets
    /// everything pass, and one that is there keeps its rules
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How the program is attached [default: xdp.mode of the configuration, else auto]
    #[arg(short, long, value_enum)]
    mode: Option<Mode>,
}

impl Attach {
    pub(super) fn execute(self, context: &Context) -> Result<()> {
        // The file first: nothing else is looked at when it is wrong.
        let config = self.config.as_deref().map(config::load).transpose()?;
        // What can be told beforehand is told before anything is mounted or made.
        crate::kernel::check()?;
        crate::netlink::interface(&self.interface)?;
        crate::capabilities::require(&crate::capabilities::Capability::ATTACH)?;
        let said = context.pins.prepare()?;
        let lock = context.pins.lock()?;
        let mode = match (self.mode, &config) {
            (Some(Mode::Auto), _) | (None, None) => XdpMode::Auto,
            (Some(Mode::Native), _) => XdpMode::Native,
            (Some(Mode::Generic), _) => XdpMode::Generic,
            (None, Some(config)) => config.xdp.mode,
        };
        let image = match &config {
            Some(config) => Some(config::compile(config, &in_force(context, &self.interface)?)?),
            None => None,
        };
        let attached = Stage::attach(&context.pins, &lock, &self.interface, mode, image.as_ref())?;
        let mut report = attached.report;
        report.notes.splice(0..0, said);
        context.output.show(&report, || {
            let verb = match report.kind {
                AttachKind::New => "attached",
                AttachKind::Replaced => "replaced the program, rules and counters stay",
                AttachKind::Renewed => "attached again, rules and counters stay",
            };
            let mut text = format!(
                "{}: {verb}: program {}, {}\n",
                report.interface,
                report.program_id,
                count(report.services, "service")
            );
            text.push_str(&format!("  mode: {} ({})\n", report.mode, report.mode_reason));
            text.push_str(&format!("  link: {}\n", report.facts.sentence()));
            for note in &report.notes {
                text.push_str(&format!("  note: {note}\n"));
            }
            text
        });
        Ok(())
    }
}

/// What is in force on the interface, if a stage is there; without one, nothing is.
fn in_force(context: &Context, interface: &str) -> Result<InForce> {
    let pins = context.pins.of(interface);
    match Maps::layout(&pins) {
        Ok(_) => Stage::open(&context.pins, interface)?.in_force(),
        Err(error) if error.kind() == Kind::NotAttached => Ok(InForce::default()),
        // An empty directory is no stage; what else it may hold, attach refuses.
        Err(_) if std::fs::read_dir(pins.directory()).is_ok_and(|mut entries| entries.next().is_none()) => {
            Ok(InForce::default())
        }
        Err(error) => Err(error.about(interface)),
    }
}

/// See [`Stage::detach`].
#[derive(Debug, Args)]
pub(super) struct Detach {
    /// The interface
    #[arg(value_name = "IFACE")]
    interface: String,
}

impl Detach {
    pub(super) fn execute(self, context: &Context) -> Result<()> {
        if !context.pins.base().exists() {
            return Err(Error::new(
                Kind::NotAttached,
                format!("{} has no kernel stage", self.interface),
                "`blitz-ctl status` lists the interfaces that have one",
            ));
        }
        let lock = context.pins.lock()?;
        let was_running = Stage::detach(&context.pins, &lock, &self.interface)?;
        let value = serde_json::json!({ "interface": self.interface, "was_running": was_running });
        context.output.show(&value, || match was_running {
            true => format!("{}: detached; traffic flows untouched", self.interface),
            false => format!("{}: nothing ran any more; its pins are removed", self.interface),
        });
        Ok(())
    }
}

/// Reads a configuration and compiles it, without touching the kernel.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The configuration
    #[arg(value_name = "FILE")]
    config: PathBuf,
}

/// What a configuration would put into the kernel.
#[derive(Debug, Serialize)]
struct Checked {
    interfaces: Vec<String>,
    services: usize,
    limits: usize,
    denied_v4: usize,
    denied_v6: usize,
    allowed: usize,
    shadow: bool,
    sizes: Sizes,
    /// Octets of kernel memory for each interface, with every table full; an estimate.
    memory_bytes: u64,
    tables: Vec<TableMemory>,
}

#[derive(Debug, Serialize)]
struct TableMemory {
    table: &'static str,
    entries_max: u32,
    memory_bytes: u64,
}

impl Check {
    pub(super) fn execute(self, context: &Context) -> Result<()> {
        let config = config::load(&self.config)?;
        let image = config::compile(&config, &InForce::default())?;
        let (denied_v4, denied_v6) = image.denied.counts();
        let sizes = Sizes::of(&config.xdp);
        for denied in [denied_v4, denied_v6] {
            if denied > sizes.deny_max as usize {
                return Err(Error::new(
                    Kind::Full,
                    format!(
                        "{}: {denied} denied prefixes of one family, and deny_max is {}",
                        self.config.display(),
                        sizes.deny_max
                    ),
                    "raise xdp.deny_max, or join prefixes",
                ));
            }
        }
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| Error::io(path, &error))?;
        let tables: Vec<TableMemory> = specs(sizes)
            .iter()
            .map(|spec| TableMemory {
                table: spec.name,
                entries_max: spec.entries_max,
                memory_bytes: spec.memory_bytes(cpus),
            })
            .collect();
        let checked = Checked {
            interfaces: config.xdp.interfaces.clone(),
            services: in_use(&image, |image| image.services.iter().map(|service| service.rule).collect()),
            limits: in_use(&image, |image| image.limits.iter().map(|limit| limit.rule).collect()),
            denied_v4,
            denied_v6,
            allowed: image.allow.len(),
            shadow: image.shadow,
            sizes,
            memory_bytes: tables.iter().map(|table| table.memory_bytes).sum(),
            tables,
        };
        context.output.show(&checked, || {
            let mut text = format!(
                "{}: {}, {}, {} denied (IPv4 {}, IPv6 {}), {} allowed{}\n",
                self.config.display(),
                count(checked.services, "service"),
                count(checked.limits, "packet limit"),
                count(checked.denied_v4 + checked.denied_v6, "prefix"),
                checked.denied_v4,
                checked.denied_v6,
                count(checked.allowed, "prefix"),
                if checked.shadow { ", shadow: nothing is dropped" } else { "" }
            );
            let mebibytes = |octets: u64| octets.div_ceil(1024 * 1024);
            text.push_str(&format!(
                "kernel memory for each interface, with every table full: about {} MiB",
                mebibytes(checked.memory_bytes)
            ));
            let mut largest: Vec<&TableMemory> = checked.tables.iter().collect();
            largest.sort_by_key(|table| std::cmp::Reverse(table.memory_bytes));
            let named =
                largest.iter().take(3).map(|t| format!("{} {} MiB", t.table, mebibytes(t.memory_bytes)));
            text.push_str(&format!(" ({})\n", named.collect::<Vec<String>>().join(", ")));
            if checked.interfaces.is_empty() {
                text.push_str(
                    "xdp.interfaces names none: attach by hand, with blitz-ctl attach IFACE --config FILE\n",
                );
            }
            text
        });
        Ok(())
    }
}

/// How many of the numbered elements are in use.
fn in_use(image: &Image, rules: impl Fn(&Image) -> Vec<u32>) -> usize {
    rules(image).into_iter().filter(|rule| *rule != 0).count()
}
