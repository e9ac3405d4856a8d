//! `[[limits]]` and `[xdp]`: what their values mean together.
//!
//! Owns: that each limit limits something that can be limited, that no two packet limits of one kind
//! meet at one service, and that services and prefixes are there once. Does not own: keys, types and
//! ranges (see [`crate::file`]), or what becomes of it in the kernel (`blitz-ctl`).
#![forbid(unsafe_code)]

use super::{check_name, narrow};
use crate::error::{Issues, quoted};
use crate::file::{
    AfXdpFile, BadPacketsFile, BlocklistFile, CopyingFile, DenyFile, DenyScopeFile, LimitByFile, LimitFile,
    PerSecond, TransportFile, XdpFile, XdpModeFile, XdpQuicFile, XdpServiceFile,
};
use crate::model::{
    AfXdp, Blocklist, Cidr, Copying, DenyPrefix, Limit, LimitBy, Listener, Protocol, Transport, Xdp, XdpMode,
    XdpQuic, XdpService,
};
use crate::suggest;
use blitz_ebpf_common::layout;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// Bytes of the name of a limit or service: the kernel's table of rule names holds `service:NAME`.
pub const RULE_BYTES_MAX: usize = layout::RULE_NAME_MAX - "service:".len();

/// Bytes of the largest frame: what the bucket of a byte rate must hold to let anything through.
pub const FRAME_BYTES_MAX: u64 = 65_536;

/// Bytes of an interface's name (IFNAMSIZ without its zero, netdevice(7)).
const INTERFACE_BYTES_MAX: usize = 15;

/// The limits of the file; `listeners` are the names of its listeners, in order.
pub(super) fn limits(file: &[LimitFile], listeners: &[String], issues: &mut Issues) -> Vec<Limit> {
    let mut names: HashMap<&str, usize> = HashMap::new();
    let mut limits = Vec::with_capacity(file.len());
    for (index, limit) in file.iter().enumerate() {
        let path = format!("limits[{index}]");
        if let Err(why) = check_rule_name(&limit.name) {
            issues.add(format!("{path}.name"), why);
        } else if let Some(first) = names.insert(&limit.name, index) {
            let message =
                format!("{} is the name of limits[{first}] too; accepted: unique names", quoted(&limit.name));
            issues.add(format!("{path}.name"), message);
        }
        let mut covered = Vec::with_capacity(limit.listeners.len());
        for (position, name) in limit.listeners.iter().enumerate() {
            match listeners.iter().position(|listener| listener == name) {
                None => {
                    issues.add(format!("{path}.listeners[{position}]"), unknown_listener(name, listeners));
                }
                Some(listener) if covered.contains(&listener) => {
                    let message = format!("{} is there twice; accepted: each once", quoted(name));
                    issues.add(format!("{path}.listeners[{position}]"), message);
                }
                Some(listener) => covered.push(listener),
            }
        }
        covered.sort_unstable();
        let limit = of_file(limit, covered);
        check_rates(&limit, &path, issues);
        limits.push(limit);
    }
    limits
}

fn of_file(limit: &LimitFile, listeners: Vec<usize>) -> Limit {
    let rate = |rate: Option<PerSecond>| rate.map(PerSecond::value);
    let bits = |bits: u64| u8::try_from(bits).unwrap_or(u8::MAX);
    Limit {
        name: limit.name.clone(),
        by: match limit.by {
            LimitByFile::SourcePrefix => LimitBy::SourcePrefix,
            LimitByFile::SourcePrefixAndPath => LimitBy::SourcePrefixAndPath,
            LimitByFile::Service => LimitBy::Service,
        },
        listeners,
        prefix_v4: bits(limit.prefix_v4.value()),
        prefix_v6: bits(limit.prefix_v6.value()),
        packets_per_second: rate(limit.packets_per_second),
        bytes_per_second: rate(limit.bytes_per_second),
        syns_per_second: rate(limit.syns_per_second),
        requests_per_second: rate(limit.requests_per_second),
        burst: Duration::from_secs(limit.burst_seconds.value()),
        shadow: limit.shadow,
    }
}

