//! What an operator meets: every refusal is one sentence with cause and remedy, and what was in force
//! stays in force.
//!
//! Needs root for namespaces and XDP. Without it the tests say so and pass; with `BLITZ_REQUIRE_ALL=1`
//! they fail.

mod support;

use std::net::IpAddr;

use blitz_ctl::maps::Maps;
use blitz_ctl::sys::clock;
use blitz_ctl::sys::map::Table;
use blitz_ctl::{Kind, Pins, Stage};
use blitz_ebpf_common::layout::{Block, BlockKey, Buckets, LAYOUT_VERSION, Layout, ServiceKey, maps};
use blitz_ebpf_common::packet::{Family, words4};
use support::{FOUR, INTERFACE, Place, config};

#[test]
fn a_wrong_interface_is_named() {
    let Some(place) = Place::new() else { return };
    place.ctl(&["attach", "nosuch0"]).refused(4, &["nosuch0", "no such interface", "ip -brief link"]);
    place.ctl(&["attach", "much-too-long-a-name"]).refused(4, &["no name of an interface", "ip -brief link"]);
    place.ctl(&["detach", INTERFACE]).refused(4, &["ctl0 has no kernel stage", "blitz-ctl status"]);
    place.ctl(&["counters"]).refused(4, &["no interface has a kernel stage", "blitz-ctl attach"]);
    assert!(!place.base().exists(), "nothing was made");
}

#[test]
fn what_is_no_name_of_an_interface_removes_nothing() {
    let Some(place) = Place::new() else { return };
    place.attach(None);
    let precious = tempfile::tempdir().expect("a directory");
    std::fs::write(precious.path().join("file"), "precious").expect("a file");
    for name in [&*precious.path().display().to_string(), "", ".", "..", "ctl0/maps"] {
        place.ctl(&["detach", name]).refused(4, &["no name of an interface", "ip -brief link"]);
        place.ctl(&["status", "-i", name]).refused(4, &["no name of an interface"]);
    }
    assert_eq!(std::fs::read_to_string(precious.path().join("file")).expect("still there"), "precious");
    assert!(place.program_on(INTERFACE).is_some());
}

#[test]
fn what_a_killed_attach_left_running_is_detached() {
    let Some(place) = Place::new() else { return };
    place.attach(None);
    // As it is between the link and the last step.
    std::fs::rename(place.base().join(INTERFACE), place.base().join("%new-ctl0")).expect("renamed");
    assert!(place.program_on(INTERFACE).is_some());
    let outcome = place.ctl(&["detach", INTERFACE]);
    assert_eq!((outcome.code, place.program_on(INTERFACE)), (0, None), "{outcome:?}");
    assert!(outcome.out.contains("traffic flows untouched"), "{outcome:?}");
    assert!(!place.base().join("%new-ctl0").exists());
    place.ctl(&["detach", INTERFACE]).refused(4, &["has no kernel stage"]);
}

#[test]
fn a_directory_of_another_user_is_not_used_and_an_open_one_is_closed() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(place) = Place::new() else { return };
    let base = place.base();
    std::fs::create_dir(&base).expect("a directory");
    std::os::unix::fs::chown(&base, Some(65_534), Some(65_534)).expect("given away");
    place.ctl(&["attach", INTERFACE]).refused(5, &["was made by user 65534", "rm -r"]);
    assert_eq!(place.program_on(INTERFACE), None);
    std::os::unix::fs::chown(&base, Some(0), Some(0)).expect("taken back");
    place.attach(None);
    let mode = std::fs::metadata(&base).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "whoever can open it can hold the lock");
}

