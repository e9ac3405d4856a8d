//! The daemon over a real stage on one end of a veth pair in a namespace of its own.
//!
//! Needs root, `ip` and `nsenter`. Each test makes its own namespace, pins and socket, and takes them away,
//! also when it fails.

use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blitz_ctl::{Pins, Stage};
use blitz_ctl_protocol::Client;
use blitz_ctl_protocol::message::{ConnectionFacts, Outcome, Reason, Report};
use blitz_ebpf_common::sources::Set;

const WAIT: Duration = Duration::from_secs(20);
const ADDRESS: &str = "198.18.77.1";
const CLIENT: &str = "198.18.77.2";

/// A namespace with the stage's interface in it, and everything that the daemon leaves.
struct Place {
    name: String,
    directory: tempfile::TempDir,
}

impl Place {
    /// `None` without the rights, said aloud.
    fn new(test: &str) -> Option<Self> {
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        let has_tools = ["ip", "nsenter"].iter().all(|tool| run(&[tool, "--version"]) || run(&[tool, "-V"]));
        if !is_root || !has_tools {
            assert!(std::env::var_os("BLITZ_REQUIRE_ALL").is_none(), "this test needs root, ip and nsenter");
            eprintln!("skipped: needs root, ip and nsenter");
            return None;
        }
        let name = format!("cd{}{test}", std::process::id() % 100_000);
        let place = Self { name, directory: tempfile::tempdir().expect("directory") };
        for name in [place.name.clone(), place.client()] {
            assert!(run(&["ip", "netns", "add", &name]), "{name}");
        }
        place.wire();
        Some(place)
    }

    /// Makes the pair of interfaces.
    fn wire(&self) {
        let (own, peer, here, there) = (self.interface(), self.peer(), &self.name, self.client());
        for command in [
            format!("ip link add {own} netns {here} type veth peer name {peer} netns {there}"),
            format!("ip -n {here} link set lo up"),
            format!("ip -n {here} addr add {ADDRESS}/24 dev {own}"),
            format!("ip -n {here} link set {own} up"),
            format!("ip -n {there} addr add {CLIENT}/24 dev {peer}"),
            format!("ip -n {there} link set {peer} up"),
        ] {
            assert!(run(&command.split(' ').collect::<Vec<_>>()), "{command}");
        }
    }

    fn interface(&self) -> String {
        format!("{}a", self.name)
    }

    fn peer(&self) -> String {
        format!("{}b", self.name)
    }

    /// The namespace of the other end.
    fn client(&self) -> String {
        format!("{}p", self.name)
    }

    fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self, more: &str) {
        self.config_with(more, "sources_max = 1024\ndeny_max = 1024\n");
    }

    fn config_with(&self, more: &str, xdp: &str) {
        let text = format!(
            "[[listeners]]\nname = \"edge\"\naddress = \"{ADDRESS}:8080\"\nbuiltin_answers = true\n\n\
             [[xdp.services]]\nname = \"web\"\nport = 80\nprotocol = \"udp\"\n\n{more}\n[xdp]\ninterfaces = [\"{}\"]\n{xdp}",
            self.interface()
        );
        // One file in place of the other, as an editor does it.
        std::fs::write(self.path("new.toml"), text).expect("write");
        std::fs::rename(self.path("new.toml"), self.path("blitz.toml")).expect("rename");
    }

    /// Starts the daemon in the namespace, behind `wrapper`, and waits until it is ready.
    fn daemon(&self, wrapper: &[&str]) -> Daemon {
        let daemon = self.spawn(wrapper);
        daemon.wait_for("ready");
        daemon
    }

    fn spawn(&self, wrapper: &[&str]) -> Daemon {
        let net = format!("--net=/run/netns/{}", self.name);
        let (socket, config, pins) = (self.path("ctl.sock"), self.path("blitz.toml"), self.pins());
        let mut words: Vec<&str> = vec!["nsenter", &net, "--"];
        words.extend(wrapper);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(env!("CARGO_BIN_EXE_blitz-ctl")).arg("run");
        command.arg("--config").arg(&config).arg("--socket").arg(&socket).arg("--pins").arg(&pins);
        command.args(["--metrics", "127.0.0.1:9901", "--verbose"]);
        // Without output of its own in the way of the test's.
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let theirs = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = theirs.lock().expect("log");
                log.push_str(&line);
                log.push('\n');
            }
        });
        Daemon { child, log, socket }
    }

    /// The answer to a GET, asked within the namespace.
    fn get(&self, path: &str) -> String {
        let net = format!("--net=/run/netns/{}", self.name);
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/9901; \
             printf 'GET {path} HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
        );
        let asked = Command::new("nsenter").args([&net, "--", "bash", "-c", &script]).output().expect("bash");
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        String::from_utf8(asked.stdout).expect("text")
    }

    fn metric(&self, start: &str) -> f64 {
        let text = self.get("/metrics");
        let start = start.replace("IF", &self.interface());
        let line = text.lines().find(|line| line.starts_with(&start));
        let line = line.unwrap_or_else(|| panic!("{start} is not in\n{text}"));
        line.rsplit(' ').next().expect("a value").parse().expect("a number")
    }

    /// Sends `count` datagrams to the service, from the other end.
    fn send(&self, count: usize) {
        let net = format!("--net=/run/netns/{}", self.client());
        let script = format!("for i in $(seq {count}); do printf x > /dev/udp/{ADDRESS}/80; done");
        // The port is closed, so a datagram may be answered and the next write refused: it was sent all the same.
        run(&["nsenter", &net, "--", "bash", "-c", &script]);
    }

    fn packets(&self, verdict: &str) -> f64 {
        self.metric(&format!("blitz_xdp_packets_total{{interface=\"IF\",verdict=\"{verdict}\"}}"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        run(&["ip", "netns", "del", &self.name]);
        run(&["ip", "netns", "del", &self.client()]);
        let stage = self.pins().join(self.interface());
        for directory in [stage.join("maps"), stage, self.pins()] {
            for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                let _gone = std::fs::remove_file(entry.path());
            }
            let _gone = std::fs::remove_dir(&directory);
        }
    }
}

