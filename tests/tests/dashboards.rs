//! The dashboard and the alert rules ask for metrics that are really emitted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use blitz_tests::ctl::Daemon;
use blitz_tests::policy::SERVICE_PORT;
use blitz_tests::wire::{HOST4, PEER4, Wire};
use blitz_tests::{
    Cell, Flood, Io, Mode, PATIENCE, Policy, Setup, Stage, Upstream, require, require_netns, wait_until,
};

fn deployed(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every word of `text` that looks like a metric, with the label names of the selectors behind it.
fn asked(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = BTreeMap::<String, BTreeSet<String>>::new();
    let mut rest = text;
    while let Some(at) = rest.find("blitz_") {
        let is_start = !rest[..at].ends_with(is_name);
        rest = &rest[at..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after;
        if !is_start {
            continue;
        }
        let labels = found.entry(name.to_owned()).or_default();
        if let Some((selector, _)) = after.strip_prefix('{').and_then(|selector| selector.split_once('}')) {
            let keys = selector.split(',').filter_map(|pair| pair.split(['=', '!']).next());
            labels.extend(keys.map(|key| key.trim().to_owned()));
        }
    }
    found
}

/// What a scrape offers: every name, with the labels of its samples.
fn offered(scrape: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::<String, BTreeSet<String>>::new();
    for line in scrape.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            found.entry(declared.split(' ').next().unwrap_or_default().to_owned()).or_default();
        } else if !line.starts_with('#') && !line.is_empty() {
            let end = line.find(['{', ' ']).unwrap_or(line.len());
            let labels = found.entry(line[..end].to_owned()).or_default();
            let inside = line[end..].strip_prefix('{').and_then(|rest| rest.rsplit_once('}'));
            for pair in inside.map(|(inside, _)| inside).unwrap_or_default().split("\",") {
                labels.extend(pair.split_once('=').map(|(key, _)| key.trim().to_owned()));
            }
        }
    }
    found
}

#[test]
fn every_name_that_is_asked_for_is_emitted() {
    require_netns!();
    let wire = Wire::new();
    let policy = Policy::new().limit("per_source", "packets_per_second = 10\nrequests_per_second = 10");
    let stage = Stage::attach(&wire, &policy.toml(&wire));
    let daemon = Daemon::start(&wire, &stage);
    Flood::new(PEER4, (HOST4, SERVICE_PORT).into()).packets(100).run(&wire);
    let upstream = Upstream::echoing_targets();
    let setup = Setup::new(Cell { io: Io::Epoll, mode: Mode::Mp });
    let limit = "[[limits]]\nname = \"per_source\"\nrequests_per_second = 10";
    let gateway = setup.config_for(&[upstream.address], limit).start();
    gateway.get("/hello");
    wait_until("the daemon has counted the tables", PATIENCE, || {
        daemon.metrics(&wire).contains("blitz_xdp_map_entries{")
    });
    let scrape = gateway.admin("/metrics").text() + &daemon.metrics(&wire);
    let offered = offered(&scrape);
    let mut wrong = Vec::new();
    for file in ["grafana-dashboard.json", "alerts.yml"] {
        let asked = asked(&deployed(file));
        assert!(asked.len() > 10, "{file}: only {asked:?}");
        for (name, labels) in asked {
            match offered.get(&name) {
                None => wrong.push(format!("{file}: {name} is not emitted")),
                // A family may have no sample yet; then only its name can be checked.
                Some(has) if !has.is_empty() && !labels.is_subset(has) => {
                    wrong.push(format!("{file}: {name} has the labels {has:?}, not {labels:?}"));
                }
                Some(_) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{scrape}", wrong.join("\n"));
}

#[test]
fn names_and_labels_are_found() {
    let names = asked("rate(blitz_a_total{x=\"1\",y!~\"2\"}[5m]) / my_blitz_b > blitz_c");
    let labels = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(names["blitz_a_total"], labels(&["x", "y"]));
    assert_eq!(names.keys().collect::<Vec<_>>(), ["blitz_a_total", "blitz_c"]);
    let scrape = offered("# TYPE blitz_d counter\nblitz_a_total{x=\"1,2\",y=\"2\"} 3\nblitz_c 4\n");
    assert_eq!(scrape["blitz_a_total"], labels(&["x", "y"]));
    assert!(scrape.contains_key("blitz_d") && scrape["blitz_c"].is_empty());
}

#[test]
fn the_dashboard_is_json_with_panels_that_ask_something() {
    let value: serde_json::Value = serde_json::from_str(&deployed("grafana-dashboard.json")).unwrap();
    let panels = value["panels"].as_array().unwrap();
    let asking = panels.iter().filter(|panel| panel["type"] != "row");
    for panel in asking {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty() && targets.iter().all(|target| target["expr"].is_string()), "{panel}");
        assert!(panel["description"].is_string(), "{panel}");
    }
}

#[test]
fn promtool_accepts_the_rules() {
    blitz_tests::require!("promtool");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/alerts.yml");
    let promtool = require::program("promtool").unwrap();
    let output = Command::new(promtool).args(["check", "rules"]).arg(file).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
}
