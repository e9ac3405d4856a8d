//! The meter by itself: budgets, faults, and the same verdict however the bytes are split.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const LIMITS: Http2Limits = Http2Limits::RECOMMENDED;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A meter that has seen the preface and the first settings.
fn begun() -> Meter {
    let mut meter = Meter::new(&LIMITS);
    let bytes = [&PREFACE[..], &frame(kind::SETTINGS, 0, 0, &[])].concat();
    assert_eq!(meter.received(&bytes, 0), (bytes.len(), None));
    meter
}

/// Passes bytes to the meter, all that it lets pass and the first fault.
fn pass(meter: &mut Meter, mut bytes: &[u8], now_ms: u64) -> (usize, Vec<BlockEnd>, Option<Fault>) {
    let (mut passed, mut blocks) = (0, Vec::new());
    loop {
        let (count, stop) = meter.received(bytes, now_ms);
        passed += count;
        bytes = &bytes[count..];
        match stop {
            None => return (passed, blocks, None),
            Some(Stop::Block(end)) => blocks.push(end),
            Some(Stop::Fault(fault)) => return (passed, blocks, Some(fault)),
        }
    }
}

/// How many of a frame, each made by `make`, pass at once before the abuse is named.
fn passes(meter: &mut Meter, abuse: Abuse, now_ms: u64, mut make: impl FnMut(u32) -> Vec<u8>) -> u32 {
    for n in 0..1_000_000 {
        match pass(meter, &make(n), now_ms).2 {
            None => {}
            Some(fault) => {
                assert_eq!(fault, Fault::abuse(abuse));
                return n;
            }
        }
    }
    panic!("{abuse:?} is never named");
}

fn open(stream: u32) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS, stream, b"")
}

#[test]
fn each_flood_has_its_budget_and_its_name() {
    let burst = |rate: u32| rate * BURST_SECONDS;
    let plain = |kind: u8, stream: u32, length: usize| move |_: u32| frame(kind, 0, stream, &vec![1; length]);
    let counted = |abuse, make: &dyn Fn(u32) -> Vec<u8>| {
        let mut meter = begun();
        pass(&mut meter, &open(1), 0);
        passes(&mut meter, abuse, 0, make)
    };
    assert_eq!(counted(Abuse::RapidReset, &plain(kind::RST_STREAM, 1, 4)), burst(LIMITS.resets_per_second));
    assert_eq!(counted(Abuse::PingFlood, &plain(kind::PING, 0, 8)), burst(LIMITS.pings_per_second));
    // The first settings count.
    assert_eq!(
        counted(Abuse::SettingsFlood, &plain(kind::SETTINGS, 0, 0)),
        burst(LIMITS.settings_per_second) - 1
    );
    assert_eq!(
        counted(Abuse::PriorityFlood, &plain(kind::PRIORITY, 3, 5)),
        burst(LIMITS.priorities_per_second)
    );
    assert_eq!(
        counted(Abuse::PriorityFlood, &plain(kind::PRIORITY_UPDATE, 0, 5)),
        burst(LIMITS.priorities_per_second)
    );
    assert_eq!(
        counted(Abuse::WindowUpdateFlood, &plain(kind::WINDOW_UPDATE, 0, 4)),
        burst(LIMITS.window_updates_per_second)
    );
    assert_eq!(counted(Abuse::EmptyDataFlood, &plain(kind::DATA, 1, 0)), burst(LIMITS.empty_data_per_second));
    let padding = |_| frame(kind::DATA, flag::PADDED, 1, &[3, 0, 0, 0]);
    assert_eq!(counted(Abuse::EmptyDataFlood, &padding), burst(LIMITS.empty_data_per_second));
    assert_eq!(
        counted(Abuse::UnknownFrameFlood, &plain(0xfa, 0, 1)),
        burst(LIMITS.unknown_frames_per_second)
    );
    assert_eq!(
        counted(Abuse::UnknownFrameFlood, &plain(kind::GOAWAY, 0, 8)),
        burst(LIMITS.unknown_frames_per_second)
    );
    let in_block = |n| frame(if n == 0 { kind::HEADERS } else { kind::CONTINUATION }, 0, 3, b"");
    // HEADERS is the first of them.
    assert_eq!(counted(Abuse::ContinuationFlood, &in_block), LIMITS.continuations_max + 1);
    // Many settings in one frame are as many frames.
    let settings = |_| frame(kind::SETTINGS, 0, 0, &[0xfa; 6 * 2730]);
    assert!(counted(Abuse::SettingsFlood, &settings) <= 1);
}

#[test]
fn a_budget_fills_again_with_time() {
    let mut meter = begun();
    let ping = frame(kind::PING, 0, 0, &[0; 8]);
    let rate = LIMITS.pings_per_second;
    assert_eq!(passes(&mut meter, Abuse::PingFlood, 0, |_| ping.clone()), rate * BURST_SECONDS);
    let mut meter = begun();
    for ms in 0..60_000 {
        // At the rate, for a minute.
        if ms % (1000 / u64::from(rate)) == 0 {
            assert_eq!(pass(&mut meter, &ping, ms).2, None, "at {ms}");
        }
    }
}

#[test]
fn what_is_sent_makes_room_for_what_it_is_answered_with() {
    let mut meter = begun();
    let data = frame(kind::DATA, 0, 1, &[0; 100]);
    pass(&mut meter, &open(1), 0);
    // Two windows and a ping for each DATA frame, for as long as it goes.
    for _ in 0..100_000 {
        meter.sent(&data, 0, |found| panic!("{found:?}"));
        for answer in [
            frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 100]),
            frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 100]),
            frame(kind::PING, 0, 0, &[0; 8]),
        ] {
            assert_eq!(pass(&mut meter, &answer, 0).2, None);
        }
    }
}

