//! The harness itself: what the other files lean on, without the gateway.

use blitz_tests::load::{Clients, Wrk};
use blitz_tests::{Client, Nginx, PATIENCE, Upstream, closed_port, require, wait_until};

#[test]
fn the_client_reads_each_framing() {
    let upstream = Upstream::start(|conn| {
        conn.request()?;
        conn.answer("200 OK", "length")?;
        conn.request()?;
        conn.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        conn.send("4\r\nchun\r\n3\r\nked\r\n0\r\nX-T: 1\r\n\r\n")?;
        conn.request()?;
        conn.send("HTTP/1.1 200 OK\r\n\r\nuntil close")
    });
    let mut client = Client::connect(upstream.address);
    client.send("GET / HTTP/1.1\r\n\r\n");
    assert_eq!(client.response().text(), "length");
    assert!(client.is_open_and_silent());
    client.send("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc");
    let response = client.response();
    assert_eq!((response.text().as_str(), response.trailers.as_str()), ("chunked", "X-T: 1\r\n"));
    client.send("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n");
    assert_eq!(client.response().text(), "until close");
    assert!(client.is_closed_without_bytes());
    let bodies: Vec<_> = upstream.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, [&b""[..], b"abc", b"ab"]);
}

#[test]
fn the_client_sees_a_cut_body_and_a_reset() {
    let cut = Upstream::sending(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nsome");
    let mut client = Client::connect(cut.address);
    client.send("GET / HTTP/1.1\r\n\r\n");
    let response = client.response();
    assert_eq!((response.text().as_str(), response.is_complete), ("some", false));
    let resetting = Upstream::resetting_after_accept();
    assert!(Client::connect(resetting.address).is_closed_without_bytes());
}

#[test]
fn a_closed_port_refuses() {
    let error = std::net::TcpStream::connect(closed_port()).map(drop).map_err(|error| error.kind());
    assert_eq!(error, Err(std::io::ErrorKind::ConnectionRefused));
}

#[test]
fn nginx_answers_takes_bodies_and_serves_files() {
    require!("nginx");
    let nginx = Nginx::start();
    nginx.sparse_file("big", 3 << 20);
    let mut client = Client::connect(nginx.address);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().body.len(), 1024);
    client.send("GET /file/big HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().body.len(), 3 << 20);
    client.send(format!("PUT /sink HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 1 << 20));
    client.send(vec![0; 1 << 20]);
    assert_eq!(client.response().text(), (1 << 20).to_string());
}

#[test]
fn load_counts_what_it_saw() {
    require!("wrk");
    let upstream = Upstream::answering("ok");
    for keep_alive in [true, false] {
        let clients = Clients::start(upstream.address, 2, "/", keep_alive);
        wait_until("requests are made", PATIENCE, || clients.good() >= 50);
        let tally = clients.stop();
        assert!(tally.bad.is_empty(), "{tally:?}");
    }
    let refused = Clients::start(closed_port(), 1, "/", true);
    wait_until("the refusal is seen", PATIENCE, || refused.bad() > 0);
    let tally = refused.stop();
    assert_eq!(tally.good, 0);
    Wrk::assert_clean(&Wrk::start(&format!("http://{}/", upstream.address), 4, 1).finish());
}

/// Runs this same test binary on one test that lacks a program, with and without the variable.
#[test]
fn a_missing_program_skips_or_fails() {
    let run = |required: bool| {
        let log = tempfile::NamedTempFile::new().expect("a scratch file can be made");
        let mut again =
            std::process::Command::new(std::env::current_exe().expect("the test's own path is known"));
        again.args(["--ignored", "--exact", "needs_a_program_that_is_nowhere"]);
        again.env("BLITZ_SKIP_LOG", log.path()).env_remove("BLITZ_REQUIRE_ALL");
        if required {
            again.env("BLITZ_REQUIRE_ALL", "1");
        }
        let passed = again.output().expect("the test binary can be executed").status.success();
        (passed, std::fs::read_to_string(log.path()).expect("the log can be read"))
    };
    let (passed, skips) = run(false);
    assert!(passed);
    assert_eq!(skips, "needs_a_program_that_is_nowhere: no-such-program is not installed\n");
    assert!(!run(true).0, "with BLITZ_REQUIRE_ALL=1 a skip fails");
}

#[test]
#[ignore = "run by a_missing_program_skips_or_fails"]
fn needs_a_program_that_is_nowhere() {
    require!("no-such-program");
    unreachable!("require! returns");
}
