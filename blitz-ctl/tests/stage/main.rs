//! The loaded program against packets: BPF_PROG_TEST_RUN, no interface.
//!
//! Needs the right to load BPF. Without it the tests say so and pass; with `BLITZ_REQUIRE_ALL=1` they fail.

mod fixtures;
mod packets;
mod quic;
mod world;

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Command;

use blitz_ctl::image::Image;
use blitz_ctl::object::OBJECT;
use blitz_ctl::rehearsal::{Options, Rehearsal};
use blitz_ctl::twin::Twin;
use blitz_ebpf_common::cid::Parity;
use blitz_ebpf_common::layout::{Fault, LIMITS_MAX, Steered, Verdict};
use blitz_tests::{require, xdp_socket};

/// A rehearsal of the test's world, or `None` after a line that says why there is none.
fn rehearsal() -> Option<(Rehearsal, OwnedFd)> {
    let image = world::image();
    let blocked = world::blocked(&image);
    match Rehearsal::new(OBJECT, &image, &blocked, Options::default()) {
        Ok(mut rehearsal) => {
            rehearsal.steer(&quic::steer(Parity::Even), &quic::workers(), quic::owner()).expect("written");
            // Without a socket nothing is redirected.
            let socket = xdp_socket().expect("an AF_XDP socket");
            rehearsal.place(socket.as_fd()).expect("a socket with a ring");
            Some((rehearsal, socket))
        }
        Err(error) => {
            assert!(!is_root(), "the object does not load: {error:?}");
            require::skip(&format!("loading BPF needs root here: {error}"));
            None
        }
    }
}

/// The twin of the test's world.
fn twin(image: &Image) -> Twin {
    let mut twin = Twin::new(image.clone(), world::blocked(image));
    twin.now.set(1 << 40);
    twin.steer = Some(quic::steer(Parity::Even));
    twin.workers = quic::workers();
    twin.queue = quic::owner();
    twin
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:\t0"))
}