#[test]
fn resets_that_the_client_has_caused_count_and_others_do_not() {
    let sent = |code: Code| {
        let mut meter = begun();
        let reset = frame(kind::RST_STREAM, 0, 1, &(code as u32).to_be_bytes());
        (0..10_000).find(|_| {
            let mut is_over = false;
            meter.sent(&reset, 0, |found| is_over |= found == Sent::Fault(Fault::abuse(Abuse::MadeYouReset)));
            is_over
        })
    };
    let burst = LIMITS.faults_per_second * BURST_SECONDS;
    for code in [Code::ProtocolError, Code::FlowControlError, Code::StreamClosed, Code::RefusedStream] {
        assert_eq!(sent(code), Some(burst), "{code:?}");
    }
    for code in [Code::NoError, Code::Cancel, Code::InternalError] {
        assert_eq!(sent(code), None, "{code:?}");
    }
}

#[test]
fn events_that_are_no_frames_have_budgets_too() {
    let mut meter = begun();
    let count = |meter: &mut Meter, abuse| (0..10_000).find(|_| meter.charge(abuse, 1, 0).is_err());
    assert_eq!(count(&mut meter, Abuse::StalledWindow), Some(LIMITS.stalled_streams_max));
    assert_eq!(count(&mut meter, Abuse::HpackBomb), Some(LIMITS.oversize_heads_per_second * BURST_SECONDS));
    assert_eq!(count(&mut meter, Abuse::SlowReader), Some(0));
}

#[test]
fn a_fault_lets_pass_what_is_before_its_frame_and_nothing_of_it() {
    let good = frame(kind::PING, 0, 0, &[0; 8]);
    for (bad, code) in [
        (frame(kind::PING, 0, 1, &[0; 8]), Code::ProtocolError),
        (frame(kind::SETTINGS, 0, 0, &[0, 4, 0xff, 0, 0, 0]), Code::FlowControlError),
        (frame(kind::SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 1, 0, 5, 0, 0, 0, 1]), Code::ProtocolError),
        (frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4]), Code::ProtocolError),
    ] {
        let mut meter = begun();
        let (passed, _, fault) = pass(&mut meter, &[good.clone(), bad, good.clone()].concat(), 0);
        assert_eq!((passed, fault.map(|fault| fault.code)), (good.len(), Some(code)));
    }
}

/// A frame, likely one that means something.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop_oneof![8 => 0_u8..=10, 1 => Just(0x10_u8), 1 => any::<u8>()];
    let flags =
        prop_oneof![4 => Just(0_u8), 4 => Just(4_u8), 2 => Just(5_u8), 2 => Just(8_u8), 1 => any::<u8>()];
    let streams = prop_oneof![4 => Just(0_u32), 8 => 1_u32..12, 1 => any::<u32>()];
    let lengths = prop_oneof![Just(0_usize), Just(4), Just(5), Just(6), Just(8), Just(12), 0_usize..40];
    (kinds, flags, streams, lengths, any::<u8>())
        .prop_map(|(kind, flags, stream, length, fill)| frame(kind, flags, stream, &vec![fill % 4; length]))
}

proptest! {
    #[test]
    fn any_split_gives_the_same_verdict(
        frames in vec(any_frame(), 1..40),
        cuts in vec(1_usize..30, 1..40),
    ) {
        let bytes = [&PREFACE[..], &frame(kind::SETTINGS, 0, 0, &[]), &frames.concat()].concat();
        let mut whole = Meter::new(&LIMITS);
        let (passed, blocks, fault) = pass(&mut whole, &bytes, 0);
        let mut split = Meter::new(&LIMITS);
        let (mut at, mut cut, mut split_passed, mut split_blocks, mut split_fault) = (0, 0, 0, Vec::new(), None);
        while at < bytes.len() && split_fault.is_none() {
            let end = (at + cuts[cut % cuts.len()]).min(bytes.len());
            let (count, ends, found) = pass(&mut split, &bytes[at..end], 0);
            split_passed += count;
            split_blocks.extend(ends);
            split_fault = found;
            (at, cut) = (end, cut + 1);
        }
        prop_assert_eq!(whole.frames(), split.frames());
        prop_assert_eq!(blocks, split_blocks);
        prop_assert_eq!(fault, split_fault);
        // Of the faulty frame a part may have passed before it could be judged, never all of it.
        prop_assert!(split_passed >= passed);
        if fault.is_none() {
            prop_assert_eq!(passed, bytes.len());
            prop_assert_eq!(split_passed, bytes.len());
        }
    }

    #[test]
    fn no_bytes_are_too_much(bytes in vec(any::<u8>(), 0..300)) {
        let mut meter = begun();
        let (passed, ..) = pass(&mut meter, &bytes, 0);
        prop_assert!(passed <= bytes.len());
        meter.sent(&bytes, 0, |_| {});
    }

    #[test]
    fn sent_bytes_may_be_split_anywhere(codes in vec(0_u32..12, 1..300), size in 1_usize..20) {
        let bytes: Vec<u8> =
            codes.iter().flat_map(|code| frame(kind::RST_STREAM, 0, 1, &code.to_be_bytes())).collect();
        let (mut whole, mut split) = (begun(), begun());
        let (mut found, mut found_split) = (0, 0);
        whole.sent(&bytes, 0, |_| found += 1);
        bytes.chunks(size).for_each(|part| split.sent(part, 0, |_| found_split += 1));
        prop_assert_eq!(found, found_split);
    }
}