#[test]
fn a_process_without_rights_is_told_which_it_lacks() {
    let Some(place) = Place::new() else { return };
    place.attach(Some(&config("deny = [\"192.0.2.0/24\"]")));
    let before = place.program_on(INTERFACE);
    place
        .ctl_with("-all", &["attach", INTERFACE])
        .refused(3, &["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "run it as root"]);
    place.ctl_with("-all,+net_admin", &["attach", INTERFACE]).refused(3, &["lacks CAP_BPF, CAP_PERFMON;"]);
    assert_eq!(place.program_on(INTERFACE), before);
    assert_eq!(place.stage().deny_list().expect("a list").len(), 1);
}

#[test]
fn four_capabilities_are_enough_for_everything() {
    let Some(place) = Place::new() else { return };
    let file = place.file("edge.toml", &config("deny = [\"192.0.2.0/24\"]"));
    let verbs: [&[&str]; 14] = [
        &["attach", INTERFACE, "--config", &file],
        &["attach", INTERFACE, "--config", &file],
        &["status"],
        &["counters", "--json"],
        &["deny", "add", "198.51.100.7", "--ttl", "10m"],
        &["deny", "add", "198.51.100.0/24", "--reason", "scans", "--host"],
        &["deny", "list"],
        &["deny", "del", "198.51.100.7"],
        &["allow", "add", "203.0.113.0/24"],
        &["allow", "list"],
        &["limit", "set", "all", "--by", "service", "--bytes-per-second", "1000000"],
        &["limit", "list"],
        &["route", "list"],
        &["detach", INTERFACE],
    ];
    for verb in verbs {
        let outcome = place.ctl_with(FOUR, verb);
        assert_eq!(outcome.code, 0, "{verb:?}: {outcome:?}");
    }
}

#[test]
fn a_program_of_another_owner_is_left_alone() {
    let Some(place) = Place::new() else { return };
    let other = place.ctl_at(&place.other_base(), &["attach", INTERFACE]);
    assert_eq!(other.code, 0, "{other:?}");
    let id = place.program_on(INTERFACE).expect("a program");
    let sentence = format!("XDP program {id} (blitz_xdp)");
    place
        .ctl(&["attach", INTERFACE])
        .refused(5, &["ctl0", &sentence, "not ours", "ip link set ctl0 xdp off"]);
    assert_eq!(place.program_on(INTERFACE), Some(id));
    assert!(!place.base().join(INTERFACE).exists(), "nothing was left behind");
}

#[test]
fn maps_of_another_owner_are_left_alone() {
    let Some(place) = Place::new() else { return };
    // Somebody else's map under the name of the first one that is read.
    let directory = place.base().join("ctl0/maps");
    std::fs::create_dir_all(&directory).expect("a directory");
    let stranger = aya::maps::Array::<_, u64>::create(1, 0).expect("a map");
    stranger.pin(directory.join(maps::LAYOUT)).expect("a pin");
    place.ctl(&["attach", INTERFACE]).refused(5, &["not a stage of this blitz-ctl", "LAYOUT", "rm -r"]);
    assert_eq!(place.program_on(INTERFACE), None);
    assert!(directory.join(maps::LAYOUT).exists());
    std::fs::remove_dir_all(place.base().join(INTERFACE)).expect("removed");

    // Somebody else's map in place of one of ours, of another kind, and then of another size.
    place.attach(None);
    let program = place.program_on(INTERFACE);
    let pin = directory.join(maps::BLOCKED);
    std::fs::remove_file(&pin).expect("removed");
    let stranger = aya::maps::Array::<_, Block>::create(1, 0).expect("a map");
    stranger.pin(&pin).expect("a pin");
    place.ctl(&["attach", INTERFACE]).refused(5, &["BLOCKED", "of kind Array instead of Hash", "rm -r"]);
    std::fs::remove_file(&pin).expect("removed");
    let stranger = aya::maps::HashMap::<_, BlockKey, Block>::create(16, 0).expect("a map");
    stranger.pin(&pin).expect("a pin");
    place.ctl(&["attach", INTERFACE]).refused(5, &["BLOCKED", "16 entries instead of 65536", "rm -r"]);
    std::fs::remove_file(&pin).expect("removed");
    place.ctl(&["attach", INTERFACE]).refused(5, &["BLOCKED is missing", "rm -r"]);
    assert_eq!(place.program_on(INTERFACE), program);
}

#[test]
fn a_full_deny_list_stays_as_it_is() {
    let Some(place) = Place::new() else { return };
    let denied = |count: usize| {
        let prefixes: Vec<String> =
            (0..count).map(|n| format!("\"10.{}.{}.0/24\"", n / 256, n % 256)).collect();
        config(&format!("deny_max = 1024\ndeny = [{}]", prefixes.join(", ")))
    };
    place.attach(Some(&denied(1024)));
    place
        .ctl(&["deny", "add", "198.51.100.0/24"])
        .refused(6, &["ctl0", "1025 denied IPv4 prefixes", "holds 1024", "raise xdp.deny_max"]);
    assert_eq!(place.stage().deny_list().expect("a list").len(), 1024);
    // The other family has room, and so has a change of an entry that is there.
    assert_eq!(place.ctl(&["deny", "add", "2001:db8::/32"]).code, 0);
    assert_eq!(place.ctl(&["deny", "add", "10.0.0.0/24", "--reason", "again"]).code, 0);
    // What is over makes room.
    assert_eq!(place.ctl(&["deny", "del", "10.0.1.0/24"]).code, 0);
    assert_eq!(place.ctl(&["deny", "add", "198.51.100.0/24", "--ttl", "1s"]).code, 0);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(place.ctl(&["deny", "add", "203.0.113.0/24"]).code, 0);
    // A list that with the operator's entries is too long changes nothing.
    let longer = place.file("longer.toml", &denied(1024));
    place.ctl(&["attach", INTERFACE, "--config", &longer]).refused(6, &["denied IPv4 prefixes", "deny_max"]);
    let stage = place.stage();
    let list = stage.deny_list().expect("a list");
    assert!(list.iter().any(|denied| denied.prefix.to_string() == "203.0.113.0/24"), "still there");
    assert_eq!(list.len(), 1025);
}

#[test]
fn a_full_blocklist_refuses_and_what_is_over_makes_room() {
    let Some(place) = Place::new() else { return };
    place.attach(None);
    let stage = place.stage();
    let pins = Pins::at(place.base());
    let room = stage.maps().blocked.entries_max();
    let fill = |expires: u64| -> Vec<(BlockKey, Block)> {
        let key = |n: u32| BlockKey::new(Family::V4, &words4(0x0a00_0000 + n));
        (0..room).map(|n| (key(n), Block { expires, since: 1, rule: 1, flags: 0 })).collect()
    };
    stage.maps().blocked.put_all(&fill(0)).expect("room");
    let lock = pins.lock().expect("free");
    let source: IpAddr = [192, 0, 2, 1].into();
    let error = stage.block(&lock, source, 0, "block:operator").expect_err("full");
    assert_eq!(error.kind(), Kind::Full);
    assert!(error.to_string().contains("65536 entries; deny a prefix instead"), "{error}");
    assert_eq!(stage.blocked().expect("a list").len(), room as usize);
    stage.maps().blocked.put_all(&fill(2)).expect("room");
    stage.block(&lock, source, 0, "block:operator").expect("what is over makes room");
    let blocked = stage.blocked().expect("a list");
    assert_eq!(blocked.len(), 1);
    assert_eq!(
        (blocked[0].source.to_string().as_str(), blocked[0].rule.as_str()),
        ("192.0.2.1/32", "block:operator")
    );
}

#[test]
fn a_table_that_is_full_half_way_leaves_everything_as_it_was() {
    let Some(place) = Place::new() else { return };
    place.attach(Some(&config("deny = [\"192.0.2.0/24\"]\nallow = [\"10.0.0.0/8\"]")));
    let stage = place.stage();
    let everything = |stage: &Stage| {
        let mut routes = stage.routes().expect("routes");
        routes.sort_by(|a, b| a.service.cmp(&b.service));
        (
            stage.settings().expect("settings"),
            routes,
            stage.limits().expect("limits"),
            stage.allow_list().expect("allowed"),
            stage.deny_list().expect("denied"),
            stage.in_force().expect("rules").rules,
        )
    };
    let before = everything(&stage);
    let parsed = blitz_ctl::config::load(
        place.file("other.toml", &config("shadow = true\ndeny = [\"203.0.113.0/24\"]")).as_ref(),
    );
    let parsed = parsed.expect("a configuration");
    let mut image = blitz_ctl::config::compile(&parsed, &stage.in_force().expect("rules")).expect("an image");
    // More services with an own address than their table holds.
    for n in 0..=stage.maps().service_at.entries_max() {
        image.service_at.insert(ServiceKey { address: [0, 0, 0xffff, n], port: 7000, protocol: 17 }, 1);
    }
    let lock = Pins::at(place.base()).lock().expect("free");
    let error = stage.apply(&lock, &image).expect_err("too many");
    assert_eq!(error.kind(), Kind::Full, "{error}");
    assert!(error.to_string().contains("SERVICE_AT is full"), "{error}");
    assert_eq!(everything(&stage), before);
}

#[test]
fn a_missing_bpf_file_system_is_mounted_by_root_and_named_to_others() {
    let Some(place) = Place::new() else { return };
    let program = env!("CARGO_BIN_EXE_blitz-ctl");
    let point = tempfile::tempdir().expect("a directory");
    let base = point.path().join("blitz").display().to_string();
    // Inside `ip netns exec` mounts are private, so what is mounted here is gone with the program.
    let outcome = place.inside(&["unshare", "-m", program, "--pins", &base, "attach", INTERFACE]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.out.contains("mounted a BPF file system at"), "{outcome:?}");
    assert!(outcome.out.contains("in this mount namespace only"), "{outcome:?}");
    let four = format!("--bounding-set={FOUR}");
    let outcome = place.inside(&["setpriv", &four, program, "--pins", &base, "attach", INTERFACE]);
    outcome.refused(3, &["no BPF file system is mounted at", "mount -t bpf bpf", "sys-fs-bpf.mount"]);
    let nowhere = point.path().join("nowhere/blitz").display().to_string();
    let outcome = place.inside(&[program, "--pins", &nowhere, "attach", INTERFACE]);
    outcome.refused(1, &["nowhere does not exist", "mkdir -p", "mount -t bpf bpf"]);
}

#[test]
fn a_bad_rule_or_file_changes_nothing() {
    let Some(place) = Place::new() else { return };
    place.attach(Some(&config("deny = [\"192.0.2.0/24\"]")));
    let before = (place.program_on(INTERFACE), place.json(&["deny", "list"])["interfaces"].clone());
    let attach = |text: &str| {
        let file = place.file("bad.toml", text);
        place.ctl(&["attach", INTERFACE, "--config", &file])
    };
    attach(&config("deny = [\"192.0.2.300/24\"]"))
        .refused(2, &["bad.toml", "xdp.deny", "192.0.2.300/24", "correct"]);
    attach(&config("denied = []")).refused(2, &["bad.toml", "xdp.denied", "unknown key", "correct"]);
    attach("[[listeners").refused(2, &["bad.toml", "correct"]);
    place
        .ctl(&["attach", INTERFACE, "--config", "/nonexistent.toml"])
        .refused(2, &["/nonexistent.toml", "name a file"]);
    for words in [
        ["deny", "add", "192.0.2.1/24"].as_slice(),
        &["deny", "add", "192.0.2.0/24", "--ttl", "soon"],
        &["allow", "add", "everyone"],
        &["limit", "set", "x", "--by", "source", "--packets-per-second", "0"],
    ] {
        assert_eq!(place.ctl(words).code, 2, "{words:?}");
    }
    place.ctl(&["limit", "set", "x", "--by", "source"]).refused(2, &["no rate", "--packets-per-second"]);
    place
        .ctl(&["limit", "set", "x", "--by", "source", "--packets-per-second", "5"])
        .refused(2, &["service edge has the limit per_source already", "limit del"]);
    place
        .ctl(&["limit", "set", "x", "--by", "service", "--syns-per-second", "5", "--service", "nobody"])
        .refused(4, &["no service called nobody", "route list"]);
    place.ctl(&["deny", "del", "198.51.100.0/24"]).refused(4, &["neither denied nor blocked", "deny list"]);
    assert_eq!((place.program_on(INTERFACE), place.json(&["deny", "list"])["interfaces"].clone()), before);
    assert_eq!(place.stage().limits().expect("limits").len(), 1);
}

#[test]
fn another_layout_or_other_sizes_are_refused() {
    let Some(place) = Place::new() else { return };
    place.attach(Some(&config("deny_max = 1024")));
    let program = place.program_on(INTERFACE);
    let other = place.file("other.toml", &config("deny_max = 2048"));
    place
        .ctl(&["attach", INTERFACE, "--config", &other])
        .refused(5, &["deny_max 1024", "asks for 262144 and 2048", "detach and attach"]);
    let pins = Pins::at(place.base()).of(INTERFACE);
    let table = Table::<u32, Layout>::open(&pins.map(maps::LAYOUT)).expect("a map");
    let layout = Maps::layout(&pins).expect("ours");
    table.put(&0, &Layout { version: LAYOUT_VERSION + 1, ..layout }).expect("written");
    for words in [["attach", INTERFACE].as_slice(), &["status"], &["deny", "add", "192.0.2.1"], &["counters"]]
    {
        place.ctl(words).refused(5, &["have layout", "speaks layout", "detach and attach"]);
    }
    assert_eq!(place.program_on(INTERFACE), program);
    // The way out that the sentence names.
    assert_eq!(place.ctl(&["detach", INTERFACE]).code, 0);
    assert_eq!(place.program_on(INTERFACE), None);
    assert_eq!(place.ctl(&["attach", INTERFACE, "--config", &other]).code, 0);
}

#[test]
fn an_attach_that_the_driver_refuses_leaves_nothing_behind() {
    let Some(place) = Place::new() else { return };
    place
        .ctl(&["attach", "lo", "--mode", "native"])
        .refused(4, &["lo", "the kernel refused the attach", "--mode auto or --mode generic"]);
    assert_eq!(place.program_on("lo"), None);
    let left: Vec<_> = std::fs::read_dir(place.base()).expect("the base").collect();
    assert!(left.is_empty(), "{left:?}");
    // What `auto` does instead, and why.
    let report = place.json(&["attach", "lo"]);
    assert_eq!(report["mode"], "generic");
    assert!(
        report["mode_reason"].as_str().is_some_and(|why| why.contains("driver does not take")),
        "{report}"
    );
}

#[test]
fn a_second_attach_replaces_the_program_and_keeps_rules_and_counters() {
    let Some(place) = Place::new() else { return };
    place.attach(Some(&config("")));
    place.ip("address add 192.0.2.1/24 dev ctl0");
    let first = place.program_on(INTERFACE).expect("a program");
    assert_eq!(place.ctl(&["deny", "add", "198.51.100.0/24", "--reason", "stays"]).code, 0);
    let report = place.json(&["attach", INTERFACE]);
    assert_eq!((report["kind"].as_str(), report["services"].as_u64()), (Some("replaced"), Some(2)));
    let second = place.program_on(INTERFACE).expect("a program");
    assert_ne!(first, second);
    assert_eq!(report["program_id"].as_u64(), Some(second));
    let status = place.json(&["status"]);
    assert_eq!(status["interfaces"][0]["state"], "attached");
    assert_eq!(status["interfaces"][0]["program_id"].as_u64(), Some(second));
    let list = place.stage().deny_list().expect("a list");
    assert_eq!(list[0].reason.as_deref(), Some("stays"));
    place
        .ctl(&["attach", INTERFACE, "--mode", "generic"])
        .refused(5, &["native mode", "blitz-ctl detach ctl0"]);
}

#[test]
fn an_interface_that_comes_back_gets_its_rules_back() {
    let Some(place) = Place::new() else { return };
    place.attach(Some(&config("")));
    assert_eq!(place.ctl(&["deny", "add", "198.51.100.0/24"]).code, 0);
    place.ip("link del ctl0");
    assert_eq!(place.json(&["status"])["interfaces"][0]["state"], "detached");
    place.make_interfaces();
    let report = place.json(&["attach", INTERFACE]);
    assert_eq!(report["kind"], "renewed");
    assert_eq!(place.program_on(INTERFACE), report["program_id"].as_u64());
    assert_eq!(place.stage().deny_list().expect("a list").len(), 1);
}

#[test]
fn packets_meet_the_lists_that_were_typed() {
    let Some(place) = Place::new() else { return };
    place.attach(Some(&config("")));
    // Both ends are in one namespace; frames are sent into the other end as they are.
    let sent = |place: &Place, count: usize| {
        let sender = "import socket,sys\n\
            s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW);s.bind(('ctl1',0))\n\
            ip=bytes([0x45,0,0,32,0,0,0,0,64,17,0,0,198,51,100,7,192,0,2,1])\n\
            udp=bytes([0x30,0x39,0x1b,0x58,0,12,0,0])+b'ctl!'\n\
            for n in range(int(sys.argv[1])): s.send(b'\\x02'*12+b'\\x08\\x00'+ip+udp+b'\\0'*14)\n";
        let outcome = place.inside(&["python3", "-c", sender, &count.to_string()]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
    };
    if blitz_tests::require::program("python3").is_none() {
        return blitz_tests::require::skip("python3 is not installed");
    }
    let rule = |name: &str| {
        let counters = place.stage().counters().expect("counters");
        counters.rule(name).map_or(0, |rule| rule.decided.packets)
    };
    // The sender returns before the other end's softirq has run.
    let reaches = |name: &str, wanted: u64| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while rule(name) != wanted {
            assert!(std::time::Instant::now() < deadline, "{name}: {} instead of {wanted}", rule(name));
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    };
    sent(&place, 10);
    reaches("service:echo", 10);
    assert_eq!(place.ctl(&["deny", "add", "198.51.100.7", "--ttl", "10m"]).code, 0);
    sent(&place, 20);
    reaches("block:operator", 20);
    assert_eq!(place.ctl(&["deny", "del", "198.51.100.7"]).code, 0);
    assert_eq!(place.ctl(&["deny", "add", "198.51.100.0/24"]).code, 0);
    sent(&place, 30);
    reaches("deny:operator", 30);
    assert_eq!(place.ctl(&["allow", "add", "198.51.100.0/25"]).code, 0);
    sent(&place, 40);
    reaches("service:echo", 50);
    assert_eq!(place.ctl(&["allow", "del", "198.51.100.0/25"]).code, 0);
    assert_eq!(place.ctl(&["deny", "del", "198.51.100.0/24"]).code, 0);
    let limit = ["limit", "set", "per_source", "--by", "source", "--packets-per-second", "1"];
    assert_eq!(place.ctl(&limit).code, 0);
    sent(&place, 60);
    let over = || rule("limit:per_source");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while over() + rule("service:echo") != 110 {
        assert!(std::time::Instant::now() < deadline, "{} over, {} passed", over(), rule("service:echo"));
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    // The bucket holds one packet, and a second or two may pass.
    assert!(over() >= 55, "{} of 60 were over the limit", over());
    let total = place.stage().counters().expect("counters").total().packets;
    assert!(total >= 160, "{total}");
    assert_eq!(place.ctl(&["detach", INTERFACE]).code, 0);
}

#[test]
fn a_host_wide_entry_does_not_end_the_session_it_is_typed_in() {
    let Some(place) = Place::new() else { return };
    place.attach(None);
    let base = place.base().display().to_string();
    let deny = |prefix: &str| {
        let session = "SSH_CONNECTION=198.51.100.9 40000 192.0.2.1 22";
        let program = env!("CARGO_BIN_EXE_blitz-ctl");
        place.inside(&["env", session, program, "--pins", &base, "deny", "add", prefix, "--host"])
    };
    let sentence = ["198.51.100.0/24 holds 198.51.100.9", "allow add 198.51.100.9 --management"];
    deny("198.51.100.0/24").refused(2, &sentence);
    // As under sudo, which takes the variable away from what it runs.
    let program = env!("CARGO_BIN_EXE_blitz-ctl");
    let script = format!(
        "env -u SSH_CONNECTION {program} --pins {base} deny add 198.51.100.0/24 --host; code=$?; exit $code"
    );
    place
        .inside(&["env", "SSH_CONNECTION=198.51.100.9 40000 192.0.2.1 22", "sh", "-c", &script])
        .refused(2, &sentence);
    assert!(place.stage().deny_list().expect("a list").is_empty());
    assert_eq!(deny("203.0.113.0/24").code, 0);
    assert_eq!(place.ctl(&["allow", "add", "198.51.100.9", "--management"]).code, 0);
    assert_eq!(deny("198.51.100.0/24").code, 0);
    assert_eq!(place.stage().deny_list().expect("a list").len(), 2);
}

#[test]
fn programs_get_errors_as_json() {
    let Some(place) = Place::new() else { return };
    let outcome = place.ctl(&["--json", "deny", "list"]);
    assert_eq!((outcome.code, outcome.out.as_str()), (4, ""));
    let error: serde_json::Value = serde_json::from_str(&outcome.err).expect("JSON");
    assert_eq!(error["error"]["kind"], "not_attached");
    assert!(error["error"]["remedy"].as_str().is_some_and(|remedy| remedy.contains("attach")), "{error}");
}

#[test]
fn a_list_that_grew_and_shrank_still_finds_its_prefixes() {
    let Some(place) = Place::new() else { return };
    place.attach(None);
    let stage = place.stage();
    let lock = Pins::at(place.base()).lock().expect("free");
    let terms = blitz_ctl::deny::Terms::default();
    let prefix =
        |length: u8| blitz_ctl::prefixes::Prefix::new("2001:db8::".parse().expect("an address"), length);
    // 97 lengths, one after the other, in one network: more than the index and the list of lengths hold, since a
    // removal leaves its length there. The list is then written anew.
    for length in 32..=128 {
        assert!(stage.deny(&lock, prefix(length), &terms).expect("room"), "{length} is new");
        assert!(stage.undeny(&lock, prefix(length)).expect("written").is_some());
    }
    assert!(stage.deny_list().expect("a list").is_empty());
    assert_eq!(stage.settings().expect("settings").flags, 0, "the program stops looking");
    // As many as there is room for, and then one too many, which changes nothing.
    let mut denied = 0;
    let refused = (32..=128).find(|length| match stage.deny(&lock, prefix(*length), &terms) {
        Ok(is_new) => {
            denied += usize::from(is_new);
            false
        }
        Err(error) => {
            assert!(error.to_string().contains("too many different lengths; join"), "{error}");
            true
        }
    });
    assert_eq!(refused, Some(80), "8 in the index and 40 everywhere");
    assert_eq!((stage.deny_list().expect("a list").len(), denied), (48, 48));
}

#[test]
fn an_attach_that_is_killed_leaves_the_old_stage_or_none() {
    let Some(place) = Place::new() else { return };
    let file = place.file("edge.toml", &config("deny = [\"192.0.2.0/24\"]"));
    for round in 0..24 {
        // One that was killed between its link and its name is no stage yet; the next attach clears it away.
        let was_there = place.base().join("ctl0/link").exists();
        let mut child = place.start(&["attach", INTERFACE, "--config", &file]);
        std::thread::sleep(std::time::Duration::from_millis(10 * (round % 12)));
        // It may have ended by itself.
        let _gone = child.kill();
        child.wait().expect("it ends");
        let after = place.program_on(INTERFACE);
        assert!(!was_there || after.is_some(), "round {round}: a stage that was there is gone");
        if round == 11 {
            // The second half starts from a stage that is there.
            assert_eq!(place.ctl(&["attach", INTERFACE, "--config", &file]).code, 0);
        }
    }
    let report = place.json(&["attach", INTERFACE, "--config", &file]);
    assert_eq!(place.program_on(INTERFACE), report["program_id"].as_u64());
    let mut left: Vec<_> =
        std::fs::read_dir(place.base()).expect("the base").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.pop().as_deref(), Some(INTERFACE.as_ref()));
    assert!(left.is_empty(), "{left:?}");
    assert!(!place.base().join("ctl0/program_next").exists());
    assert_eq!(place.stage().deny_list().expect("a list").len(), 1);
}

#[test]
fn writers_take_turns() {
    let Some(place) = Place::new() else { return };
    place.attach(Some(&config("")));
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let place = &place;
            scope.spawn(move || {
                for n in 0..8 {
                    let prefix = format!("10.{writer}.{n}.0/24");
                    let outcome = place.ctl(&["deny", "add", &prefix]);
                    assert_eq!(outcome.code, 0, "{outcome:?}");
                }
            });
        }
    });
    assert_eq!(place.stage().deny_list().expect("a list").len(), 32);
}