fn check_rates(limit: &Limit, path: &str, issues: &mut Issues) {
    if !limit.limits_packets() && limit.requests_per_second.is_none() {
        issues.add(
            path,
            "has no rate, so it would limit nothing; accepted: at least one of packets_per_second, \
             bytes_per_second, syns_per_second and requests_per_second",
        );
    }
    let packet_rates = [
        ("packets_per_second", limit.packets_per_second),
        ("bytes_per_second", limit.bytes_per_second),
        ("syns_per_second", limit.syns_per_second),
    ];
    if limit.by == LimitBy::SourcePrefixAndPath {
        for (key, _) in packet_rates.iter().filter(|(_, rate)| rate.is_some()) {
            issues.add(
                format!("{path}.{key}"),
                "a packet has no path; accepted: requests_per_second, or another value of by",
            );
        }
    }
    if let Some(rate) = limit.bytes_per_second
        && limit.burst_of(rate) < FRAME_BYTES_MAX
    {
        let seconds = limit.burst.as_secs();
        let least = FRAME_BYTES_MAX.div_ceil(seconds.max(1));
        let message = format!(
            "{rate} with burst_seconds {seconds} never lets a frame of {FRAME_BYTES_MAX} bytes through; \
             accepted: {least} or more, or a longer burst"
        );
        issues.add(format!("{path}.bytes_per_second"), message);
    }
    if limit.by == LimitBy::Service {
        let prefixes = [
            ("prefix_v4", limit.prefix_v4, Limit::PREFIX_V4_RECOMMENDED),
            ("prefix_v6", limit.prefix_v6, Limit::PREFIX_V6_RECOMMENDED),
        ];
        for (key, _, _) in prefixes.iter().filter(|(_, bits, default)| bits != default) {
            issues.add(format!("{path}.{key}"), "a limit by service has no source; remove the key");
        }
    }
}

/// Reports two packet limits of one kind that meet at one service: a packet has one bucket per source
/// and one per service.
pub(super) fn check_meetings(limits: &[Limit], listeners: &[Listener], issues: &mut Issues) {
    let of_packets = || limits.iter().enumerate().filter(|(_, limit)| limit.limits_packets());
    for (index, limit) in of_packets() {
        let earlier = of_packets().take_while(|(other, _)| *other < index).find_map(|(other, earlier)| {
            let is_same_kind = (earlier.by == LimitBy::Service) == (limit.by == LimitBy::Service);
            let meets = |listener| limit.covers_listener(listener) && earlier.covers_listener(listener);
            let place = (0..listeners.len()).find(|&listener| is_same_kind && meets(listener))?;
            Some((other, place))
        });
        if let Some((other, place)) = earlier {
            let name = |index: usize| limits.get(index).map_or("", |limit| limit.name.as_str());
            let listener = listeners.get(place).map_or("", |listener| listener.name.as_str());
            let kind = if limit.by == LimitBy::Service { "by service" } else { "by source" };
            let message = format!(
                "{} and {} (limits[{other}]) both limit packets {kind} on the listener {}; \
                 accepted: one packet limit {kind} for each service",
                quoted(name(index)),
                quoted(name(other)),
                quoted(listener)
            );
            issues.add(format!("limits[{index}]"), message);
        }
    }
}

/// The stage of the file.
pub(super) fn xdp(file: &XdpFile, issues: &mut Issues) -> Xdp {
    for (index, name) in file.interfaces.iter().enumerate() {
        let path = format!("xdp.interfaces[{index}]");
        if !is_interface(name) {
            let message = format!(
                "{} is not the name of an interface; accepted: 1 to {INTERFACE_BYTES_MAX} characters \
                 without spaces and slashes, such as eth0",
                quoted(name)
            );
            issues.add(path, message);
        } else if file.interfaces.iter().take(index).any(|earlier| earlier == name) {
            issues.add(path, format!("{} is there twice; accepted: each once", quoted(name)));
        }
    }
    let deny_max = narrow(file.deny_max.value());
    Xdp {
        interfaces: file.interfaces.clone(),
        mode: match file.mode {
            XdpModeFile::Auto => XdpMode::Auto,
            XdpModeFile::Native => XdpMode::Native,
            XdpModeFile::Generic => XdpMode::Generic,
        },
        shadow: file.shadow,
        allow: prefixes(&file.allow, "xdp.allow", issues),
        management: prefixes(&file.management, "xdp.management", issues),
        deny: denied(&file.deny, deny_max, issues),
        services: services(&file.services, issues),
        sources_max: narrow(file.sources_max.value()),
        deny_max,
        blocklist: blocklist(&file.blocklist),
        quic: quic(&file.quic),
        afxdp: file.afxdp.as_ref().map(|file| afxdp(file, issues)),
    }
}

