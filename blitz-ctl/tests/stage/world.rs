//! The tables that fixtures and random packets meet.

use std::collections::HashMap;

use blitz_config::Config;
use blitz_ctl::image::{Image, InForce};
use blitz_ctl::prefixes::wire;
use blitz_ebpf_common::gcra::Rate;
use blitz_ebpf_common::layout::{Block, BlockKey, DENY_SHADOW};

const CONFIG: &str = r#"
trusted_proxies = []

[[listeners]]
name = "edge"
address = "0.0.0.0:443"
[[listeners]]
name = "edge6"
address = "[::]:443"
[[listeners]]
name = "http"
address = "10.0.0.1:80"
[[listeners]]
name = "bytes"
address = "0.0.0.0:8001"
[[listeners]]
name = "syns"
address = "0.0.0.0:8002"
[[listeners]]
name = "all_packets"
address = "0.0.0.0:8003"
[[listeners]]
name = "all_bytes"
address = "0.0.0.0:8004"
[[listeners]]
name = "all_syns"
address = "0.0.0.0:8005"
[[listeners]]
name = "shadowed"
address = "0.0.0.0:8006"
[[listeners]]
name = "http6"
address = "[2001:db8:1::1]:80"
[[listeners]]
name = "wide"
address = "0.0.0.0:8007"

[[listeners]]
name = "quic"
address = "0.0.0.0:4443"
protocols = ["h1", "h2", "h3"]
tls = { certificates = [{ cert_path = "c.pem", key_path = "k.pem" }] }
[[listeners]]
name = "quic6"
address = "[::]:4443"
protocols = ["h1", "h2", "h3"]
tls = { certificates = [{ cert_path = "c.pem", key_path = "k.pem" }] }
[[listeners]]
name = "quic_alone"
address = "10.0.0.7:4444"
protocols = ["h3"]
tls = { certificates = [{ cert_path = "c.pem", key_path = "k.pem" }] }
[[listeners]]
name = "quic_limited"
address = "10.0.0.8:4444"
protocols = ["h1", "h3"]
tls = { certificates = [{ cert_path = "c.pem", key_path = "k.pem" }] }

[upstreams.app]
endpoints = [{ address = "127.0.0.1:9001" }]
[[routes]]
path = "/*rest"
upstream = "app"

[[limits]]
name = "packets"
by = "source_prefix"
listeners = ["http", "http6", "quic_limited"]
packets_per_second = 3
burst_seconds = 1
[[limits]]
name = "bytes"
by = "source_prefix"
listeners = ["bytes"]
bytes_per_second = 65536
burst_seconds = 1
[[limits]]
name = "syns"
by = "source_prefix"
listeners = ["syns"]
syns_per_second = 2
burst_seconds = 1
[[limits]]
name = "all_packets"
by = "service"
listeners = ["all_packets"]
packets_per_second = 3
burst_seconds = 1
[[limits]]
name = "all_bytes"
by = "service"
listeners = ["all_bytes"]
bytes_per_second = 65536
burst_seconds = 1
[[limits]]
name = "all_syns"
by = "service"
listeners = ["all_syns"]
syns_per_second = 2
burst_seconds = 1
[[limits]]
name = "shadowed"
by = "source_prefix"
listeners = ["shadowed"]
packets_per_second = 1
burst_seconds = 1
shadow = true
[[limits]]
name = "wide"
by = "source_prefix"
listeners = ["wide"]
prefix_v4 = 24
packets_per_second = 3
burst_seconds = 1

[xdp]
allow = ["198.51.100.0/28", "2001:db8:a::/48"]
management = ["198.51.100.16/28", "203.0.113.128/25"]
deny = [
  "192.0.2.0/24", "192.0.2.77/32", "192.0.128.0/17", "100.64.0.0/10", "2001:db8:dead::/48",
  "2001:db8:dead:1::/64", "2001:db8:beef::1/128", "fc00::/7", "198.51.100.3/32", "198.51.100.17/32",
  { prefix = "203.0.113.0/24", scope = "host" },
  { prefix = "2001:db8:cafe::/48", scope = "host" },
  { prefix = "198.18.0.0/15", shadow = true },
]
[[xdp.services]]
name = "dns"
port = 53
protocol = "udp"
[[xdp.services]]
name = "game"
address = "10.0.0.2"
port = 7777
protocol = "udp"
[[xdp.services]]
name = "game6"
address = "2001:db8:1::2"
port = 7777
protocol = "udp"
[[xdp.services]]
name = "own"
address = "10.0.0.3"
port = 443
protocol = "tcp"
"#;

/// Far in the future of any clock that counts from boot.
const NEVER_PAST: u64 = u64::MAX / 2;

/// The configuration, parsed.
pub(crate) fn config() -> Config {
    match blitz_config::load(CONFIG, blitz_config::Format::Toml, "world.toml", &Default::default()) {
        Ok(config) => config,
        Err(error) => panic!("{error}"),
    }
}

/// The image of the configuration. Buckets refill so slowly that no test sees it: a token takes hours,
/// so that verdicts do not depend on how long a test runs.
pub(crate) fn image() -> Image {
    let mut image = Image::from_config(&config(), 1, &InForce::default()).expect("it fits");
    for limit in &mut image.limits {
        limit.quantum = 0;
        for rate in &mut limit.rates {
            if rate.limits() {
                let tokens = ((rate.depth << 10) + rate.interval / 2) / rate.interval;
                // 2^42 units are 69 seconds, and 11 bits of tokens are used here.
                *rate = Rate { interval: 1 << 52, depth: tokens << 42 };
            }
        }
    }
    // Three, and then none.
    image.versions = Rate { interval: 1 << 52, depth: 3 << 42 };
    image
}

/// The blocklist: in force, expired, and in shadow.
pub(crate) fn blocked(image: &Image) -> HashMap<BlockKey, Block> {
    let rule = |name| image.rule(name).expect("a fixed rule");
    let entry = |source: &str, expires, name, flags| {
        let (family, words) = wire(source.parse().expect("an address"));
        (BlockKey::new(family, &words), Block { expires, since: 1, rule: rule(name), flags })
    };
    HashMap::from([
        entry("192.168.7.1", 0, "block:operator", 0),
        entry("192.168.7.2", NEVER_PAST, "block:framing", 0),
        entry("192.168.7.3", 1, "block:framing", 0),
        entry("192.168.7.4", 0, "block:limit", DENY_SHADOW),
        entry("198.51.100.4", 0, "block:operator", 0),
        entry("2001:db8:b:b::1", 0, "block:limit", 0),
        entry("192.0.2.9", 1, "block:framing", 0),
    ])
}
