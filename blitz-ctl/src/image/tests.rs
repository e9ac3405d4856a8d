//! The image of small configurations.

use super::*;

fn config(text: &str) -> Config {
    let load = blitz_config::load(text, blitz_config::Format::Toml, "test.toml", &Default::default());
    load.expect("a good configuration")
}

const BASE: &str = r#"
[[listeners]]
name = "edge"
address = "0.0.0.0:443"
[[listeners]]
name = "inner"
address = "10.0.0.1:8443"
[upstreams.app]
endpoints = [{ address = "127.0.0.1:9001" }]
[[routes]]
path = "/*rest"
upstream = "app"
"#;

#[test]
fn every_listener_is_a_service_and_an_own_address_comes_first() {
    let text = format!(
        "{BASE}[[xdp.services]]\nname = \"own\"\naddress = \"10.0.0.1\"\nport = 443\nprotocol = \"tcp\"\n"
    );
    let image = Image::from_config(&config(&text), 1, &InForce::default()).expect("fits");
    let column = port_column(Family::V4, TCP).expect("a column");
    let edge = image.rule("service:edge").expect("a rule");
    let own = image.rule("service:own").expect("a rule");
    let listed = image.ports[&443].get(column);
    assert_ne!(listed & PORT_EXACT, 0);
    assert_eq!(image.services[usize::from(listed & !PORT_EXACT)].rule, edge);
    let key = ServiceKey { address: service_words([10, 0, 0, 1].into()), port: 443, protocol: TCP.into() };
    assert_eq!(image.services[image.service_at[&key] as usize].rule, own);
    // And both under port 0, for later fragments.
    assert_ne!(image.ports[&0].get(column), 0);
    assert!(image.service_at.contains_key(&ServiceKey { port: 0, ..key }));
}

#[test]
fn a_file_without_listeners_is_enough_for_the_stage() {
    let text = "[[xdp.services]]\nport = 443\nprotocol = \"tcp\"\n";
    let overrides = blitz_config::Overrides { is_for_stage: true, ..Default::default() };
    let load = |overrides| blitz_config::load(text, blitz_config::Format::Toml, "test.toml", overrides);
    let config = load(&overrides).expect("a good configuration");
    let image = Image::from_config(&config, 1, &InForce::default()).expect("fits");
    assert!(image.has_services() && image.rule("service:tcp-443").is_some());
    assert!(load(&Default::default()).is_err(), "the gateway itself needs a listener");
}

#[test]
fn numbers_stay_over_a_reload_and_those_of_gone_rules_are_kept() {
    let limits = |names: &[&str]| {
        let limit = |name: &&str| {
            format!("[[limits]]\nname = \"{name}\"\nlisteners = [\"{name}\"]\npackets_per_second = 100\n")
        };
        format!("{BASE}{}", names.iter().map(limit).collect::<String>())
    };
    let first =
        Image::from_config(&config(&limits(&["edge", "inner"])), 1, &InForce::default()).expect("fits");
    let in_force = InForce {
        rules: first.rules.clone(),
        services: first.services.clone(),
        limits: first.limits.clone(),
    };
    let second = Image::from_config(&config(&limits(&["inner"])), 1, &in_force).expect("fits");
    assert_eq!(second.rules, first.rules);
    let rule = first.rule("limit:inner").expect("a rule");
    let number = first.limits.iter().position(|limit| limit.rule == rule).expect("a limit");
    assert_eq!(second.limits[number].rule, rule);
    assert!(second.limits.iter().all(|limit| Some(limit.rule) != first.rule("limit:edge")));
}

#[test]
fn the_number_of_one_that_is_gone_goes_to_another_only_when_no_other_is_left() {
    // Rules 10 and 11 have the numbers 1 and 2; 11 stays.
    let numbers = |max| Numbers::new([0, 10, 11].into_iter(), [11, 12, 13].into_iter(), max, "limits");
    let mut roomy = numbers(5);
    assert_eq!([11, 12, 13].map(|rule| roomy.take(rule)), [Ok(2), Ok(3), Ok(4)]);
    let mut tight = numbers(3);
    assert_eq!([11, 12, 11].map(|rule| tight.take(rule)), [Ok(2), Ok(1), Ok(2)]);
    assert_eq!(tight.take(13), Err(Refusal::TooMany { what: "limits", asked: 3, fit: 2 }));
}

#[test]
fn an_allowed_prefix_has_the_flags_of_those_around_it() {
    let text =
        format!("{BASE}[xdp]\nallow = [\"10.0.0.0/8\"]\nmanagement = [\"10.1.0.0/16\", \"10.0.0.0/7\"]\n");
    let image = Image::from_config(&config(&text), 1, &InForce::default()).expect("fits");
    let flags = |address: [u8; 4], length| image.allow[&Prefix::new(address.into(), length)];
    assert_eq!(flags([10, 0, 0, 0], 7), ALLOW_MANAGEMENT);
    assert_eq!(flags([10, 0, 0, 0], 8), ALLOW_SERVICE | ALLOW_MANAGEMENT);
    assert_eq!(flags([10, 1, 0, 0], 16), ALLOW_SERVICE | ALLOW_MANAGEMENT);
}

#[test]
fn the_cpus_together_draw_at_most_half_a_service_bucket() {
    let text = format!(
        "{BASE}[[limits]]\nname = \"all\"\nby = \"service\"\npackets_per_second = 100\nburst_seconds = 1\n"
    );
    for cpus in [1, 2, 128] {
        let image = Image::from_config(&config(&text), cpus, &InForce::default()).expect("fits");
        let limit = image.limits[1];
        assert!(limit.quantum * u64::from(cpus) * 2 <= Dimension::Packets.of(&limit.rates).depth);
    }
}
