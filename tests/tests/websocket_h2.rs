//! WebSockets over HTTP/2 (RFC 8441), mapped to an Upgrade over HTTP/1.1.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use blitz_tests::h2raw::{
    Frame, H2, Outcome, code, data, flag, headers, kind, request, reset, window_update,
};
use blitz_tests::hpack;
use blitz_tests::upstream::{Conn, Upstream};
use blitz_tests::websocket::{endpoint, switching};
use blitz_tests::{Gateway, PATIENCE, Pki, Setup, matrix, python, require_python, wait_until};

const MODULES: &[&str] = &["websockets", "h2"];
const MESSAGES: &str = "10000";
const VERSION: (&str, &str) = ("sec-websocket-version", "13");

/// An extended CONNECT.
fn connect(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    let more = [&[(":protocol", "websocket")], more].concat();
    headers(stream, flag::END_HEADERS, &request("CONNECT", "/chat?a=b", &more))
}

fn gateway(cell: blitz_tests::Cell, upstream: &Upstream, more: &str) -> Gateway {
    Setup::new(cell).h2(&[upstream.address], more).start()
}

/// A client that has been told of the switch on stream 1.
fn switched(gateway: &Gateway) -> H2 {
    let mut h2 = H2::connect(gateway.address);
    h2.send(connect(1, &[VERSION]));
    assert_eq!(h2.outcome(1), Outcome::Answer(200));
    h2
}

/// The next frame of stream 1 that is DATA or RST_STREAM.
fn next(h2: &mut H2) -> Frame {
    loop {
        let frame = h2.frame().expect("the connection goes on");
        if frame.stream == 1 && matches!(frame.kind, kind::DATA | kind::RST_STREAM) {
            return frame;
        }
    }
}

#[track_caller]
fn wait_for(gateway: &Gateway, line: &str) {
    let has = || gateway.admin("/metrics").text().lines().any(|found| found == line);
    wait_until(line, PATIENCE, has);
}

#[track_caller]
fn all_over(gateway: &Gateway) {
    for gauge in ["blitz_tunnels_active", "blitz_requests_active", "blitz_upstream_connections_active"] {
        wait_for(gateway, &format!("{gauge} 0"));
    }
    assert_eq!(gateway.in_flight(), Some(0));
}

/// Tells the test how a connection at the endpoint ended.
fn reporting(
    script: impl Fn(&mut Conn) -> Option<()> + Send + Sync + 'static,
) -> (Upstream, Receiver<(Vec<u8>, bool)>) {
    let (ended, endings) = channel();
    let ended = Mutex::new(ended);
    let upstream = endpoint(move |conn| {
        script(conn)?;
        let rest = conn.rest();
        ended.lock().ok()?.send(rest).ok()
    });
    (upstream, endings)
}

fn echo(cell: blitz_tests::Cell, with_tls: bool) {
    let server = python::Server::start("ws_echo.py", MODULES, &[]);
    let pki = Pki::edge();
    let route = format!(
        "[upstreams.pool]\nendpoints = [{{ address = \"{}\" }}]\n[[routes]]\nupstream = \"pool\"\n",
        server.address
    );
    let listener =
        if with_tls { pki.listener(&["edge"], "") } else { blitz_tests::gateway::LISTENER.to_owned() };
    let config = (listener + &route).replace("[\"h1\"]", "[\"h1\", \"h2\"]");
    let gateway = Setup::new(cell).config(&config).start();
    let (port, ca) = (gateway.address.port().to_string(), pki.path("ca.pem").display().to_string());
    let mut args = vec!["127.0.0.1", &port, MESSAGES];
    if with_tls {
        args.push(&ca);
    }
    let said = python::run("ws_h2_client.py", MODULES, &args);
    assert_eq!(said, format!("200 {MESSAGES} 4001 as asked\n"));
    all_over(&gateway);
    let metrics = gateway.admin("/metrics").text();
    assert!(metrics.contains("blitz_tunnels_total{protocol=\"h2\"} 1\n"));
    let abuses = metrics.lines().filter(|line| line.starts_with("blitz_h2_abuse_total"));
    assert!(abuses.into_iter().all(|line| line.ends_with(" 0")), "small frames are no abuse");
    gateway.stop();
}

