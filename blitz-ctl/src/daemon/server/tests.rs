//! The control socket over requests that only count.

use std::os::unix::process::CommandExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use blitz_ctl_protocol::Client;
use blitz_ctl_protocol::message::{ConnectionFacts, Outcome};

use super::*;

const WAIT: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Fake {
    refused: [AtomicUsize; 3],
    connections: AtomicUsize,
}

impl Requests for Fake {
    fn report(&self, _: &Report) -> std::result::Result<ReportDone, String> {
        Ok(ReportDone { outcome: Outcome::Blocked, remaining_ms: 1 })
    }

    fn unblock(&self, source: IpAddr) -> std::result::Result<bool, String> {
        Err(format!("{source} stays"))
    }

    fn list_blocked(&self, _: Option<IpAddr>) -> BlockedPage {
        BlockedPage { rows: Vec::new(), more: false }
    }

    fn status(&self) -> Status {
        Status {
            version: String::new(),
            pid: 0,
            uptime_ms: 0,
            interfaces: Vec::new(),
            blocked: 0,
            blocked_max: 0,
        }
    }

    fn steer(&self, _: &Steer, _: OwnedFd) -> std::result::Result<Vec<String>, String> {
        Ok(Vec::new())
    }

    fn queues(&self, interface: &str) -> std::result::Result<Queues, String> {
        Err(format!("{interface} has none"))
    }

    fn open_xdp(&self) -> std::result::Result<OwnedFd, String> {
        Ok(File::open("/dev/null").expect("a descriptor").into())
    }

    fn seat_xdp(&self, wanted: &SeatXdp, socket: OwnedFd) -> std::result::Result<(), String> {
        assert!(socket.try_clone().is_ok());
        Err(format!("{} has no queue {}", wanted.interface, wanted.seat.queue))
    }

    fn refused(&self, cause: Refusal) {
        self.refused[cause as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn connections(&self, count: usize) {
        self.connections.store(count, Ordering::Relaxed);
    }
}

struct Served {
    directory: tempfile::TempDir,
    _listener: Listener,
    fake: Arc<Fake>,
}

impl Served {
    fn new(user: Option<&str>) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))
            .expect("permissions");
        let listener = listen(&directory.path().join("ctl.sock")).expect("listen");
        let fake = Arc::new(Fake::default());
        start(&listener, Peers::new(user.map(str::to_owned)), Arc::clone(&fake)).expect("start");
        Self { directory, _listener: listener, fake }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("ctl.sock")
    }

    fn client(&self) -> Client {
        Client::connect(&self.path(), "test", WAIT).expect("connect")
    }

    fn refused(&self, cause: Refusal) -> usize {
        self.fake.refused[cause as usize].load(Ordering::Relaxed)
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether the tests run as root, as whom the socket takes every request; says so when they do not.
fn is_root() -> bool {
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !root {
        assert!(std::env::var_os("BLITZ_REQUIRE_ALL").is_none(), "this test needs root");
        eprintln!("skipped: needs root");
    }
    root
}

fn own_number() -> String {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("proc")).to_string()
}

#[test]
fn requests_and_descriptors_travel() {
    let served = Served::new(Some(&own_number()));
    let mut client = served.client();
    let peer = "192.0.2.1:1".parse().expect("address");
    let report = Report {
        source: "192.0.2.1".parse().expect("address"),
        reason: Reason::Framing,
        ttl_ms: 5,
        connection: ConnectionFacts { peer, local: peer, note: String::new() },
    };
    assert_eq!(client.report(&report).expect("report").outcome, Outcome::Blocked);
    let refused = client.unblock(report.source).expect_err("refused").to_string();
    assert_eq!(refused, "192.0.2.1 stays");
    assert!(client.list_blocked().expect("list").is_empty());
    let any = "127.0.0.1:0".parse().expect("address");
    let socket =
        client.open_socket(&OpenSocket { protocol: SocketProtocol::Tcp, address: any }).expect("socket");
    let socket = TcpListener::from(socket);
    let address = socket.local_addr().expect("bound");
    std::net::TcpStream::connect(address).expect("it listens");
    let facts = client.give_descriptor(&socket).expect("give");
    assert_eq!(
        (facts.domain, facts.kind, facts.protocol),
        (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP)
    );
    // The daemon kept no copy: with ours closed the port is free.
    let again = client.open_socket(&OpenSocket { protocol: SocketProtocol::Tcp, address });
    assert!(again.expect_err("in use").to_string().contains("another program has the port"));
    drop(socket);
    client.open_socket(&OpenSocket { protocol: SocketProtocol::Tcp, address }).expect("free again");
    let file = std::fs::File::open("/dev/null").expect("open");
    assert!(client.give_descriptor(&file).expect_err("no socket").to_string().contains("no socket"));
    until("one connection", || served.fake.connections.load(Ordering::Relaxed) == 1);
    drop(client);
    until("no connection", || served.fake.connections.load(Ordering::Relaxed) == 0);
}

