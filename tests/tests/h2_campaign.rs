//! Each abuse of HTTP/2 at full speed for a moment, beside good requests on a fixed schedule: none of these fails,
//! memory comes back, and each connection of the attacker ends as it has to. `cargo xtask bench abuse` does the same
//! for longer.

use std::time::Duration;

use blitz_tests::abuse::{self, Attack};
use blitz_tests::{Cell, Io, Mode, require};

/// How long each is attacked.
const LENGTH: Duration = Duration::from_secs(1);

fn run(attack: &Attack) {
    let io = if Cell::available(Io::Uring, Mode::Mp).is_some() { Io::Uring } else { Io::Epoll };
    let cell = Cell { io, mode: Mode::Mp };
    let _alone = require::alone();
    let report = abuse::campaign(cell, attack, LENGTH);
    assert!(report.faults().is_empty(), "{}: {:?}\n{report:#?}", attack.name, report.faults());
}

macro_rules! campaigns {
    ($($name:ident = $attack:ident),+ $(,)?) => {
        $(#[test]
        fn $name() {
            run(&abuse::$attack);
        })+

        #[test]
        fn none_is_left_out() {
            let here: Vec<_> = [$(abuse::$attack),+].iter().map(|attack| attack.name).collect();
            let all: Vec<_> = abuse::ATTACKS.iter().map(|attack| attack.name).collect();
            assert_eq!(here, all);
        }
    };
}

campaigns! {
    rapid_reset = RAPID_RESET,
    rapid_reset_proxied = RAPID_RESET_PROXIED,
    made_you_reset = MADE_YOU_RESET,
    made_you_reset_by_windows = MADE_YOU_RESET_BY_WINDOWS,
    continuation_flood = CONTINUATION_FLOOD,
    hpack_bomb = HPACK_BOMB,
    hpack_bomb_in_small = HPACK_BOMB_IN_SMALL,
    ping_flood = PING_FLOOD,
    settings_flood = SETTINGS_FLOOD,
    priority_flood = PRIORITY_FLOOD,
    window_update_flood = WINDOW_UPDATE_FLOOD,
    empty_data_flood = EMPTY_DATA_FLOOD,
    padding_flood = PADDING_FLOOD,
    unknown_frame_flood = UNKNOWN_FRAME_FLOOD,
    stalled_window = STALLED_WINDOW,
    slow_reader = SLOW_READER,
}
