//! Exchanges over HTTP/3, in front of HTTP/1.1 upstreams: a real client where the client does not matter, one that does
//! as it is told where it does.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blitz_tests::h3::{self, H3, code, request};
use blitz_tests::tls::{Algorithm, TlsClient};
use blitz_tests::{Cell, Gateway, PATIENCE, Pki, Setup, Signal, Upstream, matrix, require, wait_until};

/// Bytes of a large transfer; much larger ones are in `matrix_large.rs`.
const LARGE: usize = 16 << 20;
/// Bytes of a transfer that is held up: more than twice what the kernel and the client take without being read.
const SLOW: usize = 40 << 20;
/// Resident memory of one worker, at most, while it moves bodies.
const WORKER_BYTES_MAX: u64 = 40 << 20;

fn start(cell: Cell, endpoints: &[std::net::SocketAddr], more: &str) -> (Pki, Gateway) {
    let pki = Pki::edge();
    let gateway = Setup::new(cell).h3(&pki, endpoints, more).start();
    (pki, gateway)
}

fn echoing() -> Upstream {
    Upstream::start(|conn| {
        loop {
            let request = conn.request()?;
            let body = if request.body.is_empty() { b"nothing".to_vec() } else { request.body };
            if request.head.starts_with("HEAD") {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n")?;
            } else {
                conn.answer("200 OK", body)?;
            }
        }
    })
}

