//! A veth pair between two namespaces: what stands for the network in front of a host.
//!
//! Owns: the pair, its addresses and neighbours, the kernel threads of its receive work. Does not own:
//! what is attached to it (see [`crate::ctl`]) or sent over it (see [`crate::flood`]).
//!
//! The **host** end is where the stage is attached; the **peer** end is the rest of the world, whose
//! addresses are anything: the host routes all it does not know back to the peer.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::netns::{self, Netns, ip};
use crate::{PATIENCE, sys, wait_until};

/// Address of the host end.
pub const HOST4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Address of the peer end.
pub const PEER4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// IPv6 address of the host end.
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0x2, 0, 0, 0, 0, 0, 1);
/// IPv6 address of the peer end.
pub const PEER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0x2, 0, 0, 0, 0, 0, 2);

/// What a wire is made with.
#[derive(Clone, Debug)]
pub struct WireSetup {
    queues: u32,
    mtu: u32,
    static_neighbours: bool,
    host_is_here: bool,
}

impl Default for WireSetup {
    fn default() -> Self {
        Self { queues: 1, mtu: 1500, static_neighbours: true, host_is_here: false }
    }
}

impl WireSetup {
    /// Receive and transmit queues of each end.
    pub fn queues(mut self, count: u32) -> Self {
        self.queues = count;
        self
    }

    /// MTU of both ends, in octets.
    pub fn mtu(mut self, octets: u32) -> Self {
        self.mtu = octets;
        self
    }

    /// Lets the ends find each other by ARP and neighbour discovery.
    pub fn without_neighbours(mut self) -> Self {
        self.static_neighbours = false;
        self
    }

    /// Leaves the host end in the namespace of the test, which gets no route but that of the link.
    pub fn host_here(mut self) -> Self {
        self.host_is_here = true;
        self
    }

    /// Makes it, both ends up.
    #[track_caller]
    pub fn make(self) -> Wire {
        let host_space = (!self.host_is_here).then(Netns::new);
        let peer_space = Netns::new();
        let name = netns::unique();
        let (host, peer) = (format!("{name}h"), format!("{name}p"));
        let (queues, mtu) = (self.queues.to_string(), self.mtu.to_string());
        let both = ["numrxqueues", queues.as_str(), "numtxqueues", queues.as_str()];
        let mut add = vec!["link", "add", host.as_str(), "address", HOST_MAC, "mtu", mtu.as_str()];
        add.extend(both);
        if let Some(space) = &host_space {
            add.extend(["netns", space.name()]);
        }
        add.extend(["type", "veth", "peer", "name", peer.as_str(), "address", PEER_MAC, "mtu", mtu.as_str()]);
        add.extend(both);
        add.extend(["netns", peer_space.name()]);
        ip(&add);
        let wire = Wire {
            host: End { interface: host, mac: HOST_MAC_OCTETS, space: host_space },
            peer: End { interface: peer, mac: PEER_MAC_OCTETS, space: Some(peer_space) },
            pins: netns::pins(&name),
        };
        wire.host.address(&format!("{HOST4}/24"));
        wire.host.address(&format!("{HOST6}/64"));
        wire.peer.address(&format!("{PEER4}/24"));
        wire.peer.address(&format!("{PEER6}/64"));
        for end in [&wire.host, &wire.peer] {
            end.ip(&["link", "set", &end.interface, "up"]);
        }
        if self.static_neighbours {
            for (end, other, addresses) in [
                (&wire.host, PEER_MAC, [PEER4.to_string(), PEER6.to_string()]),
                (&wire.peer, HOST_MAC, [HOST4.to_string(), HOST6.to_string()]),
            ] {
                for address in addresses {
                    end.ip(&["neigh", "replace", &address, "lladdr", other, "dev", &end.interface]);
                }
            }
        }
        if wire.host.space.is_some() {
            for (family, peer) in [("-4", PEER4.to_string()), ("-6", PEER6.to_string())] {
                wire.host.ip(&[family, "route", "add", "default", "via", &peer, "dev", &wire.host.interface]);
            }
        }
        wire
    }
}

const HOST_MAC: &str = "02:be:00:00:00:01";
const HOST_MAC_OCTETS: [u8; 6] = [2, 0xbe, 0, 0, 0, 1];
const PEER_MAC: &str = "02:be:00:00:00:02";
const PEER_MAC_OCTETS: [u8; 6] = [2, 0xbe, 0, 0, 0, 2];

