//! Early data over QUIC (0-RTT): what may be done twice goes on before the handshake is done, and nothing is done
//! twice.

use std::net::{SocketAddr, UdpSocket};

use blitz_tests::h3::{self, H3, request};
use blitz_tests::process::{self, Signal};
use blitz_tests::{Cell, Gateway, PATIENCE, Pki, Setup, Upstream, gateway, matrix, require, wait_until};

/// The handshake of a flight that is sent again is never finished.
const EARLY: &str = "[http3]\nearly_data = true\n[timeouts]\ntls_handshake_ms = 1500\n";

fn config(pki: &Pki, endpoint: SocketAddr, more: &str) -> String {
    let listener = pki.listener(&["edge"], "").replace("[\"h1\"]", "[\"h1\", \"h3\"]");
    gateway::one_upstream(&[endpoint], "").replace(gateway::LISTENER, &listener) + more
}

fn start(cell: Cell, upstream: &Upstream, more: &str) -> (Pki, Gateway) {
    let pki = Pki::edge();
    let gateway = Setup::new(cell).workers(2).config(&config(&pki, upstream.address, more)).start();
    (pki, gateway)
}

/// Says 425 to what came early and asks for it.
fn upstream() -> Upstream {
    Upstream::start(|conn| {
        loop {
            let request = conn.request()?;
            let is_too_early = request.target() == "/425" && request.field("early-data") == Some("1");
            let status = if is_too_early { "425 Too Early" } else { "200 OK" };
            conn.answer(status, request.body)?;
        }
    })
}

const ACCEPTED: &str = "blitz_early_data_accepted_total";

fn refused(reason: &str) -> String {
    format!("blitz_early_data_refused_total{{reason=\"{reason}\"}}")
}

fn session(gateway: &Gateway) -> Vec<u8> {
    let mut client = H3::connect(gateway.address, "edge.test");
    let session = client.session();
    client.leave();
    session
}

/// A client that has sent its ClientHello and heard nothing yet.
fn early(gateway: &Gateway, session: &[u8]) -> H3 {
    let mut config = h3::config();
    config.enable_early_data();
    let mut client = H3::start(gateway.address, "edge.test", &mut config, Some(session));
    client.record = Some(Vec::new());
    client.open().expect("it may send early data");
    assert!(client.quic.is_in_early_data());
    client
}

