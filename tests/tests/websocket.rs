//! WebSockets over HTTP/1.1: the switch, the tunnel, its ends, and what is no switch at all.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use blitz_tests::tls::{Algorithm, TlsClient};
use blitz_tests::upstream::{Conn, Upstream};
use blitz_tests::websocket::{ACCEPT, KEY, MODULES, endpoint, request, switching};
use blitz_tests::{
    Client, Gateway, PATIENCE, Pki, Setup, Signal, client, matrix, python, require_python, wait_until,
};

/// Messages of a long conversation.
const MESSAGES: &str = "10000";

fn gateway(cell: blitz_tests::Cell, upstream: &Upstream, more: &str) -> Gateway {
    Setup::new(cell).config_for(&[upstream.address], more).start()
}

/// A client that has been told of the switch.
fn switched(gateway: &Gateway) -> Client {
    let mut client = gateway.connect();
    client.send(request("/chat", ""));
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    client
}

/// Waits until a line of the metrics is there.
#[track_caller]
fn wait_for(gateway: &Gateway, line: &str) {
    let has = || gateway.admin("/metrics").text().lines().any(|found| found == line);
    wait_until(line, PATIENCE, has);
}

/// Nothing of a tunnel is left: no request under way, no connection to an endpoint.
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
    let ended: Arc<Mutex<Sender<_>>> = Arc::new(Mutex::new(ended));
    let upstream = endpoint(move |conn| {
        script(conn)?;
        let rest = conn.rest();
        ended.lock().ok()?.send(rest).ok()
    });
    (upstream, endings)
}