matrix! {
    fn get_head_and_post(cell) {
        let upstream = echoing();
        let (_pki, gateway) = start(cell, &[upstream.address], "");
        let mut client = H3::connect(gateway.address, "edge.test");
        let got = client.get("/a?b");
        assert_eq!((got.status(), got.body.as_slice(), got.field("via")), (200, &b"nothing"[..], Some("1.1 blitz")));
        assert!(got.field("date").is_some() && got.field("alt-svc").is_none());
        let last = upstream.last_request();
        assert_eq!((last.target(), last.field("via"), last.field("host")), ("/a?b", Some("3 blitz"), Some("edge.test")));
        assert!(last.field("forwarded").is_some_and(|it| it.contains("proto=https")), "{}", last.head);
        let id = client.begin(&request("HEAD", "/"), true);
        let head = client.outcome(id);
        assert_eq!((head.status(), head.field("content-length"), head.body.len()), (200, Some("7"), 0));
        assert_eq!(client.post("/x", b"a body").body, b"a body");
        assert_eq!(upstream.last_request().field("transfer-encoding"), Some("chunked"));
        let fields = [&request("PUT", "/x")[..], &[("content-length", "3")]].concat();
        let id = client.begin(&fields, false);
        client.send(id, b"put", true);
        assert_eq!(client.outcome(id).body, b"put");
        assert_eq!(upstream.last_request().field("content-length"), Some("3"));
        assert_eq!(gateway.metric("blitz_requests_total{protocol=\"h3\",status=\"2xx\"}"), 4);
        let shown = gateway.admin("/connections").text();
        assert!(shown.contains("\"requests\": 4"), "{shown}");
        drop(client);
        gateway.stop();
    }

    fn bodies_of_any_size_both_ways_in_little_memory(cell) {
        let received = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&received);
        let upstream = Upstream::start(move |conn| {
            let mut request = conn.head()?;
            conn.body(&mut request)?;
            counted.store(request.body_bytes, Ordering::SeqCst);
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"))?;
            let piece = vec![b'x'; 1 << 20];
            (0..LARGE >> 20).try_for_each(|_| conn.send(&piece))
        });
        let (_pki, gateway) = start(cell, &[upstream.address], "");
        let mut client = H3::connect(gateway.address, "edge.test");
        let (got, peak) = gateway.peak_memory(|| client.post("/", &vec![b'y'; LARGE]));
        assert_eq!((got.status(), got.is_whole, got.body.len()), (200, true, LARGE));
        assert!(got.body.iter().all(|byte| *byte == b'x'));
        assert_eq!(received.load(Ordering::SeqCst), LARGE as u64);
        assert!(peak < WORKER_BYTES_MAX, "{peak} bytes");
        gateway.stop();
    }

    fn many_streams_at_once(cell) {
        let upstream = Upstream::echoing_targets();
        let (_pki, gateway) = start(cell, &[upstream.address], "");
        let mut client = H3::connect(gateway.address, "edge.test");
        for round in 0..4 {
            let ids: Vec<_> = (0..100).map(|n| (n, client.begin_get(&format!("/{round}/{n}")))).collect();
            for (n, id) in ids {
                let got = client.outcome(id);
                assert_eq!((got.status(), got.body), (200, format!("/{round}/{n}").into_bytes()));
            }
        }
        wait_until("nothing is under way", PATIENCE, || gateway.in_flight() == Some(0));
        gateway.stop();
    }

    fn trailers_crumbs_and_interim_answers_pass(cell) {
        let upstream = Upstream::start(|conn| {
            let request = conn.request()?;
            conn.record(request);
            conn.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
                HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n")
        });
        let (_pki, gateway) = start(cell, &[upstream.address], "");
        let mut client = H3::connect(gateway.address, "edge.test");
        let fields = [&request("POST", "/")[..], &[("cookie", "a=b"), ("te", "trailers"), ("cookie", "c=d")]].concat();
        let id = client.begin(&fields, false);
        client.send(id, b"body", false);
        client.send_trailers(id, &[("x-sum", "9")]);
        let got = client.outcome(id);
        assert_eq!((got.statuses.as_slice(), got.body.as_slice()), (&[103, 200][..], &b"abc"[..]));
        assert_eq!(got.trailers, [("x-sum".to_owned(), "7".to_owned())]);
        let last = upstream.last_request();
        assert_eq!((last.body.as_slice(), last.trailers.to_lowercase().trim()), (&b"body"[..], "x-sum: 9"));
        assert_eq!(last.fields("cookie"), "a=b; c=d");
        gateway.stop();
    }

    fn a_reader_that_does_not_read_stops_the_upstream(cell) {
        let sent = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&sent);
        let upstream = Upstream::start(move |conn| {
            conn.request()?;
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SLOW}\r\n\r\n"))?;
            let piece = vec![b'x'; 64 << 10];
            (0..SLOW >> 16).try_for_each(|_| {
                conn.send(&piece)?;
                counted.fetch_add(piece.len() as u64, Ordering::SeqCst);
                Some(())
            })
        });
        let (_pki, gateway) = start(cell, &[upstream.address], "");
        let mut client = H3::connect(gateway.address, "edge.test");
        let id = client.begin_get("/");
        client.hold(id, true);
        client.until("the head comes", |client| !client.got(id).statuses.is_empty());
        // As much as the client's window, the gateway's own room and the kernel's take, and then no more.
        let mut before = 0;
        let mut quiet = 0;
        while quiet < 40 {
            client.turn();
            let now = sent.load(Ordering::SeqCst);
            quiet = if now == before { quiet + 1 } else { 0 };
            before = now;
        }
        assert!(before < (SLOW / 2) as u64, "{before} bytes were taken from the upstream");
        client.hold(id, false);
        client.until("the upstream goes on", |client| client.got(id).body_bytes > before);
        drop(client);
        gateway.stop();
    }

    fn who_gives_up_frees_the_upstream(cell) {
        let upstream = Upstream::never_answering();
        let (_pki, gateway) = start(cell, &[upstream.address], "");
        let mut client = H3::connect(gateway.address, "edge.test");
        let (get, post) = (client.begin_get("/"), client.begin(&request("POST", "/"), false));
        client.send(post, b"some", false);
        wait_until("both are under way", PATIENCE, || { client.turn(); gateway.in_flight() == Some(2) });
        client.cancel(get);
        client.cancel(post);
        wait_until("nothing is under way", PATIENCE, || { client.turn(); gateway.in_flight() == Some(0) });
        // A client that leaves without a word about its requests.
        client.begin_get("/");
        wait_until("one is under way", PATIENCE, || { client.turn(); gateway.in_flight() == Some(1) });
        client.quic.close(true, code::NO_ERROR, b"").expect("it is open");
        wait_until("nothing is under way", PATIENCE, || { client.turn(); gateway.in_flight() == Some(0) });
        gateway.stop();
    }

    fn wrong_requests_end_their_stream_and_nothing_else(cell) {
        let upstream = echoing();
        let (_pki, gateway) = start(cell, &[upstream.address], "[http]\nrequest_head_bytes_max = 2048\n");
        let mut client = H3::connect(gateway.address, "edge.test");
        let get = request("GET", "/");
        let malformed: &[&[(&str, &str)]] = &[
            &get[1..],
            &[get[0], get[0], get[1], get[2], get[3]],
            &[get[0], get[1], get[2], get[3], ("connection", "close")],
            &[get[0], get[1], get[2], get[3], ("x", "a\nb")],
            &[get[0], get[1], get[2], get[3], ("content-length", "5")],
        ];
        for fields in malformed {
            let id = client.begin(fields, true);
            let got = client.outcome(id);
            assert_eq!((got.statuses.as_slice(), got.reset), (&[][..], Some(code::MESSAGE_ERROR)), "{fields:?}");
        }
        let long = "x".repeat(3000);
        let refused: &[(&[(&str, &str)], u16)] = &[
            (&[get[0], get[1], get[2], (":path", "/..%2f/%zz")], 400),
            (&[get[0], (":scheme", "http"), get[2], get[3]], 421),
            (&[get[0], get[1], get[2], get[3], ("x", &long)], 431),
        ];
        for (fields, status) in refused {
            let id = client.begin(fields, true);
            assert_eq!(client.outcome(id).status(), *status, "{fields:?}");
        }
        // More, and less, than was said.
        for (length, body) in [("2", "abc"), ("9", "abc")] {
            let fields = [&request("POST", "/")[..], &[("content-length", length)]].concat();
            let id = client.begin(&fields, false);
            client.send(id, body.as_bytes(), true);
            assert_eq!(client.outcome(id).reset, Some(code::MESSAGE_ERROR), "{length}");
        }
        assert_eq!(client.get("/").status(), 200, "the connection goes on");
        wait_until("nothing is under way", PATIENCE, || gateway.in_flight() == Some(0));
        gateway.stop();
    }

    fn a_head_far_beyond_the_limit_ends_the_connection(cell) {
        let (_pki, gateway) = start(cell, &[], "[http]\nrequest_head_bytes_max = 2048\n");
        let mut client = H3::connect(gateway.address, "edge.test");
        let long = "x".repeat(9_000);
        client.begin(&[&request("GET", "/hello")[..], &[("x", &long)]].concat(), true);
        assert_eq!(client.close_code(), (true, code::EXCESSIVE_LOAD));
        gateway.stop();
    }

    fn whoever_resets_without_end_is_closed(cell) {
        let (_pki, gateway) = start(cell, &[], "[http3]\nresets_per_second = 5\n");
        let mut client = H3::connect(gateway.address, "edge.test");
        for _ in 0..100 {
            let id = client.begin(&request("POST", "/echo/x"), false);
            client.cancel(id);
            client.turn();
            if client.quic.is_draining() {
                break;
            }
        }
        assert_eq!(client.close_code(), (true, code::EXCESSIVE_LOAD));
        gateway.stop();
    }

    fn draining_finishes_what_is_under_way(cell) {
        let may_answer = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&may_answer);
        let upstream = Upstream::start(move |conn| {
            conn.request()?;
            wait_until("the answer may be given", PATIENCE, || asked.load(Ordering::SeqCst));
            conn.answer("200 OK", "late")
        });
        let (_pki, mut gateway) = start(cell, &[upstream.address], "");
        let (mut busy, mut idle) = (H3::connect(gateway.address, "edge.test"), H3::connect(gateway.address, "edge.test"));
        let id = busy.begin_get("/");
        wait_until("it is under way", PATIENCE, || { busy.turn(); gateway.in_flight() == Some(1) });
        gateway.signal(Signal::Term);
        busy.until("GOAWAY comes", |client| client.goaway == Some(4));
        may_answer.store(true, Ordering::SeqCst);
        let got = busy.outcome(id);
        assert_eq!((got.status(), got.body.as_slice()), (200, &b"late"[..]));
        assert_eq!(idle.close_code(), (true, code::NO_ERROR));
        assert_eq!(busy.close_code(), (true, code::NO_ERROR));
        assert!(gateway.wait(PATIENCE).success());
    }

    fn alternatives_are_announced_over_tls_only(cell) {
        let upstream = echoing();
        let (pki, gateway) = start(cell, &[upstream.address], "");
        let value = format!("h3=\":{}\"; ma=86400", gateway.address.port());
        let mut client = TlsClient::connect(gateway.address, "edge.test", &pki.client().build()).expect("a handshake");
        let answer = client.get("/").expect("an answer");
        assert!(answer.contains(&format!("Alt-Svc: {value}\r\n")), "{answer}");
        require!("curl");
        let ca = pki.path("ca.crt");
        std::fs::write(&ca, &pki.authority.certificate).expect("a file");
        let address = gateway.address;
        let output = Command::new("curl")
            .args(["-sS", "--http2", "-D", "-", "-o", "/dev/null", "--noproxy", "*", "--cacert"])
            .arg(&ca)
            .args(["--resolve", &format!("edge.test:{}:127.0.0.1", address.port())])
            .arg(format!("https://edge.test:{}/", address.port()))
            .output()
            .expect("curl runs");
        let head = String::from_utf8_lossy(&output.stdout);
        assert!(head.starts_with("HTTP/2 200") && head.contains(&format!("alt-svc: {value}")), "{head}");
        gateway.stop();
    }

    fn certificates_follow_the_name_and_reloads(cell) {
        let pki = Pki::edge();
        pki.certificate("other", &["other.test", "*.wild.test"], Algorithm::Rsa);
        let toml = pki.listener(&["edge", "other"], "").replace("[\"h1\"]", "[\"h1\", \"h3\"]");
        let gateway = Setup::new(cell).config(&toml).start();
        let shown = |name: &str| {
            let client = H3::connect(gateway.address, name);
            client.quic.peer_cert().expect("a certificate").to_vec()
        };
        let on_disk = |name: &str| blitz_tests::tls::der(&blitz_tests::tls::read(&pki.path(&format!("{name}.crt"))));
        for (name, pair) in [("edge.test", "edge"), ("OTHER.test", "other"), ("a.wild.test", "other"), ("nobody", "edge")] {
            assert_eq!(shown(name), on_disk(pair), "{name}");
        }
        let mut before = H3::connect(gateway.address, "edge.test");
        pki.certificate("edge", &["edge.test"], Algorithm::Ecdsa);
        gateway.signal(Signal::Hup);
        wait_until("new connections get the new one", PATIENCE, || shown("edge.test") == on_disk("edge"));
        assert_eq!(before.get("/hello").status(), 200, "old connections go on");
        // Without HTTP/3 there is nobody at the port.
        gateway.write_config(&toml.replace(", \"h3\"", ""));
        gateway.signal(Signal::Hup);
        before.until("old connections are told", |client| client.goaway.is_some() || client.quic.is_draining());
        gateway.stop();
    }

    fn retry_proves_the_address_on_every_worker(cell) {
        let pki = Pki::edge();
        let gateway = Setup::new(cell).workers(3).h3(&pki, &[], "[http3]\nretry = \"always\"\n").start();
        for _ in 0..6 {
            assert_eq!(H3::connect(gateway.address, "edge.test").get("/hello").body, b"Hello from Blitz\n");
        }
        // A first flight is two datagrams where the key is a large one, and each is answered.
        let asked = gateway.metric("blitz_quic_datagrams_received_total{fate=\"retry\"}");
        assert!((6..=12).contains(&asked), "{asked}");
        gateway.stop();
    }

    fn other_versions_are_told_which_one_is_spoken(cell) {
        let (_pki, gateway) = start(cell, &[], "");
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut initial = vec![0xc0, 0xfa, 0xfb, 0xfc, 0xfd, 8, 1, 2, 3, 4, 5, 6, 7, 8, 3, 9, 9, 9];
        // Too short for an answer.
        socket.send_to(&initial, gateway.address).expect("it is sent");
        initial.resize(1200, 0);
        socket.send_to(&initial, gateway.address).expect("it is sent");
        let mut answer = [0; 1500];
        let (length, _) = socket.recv_from(&mut answer).expect("an answer");
        assert_eq!(&answer[1..5], [0; 4], "version negotiation");
        assert_eq!(&answer[5..18], [3, 9, 9, 9, 8, 1, 2, 3, 4, 5, 6, 7, 8], "connection IDs the other way round");
        assert!(answer[18..length].chunks(4).any(|version| version == [0, 0, 0, 1]));
        // Rubbish of any kind is dropped, and the gateway goes on.
        for length in [1, 5, 20, 1200] {
            for first in [0x00, 0x40, 0x80, 0xc0, 0xff] {
                socket.send_to(&vec![first; length], gateway.address).expect("it is sent");
            }
        }
        assert_eq!(H3::connect(gateway.address, "edge.test").get("/hello").status(), 200);
        gateway.stop();
    }

    fn a_websocket_passes_bytes_both_ways(cell) {
        let upstream = Upstream::start(|conn| {
            let request = conn.head()?;
            let key = request.field("sec-websocket-key")?.to_owned();
            conn.record(request);
            let accept = blitz_tests::websocket::accept(&key);
            conn.send(format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Accept: {accept}\r\n\r\nhello"))?;
            conn.until_closed();
            Some(())
        });
        let (_pki, gateway) = start(cell, &[upstream.address], "");
        let mut client = H3::connect(gateway.address, "edge.test");
        client.until("the setting comes", |client| client.h3.as_ref().is_some_and(|h3| h3.extended_connect_enabled_by_peer()));
        let fields = [
            (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":authority", "edge.test"),
            (":path", "/ws"), ("sec-websocket-version", "13"),
        ];
        let id = client.begin(&fields, false);
        client.until("the tunnel is there", |client| client.got(id).body == b"hello");
        assert_eq!(client.got(id).status(), 200);
        assert!(upstream.last_request().head.starts_with("GET /ws HTTP/1.1"));
        client.send(id, b"some bytes", true);
        assert!(client.outcome(id).is_whole, "the upstream has seen the end and ended its side");
        assert_eq!(gateway.metric("blitz_tunnels_total{protocol=\"h3\"}"), 1);
        wait_until("nothing is under way", PATIENCE, || gateway.metric("blitz_tunnels_active") == 0);
        gateway.stop();
    }

    fn a_silent_handshake_is_given_up(cell) {
        let (_pki, gateway) = start(cell, &[], "[timeouts]\ntls_handshake_ms = 300\n");
        // A first flight whose answer nobody takes.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let local = socket.local_addr().expect("it is bound");
        let scid = quiche::ConnectionId::from_ref(b"somebody");
        let mut quic = quiche::connect(Some("edge.test"), &scid, local, gateway.address, &mut h3::config()).expect("a connection");
        let mut out = [0; 1500];
        while let Ok((length, _)) = quic.send(&mut out) {
            socket.send_to(&out[..length], gateway.address).expect("it is sent");
        }
        let expired = "blitz_deadline_expiries_total{phase=\"tls_handshake\"}";
        wait_until("it is given up", PATIENCE, || gateway.metric(expired) == 1);
        wait_until("nothing is left of it", PATIENCE, || gateway.metric("blitz_tls_handshakes_active") == 0);
        gateway.stop();
    }
}