/// A veth pair. Dropping it removes the pair, its namespaces, and what was pinned for the host end.
#[derive(Debug)]
pub struct Wire {
    /// Where the stage is attached.
    pub host: End,
    /// The other end.
    pub peer: End,
    /// Where `blitz-ctl` pins what it attaches to the host end.
    pub pins: PathBuf,
}

impl Wire {
    /// One queue, MTU 1500, both ends in namespaces, neighbours known.
    #[track_caller]
    pub fn new() -> Self {
        WireSetup::default().make()
    }

    /// Moves the receive work of the host end to kernel threads, that of queue `n` on `cpus[n]`, so that
    /// no sender pays for it. To be called when a program is attached: only then there is such work.
    ///
    /// Returns the ids of the threads by queue.
    #[track_caller]
    pub fn pin_receive_work(&self, cpus: &[usize]) -> Vec<i32> {
        let space = self.host.space.as_ref().expect("the host end is in a namespace");
        space.write_sys(&format!("{}/threaded", self.host.interface), "1");
        let mut threads = Vec::new();
        wait_until("the receive threads run", PATIENCE, || {
            threads = receive_threads(&self.host.interface);
            threads.len() == cpus.len()
        });
        for (&thread, &cpu) in threads.iter().zip(cpus) {
            sys::pin(thread, cpu).expect("a kernel thread can be pinned");
        }
        threads
    }

    /// Packets that the pair dropped between the peer's sending and the host's program, so far: the
    /// host's ring was full.
    #[track_caller]
    pub fn dropped(&self) -> u64 {
        self.peer.statistic("tx", "dropped") + self.peer.statistic("tx", "errors")
    }
}

impl Default for Wire {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Removing one end removes both, also while a process still holds a namespace.
        let mut words = Vec::new();
        if let Some(space) = &self.host.space {
            words.extend(["-n", space.name()]);
        }
        words.extend(["link", "del", self.host.interface.as_str()]);
        let _ = Command::new("ip").args(words).stderr(Stdio::null()).status();
        netns::remove_pins(&self.pins);
    }
}

/// One end of a [`Wire`].
#[derive(Debug)]
pub struct End {
    /// The interface.
    pub interface: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Where it is; `None` is the namespace of the test.
    pub space: Option<Netns>,
}

impl End {
    /// Runs `ip` where this end is.
    #[track_caller]
    pub fn ip(&self, args: &[&str]) -> String {
        match &self.space {
            Some(space) => space.ip(args),
            None => ip(args),
        }
    }

    /// Runs `work` where this end is.
    #[track_caller]
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.space {
            Some(space) => space.run(work),
            None => work(),
        }
    }

    /// Adds an address with its prefix length.
    #[track_caller]
    pub fn address(&self, prefix: &str) {
        // Without duplicate address detection an IPv6 address can be used at once.
        let mut words = vec!["address", "add", prefix, "dev", self.interface.as_str()];
        if prefix.contains(':') {
            words.push("nodad");
        }
        self.ip(&words);
    }

    /// Lets it merge the datagrams that it receives (GRO).
    #[track_caller]
    pub fn merge_received(&self) {
        let interface = self.interface.clone();
        self.run(|| sys::merge_received(&interface)).expect("veth has GRO");
    }

    /// Adds a source address, as a host of its own.
    #[track_caller]
    pub fn source(&self, address: IpAddr) {
        let length = if address.is_ipv4() { 32 } else { 128 };
        self.address(&format!("{address}/{length}"));
    }

    /// A number of `ip -s -s -j link`: direction `rx` or `tx`, and its name.
    #[track_caller]
    pub fn statistic(&self, direction: &str, name: &str) -> u64 {
        let text = self.ip(&["-s", "-s", "-j", "link", "show", "dev", &self.interface]);
        let value: serde_json::Value = serde_json::from_str(&text).expect("ip -j prints JSON");
        let number = value.get(0).and_then(|link| link.get("stats64")?.get(direction)?.get(name)?.as_u64());
        number.unwrap_or_else(|| panic!("ip shows no {direction} {name} in {text}"))
    }
}

/// The kernel threads that do the receive work of an interface, in the order of its queues.
fn receive_threads(interface: &str) -> Vec<i32> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // `napi/INTERFACE-ID`; the ids rise with the queues.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let id = name
            .trim()
            .strip_prefix("napi/")
            .and_then(|rest| rest.strip_prefix(interface)?.strip_prefix('-'));
        if let Some(id) = id.and_then(|id| id.parse::<u32>().ok()) {
            found.insert(id, pid);
        }
    }
    found.into_values().collect()
}

/// CPU time that a thread of the kernel or a process has used.
pub fn cpu_time(thread: i32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{thread}/schedstat")).unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|number| number.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}