#[test]
fn a_block_is_extended_and_ends() {
    let Some(place) = Place::new() else { return };
    place.attach(None);
    let stage = place.stage();
    let lock = Pins::at(place.base()).lock().expect("free");
    let source: IpAddr = "2001:db8:1:2:3::4".parse().expect("an address");
    let now = clock::monotonic_nanoseconds();
    let hour = 3_600_000_000_000;
    stage.block(&lock, source, now + 2 * hour, "block:framing").expect("room");
    stage.block(&lock, source, now + hour, "block:limit").expect("room");
    let blocked = stage.blocked().expect("a list");
    assert_eq!(blocked.len(), 1);
    assert_eq!(blocked[0].source.to_string(), "2001:db8:1:2::/64");
    assert_eq!(blocked[0].expires, now + 2 * hour, "the later end holds");
    assert_eq!(stage.clear_expired_blocks(&lock, now + 3 * hour).expect("cleared"), 1);
    assert_eq!(stage.settings().expect("settings").flags, 0, "the program stops looking");
}

#[test]
fn words_about_a_block_end_with_it() {
    let Some(place) = Place::new() else { return };
    place.attach(None);
    let stage = place.stage();
    let words = || stage.maps().notes.entries().expect("a list").len();
    let add = ["deny", "add", "198.51.100.7", "--ttl", "1h", "--reason", "scans"];
    let cleared = |after_hours: u64| {
        let lock = Pins::at(place.base()).lock().expect("free");
        let later = clock::monotonic_nanoseconds() + after_hours * 3_600_000_000_000;
        stage.clear_expired_blocks(&lock, later).expect("cleared")
    };
    assert_eq!(place.ctl(&add).code, 0);
    assert_eq!((words(), cleared(0), words()), (1, 0, 1));
    assert_eq!((cleared(2), words()), (1, 0), "the table of reasons would fill up");
    // The next block of that source is another one, for another reason, also before anybody has cleared.
    assert_eq!(place.ctl(&add).code, 0);
    let key = stage.maps().blocked.entries().expect("a list")[0].0;
    stage.maps().blocked.put(&key, &Block { expires: 1, ..Block::default() }).expect("room");
    assert_eq!(place.ctl(&["deny", "add", "198.51.100.7", "--ttl", "1h"]).code, 0);
    assert!(!place.ctl(&["deny", "list"]).out.contains("scans"));
    // A longer block keeps them, and so does the same prefix on the deny list.
    assert_eq!(place.ctl(&add).code, 0);
    assert_eq!(place.ctl(&["deny", "add", "198.51.100.7", "--ttl", "2h"]).code, 0);
    assert!(place.ctl(&["deny", "list"]).out.contains("scans"));
    assert_eq!(place.ctl(&["deny", "add", "198.51.100.7", "--reason", "for ever"]).code, 0);
    assert_eq!(cleared(3), 1);
    assert!(place.ctl(&["deny", "list"]).out.contains("for ever"));
    assert_eq!(place.ctl(&["deny", "del", "198.51.100.7"]).code, 0);
    assert_eq!(words(), 0);
}