matrix! {
    mp only:
    fn a_killed_worker_is_told_of_by_its_successor(cell) {
        let pki = Pki::edge();
        let gateway = Setup::new(cell).workers(2).h3(&pki, &[], "").start();
        let mut clients: Vec<_> = (0..16).map(|_| H3::connect(gateway.address, "edge.test")).collect();
        clients.iter_mut().for_each(|client| assert_eq!(client.get("/hello").status(), 200));
        let victim = gateway.workers()[0];
        assert!(blitz_tests::process::send(victim, Signal::Kill), "the worker is there");
        wait_until("another is in its place", PATIENCE, || {
            let workers = gateway.workers();
            workers.len() == 2 && !workers.contains(&victim) && gateway.admin("/readyz").status == 200
        });
        let mut reset = 0;
        for client in &mut clients {
            let id = client.begin_get("/hello");
            client.until("an answer, or word that the connection is gone", |client| {
                client.got(id).is_whole || client.quic.is_draining() || client.quic.is_closed()
            });
            if !client.got(id).is_whole {
                reset += 1;
                assert_eq!(H3::connect(gateway.address, "edge.test").get("/hello").status(), 200);
            }
        }
        assert!((1..16).contains(&reset), "{reset} of 16 were of the killed worker");
        let told = "blitz_quic_datagrams_received_total{fate=\"reset\"}";
        // A datagram is counted when it has been sent.
        wait_until("each was told", PATIENCE, || gateway.metric(told) >= reset);
        gateway.stop();
    }
}
