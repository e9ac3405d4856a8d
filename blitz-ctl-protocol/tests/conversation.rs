//! Both ends of the control socket talk to each other: handshake, every request, refusals, deadlines.

use std::fs::File;
use std::io::{Read, Seek as _, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blitz_ctl_protocol::message::{
    Bank, BankSteered, Blocked, BlockedPage, ConnectionFacts, DescriptorFacts, Hello, Kind, OpenSocket,
    Outcome, QueueSeat, Queues, Reason, Report, ReportDone, SeatDone, Socket, SocketFacts, SocketPlaced,
    SocketProtocol, Status, SteerDone, UnblockDone, XdpSocket,
};
use blitz_ctl_protocol::server::{Incoming, Session};
use blitz_ctl_protocol::{Client, Connection, Credentials, Error, frame};

const TIMEOUT: Duration = Duration::from_secs(10);

struct Daemon {
    path: PathBuf,
    _directory: tempfile::TempDir,
    thread: JoinHandle<Result<(), Error>>,
}

/// A daemon that serves one connection with `serve`.
fn daemon(
    admit: impl FnOnce(Credentials) -> Result<(), String> + Send + 'static,
    serve: impl FnMut(&mut Session, Incoming) -> Result<(), Error> + Send + 'static,
) -> Daemon {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("ctl.sock");
    let listener = UnixListener::bind(&path).expect("listen");
    let mut serve = serve;
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("accept");
        let mut session = Session::accept(stream, TIMEOUT, admit)?;
        loop {
            match session.next(Some(TIMEOUT)) {
                Ok(request) => serve(&mut session, request)?,
                Err(Error::Closed) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    });
    Daemon { path, _directory: directory, thread }
}

fn everyone(_: Credentials) -> Result<(), String> {
    Ok(())
}

fn report() -> Report {
    Report {
        source: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
        reason: Reason::Framing,
        ttl_ms: 60_000,
        connection: ConnectionFacts {
            peer: SocketAddr::from(([192, 0, 2, 7], 40_000)),
            local: SocketAddr::from(([192, 0, 2, 1], 80)),
            note: "content_length_and_transfer_encoding".to_owned(),
        },
    }
}

fn row(last: u8) -> Blocked {
    Blocked {
        source: IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)),
        reason: Some(Reason::Limit),
        age_ms: 5,
        remaining_ms: Some(100),
        note: String::new(),
    }
}

/// A descriptor that is told by what it holds.
fn file(text: &str) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    file.rewind().expect("rewound");
    file
}

fn read(descriptor: OwnedFd) -> String {
    let mut file = File::from(descriptor);
    let mut text = String::new();
    file.rewind().expect("rewound");
    file.read_to_string(&mut text).expect("read");
    text
}

const SEAT: QueueSeat = QueueSeat { queue: 1, generation: 0, worker: 3 };

