//! What burdens a server over HTTP/2 is named, counted, and ends the connection; nobody else notices.

use blitz_tests::abuse::{self, Attack};
use blitz_tests::h2raw::{H2, Outcome, code, flag, get, headers, kind, request, settings, window_update};
use blitz_tests::{Cell, Gateway, PATIENCE, Setup, Upstream, matrix, wait_until};

/// The sum of the samples whose name and labels begin like this.
fn metric(gateway: &Gateway, prefix: &str) -> f64 {
    let text = gateway.admin("/metrics").text();
    let lines = text.lines().filter(|line| line.starts_with(prefix));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn named(gateway: &Gateway, abuse: &str) -> f64 {
    metric(gateway, &format!("blitz_h2_abuse_total{{abuse=\"{abuse}\"}}"))
}

/// Attacks until the connection no longer takes it, with a good client beside.
fn flood(cell: Cell, attack: &Attack) {
    let abuse = attack.label;
    let gateway = Setup::new(cell).h2(&[], "").start();
    let mut good = H2::connect(gateway.address);
    good.send(get(1, "/hello"));
    good.outcome(1);
    let mut h2 = H2::connect(gateway.address);
    h2.send([settings(attack.settings), (attack.begin)()].concat());
    for round in 0..200 {
        let bytes: Vec<u8> = (0..100).flat_map(|n| (attack.repeat)(round * 100 + n)).collect();
        if !h2.try_send(&bytes) || named(&gateway, abuse) > 0.0 {
            break;
        }
    }
    assert_eq!(h2.goaway(), Some(code::ENHANCE_YOUR_CALM), "{abuse}");
    assert!(h2.ends());
    wait_until("the abuse is counted", PATIENCE, || named(&gateway, abuse) > 0.0);
    assert_eq!(metric(&gateway, "blitz_h2_abuse_total"), 1.0, "once, and under one name");
    good.send(get(3, "/hello"));
    assert_eq!(good.outcome(3), Outcome::Answer(200), "a neighbour");
    assert_eq!(metric(&gateway, "blitz_panics_total"), 0.0);
    drop(good);
    gateway.stop();
}

matrix! {
    fn rapid_reset(cell) {
        flood(cell, &abuse::RAPID_RESET);
    }

    fn made_you_reset(cell) {
        flood(cell, &abuse::MADE_YOU_RESET);
    }

    fn made_you_reset_by_windows(cell) {
        flood(cell, &abuse::MADE_YOU_RESET_BY_WINDOWS);
    }

    fn continuation_flood(cell) {
        flood(cell, &abuse::CONTINUATION_FLOOD);
    }

    fn hpack_bomb(cell) {
        flood(cell, &abuse::HPACK_BOMB);
    }

    /// The same, each just beyond the limit and answered with 431, until there are too many.
    fn hpack_bomb_in_small(cell) {
        let gateway = Setup::new(cell).h2(&[], "").start();
        let attack = abuse::HPACK_BOMB_IN_SMALL;
        let mut h2 = H2::connect(gateway.address);
        h2.send([settings(attack.settings), (attack.begin)()].concat());
        let mut answered = 0;
        let last = loop {
            h2.send((attack.repeat)(answered));
            match h2.outcome(2 * answered + 3) {
                Outcome::Answer(431) => answered += 1,
                outcome => break outcome,
            }
        };
        assert_eq!(last, Outcome::GoAway(code::ENHANCE_YOUR_CALM), "after {answered}");
        assert!(answered >= 40, "{answered}");
        assert_eq!(named(&gateway, "hpack_bomb"), 1.0);
        assert!(metric(&gateway, "blitz_errors_total{kind=\"request_head_too_large\"}") >= 40.0);
        gateway.stop();
    }

    fn ping_flood(cell) {
        flood(cell, &abuse::PING_FLOOD);
    }

    fn settings_flood(cell) {
        flood(cell, &abuse::SETTINGS_FLOOD);
    }

    fn priority_flood(cell) {
        flood(cell, &abuse::PRIORITY_FLOOD);
    }

    fn window_update_flood(cell) {
        flood(cell, &abuse::WINDOW_UPDATE_FLOOD);
    }

    fn empty_data_flood(cell) {
        flood(cell, &abuse::EMPTY_DATA_FLOOD);
    }

    fn padding_flood(cell) {
        flood(cell, &abuse::PADDING_FLOOD);
    }

    fn unknown_frame_flood(cell) {
        flood(cell, &abuse::UNKNOWN_FRAME_FLOOD);
    }

    /// Answers that are asked for and given no window end with their streams, and too many with the connection.
    fn stalled_window(cell) {
        let config = "[timeouts]\nsend_progress_ms = 200\n[http2]\nstalled_streams_max = 3\n";
        let gateway = Setup::new(cell).h2(&[], config).start();
        let mut h2 = H2::connect_with(gateway.address, &[(4, 0)]);
        for stream in [1, 3, 5, 7, 9] {
            h2.send(get(stream, "/hello"));
        }
        let first = h2.next_of(kind::RST_STREAM).expect("a stalled stream ends");
        assert_eq!(first.number(0), code::CANCEL);
        assert_eq!(h2.goaway(), Some(code::ENHANCE_YOUR_CALM));
        assert_eq!(named(&gateway, "stalled_window"), 1.0);
        gateway.stop();
    }

    /// A connection that takes nothing of a large answer is cut.
    fn slow_reader(cell) {
        let upstream = Upstream::start(|conn| {
            conn.request()?;
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 256 << 20))?;
            for _ in 0..256 {
                conn.send(vec![b'x'; 1 << 20])?;
            }
            Some(())
        });
        let gateway = Setup::new(cell).h2(&[upstream.address], "[timeouts]\nsend_progress_ms = 300\n").start();
        let mut h2 = H2::connect_with(gateway.address, &[(4, 0x7fff_ffff)]);
        h2.send(window_update(0, 0x7fff_0000));
        h2.send(get(1, "/big"));
        wait_until("it is counted", PATIENCE, || {
            named(&gateway, "slow_reader") + named(&gateway, "stalled_window") > 0.0
        });
        assert_eq!(named(&gateway, "slow_reader"), 1.0);
        assert!(h2.ends());
        wait_until("the endpoint is free", PATIENCE, || gateway.in_flight() == Some(0));
        gateway.stop();
    }

    /// A field block that never ends is cut like a slow head over HTTP/1.
    fn a_head_without_an_end(cell) {
        let gateway = Setup::new(cell).h2(&[], "[timeouts]\nrequest_head_ms = 300\n").start();
        let mut h2 = H2::connect(gateway.address);
        h2.send(headers(1, flag::END_STREAM, &request("GET", "/hello", &[])));
        assert!(h2.ends());
        gateway.stop();
    }

    /// A connection without requests ends in order.
    fn an_idle_connection_is_told_to_go(cell) {
        let gateway = Setup::new(cell).h2(&[], "[timeouts]\nkeep_alive_ms = 300\n").start();
        let mut h2 = H2::connect(gateway.address);
        h2.send(get(1, "/hello"));
        h2.outcome(1);
        let goaway = h2.next_of(kind::GOAWAY).expect("a GOAWAY before the end");
        assert_eq!(goaway.number(4), code::NO_ERROR);
        assert!(h2.ends());
        gateway.stop();
    }
}