fn afxdp(file: &AfXdpFile, issues: &mut Issues) -> AfXdp {
    let frames = narrow(file.frames_per_queue.value());
    if !frames.is_power_of_two() {
        let message = format!("{frames} is no power of two; accepted: 256, 512, 1024 and so on up to 65536");
        issues.add("xdp.afxdp.frames_per_queue", message);
    }
    AfXdp {
        frames_per_queue: frames,
        copying: match file.copying {
            CopyingFile::Always => Copying::Always,
            CopyingFile::Never => Copying::Never,
            CopyingFile::IfNeeded => Copying::IfNeeded,
        },
    }
}

/// Reports AF_XDP that nothing could come of.
pub(super) fn check_afxdp(xdp: &Xdp, listeners: &[Listener], issues: &mut Issues) {
    if xdp.afxdp.is_none() {
        return;
    }
    if xdp.interfaces.is_empty() {
        let message =
            "asks for frames of xdp.interfaces, which names none; accepted: at least one interface there";
        issues.add("xdp.afxdp", message);
    } else if !listeners.iter().any(|listener| listener.speaks(Protocol::H3)) {
        let message = "is for HTTP/3, which no listener speaks; accepted: \"h3\" among listeners.protocols";
        issues.add("xdp.afxdp", message);
    }
}

/// Reports what the stage cannot tell apart once the listeners are services too.
pub(super) fn check_services(xdp: &Xdp, listeners: &[Listener], issues: &mut Issues) {
    for (index, service) in xdp.services.iter().enumerate() {
        if let Some(listener) = listeners.iter().find(|listener| listener.name == service.name) {
            let message =
                format!("{} is the name of a listener too; accepted: unique names", quoted(&listener.name));
            issues.add(format!("xdp.services[{index}].name"), message);
        }
        let same = listeners.iter().find(|listener| {
            let address = Some(listener.address.ip()).filter(|address| !address.is_unspecified());
            let is_same_transport = match service.protocol {
                Transport::Tcp => listener.speaks(Protocol::H1) || listener.speaks(Protocol::H2),
                Transport::Udp => listener.speaks(Protocol::H3),
            };
            is_same_transport && listener.address.port() == service.port && address == service.address
        });
        if let Some(listener) = same {
            let message = format!(
                "is the listener {} on {}, which is a service already; remove the entry",
                quoted(&listener.name),
                listener.address
            );
            issues.add(format!("xdp.services[{index}]"), message);
        }
    }
    if xdp.interfaces.is_empty() {
        return;
    }
    for (index, listener) in listeners.iter().enumerate() {
        if listener.address.port() == 0 {
            issues.add(
                format!("listeners[{index}].address"),
                format!(
                    "{} lets the kernel choose a port, which xdp.interfaces cannot protect; \
                     accepted: a port from 1 to 65535",
                    listener.address
                ),
            );
        }
        if listener.name.len() > RULE_BYTES_MAX {
            let message = format!(
                "{} is too long for the kernel's counters, which xdp.interfaces asks for; \
                 accepted: up to {RULE_BYTES_MAX} bytes",
                quoted(&listener.name)
            );
            issues.add(format!("listeners[{index}].name"), message);
        }
    }
}

fn prefixes(file: &[String], key: &str, issues: &mut Issues) -> Vec<Cidr> {
    let mut prefixes = Vec::with_capacity(file.len());
    let mut seen = HashMap::new();
    for (index, text) in file.iter().enumerate() {
        match prefix(text, index, &mut seen) {
            Ok(prefix) => prefixes.push(prefix),
            Err(why) => issues.add_with(|| (format!("{key}[{index}]"), why)),
        }
    }
    prefixes
}

/// A prefix that is not in `seen` yet.
fn prefix(text: &str, index: usize, seen: &mut HashMap<Cidr, usize>) -> Result<Cidr, String> {
    let prefix: Cidr = text.parse()?;
    match seen.insert(prefix, index) {
        Some(first) => Err(format!("{prefix} is there twice, at {first} and {index}; accepted: each once")),
        None => Ok(prefix),
    }
}

