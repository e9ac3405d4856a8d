//! `deny` and `allow`.
//!
//! Owns: their flags, which list an entry goes to, what is printed. Does not own: the lists
//! (see [`crate::deny`], [`crate::blocklist`], [`crate::allow`]).
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use blitz_ebpf_common::layout::{ALLOW_MANAGEMENT, ALLOW_SERVICE, DENY_CONFIGURED};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{count, duration, left_seconds, table};
use super::{Context, Selection, parse};
use crate::allow::Allowed;
use crate::blocklist::is_source;
use crate::deny::Terms;
use crate::error::{Error, Kind, Result};
use crate::image::RULE_BLOCK_OPERATOR;
use crate::prefixes::Prefix;
use crate::stage::Stage;
use crate::sys::clock;

/// Denied sources.
#[derive(Debug, Subcommand)]
pub(super) enum Deny {
    /// Denies a source or a prefix
    Add(DenyAdd),
    /// Denies it no more
    Del(Del),
    /// Lists what is denied and blocked, until when and why
    List(List),
}

/// See [`Stage::deny`] and [`Stage::block`].
#[derive(Debug, Args)]
pub(super) struct DenyAdd {
    /// An address or a prefix
    #[arg(value_name = "CIDR", value_parser = parse::prefix)]
    prefix: Prefix,
    /// For how long, such as 90s, 10m, 12h, 7d [default: until it is removed]
    #[arg(long, value_name = "TIME", value_parser = parse::ttl)]
    ttl: Option<Duration>,
    /// Why, for `deny list`; the first 120 octets are kept
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// Everything to this host, not only what goes to services; never what comes from management prefixes
    #[arg(long)]
    host: bool,
    /// Count what would be dropped, and let it through
    #[arg(long)]
    shadow: bool,
    #[command(flatten)]
    selection: Selection,
}

/// A prefix to be taken off a list.
#[derive(Debug, Args)]
pub(super) struct Del {
    /// The address or prefix, as it was added
    #[arg(value_name = "CIDR", value_parser = parse::prefix)]
    prefix: Prefix,
    #[command(flatten)]
    selection: Selection,
}

/// Which entries are listed.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Only this prefix and what lies inside it
    #[arg(value_name = "CIDR", value_parser = parse::prefix)]
    prefix: Option<Prefix>,
    #[command(flatten)]
    selection: Selection,
}

/// An entry of either list, to be shown.
#[derive(Debug, Serialize)]
struct Entry {
    prefix: String,
    /// `deny` or `block`.
    list: &'static str,
    rule: String,
    expires_in_seconds: Option<u64>,
    age_seconds: Option<u64>,
    host: bool,
    shadow: bool,
    configured: bool,
    reason: Option<String>,
}

impl Deny {
    pub(super) fn execute(self, context: &Context) -> Result<()> {
        match self {
            Self::Add(verb) => verb.execute(context),
            Self::Del(verb) => deny_del(&verb, context),
            Self::List(verb) => deny_list(&verb, context),
        }
    }
}

impl DenyAdd {
    fn execute(self, context: &Context) -> Result<()> {
        let expires = self.ttl.map_or(0, |ttl| {
            let nanoseconds = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
            clock::monotonic_nanoseconds().saturating_add(nanoseconds)
        });
        // The blocklist is for single sources with a time; it holds no scope and no shadow.
        let is_block = is_source(self.prefix) && expires != 0 && !self.host && !self.shadow;
        if self.host && !self.shadow {
            self.keep_the_operator_in(context)?;
        }
        let terms = Terms { expires, host: self.host, shadow: self.shadow, reason: &self.reason };
        let done = context.change(&self.selection, |stage, lock| match is_block {
            true => {
                stage.block(lock, self.prefix.address(), expires, RULE_BLOCK_OPERATOR)?;
                match self.reason.is_empty() {
                    true => Ok(()),
                    false => stage.note(lock, self.prefix, &self.reason),
                }
            }
            false => stage.deny(lock, self.prefix, &terms).map(drop),
        })?;
        let interfaces: Vec<&str> = done.iter().map(|(interface, ())| interface.as_str()).collect();
        let value = serde_json::json!({
            "prefix": self.prefix.to_string(),
            "list": if is_block { "block" } else { "deny" },
            "expires_in_seconds": self.ttl.map(|ttl| ttl.as_secs()),
            "interfaces": interfaces,
        });
        context.output.show(&value, || {
            let time = self.ttl.map_or_else(String::new, |ttl| format!(" for {}", duration(ttl.as_secs())));
            let verb = if is_block { "blocked" } else { "denied" };
            format!("{} is {verb}{time} on {}", self.prefix, interfaces.join(", "))
        });
        Ok(())
    }