#[test]
fn an_ipv6_prefix_never_stands_for_an_ipv4_address() {
    let Some(place) = Place::new() else { return };
    place.attach(None);
    // The words of this prefix are how the blocklist's keys write 192.0.2.7.
    let twin = "ffff:ffff:c000:207::/64";
    assert_eq!(place.ctl(&["deny", "add", twin, "--ttl", "1h"]).code, 0);
    assert!(place.stage().blocked().expect("a list").is_empty());
    assert_eq!(place.ctl(&["deny", "add", "192.0.2.7", "--ttl", "1h"]).code, 0);
    assert_eq!(place.ctl(&["deny", "del", twin]).code, 0);
    assert_eq!(place.stage().blocked().expect("a list").len(), 1);
}

#[test]
fn a_time_does_not_end_what_the_configuration_denies() {
    let Some(place) = Place::new() else { return };
    place.attach(Some(&config("deny = [\"192.0.2.0/24\"]")));
    place
        .ctl(&["deny", "add", "192.0.2.0/24", "--ttl", "10m"])
        .refused(2, &["the configuration denies 192.0.2.0/24", "leave out --ttl"]);
    assert_eq!(place.stage().deny_list().expect("a list")[0].expires, 0);
    // The other way round: the entry with a time was there first.
    assert_eq!(place.ctl(&["deny", "add", "198.51.100.0/24", "--ttl", "10m"]).code, 0);
    assert_eq!(place.ctl(&["deny", "add", "203.0.113.0/24", "--ttl", "10m"]).code, 0);
    let file = place.file("second.toml", &config("deny = [\"192.0.2.0/24\", \"198.51.100.0/24\"]"));
    assert_eq!(place.ctl(&["attach", INTERFACE, "--config", &file]).code, 0);
    let list = place.stage().deny_list().expect("a list");
    let found = list.iter().map(|denied| (denied.prefix.to_string(), denied.expires != 0, denied.configured));
    let found: Vec<_> = found.collect();
    let expected =
        [("192.0.2.0/24", false, true), ("198.51.100.0/24", false, true), ("203.0.113.0/24", true, false)];
    assert_eq!(found, expected.map(|(prefix, ends, is_configured)| (prefix.to_owned(), ends, is_configured)));
}