#[test]
fn every_request_has_its_answer() {
    let daemon = daemon(everyone, |session, request| match request {
        Incoming::Report(asked) => {
            assert_eq!(asked, report());
            session.answer(&ReportDone { outcome: Outcome::Blocked, remaining_ms: 60_000 }, &[])
        }
        Incoming::Unblock(asked) => {
            assert_eq!(asked.source, report().source);
            session.answer(&UnblockDone { was_blocked: true }, &[])
        }
        Incoming::ListBlocked(asked) => {
            // Two pages.
            let (rows, more) = match asked.after {
                None => (vec![row(1), row(2)], true),
                Some(after) => {
                    assert_eq!(after, row(2).source);
                    (vec![row(3)], false)
                }
            };
            session.answer(&BlockedPage { rows, more }, &[])
        }
        Incoming::Status => session.answer(
            &Status {
                version: "1".to_owned(),
                pid: 1,
                uptime_ms: 2,
                interfaces: vec!["veth0".to_owned()],
                blocked: 3,
                blocked_max: 4,
            },
            &[],
        ),
        Incoming::OpenSocket(asked) => {
            assert_eq!(asked.protocol, SocketProtocol::Udp);
            let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
            let facts = SocketFacts { domain: 2, kind: 2, protocol: 17 };
            session.answer(&Socket(facts), &[socket.as_fd()])
        }
        Incoming::GiveDescriptor(given) => {
            let given = UdpSocket::from(given);
            assert!(given.local_addr().is_ok());
            session.answer(&DescriptorFacts(SocketFacts { domain: 2, kind: 2, protocol: 17 }), &[])
        }
        Incoming::Steer(asked, keys) => {
            assert_eq!((asked.alive.as_slice(), read(keys).as_str()), ([(4, 0), (4, 1)].as_slice(), "keys"));
            session.answer(&SteerDone { interfaces: vec!["veth0".to_owned()] }, &[])
        }
        Incoming::OpenBank(keys) => {
            assert_eq!(read(keys), "keys");
            let (program, map) = (file("program"), file("map"));
            session.answer(&Bank {}, &[program.as_fd(), map.as_fd()])
        }
        Incoming::PlaceSocket(asked, socket) => {
            assert_eq!(read(socket), format!("socket {}", asked.index));
            session.answer(&SocketPlaced {}, &[])
        }
        Incoming::SteerBank { map, keys } => {
            assert_eq!((read(map).as_str(), read(keys).as_str()), ("map", "keys"));
            session.answer(&BankSteered {}, &[])
        }
        Incoming::Queues(asked) => {
            assert_eq!(asked.interface, "veth0");
            session.answer(&Queues { index: 7, mtu: 1500, queues: 2, seats: Some(vec![SEAT]) }, &[])
        }
        Incoming::OpenXdp => {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
            session.answer(&XdpSocket {}, &[socket.as_fd()])
        }
        Incoming::SeatXdp(asked, socket) => {
            assert!(UdpSocket::from(socket).local_addr().is_ok());
            assert_eq!((asked.interface.as_str(), asked.seat), ("veth0", SEAT));
            session.answer(&SeatDone {}, &[])
        }
    });
    let mut client = Client::connect(&daemon.path, "test", TIMEOUT).expect("connect");
    assert_eq!(client.version(), 0);
    let done = client.report(&report()).expect("report");
    assert_eq!((done.outcome, done.remaining_ms), (Outcome::Blocked, 60_000));
    assert!(client.unblock(report().source).expect("unblock"));
    assert_eq!(client.list_blocked().expect("list"), [row(1), row(2), row(3)]);
    assert_eq!(client.status().expect("status").interfaces, ["veth0"]);
    let address = SocketAddr::from(([127, 0, 0, 1], 53));
    let socket = client.open_socket(&OpenSocket { protocol: SocketProtocol::Udp, address }).expect("socket");
    let socket = UdpSocket::from(socket);
    let queues = client.queues("veth0").expect("queues");
    assert_eq!((queues.index, queues.mtu, queues.queues, queues.seats), (7, 1500, 2, Some(vec![SEAT])));
    let given = client.open_xdp().expect("a socket");
    client.seat_xdp("veth0", SEAT, &given).expect("a place");
    assert_ne!(socket.local_addr().expect("bound").port(), 0);
    assert_eq!(client.give_descriptor(&socket).expect("give").protocol, 17);
    let steered = client.steer(vec![(4, 0), (4, 1)], file("keys")).expect("steer");
    assert_eq!(steered, ["veth0"]);
    let sockets = [file("socket 0"), file("socket 1")];
    let (program, map) =
        client.bank(file("keys"), sockets.iter().map(AsFd::as_fd)).expect("a program and a map");
    assert_eq!(read(program), "program");
    client.steer_bank(map, file("keys")).expect("steered");
    drop(client);
    daemon.thread.join().expect("thread").expect("ended in order");
}

