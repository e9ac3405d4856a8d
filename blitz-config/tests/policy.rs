//! `[[limits]]` and `[xdp]`: what a file becomes, and the words of each refusal.

use blitz_config::file::{Format, LIMITS_MAX};
use blitz_config::model::{
    AfXdp, Blocklist, Copying, DenyPrefix, Limit, LimitBy, Transport, Xdp, XdpMode, XdpQuic, XdpService,
};
use blitz_config::{Config, Overrides, load};
use std::time::Duration;

/// What a case puts before its own lines. `edge` is the first listener, `side` the second.
const GOOD: &str = r#"
[[listeners]]
name = "edge"
address = "127.0.0.1:8080"
builtin_answers = true
[[listeners]]
name = "side"
address = "0.0.0.0:8081"
"#;

fn loaded(text: &str) -> Config {
    load(&format!("{GOOD}{text}"), Format::Toml, "f.toml", &Overrides::default())
        .unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// A limit with the defaults, as a file without further keys gives it.
fn limit(name: &str) -> Limit {
    Limit {
        name: name.to_owned(),
        by: LimitBy::SourcePrefix,
        listeners: vec![],
        prefix_v4: 32,
        prefix_v6: 64,
        packets_per_second: None,
        bytes_per_second: None,
        syns_per_second: None,
        requests_per_second: None,
        burst: Duration::from_secs(1),
        shadow: false,
    }
}

#[test]
fn a_limit_has_what_the_file_says_and_defaults_elsewhere() {
    let config = loaded(
        r#"
[[limits]]
name = "plain"
requests_per_second = 5
[[limits]]
name = "full"
by = "service"
listeners = ["side", "edge"]
packets_per_second = 1
bytes_per_second = 50_000_000_000
syns_per_second = 3
burst_seconds = 3600
shadow = true
"#,
    );
    let plain = Limit { requests_per_second: Some(5), ..limit("plain") };
    let full = Limit {
        by: LimitBy::Service,
        listeners: vec![0, 1],
        packets_per_second: Some(1),
        bytes_per_second: Some(50_000_000_000),
        syns_per_second: Some(3),
        burst: Duration::from_secs(3600),
        shadow: true,
        ..limit("full")
    };
    assert_eq!(config.limits, [plain.clone(), full.clone()]);
    assert!(!plain.limits_packets() && full.limits_packets());
    assert!(plain.covers_xdp_services() && !full.covers_xdp_services());
    assert_eq!(full.burst_of(50_000_000_000), 180_000_000_000_000);
}

#[test]
fn the_stage_has_what_the_file_says_and_defaults_elsewhere() {
    assert_eq!(loaded("").xdp, Xdp::default());
    let config = loaded(
        r#"
[xdp]
interfaces = ["eth0", "eth0.7"]
mode = "native"
shadow = true
allow = ["10.0.0.0/8"]
management = ["::1"]
deny = ["192.0.2.0/24", { prefix = "2001:db8::/32", scope = "host", shadow = true }, { prefix = "10.1.1.1" }]
sources_max = 1024
deny_max = 4194304
[[xdp.services]]
port = 53
protocol = "udp"
[[xdp.services]]
name = "mail"
address = "2001:db8::25"
port = 25
protocol = "tcp"
[xdp.blocklist]
framing_violations_per_minute = 0
ttl_ms = 1500
[xdp.quic]
bad_packets = "drop"
unknown_versions_per_second = 5
"#,
    );
    let deny = |prefix: &str, host, shadow| DenyPrefix { prefix: prefix.parse().unwrap(), host, shadow };
    let expected = Xdp {
        interfaces: vec!["eth0".to_owned(), "eth0.7".to_owned()],
        mode: XdpMode::Native,
        shadow: true,
        allow: vec!["10.0.0.0/8".parse().unwrap()],
        management: vec!["::1".parse().unwrap()],
        deny: vec![
            deny("192.0.2.0/24", false, false),
            deny("2001:db8::/32", true, true),
            deny("10.1.1.1", false, false),
        ],
        services: vec![
            XdpService { name: "udp-53".to_owned(), address: None, port: 53, protocol: Transport::Udp },
            XdpService {
                name: "mail".to_owned(),
                address: Some("2001:db8::25".parse().unwrap()),
                port: 25,
                protocol: Transport::Tcp,
            },
        ],
        sources_max: 1024,
        deny_max: 4_194_304,
        blocklist: Blocklist {
            framing_violations_per_minute: 0,
            ttl: Duration::from_millis(1500),
            ..Blocklist::RECOMMENDED
        },
        quic: XdpQuic { drop_bad: true, unknown_versions_per_second: 5 },
        afxdp: None,
    };
    assert_eq!(config.xdp, expected);
}

#[test]
fn af_xdp_has_defaults_and_values() {
    let with = |table: &str| {
        loaded(&format!(
            "[[listeners]]\nname = \"quic\"\naddress = \"127.0.0.1:8443\"\nprotocols = [\"h3\"]\n\
             [listeners.tls]\ncertificates = [{{ cert_path = \"a\", key_path = \"b\" }}]\n\
             [xdp]\ninterfaces = [\"eth0\"]\n{table}"
        ))
        .xdp
        .afxdp
    };
    assert_eq!(with(""), None);
    assert_eq!(with("[xdp.afxdp]"), Some(AfXdp::RECOMMENDED));
    let small = AfXdp { frames_per_queue: 256, copying: Copying::IfNeeded };
    assert_eq!(with("afxdp = { frames_per_queue = 256, copying = \"if_needed\" }"), Some(small));
}

#[test]
fn a_listener_of_the_command_line_stands_for_those_it_replaces() {
    let text = format!(
        "{GOOD}[[limits]]\nname = \"a\"\nlisteners = [\"side\"]\nrequests_per_second = 1\n\
         [[limits]]\nname = \"b\"\nrequests_per_second = 1"
    );
    let with_port = Overrides { port: Some(80), ..Overrides::default() };
    let config = load(&text, Format::Toml, "f.toml", &with_port).unwrap();
    assert_eq!(config.limits[0].listeners, [0]);
    assert!(config.limits[1].listeners.is_empty());
}

#[test]
fn packet_limits_that_do_not_meet_are_accepted() {
    loaded(
        r#"
[[limits]]
name = "a"
listeners = ["edge"]
packets_per_second = 1
[[limits]]
name = "b"
listeners = ["side"]
packets_per_second = 1
[[limits]]
name = "c"
by = "service"
packets_per_second = 1
[[limits]]
name = "d"
requests_per_second = 1
[[limits]]
name = "e"
requests_per_second = 1
"#,
    );
}

/// Lines behind [`GOOD`], and what is said about them.
const BAD: &[(&str, &str)] = &[
    (
        "[[limits]]\nname = \"x\"",
        "f.toml: limits[0]: has no rate, so it would limit nothing; accepted: at least one of packets_per_second, bytes_per_second, syns_per_second and requests_per_second",
    ),
    ("[[limits]]\nrequests_per_second = 1", "f.toml: limits[0].name: missing; this key is required"),
    (
        "[[limits]]\nname = \"x\"\nrequests_per_second = 0",
        "f.toml: limits[0].requests_per_second: 0 is out of range; accepted: 1 to 50000000000",
    ),
    (
        "[[limits]]\nname = \"x\"\nrequests_per_minute = 5",
        "f.toml: limits[0].requests_per_minute: unknown key; did you mean \"requests_per_second\"?",
    ),
    (
        "[[limits]]\nname = \"x\"\nrequests_per_second = 5\nburst_seconds = 0",
        "f.toml: limits[0].burst_seconds: 0 is out of range; accepted: 1 to 3600",
    ),
    (
        "[[limits]]\nname = \"x\"\nrequests_per_second = 5\nburst_seconds = 3601",
        "f.toml: limits[0].burst_seconds: 3601 is out of range; accepted: 1 to 3600",
    ),
    (
        "[[limits]]\nname = \"x\"\nrequests_per_second = 5\nburst_seconds = 0.5",
        "f.toml: limits[0].burst_seconds: 0.5 is not a whole number; accepted: 1 to 3600",
    ),
    (
        "[[limits]]\nname = \"x\"\nrequests_per_second = 5\nprefix_v6 = 65",
        "f.toml: limits[0].prefix_v6: 65 is out of range; accepted: 1 to 64",
    ),
    (
        "[[limits]]\nname = \"x\"\nby = \"source\"\nrequests_per_second = 5",
        "f.toml: limits[0].by: \"source\" is not accepted; did you mean \"source_prefix\"? accepted: \"source_prefix\", \"source_prefix_and_path\", \"service\"",
    ),
    (
        "[[limits]]\nname = \"a b\"\nrequests_per_second = 5",
        "f.toml: limits[0].name: \"a b\" is not a name; accepted: 1 to 56 letters, digits, ., _ and -",
    ),
    (
        "[[limits]]\nname = \"a\"\nrequests_per_second = 5\n[[limits]]\nname = \"a\"\nrequests_per_second = 5",
        "f.toml: limits[1].name: \"a\" is the name of limits[0] too; accepted: unique names",
    ),
    (
        "[[limits]]\nname = \"x\"\nlisteners = [\"egde\"]\nrequests_per_second = 5",
        "f.toml: limits[0].listeners[0]: \"egde\" is not a listener; did you mean \"edge\"?",
    ),
    (
        "[[limits]]\nname = \"x\"\nlisteners = [\"edge\", \"other\"]\nrequests_per_second = 5",
        "f.toml: limits[0].listeners[1]: \"other\" is not a listener; accepted: \"edge\", \"side\"",
    ),
    (
        "[[limits]]\nname = \"x\"\nlisteners = [\"edge\", \"edge\"]\nrequests_per_second = 5",
        "f.toml: limits[0].listeners[1]: \"edge\" is there twice; accepted: each once",
    ),
    (
        "[[limits]]\nname = \"x\"\nby = \"source_prefix_and_path\"\nsyns_per_second = 5",
        "f.toml: limits[0].syns_per_second: a packet has no path; accepted: requests_per_second, or another value of by",
    ),
    (
        "[[limits]]\nname = \"x\"\nby = \"service\"\nprefix_v4 = 24\nrequests_per_second = 5",
        "f.toml: limits[0].prefix_v4: a limit by service has no source; remove the key",
    ),
    (
        "[[limits]]\nname = \"x\"\nbytes_per_second = 20000\nburst_seconds = 3",
        "f.toml: limits[0].bytes_per_second: 20000 with burst_seconds 3 never lets a frame of 65536 bytes through; accepted: 21846 or more, or a longer burst",
    ),
    (
        "[[limits]]\nname = \"a\"\npackets_per_second = 5\n[[limits]]\nname = \"b\"\nlisteners = [\"side\"]\nsyns_per_second = 5",
        "f.toml: limits[1]: \"b\" and \"a\" (limits[0]) both limit packets by source on the listener \"side\"; accepted: one packet limit by source for each service",
    ),
    (
        "[[limits]]\nname = \"a\"\nby = \"service\"\npackets_per_second = 5\n[[limits]]\nname = \"b\"\nby = \"service\"\nbytes_per_second = 70000",
        "f.toml: limits[1]: \"b\" and \"a\" (limits[0]) both limit packets by service on the listener \"edge\"; accepted: one packet limit by service for each service",
    ),
    ("[limits]\nname = \"x\"", "f.toml: limits: a table is not accepted; accepted: a list"),
    ("[xdp]\ninterface = \"eth0\"", "f.toml: xdp.interface: unknown key; did you mean \"interfaces\"?"),
    (
        "[xdp]\ninterfaces = [\"a/b\"]",
        "f.toml: xdp.interfaces[0]: \"a/b\" is not the name of an interface; accepted: 1 to 15 characters without spaces and slashes, such as eth0",
    ),
    (
        "[xdp]\ninterfaces = [\"eth0\", \"eth0\"]",
        "f.toml: xdp.interfaces[1]: \"eth0\" is there twice; accepted: each once",
    ),
    (
        "[xdp]\nmode = \"skb\"",
        "f.toml: xdp.mode: \"skb\" is not accepted; accepted: \"auto\", \"native\", \"generic\"",
    ),
    (
        "[xdp]\nallow = [\"10.0.0.1/8\"]",
        "f.toml: xdp.allow[0]: \"10.0.0.1/8\" has bits set beyond its prefix; accepted: 10.0.0.0/8",
    ),
    (
        "[xdp]\ndeny = [\"x\"]",
        "f.toml: xdp.deny[0]: \"x\" is not a prefix; accepted: such as 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7",
    ),
    ("[xdp]\ndeny = [7]", "f.toml: xdp.deny[0]: 7 is not accepted; accepted: a string or a table"),
    (
        "[xdp]\ndeny = [{ prefix = \"::/0\", scope = \"all\" }]",
        "f.toml: xdp.deny[0].scope: \"all\" is not accepted; accepted: \"service\", \"host\"",
    ),
    ("[xdp]\ndeny = [{ scope = \"host\" }]", "f.toml: xdp.deny[0].prefix: missing; this key is required"),
    (
        "[xdp]\ndeny = [\"10.0.0.0/8\", { prefix = \"10.0.0.0/8\", scope = \"host\" }]",
        "f.toml: xdp.deny[1].prefix: 10.0.0.0/8 is there twice, at 0 and 1; accepted: each once",
    ),
    ("[xdp]\ndeny_max = 10", "f.toml: xdp.deny_max: 10 is out of range; accepted: 1024 to 4194304"),
    (
        "[xdp.blocklist]\nttl_ms = 3600001",
        "f.toml: xdp.blocklist.ttl_ms: 3600001 is out of range; accepted: 1000 to 3600000",
    ),
    (
        "[xdp.blocklist]\nentries_max = 65537",
        "f.toml: xdp.blocklist.entries_max: 65537 is out of range; accepted: 1 to 65536",
    ),
    (
        "[xdp.quic]\nbad_packets = \"pass\"",
        "f.toml: xdp.quic.bad_packets: \"pass\" is not accepted; accepted: \"count\", \"drop\"",
    ),
    (
        "[xdp.quic]\nunknown_versions_per_second = 0",
        "f.toml: xdp.quic.unknown_versions_per_second: 0 is out of range; accepted: 1 to 1000000",
    ),
    (
        "[[xdp.services]]\nport = 53\nprotocol = \"sctp\"",
        "f.toml: xdp.services[0].protocol: \"sctp\" is not accepted; accepted: \"tcp\", \"udp\"",
    ),
    (
        "[[xdp.services]]\nport = 53\nprotocol = \"udp\"\naddress = \"0.0.0.0\"",
        "f.toml: xdp.services[0].address: \"0.0.0.0\" stands for every address; remove the key to say so",
    ),
    (
        "[[xdp.services]]\nport = 53\nprotocol = \"udp\"\naddress = \"dns\"",
        "f.toml: xdp.services[0].address: \"dns\" is not an address; accepted: such as 203.0.113.7 or 2001:db8::7",
    ),
    (
        "[[xdp.services]]\nname = \"a\"\nport = 53\nprotocol = \"udp\"\n[[xdp.services]]\nname = \"b\"\nport = 53\nprotocol = \"udp\"",
        "f.toml: xdp.services[1]: is xdp.services[0] too; accepted: each service once",
    ),
    (
        "[[xdp.services]]\nport = 53\nprotocol = \"udp\"\n[[xdp.services]]\naddress = \"192.0.2.1\"\nport = 53\nprotocol = \"udp\"",
        "f.toml: xdp.services[1].name: \"udp-53\" is the name of xdp.services[0] too; accepted: unique names",
    ),
    (
        "[[xdp.services]]\nname = \"edge\"\nport = 53\nprotocol = \"udp\"",
        "f.toml: xdp.services[0].name: \"edge\" is the name of a listener too; accepted: unique names",
    ),
    (
        "[[xdp.services]]\nport = 8081\nprotocol = \"tcp\"",
        "f.toml: xdp.services[0]: is the listener \"side\" on 0.0.0.0:8081, which is a service already; remove the entry",
    ),
    (
        "[[listeners]]\nname = \"zero\"\naddress = \"127.0.0.1:0\"\n[xdp]\ninterfaces = [\"eth0\"]",
        "f.toml: listeners[2].address: 127.0.0.1:0 lets the kernel choose a port, which xdp.interfaces cannot protect; accepted: a port from 1 to 65535",
    ),
    (
        "[[listeners]]\nname = \"a123456789012345678901234567890123456789012345678901234567\"\naddress = \"127.0.0.1:1\"\n[xdp]\ninterfaces = [\"eth0\"]",
        "f.toml: listeners[2].name: \"a123456789012345678901234567890123456789012345678901234567\" is too long for the kernel's counters, which xdp.interfaces asks for; accepted: up to 56 bytes",
    ),
    (
        "[xdp]\ninterfaces = [\"eth0\"]\n[xdp.afxdp]",
        "f.toml: xdp.afxdp: is for HTTP/3, which no listener speaks; accepted: \"h3\" among listeners.protocols",
    ),
    (
        "[xdp.afxdp]",
        "f.toml: xdp.afxdp: asks for frames of xdp.interfaces, which names none; accepted: at least one interface there",
    ),
    (
        "[xdp.afxdp]\nframes_per_queue = 1000",
        "f.toml: xdp.afxdp.frames_per_queue: 1000 is no power of two; accepted: 256, 512, 1024 and so on up to 65536",
    ),
    (
        "[xdp.afxdp]\nframes_per_queue = 128",
        "f.toml: xdp.afxdp.frames_per_queue: 128 is out of range; accepted: 256 to 65536",
    ),
    (
        "[xdp.afxdp]\ncopying = \"no\"",
        "f.toml: xdp.afxdp.copying: \"no\" is not accepted; accepted: \"always\", \"never\", \"if_needed\"",
    ),
];

#[test]
fn each_bad_policy_is_refused_in_these_words() {
    let mut failures = Vec::new();
    for (text, expected) in BAD {
        let text = format!("{GOOD}{text}\n");
        let actual = match load(&text, Format::Toml, "f.toml", &Overrides::default()) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        };
        if actual != *expected {
            failures.push(format!("{text}\n  expected: {expected}\n  actual:   {actual}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn the_kernels_table_of_limits_is_the_bound() {
    let file = |count: usize| {
        let limits: String =
            (0..count).map(|n| format!("[[limits]]\nname = \"l{n}\"\nrequests_per_second = 1\n")).collect();
        load(&format!("{GOOD}{limits}"), Format::Toml, "f.toml", &Overrides::default())
    };
    assert_eq!(file(LIMITS_MAX).unwrap().limits.len(), 255);
    assert_eq!(
        file(LIMITS_MAX + 1).unwrap_err().to_string(),
        "f.toml: limits: 256 entries; accepted: 0 to 255"
    );
}

#[test]
fn more_denied_prefixes_than_the_kernel_is_told_to_hold_are_refused() {
    let deny: Vec<String> = (0..1025).map(|n| format!("\"10.0.{}.{}\"", n / 256, n % 256)).collect();
    let text = format!("{GOOD}[xdp]\ndeny_max = 1024\ndeny = [{}]", deny.join(","));
    assert_eq!(
        load(&text, Format::Toml, "f.toml", &Overrides::default()).unwrap_err().to_string(),
        "f.toml: xdp.deny: 1025 IPv4 prefixes; accepted: up to xdp.deny_max, which is 1024"
    );
}