matrix! {
    fn echo_in_clear(cell) {
        require_python!("websockets", "h2");
        echo(cell, false);
    }

    fn echo_over_tls(cell) {
        require_python!("websockets", "h2");
        echo(cell, true);
    }

    /// RFC 8441 section 5: what the client says becomes an Upgrade, what HTTP/1 needs beside is the gateway's own.
    fn it_becomes_an_upgrade(cell) {
        let upstream = Upstream::start(|conn| {
            let request = conn.request()?;
            conn.send(switching(&request, "Sec-WebSocket-Protocol: b\r\n") + "early")?;
            let bytes = conn.read(4)?;
            conn.send(bytes)?;
            conn.until_closed();
            Some(())
        });
        let gateway = gateway(cell, &upstream, "");
        let mut keys = std::collections::HashSet::new();
        for _ in 0..2 {
            let mut h2 = H2::connect(gateway.address);
            let more = [VERSION, ("sec-websocket-protocol", "a, b"), ("sec-websocket-key", "mine"), ("origin", "http://test")];
            h2.send(connect(1, &more));
            h2.send(data(1, 0, b"ping"));
            let head = loop {
                let frame = h2.frame().expect("an answer comes");
                if let Some(fields) = h2.fields(&frame) {
                    break fields;
                }
            };
            let field = |name| hpack::find(&head, name);
            assert_eq!((field(":status"), field("sec-websocket-protocol")), (Some("200"), Some("b")));
            for name in ["sec-websocket-accept", "connection", "upgrade", "content-length", "transfer-encoding"] {
                assert_eq!(field(name), None, "{name}");
            }
            let mut came = Vec::new();
            while came.len() < 9 {
                came.extend(next(&mut h2).payload);
            }
            assert_eq!(came, b"earlyping");
            let seen = upstream.last_request();
            assert!(seen.head.starts_with("GET /chat?a=b HTTP/1.1\r\nHost: test\r\n"), "{}", seen.head);
            assert_eq!((seen.fields("connection"), seen.fields("upgrade")), ("upgrade".into(), "websocket".into()));
            assert_eq!((seen.fields("sec-websocket-version"), seen.fields("sec-websocket-protocol")), ("13".into(), "a, b".into()));
            assert_eq!((seen.field("origin"), seen.field("via")), (Some("http://test"), Some("2 blitz")));
            assert_eq!((seen.field("content-length"), seen.field("transfer-encoding")), (None, None));
            let key = seen.fields("sec-websocket-key");
            assert_eq!(key.len(), 24);
            assert!(keys.insert(key), "a key is used once");
        }
        all_over(&gateway);
        gateway.stop();
    }

    fn refusals(cell) {
        let upstream = Upstream::start(|conn| {
            loop {
                let request = conn.request()?;
                match request.field("x-want").unwrap_or_default() {
                    "403" => conn.answer("403 Forbidden", "no")?,
                    "200" => conn.answer("200 OK", "a page")?,
                    "accept" => {
                        conn.send(switching(&request, "").replace("Accept: ", "Accept: x"))?;
                        conn.until_closed();
                    }
                    _ => conn.send(switching(&request, "").replace("websocket", "h2c"))?,
                }
            }
        });
        let gateway = gateway(cell, &upstream, "");
        let mut h2 = H2::connect(gateway.address);
        // What the endpoint refuses goes back as it is, and what the client has sent for the tunnel goes nowhere.
        h2.send(connect(1, &[VERSION, ("x-want", "403")]));
        h2.send(data(1, 0, b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n"));
        assert_eq!((h2.outcome(1), h2.body(1)), (Outcome::Answer(403), b"no".to_vec()));
        // An answer that does not switch must not look like one that does.
        for (stream, want) in [(3, "200"), (5, "accept"), (7, "other")] {
            h2.send(connect(stream, &[VERSION, ("x-want", want)]));
            assert_eq!(h2.outcome(stream), Outcome::Answer(502), "{want}");
        }
        h2.send(connect(9, &[]));
        assert_eq!(h2.outcome(9), Outcome::Answer(400), "no version");
        h2.send(connect(11, &[("sec-websocket-version", "8")]));
        assert_eq!(h2.outcome(11), Outcome::Answer(400));
        h2.send(connect(13, &[VERSION, ("content-length", "5")]));
        assert_eq!(h2.outcome(13), Outcome::Answer(400), "a tunnel has no length");
        h2.send(headers(15, flag::END_HEADERS, &request("CONNECT", "/", &[(":protocol", "connect-udp")])));
        assert_eq!(h2.outcome(15), Outcome::Answer(501));
        assert_eq!(upstream.requests().len(), 4);
        h2.send(headers(17, flag::WHOLE, &request("GET", "/", &[("x-want", "200")])));
        assert_eq!((h2.outcome(17), h2.body(17)), (Outcome::Answer(200), b"a page".to_vec()), "the connection goes on");
        wait_for(&gateway, "blitz_tunnels_total{protocol=\"h2\"} 0");
        gateway.stop();
    }

    fn half_closed(cell) {
        let (upstream, endings) = reporting(|conn| {
            let asked = conn.rest();
            conn.send([&asked.0[..], if asked.1 { b" reset" } else { b" whole" }].concat())?;
            conn.finish();
            Some(())
        });
        let first = gateway(cell, &upstream, "");
        let mut h2 = switched(&first);
        h2.send([data(1, 0, b"from the client"), data(1, flag::END_STREAM, b"")].concat());
        assert_eq!(h2.body(1), b"from the client whole");
        assert!(!endings.recv_timeout(PATIENCE).expect("the endpoint ends").1);
        all_over(&first);
        first.stop();
        let (upstream, endings) = reporting(|conn| {
            conn.send("from the endpoint")?;
            conn.finish();
            Some(())
        });
        let second = gateway(cell, &upstream, "");
        let mut h2 = switched(&second);
        assert_eq!(h2.body(1), b"from the endpoint");
        for _ in 0..10 {
            h2.send(data(1, 0, &[b'x'; 1000]));
        }
        h2.send(data(1, flag::END_STREAM, b"end"));
        let (bytes, was_reset) = endings.recv_timeout(PATIENCE).expect("the endpoint ends");
        assert_eq!((bytes.len(), was_reset), (10_003, false));
        all_over(&second);
        second.stop();
    }

    /// RST_STREAM CANCEL is a TCP reset, both ways (RFC 8441 section 5).
    fn resets(cell) {
        let (upstream, endings) = reporting(|conn| conn.send("x"));
        let first = gateway(cell, &upstream, "");
        let mut h2 = switched(&first);
        assert_eq!(next(&mut h2).payload, b"x");
        h2.send(reset(1, code::CANCEL));
        assert!(endings.recv_timeout(PATIENCE).expect("the endpoint ends").1, "a reset");
        all_over(&first);
        // So is the end of the connection.
        let h2 = switched(&first);
        drop(h2);
        assert!(endings.recv_timeout(PATIENCE).expect("the endpoint ends").1, "a reset");
        first.stop();
        let upstream = endpoint(|conn| {
            conn.send("all that came")?;
            conn.read(2)?;
            conn.cut();
            Some(())
        });
        let second = gateway(cell, &upstream, "");
        let mut h2 = switched(&second);
        assert_eq!(next(&mut h2).payload, b"all that came");
        h2.send(data(1, 0, b"go"));
        let frame = next(&mut h2);
        assert_eq!((frame.kind, frame.number(0)), (kind::RST_STREAM, code::CANCEL));
        wait_for(&second, "blitz_errors_total{kind=\"upstream_tunnel_reset\"} 1");
        second.stop();
        let (upstream, endings) = reporting(|_| Some(()));
        let idle = gateway(cell, &upstream, "[timeouts]\ntunnel_idle_ms = 300");
        let frame = next(&mut switched(&idle));
        assert_eq!((frame.kind, frame.number(0)), (kind::RST_STREAM, code::CANCEL));
        assert!(endings.recv_timeout(PATIENCE).expect("the endpoint ends").1, "a reset");
        wait_for(&idle, "blitz_deadline_expiries_total{phase=\"tunnel_idle\"} 1");
        idle.stop();
    }

    /// Thousands of frames of a few bytes, faster than the endpoint takes them: they wait, and nobody is ended for it.
    fn small_frames_before_a_slow_endpoint(cell) {
        let (go_on, may_go_on) = channel::<()>();
        let may_go_on = Arc::new(Mutex::new(may_go_on));
        let (upstream, endings) = reporting(move |_| {
            may_go_on.lock().ok()?.recv_timeout(PATIENCE * 3).ok()
        });
        let gateway = gateway(cell, &upstream, "");
        let (total, peak) = gateway.peak_memory(|| {
            let mut h2 = switched(&gateway);
            let (mut total, mut window) = (0, 256 << 10_u32);
            // The kernel and the outbox take megabytes before anything waits; then the window ends.
            loop {
                while window >= 100 {
                    let burst: Vec<u8> = (0..10).flat_map(|_| data(1, 0, b"0123456789")).collect();
                    h2.send(burst);
                    window -= 100;
                    total += 100;
                }
                match h2.frame_within(std::time::Duration::from_secs(1)) {
                    Ok(Some(frame)) if frame.kind == kind::WINDOW_UPDATE && frame.stream == 1 => {
                        window += frame.number(0);
                    }
                    Ok(Some(frame)) if frame.kind == kind::GOAWAY => panic!("{frame:?}"),
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("the connection was ended"),
                    Err(_) => break,
                }
            }
            assert!(window < 100, "all that may be sent was sent");
            go_on.send(()).expect("the endpoint waits");
            h2.send(data(1, flag::END_STREAM, b""));
            let (bytes, was_reset) = endings.recv_timeout(PATIENCE * 3).expect("the endpoint ends");
            assert_eq!((bytes.len(), was_reset), (total, false));
            total
        });
        assert!(total > 1 << 20, "{total} bytes");
        assert!(peak < 24 << 20, "a worker had {peak} bytes");
        gateway.stop();
    }

    /// Without a window the endpoint waits, and the memory does not grow.
    fn a_client_without_a_window(cell) {
        let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = Arc::clone(&sent);
        let upstream = endpoint(move |conn| {
            for _ in 0..256 {
                conn.send(vec![b'x'; 64 << 10])?;
                counter.fetch_add(64 << 10, std::sync::atomic::Ordering::SeqCst);
            }
            conn.finish();
            Some(())
        });
        let gateway = gateway(cell, &upstream, "");
        let (_, peak) = gateway.peak_memory(|| {
            let mut h2 = switched(&gateway);
            let mut got = 0;
            while got < 65_535 {
                got += next(&mut h2).payload.len();
            }
            let count = || sent.load(std::sync::atomic::Ordering::SeqCst);
            wait_until("the endpoint waits", PATIENCE, || {
                let before = count();
                std::thread::sleep(std::time::Duration::from_millis(300));
                count() == before
            });
            assert!(count() < 16 << 20, "the endpoint was not stopped");
            h2.send([window_update(1, 64 << 20), window_update(0, 64 << 20)].concat());
            assert_eq!(got + h2.body(1).len(), 16 << 20);
        });
        assert!(peak < 24 << 20, "a worker had {peak} bytes");
        gateway.stop();
    }
}
