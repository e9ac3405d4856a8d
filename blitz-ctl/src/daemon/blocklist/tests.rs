//! The blocklist over maps that are hash maps.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};

use blitz_ctl_protocol::message::ConnectionFacts;

use super::*;
use crate::error::{Error, Kind};

const SECOND: u64 = 1_000_000_000;

#[derive(Default)]
struct Maps {
    stages: Vec<RefCell<HashMap<BlockKey, Block>>>,
    used: Cell<bool>,
    is_broken: Cell<bool>,
    is_full: Cell<bool>,
}

impl Maps {
    fn new(count: usize) -> Self {
        Self { stages: (0..count).map(|_| RefCell::default()).collect(), ..Self::default() }
    }

    fn check(&self) -> Result<()> {
        if self.is_broken.get() { Err(Error::new(Kind::System, "broken", "mend it")) } else { Ok(()) }
    }

    fn holds(&self, source: &str) -> usize {
        let key = key_of(source.parse().expect("address"));
        self.stages.iter().filter(|stage| stage.borrow().contains_key(&key)).count()
    }
}

impl Stages for Maps {
    fn count(&self) -> u32 {
        self.stages.len() as u32
    }

    fn block(&self, key: &BlockKey, held: &Held) -> Result<()> {
        self.check()?;
        if self.is_full.get() {
            return Err(Error::new(Kind::Full, "full", "wait"));
        }
        let rule = held.reason.map_or(0, |reason| reason as u32 + 1);
        for stage in &self.stages {
            let block = Block { expires: held.expires, since: held.since, rule, flags: 0 };
            stage.borrow_mut().insert(*key, block);
        }
        Ok(())
    }

    fn unblock(&self, key: &BlockKey) -> Result<bool> {
        self.check()?;
        Ok(self.stages.iter().filter(|stage| stage.borrow_mut().remove(key).is_some()).count() > 0)
    }

    fn expire(&self, key: &BlockKey, now: u64) -> Result<()> {
        self.check()?;
        for stage in &self.stages {
            stage
                .borrow_mut()
                .retain(|found, block| found != key || block.expires == 0 || block.expires > now);
        }
        Ok(())
    }

    fn blocks(&self) -> Result<Vec<(BlockKey, Block, Option<Reason>)>> {
        self.check()?;
        let reason = |rule: u32| Reason::ALL.into_iter().find(|reason| *reason as u32 + 1 == rule);
        let rows = |stage: &RefCell<HashMap<BlockKey, Block>>| {
            stage.borrow().iter().map(|(key, block)| (*key, *block, reason(block.rule))).collect::<Vec<_>>()
        };
        Ok(self.stages.iter().flat_map(rows).collect())
    }

    fn use_blocklist(&self, used: bool) -> Result<()> {
        self.check()?;
        self.used.set(used);
        Ok(())
    }
}

fn list(entries_max: u64) -> Blocklist {
    let mut list = Blocklist::default();
    let exempt = ["192.0.2.0/28", "2001:db8:1::7/128"].map(|text| {
        let (address, length) = text.split_once('/').expect("prefix");
        Cidr { address: address.parse().expect("address"), prefix_len: length.parse().expect("length") }
    });
    list.set_rules(Rules { entries_max, framing: true, limit: true, exempt: exempt.into() });
    list
}

fn report(source: &str, reason: Reason, ttl_ms: u64) -> Report {
    let source: IpAddr = source.parse().expect("address");
    Report {
        source,
        reason,
        ttl_ms,
        connection: ConnectionFacts {
            peer: SocketAddr::new(source, 40_000),
            local: SocketAddr::from(([198, 51, 100, 1], 80)),
            note: "bare_lf".to_owned(),
        },
    }
}

fn ask(list: &mut Blocklist, maps: &Maps, source: &str, reason: Reason, now: u64) -> Outcome {
    list.report(&report(source, reason, 10_000), now, maps, |_| false).expect("report").outcome
}

#[test]
fn a_report_blocks_in_every_stage_until_its_end() {
    let (mut list, maps) = (list(10), Maps::new(2));
    let done = list
        .report(&report("203.0.113.9", Reason::Framing, 10_000), SECOND, &maps, |_| false)
        .expect("report");
    assert_eq!((done.outcome, done.remaining_ms), (Outcome::Blocked, 10_000));
    assert_eq!((maps.holds("203.0.113.9"), maps.used.get(), list.len()), (2, true, 1));
    let page = list.page(None, 2 * SECOND);
    assert_eq!(page.rows.len(), 1);
    assert_eq!((page.rows[0].remaining_ms, page.rows[0].note.as_str()), (Some(9000), "bare_lf"));
    assert_eq!(list.sweep(10 * SECOND, &maps).expect("sweep"), 0);
    assert_eq!(list.sweep(11 * SECOND, &maps).expect("sweep"), 1);
    assert_eq!((maps.holds("203.0.113.9"), list.len(), maps.used.get()), (0, 0, true));
    // The program stops looking at an empty list after a while, and starts again with the next block.
    list.sweep(80 * SECOND, &maps).expect("sweep");
    assert!(!maps.used.get());
    assert_eq!(ask(&mut list, &maps, "203.0.113.9", Reason::Limit, 90 * SECOND), Outcome::Blocked);
    assert!(maps.used.get());
}

