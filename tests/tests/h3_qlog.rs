//! `/qlog` of the admin API: an HTTP/3 connection written down while it goes on.

use std::net::SocketAddr;

use blitz_tests::client::Response;
use blitz_tests::h3::{H3, request};
use blitz_tests::{Cell, Client, Gateway, PATIENCE, Pki, Setup, Upstream, matrix, wait_until};

/// Bytes of a download: many times what a recording may hold that nobody reads.
const LARGE: usize = 16 << 20;

/// Recordings that there may be at once.
const RECORDINGS_MAX: usize = 4;

fn start(cell: Cell, upstream: &Upstream) -> (Pki, Gateway) {
    let pki = Pki::edge();
    let gateway = Setup::new(cell).h3(&pki, &[upstream.address], "").start();
    (pki, gateway)
}

/// Where the recording of the connection from `client` is.
fn place(gateway: &Gateway, client: SocketAddr) -> String {
    let shown: serde_json::Value =
        serde_json::from_slice(&gateway.admin("/connections").body).expect("/connections is JSON");
    let rows = shown["connections"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["peer"] == client.to_string().as_str());
    let row = row.unwrap_or_else(|| panic!("{client} is not in {shown}"));
    format!("/qlog?worker={}&connection={}", row["worker"], row["id"])
}

fn ask(gateway: &Gateway, path: &str) -> Client {
    let mut client = Client::connect(gateway.admin);
    client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
    client
}

/// The names of the recorded events.
fn events(recording: &Response) -> Vec<String> {
    let text = recording.text();
    let records = text.split_terminator('\n').map(|line| {
        let json = line.strip_prefix('\x1e').unwrap_or_else(|| panic!("no separator: {line:?}"));
        serde_json::from_str::<serde_json::Value>(json).unwrap_or_else(|error| panic!("{error}: {json:?}"))
    });
    let mut records = records.peekable();
    let first = records.next().expect("a header");
    assert_eq!(first["trace"]["vantage_point"]["type"], "server", "{first}");
    records.map(|record| record["name"].as_str().expect("a name").to_owned()).collect()
}

fn recorded(gateway: &Gateway, fate: &str) -> u64 {
    gateway.metric(&format!("blitz_qlog_records_total{{fate=\"{fate}\"}}"))
}

matrix! {
    fn a_connection_is_recorded_from_the_question_to_its_end(cell) {
        let upstream = Upstream::answering("ok");
        let (_pki, gateway) = start(cell, &upstream);
        let mut client = H3::connect(gateway.address, "edge.test");
        let mut other = H3::connect(gateway.address, "edge.test");
        assert_eq!((client.get("/").status(), other.get("/").status()), (200, 200));
        let mut recording = ask(&gateway, &place(&gateway, client.local()));
        wait_until("it is recorded", PATIENCE, || recorded(&gateway, "sent") > 0);
        let id = client.begin(&[&request("GET", "/?code=SECRET")[..], &[("authorization", "SECRET")]].concat(), true);
        assert_eq!((client.outcome(id).status(), other.get("/").status()), (200, 200));
        client.leave();
        let recording = recording.response();
        assert_eq!((recording.status, recording.field("content-type")), (200, Some("application/qlog+json-seq")));
        let text = recording.text();
        assert!(text.contains("authorization") && !text.contains("SECRET"), "{text}");
        let events = events(&recording);
        for name in ["quic:packet_received", "quic:packet_sent"] {
            assert!(events.iter().any(|event| event == name), "no {name} in {events:?}");
        }
        assert_eq!(recorded(&gateway, "dropped"), 0);
        // Of the other there is nothing, and it goes on.
        assert_eq!(other.get("/").status(), 200);
        assert_eq!(recorded(&gateway, "sent"), 1 + events.len() as u64);
        gateway.stop();
    }

    fn what_is_not_there_is_not_recorded(cell) {
        let upstream = Upstream::answering("ok");
        let (_pki, gateway) = start(cell, &upstream);
        let refused = |path: &str| {
            let answer = gateway.admin(path);
            (answer.status, answer.text())
        };
        for path in ["/qlog?worker=0&connection=77", "/qlog?worker=99&connection=0"] {
            let (status, said) = refused(path);
            assert!(status == 404 && said.contains("no HTTP/3 connection"), "{path}: {status} {said}");
        }
        for path in ["/qlog", "/qlog?worker=0", "/qlog?worker=0&connection=x"] {
            let (status, said) = refused(path);
            assert!(status == 400 && said.contains("/qlog?worker=W&connection=ID"), "{path}: {status} {said}");
        }
        gateway.stop();
    }

    fn there_are_few_at_once_and_who_goes_away_makes_room(cell) {
        let upstream = Upstream::answering("ok");
        let (_pki, gateway) = start(cell, &upstream);
        let clients: Vec<_> =
            (0..=RECORDINGS_MAX).map(|_| H3::connect(gateway.address, "edge.test")).collect();
        let places: Vec<_> = clients.iter().map(|client| place(&gateway, client.local())).collect();
        let mut open: Vec<_> = places[1..].iter().map(|place| ask(&gateway, place)).collect();
        for recording in &mut open {
            assert!(recording.head().starts_with("HTTP/1.1 200"));
        }
        let refused = gateway.admin(&places[0]);
        assert_eq!(refused.status, 503, "{}", refused.text());
        drop(open.pop());
        let mut last = None;
        wait_until("there is room again", PATIENCE, || {
            let mut client = ask(&gateway, &places[0]);
            let began = client.head().starts_with("HTTP/1.1 200");
            last = began.then_some(client);
            began
        });
        gateway.stop();
    }

    /// Whoever asks and does not read loses records; the connection loses nothing.
    fn a_recording_that_nobody_reads_holds_nothing_up(cell) {
        let upstream = Upstream::start(|conn| {
            loop {
                let request = conn.request()?;
                let body = if request.target() == "/large" { vec![b'x'; LARGE] } else { b"ok".to_vec() };
                conn.answer("200 OK", body)?;
            }
        });
        let (_pki, gateway) = start(cell, &upstream);
        let mut client = H3::connect(gateway.address, "edge.test");
        let recording = ask(&gateway, &place(&gateway, client.local()));
        wait_until("it is recorded", PATIENCE, || recorded(&gateway, "sent") > 0);
        let mut rounds = 0;
        while recorded(&gateway, "dropped") == 0 {
            let got = client.get("/large");
            assert_eq!((got.status(), got.is_whole, got.body.len()), (200, true, LARGE));
            rounds += 1;
            assert!(rounds < 20, "{} records found room", recorded(&gateway, "sent"));
        }
        drop(recording);
        assert_eq!(client.get("/").status(), 200);
        gateway.stop();
    }
}
