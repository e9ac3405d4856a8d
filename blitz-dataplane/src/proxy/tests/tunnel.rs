//! Tunnels in virtual time: their deadlines, their ends, and an unkind network.

use std::cell::Cell;
use std::rc::Rc;

use super::{
    BODY, Bench, FIRST_BYTE, KEEP_ALIVE, OK, Peer, TUNNEL_IDLE as IDLE, TUNNEL_LIFETIME as LIFETIME, ms, run,
};
use crate::exchange::upgrade;
use crate::metrics::names::Metric;
use crate::runtime::sim::Profile;

const ASK: &str = "GET /up/ HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

async fn ask(bench: &Bench) -> Peer {
    let mut client = bench.connect().await;
    client.say(ASK);
    let head = client.hear("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client
}

/// How a connection ended that is read to its end: what came, and whether that was all.
async fn end(peer: &mut Peer) -> (String, bool) {
    loop {
        match peer.stream.receive().await {
            Ok(Some(chunk)) => peer.text.push_str(std::str::from_utf8(&chunk).unwrap()),
            ended => return (std::mem::take(&mut peer.text), ended.is_ok()),
        }
    }
}

#[test]
fn no_deadline_of_http_counts_in_a_tunnel() {
    const { assert!(IDLE > BODY && IDLE > FIRST_BYTE && LIFETIME > KEEP_ALIVE) };
    run(Profile::CALM, "", |bench| async move {
        bench.endpoint(|mut peer: Peer, handle| async move {
            peer.hear("\r\n\r\n").await;
            peer.say(SWITCH);
            peer.hear("first").await;
            for _ in 0..10 {
                handle.sleep(ms(IDLE - 100)).await;
                peer.say("x");
            }
            peer.hear("never").await;
        });
        let mut client = ask(&bench).await;
        bench.handle.sleep(ms(IDLE - 100)).await;
        client.say("first");
        let began = bench.handle.now_ms();
        let (text, is_whole) = end(&mut client).await;
        let took = bench.handle.now_ms() - began;
        // Bytes in one direction keep both.
        assert_eq!((text.as_str(), is_whole), ("xxxxxxxxxx", false));
        let expected = 10 * (IDLE - 100) + IDLE;
        assert!((expected..expected + 50).contains(&took), "{took} ms");
        assert_eq!((bench.value(Metric::DeadlineTunnelIdle), bench.value(Metric::TunnelsActive)), (1, 0));
        assert_eq!(bench.value(Metric::TunnelBytesDown), 10);
    });
}

#[test]
fn a_tunnel_ends_with_its_lifetime_however_busy_it_is() {
    run(Profile::CALM, "", |bench| async move {
        bench.endpoint(|mut peer: Peer, handle| async move {
            peer.hear("\r\n\r\n").await;
            peer.say(SWITCH);
            while peer.stream.write_with(|out| out.push(b'x')).is_ok() {
                handle.sleep(ms(100)).await;
            }
        });
        let mut client = ask(&bench).await;
        let began = bench.handle.now_ms();
        let (text, is_whole) = end(&mut client).await;
        let took = bench.handle.now_ms() - began;
        assert!((LIFETIME..LIFETIME + 50).contains(&took), "{took} ms");
        assert!(!is_whole && text.len() > 250, "{}", text.len());
        assert_eq!(bench.value(Metric::DeadlineTunnelLifetime), 1);
    });
}

#[test]
fn a_cut_is_no_end_on_either_side() {
    run(Profile::CALM, "", |bench| async move {
        let cuts = Rc::new(Cell::new(0));
        let seen = Rc::clone(&cuts);
        bench.endpoint(move |mut peer: Peer, _| {
            let seen = Rc::clone(&seen);
            async move {
                peer.hear("\r\n\r\n").await;
                peer.say(SWITCH);
                if peer.hear("cut").await == "cut" {
                    return peer.stream.reset_on_close();
                }
                seen.set(seen.get() + u32::from(!end(&mut peer).await.1));
            }
        });
        let mut client = ask(&bench).await;
        client.say("cut");
        assert!(!end(&mut client).await.1, "the endpoint has cut it");
        let client = ask(&bench).await;
        client.stream.reset_on_close();
        drop(client);
        bench.handle.sleep(ms(100)).await;
        assert_eq!(bench.value(Metric::TunnelsActive), 0);
        assert_eq!((bench.value(Metric::UpstreamActive), cuts.get()), (0, 1));
    });
}

#[test]
fn after_a_refusal_the_next_request_is_http() {
    run(Profile::CALM, "", |bench| async move {
        bench.endpoint(|mut peer: Peer, _| async move {
            while !peer.hear("\r\n\r\n").await.is_empty() {
                peer.say(OK);
            }
        });
        let mut client = bench.connect().await;
        client.say(&format!("{ASK}{ASK}"));
        for _ in 0..2 {
            let head = client.hear("ok").await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        }
        assert_eq!((bench.value(Metric::TunnelsH1), bench.value(Metric::UpstreamReuses)), (0, 1));
    });
}

/// Much in both directions at once, through windows of 700 bytes, with short reads and writes; each side ends when it
/// has said all.
#[test]
fn both_directions_flow_and_end_by_themselves() {
    let narrow = Profile { window_bytes: 700, ..Profile::CALM };
    for profile in [
        Profile::CALM,
        narrow,
        Profile { short_io: true, multishot_end_per_mille: 300, pool_slots: 4, ..narrow },
    ] {
        run(profile, "", |bench| async move {
            const TURNS: usize = 2_000;
            async fn talk(mut peer: Peer, mark: &'static str) -> (String, bool) {
                for turn in 0..TURNS {
                    peer.say(&format!("{mark}{turn}"));
                    if peer.stream.writable().await.is_err() {
                        break;
                    }
                }
                peer.stream.shutdown_write();
                let heard = end(&mut peer).await;
                let _gone = peer.stream.flushed().await;
                heard
            }
            fn all(mark: &str) -> String {
                (0..TURNS).map(|turn| format!("{mark}{turn}")).collect()
            }
            let heard = Rc::new(Cell::new(None));
            let at_endpoint = Rc::clone(&heard);
            bench.endpoint(move |mut peer: Peer, _| {
                let heard = Rc::clone(&at_endpoint);
                async move {
                    peer.hear("\r\n\r\n").await;
                    peer.say(SWITCH);
                    heard.set(Some(talk(peer, "down").await));
                }
            });
            let client = ask(&bench).await;
            assert!(talk(client, "up").await == (all("down"), true));
            bench.handle.sleep(ms(1_000)).await;
            assert!(heard.take() == Some((all("up"), true)));
            assert_eq!(bench.value(Metric::TunnelBytesUp), all("up").len() as u64);
            assert_eq!((bench.value(Metric::TunnelsActive), bench.value(Metric::UpstreamActive)), (0, 0));
        });
    }
}

#[test]
fn the_words_of_these_tests_are_right() {
    let key = *b"dGhlIHNhbXBsZSBub25jZQ==";
    assert!(ASK.contains(std::str::from_utf8(&key).unwrap()));
    assert!(SWITCH.contains(std::str::from_utf8(&upgrade::accept_of(&key)).unwrap()));
}
