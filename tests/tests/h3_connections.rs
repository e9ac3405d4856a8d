//! The life of a connection of QUIC beside its requests: addresses, proof of them, silence, paths, the end.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blitz_tests::h3::{self, H3, code, request};
use blitz_tests::h3raw::headers;
use blitz_tests::{Gateway, Initial, PATIENCE, Pki, Setup, Signal, Upstream, matrix, wait_until};

/// An upstream that answers when it may.
fn waiting(may_answer: &Arc<AtomicBool>) -> Upstream {
    let may_answer = Arc::clone(may_answer);
    Upstream::start(move |conn| {
        conn.request()?;
        wait_until("the answer may be given", 6 * PATIENCE, || may_answer.load(Ordering::SeqCst));
        conn.answer("200 OK", "late")
    })
}

fn under_way(client: &mut H3, gateway: &Gateway, count: i64) {
    wait_until("that many are under way", PATIENCE, || {
        client.turn();
        gateway.in_flight() == Some(count)
    });
}

matrix! {
    /// What comes after GOAWAY is refused in a way that says that it may be sent again (RFC 9114 section 5.2).
    fn requests_behind_goaway_are_rejected(cell) {
        let may_answer = Arc::new(AtomicBool::new(false));
        let upstream = waiting(&may_answer);
        let pki = Pki::edge();
        let mut gateway = Setup::new(cell).h3(&pki, &[upstream.address], "").start();
        let mut client = H3::connect(gateway.address, "edge.test");
        let first = client.begin_get("/");
        under_way(&mut client, &gateway, 1);
        gateway.signal(Signal::Term);
        client.until("GOAWAY comes", |client| client.goaway == Some(4));
        // As a client does that has not heard of it.
        client.send_raw(4, &headers(&request("GET", "/")), true);
        let late = client.outcome(4);
        assert_eq!((late.statuses.len(), late.reset), (0, Some(code::REQUEST_REJECTED)));
        may_answer.store(true, Ordering::SeqCst);
        assert_eq!(client.outcome(first).body, b"late");
        assert_eq!(client.close_code(), (true, code::NO_ERROR));
        assert_eq!(upstream.requests().len(), 1);
        assert!(gateway.wait(PATIENCE).success());
    }

    /// Whoever has come from as many addresses as are kept is sent away in plain words, and comes back.
    fn a_connection_that_has_used_its_paths_is_closed(cell) {
        let pki = Pki::edge();
        let gateway = Setup::new(cell).workers(2).h3(&pki, &[], "").start();
        let mut client = H3::connect(gateway.address, "edge.test");
        let mut changes = 0;
        let closed = loop {
            let id = client.begin_get("/hello");
            let got = client.outcome(id);
            if !got.is_whole {
                break client.close_code();
            }
            client.rebind();
            changes += 1;
            assert!(changes < 40, "paths have no end");
        };
        // The last answer may be ahead of the close.
        assert!(closed == (true, code::NO_ERROR) && (31..=32).contains(&changes), "{closed:?} after {changes}");
        assert_eq!(H3::connect(gateway.address, "edge.test").get("/hello").status(), 200);
        gateway.stop();
    }

    /// While a request is under way a client that only waits is asked for a sign of life; one that gives none is
    /// forgotten, with its request.
    fn silence_is_borne_as_long_as_the_client_lives(cell) {
        const IDLE: Duration = Duration::from_millis(1500);
        let may_answer = Arc::new(AtomicBool::new(false));
        let upstream = waiting(&may_answer);
        let pki = Pki::edge();
        let more = format!("[http3]\nidle_timeout_ms = {}\n", IDLE.as_millis());
        let gateway = Setup::new(cell).h3(&pki, &[upstream.address], &more).start();
        let (mut lives, mut dies) = (H3::connect(gateway.address, "edge.test"), H3::connect(gateway.address, "edge.test"));
        let id = lives.begin_get("/");
        under_way(&mut lives, &gateway, 1);
        dies.begin_get("/");
        under_way(&mut dies, &gateway, 2);
        let begun = Instant::now();
        lives.until("the other is forgotten", |_| begun.elapsed() > 2 * IDLE && gateway.in_flight() == Some(1));
        may_answer.store(true, Ordering::SeqCst);
        assert_eq!(lives.outcome(id).body, b"late", "{begun:?}");
        gateway.stop();
    }

    /// Handshakes that nobody finishes are no reason to ask for proof, or are, as the file has it.
    fn proof_of_an_address_is_asked_for_as_the_file_says(cell) {
        const CROWD: u64 = 3;
        for (retry, is_asked_alone, is_asked_in_a_crowd) in
            [("never", false, false), ("under_pressure", false, true), ("always", true, true)]
        {
            let pki = Pki::edge();
            let toml = pki.h3_listener("handshakes_max = 8") + &format!("[http3]\nretry = \"{retry}\"\n");
            let gateway = Setup::new(cell).config(&toml).start();
            let asked = || gateway.metric("blitz_quic_datagrams_received_total{fate=\"retry\"}");
            assert_eq!(H3::connect(gateway.address, "edge.test").get("/hello").status(), 200);
            let alone = asked();
            assert_eq!(alone > 0, is_asked_alone, "{retry}: {alone}");
            // First flights whose answers nobody takes. Where proof is asked for they are nothing.
            let crowd: Vec<_> = (0..CROWD)
                .map(|_| {
                    let mut client = H3::start(gateway.address, "edge.test", &mut h3::config(), None);
                    client.flush();
                    client
                })
                .collect();
            if !is_asked_alone {
                wait_until("they are under way", PATIENCE, || gateway.metric("blitz_tls_handshakes_active") == CROWD);
            }
            assert_eq!(H3::connect(gateway.address, "edge.test").get("/hello").status(), 200);
            let more = asked() - alone;
            assert_eq!(more > 0, is_asked_in_a_crowd, "{retry}: {more}");
            // Killed: for handshakes that nobody finishes it would wait.
            drop((crowd, gateway));
        }
    }

    /// A client chooses eight bytes at least, so that nobody can guess them (RFC 9000 section 7.2); who chooses fewer
    /// is none, and gets no answer.
    fn a_connection_does_not_begin_with_a_short_connection_id(cell) {
        let said = Initial::new("edge.test");
        for (retry, answered_as) in [("never", "new"), ("always", "retry")] {
            let pki = Pki::edge();
            let toml = pki.h3_listener("") + &format!("[http3]\nretry = \"{retry}\"\n");
            let gateway = Setup::new(cell).config(&toml).start();
            let received =
                |fate| gateway.metric(&format!("blitz_quic_datagrams_received_total{{fate=\"{fate}\"}}"));
            let socket = UdpSocket::bind((gateway.address.ip(), 0)).expect("a socket");
            for length in 0..8_u8 {
                let dcid: Vec<u8> = (0..length).collect();
                socket.send_to(&said.sealed(&dcid, 1200), gateway.address).expect("sent");
            }
            wait_until("all are refused", PATIENCE, || received("malformed") == 8);
            socket.set_nonblocking(true).expect("an option");
            assert!(socket.recv(&mut [0; 1500]).is_err(), "one was answered");
            socket.set_nonblocking(false).expect("an option");
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            socket.send_to(&said.sealed(b"of eight", 1200), gateway.address).expect("sent");
            socket.recv(&mut [0; 1500]).expect("this one is answered");
            assert_eq!((received(answered_as), received("malformed")), (1, 8), "{retry}");
            // Killed: for a handshake that nobody finishes it would wait.
            drop(gateway);
        }
    }

    /// IPv6, and the wildcards of both families: answers come from the address that was asked.
    fn addresses_of_all_kinds(cell) {
        for (listens, asked) in [
            ("[::1]:@PORT@", &["::1"][..]),
            ("0.0.0.0:@PORT@", &["127.0.0.1", "127.1.2.3"]),
            ("[::]:@PORT@", &["::1"]),
        ] {
            let pki = Pki::edge();
            let upstream = Upstream::echoing_targets();
            let toml = blitz_tests::gateway::one_upstream(&[upstream.address], "")
                .replace(blitz_tests::gateway::LISTENER, &pki.h3_listener(""))
                .replace("127.0.0.1:@PORT@", listens);
            let gateway = Setup::new(cell).workers(2).config(&toml).start();
            for host in asked {
                let address = SocketAddr::new(host.parse().expect("an address"), gateway.address.port());
                for n in 0..4 {
                    let mut client = H3::connect(address, "edge.test");
                    assert_eq!(client.get(&format!("/{n}")).body, format!("/{n}").into_bytes(), "{listens} {host}");
                    client.rebind();
                    assert_eq!(client.get("/again").body, b"/again", "{listens} {host}");
                }
            }
            gateway.stop();
        }
    }
}