#[test]
fn a_stranger_is_told_why_and_nothing_is_read_from_it() {
    let daemon = daemon(
        |peer| Err(format!("user {} may not use this socket", peer.uid)),
        |_, _| panic!("nothing is served"),
    );
    match Client::connect(&daemon.path, "test", TIMEOUT) {
        Err(Error::Refused(sentence)) => assert!(sentence.contains("may not use"), "{sentence}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(daemon.thread.join().expect("thread"), Err(Error::Refused(_))));
}

#[test]
fn a_client_of_another_version_is_told_which_there_are() {
    let daemon = daemon(everyone, |_, _| panic!("nothing is served"));
    let stream = UnixStream::connect(&daemon.path).expect("connect");
    let mut connection = Connection::new(stream);
    let hello = Hello { versions: vec![7, 8], name: "future".to_owned() };
    connection.send(&hello, &[], TIMEOUT).expect("send");
    let frame = connection.receive(Some(TIMEOUT), TIMEOUT).expect("answer");
    match frame.open::<blitz_ctl_protocol::message::Welcome>() {
        Err(Error::Refused(sentence)) => assert!(sentence.contains("[7, 8]"), "{sentence}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(connection.receive(Some(TIMEOUT), TIMEOUT), Err(Error::Closed)));
    assert!(matches!(daemon.thread.join().expect("thread"), Err(Error::Refused(_))));
}

#[test]
fn an_unknown_kind_or_key_is_refused_and_the_conversation_goes_on() {
    let daemon = daemon(everyone, |session, _| session.answer(&UnblockDone { was_blocked: false }, &[]));
    let mut stream = UnixStream::connect(&daemon.path).expect("connect");
    let mut tell = |kind: u16, payload: &str| {
        stream.write_all(&frame::encode(kind, payload.as_bytes()).expect("frame")).expect("write");
        let mut header = [0; 8];
        stream.read_exact(&mut header).expect("header");
        let [l0, l1, l2, l3, k0, k1, 0, 0] = header else { panic!("{header:?}") };
        let mut payload = vec![0; u32::from_le_bytes([l0, l1, l2, l3]) as usize - 4];
        stream.read_exact(&mut payload).expect("payload");
        (Kind::from_number(u16::from_le_bytes([k0, k1])), String::from_utf8(payload).expect("text"))
    };
    assert_eq!(
        tell(1, r#"{"versions":[0],"name":"raw"}"#),
        (Some(Kind::Welcome), r#"{"version":0}"#.to_owned())
    );
    let (kind, text) = tell(999, "{}");
    assert_eq!(kind, Some(Kind::Error));
    assert!(text.contains("999"), "{text}");
    let (kind, text) = tell(Kind::Unblock as u16, r#"{"source":"192.0.2.1","force":true}"#);
    assert_eq!(kind, Some(Kind::Error));
    assert!(text.contains("force"), "{text}");
    let (kind, text) = tell(Kind::Unblock as u16, r#"{"source":"192.0.2.1"}"#);
    assert_eq!((kind, text.as_str()), (Some(Kind::UnblockDone), r#"{"was_blocked":false}"#));
    drop(stream);
    daemon.thread.join().expect("thread").expect("ended in order");
}

#[test]
fn a_client_that_says_nothing_is_let_go() {
    let (stream, _silent) = UnixStream::pair().expect("pair");
    let started = Instant::now();
    let error = Session::accept(stream, Duration::from_millis(50), everyone).expect_err("silent");
    assert!(matches!(error, Error::TimedOut), "{error}");
    assert!(started.elapsed() < TIMEOUT);
}

#[test]
fn a_frame_that_trickles_has_one_deadline() {
    let (stream, mut slow) = UnixStream::pair().expect("pair");
    let octets = frame::encode(1, br#"{"versions":[0],"name":"slow"}"#).expect("frame");
    let trickle = std::thread::spawn(move || {
        for octet in octets {
            std::thread::sleep(Duration::from_millis(20));
            if slow.write_all(&[octet]).is_err() {
                return;
            }
        }
    });
    let error = Session::accept(stream, Duration::from_millis(100), everyone).expect_err("too slow");
    assert!(matches!(error, Error::TimedOut), "{error}");
    trickle.join().expect("thread");
}

#[test]
fn a_daemon_that_never_answers_costs_one_timeout() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("ctl.sock");
    let _listener = UnixListener::bind(&path).expect("listen");
    let error = Client::connect(&path, "test", Duration::from_millis(50)).expect_err("nobody accepts");
    assert!(matches!(error, Error::TimedOut), "{error}");
    assert!(error.is_transient());
    let error = Client::connect(&directory.path().join("none"), "test", TIMEOUT).expect_err("nobody listens");
    assert!(matches!(error, Error::Io(..)), "{error}");
}

#[test]
fn a_name_that_is_too_long_is_cut_at_a_character() {
    let daemon = daemon(everyone, |_, _| panic!("nothing is asked"));
    let client = Client::connect(&daemon.path, &"é".repeat(200), TIMEOUT).expect("connect");
    drop(client);
    daemon.thread.join().expect("thread").expect("ended in order");
}