struct Daemon {
    child: Child,
    log: Arc<Mutex<String>>,
    socket: PathBuf,
}

impl Daemon {
    fn log(&self) -> String {
        self.log.lock().expect("log").clone()
    }

    fn wait_for(&self, words: &str) {
        let deadline = Instant::now() + WAIT;
        while !self.log().contains(words) {
            assert!(Instant::now() < deadline, "{words:?} is not in\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket, "test", WAIT).expect("connect")
    }

    fn signal(&self, name: &str) {
        assert!(run(&["kill", &format!("-{name}"), &self.child.id().to_string()]));
    }

    /// Ends it in order; returns its log.
    fn end(mut self) -> String {
        self.signal("TERM");
        let status = self.child.wait().expect("wait");
        assert!(status.success(), "{status}\n{}", self.log());
        self.wait_for("ending");
        self.log()
    }

    fn kill(mut self) {
        self.signal("KILL");
        self.child.wait().expect("wait");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

fn run(words: &[&str]) -> bool {
    let status =
        Command::new(words[0]).args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn report(source: &str, reason: Reason, ttl_ms: u64) -> Report {
    let source: IpAddr = source.parse().expect("address");
    let (peer, local) = ((source, 40_000).into(), format!("{ADDRESS}:80").parse().expect("address"));
    Report { source, reason, ttl_ms, connection: ConnectionFacts { peer, local, note: "bare_lf".to_owned() } }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

const FOUR: &str = "000000c000003000";

/// The sets of capabilities in /proc/PID/status.
fn capabilities(process: u32) -> Vec<(String, String)> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("status");
    let sets = status.lines().filter_map(|line| line.strip_prefix("Cap")?.split_once(":\t"));
    sets.map(|(set, bits)| (set.to_owned(), bits.to_owned())).collect()
}

fn exactly_four() -> Vec<(String, String)> {
    let zero = "0000000000000000";
    [("Inh", zero), ("Prm", FOUR), ("Eff", FOUR), ("Bnd", FOUR), ("Amb", zero)]
        .map(|(set, bits)| (set.to_owned(), bits.to_owned()))
        .into()
}

#[test]
fn a_killed_daemon_leaves_everything_to_the_next() {
    let Some(place) = Place::new("k") else { return };
    place.config("");
    let first = place.daemon(&[]);
    place.send(5);
    until("5 packets", || place.packets("pass_service") == 5.0);
    let mut client = first.client();
    let started = Instant::now();
    let done = client.report(&report(CLIENT, Reason::Framing, 600_000)).expect("report");
    // The source is in the kernel's table when the answer comes.
    assert!(started.elapsed() < Duration::from_millis(100), "{:?}", started.elapsed());
    assert_eq!(done.outcome, Outcome::Blocked);
    place.send(3);
    until("3 drops", || place.packets("drop_blocked") == 3.0);
    first.kill();
    // Nobody is there, and the stage goes on.
    place.send(4);
    let second = place.daemon(&[]);
    let log = second.log();
    assert!(log.contains("adopted, counters and lists go on"), "{log}");
    assert!(log.contains("left over by a daemon that did not end in order"), "{log}");
    until("7 drops", || place.packets("drop_blocked") == 7.0);
    assert_eq!(place.packets("pass_service"), 5.0);
    assert_eq!(place.metric("blitz_xdp_rule_packets_total{interface=\"IF\",rule=\"block:framing\"}"), 7.0);
    assert_eq!(place.metric("blitz_xdp_rule_packets_total{interface=\"IF\",rule=\"service:web\"}"), 5.0);
    assert_eq!(place.metric("blitz_ctl_blocked_sources "), 1.0);
    let mut client = second.client();
    let rows = client.list_blocked().expect("list");
    assert_eq!((rows[0].source.to_string().as_str(), rows[0].reason), (CLIENT, Some(Reason::Framing)));
    let remaining = rows[0].remaining_ms.expect("it ends");
    assert!((500_000..600_000).contains(&remaining), "{remaining}");
    assert!(client.unblock(rows[0].source).expect("unblock"));
    place.send(2);
    until("2 more", || place.packets("pass_service") == 7.0);
    // The end in order says what stays.
    let log = second.end();
    assert!(log.contains("the stage goes on filtering"), "{log}");
    assert!(place.pins().join(place.interface()).join("link").exists());
}

#[test]
fn the_daemon_keeps_exactly_four_rights_and_needs_no_more() {
    let Some(place) = Place::new("c") else { return };
    place.config("");
    let daemon = place.daemon(&[]);
    assert_eq!(capabilities(daemon.child.id()), exactly_four());
    for thread in std::fs::read_dir(format!("/proc/{}/task", daemon.child.id())).expect("threads") {
        let id = thread.expect("thread").file_name().into_string().expect("number").parse().expect("number");
        assert_eq!(capabilities(id), exactly_four(), "thread {id}");
    }
    // With these rights it reloads, also with an interface that it must attach anew.
    daemon.signal("HUP");
    daemon.wait_for("is in force");
    drop(daemon);
    let four = "--bounding-set=-all,+net_admin,+net_raw,+cap_38,+cap_39";
    let daemon = place.daemon(&["setpriv", four]);
    assert_eq!(capabilities(daemon.child.id()), exactly_four());
    drop(daemon);
    // A first attach under these rights: the namespaces go, and what is pinned with them.
    let stage = place.pins().join(place.interface());
    for directory in [stage.join("maps"), stage.clone()] {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let _gone = std::fs::remove_file(entry.path());
        }
        let _gone = std::fs::remove_dir(&directory);
    }
    until("detached", || !stage.exists());
    let daemon = place.daemon(&["setpriv", four]);
    assert!(daemon.log().contains(": attached: program"), "{}", daemon.log());
    place.send(2);
    until("2 packets", || place.packets("pass_service") == 2.0);
    drop(daemon);
    let mut three = place.spawn(&["setpriv", "--bounding-set=-all,+net_admin,+net_raw,+cap_39"]);
    assert!(!three.child.wait().expect("wait").success());
    three.wait_for("CAP_PERFMON");
}

#[test]
fn a_reload_takes_a_good_file_and_leaves_a_bad_one() {
    let Some(place) = Place::new("r") else { return };
    place.config("");
    let daemon = place.daemon(&[]);
    place.send(2);
    until("2 packets", || place.packets("pass_service") == 2.0);
    std::fs::write(place.path("blitz.toml"), "[xdp]\nsurprise = 1\n").expect("write");
    daemon.signal("HUP");
    daemon.wait_for("the configuration in force stays");
    assert!(daemon.log().contains("surprise"), "{}", daemon.log());
    place.config("[[limits]]\nname = \"none\"\nby = \"source_prefix\"\npackets_per_second = 1\n");
    daemon.signal("HUP");
    daemon.wait_for("is in force");
    place.send(50);
    until("drops by the limit", || place.packets("drop_source_packets") > 40.0);
    // The service kept its number, so its counter goes on.
    let passed = place.metric("blitz_xdp_rule_packets_total{interface=\"IF\",rule=\"service:web\"}");
    assert!((3.0..12.0).contains(&passed), "{passed}");
    assert_eq!(place.metric("blitz_ctl_reloads_total{result=\"ok\"}"), 1.0);
    assert_eq!(place.metric("blitz_ctl_reloads_total{result=\"failed\"}"), 1.0);
    drop(daemon);
}

#[test]
fn a_block_ends_on_time_and_leaves_the_table() {
    let Some(place) = Place::new("t") else { return };
    place.config("");
    let daemon = place.daemon(&[]);
    let mut client = daemon.client();
    assert_eq!(
        client.report(&report(CLIENT, Reason::Limit, 1500)).expect("report").outcome,
        Outcome::Blocked
    );
    assert_eq!(client.report(&report(CLIENT, Reason::Limit, 1)).expect("report").outcome, Outcome::Already);
    assert_eq!(client.report(&report(ADDRESS, Reason::Limit, 1)).expect("report").outcome, Outcome::Exempt);
    place.send(2);
    until("2 drops", || place.packets("drop_blocked") == 2.0);
    until("the end", || client.list_blocked().expect("list").is_empty());
    place.send(2);
    until("2 packets", || place.packets("pass_service") == 2.0);
    assert_eq!(place.metric("blitz_ctl_blocked_sources "), 0.0);
    let reports = "blitz_ctl_block_reports_total{reason=\"limit\",outcome=";
    for (outcome, count) in [("blocked", 1.0), ("already", 1.0), ("exempt", 1.0), ("capped", 0.0)] {
        assert_eq!(place.metric(&format!("{reports}\"{outcome}\"}}")), count, "{outcome}");
    }
}

#[test]
fn what_is_exported_is_what_prometheus_takes() {
    let Some(place) = Place::new("m") else { return };
    place.config("");
    let daemon = place.daemon(&[]);
    until("a census", || place.get("/metrics").contains("blitz_xdp_map_entries{"));
    let text = place.get("/metrics");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
    for family in blitz_ctl::daemon::names::ALL {
        assert!(
            body.contains(&format!("# HELP {} {}\n", family.name, family.help)),
            "{} is missing",
            family.name
        );
    }
    assert_eq!(place.metric("blitz_xdp_stage_up{interface=\"IF\"}"), 1.0);
    assert_eq!(place.metric("blitz_xdp_map_entries_max{interface=\"IF\",map=\"SOURCES\"}"), 1024.0);
    assert!(body.contains("mode=\"native\"") && body.contains("layout=\"2\""), "{body}");
    assert!(place.get("/healthz").ends_with("alive\n"));
    assert!(place.get("/").starts_with("HTTP/1.1 404"));
    if run(&["promtool", "--version"]) {
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool");
        std::io::Write::write_all(&mut promtool.stdin.take().expect("piped"), body.as_bytes())
            .expect("write");
        let said = promtool.wait_with_output().expect("promtool");
        let words =
            String::from_utf8_lossy(&said.stderr).into_owned() + &String::from_utf8_lossy(&said.stdout);
        assert!(said.status.success(), "{words}\n{body}");
    }
    drop(daemon);
}

#[test]
fn a_second_daemon_and_a_missing_interface_are_refused_with_a_sentence() {
    let Some(place) = Place::new("s") else { return };
    place.config("");
    let first = place.daemon(&[]);
    let mut second = place.spawn(&[]);
    assert!(!second.child.wait().expect("wait").success());
    second.wait_for("another blitz-ctl serves the control socket");
    first.client().status().expect("the first goes on");
    drop(first);
    let nowhere = format!("interfaces = [\"{}\"]", place.interface());
    let text = std::fs::read_to_string(place.path("blitz.toml")).expect("read");
    std::fs::write(place.path("blitz.toml"), text.replace(&nowhere, "interfaces = [\"cdnowhere\"]"))
        .expect("write");
    let mut third = place.spawn(&[]);
    assert!(!third.child.wait().expect("wait").success());
    third.wait_for("cdnowhere");
}

/// `blitz-ctl` with the test's pins, in the namespace; its output.
fn command(place: &Place, words: &[&str]) -> String {
    let net = format!("--net=/run/netns/{}", place.name);
    let mut command = Command::new("nsenter");
    command.args([&net, "--", env!("CARGO_BIN_EXE_blitz-ctl"), "--pins"]).arg(place.pins()).args(words);
    let output = command.output().expect("run");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn an_operator_sees_and_undoes_and_what_has_ended_is_cleared() {
    let Some(place) = Place::new("o") else { return };
    place.config("");
    let daemon = place.daemon(&[]);
    let mut client = daemon.client();
    client.report(&report(CLIENT, Reason::Framing, 600_000)).expect("report");
    let list = command(&place, &["deny", "list"]);
    assert!(list.contains(CLIENT) && list.contains("block:framing"), "{list}");
    command(&place, &["deny", "del", CLIENT]);
    place.send(2);
    until("2 packets", || place.packets("pass_service") == 2.0);
    // The daemon hears of it, and a new report blocks again, whatever it has heard.
    client.report(&report(CLIENT, Reason::Framing, 600_000)).expect("report");
    place.send(2);
    until("2 drops", || place.packets("drop_blocked") == 2.0);
    command(&place, &["deny", "del", CLIENT]);
    until("the daemon's list", || client.list_blocked().expect("list").is_empty());
    command(&place, &["deny", "add", "203.0.113.0/24", "--ttl", "1s"]);
    let deadline = Instant::now() + 3 * WAIT;
    while place.metric("blitz_ctl_deny_entries_expired_total ") < 1.0 {
        assert!(Instant::now() < deadline, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!command(&place, &["deny", "list"]).contains("203.0.113.0"));
}

#[test]
fn a_report_does_not_wait_for_another_writer() {
    let Some(place) = Place::new("l") else { return };
    place.config("");
    let daemon = place.daemon(&[]);
    let lock = Pins::at(place.pins()).lock().expect("free");
    let started = Instant::now();
    let done = daemon.client().report(&report(CLIENT, Reason::Limit, 600_000)).expect("report");
    assert_eq!(done.outcome, Outcome::Blocked);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    drop(lock);
    // The program is told to look at the list by the next sweep.
    until("a drop", || {
        place.send(1);
        place.packets("drop_blocked") > 0.0
    });
}

#[test]
fn a_stage_that_was_attached_by_hand_and_an_interface_that_came_back_are_adopted() {
    let Some(place) = Place::new("h") else { return };
    place.config("");
    let daemon = place.daemon(&[]);
    let config = place.path("blitz.toml");
    command(&place, &["detach", &place.interface()]);
    assert_eq!(place.metric("blitz_xdp_stage_up{interface=\"IF\"}"), 0.0);
    let done = daemon.client().report(&report("198.18.77.3", Reason::Framing, 600_000)).expect("report");
    assert_eq!(done.outcome, Outcome::Off, "nothing filters, so nobody is blocked");
    command(&place, &["attach", &place.interface(), "--config", config.to_str().expect("path")]);
    daemon.wait_for("adopted the stage that was attached by hand");
    let mut client = daemon.client();
    client.report(&report(CLIENT, Reason::Framing, 600_000)).expect("report");
    place.send(2);
    until("2 drops", || place.packets("drop_blocked") == 2.0);
    // The interface goes, and comes back under its name.
    assert!(run(&["ip", "-n", &place.name, "link", "del", &place.interface()]));
    until("down", || place.metric("blitz_xdp_stage_up{interface=\"IF\"}") == 0.0);
    place.wire();
    daemon.wait_for("adopted with a new link");
    place.send(3);
    until("5 drops", || place.packets("drop_blocked") == 5.0);
}

#[test]
fn a_scrape_does_not_walk_a_million_sources() {
    const SOURCES: u32 = 1_048_576;
    let Some(place) = Place::new("w") else { return };
    place.config_with("", &format!("sources_max = {SOURCES}\ndeny_max = 1024\n"));
    let daemon = place.daemon(&[]);
    let scrape = || {
        let started = Instant::now();
        place.get("/metrics");
        started.elapsed()
    };
    let median = || {
        let mut times: Vec<Duration> = (0..15).map(|_| scrape()).collect();
        times.sort();
        times[7]
    };
    let empty = median();
    let stage = Stage::open(&Pins::at(place.pins()), &place.interface()).expect("the stage");
    // Every place taken, by a source whose debt lasts beyond the test.
    let set = Set { tags: [1, 2, 3, 4], words: [[u64::MAX / 2; 4]; 3] };
    let sets: Vec<(u32, Set<u64>)> = (0..stage.sizes().source_sets()).map(|number| (number, set)).collect();
    stage.maps().sources.put_all(&sets).expect("fill");
    let full = median();
    println!("a scrape, asked by a shell: {empty:?} with no sources, {full:?} with {SOURCES}");
    assert!(full < empty * 3 + Duration::from_millis(20), "{empty:?}, {full:?}");
    // The count comes from the background.
    let entries = "blitz_xdp_map_entries{interface=\"IF\",map=\"SOURCES\"}";
    let deadline = Instant::now() + 6 * WAIT;
    while place.metric(entries) < f64::from(SOURCES) {
        assert!(Instant::now() < deadline, "{}", place.metric(entries));
        std::thread::sleep(Duration::from_millis(100));
    }
    let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.child.id())).expect("threads");
    for thread in threads.flatten() {
        let read = |name: &str| std::fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        if read("comm").trim() == "census" {
            let stat = read("stat");
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            println!(
                "the census has used {} + {} hundredths of a second in user and kernel",
                fields[11], fields[12]
            );
        }
    }
    drop(daemon);
}
