//! Clients that break the rules of TLS, or play for time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use blitz_tests::tls::TlsClient;
use blitz_tests::{Client, Gateway, PATIENCE, Pki, Setup, Upstream, matrix, wait_until};

fn is_served(gateway: &Gateway, pki: &Pki) -> bool {
    let client = TlsClient::connect(gateway.address, "edge.test", &pki.client().build());
    client.and_then(|mut client| client.get("/hello")).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn counted(gateway: &Gateway, metric: &str) -> u64 {
    let text = gateway.admin("/metrics").text();
    let line =
        text.lines().find(|line| line.starts_with(metric)).unwrap_or_else(|| panic!("{metric}: {text}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or_default()
}

fn no_handshake_is_left(gateway: &Gateway) {
    wait_until("no handshake is under way", PATIENCE, || {
        counted(gateway, "blitz_tls_handshakes_active ") == 0
    });
}

/// The first bytes of a ClientHello that promises 512.
const BEGINNING: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

matrix! {
    /// A ClientHello that trickles has one deadline for all of it.
    fn a_slow_hello_is_cut(cell) {
        let pki = Pki::edge();
        let config = pki.listener(&["edge"], "") + "[timeouts]\ntls_handshake_ms = 300\n";
        let gateway = Setup::new(cell).config(&config).start();
        let mut slow = gateway.connect();
        let begun = Instant::now();
        slow.send(BEGINNING);
        wait_until("the client is cut", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(20));
            !slow.try_send([0]) || !slow.is_open_and_silent()
        });
        assert!(begun.elapsed() >= Duration::from_millis(250), "after {:?}", begun.elapsed());
        wait_until("it is counted", PATIENCE, || {
            counted(&gateway, "blitz_tls_handshake_failures_total{reason=\"timeout\"}") == 1
        });
        // And one that says nothing at all.
        let mut silent = gateway.connect();
        assert!(silent.is_closed_without_bytes());
        // On a busy machine the deadline may be short for a good one, too.
        wait_until("others are served", PATIENCE, || is_served(&gateway, &pki));
        no_handshake_is_left(&gateway);
        gateway.stop();
    }

    /// Handshakes beyond the bound are reset and counted; the bound is free again afterwards.
    fn handshakes_are_bounded(cell) {
        let pki = Pki::edge();
        let config = pki.listener(&["edge"], "handshakes_max = 4");
        let gateway = Setup::new(cell).config(&config).start();
        let mut held: Vec<Client> = (0..4).map(|_| gateway.connect()).collect();
        held.iter_mut().for_each(|client| client.send(BEGINNING));
        wait_until("four are under way", PATIENCE, || counted(&gateway, "blitz_tls_handshakes_active ") == 4);
        assert!(!is_served(&gateway, &pki));
        assert_eq!(counted(&gateway, "blitz_tls_handshake_failures_total{reason=\"limit\"}"), 1);
        drop(held);
        no_handshake_is_left(&gateway);
        assert!(is_served(&gateway, &pki));
        gateway.stop();
    }

    /// Garbage gets an alert where the protocol has one, and hurts nobody.
    fn garbage(cell) {
        let pki = Pki::edge();
        let gateway = Setup::new(cell).config(&pki.listener(&["edge"], "")).start();
        let cases: [&[u8]; 7] = [
            // No record at all.
            &[0; 64],
            &[0xff; 64],
            // An unknown record, one that is too long, an alert, content before keys.
            &[200, 3, 3, 0, 1, 0],
            &[22, 3, 3, 0xff, 0xff, 0],
            &[21, 3, 3, 0, 2, 2, 40],
            &[23, 3, 3, 0, 4, 1, 2, 3, 4],
            // A ClientHello of zeros.
            &[22, 3, 1, 0, 8, 1, 0, 0, 4, 0, 0, 0, 0],
        ];
        for (n, case) in cases.iter().enumerate() {
            let mut stream = TcpStream::connect(gateway.address).expect("the listener takes connections");
            stream.set_read_timeout(Some(PATIENCE)).expect("can be set");
            stream.write_all(case).expect("can be sent");
            let mut answer = Vec::new();
            // It may be cut with a reset, too.
            let _reset = stream.read_to_end(&mut answer);
            assert!(answer.is_empty() || answer[0] == 21, "case {n}: {answer:?}");
            assert!(is_served(&gateway, &pki), "after case {n}");
        }
        no_handshake_is_left(&gateway);
        gateway.stop();
    }

    /// Bytes that do not open, in the place of a request: the connection ends with an alert.
    fn garbage_after_the_handshake(cell) {
        let pki = Pki::edge();
        let gateway = Setup::new(cell).config(&pki.listener(&["edge"], "")).start();
        let mut client = TlsClient::connect(gateway.address, "edge.test", &pki.client().build()).expect("TLS");
        client.tcp().write_all(&[23, 3, 3, 0, 32]).and_then(|()| client.tcp().write_all(&[7; 32])).expect("sent");
        let error = client.rest().expect_err("an alert");
        assert!(error.to_string().contains("BadRecordMac"), "{error}");
        assert!(is_served(&gateway, &pki));
        gateway.stop();
    }

    /// A body that only the end of the connection ends (RFC 9112 section 6.3) is told whole from cut on both sides.
    fn a_cut_is_no_end(cell) {
        let pki = Pki::edge();
        let whole = Upstream::start(|conn| {
            conn.request()?;
            conn.send("HTTP/1.0 200 OK\r\n\r\nall of it")?;
            None
        });
        let cut = Upstream::start(|conn| {
            conn.request()?;
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it")?;
            None
        });
        let route = |name: &str, upstream: &Upstream| {
            format!("[upstreams.{name}]\nendpoints = [{{ address = \"{}\" }}]\n[[routes]]\npath = \"/{name}\"\n\
                     upstream = \"{name}\"\n", upstream.address)
        };
        let config = pki.listener(&["edge"], "") + &route("whole", &whole) + &route("cut", &cut);
        let gateway = Setup::new(cell).config(&config).start();
        let connect = || TlsClient::connect(gateway.address, "edge.test", &pki.client().build()).expect("TLS");
        let mut client = connect();
        client.send("GET /whole HTTP/1.0\r\nHost: a\r\n\r\n").expect("sent");
        assert!(client.rest().expect("an orderly end").ends_with("all of it"));
        // HTTP/1.0 knows no other end: what is cut must not look whole.
        let mut client = connect();
        client.send("GET /cut HTTP/1.0\r\nHost: a\r\n\r\n").expect("sent");
        let answer = client.rest();
        let promised = answer.as_ref().is_ok_and(|text| text.contains("Content-Length: 100"));
        assert!(answer.is_err() || promised, "{answer:?}");
        gateway.stop();
    }

    /// One byte of a record at a time: requests are read all the same.
    fn records_in_pieces(cell) {
        let pki = Pki::edge();
        let gateway = Setup::new(cell).config(&pki.listener(&["edge"], "")).start();
        let tcp = TcpStream::connect(gateway.address).expect("the listener takes connections");
        let (relay, far) = (std::net::TcpListener::bind("127.0.0.1:0").expect("bound"), tcp);
        let address = relay.local_addr().expect("bound");
        std::thread::spawn(move || {
            let (near, _) = relay.accept().expect("accepted");
            let (mut near_in, mut far_out) = (near.try_clone().expect("clone"), far.try_clone().expect("clone"));
            far_out.set_nodelay(true).expect("can be set");
            let (mut near_out, mut far_in) = (near, far);
            std::thread::spawn(move || std::io::copy(&mut far_in, &mut near_out));
            let mut byte = [0];
            while near_in.read(&mut byte).is_ok_and(|count| count > 0) {
                if far_out.write_all(&byte).is_err() {
                    break;
                }
            }
        });
        let mut client = TlsClient::connect(address, "edge.test", &pki.client().build()).expect("TLS");
        let body = "x".repeat(20_000);
        client.send(format!("POST /echo/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                            body.len())).expect("sent");
        let answer = client.rest().expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        gateway.stop();
    }
}
