//! What an operator should know of an interface before the kernel stage sits on it.
//!
//! Owns: the facts (driver, VLAN offload, LRO, UDP hashing, queues, NUMA node) and the advice that
//! follows from them. Does not own: the calls (see [`crate::sys::ethtool`], [`crate::netlink`]).
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::netlink::Interface;
use crate::sys::ethtool::{self, Asker};

/// Facts of one interface. What the driver does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LinkFacts {
    /// The driver's name.
    pub driver: Option<String>,
    /// Largest packet without the link's header, octets.
    pub mtu: u32,
    /// Whether the device takes VLAN tags out of frames before XDP sees them. Rules hold either way: the
    /// program steps over tags that it sees.
    pub vlan_offload: Option<bool>,
    /// Whether the device merges received segments.
    pub lro: Option<bool>,
    /// Whether UDP ports go into the receive hash, for IPv4 and for IPv6.
    pub udp_hash_ports: Option<[bool; 2]>,
    /// Receive queues in use.
    pub rx_queues: u32,
    /// The NUMA node of the device; none on machines with one node and for virtual interfaces.
    pub numa_node: Option<u32>,
}

/// Asks about `interface`.
pub fn collect(interface: &Interface) -> LinkFacts {
    let mut facts = LinkFacts { mtu: interface.mtu, rx_queues: interface.rx_queues, ..LinkFacts::default() };
    let Ok(asker) = Asker::new() else { return facts };
    let name = &interface.name;
    facts.driver = asker.driver(name).ok().filter(|driver| !driver.is_empty());
    if let Ok(flags) = asker.flags(name) {
        facts.vlan_offload = Some(flags & ethtool::FLAG_RXVLAN != 0);
        facts.lro = Some(flags & ethtool::FLAG_LRO != 0);
    }
    let hash =
        |flow| asker.receive_hash(name, flow).map(|hash| hash & ethtool::HASH_PORTS == ethtool::HASH_PORTS);
    if let (Ok(v4), Ok(v6)) = (hash(ethtool::UDP_V4_FLOW), hash(ethtool::UDP_V6_FLOW)) {
        facts.udp_hash_ports = Some([v4, v6]);
    }
    if let Ok(channels) = asker.channels(name) {
        let used = channels.rx + channels.combined;
        facts.rx_queues = if used == 0 { facts.rx_queues } else { used };
    }
    facts.numa_node = numa_node(name);
    facts
}

impl LinkFacts {
    /// What an operator might want to change, one sentence each.
    pub fn advice(&self, interface: &str) -> Vec<String> {
        let mut advice = Vec::new();
        if self.lro == Some(true) {
            advice.push(format!(
                "LRO merges segments before XDP counts them, so packet limits see fewer packets; \
                 `ethtool -K {interface} lro off`"
            ));
        }
        if let Some(ports) = self.udp_hash_ports
            && ports != [true, true]
        {
            advice.push(format!(
                "UDP ports are not in the receive hash, so all datagrams between two hosts come to one queue; \
                 `ethtool -N {interface} rx-flow-hash udp4 sdfn` and `udp6 sdfn` spread them"
            ));
        }
        advice
    }

    /// The facts on one line.
    pub fn sentence(&self) -> String {
        let switch = |state: Option<bool>| match state {
            Some(true) => "on",
            Some(false) => "off",
            None => "unknown",
        };
        let hash = match self.udp_hash_ports {
            Some([true, true]) => "addresses and ports",
            Some([false, false]) => "addresses",
            Some(_) => "differs between IPv4 and IPv6",
            None => "unknown",
        };
        let node = self.numa_node.map_or("none".to_owned(), |node| node.to_string());
        format!(
            "driver {}, MTU {}, receive queues {}, VLAN offload {}, LRO {}, UDP hashing {hash}, NUMA node {node}",
            self.driver.as_deref().unwrap_or("unknown"),
            self.mtu,
            self.rx_queues,
            switch(self.vlan_offload),
            switch(self.lro),
        )
    }
}

/// The NUMA node as sysfs has it; -1 stands for none.
fn numa_node(interface: &str) -> Option<u32> {
    let path = format!("/sys/class/net/{interface}/device/numa_node");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_answers() {
        let facts = collect(&crate::netlink::interface("lo").expect("every namespace has one"));
        assert!(facts.mtu >= 1500, "{facts:?}");
        assert!(facts.sentence().contains("MTU"), "{}", facts.sentence());
    }

    #[test]
    fn advice_names_the_command() {
        let facts = LinkFacts {
            vlan_offload: Some(true),
            lro: Some(true),
            udp_hash_ports: Some([false, true]),
            ..LinkFacts::default()
        };
        let advice = facts.advice("eth0");
        assert_eq!(advice.len(), 2);
        assert!(advice.iter().all(|line| line.contains("`ethtool -")), "{advice:?}");
    }
}
