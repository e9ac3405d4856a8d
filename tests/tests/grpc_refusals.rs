//! What the gateway itself says to a gRPC client: a status of gRPC in an answer that is nothing but a head.

use std::time::{Duration, Instant};

use blitz_tests::h2raw::{H2, Outcome, code, data, flag, headers, kind, request};
use blitz_tests::hpack::{List, find};
use blitz_tests::{Gateway, PATIENCE, Setup, Upstream, closed_port, matrix, wait_until};

/// Begins a call.
fn call(stream: u32, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let all = [&[("content-type", "application/grpc+proto"), ("te", "trailers")], more].concat();
    headers(stream, flag::END_HEADERS, &request("POST", path, &all))
}

/// The answer, which has to be one frame.
fn trailers_only(h2: &mut H2, stream: u32) -> List {
    loop {
        let frame = h2.frame().expect("an answer");
        let fields = h2.fields(&frame);
        if frame.stream == stream && frame.kind == kind::HEADERS {
            assert_eq!(frame.flags, flag::WHOLE, "one frame ends head and stream");
            let fields = fields.expect("a head");
            assert_eq!(find(&fields, ":status"), Some("200"));
            assert_eq!(find(&fields, "content-type"), Some("application/grpc"));
            return fields;
        }
    }
}

fn said(fields: &List) -> (Option<&str>, Option<&str>) {
    (find(fields, "grpc-status"), find(fields, "grpc-message"))
}

fn metric(gateway: &Gateway, line: &str) -> bool {
    gateway.admin("/metrics").text().lines().any(|found| found == line)
}

