//! Properties that hold for every input.

use blitz_config::file::{Format, parse};
use blitz_config::fuzz::fuzz_parse;
use blitz_config::model::*;
use blitz_config::plan::{Plan, RestartReason, Step};
use proptest::collection::{hash_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Words of real files, so that random texts get past the first check.
const WORDS: &[&str] = &[
    "listeners",
    "upstreams",
    "routes",
    "backends",
    "timeouts",
    "http",
    "admin",
    "trusted_proxies",
    "name",
    "address",
    "protocols",
    "builtin_answers",
    "balance",
    "protocol",
    "endpoints",
    "weight",
    "health",
    "passive",
    "pool",
    "host",
    "port",
    "path",
    "methods",
    "upstream",
    "tls",
    "limits",
    "ejection_ms",
    "idle_connections_max",
    "keep_alive_ms",
    "xdp",
    "interfaces",
    "deny",
    "prefix",
    "scope",
    "services",
    "blocklist",
    "burst_seconds",
    "requests_per_second",
    "bytes_per_second",
    "by",
    "shadow",
];

/// Values of real files, good and bad.
const STRINGS: &[&str] = &[
    "h1",
    "h2",
    "round_robin",
    "maglev",
    "auto",
    "127.0.0.1:80",
    "[::1]:80",
    "a:443",
    "*.example.com",
    "/{a}/*b",
    "GET",
    "10.0.0.0/8",
    "::/0",
    "é",
    "\u{202e}\n",
    "",
    "*",
    "[",
    "{",
    "%",
    "/%",
    "/%é",
    "a:",
    ":1",
    "[]:1",
    "-",
    ".",
    "a..b",
    "service",
    "source_prefix_and_path",
    "native",
    "udp",
];

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0_u64..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        select(STRINGS).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            hash_map(select(WORDS).prop_map(str::to_owned), inner.clone(), 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
            hash_map(any::<String>(), inner, 0..3).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Files of the right shape with strings that may be anything.
fn shaped_file() -> impl Strategy<Value = Value> {
    let text = || prop_oneof![3 => select(STRINGS).prop_map(str::to_owned), 1 => any::<String>()];
    let endpoint =
        (text(), 1_u64..=1_000).prop_map(|(address, weight)| json!({"address": address, "weight": weight}));
    let upstream = vec(endpoint, 1..4).prop_map(|endpoints| json!({"endpoints": endpoints}));
    let route = (text(), text(), vec(text(), 0..3), text()).prop_map(|(host, path, methods, upstream)| {
        json!({"host": host, "path": path, "methods": methods, "upstream": upstream})
    });
    let listener = (text(), text(), any::<bool>()).prop_map(
        |(name, address, builtin)| json!({"name": name, "address": address, "builtin_answers": builtin}),
    );
    let limit = (text(), vec(text(), 0..2), 1_u64..=32, 1_u64..200_000, any::<bool>()).prop_map(
        |(name, listeners, bits, rate, is_bytes)| {
            let key = if is_bytes { "bytes_per_second" } else { "requests_per_second" };
            json!({"name": name, "listeners": listeners, "prefix_v4": bits, key: rate})
        },
    );
    let deny = (text(), any::<bool>()).prop_map(|(prefix, is_table)| {
        if is_table { json!({"prefix": prefix, "scope": "host"}) } else { json!(prefix) }
    });
    let service = (text(), 1_u16..5)
        .prop_map(|(address, port)| json!({"address": address, "port": port, "protocol": "tcp"}));
    let xdp = (vec(text(), 0..2), vec(text(), 0..2), vec(deny, 0..3), vec(service, 0..3)).prop_map(
        |(interfaces, allow, deny, services)| {
            json!({"interfaces": interfaces, "allow": allow, "deny": deny, "services": services})
        },
    );
    let policy = (vec(limit, 0..3), xdp);
    (vec(listener, 0..3), hash_map(text(), upstream, 0..3), vec(route, 0..4), vec(text(), 0..3), policy)
        .prop_map(|(listeners, upstreams, routes, proxies, (limits, xdp))| {
            let upstreams: serde_json::Map<String, Value> = upstreams.into_iter().collect();
            json!({
                "listeners": listeners, "upstreams": upstreams, "routes": routes, "trusted_proxies": proxies,
                "limits": limits, "xdp": xdp,
            })
        })
}

/// The configuration without repeated keys, as validation leaves it.
fn unrepeated(mut config: Config) -> Config {
    let mut seen = HashSet::new();
    config.listeners.retain(|listener| seen.insert(listener.address));
    let mut seen = HashSet::new();
    config.upstreams.retain(|upstream| seen.insert(upstream.name.clone()));
    for upstream in &mut config.upstreams {
        let mut seen = HashSet::new();
        upstream.endpoints.retain(|endpoint| seen.insert((endpoint.host.clone(), endpoint.port)));
    }
    config
}

/// Configurations with few distinct keys, so that two of them share some. Keys may be repeated.
fn config() -> impl Strategy<Value = Config> {
    let listener = (0_u16..6, "[a-c]", any::<bool>()).prop_map(|(port, name, builtin_answers)| Listener {
        name,
        address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
        protocols: vec![Protocol::H1],
        builtin_answers,
        proxy_protocol_from: None,
        tls: None,
    });
    let endpoint = ("[a-c]", 1_u16..4, 1_u32..3, any::<bool>()).prop_map(|(host, port, weight, is_tls)| {
        Endpoint { host: EndpointHost::Name(host), port, weight, is_tls }
    });
    let upstream = ("[a-e]", vec(endpoint, 0..5), 1_u32..3, 0_u32..3, any::<bool>()).prop_map(
        |(name, endpoints, consecutive_failures, idle_connections_max, is_h2)| Upstream {
            name,
            balance: Balance::RoundRobin,
            endpoints,
            passive: PassiveHealth { consecutive_failures, ..PassiveHealth::RECOMMENDED },
            idle_connections_max,
            link: Link {
                protocol: if is_h2 { UpstreamProtocol::H2 } else { UpstreamProtocol::Auto },
                names_client: !is_h2 && consecutive_failures == 1,
                tls: (idle_connections_max == 2).then(UpstreamTls::default),
            },
        },
    );
    let route = ("[a-c]", 0_usize..3).prop_map(|(literal, upstream)| Route {
        host: HostPattern::Any,
        path: PathPattern { text: format!("/{literal}"), segments: vec![PathSegment::Literal(literal)] },
        methods: vec![],
        upstream,
    });
    let limit = ("[a-c]", vec(0_usize..3, 0..2), 1_u64..3).prop_map(|(name, listeners, rate)| Limit {
        name,
        by: LimitBy::SourcePrefix,
        listeners,
        prefix_v4: 32,
        prefix_v6: 64,
        packets_per_second: None,
        bytes_per_second: None,
        syns_per_second: None,
        requests_per_second: Some(rate),
        burst: Duration::from_secs(1),
        shadow: false,
    });
    let policy = (vec(limit, 0..3), any::<bool>());
    let lists = (vec(listener, 0..5), vec(upstream, 0..6), vec(route, 0..3));
    (lists, 1_u64..3, 1_usize..3, 0_u16..3, 0_u8..3, policy).prop_map(
        |((listeners, upstreams, routes), seconds, fields, port, proxies, (limits, shadow))| Config {
            listeners,
            upstreams,
            routes,
            trusted_proxies: (0..proxies)
                .map(|n| Cidr { address: Ipv4Addr::new(n, 0, 0, 0).into(), prefix_len: 8 })
                .collect(),
            timeouts: Timeouts { keep_alive: Duration::from_secs(seconds), ..Timeouts::RECOMMENDED },
            http: HttpLimits { request_fields_max: fields, ..HttpLimits::RECOMMENDED },
            http2: Http2Limits::RECOMMENDED,
            http3: Http3Limits::RECOMMENDED,
            admin: Admin { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port) },
            limits,
            xdp: Xdp { shadow, ..Xdp::default() },
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        fuzz_parse(&bytes);
    }

    #[test]
    fn arbitrary_text_never_panics(text in "(?s).{0,200}", toml in any::<bool>()) {
        let _ = parse(&text, if toml { Format::Toml } else { Format::Json }, "f");
    }

    #[test]
    fn toml_of_real_words_never_panics(
        lines in vec((0_usize..5, select(WORDS), select(WORDS), select(STRINGS), any::<i32>()), 0..30),
        flags in any::<u8>(),
    ) {
        let mut bytes = vec![flags | 1];
        for (kind, a, b, text, number) in lines {
            let line = match kind {
                0 => format!("[[{a}]]\n"),
                1 => format!("[{a}.{b}]\n"),
                2 => format!("{a} = {text:?}\n"),
                3 => format!("{a}.{b} = {number}\n"),
                _ => format!("{a} = [{{ {b} = {text:?} }}]\n"),
            };
            bytes.extend_from_slice(line.as_bytes());
        }
        fuzz_parse(&bytes);
    }

    #[test]
    fn arbitrary_json_never_panics_and_the_schema_says_all(value in json_value(), flags in any::<u8>()) {
        let text = value.to_string();
        let mut bytes = vec![flags & !1];
        bytes.extend_from_slice(text.as_bytes());
        fuzz_parse(&bytes);
        // What the schema accepts, serde accepts: its own messages never surface.
        if let Err(error) = parse(&text, Format::Json, "f") {
            for issue in error.issues() {
                let ours = ["accepted", "unknown key", "required", "known, but", "is there twice"];
                prop_assert!(ours.iter().any(|words| issue.message.contains(words)), "{}", issue);
            }
        }
    }

    #[test]
    fn arbitrary_strings_in_a_good_shape_never_panic(value in shaped_file(), flags in any::<u8>()) {
        let text = value.to_string();
        prop_assert!(parse(&text, Format::Json, "f").is_ok(), "the shape is good");
        let mut bytes = vec![flags & !1];
        bytes.extend_from_slice(text.as_bytes());
        fuzz_parse(&bytes);
    }

    #[test]
    fn cidr_contains_what_shares_its_first_bits(net in any::<u32>(), flip in any::<u32>(), bits in 0_u8..=32) {
        let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
        let cidr = Cidr::new(Ipv4Addr::from_bits(net & mask).into(), bits).unwrap();
        prop_assert!(cidr.contains(Ipv4Addr::from_bits(net).into()));
        prop_assert!(cidr.contains(Ipv4Addr::from_bits(net).to_ipv6_mapped().into()));
        prop_assert!(cidr.contains(Ipv4Addr::from_bits(net ^ (flip & !mask)).into()));
        prop_assert_eq!(cidr.contains(Ipv4Addr::from_bits(net ^ flip).into()), flip & mask == 0);
        prop_assert_eq!(cidr.to_string().parse(), Ok(cidr));
        prop_assert!(!cidr.contains(Ipv6Addr::LOCALHOST.into()));
    }

    #[test]
    fn cidr_of_version_6_too(net in any::<u128>(), flip in any::<u128>(), bits in 0_u8..=128) {
        // 2000::/3, clear of the mapped range.
        let net = (net >> 3) | (1 << 125);
        let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
        let cidr = Cidr::new(Ipv6Addr::from_bits(net & mask).into(), bits).unwrap();
        prop_assert!(cidr.contains(Ipv6Addr::from_bits(net).into()));
        let other = net ^ (flip >> 3);
        prop_assert_eq!(cidr.contains(Ipv6Addr::from_bits(other).into()), (net ^ other) & mask == 0);
        prop_assert_eq!(cidr.to_string().parse(), Ok(cidr));
    }

    #[test]
    fn a_malformed_cidr_does_not_panic(net in any::<u32>(), bits in any::<u8>(), ip in any::<u32>()) {
        let prefix = Cidr { address: Ipv4Addr::from_bits(net).into(), prefix_len: bits };
        let _ = prefix.contains(Ipv4Addr::from_bits(ip).into());
        let prefix = Cidr { address: Ipv6Addr::LOCALHOST.into(), prefix_len: bits };
        let _ = prefix.contains(Ipv6Addr::from_bits(ip.into()).into());
    }

    #[test]
    fn applying_the_plan_from_a_to_b_to_a_gives_b(a in config(), b in config()) {
        // It holds even where keys are repeated, which no valid configuration has.
        prop_assert_eq!(Plan::between(&a, &b).apply(&a), Ok(b.clone()));
        let (a, b) = (unrepeated(a), unrepeated(b));
        let plan = Plan::between(&a, &b);
        prop_assert_eq!(plan.apply(&a), Ok(b.clone()));
        prop_assert_eq!(plan.is_empty(), a == b);
        prop_assert!(Plan::between(&a, &a).is_empty());
        let reasons = plan.requires_restart(&a);
        prop_assert_eq!(reasons.is_empty(), a.admin == b.admin);

        // Each old listener and upstream is carried to one new place at most, or removed.
        let mut old: Vec<usize> = plan.listeners.carried().map(|(from, _)| from).collect();
        old.extend(&plan.listeners.removed);
        old.sort_unstable();
        prop_assert_eq!(old, (0..a.listeners.len()).collect::<Vec<_>>());
        for (from, to) in plan.listeners.carried() {
            prop_assert_eq!(a.listeners[from].address, b.listeners[to].address);
        }
        for (from, to) in plan.upstreams.carried() {
            prop_assert_eq!(&a.upstreams[from].name, &b.upstreams[to].name);
        }
        for (index, listener) in plan.listeners.added() {
            prop_assert_eq!(&b.listeners[index], listener);
        }
    }

    #[test]
    fn a_plan_applied_elsewhere_never_panics(a in config(), b in config(), c in config()) {
        let _ = Plan::between(&a, &b).apply(&c);
    }
}

#[test]
fn a_plan_tells_what_stays() {
    let backends = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let old = blitz_config::from_command_line(&backends(&["a:1", "b:1"]), 80, None).unwrap();
    let mut new =
        blitz_config::from_command_line(&backends(&["b:1", "c:1"]), 80, Some("127.0.0.1:9999")).unwrap();
    new.listeners[0].builtin_answers = false;
    new.http3.cid_epoch_seconds = 7200;
    let plan = Plan::between(&old, &new);
    assert!(matches!(plan.listeners.steps[..], [Step::Change { from: 0, .. }]));
    assert!(plan.listeners.removed.is_empty());
    let [Step::Change { from: 0, change }] = &plan.upstreams.steps[..] else {
        panic!("{:?}", plan.upstreams)
    };
    let added = new.upstreams[0].endpoints[1].clone();
    assert_eq!(change.endpoints.steps, [Step::Keep { from: 1 }, Step::Add(added)]);
    assert_eq!(change.endpoints.removed, [0]);
    assert_eq!((plan.routes.is_none(), plan.timeouts, plan.http), (true, None, None));
    let reasons = plan.requires_restart(&old);
    let (from, to) = (old.admin.address, new.admin.address);
    assert_eq!(
        reasons,
        [RestartReason::AdminAddress { from, to }, RestartReason::CidEpoch { from: 3600, to: 7200 }]
    );
    assert_eq!(
        reasons[0].to_string(),
        "admin.address: 127.0.0.1:9900 to 127.0.0.1:9999 needs a restart; 127.0.0.1:9900 stays in use until then"
    );
}
