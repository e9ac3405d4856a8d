//! Free ports, waiting, and what goes on beside a test.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::sys;

/// A port of 127.0.0.1 that nothing uses. Ports below the ephemeral range are taken, so that no outgoing
/// connection of another test gets it as its source before the server binds it.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_240;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test binaries that run side by side start at different places.
    let offset = (std::process::id() % 199 * 101) as u16;
    for _ in 0..COUNT {
        let port = FIRST + (offset + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("none of {COUNT} ports from {FIRST} is free");
}

/// An address that refuses connections: it was free, and nobody listens.
pub fn closed_port() -> SocketAddr {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    // A process that another test is starting holds a copy of the probe's listening socket until it has
    // executed its program.
    wait_until("the probe is closed everywhere", Duration::from_secs(5), || {
        TcpStream::connect(address).is_err()
    });
    address
}

/// Connects from an address of this machine.
///
/// # Errors
/// As connect(2); EINPROGRESS when it takes longer than `limit`.
pub fn connect_from(source: Ipv4Addr, destination: SocketAddrV4, limit: Duration) -> io::Result<TcpStream> {
    sys::connect_from(source, destination, limit)
}

/// Runs `work`, and `again` again and again beside it, each time with the number of the time.
pub fn beside<T>(again: impl Fn(usize) + Sync, work: impl FnOnce() -> T) -> T {
    /// Also when the work panics: the other thread would go on for ever.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..).take_while(|_| !done.load(Ordering::SeqCst)).for_each(&again));
        let _done = Done(&done);
        work()
    })
}

/// Looks until `condition` holds. Panics with `what` when it does not within `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
