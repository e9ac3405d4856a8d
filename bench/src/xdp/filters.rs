//! What drops on a veth pair: the stage, the bare drop, nftables, xdp-filter.
//!
//! Owns: putting each on its interface, and how many packets it says it dropped. Everything is in the
//! runner's private namespaces and ends with them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use blitz_ctl::prefixes::PrefixSet;
use blitz_ctl::rehearsal::Rehearsal;
use blitz_ebpf_common::layout::Verdict;

use super::bare::Bare;
use super::command;
use crate::Result;

/// One filter on one interface.
pub(super) enum Filter {
    /// The stage with the deny list.
    Stage(Box<Rehearsal>),
    /// Two instructions.
    Bare(Bare),
    /// A netdev ingress chain with the same list as an interval set.
    Nftables,
    /// xdp-filter, IPv4 and IPv6 only, with the source by itself: it knows no prefixes.
    OfXdpTools,
}

impl Filter {
    /// For the table.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Stage(_) => "blitz, 100,000 prefixes",
            Self::Bare(_) => "bare XDP_DROP",
            Self::Nftables => "nftables ingress, 100,000 prefixes",
            Self::OfXdpTools => "xdp-filter, 1 address",
        }
    }

    /// Puts it on `interface`. `source` is what it must drop, `list` what it must know.
    pub(super) fn put(&mut self, interface: &str, source: IpAddr, list: &PrefixSet) -> Result<()> {
        match self {
            Self::Stage(rehearsal) => {
                rehearsal.link(interface).map_err(|error| format!("{interface}: {error}"))
            }
            Self::Bare(bare) => bare.link(interface),
            Self::Nftables => nftables(interface, list),
            Self::OfXdpTools => {
                command("xdp-filter", &["load", "--mode", "native", "--features", "ipv4", interface])?;
                command("xdp-filter", &["ip", "--mode", "src", &source.to_string()]).map(drop)
            }
        }
    }

    /// Packets dropped so far; `None` where nothing counts them.
    pub(super) fn dropped(&self) -> Result<Option<u64>> {
        match self {
            Self::Stage(rehearsal) => {
                let verdicts =
                    rehearsal.verdicts().map_err(|error| format!("the stage's counters: {error}"))?;
                Ok(verdicts.get(Verdict::DropDenied as usize).copied())
            }
            Self::Bare(_) => Ok(None),
            Self::Nftables => {
                let said = command("nft", &["list", "chain", "netdev", "bench", "ingress"])?;
                after(&said, "counter packets").map(Some).ok_or(format!("nft counts nothing: {said}"))
            }
            Self::OfXdpTools => {
                let said = command("xdp-filter", &["status"])?;
                after(&said, "XDP_DROP").map(Some).ok_or(format!("xdp-filter counts nothing: {said}"))
            }
        }
    }
}

/// The number behind `words`.
fn after(text: &str, words: &str) -> Option<u64> {
    text.split_once(words)?.1.split_whitespace().next()?.parse().ok()
}

fn nftables(interface: &str, list: &PrefixSet) -> Result<()> {
    let mut rules = String::from(
        "table netdev bench {\n set denied { type ipv4_addr; flags interval; auto-merge; elements = {\n",
    );
    for (prefix, _) in list.entries().filter(|(prefix, _)| prefix.address().is_ipv4()) {
        // Writing to a string cannot fail.
        let _ = writeln!(rules, "{prefix},");
    }
    let _ = write!(
        rules,
        "}} }}\n chain ingress {{ type filter hook ingress device \"{interface}\" priority 0; policy accept;\n \
         ip saddr @denied counter drop\n }}\n}}\n"
    );
    let mut nft = Command::new("nft");
    let nft = nft.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = nft.spawn().map_err(|error| format!("nft: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes()).map_err(|error| format!("nft: {error}"))?;
    }
    let output = child.wait_with_output().map_err(|error| format!("nft: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("nft: {}: {}", output.status, said.lines().next().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_number_behind_some_words() {
        assert_eq!(super::after("counter packets 12 bytes 720 drop", "counter packets"), Some(12));
        assert_eq!(super::after("  XDP_DROP      7 pkts   0 KiB", "XDP_DROP"), Some(7));
        assert_eq!(super::after("nothing", "XDP_DROP"), None);
    }
}