fn denied(file: &[DenyFile], deny_max: u32, issues: &mut Issues) -> Vec<DenyPrefix> {
    let mut denied = Vec::with_capacity(file.len());
    let mut seen = HashMap::new();
    for (index, entry) in file.iter().enumerate() {
        let (text, key, host, shadow) = match entry {
            DenyFile::Prefix(text) => (text, "", false, false),
            DenyFile::Table(table) => {
                (&table.prefix, ".prefix", table.scope == DenyScopeFile::Host, table.shadow)
            }
        };
        match prefix(text, index, &mut seen) {
            Ok(prefix) => denied.push(DenyPrefix { prefix, host, shadow }),
            Err(why) => issues.add_with(|| (format!("xdp.deny[{index}]{key}"), why)),
        }
    }
    let v4 = denied.iter().filter(|entry| entry.prefix.address.is_ipv4()).count();
    for (family, count) in [("IPv4", v4), ("IPv6", denied.len().saturating_sub(v4))] {
        if count > usize::try_from(deny_max).unwrap_or(usize::MAX) {
            let message =
                format!("{count} {family} prefixes; accepted: up to xdp.deny_max, which is {deny_max}");
            issues.add("xdp.deny", message);
        }
    }
    denied
}

fn services(file: &[XdpServiceFile], issues: &mut Issues) -> Vec<XdpService> {
    let mut services: Vec<XdpService> = Vec::with_capacity(file.len());
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut places = HashMap::new();
    for (index, service) in file.iter().enumerate() {
        let path = format!("xdp.services[{index}]");
        let port = u16::try_from(service.port.value()).unwrap_or(u16::MAX);
        let (protocol, word) = match service.protocol {
            TransportFile::Tcp => (Transport::Tcp, "tcp"),
            TransportFile::Udp => (Transport::Udp, "udp"),
        };
        let name = service.name.clone().unwrap_or_else(|| format!("{word}-{port}"));
        if let Err(why) = check_rule_name(&name) {
            issues.add(format!("{path}.name"), why);
        } else if let Some(first) = names.insert(name.clone(), index) {
            let message =
                format!("{} is the name of xdp.services[{first}] too; accepted: unique names", quoted(&name));
            issues.add(format!("{path}.name"), message);
        }
        let address = match service.address.as_deref().map(service_address).transpose() {
            Ok(address) => address,
            Err(why) => {
                issues.add(format!("{path}.address"), why);
                continue;
            }
        };
        if let Some(first) = places.insert((address, port, protocol), index) {
            issues.add(path, format!("is xdp.services[{first}] too; accepted: each service once"));
        }
        services.push(XdpService { name, address, port, protocol });
    }
    services
}

fn service_address(text: &str) -> Result<IpAddr, String> {
    let refuse = |why: &str| format!("{} {why}", quoted(text));
    let address: IpAddr = text
        .parse()
        .map_err(|_| refuse("is not an address; accepted: such as 203.0.113.7 or 2001:db8::7"))?;
    if address.is_unspecified() {
        return Err(refuse("stands for every address; remove the key to say so"));
    }
    if address.to_canonical() != address {
        return Err(refuse("is an IPv4 address in IPv6 form; accepted: the IPv4 address"));
    }
    Ok(address)
}

fn blocklist(file: &BlocklistFile) -> Blocklist {
    Blocklist {
        framing_violations_per_minute: narrow(file.framing_violations_per_minute.value()),
        limit_refusals_per_minute: narrow(file.limit_refusals_per_minute.value()),
        ttl: Duration::from_millis(file.ttl_ms.value()),
        entries_max: narrow(file.entries_max.value()),
    }
}

fn quic(file: &XdpQuicFile) -> XdpQuic {
    XdpQuic {
        drop_bad: file.bad_packets == BadPacketsFile::Drop,
        unknown_versions_per_second: narrow(file.unknown_versions_per_second.value()),
    }
}

fn unknown_listener(name: &str, listeners: &[String]) -> String {
    let text = quoted(name);
    let known = || listeners.iter().map(String::as_str);
    if listeners.is_empty() {
        return format!("{text} is not a listener; the file has none, leave the key out for all");
    }
    match suggest::nearest(name, known()) {
        Some(near) => format!("{text} is not a listener; did you mean {}?", quoted(near)),
        None => {
            let listed = known().map(quoted).collect::<Vec<_>>().join(", ");
            format!("{text} is not a listener; accepted: {listed}")
        }
    }
}

fn check_rule_name(name: &str) -> Result<(), String> {
    check_name(name, RULE_BYTES_MAX)
}

/// What the kernel takes as the name of an interface (`dev_valid_name`).
fn is_interface(name: &str) -> bool {
    (1..=INTERFACE_BYTES_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.bytes().any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace() || b.is_ascii_control())
}
