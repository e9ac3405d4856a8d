//! Exchanges over HTTP/2 with prior knowledge, in front of HTTP/1.1 upstreams: real clients where the client does not
//! matter, raw frames where it does.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blitz_tests::h2raw::{
    H2, Outcome, code, data, field, flag, get, headers, kind, request, reset, window_update,
};
use blitz_tests::{Gateway, Nginx, PATIENCE, Setup, Signal, Upstream, matrix, require, wait_until};

/// Bytes of a large transfer.
const LARGE: u64 = 256 << 20;
/// Resident memory of one worker, at most, while it moves bodies.
const WORKER_BYTES_MAX: u64 = 24 << 20;

/// Runs curl over HTTP/2; what it wrote, and the most memory that a worker had meanwhile.
fn curl(gateway: &Gateway, args: &[&str], stdin: Stdio) -> (Vec<u8>, u64) {
    let (output, peak) = gateway.peak_memory(|| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--http2-prior-knowledge", "--noproxy", "*", "-m", "120"]).args(args).stdin(stdin);
        curl.output()
    });
    let output = output.expect("curl can be executed");
    assert!(output.status.success(), "curl: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    (output.stdout, peak)
}

fn text(gateway: &Gateway, args: &[&str]) -> String {
    String::from_utf8_lossy(&curl(gateway, args, Stdio::null()).0).into_owned()
}

/// Takes each request whole, then answers with these bytes.
fn saying(bytes: &'static str) -> Upstream {
    Upstream::start(move |conn| {
        loop {
            conn.request()?;
            conn.send(bytes)?;
        }
    })
}

fn post(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    headers(stream, flag::END_HEADERS, &request("POST", "/x", more))
}

