//! Every metric name of `blitz-ctl`, in one table.
//!
//! Owns: names, kinds, help texts, label names. Does not own: the values (see [`super::snapshot`]) or the
//! text format (see [`super::exposition`]).
#![forbid(unsafe_code)]

/// What kind of value a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, for as long as the stage is attached; a restart of the daemon does not reset it.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Full Prometheus name.
    pub name: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// One sentence for `# HELP`.
    pub help: &'static str,
    /// Label names, in order.
    pub labels: &'static [&'static str],
}

macro_rules! families {
    ($($constant:ident = $name:literal $kind:ident [$($label:literal),*] $help:literal;)+) => {
        $(
            #[doc = concat!("`", $name, "`: ", $help)]
            pub const $constant: Family =
                Family { name: $name, kind: Kind::$kind, help: $help, labels: &[$($label),*] };
        )+

        /// Every family.
        pub const ALL: &[Family] = &[$($constant),+];
    };
}

families! {
    // The kernel stage. Its counters live in the kernel and outlive the daemon.
    PACKETS = "blitz_xdp_packets_total" Counter ["interface", "verdict"]
        "Packets that reached the stage, by what happened to them.";
    BYTES = "blitz_xdp_bytes_total" Counter ["interface", "verdict"]
        "Bytes of the frames of these packets, from the Ethernet header on.";
    RULE_PACKETS = "blitz_xdp_rule_packets_total" Counter ["interface", "rule"]
        "Packets that a rule decided about: services pass, the others drop.";
    RULE_BYTES = "blitz_xdp_rule_bytes_total" Counter ["interface", "rule"]
        "Bytes of the frames that a rule decided about.";
    SHADOW_PACKETS = "blitz_xdp_shadow_packets_total" Counter ["interface", "rule"]
        "Packets that a rule in shadow would have dropped.";
    SHADOW_BYTES = "blitz_xdp_shadow_bytes_total" Counter ["interface", "rule"]
        "Bytes of the frames that a rule in shadow would have dropped.";
    FAULTS = "blitz_xdp_faults_total" Counter ["interface", "fault"]
        "Steps of the stage that could not do their work, by cause.";
    QUIC_PACKETS = "blitz_xdp_quic_packets_total" Counter ["interface", "reason"]
        "Datagrams to listeners with HTTP/3, by what was found out about them.";
    UNKNOWN_WORKER = "blitz_xdp_packet_for_unknown_worker_total" Counter ["interface"]
        "Datagrams whose connection ID names a worker that nobody is; they go to the kernel's sockets.";
    MAP_ENTRIES = "blitz_xdp_map_entries" Gauge ["interface", "map"]
        "Entries in a table of the stage, counted in the background; of SOURCES those in use of their budget.";
    MAP_ENTRIES_MAX = "blitz_xdp_map_entries_max" Gauge ["interface", "map"]
        "Entries that a table of the stage can hold.";
    PROGRAM_INFO = "blitz_xdp_program_info" Gauge ["interface", "mode", "id", "layout"]
        "1 for the program in the interface's link, its mode and the version of its map layout.";
    STAGE_UP = "blitz_xdp_stage_up" Gauge ["interface"]
        "1 while the stage is attached and its tables can be read, else 0.";

    // The daemon.
    BLOCKED_SOURCES = "blitz_ctl_blocked_sources" Gauge []
        "Sources on the blocklist.";
    BLOCKED_SOURCES_MAX = "blitz_ctl_blocked_sources_max" Gauge []
        "Sources that the blocklist takes from reports.";
    BLOCK_REPORTS = "blitz_ctl_block_reports_total" Counter ["reason", "outcome"]
        "Reports of the data plane, by what they were about and what became of them.";
    SOCKET_CONNECTIONS = "blitz_ctl_socket_connections" Gauge []
        "Connections on the control socket.";
    SOCKET_REFUSED = "blitz_ctl_socket_refused_total" Counter ["cause"]
        "Connections on the control socket that were turned away, by cause.";
    RELOADS = "blitz_ctl_reloads_total" Counter ["result"]
        "Times that the configuration was read anew, by result.";
    DENY_EXPIRED = "blitz_ctl_deny_entries_expired_total" Counter []
        "Deny entries that were removed because their time was over.";
    STEERED = "blitz_ctl_steered_total" Counter []
        "Times that the gateway has said how QUIC is steered: every few seconds, and on change.";
    BUILD_INFO = "blitz_ctl_build_info" Gauge ["version"]
        "1, labelled with the version of the program.";
    START_TIME = "blitz_ctl_start_time_seconds" Gauge []
        "When the daemon started, in seconds since the Unix epoch.";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_table_follows_the_naming_rules() {
        let mut names = HashSet::new();
        for family in ALL {
            assert!(family.name.starts_with("blitz_"), "{}", family.name);
            assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
            assert!(family.help.ends_with('.'), "{}", family.name);
            assert!(names.insert(family.name), "{} twice", family.name);
        }
    }
}