matrix! {
    fn an_upstream_that_is_not_there(cell) {
        let gateway = Setup::new(cell).h2(&[closed_port()], "").start();
        let mut h2 = H2::connect(gateway.address);
        h2.send(call(1, "/a.B/C", &[]));
        let fields = trailers_only(&mut h2, 1);
        assert_eq!(said(&fields), (Some("14"), Some("upstream_connect_refused")));
        let status = find(&fields, "proxy-status");
        assert_eq!(status, Some("blitz; error=connection_refused; details=\"upstream_connect_refused\""));
        assert!(metric(&gateway, "blitz_errors_total{kind=\"upstream_connect_refused\"} 1"));
        assert!(metric(&gateway, "blitz_requests_total{protocol=\"h2\",status=\"2xx\"} 1"));
        drop(h2);
        gateway.stop();
    }

    fn no_route_and_other_methods(cell) {
        let upstream = Upstream::answering("fine");
        let more = "[[routes]]\npath = \"/only\"\nmethods = [\"GET\"]\nupstream = \"pool\"\n";
        let toml = blitz_tests::gateway::one_upstream(&[upstream.address], more);
        let toml = toml.replace("\"/*rest\"", "\"/some\"").replace("[\"h1\"]", "[\"h1\", \"h2\"]");
        let gateway = Setup::new(cell).config(&toml).start();
        let mut h2 = H2::connect(gateway.address);
        h2.send(call(1, "/a.B/C", &[]));
        assert_eq!(said(&trailers_only(&mut h2, 1)), (Some("12"), Some("no_route")));
        h2.send(call(3, "/only", &[]));
        assert_eq!(said(&trailers_only(&mut h2, 3)), (Some("2"), Some("method_not_allowed")));
        // grpc-web is answered like anybody else.
        let web = [("content-type", "application/grpc-web")];
        h2.send(headers(5, flag::END_HEADERS, &request("POST", "/a.B/C", &web)));
        assert_eq!(h2.outcome(5), Outcome::Answer(404));
        drop(h2);
        gateway.stop();
    }

    fn over_a_limit(cell) {
        let limit = "[[limits]]\nname = \"few\"\nby = \"source_prefix\"\nrequests_per_second = 1\nburst_seconds = 1\n";
        let upstream = Upstream::answering("fine");
        let gateway = Setup::new(cell).h2(&[upstream.address], limit).start();
        let mut h2 = H2::connect(gateway.address);
        h2.send([call(1, "/a", &[]), data(1, flag::END_STREAM, b"")].concat());
        assert_eq!(h2.outcome(1), Outcome::Answer(200));
        h2.send(call(3, "/a", &[]));
        let fields = trailers_only(&mut h2, 3);
        assert_eq!(said(&fields), (Some("14"), Some("rate_limited")));
        assert!(find(&fields, "retry-after").is_some() && find(&fields, "ratelimit").is_some(), "{fields:?}");
        drop(h2);
        gateway.stop();
    }

    fn too_large_and_malformed(cell) {
        let upstream = Upstream::answering("fine");
        let limits = "[http]\nrequest_body_bytes_max = 10\ntarget_bytes_max = 100\n";
        let gateway = Setup::new(cell).h2(&[upstream.address], limits).start();
        let mut h2 = H2::connect(gateway.address);
        h2.send([call(1, "/a", &[]), data(1, 0, &[0; 11])].concat());
        assert_eq!(said(&trailers_only(&mut h2, 1)), (Some("8"), Some("request_body_too_large")));
        h2.send(call(3, &format!("/{}", "x".repeat(100)), &[]));
        assert_eq!(said(&trailers_only(&mut h2, 3)), (Some("2"), Some("target_too_long")));
        h2.send(call(5, "/a", &[("host", "another")]));
        assert_eq!(said(&trailers_only(&mut h2, 5)), (Some("13"), Some("host_mismatch")));
        drop(h2);
        gateway.stop();
    }

    /// What an endpoint says, be it an error of HTTP, is not touched.
    fn an_endpoints_own_errors(cell) {
        let upstream = Upstream::start(|conn| {
            conn.request()?;
            conn.answer("503 Service Unavailable", "busy")
        });
        let gateway = Setup::new(cell).h2(&[upstream.address], "").start();
        let mut h2 = H2::connect(gateway.address);
        h2.send([call(1, "/a", &[]), data(1, flag::END_STREAM, b"x")].concat());
        assert_eq!((h2.outcome(1), h2.body(1)), (Outcome::Answer(503), b"busy".to_vec()));
        drop(h2);
        gateway.stop();
    }

    /// The client's own deadline: the endpoint is left, the call ends with DEADLINE_EXCEEDED.
    fn a_deadline_before_the_answer(cell) {
        let upstream = Upstream::never_answering();
        let gateway = Setup::new(cell).h2(&[upstream.address], "").start();
        let mut h2 = H2::connect(gateway.address);
        let begun = Instant::now();
        h2.send([call(1, "/a", &[("grpc-timeout", "300m")]), data(1, flag::END_STREAM, b"x")].concat());
        assert_eq!(said(&trailers_only(&mut h2, 1)), (Some("4"), Some("grpc_timeout")));
        assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
        assert_eq!(upstream.last_request().field("grpc-timeout"), Some("300m"));
        wait_until("the endpoint is free", PATIENCE, || gateway.in_flight() == Some(0));
        assert!(metric(&gateway, "blitz_deadline_expiries_total{phase=\"grpc\"} 1"));
        assert!(metric(&gateway, "blitz_upstream_ejections_total 0"));
        // While the request is still being sent, too.
        h2.send([call(3, "/a", &[("grpc-timeout", "100000u")]), data(3, 0, b"x")].concat());
        assert_eq!(said(&trailers_only(&mut h2, 3)), (Some("4"), Some("grpc_timeout")));
        drop(h2);
        gateway.stop();
    }

    /// Once the answer has begun, it cannot be called whole.
    fn a_deadline_within_the_answer(cell) {
        let upstream = Upstream::start(|conn| {
            conn.request()?;
            conn.send("HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")?;
            conn.until_closed();
            Some(())
        });
        let gateway = Setup::new(cell).h2(&[upstream.address], "").start();
        let mut h2 = H2::connect(gateway.address);
        h2.send([call(1, "/a", &[("grpc-timeout", "300m")]), data(1, flag::END_STREAM, b"x")].concat());
        assert_eq!(h2.outcome(1), Outcome::Answer(200));
        assert_eq!(h2.next_of(kind::RST_STREAM).map(|frame| frame.number(0)), Some(code::CANCEL));
        wait_until("the endpoint is free", PATIENCE, || gateway.in_flight() == Some(0));
        drop(h2);
        gateway.stop();
    }

    /// A long time extends no deadline of the gateway's, and a time that is none is the endpoint's to refuse.
    fn a_deadline_that_decides_nothing(cell) {
        let upstream = Upstream::never_answering();
        let times = "[timeouts]\nupstream_first_byte_ms = 300\n";
        let gateway = Setup::new(cell).h2(&[upstream.address], times).start();
        let mut h2 = H2::connect(gateway.address);
        for (stream, value) in [(1, "99999999H"), (3, "123456789m"), (5, "1x")] {
            h2.send([call(stream, "/a", &[("grpc-timeout", value)]), data(stream, flag::END_STREAM, b"x")].concat());
            let fields = trailers_only(&mut h2, stream);
            assert_eq!(said(&fields), (Some("14"), Some("upstream_first_byte_timeout")), "{value}");
            assert_eq!(upstream.last_request().field("grpc-timeout"), Some(value));
        }
        assert!(metric(&gateway, "blitz_deadline_expiries_total{phase=\"grpc\"} 0"));
        drop(h2);
        gateway.stop();
    }

    /// An endpoint that breaks off in the middle of an answer resets the stream.
    fn an_answer_that_breaks(cell) {
        let upstream = Upstream::sending(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        );
        let gateway = Setup::new(cell).h2(&[upstream.address], "").start();
        let mut h2 = H2::connect(gateway.address);
        h2.send([call(1, "/a", &[]), data(1, flag::END_STREAM, b"x")].concat());
        let reset = match h2.outcome(1) {
            Outcome::Answer(200) => h2.next_of(kind::RST_STREAM).map(|frame| frame.number(0)),
            Outcome::Reset(code) => Some(code),
            outcome => panic!("{outcome:?}"),
        };
        assert_eq!(reset, Some(code::INTERNAL_ERROR));
        drop(h2);
        gateway.stop();
    }

    /// The same over HTTP/1, for those who carry gRPC over it.
    fn over_http1(cell) {
        let gateway = Setup::new(cell).config_for(&[closed_port()], "").start();
        let mut client = gateway.connect();
        for _ in 0..2 {
            client.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nContent-Length: 1\r\n\r\nx");
            let answer = client.response();
            assert_eq!((answer.status, answer.body.len()), (200, 0));
            assert_eq!(answer.field("grpc-status"), Some("14"), "{}", answer.head);
        }
        drop(client);
        gateway.stop();
    }
}