    /// Refuses a host-wide entry that would cut off the ssh session it is typed in.
    fn keep_the_operator_in(&self, context: &Context) -> Result<()> {
        let Some(client) = ssh_client().filter(|client| holds(&self.prefix, *client)) else { return Ok(()) };
        for stage in context.stages(&self.selection)? {
            let is_managed = |allowed: &Allowed| {
                allowed.management
                    && parse::prefix(&allowed.prefix).is_ok_and(|prefix| holds(&prefix, client))
            };
            if !stage.allow_list()?.iter().any(is_managed) {
                return Err(Error::new(
                    Kind::Usage,
                    format!(
                        "{} holds {client}, from which this session comes, and would end it",
                        self.prefix
                    ),
                    format!("first: blitz-ctl allow add {client} --management"),
                ));
            }
        }
        Ok(())
    }
}

/// The client of the ssh session in which this was typed, as far as the environment tells: that of this process,
/// or of one above it, since sudo(8) does not pass the variable on.
fn ssh_client() -> Option<IpAddr> {
    const NAME: &str = "SSH_CONNECTION";
    /// Processes between this one and the session's (count).
    const PARENTS_MAX: usize = 32;
    let first = |value: &str| value.split(' ').next()?.parse().ok();
    if let Ok(value) = std::env::var(NAME) {
        return first(&value);
    }
    let mut process = std::os::unix::process::parent_id();
    for _ in 0..PARENTS_MAX {
        let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&environment);
        let mut variables = environment.split('\0').filter_map(|variable| variable.split_once('='));
        if let Some((_, value)) = variables.find(|(name, _)| *name == NAME) {
            return first(value);
        }
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        process = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    }
    None
}

/// Whether `prefix` holds `address`.
fn holds(prefix: &Prefix, address: IpAddr) -> bool {
    Prefix::new(address.to_canonical(), prefix.length()) == *prefix
}

fn deny_del(verb: &Del, context: &Context) -> Result<()> {
    let is_source = is_source(verb.prefix);
    let done = context.change(&verb.selection, |stage, lock| {
        let was_blocked = is_source && stage.unblock(lock, verb.prefix.address())?;
        let denied = stage.undeny(lock, verb.prefix)?;
        Ok((was_blocked, denied))
    })?;
    let found = done.iter().filter(|(_, (was_blocked, denied))| *was_blocked || denied.is_some());
    let interfaces: Vec<&str> = found.map(|(interface, _)| interface.as_str()).collect();
    if interfaces.is_empty() {
        return Err(Error::new(
            Kind::NotFound,
            format!("{} is neither denied nor blocked", verb.prefix),
            "`blitz-ctl deny list` lists what is, prefixes as they were added",
        ));
    }
    let is_configured =
        done.iter().any(|(_, (_, denied))| denied.is_some_and(|deny| deny.flags & DENY_CONFIGURED != 0));
    let value = serde_json::json!({
        "prefix": verb.prefix.to_string(), "interfaces": interfaces, "configured": is_configured,
    });
    context.output.show(&value, || {
        let again = match is_configured {
            true => "; the configuration denies it again when it is next put in force",
            false => "",
        };
        format!("{} is no longer denied on {}{again}", verb.prefix, interfaces.join(", "))
    });
    Ok(())
}

fn deny_list(verb: &List, context: &Context) -> Result<()> {
    let now = clock::monotonic_nanoseconds();
    let wanted = |prefix: &Prefix| {
        verb.prefix.is_none_or(|outer| {
            prefix.length() >= outer.length() && Prefix::new(prefix.address(), outer.length()) == outer
        })
    };
    let read = |stage: &Stage| {
        let mut entries = Vec::new();
        for denied in stage.deny_list()?.into_iter().filter(|denied| wanted(&denied.prefix)) {
            let since = denied.added.filter(|_| !denied.configured);
            entries.push(Entry {
                prefix: denied.prefix.to_string(),
                list: "deny",
                rule: denied.rule,
                expires_in_seconds: left_seconds(denied.expires, now),
                age_seconds: since.and_then(seconds_since),
                host: denied.host,
                shadow: denied.shadow,
                configured: denied.configured,
                reason: denied.reason,
            });
        }
        for blocked in stage.blocked()?.into_iter().filter(|blocked| wanted(&blocked.source)) {
            entries.push(Entry {
                prefix: blocked.source.to_string(),
                list: "block",
                rule: blocked.rule,
                expires_in_seconds: left_seconds(blocked.expires, now),
                age_seconds: Some(now.saturating_sub(blocked.since) / 1_000_000_000),
                host: false,
                shadow: blocked.shadow,
                configured: false,
                reason: stage.reason(blocked.source),
            });
        }
        Ok((stage.interface().to_owned(), entries))
    };
    let found = context.stages(&verb.selection)?.iter().map(read).collect::<Result<Vec<_>>>()?;
    let value: Vec<_> = found
        .iter()
        .map(|(interface, entries)| serde_json::json!({ "interface": interface, "entries": entries }))
        .collect();
    context.output.show(&serde_json::json!({ "interfaces": value }), || {
        let mut rows = Vec::new();
        for (interface, entries) in &found {
            rows.extend(entries.iter().map(|entry| entry.row(interface)));
        }
        match rows.is_empty() {
            true => "nothing is denied".to_owned(),
            false => table(&["INTERFACE", "PREFIX", "RULE", ">AGE", ">LEFT", "SCOPE", "REASON"], &rows),
        }
    });
    Ok(())
}