#[test]
fn a_stranger_is_refused_by_the_kernels_word() {
    if !is_root() {
        return;
    }
    let served = Served::new(None);
    // The same program as another user: credentials belong to processes.
    let stranger = std::process::Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "daemon::server::tests::as_a_stranger", "--nocapture"])
        .env("BLITZ_CTL_TEST_SOCKET", served.path())
        .uid(65_534)
        .gid(65_534)
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&stranger.stdout);
    assert!(said.contains("user 65534 may not use this control socket"), "{said}");
    assert_eq!(served.refused(Refusal::User), 1);
    served.client().status().expect("root goes on");
}

/// The other half of the test above; on its own it does nothing.
#[test]
fn as_a_stranger() {
    if let Some(path) = std::env::var_os("BLITZ_CTL_TEST_SOCKET") {
        match Client::connect(Path::new(&path), "stranger", WAIT) {
            Ok(_) => println!("let in"),
            Err(error) => println!("{error}"),
        }
    }
}

#[test]
fn connections_are_bounded_and_places_come_back() {
    let served = Served::new(Some(&own_number()));
    let most = if own_number() == "0" { CONNECTIONS_MAX } else { CONNECTIONS_OF_USER_MAX };
    let clients: Vec<Client> = (0..most).map(|_| served.client()).collect();
    assert!(Client::connect(&served.path(), "one too many", WAIT).is_err());
    assert_eq!(served.refused(Refusal::TooMany), 1);
    drop(clients);
    until("places", || served.fake.connections.load(Ordering::Relaxed) == 0);
    served.client().status().expect("room again");
}

#[test]
fn strangers_take_no_place_of_those_who_may_speak() {
    let (requests, peers) = (Arc::new(Fake::default()), Peers::new(Some("7".to_owned())));
    let shared = Shared { requests, peers, counts: Mutex::default() };
    let taken = (0..1000).filter(|_| shared.enter(Seat::Stranger)).count();
    assert_eq!(taken, STRANGERS_MAX);
    let taken = (0..1000).filter(|_| shared.enter(Seat::User(7))).count();
    assert_eq!(taken, CONNECTIONS_OF_USER_MAX);
    let taken = (0..1000).filter(|_| shared.enter(Seat::User(0))).count();
    assert_eq!(taken, CONNECTIONS_MAX - CONNECTIONS_OF_USER_MAX);
    shared.leave(Seat::Stranger);
    assert!(shared.enter(Seat::Stranger));
    assert!(!shared.enter(Seat::User(0)));
}

#[test]
fn nobody_else_can_hold_the_lock() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("ctl.sock.lock");
    std::fs::write(&path, "").expect("write");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("permissions");
    let _listener = listen(&directory.path().join("ctl.sock")).expect("listen");
    let mode = std::fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_is_no_protocol_is_counted_and_ended() {
    let served = Served::new(Some(&own_number()));
    let mut stream = UnixStream::connect(served.path()).expect("connect");
    io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\n\r\n").expect("write");
    let mut text = Vec::new();
    io::Read::read_to_end(&mut stream, &mut text)
        .map(|_| ())
        .or_else(|error| match error.kind() {
            // The rest of what we sent was never read.
            io::ErrorKind::ConnectionReset => Ok(()),
            _ => Err(error),
        })
        .expect("ended");
    until("counted", || served.refused(Refusal::Protocol) == 1);
}

#[test]
fn a_socket_that_was_left_over_is_taken_over() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("run/ctl.sock");
    let first = listen(&path).expect("a directory is made");
    let second = listen(&path).expect_err("taken").to_string();
    assert!(second.contains("another blitz-ctl serves the control socket"), "{second}");
    assert!(path.exists(), "the refused one left the socket alone");
    drop(first);
    assert!(!path.exists());
    // A crash leaves the file and no listener.
    drop(UnixListener::bind(&path).expect("bind"));
    assert!(path.exists());
    drop(listen(&path).expect("taken over"));
    // Somebody else's listener is not.
    let theirs = UnixListener::bind(&path).expect("bind");
    assert!(listen(&path).expect_err("served").to_string().contains("serves"));
    drop(theirs);
    std::fs::remove_file(&path).expect("remove");
    std::fs::write(&path, "precious").expect("write");
    assert!(listen(&path).expect_err("a file").to_string().contains("is no socket"));
    assert_eq!(std::fs::read_to_string(&path).expect("read"), "precious");
}