matrix! {
    /// Both ends are real: text and binary, 0 B to 1 MiB, in fragments and not, pings, a subprotocol, compression, a
    /// close code from the server.
    fn echo(cell) {
        require_python!("websockets");
        let server = python::Server::start("ws_echo.py", MODULES, &[]);
        let gateway = Setup::new(cell).config_for(&[server.address], "").start();
        let url = format!("ws://{}/chat", gateway.address);
        let said = python::run("ws_client.py", MODULES, &[&url, MESSAGES]);
        assert_eq!(said, format!("{MESSAGES} echo permessage-deflate 4001 as asked\n"));
        all_over(&gateway);
        let metrics = gateway.admin("/metrics").text();
        assert!(metrics.contains("blitz_tunnels_total{protocol=\"h1\"} 1\n"));
        assert!(metrics.contains("blitz_requests_total{protocol=\"h1\",status=\"1xx\"} 1\n"));
        gateway.stop();
    }

    /// TLS on both sides, to an endpoint that would speak HTTP/2 as well: what asks for a switch is for HTTP/1.1.
    fn echo_over_tls(cell) {
        require_python!("websockets");
        let pki = Pki::edge();
        pki.certificate("up", &["up.test"], Algorithm::Ecdsa);
        let path = |name: &str| pki.path(name).display().to_string();
        let server = python::Server::start("ws_echo.py", MODULES, &[&path("up.crt"), &path("up.key")]);
        let route = format!(
            "[upstreams.pool]\nendpoints = [{{ address = \"{}\" }}]\n[upstreams.pool.tls]\nca_path = \"{}\"\n\
             server_name = \"up.test\"\n[[routes]]\nupstream = \"pool\"\n",
            server.address,
            path("ca.pem")
        );
        let gateway = Setup::new(cell).config(&(pki.listener(&["edge"], "") + &route)).start();
        let url = format!("wss://{}/chat", gateway.address);
        let said = python::run("ws_client.py", MODULES, &[&url, "2000", &path("ca.pem")]);
        assert_eq!(said, "2000 echo permessage-deflate 4001 as asked\n");
        all_over(&gateway);
        gateway.stop();
    }

    /// Where an upstream speaks HTTP/2 only, nothing can be switched; that is no fault of its endpoints.
    fn an_upstream_of_http2_alone(cell) {
        let upstream = Upstream::answering("never");
        let config = blitz_tests::gateway::one_upstream(&[upstream.address], "").replace(
            "[upstreams.pool]\n",
            "[upstreams.pool]\nprotocol = \"h2\"\nhealth.passive.consecutive_failures = 1\n",
        );
        let gateway = Setup::new(cell).config(&config).start();
        for _ in 0..3 {
            let mut client = gateway.connect();
            client.send(request("/chat", ""));
            let answer = client.response();
            assert_eq!((answer.status, answer.text().as_str()), (500, "500 Internal Server Error: upgrade_needs_h1\n"));
        }
        assert!(gateway.admin("/metrics").text().contains("blitz_upstream_ejections_total 0\n"));
        assert_eq!(upstream.accepted(), 0);
        gateway.stop();
    }

    fn the_handshake_passes_as_it_is(cell) {
        let upstream = Upstream::start(|conn| {
            let request = conn.request()?;
            conn.send(switching(&request, "Sec-WebSocket-Protocol: b\r\nX-Extra: 1\r\n"))?;
            conn.until_closed();
            Some(())
        });
        let gateway = gateway(cell, &upstream, "");
        let mut client = gateway.connect();
        client.send(request("/chat?a=b", "Sec-WebSocket-Protocol: a, b\r\nConnection: X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n"));
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        assert_eq!(client::fields(&head, "connection").to_lowercase(), "upgrade");
        assert_eq!(client::fields(&head, "upgrade"), "websocket");
        assert_eq!(client::field(&head, "sec-websocket-accept"), Some(ACCEPT));
        assert_eq!(client::field(&head, "sec-websocket-protocol"), Some("b"));
        assert_eq!(client::field(&head, "x-extra"), Some("1"));
        assert!(client::field(&head, "content-length").is_none() && client::field(&head, "transfer-encoding").is_none());
        let seen = upstream.last_request();
        assert_eq!((seen.target(), seen.field("sec-websocket-key")), ("/chat?a=b", Some(KEY)));
        assert_eq!((seen.fields("connection").as_str(), seen.fields("upgrade").as_str()), ("upgrade", "websocket"));
        assert_eq!(seen.field("sec-websocket-protocol"), Some("a, b"));
        assert_eq!((seen.field("x-hop"), seen.field("te")), (None, None));
        drop(client);
        all_over(&gateway);
        gateway.stop();
    }

    /// What comes behind the request is held until the 101, then passed on; so is what comes behind the 101.
    fn early_bytes_wait_for_the_switch(cell) {
        let (go_on, may_go_on) = channel::<()>();
        let may_go_on = Mutex::new(may_go_on);
        let upstream = Upstream::start(move |conn| {
            let request = conn.request()?;
            may_go_on.lock().ok()?.recv_timeout(PATIENCE).ok()?;
            assert!(conn.is_silent(), "bytes before the switch");
            conn.send(switching(&request, "") + "behind the 101")?;
            let early = conn.read(60_000)?;
            conn.send(early)?;
            conn.until_closed();
            Some(())
        });
        let gateway = gateway(cell, &upstream, "");
        let mut client = gateway.connect();
        // It looks like a request, and is none.
        let mut early = b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n".to_vec();
        early.resize(60_000, 7);
        client.send([request("/chat", "").as_bytes(), &early].concat());
        wait_until("the request is at the endpoint", PATIENCE, || !upstream.requests().is_empty());
        go_on.send(()).expect("the endpoint waits");
        assert!(client.head().starts_with("HTTP/1.1 101 "));
        assert_eq!(client.read(14), b"behind the 101");
        assert_eq!(client.read(60_000), early);
        assert_eq!(upstream.requests().len(), 1);
        drop(client);
        all_over(&gateway);
        gateway.stop();
    }

    /// A refusal is an ordinary answer, and what came behind the request is the next one: it is never passed on raw.
    fn after_a_refusal_http_goes_on(cell) {
        let upstream = Upstream::start(|conn| {
            loop {
                let request = conn.request()?;
                let status = if request.field("upgrade").is_some() { "403 Forbidden" } else { "200 OK" };
                conn.answer(status, request.target())?;
            }
        });
        let gateway = gateway(cell, &upstream, "");
        let mut client = gateway.connect();
        let behind = "GET /second HTTP/1.1\r\nHost: test\r\n\r\n";
        client.send(request("/chat", "") + behind + behind);
        let refusal = client.response();
        assert_eq!((refusal.status, refusal.text().as_str(), refusal.field("upgrade")), (403, "/chat", None));
        for _ in 0..2 {
            assert_eq!(client.response().text(), "/second");
        }
        let seen: Vec<_> = upstream.requests().iter().map(|request| request.fields("via")).collect();
        assert_eq!(seen, ["1.1 blitz"; 3], "each was read by the gateway");
        // What is no HTTP behind a refusal is refused, and reaches nobody.
        client.send([request("/chat", "").as_bytes(), &[0x81, 0x80, 0, 0, 0, 0]].concat());
        assert_eq!(client.response().status, 403);
        assert_eq!(client.response().status, 400);
        assert_eq!(upstream.requests().len(), 4);
        wait_for(&gateway, "blitz_tunnels_total{protocol=\"h1\"} 0");
        gateway.stop();
    }

    /// A 101 that was not asked for, or that does not switch to what was.
    fn a_bad_switch_is_a_502(cell) {
        let accept = format!("Sec-WebSocket-Accept: {ACCEPT}\r\n");
        let both = format!("Connection: upgrade\r\nUpgrade: websocket\r\n{accept}");
        for (asks, fields, detail) in [
            ("GET / HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(), both.clone(), "not_asked"),
            (request("/", ""), format!("Connection: upgrade\r\nUpgrade: h2c\r\n{accept}"), "other_protocol"),
            (request("/", ""), format!("Upgrade: websocket\r\n{accept}"), "other_protocol"),
            (request("/", ""), format!("Connection: upgrade\r\n{accept}"), "other_protocol"),
            (request("/", ""), "Connection: upgrade\r\nUpgrade: websocket\r\n".to_owned(), "websocket_accept"),
            (request("/", ""), both.replace("s3pP", "S3pP"), "websocket_accept"),
        ] {
            let upstream = Upstream::start(move |conn| {
                conn.request()?;
                conn.send(format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\nbytes of the other protocol"))?;
                conn.until_closed();
                Some(())
            });
            let gateway = gateway(cell, &upstream, "");
            let mut client = gateway.connect();
            client.send(asks + "GET /second HTTP/1.1\r\nHost: test\r\n\r\n");
            let answer = client.response();
            assert_eq!(answer.status, 502, "{detail}");
            let status = answer.field("proxy-status").unwrap_or_default().to_owned();
            assert!(status.contains("http_upgrade_failed") && status.contains(detail), "{status}");
            assert!(client.is_closed_without_bytes(), "{detail}");
            assert_eq!(upstream.requests().len(), 1, "{detail}");
            all_over(&gateway);
            gateway.stop();
        }
    }

    /// Requests that do not ask for a switch go on as ordinary ones, without what they said of it.
    fn what_is_no_upgrade_is_plain_http(cell) {
        let upstream = Upstream::answering("plain");
        let gateway = gateway(cell, &upstream, "");
        let key = format!("Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n");
        let upgrade = "Connection: upgrade, keep-alive\r\nUpgrade: websocket\r\n";
        for asks in [
            format!("GET / HTTP/1.0\r\nHost: test\r\n{upgrade}{key}\r\n"),
            format!("POST / HTTP/1.1\r\nHost: test\r\n{upgrade}{key}Content-Length: 0\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\n{key}\r\n"),
            format!("GET / HTTP/1.1\r\nHost: test\r\n{upgrade}{key}Content-Length: 3\r\n\r\nabc"),
            "GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n\r\n".into(),
            "GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket/13, TLS/1.0\r\n\r\n".into(),
        ] {
            let mut client = gateway.connect();
            client.send(&asks);
            assert_eq!(client.response().text(), "plain", "{asks}");
            let seen = upstream.last_request();
            assert_eq!((seen.field("upgrade"), seen.field("connection")), (None, None), "{asks}");
        }
        // The first that is known is taken.
        let mut client = gateway.connect();
        client.send(request("/", "Upgrade: h2c\r\n").replace("Upgrade: websocket", "Upgrade: foo/1, WebSocket, h2c"));
        assert_eq!(client.response().text(), "plain");
        assert_eq!(upstream.last_request().fields("upgrade"), "websocket");
        gateway.stop();
    }

    fn a_bad_handshake_reaches_no_endpoint(cell) {
        let upstream = Upstream::answering("never");
        let gateway = gateway(cell, &upstream, "");
        let good = request("/", "");
        for (asks, detail) in [
            (good.replace(KEY, "dG9vIHNob3J0"), "websocket_key"),
            (good.replace(&format!("Sec-WebSocket-Key: {KEY}\r\n"), ""), "websocket_key"),
            (request("/", &format!("Sec-WebSocket-Key: {KEY}\r\n")), "websocket_key"),
            (good.replace("Version: 13", "Version: 8"), "websocket_version"),
            (good.replace("Sec-WebSocket-Version: 13\r\n", ""), "websocket_version"),
        ] {
            let mut client = gateway.connect();
            client.send(asks);
            let answer = client.response();
            assert_eq!((answer.status, answer.text()), (400, format!("400 Bad Request: {detail}\n")));
            let version = (detail == "websocket_version").then_some("13");
            assert_eq!(answer.field("sec-websocket-version"), version, "RFC 6455 section 4.4");
            assert!(client.is_closed_without_bytes());
        }
        assert_eq!(upstream.accepted(), 0);
        gateway.stop();
    }

    /// Each side ends by itself, and the other direction goes on.
    fn half_closed(cell) {
        let (upstream, endings) = reporting(|conn| {
            // The client ends first.
            let asked = conn.rest();
            conn.send([&asked.0[..], if asked.1 { b" reset" } else { b" whole" }].concat())?;
            conn.finish();
            Some(())
        });
        let gateway1 = gateway(cell, &upstream, "");
        let mut client = switched(&gateway1);
        client.send("from the client");
        client.finish();
        assert_eq!(client.rest_and_reset(), (b"from the client whole".to_vec(), false));
        assert!(!endings.recv_timeout(PATIENCE).expect("the endpoint ends").1);
        all_over(&gateway1);
        gateway1.stop();
        let (upstream, endings) = reporting(|conn| {
            conn.send("from the endpoint")?;
            conn.finish();
            Some(())
        });
        let gateway2 = gateway(cell, &upstream, "");
        let mut client = switched(&gateway2);
        assert_eq!(client.rest_and_reset(), (b"from the endpoint".to_vec(), false));
        // Much, and slowly taken by nobody in particular.
        let much = vec![b'x'; 3 << 20];
        client.send(&much);
        client.finish();
        assert_eq!(endings.recv_timeout(PATIENCE).expect("the endpoint ends"), (much, false));
        all_over(&gateway2);
        gateway2.stop();
    }

    /// The same, where the carrier has words of its own for an end and a cut.
    fn ends_over_tls(cell) {
        let (upstream, endings) = reporting(|conn| {
            match conn.read(4)?.as_slice() {
                b"rest" => {
                    let asked = conn.rest();
                    conn.send([&asked.0[..], if asked.1 { b" reset" } else { b" whole" }].concat())?;
                    conn.finish();
                }
                b"ends" => {
                    conn.send("said before")?;
                    conn.finish();
                }
                _ => {
                    conn.send("said before")?;
                    conn.read(4)?;
                    conn.cut();
                    return None;
                }
            }
            Some(())
        });
        let pki = Pki::edge();
        let route = format!(
            "[upstreams.pool]\nendpoints = [{{ address = \"{}\" }}]\n[[routes]]\nupstream = \"pool\"\n",
            upstream.address
        );
        let gateway = Setup::new(cell).config(&(pki.listener(&["edge"], "") + &route)).start();
        let begin = |word: &str| {
            let mut client = TlsClient::connect(gateway.address, "edge.test", &pki.client().build()).expect("TLS");
            client.send(request("/chat", "")).expect("it is taken");
            assert!(client.until("\r\n\r\n").expect("an answer").starts_with("HTTP/1.1 101 "));
            client.send(word).expect("it is taken");
            client
        };
        let mut client = begin("rest");
        client.send("from the client").expect("it is taken");
        client.finish().expect("it is taken");
        assert_eq!(client.rest().expect("close_notify"), "from the client whole");
        assert_eq!(endings.recv_timeout(PATIENCE).expect("the endpoint ends"), (Vec::new(), false));
        let mut client = begin("ends");
        assert_eq!(client.rest().expect("close_notify"), "said before");
        client.send("and more").expect("it is taken");
        client.finish().expect("it is taken");
        assert_eq!(endings.recv_timeout(PATIENCE).expect("the endpoint ends"), (b"and more".to_vec(), false));
        let mut client = begin("cut!");
        assert_eq!(client.until("before").expect("what was said"), "said before");
        client.send("now!").expect("it is taken");
        client.rest().expect_err("a cut, and no end");
        // A client that goes without close_notify has not ended either.
        let mut client = begin("rest");
        let _ = client.tcp().shutdown(std::net::Shutdown::Write);
        client.rest().expect_err("a cut, and no end");
        all_over(&gateway);
        gateway.stop();
    }

    /// A cut on one side is a cut on the other, and no end.
    fn resets(cell) {
        let (upstream, endings) = reporting(|conn| conn.send("x"));
        let gateway1 = gateway(cell, &upstream, "");
        let mut client = switched(&gateway1);
        assert_eq!(client.read(1), b"x");
        client.reset();
        assert!(endings.recv_timeout(PATIENCE).expect("the endpoint ends").1, "a reset");
        all_over(&gateway1);
        gateway1.stop();
        let upstream = endpoint(|conn| {
            conn.send("all that came")?;
            conn.read(2)?;
            conn.cut();
            Some(())
        });
        let gateway2 = gateway(cell, &upstream, "");
        let mut client = switched(&gateway2);
        assert_eq!(client.read(13), b"all that came");
        client.send("go");
        assert!(client.rest_and_reset().1, "a reset");
        wait_for(&gateway2, "blitz_errors_total{kind=\"upstream_tunnel_reset\"} 1");
        all_over(&gateway2);
        // It says nothing about the endpoint's health.
        assert!(!gateway2.admin("/metrics").text().contains("blitz_endpoint_failures_total{upstream=\"pool\",address=\"127.0.0.1\"} 1"));
        gateway2.stop();
    }

    /// A client that takes nothing stops the endpoint, and costs no memory.
    fn a_slow_reader(cell) {
        let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = Arc::clone(&sent);
        let upstream = endpoint(move |conn| {
            for _ in 0..1024 {
                conn.send(vec![b'x'; 64 << 10])?;
                counter.fetch_add(64 << 10, std::sync::atomic::Ordering::SeqCst);
            }
            conn.finish();
            Some(())
        });
        let gateway = gateway(cell, &upstream, "");
        let (_, peak) = gateway.peak_memory(|| {
            let mut client = switched(&gateway);
            let count = || sent.load(std::sync::atomic::Ordering::SeqCst);
            // The kernel's buffers take some megabytes, then everybody waits.
            wait_until("the endpoint waits", PATIENCE, || {
                let before = count();
                std::thread::sleep(std::time::Duration::from_millis(300));
                before > 0 && count() == before
            });
            assert!(count() < 48 << 20, "the endpoint was not stopped");
            let (bytes, was_reset) = client.rest_and_reset();
            assert_eq!((bytes.len(), was_reset), (64 << 20, false));
        });
        assert!(peak < 24 << 20, "a worker had {peak} bytes");
        all_over(&gateway);
        gateway.stop();
    }

    /// Which bytes count is shown in virtual time, beside the code.
    fn deadlines(cell) {
        let (upstream, endings) = reporting(|_| Some(()));
        let idle = gateway(cell, &upstream, "[timeouts]\ntunnel_idle_ms = 300");
        let mut client = switched(&idle);
        client.send("said before");
        assert!(client.rest_and_reset().1, "a cut, and no end");
        assert_eq!(endings.recv_timeout(PATIENCE).expect("the endpoint ends"), (b"said before".to_vec(), true));
        wait_for(&idle, "blitz_deadline_expiries_total{phase=\"tunnel_idle\"} 1");
        all_over(&idle);
        idle.stop();
        let life = gateway(cell, &upstream, "[timeouts]\ntunnel_lifetime_ms = 300");
        let mut client = switched(&life);
        assert!(client.rest_and_reset().1, "a cut, and no end");
        assert!(endings.recv_timeout(PATIENCE).expect("the endpoint ends").1);
        wait_for(&life, "blitz_deadline_expiries_total{phase=\"tunnel_lifetime\"} 1");
        all_over(&life);
        life.stop();
    }

    /// A drain lets a tunnel run; what is left at its deadline is cut.
    fn drains(cell) {
        let echo = || endpoint(|conn| {
            let bytes = conn.read(4)?;
            conn.send(bytes)?;
            conn.until_closed();
            Some(())
        });
        let upstream = echo();
        let mut patient = gateway(cell, &upstream, "");
        let mut client = switched(&patient);
        patient.signal(Signal::Term);
        wait_until("it takes no new connections", PATIENCE, || {
            std::net::TcpStream::connect(patient.address).is_err()
        });
        client.send("ping");
        assert_eq!(client.read(4), b"ping");
        client.finish();
        assert_eq!(client.rest_and_reset(), (Vec::new(), false));
        assert!(patient.wait(PATIENCE).success());
        let upstream = echo();
        let mut hasty = gateway(cell, &upstream, "[timeouts]\ndrain_ms = 200");
        let mut client = switched(&hasty);
        hasty.signal(Signal::Term);
        assert!(client.rest_and_reset().1, "a cut, and no end");
        assert!(hasty.wait(PATIENCE).success());
    }

    /// An endpoint that dies takes its tunnels with it, and nothing else.
    fn the_endpoint_is_killed(cell) {
        require_python!("websockets");
        let server = python::Server::start("ws_echo.py", MODULES, &[]);
        let gateway = Setup::new(cell).config_for(&[server.address], "").start();
        let mut client = switched(&gateway);
        drop(server);
        // The kernel ends its connections in order.
        assert_eq!(client.rest_and_reset(), (Vec::new(), false));
        client.finish();
        all_over(&gateway);
        assert_eq!(gateway.get("/").status, 502);
        gateway.stop();
    }
}