matrix! {
    fn what_is_safe_goes_on_at_once_and_the_rest_waits(cell) {
        let upstream = upstream();
        let (_pki, gateway) = start(cell, &upstream, EARLY);
        let session = session(&gateway);
        let mut client = early(&gateway, &session);
        let post = client.begin(&request("POST", "/post"), false);
        client.send(post, b"a body", true);
        let with_body = client.begin(&request("GET", "/body"), false);
        client.send(with_body, b"a body", true);
        let delete = client.begin(&request("DELETE", "/delete"), true);
        let safe = ["GET", "HEAD", "OPTIONS"].map(|method| client.begin(&request(method, "/safe"), true));
        // The client has read nothing, so it cannot have finished the handshake.
        wait_until("what is safe arrives", PATIENCE, || upstream.requests().len() == safe.len());
        let arrived = upstream.requests();
        assert!(arrived.iter().all(|it| it.target() == "/safe" && it.field("early-data") == Some("1")), "{arrived:?}");
        assert_eq!(gateway.metric("blitz_tls_handshakes_total{version=\"1.3\",kind=\"resumed\"}"), 0);
        client.shake_hands().expect("a handshake");
        for id in safe.into_iter().chain([post, with_body, delete]) {
            assert_eq!(client.outcome(id).status(), 200);
        }
        assert_eq!(client.got(post).body, b"a body");
        let later = upstream.requests().split_off(safe.len());
        assert_eq!(later.len(), 3);
        assert!(later.iter().all(|it| it.field("early-data").is_none()), "{later:?}");
        assert_eq!(client.get("/later").status(), 200);
        assert_eq!(upstream.last_request().field("early-data"), None);
        assert_eq!(gateway.metric(ACCEPTED), 1);
        gateway.stop();
    }

    fn a_425_goes_to_the_client(cell) {
        let upstream = upstream();
        let (_pki, gateway) = start(cell, &upstream, EARLY);
        let session = session(&gateway);
        let mut client = early(&gateway, &session);
        let id = client.begin_get("/425");
        wait_until("it arrives", PATIENCE, || upstream.requests().len() == 1);
        client.shake_hands().expect("a handshake");
        assert_eq!(client.outcome(id).status(), 425);
        assert_eq!(client.get("/425").status(), 200);
        assert_eq!(upstream.requests().len(), 2, "the gateway does not ask again by itself");
        gateway.stop();
    }

    /// A flight that was recorded and comes again, also with its client's own datagrams once more.
    fn a_flight_that_comes_again_is_not_done_again(cell) {
        let upstream = upstream();
        let (_pki, gateway) = start(cell, &upstream, EARLY);
        let session = session(&gateway);
        let mut client = early(&gateway, &session);
        let id = client.begin_get("/once");
        let flight = client.record.take().expect("it was recorded");
        wait_until("it arrives", PATIENCE, || upstream.requests().len() == 1);
        let replay = || {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            flight.iter().for_each(|it| { socket.send_to(it, gateway.address).expect("it is sent"); });
        };
        // To the connection itself, in the middle of its handshake.
        replay();
        client.shake_hands().expect("a handshake");
        assert_eq!(client.outcome(id).status(), 200);
        client.leave();
        let active = "blitz_downstream_connections_active";
        wait_until("nothing is left of it", PATIENCE, || gateway.metric(active) == 0);
        let workers = gateway.workers();
        for n in 1..=2 {
            replay();
            wait_until("it is noticed", PATIENCE, || gateway.metric(&refused("replayed")) == n);
            wait_until("its handshake is given up", PATIENCE, || gateway.metric(active) == 0);
            if cell.mode == blitz_tests::Mode::Mp && n == 1 {
                // The successors know it as well.
                workers.iter().for_each(|worker| assert!(process::send(*worker, Signal::Kill)));
                wait_until("others are in their place", PATIENCE, || {
                    let now = gateway.workers();
                    now.len() == 2 && !now.iter().any(|it| workers.contains(it)) && gateway.admin("/readyz").status == 200
                });
            }
        }
        assert_eq!(upstream.requests().len(), 1);
        // Somebody else's flight is none of it.
        let mut client = early(&gateway, &session);
        let id = client.begin_get("/another");
        wait_until("it arrives", PATIENCE, || upstream.requests().len() == 2);
        client.shake_hands().expect("a handshake");
        assert_eq!(client.outcome(id).status(), 200);
        gateway.stop();
    }

    /// Whoever has not given out the ticket, and whoever has promised something else since, resumes and takes no
    /// early data.
    fn tickets_of_another_start_or_of_other_limits_resume_only(cell) {
        let upstream = upstream();
        let pki = Pki::edge();
        let secret = pki.path("master.secret");
        let toml = config(&pki, upstream.address, EARLY);
        let begin = || Setup::new(cell).secret(&secret).config(&toml).start();
        let gateway = begin();
        let before = session(&gateway);
        gateway.stop();
        let gateway = begin();
        let come_back = |session: &[u8]| {
            let mut client = early(&gateway, session);
            let id = client.begin_get("/x");
            client.shake_hands().expect("a handshake");
            assert!(client.quic.is_resumed());
            assert_eq!(client.outcome(id).status(), 200);
            client.session()
        };
        let fresh = come_back(&before);
        assert_eq!((gateway.metric(&refused("begun_elsewhere")), gateway.metric(ACCEPTED)), (1, 0));
        assert_eq!(upstream.last_request().field("early-data"), None);
        let fresh = come_back(&fresh);
        assert_eq!((gateway.metric(&refused("begun_elsewhere")), gateway.metric(ACCEPTED)), (1, 1));
        gateway.write_config(&toml.replace("early_data", "stream_window_bytes = 65535\nearly_data"));
        gateway.signal(Signal::Hup);
        // Said when all workers use it.
        wait_until("the limits are others", PATIENCE, || gateway.log().contains("reloaded: generation"));
        let fresh = come_back(&fresh);
        assert_eq!((gateway.metric(&refused("begun_elsewhere")), gateway.metric(ACCEPTED)), (2, 1));
        come_back(&fresh);
        assert_eq!((gateway.metric(&refused("begun_elsewhere")), gateway.metric(ACCEPTED)), (2, 2));
        gateway.stop();
    }

    fn none_is_taken_unless_it_is_configured(cell) {
        let upstream = upstream();
        let (_pki, gateway) = start(cell, &upstream, "");
        let session = session(&gateway);
        let mut config = h3::config();
        config.enable_early_data();
        let mut client = H3::start(gateway.address, "edge.test", &mut config, Some(&session));
        client.shake_hands().expect("a handshake");
        assert!(client.quic.is_resumed());
        // As BoringSSL numbers it: the ticket was not good for early data.
        assert_eq!(client.quic.early_data_reason(), 7);
        assert_eq!(client.get("/x").status(), 200);
        gateway.stop();
    }

    fn aioquic(cell) {
        let Some(mut python) = require::python("aioquic") else {
            require::skip("aioquic is not installed: cargo xtask setup");
            return;
        };
        let upstream = upstream();
        let (pki, gateway) = start(cell, &upstream, EARLY);
        pki.write("ca.crt", &pki.authority.certificate);
        python.arg("-B").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/h3_sessions.py"));
        python.arg(gateway.address.port().to_string()).arg(pki.path("ca.crt")).arg("early");
        let output = python.output().expect("Python runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(gateway.metric(ACCEPTED), 7);
        gateway.stop();
    }
}