impl Entry {
    fn row(&self, interface: &str) -> Vec<String> {
        let scope = if self.host { "host" } else { "service" };
        let dash = || "-".to_owned();
        vec![
            interface.to_owned(),
            self.prefix.clone(),
            self.rule.clone(),
            self.age_seconds.map_or_else(dash, duration),
            self.expires_in_seconds.map_or_else(dash, duration),
            if self.shadow { format!("{scope}, shadow") } else { scope.to_owned() },
            self.reason.clone().unwrap_or_default(),
        ]
    }
}

/// Seconds since a moment of the Unix epoch; `None` for one in the future.
fn seconds_since(moment: u64) -> Option<u64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
    now.as_secs().checked_sub(moment)
}

/// Allowed sources.
#[derive(Debug, Subcommand)]
pub(super) enum Allow {
    /// Allows a source or a prefix; what a configuration says replaces the list when it is put in force
    Add(AllowAdd),
    /// Takes it off the list
    Del(Del),
    /// Lists what is allowed
    List(Selection),
}

/// See [`Stage::allow`].
#[derive(Debug, Args)]
pub(super) struct AllowAdd {
    /// An address or a prefix
    #[arg(value_name = "CIDR", value_parser = parse::prefix)]
    prefix: Prefix,
    /// A management prefix: no host-wide deny entry touches it; deny entries and limits of services still do
    #[arg(long)]
    management: bool,
    #[command(flatten)]
    selection: Selection,
}

impl Allow {
    pub(super) fn execute(self, context: &Context) -> Result<()> {
        match self {
            Self::Add(verb) => verb.execute(context),
            Self::Del(verb) => allow_del(&verb, context),
            Self::List(selection) => allow_list(&selection, context),
        }
    }
}

impl AllowAdd {
    fn execute(self, context: &Context) -> Result<()> {
        let flag = if self.management { ALLOW_MANAGEMENT } else { ALLOW_SERVICE };
        let done = context.change(&self.selection, |stage, lock| stage.allow(lock, self.prefix, flag))?;
        let interfaces: Vec<&str> = done.iter().map(|(interface, ())| interface.as_str()).collect();
        let value = serde_json::json!({
            "prefix": self.prefix.to_string(), "management": self.management, "interfaces": interfaces,
        });
        context.output.show(&value, || {
            let as_what = if self.management { " as management" } else { "" };
            format!("{} is allowed{as_what} on {}", self.prefix, interfaces.join(", "))
        });
        Ok(())
    }
}

fn allow_del(verb: &Del, context: &Context) -> Result<()> {
    let done = context.change(&verb.selection, |stage, lock| stage.disallow(lock, verb.prefix))?;
    let found = done.iter().filter(|(_, flags)| flags.is_some());
    let interfaces: Vec<&str> = found.map(|(interface, _)| interface.as_str()).collect();
    if interfaces.is_empty() {
        return Err(Error::new(
            Kind::NotFound,
            format!("{} is not on the allow list", verb.prefix),
            "`blitz-ctl allow list` lists what is, prefixes as they were added",
        ));
    }
    // Longer prefixes took over the flags when they were added, and keep them.
    let mut inside = 0;
    for stage in context.stages(&verb.selection)? {
        inside += stage
            .allow_list()?
            .iter()
            .filter(|allowed| {
                parse::prefix(&allowed.prefix).is_ok_and(|inner| {
                    inner.length() > verb.prefix.length()
                        && Prefix::new(inner.address(), verb.prefix.length()) == verb.prefix
                })
            })
            .count();
    }
    let value = serde_json::json!({
        "prefix": verb.prefix.to_string(), "interfaces": interfaces, "longer_prefixes_that_stay": inside,
    });
    context.output.show(&value, || {
        let stay = match inside {
            0 => String::new(),
            _ => format!("; what lies inside it stays: {}", count(inside, "prefix")),
        };
        format!("{} is off the allow list on {}{stay}", verb.prefix, interfaces.join(", "))
    });
    Ok(())
}

fn allow_list(selection: &Selection, context: &Context) -> Result<()> {
    let read = |stage: &Stage| Ok((stage.interface().to_owned(), stage.allow_list()?));
    let found =
        context.stages(selection)?.iter().map(read).collect::<Result<Vec<(String, Vec<Allowed>)>>>()?;
    let value: Vec<_> = found
        .iter()
        .map(|(interface, entries)| serde_json::json!({ "interface": interface, "entries": entries }))
        .collect();
    context.output.show(&serde_json::json!({ "interfaces": value }), || {
        let mut rows = Vec::new();
        for (interface, entries) in &found {
            for entry in entries {
                let kinds = [(entry.service, "services"), (entry.management, "management")];
                let kinds: Vec<&str> = kinds.iter().filter(|(is, _)| *is).map(|(_, kind)| *kind).collect();
                rows.push(vec![interface.clone(), entry.prefix.clone(), kinds.join(", ")]);
            }
        }
        match rows.is_empty() {
            true => "nothing is allowed specially".to_owned(),
            false => table(&["INTERFACE", "PREFIX", "FOR"], &rows),
        }
    });
    Ok(())
}