/// Without this, "a reachable panic makes the verifier refuse" would be a hope.
#[test]
fn a_panic_that_a_packet_can_reach_is_refused_by_the_verifier() {
    if !is_root() {
        return require::skip("loading BPF needs root here");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let object = directory.path().join("panic.o");
    let build = Command::new(env!("CARGO"))
        .args(["xtask", "build-ebpf", "--reachable-panic", "--out"])
        .arg(&object)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo");
    if !build.status.success() {
        let why = String::from_utf8_lossy(&build.stderr);
        return require::skip(&format!(
            "the object cannot be built: {}",
            why.lines().last().unwrap_or_default()
        ));
    }
    let object = std::fs::read(&object).expect("an object");
    let image = world::image();
    let refused = Rehearsal::new(&object, &image, &HashMap::new(), Options::default());
    let error = refused.err().expect("the verifier lets a reachable panic through");
    assert!(format!("{error:?}").contains("verifier_log"), "not the verifier's words: {error:?}");
}

#[test]
fn every_fixture_gets_its_verdict_and_its_counters() {
    let Some((mut kernel, _socket)) = rehearsal() else { return };
    let image = world::image();
    let twin = twin(&image);
    let fixtures = fixtures::all();
    assert!(fixtures.len() >= 100, "{} fixtures", fixtures.len());
    let mut wrong = Vec::new();
    for fixture in &fixtures {
        let about = fixture.about;
        for _ in 0..fixture.before {
            kernel.passes(&fixture.frame).expect("a run");
            twin.decide(&fixture.frame);
        }
        let rule = |name: &str| match name {
            "" => 0,
            name => image.rule(name).unwrap_or_else(|| panic!("{about}: no rule {name}")),
        };
        let (number, shadow) = (rule(fixture.rule), rule(fixture.shadow));
        let before = kernel.verdicts().expect("counters");
        let rule_before = kernel.rule(number).expect("counters");
        let shadow_before = kernel.rule(shadow).expect("counters");
        let steered_before = kernel.steered().expect("counters");
        let passed = kernel.passes(&fixture.frame).expect("a run");
        let after = kernel.verdicts().expect("counters");
        let rule_after = kernel.rule(number).expect("counters");
        let shadow_after = kernel.rule(shadow).expect("counters");
        let steered_after = kernel.steered().expect("counters");

        let moved: Vec<&str> = Verdict::ALL
            .iter()
            .filter(|verdict| after[**verdict as usize] != before[**verdict as usize])
            .map(|verdict| verdict.label())
            .collect();
        let mut check = |good: bool, what: String| {
            if !good {
                wrong.push(format!("{about}: {what}"));
            }
        };
        check(
            moved == [fixture.verdict.label()],
            format!("counted {moved:?}, expected {:?}", fixture.verdict),
        );
        check(passed != fixture.verdict.drops(), format!("passed: {passed}"));
        if number != 0 {
            let octets = rule_after.decided.bytes - rule_before.decided.bytes;
            let packets = rule_after.decided.packets - rule_before.decided.packets;
            check(packets == 1, format!("rule {} counted {packets} packets", fixture.rule));
            check(
                octets == fixture.frame.len() as u64,
                format!("rule {} counted {octets} octets", fixture.rule),
            );
        }
        let steered: Vec<Steered> = Steered::ALL
            .into_iter()
            .filter(|found| steered_after[*found as usize] != steered_before[*found as usize])
            .collect();
        let expected: Vec<Steered> = fixture.steered.into_iter().collect();
        check(steered == expected, format!("found {steered:?}, expected {expected:?}"));
        if shadow != 0 {
            let packets = shadow_after.shadow.packets - shadow_before.shadow.packets;
            check(packets == 1, format!("rule {} counted {packets} packets in shadow", fixture.shadow));
        }

        twin.shadowed.borrow_mut().clear();
        twin.steered.borrow_mut().clear();
        let decision = twin.decide(&fixture.frame);
        check(decision.verdict == fixture.verdict, format!("the host says {:?}", decision.verdict));
        check(decision.rule == number, format!("the host says rule {}", decision.rule));
        let shadowed = twin.shadowed.take();
        let expected: Vec<u32> = (shadow != 0).then_some(shadow).into_iter().collect();
        check(shadowed == expected, format!("the host says shadow {shadowed:?}"));
        let steered = twin.steered.take();
        check(steered.iter().eq(&fixture.steered), format!("the host found {steered:?}"));
    }
    assert!(wrong.is_empty(), "{} of {} fixtures:\n{}", wrong.len(), fixtures.len(), wrong.join("\n"));
    for fault in Fault::ALL {
        assert_eq!(kernel.fault(fault).expect("counters"), 0, "{}", fault.label());
    }
    println!("{} fixtures", fixtures.len());
}

#[test]
fn what_hides_its_protocol_is_for_a_service_of_either() {
    const CONFIG: &str = "[[listeners]]\nname = \"web\"\naddress = \"[2001:db8::2]:80\"\nbuiltin_answers = true\n\
        [[listeners]]\nname = \"quic\"\naddress = \"[2001:db8::4]:443\"\nprotocols = [\"h3\"]\nbuiltin_answers = true\n\
        tls = { certificates = [{ cert_path = \"c.pem\", key_path = \"k.pem\" }] }\n\
        [xdp]\n[[xdp.services]]\nname = \"dns\"\naddress = \"2001:db8::1\"\nport = 53\nprotocol = \"udp\"\n";
    const ADDRESSES: [&str; 4] = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4"];
    let config = blitz_config::load(CONFIG, blitz_config::Format::Toml, "hidden.toml", &Default::default());
    let image =
        blitz_ctl::image::Image::from_config(&config.expect("a configuration"), 1, &Default::default());
    let image = image.expect("it fits");
    let hidden = |to| {
        let frame = packets::Frame::udp("2001:db8:9::1", to, 9);
        (0..7).fold(frame, |frame, _| frame.extension(packets::DESTINATION_OPTIONS, 6)).build()
    };
    let twin = Twin::new(image.clone(), HashMap::new());
    let rules = ["service:dns", "service:web", "", "service:quic"];
    for (to, rule) in ADDRESSES.into_iter().zip(rules) {
        assert_eq!(twin.decide(&hidden(to)).rule, image.rule(rule).unwrap_or(0), "{to}");
    }
    let Ok(mut kernel) = Rehearsal::new(OBJECT, &image, &HashMap::new(), Options::default()) else {
        assert!(!is_root(), "the object does not load");
        return require::skip("loading BPF needs root here");
    };
    assert_eq!(*twin.steered.borrow(), [Steered::Fragment]);
    for to in ADDRESSES {
        assert!(kernel.passes(&hidden(to)).expect("a run"));
    }
    let verdicts = kernel.verdicts().expect("counters");
    assert_eq!(verdicts[Verdict::PassService as usize], 3);
    assert_eq!(kernel.steered().expect("counters")[Steered::Fragment as usize], 1);
    assert_eq!(verdicts[Verdict::PassNoService as usize], 1);
}

/// What a step does when it cannot do its work, in the loaded program; the other rows of the table are
/// fixtures, and contention is tested where it can be made: beside `gcra::take`.
#[test]
fn faults_go_in_their_direction_and_are_counted() {
    if rehearsal().is_none() {
        return;
    }
    let load =
        |image: &Image| Rehearsal::new(OBJECT, image, &HashMap::new(), Options::default()).expect("loads");

    // A service that names a limit which is not in its table: the packet goes on without it.
    let mut image = world::image();
    let number =
        image.services.iter().position(|service| service.source_limit != 0).expect("a limited service");
    let frame = packets::Frame::tcp("172.30.0.1", "10.0.0.1", 80).build();
    let http = image.rule("service:http").expect("a rule");
    for service in image.services.iter_mut().skip(number).filter(|service| service.rule == http) {
        service.source_limit = LIMITS_MAX;
    }
    let mut kernel = load(&image);
    for _ in 0..10 {
        assert!(kernel.passes(&frame).expect("a run"));
    }
    assert_eq!(kernel.fault(Fault::NoEntry).expect("counters"), 10);

    // Five sources in debt and one set of four: the fifth is limited all the same, and one is forgotten.
    let mut image = world::image();
    image.sources_max = 4;
    let mut kernel = load(&image);
    let from = |n: u8| packets::Frame::tcp(&format!("172.30.1.{n}"), "10.0.0.1", 80).build();
    for n in 1..=4 {
        assert!(kernel.passes(&from(n)).expect("a run"));
        assert!(kernel.passes(&from(n)).expect("a run"));
    }
    assert_eq!(kernel.fault(Fault::SourcesFull).expect("counters"), 0);
    let fifth: Vec<bool> = (0..4).map(|_| kernel.passes(&from(5)).expect("a run")).collect();
    assert_eq!(fifth, [true, true, true, false], "three packets are its burst");
    assert_eq!(kernel.fault(Fault::SourcesFull).expect("counters"), 1);
}

/// Packets of the equality test.
const PACKETS: u32 = 1_000_000;
/// Packets between two comparisons of the counters.
const BATCH: u32 = 10_000;

#[test]
fn a_million_random_packets_get_the_same_verdict_here_and_in_the_kernel() {
    let Some((mut kernel, _socket)) = rehearsal() else { return };
    let image = world::image();
    let twin = twin(&image);
    let seeds: Vec<Vec<u8>> = fixtures::all().into_iter().map(|fixture| fixture.frame).collect();
    let seed = std::env::var("BLITZ_STAGE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(0x9e37_79b9_7f4a_7c15);
    let mut random = Random(seed);
    let mut counted = [0_u64; Verdict::ALL.len()];
    let mut found_out = [0_u64; Steered::ALL.len()];
    let mut reached = HashMap::new();
    for number in 0..PACKETS {
        let frame = random.frame(&seeds);
        let decision = twin.decide(&frame);
        let passed = kernel.passes(&frame).expect("a run");
        assert_eq!(
            passed,
            !decision.verdict.drops(),
            "packet {number} of BLITZ_STAGE_SEED={seed}: the host says {decision:?}, frame {frame:02x?}"
        );
        counted[decision.verdict as usize] += 1;
        *reached.entry(decision.verdict).or_insert(0_u64) += 1;
        if number % BATCH == BATCH - 1 {
            let counts = kernel.verdicts().expect("counters");
            assert_eq!(counts, counted, "up to packet {number} of BLITZ_STAGE_SEED={seed}");
            for found in twin.steered.take() {
                found_out[found as usize] += 1;
            }
            let steered = kernel.steered().expect("counters");
            assert_eq!(steered, found_out, "up to packet {number} of BLITZ_STAGE_SEED={seed}");
        }
    }
    for (number, rule) in &image.rules {
        if rule.starts_with("limit:") && rule != "limit:shadowed"
            || rule.starts_with("service:")
            || rule == "deny:config"
        {
            assert_ne!(kernel.rule(*number).expect("counters").decided.packets, 0, "{rule} never decided");
        }
    }
    let mut reached: Vec<_> = reached.into_iter().collect();
    reached.sort();
    println!("{reached:?}");
    assert_eq!(reached.len(), Verdict::ALL.len(), "not every verdict was reached");
    // The world has keys, and somebody of the current generation owns the queue.
    let never = [Steered::Unset, Steered::FreshElsewhere];
    for found in Steered::ALL.into_iter().filter(|found| !never.contains(found)) {
        assert_ne!(found_out[found as usize], 0, "nothing was {}", found.label());
    }
}

/// xorshift64*, which is enough to vary packets.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    /// A fixture's frame with some of its octets changed, cut or lengthened; now and then pure noise.
    fn frame(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        if self.below(32) == 0 {
            return (0..14 + self.below(120)).map(|_| self.next() as u8).collect();
        }
        let mut frame = seeds[self.below(seeds.len())].clone();
        for _ in 0..self.below(4) {
            let at = self.below(frame.len().min(100));
            frame[at] = match self.below(3) {
                0 => self.next() as u8,
                1 => frame[at] ^ (1 << self.below(8)),
                _ => [0, 1, 4, 6, 17, 43, 44, 51, 60, 0x45, 0x60, 0xff][self.below(12)],
            };
        }
        match self.below(8) {
            0 => frame.truncate(14 + self.below(frame.len() - 13)),
            1 => frame.extend((0..self.below(64)).map(|octet| octet as u8)),
            _ => {}
        }
        frame
    }
}

/// The verifier gives up at a million; other kernels count a little differently.
#[test]
fn the_verifier_has_room_to_spare() {
    let Some((mut kernel, _socket)) = rehearsal() else { return };
    let count = kernel.verified_instructions().expect("a count");
    println!("{count} instructions verified");
    assert!(count < 500_000, "{count}");
}
