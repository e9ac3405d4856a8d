//! Whatever a peer sends: no panic, no descriptor left open, the same frames from every split.
//!
//! Descriptors are counted for the whole process, so the tests of this file take turns.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blitz_ctl_protocol::frame::{self, Decoder, Frame};
use blitz_ctl_protocol::server::{Incoming, Session};
use blitz_ctl_protocol::{DESCRIPTORS_MAX, Error, FRAME_BYTES_MAX, sys};
use proptest::prelude::*;

const TIMEOUT: Duration = Duration::from_secs(10);

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").expect("open").into()
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() }
}

/// Feeds `octets` in pieces, as a reader of a socket would: never beyond what is wanted.
fn decode(octets: &[u8], pieces: &[usize]) -> Result<Vec<Frame>, Error> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    let mut pieces = pieces.iter().copied().cycle();
    let mut rest = octets;
    while !rest.is_empty() {
        let count = pieces.next().unwrap_or(1).clamp(1, decoder.wanted()).min(rest.len());
        let (piece, behind) = rest.split_at(count);
        rest = behind;
        frames.extend(decoder.feed(piece, Vec::new())?);
    }
    assert!(!decoder.is_within(), "the octets were whole frames");
    Ok(frames)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn frames_survive_every_split(
        frames in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..200)), 1..5),
        pieces in prop::collection::vec(1usize..64, 1..20),
    ) {
        let mut octets = Vec::new();
        for (kind, payload) in &frames {
            octets.extend(frame::encode(*kind, payload).expect("small"));
        }
        let decoded = decode(&octets, &pieces).expect("valid");
        let decoded: Vec<_> = decoded.into_iter().map(|frame| (frame.kind, frame.payload)).collect();
        prop_assert_eq!(decoded, frames);
    }

    #[test]
    fn garbage_ends_in_an_error_or_waits_for_more(
        pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..12), 0usize..4), 0..40),
    ) {
        let _turn = turn();
        let before = open_descriptors();
        {
            let mut decoder = Decoder::default();
            for (octets, count) in &pieces {
                let octets = &octets[..octets.len().min(decoder.wanted())];
                let descriptors = (0..*count).map(|_| null()).collect();
                if let Ok(Some(frame)) = decoder.feed(octets, descriptors) {
                    prop_assert!(frame.descriptors.len() <= DESCRIPTORS_MAX);
                    prop_assert!(frame.payload.len() <= FRAME_BYTES_MAX);
                }
            }
        }
        prop_assert_eq!(open_descriptors(), before);
    }

    #[test]
    fn a_session_survives_any_stream(
        hello in any::<bool>(),
        pieces in prop::collection::vec(
            (
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 1..64),
                    (0u16..32, "[ -~]{0,60}").prop_map(|(kind, text)| frame::encode(kind, text.as_bytes()).expect("small")),
                    (15u16..28, prop_oneof![
                        Just("{}"),
                        Just(r#"{"source":"192.0.2.1"}"#),
                        Just(r#"{"after":null}"#),
                        Just(r#"{"protocol":"udp","address":"127.0.0.1:53"}"#),
                    ])
                        .prop_map(|(kind, text)| frame::encode(kind, text.as_bytes()).expect("small")),
                ],
                prop_oneof![4 => Just(0usize), 2 => Just(1), 1 => Just(8), 1 => Just(9)],
            ),
            0..8,
        ),
    ) {
        let _turn = turn();
        let before = open_descriptors();
        {
            let (ours, theirs) = UnixStream::pair().expect("pair");
            let descriptor = null();
            if hello {
                let octets = frame::encode(1, br#"{"versions":[0],"name":"x"}"#).expect("small");
                sys::send(theirs.as_fd(), &octets, &[]).expect("send");
            }
            for (octets, count) in &pieces {
                sys::send(theirs.as_fd(), octets, &vec![descriptor.as_fd(); *count]).expect("send");
            }
            theirs.shutdown(std::net::Shutdown::Write).expect("shutdown");
            if let Ok(mut session) = Session::accept(ours, TIMEOUT, |_| Ok(())) {
                loop {
                    match session.next(Some(TIMEOUT)) {
                        Ok(Incoming::GiveDescriptor(given)) => prop_assert!(given.try_clone().is_ok()),
                        Ok(_) => {}
                        Err(Error::TimedOut) => prop_assert!(false, "the stream has an end"),
                        Err(_) => break,
                    }
                }
            }
        }
        prop_assert_eq!(open_descriptors(), before);
    }
}

#[test]
fn a_descriptor_without_a_place_is_closed_and_refused() {
    let _turn = turn();
    let before = open_descriptors();
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let (mut reader, writer) = std::io::pipe().expect("pipe");
    let hello = frame::encode(1, br#"{"versions":[0],"name":"x"}"#).expect("small");
    sys::send(theirs.as_fd(), &hello, &[]).expect("send");
    let status = frame::encode(22, b"{}").expect("small");
    sys::send(theirs.as_fd(), &status, &[writer.as_fd()]).expect("send");
    drop(writer);
    let mut session = Session::accept(ours, TIMEOUT, |_| Ok(())).expect("hello");
    let error = session.next(Some(TIMEOUT)).expect_err("a status takes no descriptor");
    assert!(matches!(error, Error::Descriptors { found: 1, expected: 0 }), "{error}");
    // The copy is closed: the pipe has ended although the session lives.
    let mut text = String::new();
    std::io::Read::read_to_string(&mut reader, &mut text).expect("the last writer is gone");
    assert!(matches!(session.next(Some(TIMEOUT)), Err(Error::Closed)));
    drop((session, theirs, reader));
    assert_eq!(open_descriptors(), before);
}

#[test]
fn descriptors_spread_over_a_frame_are_counted_together() {
    let _turn = turn();
    let before = open_descriptors();
    {
        let mut decoder = Decoder::default();
        let octets = frame::encode(26, b"{}").expect("small");
        for octet in &octets[..DESCRIPTORS_MAX] {
            assert!(decoder.feed(&[*octet], vec![null()]).expect("within bounds").is_none());
        }
        let error = decoder.feed(&octets[8..9], vec![null()]).expect_err("one too many");
        assert!(matches!(error, Error::Descriptors { found: 9, .. }), "{error}");
        assert!(!decoder.is_within());
    }
    assert_eq!(open_descriptors(), before);
}

#[test]
fn lengths_have_two_bounds() {
    let feed = |length: u32| {
        let mut decoder = Decoder::default();
        decoder.feed(&length.to_le_bytes(), Vec::new()).map(|frame| frame.is_some())
    };
    assert!(matches!(feed(3), Err(Error::Length(3))));
    assert!(matches!(feed(4), Ok(false)));
    assert!(matches!(feed(FRAME_BYTES_MAX as u32), Ok(false)));
    assert!(matches!(feed(FRAME_BYTES_MAX as u32 + 1), Err(Error::Length(_))));
    assert!(frame::encode(1, &vec![b' '; FRAME_BYTES_MAX - 4]).is_ok());
    assert!(matches!(frame::encode(1, &vec![b' '; FRAME_BYTES_MAX - 3]), Err(Error::TooLarge(_))));
    let mut reserved = frame::encode(1, b"{}").expect("small");
    reserved[7] = 1;
    assert!(matches!(Decoder::default().feed(&reserved[..8], Vec::new()), Err(Error::Reserved(256))));
}