matrix! {
    fn get_head_and_post(cell) {
        require!("curl");
        let upstream = Upstream::start(|conn| {
            loop {
                let request = conn.request()?;
                let body = if request.body.is_empty() { b"nothing".to_vec() } else { request.body };
                if request.head.starts_with("HEAD") {
                    conn.send("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n")?;
                } else {
                    conn.answer("200 OK", body)?;
                }
            }
        });
        let gateway = Setup::new(cell).h2(&[upstream.address], "").start();
        let url = format!("http://{}/a?b", gateway.address);
        assert_eq!(text(&gateway, &["-w", " %{http_code} %{http_version}", &url]), "nothing 200 2");
        let last = upstream.last_request();
        assert_eq!((last.target(), last.field("via")), ("/a?b", Some("2 blitz")));
        assert_eq!(last.field("host"), Some(gateway.address.to_string().as_str()));
        let head = text(&gateway, &["-I", &url]);
        assert!(head.contains("content-length: 7") && head.contains("via: 1.1 blitz"), "{head}");
        assert_eq!(text(&gateway, &["-d", "a body", &url]), "a body");
        assert_eq!(upstream.last_request().field("content-length"), Some("6"));
        // From a pipe: nobody knows how long it is.
        let mut echo = Command::new("echo");
        let mut source = echo.arg("of unknown length").stdout(Stdio::piped()).spawn().expect("echo runs");
        let pipe = source.stdout.take().expect("it is piped");
        assert_eq!(curl(&gateway, &["-T", "-", &url], pipe.into()).0, b"of unknown length\n");
        assert_eq!(upstream.last_request().field("transfer-encoding"), Some("chunked"));
        let _ = source.wait();
        gateway.stop();
    }

    fn both_protocols_on_one_port(cell) {
        let gateway = Setup::new(cell).h2(&[], "").start();
        assert_eq!(gateway.get("/hello").text(), "Hello from Blitz\n");
        // HTTP/1 in single bytes, beginning like the preface of HTTP/2.
        let mut client = gateway.connect();
        for byte in b"PUT /echo/x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok" {
            client.send([*byte]);
        }
        assert_eq!(client.response().text(), "ok");
        let mut h2 = H2::connect(gateway.address);
        h2.send(get(1, "/hello"));
        assert_eq!((h2.outcome(1), h2.body(1).as_slice()), (Outcome::Answer(200), &b"Hello from Blitz\n"[..]));
        gateway.stop();
    }

    fn nghttp_and_h2load(cell) {
        require!("nghttp", "h2load");
        let upstream = saying("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n");
        let gateway = Setup::new(cell).h2(&[upstream.address], "").start();
        let url = format!("http://{}/", gateway.address);
        let output = Command::new("nghttp").args(["-v", "-n", "--no-dep", &url]).output().expect("nghttp runs");
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.contains(":status: 200") && shown.contains("x-sum: 7"), "trailers arrive: {shown}");
        let args = ["-n", "4000", "-c", "4", "-m", "20", &url];
        let output = Command::new("h2load").args(args).output().expect("h2load runs");
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.contains("4000 succeeded, 0 failed, 0 errored"), "{shown}");
        wait_until("nothing is under way", PATIENCE, || gateway.in_flight() == Some(0));
        gateway.stop();
    }

    fn trailers_and_crumbs_reach_the_upstream(cell) {
        let upstream = Upstream::answering("fine");
        let gateway = Setup::new(cell).h2(&[upstream.address], "").start();
        let mut h2 = H2::connect(gateway.address);
        h2.send(post(1, &[("cookie", "a=b"), ("te", "trailers"), ("cookie", "c=d")]));
        h2.send(data(1, 0, b"body"));
        h2.send(headers(1, flag::WHOLE, &field(b"x-sum", b"9")));
        assert_eq!(h2.outcome(1), Outcome::Answer(200));
        let last = upstream.last_request();
        assert_eq!((last.body.as_slice(), last.trailers.to_lowercase().trim()), (&b"body"[..], "x-sum: 9"));
        assert_eq!(last.fields("cookie"), "a=b; c=d");
        gateway.stop();
    }

    fn interim_answers_are_passed_on(cell) {
        let upstream = saying("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
            HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let gateway = Setup::new(cell).h2(&[upstream.address], "").start();
        let mut h2 = H2::connect(gateway.address);
        h2.send(get(1, "/"));
        let mut statuses = Vec::new();
        while statuses.last() != Some(&200) {
            let frame = h2.frame().expect("heads");
            statuses.extend(h2.status(&frame));
        }
        assert_eq!(statuses, [103, 200]);
        gateway.stop();
    }

    fn a_client_that_waits_is_told_to_continue(cell) {
        let upstream = Upstream::start(|conn| {
            let mut request = conn.head()?;
            conn.send("HTTP/1.1 100 Continue\r\n\r\n")?;
            conn.body(&mut request)?;
            conn.answer("200 OK", request.body)
        });
        let gateway = Setup::new(cell).h2(&[upstream.address], "").start();
        let mut h2 = H2::connect(gateway.address);
        h2.send(post(1, &[("expect", "100-continue"), ("content-length", "4")]));
        let head = h2.next_of(kind::HEADERS).expect("an interim answer");
        assert!(!head.has(flag::END_STREAM));
        h2.send(data(1, flag::END_STREAM, b"body"));
        assert_eq!((h2.outcome(1), h2.body(1).as_slice()), (Outcome::Answer(200), &b"body"[..]));
        gateway.stop();
    }

    fn an_early_answer_ends_the_upload(cell) {
        let upstream = Upstream::start(|conn| {
            conn.head()?;
            conn.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
            conn.until_closed();
            Some(())
        });
        let gateway = Setup::new(cell).h2(&[upstream.address], "").start();
        let mut h2 = H2::connect(gateway.address);
        h2.send(post(1, &[]));
        h2.send(data(1, 0, b"some"));
        assert_eq!(h2.outcome(1), Outcome::Answer(413));
        let reset = h2.next_of(kind::RST_STREAM).expect("the rest is not wanted");
        assert_eq!((reset.stream, reset.number(0)), (1, code::NO_ERROR));
        h2.send([data(1, 0, b"late"), get(3, "/")].concat());
        assert_eq!(h2.outcome(3), Outcome::Answer(413), "the connection lives");
        gateway.stop();
    }

    fn large_down(cell) {
        require!("nginx", "curl");
        let nginx = Nginx::start();
        nginx.sparse_file("big", LARGE);
        let gateway = Setup::new(cell).h2(&[nginx.address], "").start();
        let url = format!("http://{}/file/big", gateway.address);
        let args = ["-o", "/dev/null", "-w", "%{http_code} %{size_download}", &url];
        let (shown, peak) = curl(&gateway, &args, Stdio::null());
        assert_eq!(String::from_utf8_lossy(&shown), format!("200 {LARGE}"));
        assert!(peak > 0 && peak < WORKER_BYTES_MAX, "a worker held {} KiB", peak / 1024);
        gateway.stop();
    }

    fn large_up(cell) {
        require!("nginx", "curl");
        let nginx = Nginx::start();
        let gateway = Setup::new(cell).h2(&[nginx.address], "").start();
        let scratch = tempfile::tempdir().expect("a scratch folder can be made");
        let file = scratch.path().join("big");
        std::fs::File::create(&file).and_then(|file| file.set_len(LARGE)).expect("a sparse file can be made");
        let url = format!("http://{}/sink", gateway.address);
        let (shown, peak) = curl(&gateway, &["-T", &file.to_string_lossy(), &url], Stdio::null());
        assert_eq!(String::from_utf8_lossy(&shown), LARGE.to_string(), "bytes that arrived behind nginx");
        assert!(peak > 0 && peak < WORKER_BYTES_MAX, "a worker held {} KiB", peak / 1024);
        gateway.stop();
    }

    /// A client without a window stops the upstream, and its neighbours on the connection go on.
    fn a_closed_window_stops_the_upstream_only(cell) {
        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sent);
        let upstream = Upstream::start(move |conn| {
            loop {
                let request = conn.request()?;
                if request.target() != "/big" {
                    conn.answer("200 OK", "small")?;
                    continue;
                }
                conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"))?;
                for _ in 0..LARGE >> 16 {
                    conn.send([b'x'; 1 << 16])?;
                    count.fetch_add(1 << 16, Ordering::SeqCst);
                }
            }
        });
        let gateway = Setup::new(cell).h2(&[upstream.address], "").start();
        let mut h2 = H2::connect_with(gateway.address, &[(4, 1000)]);
        h2.send(get(1, "/big"));
        assert_eq!(h2.outcome(1), Outcome::Answer(200));
        for stream in (3..103).step_by(2) {
            h2.send(get(stream, "/small"));
            assert_eq!((h2.outcome(stream), h2.body(stream).as_slice()), (Outcome::Answer(200), &b"small"[..]));
        }
        let taken = sent.load(Ordering::SeqCst);
        assert!(taken < 64 << 20, "{} MiB are in between", taken >> 20);
        // A reset frees the endpoint.
        h2.send(reset(1, code::CANCEL));
        wait_until("the endpoint is free", PATIENCE, || gateway.in_flight() == Some(0));
        gateway.stop();
    }

    /// An upstream that does not read: the client gets no more window than was promised.
    fn an_upstream_that_does_not_read_stops_the_client(cell) {
        let upstream = Upstream::start(|conn| {
            let request = conn.head()?;
            conn.record(request);
            std::thread::sleep(2 * PATIENCE);
            None
        });
        let limits = "[http2]\nstream_window_bytes = 65535\nconnection_window_bytes = 200000\n";
        let gateway = Setup::new(cell).h2(&[upstream.address], limits).start();
        let mut h2 = H2::connect(gateway.address);
        h2.send(post(1, &[]));
        // As a client that heeds windows.
        let (mut stream_window, mut window, mut sent) = (65_535_i64, 65_535_i64, 0_i64);
        let quiet = std::time::Duration::from_millis(700);
        loop {
            let count = stream_window.min(window).min(16_384);
            if count > 0 {
                h2.send(data(1, 0, &vec![b'x'; count as usize]));
                (stream_window, window, sent) = (stream_window - count, window - count, sent + count);
                continue;
            }
            assert!(sent < 64 << 20, "{} MiB are in between", sent >> 20);
            match h2.frame_within(quiet) {
                Ok(Some(frame)) if frame.kind == kind::WINDOW_UPDATE => {
                    let more = i64::from(frame.number(0));
                    if frame.stream == 0 { window += more } else { stream_window += more }
                }
                Ok(Some(_)) => {}
                Ok(None) => panic!("the connection ended"),
                // Nothing more is asked for.
                Err(_) => break,
            }
        }
        assert!(sent >= 65_535);
        h2.send(reset(1, code::CANCEL));
        drop(h2);
        gateway.stop();
    }

    fn an_upstream_that_resets(cell) {
        let before = Upstream::resetting_after_request();
        let gateway = Setup::new(cell).h2(&[before.address], "").start();
        let mut h2 = H2::connect(gateway.address);
        h2.send(get(1, "/"));
        assert_eq!(h2.outcome(1), Outcome::Answer(502));
        h2.send([post(3, &[]), data(3, 0, b"x"), data(3, flag::END_STREAM, b"y")].concat());
        assert_eq!(h2.outcome(3), Outcome::Answer(502));
        gateway.stop();
        for bytes in [
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfive\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
        ] {
            let within = Upstream::sending(bytes.as_bytes());
            let gateway = Setup::new(cell).h2(&[within.address], "").start();
            let mut h2 = H2::connect(gateway.address);
            h2.send(get(1, "/"));
            // An answer that is cut must not look whole. Its head may have been on its way, or not yet.
            let reset = match h2.outcome(1) {
                Outcome::Answer(200) => h2.next_of(kind::RST_STREAM).map(|frame| frame.number(0)),
                Outcome::Reset(code) => Some(code),
                outcome => panic!("{outcome:?}"),
            };
            assert_eq!(reset, Some(code::INTERNAL_ERROR), "{bytes:?}");
            gateway.stop();
        }
    }

    /// A client that cancels, or goes, frees the endpoint at every stage.
    fn a_client_that_cancels(cell) {
        let upstream = Upstream::start(|conn| {
            let mut request = conn.head()?;
            conn.record(request.clone());
            if request.target() == "/answering" {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")?;
                loop {
                    conn.send([b'x'; 1 << 14])?;
                }
            }
            conn.body(&mut request)?;
            conn.until_closed();
            Some(())
        });
        let gateway = Setup::new(cell).h2(&[upstream.address], "").start();
        let head = headers(1, flag::END_HEADERS, &request("POST", "/uploading", &[]));
        let stages: [(&str, Vec<u8>); 3] = [
            ("uploading", [head, data(1, 0, b"x")].concat()),
            ("waiting", get(1, "/waiting")),
            ("answering", get(1, "/answering")),
        ];
        for (stage, sent) in &stages {
            for by_reset in [true, false] {
                let seen = upstream.requests().len();
                let mut h2 = H2::connect(gateway.address);
                h2.send(sent);
                wait_until("the upstream has it", PATIENCE, || upstream.requests().len() > seen);
                if *stage == "answering" {
                    assert_eq!(h2.outcome(1), Outcome::Answer(200));
                }
                if by_reset {
                    h2.send(reset(1, code::CANCEL));
                    wait_until("the endpoint is free", PATIENCE, || gateway.in_flight() == Some(0));
                    h2.send(window_update(0, 1));
                } else {
                    drop(h2);
                    wait_until("the endpoint is free", PATIENCE, || gateway.in_flight() == Some(0));
                }
            }
        }
        gateway.stop();
    }

    /// SIGTERM: GOAWAY, the request under way is answered, the connection ends.
    fn draining(cell) {
        let upstream = Upstream::start(|conn| {
            loop {
                let mut request = conn.head()?;
                conn.record(request.clone());
                conn.body(&mut request)?;
                conn.answer("200 OK", "finished")?;
            }
        });
        let mut gateway = Setup::new(cell).h2(&[upstream.address], "").start();
        let mut idle = H2::connect(gateway.address);
        let mut busy = H2::connect(gateway.address);
        busy.send(post(1, &[]));
        wait_until("the request is under way", PATIENCE, || upstream.requests().len() == 1);
        gateway.signal(Signal::Term);
        assert_eq!(idle.next_of(kind::GOAWAY).map(|frame| frame.number(4)), Some(code::NO_ERROR));
        assert!(idle.ends());
        let goaway = busy.next_of(kind::GOAWAY).expect("it is told");
        assert_eq!((goaway.number(0), goaway.number(4)), (0x7fff_ffff, code::NO_ERROR), "none is lost");
        let asked = busy.next_of(kind::PING).expect("it is asked for a round trip");
        busy.send(blitz_tests::h2raw::frame(kind::PING, flag::ACK, 0, &asked.payload));
        let goaway = busy.next_of(kind::GOAWAY).expect("and then told the last stream");
        assert_eq!((goaway.number(0), goaway.number(4)), (1, code::NO_ERROR));
        assert!(gateway.ended().is_none(), "it waits for the request");
        busy.send(data(1, flag::END_STREAM, b"x"));
        assert_eq!((busy.outcome(1), busy.body(1).as_slice()), (Outcome::Answer(200), &b"finished"[..]));
        assert!(busy.ends());
        assert!(gateway.wait(PATIENCE).success(), "{}", gateway.log());
    }

    fn what_is_counted(cell) {
        let gateway = Setup::new(cell).h2(&[], "").start();
        let mut h2 = H2::connect(gateway.address);
        for (stream, path, status) in [(1, "/hello", 200), (3, "/nothing", 404)] {
            h2.send(get(stream, path));
            assert_eq!(h2.outcome(stream), Outcome::Answer(status));
        }
        let text = gateway.admin("/metrics").text();
        for line in [
            "blitz_requests_total{protocol=\"h2\",status=\"2xx\"} 1",
            "blitz_requests_total{protocol=\"h2\",status=\"4xx\"} 1",
            "blitz_h2_connections_total 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        let connections = gateway.admin("/connections").text();
        assert!(connections.contains("\"requests\":2") || connections.contains("\"requests\": 2"), "{connections}");
        drop(h2);
        gateway.stop();
    }
}
