//! Which of two answers goes first when the client takes little at a time (RFC 9218).

use blitz_tests::h3::{self, H3, request};
use blitz_tests::{PATIENCE, Pki, Setup, Upstream, matrix, wait_until};
use quiche::h3::Priority;

/// Bytes of an answer.
const BODY: usize = 512 << 10;
/// Bytes that the client takes at a time: a part of what a gateway reads of an answer at once.
const WINDOW: u64 = 32 << 10;

/// Answers with [`BODY`] bytes, and with the query as its `Priority`, if there is one.
fn site() -> Upstream {
    Upstream::start(|conn| {
        loop {
            let request = conn.request()?;
            let field = request.target().split_once('?').map(|(_, value)| format!("Priority: {value}\r\n"));
            let field = field.unwrap_or_default();
            conn.send(format!("HTTP/1.1 200 OK\r\n{field}Content-Length: {BODY}\r\n\r\n"))?;
            conn.send(vec![b'x'; BODY])?;
        }
    })
}

/// What a client says of its two requests.
struct Case {
    what: &'static str,
    /// Path and `Priority` field of each.
    requests: [(&'static str, &'static str); 2],
    /// PRIORITY_UPDATE for the second: before it is sent, or behind both.
    before: Option<Priority>,
    behind: Option<Priority>,
    expected: Expected,
}

#[derive(Debug, PartialEq, Eq)]
enum Expected {
    First,
    Second,
    Both,
}

impl Case {
    const fn new(what: &'static str, fields: [&'static str; 2], expected: Expected) -> Self {
        let requests = [("/1", fields[0]), ("/2", fields[1])];
        Self { what, requests, before: None, behind: None, expected }
    }

    /// Which answer came before the other.
    fn run(&self, gateway: &blitz_tests::Gateway, upstream: &Upstream) -> Expected {
        let mut config = h3::config();
        config.set_initial_max_data(WINDOW);
        config.set_max_connection_window(WINDOW);
        let mut client = H3::try_connect(gateway.address, "edge.test", &mut config).expect("a handshake");
        let before = upstream.requests().len();
        for (place, (path, field)) in self.requests.iter().enumerate() {
            if place == 1 {
                update(&mut client, self.before);
            }
            let get = request("GET", path);
            let fields =
                if field.is_empty() { get.to_vec() } else { [&get[..], &[("priority", *field)]].concat() };
            let id = client.begin(&fields, true);
            client.hold(id, true);
        }
        update(&mut client, self.behind);
        wait_until("both are at the endpoint", PATIENCE, || {
            client.turn();
            upstream.requests().len() == before + 2
        });
        // Until the window is full.
        let mut quiet = 0;
        while quiet < 20 {
            let datagrams = client.datagrams;
            client.turn();
            quiet = if client.datagrams == datagrams { quiet + 1 } else { 0 };
        }
        client.hold(0, false);
        client.hold(4, false);
        client.until("one is whole", |client| client.got(0).is_whole || client.got(4).is_whole);
        let came = |id| client.got(id).body.len();
        assert!(came(0) == BODY || came(4) == BODY, "{}", self.what);
        match (came(0), came(4)) {
            (_, second) if second < BODY / 2 => Expected::First,
            (first, _) if first < BODY / 2 => Expected::Second,
            _ => Expected::Both,
        }
    }
}

fn update(client: &mut H3, priority: Option<Priority>) {
    if let (Some(priority), Some(h3)) = (priority, &mut client.h3) {
        h3.send_priority_update_for_request(&mut client.quic, 4, &priority).expect("room for a frame");
        client.flush();
    }
}

matrix! {
    fn answers_go_by_their_priority(cell) {
        let (pki, upstream) = (Pki::edge(), site());
        let gateway = Setup::new(cell).h3(&pki, &[upstream.address], "").start();
        let first = Priority::new(0, false);
        let cases = [
            Case::new("nothing is said", ["", ""], Expected::First),
            Case::new("the second is urgent", ["u=6", "u=1"], Expected::Second),
            Case::new("the first is urgent", ["u=2", ""], Expected::First),
            Case::new("both are of use in parts", ["i", "u=3, i"], Expected::Both),
            Case { before: Some(first), ..Case::new("a frame before the request", ["", "u=7"], Expected::Second) },
            Case { behind: Some(first), ..Case::new("a frame behind the request", ["", "u=7"], Expected::Second) },
            Case {
                requests: [("/1", ""), ("/2?u=0", "u=5")],
                ..Case::new("the endpoint says so", ["", ""], Expected::Second)
            },
        ];
        for case in cases {
            assert_eq!(case.run(&gateway, &upstream), case.expected, "{}", case.what);
        }
        gateway.stop();
    }
}
