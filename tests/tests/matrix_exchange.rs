//! What every exchange has to be, whatever protocol either side speaks: one function for a feature, run over
//! {HTTP/1.1, HTTP/2, HTTP/3, HTTP/3 by AF_XDP} x {HTTP/1.1, HTTP/2}.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blitz_tests::pair::{Endpoint, Http, Length, Pair, Served};
use blitz_tests::{Gateway, PATIENCE, pairs, wait_until};

fn is_free(gateway: &Gateway) {
    wait_until("the endpoint is free", PATIENCE, || gateway.in_flight() == Some(0));
}

/// An endpoint that takes the request whole and answers with its method, body and trailers.
fn mirror(pair: Pair<'_>, length: fn(usize) -> Length) -> Endpoint {
    pair.endpoint(move |served| {
        let (body, trailers) = served.body()?;
        let text = format!("{} {} {trailers}", served.method(), String::from_utf8_lossy(&body));
        served.head(200, &[("x-seen", "1")], length(text.len()))?;
        if served.method() != "HEAD" {
            served.data(text.as_bytes())?;
            served.end(&[])?;
        }
        Some(())
    })
}

pairs! {
    fn get(pair) {
        for length in [Length::Known as fn(usize) -> Length, |_| Length::Unknown] {
            let endpoint = mirror(pair, length);
            let gateway = pair.gateway(endpoint.address(), "");
            let answer = pair.call(&gateway, "GET", &[], Length::None).answer();
            assert_eq!((answer.status, answer.body.as_slice()), (200, &b"GET  "[..]));
            let via = if pair.up == Http::H1 { "1.1 blitz" } else { "2 blitz" };
            assert_eq!((answer.field("x-seen"), answer.field("via")), (Some("1"), Some(via)));
            assert!(answer.is_whole);
            gateway.stop();
        }
    }

    fn head(pair) {
        let endpoint = pair.endpoint(|served| {
            let length = if served.method() == "HEAD" { Length::Known(1234) } else { Length::None };
            match served {
                // Over HTTP/2 the stream ends with the head.
                Served::H2 { conn, stream } => {
                    conn.answer_head(*stream, 1, 200, &[("content-length", "1234")])
                }
                served => served.head(200, &[], length),
            }
        });
        let gateway = pair.gateway(endpoint.address(), "");
        let answer = pair.call(&gateway, "HEAD", &[], Length::None).answer();
        assert_eq!((answer.status, answer.field("content-length"), answer.body.len()), (200, Some("1234"), 0));
        assert!(answer.is_whole);
        gateway.stop();
    }

    fn post_of_known_length(pair) {
        let endpoint = mirror(pair, Length::Known);
        let gateway = pair.gateway(endpoint.address(), "");
        for pieces in [&["abc", "def"][..], &[]] {
            let body = pieces.concat();
            let mut call = pair.call(&gateway, "POST", &[], Length::Known(body.len()));
            for piece in pieces {
                call.data(piece.as_bytes());
            }
            call.end(&[]);
            assert_eq!(call.answer().body, format!("POST {body} ").into_bytes());
        }
        gateway.stop();
    }

    fn post_of_unknown_length(pair) {
        let endpoint = mirror(pair, |_| Length::Unknown);
        let gateway = pair.gateway(endpoint.address(), "");
        let mut call = pair.call(&gateway, "POST", &[], Length::Unknown);
        for piece in ["a", "bc", "def"] {
            call.data(piece.as_bytes());
        }
        call.end(&[]);
        assert_eq!(call.answer().body, b"POST abcdef ");
        drop(call);
        gateway.stop();
    }

    fn trailers_both_ways(pair) {
        let endpoint = pair.endpoint(|served| {
            let (_, trailers) = served.body()?;
            served.head(200, &[("trailer", "x-back")], Length::Unknown)?;
            served.data(trailers.as_bytes())?;
            served.end(&[("x-back", "2"), ("x-more", "3")])
        });
        let gateway = pair.gateway(endpoint.address(), "");
        let mut call = pair.call(&gateway, "POST", &[("te", "trailers")], Length::Unknown);
        call.data(b"body");
        call.end(&[("x-forth", "1")]);
        let answer = call.answer();
        assert_eq!(String::from_utf8_lossy(&answer.body), "x-forth: 1\r\n");
        assert_eq!(answer.trailers, "x-back: 2\r\nx-more: 3\r\n");
        assert!(answer.is_whole);
        drop(call);
        gateway.stop();
    }

    /// The body waits for the endpoint's invitation, and the endpoint's answer comes behind it.
    fn a_client_that_waits_for_100(pair) {
        let endpoint = pair.endpoint(|served| {
            assert_eq!(served.field("expect").as_deref(), Some("100-continue"));
            served.interim(100, &[])?;
            let (body, _) = served.body()?;
            served.head(200, &[], Length::Known(body.len()))?;
            served.data(&body)?;
            served.end(&[])
        });
        let gateway = pair.gateway(endpoint.address(), "");
        let mut call = pair.call(&gateway, "POST", &[("expect", "100-continue")], Length::Known(4));
        assert_eq!(call.head().0, 100);
        call.data(b"body");
        call.end(&[]);
        assert_eq!(call.answer().body, b"body");
        drop(call);
        gateway.stop();
    }

    fn early_hints(pair) {
        let endpoint = pair.endpoint(|served| {
            served.interim(103, &[("link", "</a.css>")])?;
            served.interim(103, &[("link", "</b.css>")])?;
            served.head(200, &[], Length::Known(2))?;
            served.data(b"ok")?;
            served.end(&[])
        });
        let gateway = pair.gateway(endpoint.address(), "");
        let mut call = pair.call(&gateway, "GET", &[], Length::None);
        for hint in ["</a.css>", "</b.css>"] {
            let (status, fields) = call.head();
            assert_eq!((status, blitz_tests::hpack::find(&fields, "link")), (103, Some(hint)));
        }
        assert_eq!(call.answer().body, b"ok");
        drop(call);
        gateway.stop();
    }

    /// An answer that comes while the body is still on its way reaches the client then.
    fn an_early_answer(pair) {
        let endpoint = pair.endpoint(|served| {
            served.head(403, &[], Length::Known(2))?;
            served.data(b"no")?;
            served.end(&[])?;
            served.until_given_up();
            None
        });
        let gateway = pair.gateway(endpoint.address(), "");
        let mut call = pair.call(&gateway, "POST", &[], Length::Unknown);
        call.data(b"the beginning");
        let answer = call.answer();
        assert_eq!((answer.status, answer.body.as_slice(), answer.is_whole), (403, &b"no"[..], true));
        is_free(&gateway);
        drop(call);
        gateway.stop();
    }

    /// Both directions flow at once and nothing is held back: each piece waits for the one that answers it.
    fn both_directions_at_once(pair) {
        let endpoint = pair.endpoint(|served| {
            served.head(200, &[], Length::Unknown)?;
            while let Some(piece) = served.piece() {
                served.data(&piece)?;
            }
            served.end(&[])
        });
        let gateway = pair.gateway(endpoint.address(), "");
        let mut call = pair.call(&gateway, "POST", &[], Length::Unknown);
        call.data(b"first");
        let (status, fields) = call.head();
        assert_eq!((status, call.piece(5).as_slice()), (200, &b"first"[..]));
        for number in 0..50 {
            let piece = format!("piece {number:>4}");
            call.data(piece.as_bytes());
            assert_eq!(call.piece(piece.len()), piece.as_bytes());
        }
        call.end(&[]);
        assert!(call.rest(status, fields).is_whole);
        drop(call);
        gateway.stop();
    }

    /// A client that gives up frees the endpoint at every stage, and the endpoint learns of it.
    fn a_client_that_gives_up(pair) {
        for stage in ["uploading", "waiting", "answering"] {
            let (told, is_told) = mpsc::channel();
            let told = Mutex::new(told);
            let endpoint = pair.endpoint(move |served| {
                let tell = |what: &str| told.lock().is_ok_and(|told| told.send(what.to_owned()).is_ok());
                if stage != "uploading" {
                    served.body()?;
                }
                if stage == "answering" {
                    served.head(200, &[], Length::Unknown)?;
                    served.data(b"the beginning")?;
                }
                tell("has it");
                served.until_given_up();
                tell("given up");
                Some(())
            });
            let gateway = pair.gateway(endpoint.address(), "");
            let mut call = pair.call(&gateway, "POST", &[], Length::Unknown);
            call.data(b"x");
            if stage != "uploading" {
                call.end(&[]);
            }
            assert_eq!(is_told.recv_timeout(PATIENCE).as_deref(), Ok("has it"), "{stage}");
            if stage == "answering" {
                assert_eq!(call.head().0, 200);
            }
            let connection = call.cancel();
            assert_eq!(is_told.recv_timeout(PATIENCE).as_deref(), Ok("given up"), "{stage}");
            is_free(&gateway);
            drop(connection);
            gateway.stop();
        }
    }

    /// An endpoint that breaks off: 502 before the answer has begun, and afterwards an answer that does not look whole.
    fn an_endpoint_that_breaks_off(pair) {
        for stage in ["at once", "after the request", "behind the head", "within the body", "while uploading"] {
            let endpoint = pair.endpoint(move |served| {
                if !matches!(stage, "at once" | "while uploading") {
                    served.body()?;
                }
                if stage == "while uploading" {
                    served.piece()?;
                }
                if matches!(stage, "behind the head" | "within the body") {
                    served.head(200, &[], Length::Unknown)?;
                }
                if stage == "within the body" {
                    served.data(b"the beginning")?;
                }
                served.break_off()
            });
            let gateway = pair.gateway(endpoint.address(), "");
            let mut call = pair.call(&gateway, "POST", &[], Length::Unknown);
            call.data(b"x");
            if stage != "while uploading" {
                call.end(&[]);
            }
            let answer = call.outcome();
            if matches!(stage, "behind the head" | "within the body") {
                let is_cut = answer.as_ref().is_none_or(|answer| answer.status == 200 && !answer.is_whole);
                assert!(is_cut, "{stage}: {answer:?}");
            } else {
                assert_eq!(answer.map(|answer| (answer.status, answer.is_whole)), Some((502, true)), "{stage}");
            }
            is_free(&gateway);
            drop(call);
            gateway.stop();
        }
    }

    /// A client that sends slowly, byte by byte, is waited for.
    fn a_slow_writer(pair) {
        let endpoint = mirror(pair, Length::Known);
        let gateway = pair.gateway(endpoint.address(), "[timeouts]\nrequest_body_progress_ms = 1000\n");
        let mut call = pair.call(&gateway, "POST", &[], Length::Known(10));
        for _ in 0..10 {
            call.data(b"x");
            // Longer in all than the deadline between two of them.
            std::thread::sleep(Duration::from_millis(150));
        }
        call.end(&[]);
        assert_eq!(call.answer().body, b"POST xxxxxxxxxx ");
        drop(call);
        gateway.stop();
    }

    /// A client that does not read stops the endpoint, and gets all of it when it reads.
    fn a_slow_reader(pair) {
        const PIECE: usize = 1 << 16;
        let (sent, is_over) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(false)));
        let (count, over) = (Arc::clone(&sent), Arc::clone(&is_over));
        let endpoint = pair.endpoint(move |served| {
            served.head(200, &[], Length::Unknown)?;
            while over.lock().is_ok_and(|over| !*over) {
                served.data(&[b'x'; PIECE])?;
                *count.lock().ok()? += 1;
            }
            served.end(&[])
        });
        let gateway = pair.gateway(endpoint.address(), "");
        let mut call = pair.call(&gateway, "GET", &[], Length::None);
        let (status, fields) = call.head();
        let pieces = || sent.lock().map_or(0, |sent| *sent);
        // Until it goes no further.
        let mut last = (pieces(), std::time::Instant::now());
        wait_until("the endpoint is stopped", 3 * PATIENCE, || {
            call.turn();
            if pieces() != last.0 {
                last = (pieces(), std::time::Instant::now());
            }
            last.1.elapsed() > Duration::from_millis(500)
        });
        let in_between = last.0 * PIECE;
        assert!(in_between < 64 << 20, "{} MiB are in between", in_between >> 20);
        if let Ok(mut over) = is_over.lock() {
            *over = true;
        }
        let answer = call.rest_with_window(status, fields);
        assert!(answer.is_whole);
        assert_eq!(answer.body.len(), pieces() * PIECE);
        drop(call);
        gateway.stop();
    }
}