#[test]
fn a_new_limit_does_not_inherit_what_another_has_used_up() {
    let Some(place) = Place::new() else { return };
    place.attach(Some(&config("")));
    let stage = place.stage();
    let number = |name: &str| {
        let rule = stage.rule(name).expect("rules").expect("a rule");
        let limits = stage.maps().limits.entries().expect("limits");
        limits.into_iter().find(|(_, limit)| limit.rule == rule).expect("a limit").0
    };
    let words = || {
        let word = stage.maps().service_words.get(&number("limit:all")).expect("readable");
        word.expect("a row").words
    };
    let set = |rate: &str, burst: &str| {
        let words = ["limit", "set", "all", "--by", "service", "--packets-per-second", rate];
        let outcome = place.ctl(&[&words[..], &["--burst-seconds", burst]].concat());
        assert_eq!(outcome.code, 0, "{outcome:?}");
    };
    let used_up = Buckets { words: [u64::MAX / 4; 3] };
    set("10", "3600");
    stage.maps().service_words.put(&number("limit:all"), &used_up).expect("written");
    set("20", "3600");
    assert_eq!(words(), used_up.words, "as deep as before: what is used is used");
    set("20", "1");
    assert_eq!(words(), [0; 3], "an hour's debt would refuse everything for an hour");
    stage.maps().service_words.put(&number("limit:all"), &used_up).expect("written");
    assert_eq!(place.ctl(&["limit", "del", "all"]).code, 0);
    set("10", "3600");
    assert_eq!(words(), [0; 3], "another limit under the number");
    // And by a configuration.
    stage.maps().service_words.put(&number("limit:all"), &used_up).expect("written");
    let text = config("") + "[[limits]]\nname = \"all\"\nby = \"service\"\npackets_per_second = 10\n";
    let file = place.file("second.toml", &text);
    let outcome = place.ctl(&["attach", INTERFACE, "--config", &file]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(words(), [0; 3]);
}

#[test]
fn a_check_needs_no_rights_and_touches_nothing() {
    let Some(place) = Place::new() else { return };
    let file = place.file("edge.toml", &config("deny_max = 4194304"));
    let outcome = place.ctl_with("-all", &["--json", "check", &file]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let checked: serde_json::Value = serde_json::from_str(&outcome.out).expect("JSON");
    assert_eq!((checked["services"].as_u64(), checked["limits"].as_u64()), (Some(2), Some(1)));
    // Two hashes of 8 million entries, of at least 72 octets each.
    assert!(
        checked["memory_bytes"].as_u64().is_some_and(|octets| octets > 2 * 8 * 72 * 1_000_000),
        "{checked}"
    );
    assert!(!place.base().exists());
}