#[test]
fn a_second_report_extends_and_restores() {
    let (mut list, maps) = (list(10), Maps::new(1));
    ask(&mut list, &maps, "203.0.113.9", Reason::Framing, 0);
    maps.stages[0].borrow_mut().clear();
    assert_eq!(ask(&mut list, &maps, "203.0.113.9", Reason::Limit, 5 * SECOND), Outcome::Already);
    assert_eq!(maps.holds("203.0.113.9"), 1, "removed behind our back, stored again");
    let row = &list.page(None, 5 * SECOND).rows[0];
    assert_eq!((row.reason, row.remaining_ms), (Some(Reason::Framing), Some(10_000)));
    // A shorter one does not shorten.
    let short =
        list.report(&report("203.0.113.9", Reason::Limit, 1), 6 * SECOND, &maps, |_| false).expect("report");
    assert_eq!((short.outcome, short.remaining_ms), (Outcome::Already, 9000));
}

#[test]
fn the_longest_block_is_an_hour_and_no_time_is_refused() {
    let (mut list, maps) = (list(10), Maps::new(1));
    let long = report("203.0.113.9", Reason::Limit, u64::MAX);
    assert_eq!(list.report(&long, 7, &maps, |_| false).expect("report").remaining_ms, 3_600_000);
    assert!(list.report(&report("203.0.113.8", Reason::Limit, 0), 7, &maps, |_| false).is_err());
}

#[test]
fn who_is_never_blocked() {
    let (mut list, maps) = (list(10), Maps::new(1));
    for source in [
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "fe80::1",
        "ff02::1",
        // Allowed, also in its IPv6 form, and a neighbour in the /64 of an allowed address.
        "192.0.2.3",
        "::ffff:192.0.2.3",
        "2001:db8:1::8",
    ] {
        assert_eq!(ask(&mut list, &maps, source, Reason::Framing, 0), Outcome::Exempt, "{source}");
    }
    let own = list.report(&report("203.0.113.1", Reason::Framing, 1000), 0, &maps, |_| true).expect("report");
    assert_eq!((own.outcome, list.len()), (Outcome::Exempt, 0));
    assert_eq!(ask(&mut list, &maps, "192.0.2.16", Reason::Framing, 0), Outcome::Blocked);
}

#[test]
fn a_report_is_about_the_peer_of_its_connection() {
    let (mut list, maps) = (list(10), Maps::new(1));
    let mut forged = report("203.0.113.9", Reason::Framing, 1000);
    forged.source = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
    assert!(list.report(&forged, 0, &maps, |_| false).expect_err("forged").contains("only the peer"));
    let mut mapped = report("203.0.113.9", Reason::Framing, 1000);
    mapped.connection.peer = "[::ffff:203.0.113.9]:4000".parse().expect("address");
    assert_eq!(list.report(&mapped, 0, &maps, |_| false).expect("same").outcome, Outcome::Blocked);
}

#[test]
fn the_list_is_bounded_and_one_reason_leaves_room_for_the_other() {
    let (mut list, maps) = (list(16), Maps::new(1));
    let blocked = (0..=255u8)
        .filter(|last| {
            ask(&mut list, &maps, &format!("198.18.0.{last}"), Reason::Limit, 0) == Outcome::Blocked
        })
        .count();
    assert_eq!(blocked, 14, "seven eighths");
    assert_eq!(ask(&mut list, &maps, "198.18.0.0", Reason::Limit, 0), Outcome::Already);
    let framing = (0..=255u8)
        .filter(|last| {
            ask(&mut list, &maps, &format!("198.18.1.{last}"), Reason::Framing, 0) == Outcome::Blocked
        })
        .count();
    assert_eq!((framing, list.len(), maps.stages[0].borrow().len()), (2, 16, 16));
    // An operator is not bound by that.
    assert_eq!(ask(&mut list, &maps, "198.18.2.1", Reason::Operator, 0), Outcome::Blocked);
    assert!(list.unblock("198.18.0.3".parse().expect("address"), &maps).expect("unblock"));
    assert!(!list.unblock("198.18.0.3".parse().expect("address"), &maps).expect("unblock"));
    assert_eq!(ask(&mut list, &maps, "198.18.3.1", Reason::Limit, 0), Outcome::Blocked);
    assert_eq!(ask(&mut list, &maps, "198.18.3.2", Reason::Framing, 0), Outcome::Capped);
}

