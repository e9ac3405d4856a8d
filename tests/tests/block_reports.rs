//! Sources that misbehave are reported to the daemon on the control socket, soon and once.

use std::net::Ipv4Addr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use blitz_ctl_protocol::message::{Outcome, Reason, Report, ReportDone};
use blitz_ctl_protocol::server::{Incoming, Session};
use blitz_tests::gateway::LISTENER;
use blitz_tests::{Client, Gateway, PATIENCE, Setup, matrix, wait_until};

/// Of the 100 ms from the last attempt to the block, for all but the map update itself.
const REPORTED_WITHIN: Duration = Duration::from_millis(100);

const SMUGGLE: &str =
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG";

/// A daemon that answers every report with `blocked`, and tells when each came.
fn daemon(socket: &Path) -> Receiver<(Instant, Report)> {
    let listener = UnixListener::bind(socket).expect("the socket can be bound");
    let (arrived, reports) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let Ok(mut session) = Session::accept(stream, PATIENCE, |_| Ok(())) else { continue };
            while let Ok(Incoming::Report(report)) = session.next(None) {
                let done = ReportDone { outcome: Outcome::Blocked, remaining_ms: report.ttl_ms };
                if arrived.send((Instant::now(), report)).is_err() || session.answer(&done, &[]).is_err() {
                    break;
                }
            }
        }
    });
    reports
}

fn start(cell: blitz_tests::Cell, folder: &Path, rules: &str) -> (Gateway, PathBuf) {
    let socket = folder.join("ctl.sock");
    let config = format!("{rules}{LISTENER}");
    let setup = Setup::new(cell).workers(2).config(&config);
    (setup.flag("--ctl-socket").flag(&socket.display().to_string()).start(), socket)
}

/// A smuggling attempt on a connection of its own, and its refusal.
fn smuggle(gateway: &Gateway, source: Ipv4Addr) {
    let mut client = Client::connect_from(source, gateway.address);
    client.send(SMUGGLE);
    assert_eq!(client.response().status, 400);
}

fn counted(gateway: &Gateway, reason: &str, outcome: &str) -> u64 {
    let row = format!("blitz_block_reports_total{{reason=\"{reason}\",outcome=\"{outcome}\"}} ");
    let text = gateway.admin("/metrics").text();
    let value = text.lines().find_map(|line| line.strip_prefix(&row));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{row} in\n{text}"))
}

const RULES: &str = "xdp = { interfaces = [\"blitzt0\"], blocklist = { framing_violations_per_minute = 5, \
                     limit_refusals_per_minute = 20, ttl_ms = 45000 } }\n";

matrix! {
    /// The attempt that crosses the threshold reaches the daemon within 100 ms, whichever worker saw it; the
    /// same source is not reported again, and another only for what it does itself.
    fn smuggling_is_reported_at_once_and_once(cell) {
        let folder = tempfile::tempdir().expect("a scratch folder can be made");
        let reports = daemon(&folder.path().join("ctl.sock"));
        let (gateway, _) = start(cell, folder.path(), RULES);
        for host in 1..=4 {
            let source = Ipv4Addr::new(127, 0, 0, 10 + host);
            for _ in 0..4 {
                smuggle(&gateway, source);
            }
            assert!(reports.try_recv().is_err(), "four attempts are not five");
            let began = Instant::now();
            smuggle(&gateway, source);
            let (arrived, report) = reports.recv_timeout(PATIENCE).expect("a report");
            let took = arrived.saturating_duration_since(began);
            println!("{cell}: reported after {took:?}");
            assert!(took < REPORTED_WITHIN, "{took:?}");
            assert_eq!((report.source.to_string(), report.reason), (source.to_string(), Reason::Framing));
            assert_eq!((report.ttl_ms, report.connection.local), (45_000, gateway.address));
            assert_eq!(report.connection.note, "length_and_coding");
            for _ in 0..10 {
                smuggle(&gateway, source);
            }
            wait_until("it is counted", PATIENCE, || counted(&gateway, "framing", "blocked") == u64::from(host));
        }
        assert!(reports.try_recv().is_err(), "one report is enough");
        gateway.stop();
    }

    /// Requests far over a limit are reported with the limit's name, from the connection's own peer whatever
    /// fields say.
    fn limit_abuse_is_reported_with_the_connections_peer(cell) {
        let folder = tempfile::tempdir().expect("a scratch folder can be made");
        let reports = daemon(&folder.path().join("ctl.sock"));
        let rules = format!("{RULES}limits = [{{ name = \"slow\", requests_per_second = 1 }}]\n");
        let (gateway, _) = start(cell, folder.path(), &rules);
        let mut client = gateway.connect();
        for _ in 0..60 {
            client.send("GET /hello HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\n\r\n");
            client.response();
        }
        let (_, report) = reports.recv_timeout(PATIENCE).expect("a report");
        assert_eq!((report.source.to_string().as_str(), report.reason), ("127.0.0.1", Reason::Limit));
        assert_eq!(report.connection.note, "limit:slow");
        assert!(reports.try_recv().is_err(), "one report is enough");
        gateway.stop();
    }

    /// Without a daemon the log says so once, reports are counted, and requests go on being answered. When it
    /// comes, it is found.
    fn without_a_daemon_reports_are_counted_and_it_is_found_when_it_comes(cell) {
        let folder = tempfile::tempdir().expect("a scratch folder can be made");
        let (gateway, socket) = start(cell, folder.path(), RULES);
        for host in 1..=3 {
            for _ in 0..6 {
                smuggle(&gateway, Ipv4Addr::new(127, 0, 0, 20 + host));
            }
        }
        wait_until("they are counted", PATIENCE, || counted(&gateway, "framing", "unreachable") == 3);
        assert_eq!(gateway.log().matches("until blitz-ctl answers on").count(), 1, "{}", gateway.log());
        assert_eq!(gateway.get("/hello").status, 200);
        let reports = daemon(&socket);
        let mut host = 30;
        wait_until("a report arrives", PATIENCE, || {
            host += 1;
            (0..5).for_each(|_| smuggle(&gateway, Ipv4Addr::new(127, 0, 0, host)));
            reports.recv_timeout(Duration::from_millis(50)).is_ok()
        });
        gateway.stop();
    }
}
