//! The handshake generator: TLS 1.3 handshakes in a closed loop, full or resumed, and what became of them.
//!
//! `handshakes ADDRESS GROUP full|resumed SECONDS`. Sixteen connections at a time, each: connect, shake hands, say
//! close_notify, end the sending side, wait until the server has ended the connection, so that it has seen all of it.
//! A resumed handshake presents a ticket that an earlier connection has brought; requests before the begin bring the
//! first ones.
//!
//! Prints `RESULT done seconds bad mean_us`; `bad`: broken, or not of the kind that was asked for.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blitz_bench::floor;
use blitz_bench::tls::client_config;
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup};

/// Handshakes under way.
const CONCURRENT: usize = 16;
/// Tickets that are kept; more are dropped.
const TICKETS_MAX: usize = 4 * CONCURRENT;
/// A connection that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let address: SocketAddr = floor::argument(1, "address of the server")?;
    let group: String = floor::argument(2, "group")?;
    let kind: String = floor::argument(3, "kind, full or resumed")?;
    let seconds: u64 = floor::argument(4, "number of seconds")?;
    let mut config = client_config(&group)?;
    let tickets = Arc::new(Tickets::default());
    let wanted = match kind.as_str() {
        "full" => {
            config.resumption = Resumption::disabled();
            HandshakeKind::Full
        }
        "resumed" => {
            config.resumption = Resumption::store(Arc::clone(&tickets) as Arc<dyn ClientSessionStore>);
            HandshakeKind::Resumed
        }
        _ => return Err("the kind is full or resumed".into()),
    };
    let config = Arc::new(config);
    let name = ServerName::try_from("localhost")?;
    // Fetches tickets, and finds out whether the server speaks the group at all.
    for _ in 0..CONCURRENT {
        fetch(&config, &name, address)?;
    }
    tickets.are_shown.store(true, Ordering::Relaxed);
    let mut connections: Vec<Option<Connection>> = (0..CONCURRENT).map(|_| None).collect();
    let mut polled = vec![libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; CONCURRENT];
    let (mut done, mut bad, mut waited) = (0_u64, 0_u64, Duration::ZERO);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        for (slot, entry) in connections.iter_mut().zip(&mut polled) {
            if slot.is_none() {
                let connection = Connection::open(&config, &name, address)?;
                entry.fd = connection.tcp.as_raw_fd();
                *slot = Some(connection);
            }
        }
        // SAFETY: the pointer leads to as many entries as are named, which live across the call.
        unsafe { libc::poll(polled.as_mut_ptr(), CONCURRENT as libc::nfds_t, 100) };
        for (slot, entry) in connections.iter_mut().zip(&polled) {
            let Some(connection) = slot else { continue };
            let is_late = connection.begun.elapsed() > LIMIT;
            if entry.revents == 0 && !is_late {
                continue;
            }
            match connection.go_on() {
                Ok(false) if !is_late => continue,
                Ok(true) if connection.tls.handshake_kind() == Some(wanted) && connection.is_in(&group) => {
                    done += 1;
                    waited += connection.begun.elapsed();
                }
                _ => bad += 1,
            }
            *slot = None;
        }
    }
    let mean = waited.as_micros() as f64 / done.max(1) as f64;
    println!("RESULT {done} {:.3} {bad} {mean:.0}", begun.elapsed().as_secs_f64());
    Ok(())
}

struct Connection {
    tcp: TcpStream,
    tls: ClientConnection,
    begun: Instant,
    is_closing: bool,
}

impl Connection {
    fn open(
        config: &Arc<ClientConfig>,
        name: &ServerName<'static>,
        address: SocketAddr,
    ) -> Result<Self, Box<dyn Error>> {
        let begun = Instant::now();
        // Over loopback this does not wait.
        let tcp = TcpStream::connect(address)?;
        tcp.set_nodelay(true)?;
        tcp.set_nonblocking(true)?;
        let mut connection = Self {
            tcp,
            tls: ClientConnection::new(Arc::clone(config), name.clone())?,
            begun,
            is_closing: false,
        };
        connection.send()?;
        Ok(connection)
    }

    /// Goes on as far as it can. Whether the server has ended the connection after a whole handshake.
    fn go_on(&mut self) -> io::Result<bool> {
        loop {
            match self.tls.read_tls(&mut self.tcp) {
                Ok(0) => return Ok(self.is_closing),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // A server may meet our close with a reset: it has seen all of the handshake.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ok(self.is_closing);
                }
                Err(error) => return Err(error),
            }
            self.tls.process_new_packets().map_err(io::Error::other)?;
            if !self.tls.is_handshaking() && !self.is_closing {
                self.is_closing = true;
                self.tls.send_close_notify();
                self.send()?;
                // Not every server takes the one without the other.
                self.tcp.shutdown(Shutdown::Write)?;
            }
            self.send()?;
        }
    }

    /// What a handshake sends is less than a socket takes.
    fn send(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            if self.tls.write_tls(&mut self.tcp)? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    fn is_in(&self, group: &str) -> bool {
        let used = self.tls.negotiated_key_exchange_group().map(|used| used.name());
        matches!(
            (group, used),
            ("X25519", Some(NamedGroup::X25519)) | ("X25519MLKEM768", Some(NamedGroup::X25519MLKEM768))
        )
    }
}

/// A request, after whose answer a ticket is there.
fn fetch(
    config: &Arc<ClientConfig>,
    name: &ServerName<'static>,
    address: SocketAddr,
) -> Result<(), Box<dyn Error>> {
    let mut tls = ClientConnection::new(Arc::clone(config), name.clone())?;
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(LIMIT))?;
    let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; 4096];
    let count = stream.read(&mut answer)?;
    if answer[..count].starts_with(b"HTTP/1.1 ") {
        Ok(())
    } else {
        Err("the server speaks no HTTP/1.1".into())
    }
}

/// The tickets that are to be shown: each once, as rustls does it.
#[derive(Debug, Default)]
struct Tickets {
    kept: Mutex<Vec<Tls13ClientSessionValue>>,
    /// Not while the first ones are fetched: a full handshake brings more of them.
    are_shown: AtomicBool,
}

impl Tickets {
    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Tls13ClientSessionValue>> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut kept = self.kept();
        if kept.len() < TICKETS_MAX {
            kept.push(value);
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        if self.are_shown.load(Ordering::Relaxed) { self.kept().pop() } else { None }
    }
}