#[test]
fn a_reason_that_is_off_or_a_machine_without_stages_blocks_nobody() {
    let (mut list, maps) = (list(10), Maps::new(0));
    assert_eq!(ask(&mut list, &maps, "203.0.113.9", Reason::Framing, 0), Outcome::Off);
    let maps = Maps::new(1);
    list.set_rules(Rules { entries_max: 10, framing: true, limit: false, exempt: Vec::new() });
    assert_eq!(ask(&mut list, &maps, "203.0.113.9", Reason::Limit, 0), Outcome::Off);
    assert_eq!(ask(&mut list, &maps, "203.0.113.9", Reason::Framing, 0), Outcome::Blocked);
}

#[test]
fn a_new_daemon_takes_over_what_the_maps_hold() {
    let (mut first, maps) = (list(10), Maps::new(2));
    ask(&mut first, &maps, "203.0.113.9", Reason::Framing, 0);
    ask(&mut first, &maps, "2001:db8::9", Reason::Limit, SECOND);
    drop(first);
    // An interface that was attached meanwhile knows nothing.
    maps.stages[1].borrow_mut().clear();
    let mut second = list(10);
    second.reconcile(2 * SECOND, &maps, true).expect("reconcile");
    assert_eq!((second.len(), maps.holds("203.0.113.9"), maps.holds("2001:db8::77")), (2, 2, 2));
    let mut rows = second.page(None, 2 * SECOND).rows;
    rows.sort_by_key(|row| row.source);
    assert_eq!(
        rows.iter().map(|row| row.source.to_string()).collect::<Vec<_>>(),
        ["203.0.113.9", "2001:db8::"]
    );
    assert_eq!(rows[0].remaining_ms, Some(8000));
    assert_eq!(rows[1].reason, Some(Reason::Limit));
    // What is taken out of one stage by hand is not put back.
    maps.stages[0].borrow_mut().clear();
    second.reconcile(3 * SECOND, &maps, false).expect("reconcile");
    assert_eq!((second.len(), maps.holds("203.0.113.9")), (2, 1));
    assert_eq!(second.sweep(10 * SECOND, &maps).expect("sweep"), 1);
    assert_eq!(second.sweep(11 * SECOND, &maps).expect("sweep"), 1);
}

#[test]
fn an_ipv6_prefix_does_not_unblock_an_ipv4_address() {
    let (mut list, maps) = (list(10), Maps::new(1));
    ask(&mut list, &maps, "203.0.113.7", Reason::Framing, 0);
    let twin: IpAddr = "ffff:ffff:cb00:7107::".parse().expect("address");
    assert_eq!(list.unblock(twin, &maps), Ok(false));
    assert_eq!(maps.holds("203.0.113.7"), 1);
}

#[test]
fn a_stage_without_room_hides_nothing_that_others_hold() {
    let (mut first, maps) = (list(10), Maps::new(2));
    for source in ["203.0.113.1", "203.0.113.2", "203.0.113.3"] {
        ask(&mut first, &maps, source, Reason::Framing, 0);
    }
    maps.stages[1].borrow_mut().clear();
    maps.is_full.set(true);
    let mut second = list(10);
    let error = second.reconcile(SECOND, &maps, true).expect_err("one stage is full");
    assert_eq!(error.kind(), Kind::Full);
    assert_eq!((second.len(), maps.used.get()), (3, true));
    assert_eq!(second.sweep(60 * SECOND, &maps).expect("sweep"), 3);
    assert!(maps.stages[0].borrow().is_empty());
}

#[test]
fn maps_that_fail_are_named_and_nothing_is_forgotten() {
    let (mut list, maps) = (list(10), Maps::new(1));
    ask(&mut list, &maps, "203.0.113.9", Reason::Framing, 0);
    maps.is_broken.set(true);
    let error = list.report(&report("203.0.113.8", Reason::Framing, 1000), 0, &maps, |_| false);
    assert!(error.expect_err("broken").contains("broken"));
    assert!(list.sweep(60 * SECOND, &maps).is_err());
    assert!(list.reconcile(0, &maps, false).is_err());
    assert!(list.unblock("203.0.113.9".parse().expect("address"), &maps).is_err());
    maps.is_broken.set(false);
    list.sweep(60 * SECOND, &maps).expect("sweep");
    assert!(list.is_empty() && maps.stages[0].borrow().is_empty());
}

#[test]
fn a_long_list_is_read_in_pages() {
    let (mut list, maps) = (list(u64::MAX), Maps::new(1));
    for number in 0..600u32 {
        let source = Ipv4Addr::from(0xc612_0000 + number).to_string();
        assert_eq!(ask(&mut list, &maps, &source, Reason::Framing, 0), Outcome::Blocked);
    }
    let (mut after, mut seen, mut pages) = (None, 0, 0);
    loop {
        let page = list.page(after, 0);
        assert!(serde_json::to_vec(&page).expect("JSON").len() < blitz_ctl_protocol::FRAME_BYTES_MAX);
        seen += page.rows.len();
        pages += 1;
        after = page.rows.last().map(|row| row.source);
        if !page.more {
            break;
        }
    }
    assert_eq!((seen, pages), (600, 3));
}
