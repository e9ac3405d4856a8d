//! Several connections of HTTP/3 over one UDP socket, which moves while they download.
//!
//! Owns: the socket and its moves, the connections, what they have taken so far. Does not own: what is expected.
//!
//! What the connections have to send leaves in aggregates of datagrams of one size, of all connections in turn: so the
//! gateway's kernel receives them merged, each behind others that belong elsewhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use quiche::h3;

use crate::netns::Network;
use crate::{PATIENCE, sys};

/// Bytes that a client takes before it has read: so much comes beyond what a test waits for.
const WINDOW_BYTES: u64 = 128 << 10;
/// Bytes that come before anything else happens.
pub const FIRST_BYTES: u64 = 4 << 10;
/// Bytes that each connection takes between two moves.
pub const BETWEEN_BYTES: u64 = 64 << 10;
/// Moves of one connection, at most: the gateway takes no more.
pub const MOVES_EACH: usize = 30;
/// Datagrams in one aggregate, at most (count).
const SEGMENTS_MAX: usize = 16;

/// How the socket moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Unknown to the client, as when a NAT forgets.
    Rebinding,
    /// By its own will: each connection goes on with another connection ID (RFC 9000 section 9.5).
    Migration,
}

/// A connection of the bundle.
pub struct Carried {
    /// The transport.
    pub quic: quiche::Connection,
    h3: h3::Connection,
    /// Where it believes to be.
    local: SocketAddr,
    /// Connection IDs given out.
    sequence: u8,
    /// Bytes of bodies that have come.
    pub taken: u64,
    /// Downloads that are whole.
    pub downloads: u64,
    /// The download under way: its stream, the bytes of it.
    under_way: Option<(u64, u64)>,
    /// What was not as it has to be.
    pub fault: Option<String>,
}

/// The socket with its connections.
pub struct Bundle {
    network: Option<Network>,
    gateway: SocketAddr,
    socket: UdpSocket,
    /// The connections, in the order of the first octet of their connection IDs.
    pub connections: Vec<Carried>,
    body_bytes: u64,
    /// Bytes that each connection may have taken.
    allowed: u64,
    /// Datagrams sent.
    pub sent: u64,
}

fn config() -> quiche::Config {
    let mut config = crate::h3::config();
    config.set_initial_max_data(WINDOW_BYTES);
    config.set_initial_max_stream_data_bidi_local(WINDOW_BYTES);
    config.set_max_connection_window(WINDOW_BYTES);
    config.set_max_stream_window(WINDOW_BYTES);
    config.set_active_connection_id_limit(64);
    config
}

/// Sends datagrams of one size merged, as if the network had done it: the receiver's kernel looks at the first only.
///
/// # Panics
/// When there are none, or they cannot be sent.
pub fn send_merged(socket: &UdpSocket, datagrams: &[&[u8]], to: SocketAddr) {
    let size = u16::try_from(datagrams[0].len()).expect("a datagram is small");
    sys::send_segments(socket, &datagrams.concat(), size, to).expect("sent");
}

/// Moves that `BLITZ_H3_MOVES` asks for, or the usual ones.
///
/// # Panics
/// When it says no number.
pub fn moves_wanted(usual: usize) -> usize {
    std::env::var("BLITZ_H3_MOVES").map_or(usual, |text| text.parse().expect("BLITZ_H3_MOVES is a number"))
}

/// What the body has at a place.
pub fn octet_at(place: u64) -> u8 {
    (place % 251) as u8
}

impl Bundle {
    /// Opens a socket on `source` in a network, and `count` connections over it.
    ///
    /// # Panics
    /// When a handshake does not end well.
    #[track_caller]
    pub fn connect(network: Option<&Network>, source: IpAddr, gateway: SocketAddr, count: u8) -> Self {
        let network = network.cloned();
        let socket = open(network.as_ref(), source);
        let local = socket.local_addr().expect("it is bound");
        let mut bundle =
            Self { network, gateway, socket, connections: Vec::new(), body_bytes: 0, allowed: 0, sent: 0 };
        for number in 0..count {
            let scid = scid(number, 0);
            let scid = quiche::ConnectionId::from_ref(&scid);
            let quic = quiche::connect(Some("edge.test"), &scid, local, gateway, &mut config());
            let mut quic = quic.expect("a connection");
            bundle.establish(&mut quic);
            let h3 = h3::Config::new().and_then(|config| h3::Connection::with_transport(&mut quic, &config));
            let h3 = h3.expect("HTTP/3 begins");
            let (taken, downloads, sequence) = (0, 0, 0);
            bundle.connections.push(Carried {
                quic,
                h3,
                local,
                sequence,
                taken,
                downloads,
                under_way: None,
                fault: None,
            });
        }
        bundle
    }

    #[track_caller]
    fn establish(&mut self, quic: &mut quiche::Connection) {
        let local = self.socket.local_addr().expect("it is bound");
        let begun = Instant::now();
        let mut buffer = [0; 65_536];
        while !quic.is_established() {
            assert!(!quic.is_closed() && begun.elapsed() < PATIENCE, "no handshake: {:?}", quic.peer_error());
            while let Ok((length, _)) = quic.send(&mut buffer[..1350]) {
                self.sent += 1;
                self.socket.send_to(&buffer[..length], self.gateway).expect("sent");
            }
            self.socket.set_read_timeout(Some(Duration::from_millis(5))).expect("a timeout");
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    // Others may still be spoken to; what they miss is sent again.
                    let _ = quic.recv(&mut buffer[..length], quiche::RecvInfo { from, to: local });
                }
                Err(_) if quic.timeout().is_some_and(|left| left.is_zero()) => quic.on_timeout(),
                Err(_) => {}
            }
        }
    }

    /// Where it is.
    ///
    /// # Panics
    /// Never.
    pub fn local(&self) -> SocketAddr {
        self.socket.local_addr().expect("it is bound")
    }

    /// Has every connection download bodies of so many bytes, one after the other, and waits for the first of them: no
    /// client may move before its handshake is confirmed (RFC 9000 section 9).
    #[track_caller]
    pub fn download(&mut self, bytes: u64) {
        self.body_bytes = bytes;
        self.allow(FIRST_BYTES);
        self.until("downloads begin", Self::has_taken);
    }

    /// Lets every connection take so many bytes more, and no more than that: none is to starve the others.
    pub fn allow(&mut self, bytes: u64) {
        self.allowed += bytes;
    }

    /// Whether every connection has taken what it may, without fault.
    ///
    /// # Panics
    /// When one has not fared well.
    #[track_caller]
    pub fn has_taken(&self) -> bool {
        assert!(self.connections.iter().all(Carried::is_well), "{}", self.state());
        self.connections.iter().all(|connection| connection.taken >= self.allowed)
    }

    /// Moves the socket to another port of `source`.
    ///
    /// # Panics
    /// When a connection has no other connection ID left.
    #[track_caller]
    pub fn go(&mut self, source: IpAddr, how: Move) {
        self.socket = open(self.network.as_ref(), source);
        let local = self.socket.local_addr().expect("it is bound");
        for connection in &mut self.connections {
            if connection.quic.is_closed() || connection.quic.is_draining() {
                continue;
            }
            if how == Move::Migration {
                connection.quic.migrate(local, self.gateway).expect("another connection ID is there");
                connection.quic.probe_path(local, self.gateway).expect("the path is there");
                connection.local = local;
            }
            // So that the gateway hears of it.
            connection.quic.send_ack_eliciting().expect("it is open");
        }
    }

    /// Turns until `is_done`.
    #[track_caller]
    pub fn until(&mut self, what: &str, is_done: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !is_done(self) {
            assert!(begun.elapsed() < 3 * PATIENCE, "{what}: not within half a minute\n{}", self.state());
            self.turn();
        }
    }

    /// Moves so often with every connection in mid-download of bodies of so many bytes, until all downloads are whole;
    /// closes, and returns the datagrams sent.
    #[track_caller]
    pub fn travel(mut self, moves: usize, bytes: u64, source: impl Fn(usize) -> IpAddr) -> u64 {
        self.download(bytes);
        for nth in 0..moves {
            self.allow(BETWEEN_BYTES);
            // Something is on its way when the socket moves.
            (0..2).for_each(|_| self.turn());
            self.go(source(nth), if nth % 2 == 0 { Move::Rebinding } else { Move::Migration });
            self.until("every download goes on", Self::has_taken);
        }
        self.allow(bytes - (FIRST_BYTES + moves as u64 * BETWEEN_BYTES) % bytes);
        self.until("every download is whole", |bundle| {
            bundle.has_taken() && bundle.connections.iter().all(Carried::is_between)
        });
        self.close()
    }

    /// Closes all connections, and says so; datagrams sent.
    pub fn close(mut self) -> u64 {
        for connection in &mut self.connections {
            // It may be closed already.
            let _closed = connection.quic.close(true, crate::h3::code::NO_ERROR, b"");
        }
        self.flush();
        self.sent
    }

    /// What its connections say, for when something is wrong.
    pub fn state(&self) -> String {
        let of = |connection: &Carried| {
            let quic = &connection.quic;
            format!(
                "taken {} downloads {} closed {} timed out {} peer {:?} local {:?} fault {:?}\n",
                connection.taken,
                connection.downloads,
                quic.is_closed(),
                quic.is_timed_out(),
                quic.peer_error(),
                quic.local_error(),
                connection.fault,
            )
        };
        self.connections.iter().map(of).collect()
    }

    /// Sends what there is to be sent, takes what has come or comes within a few milliseconds.
    pub fn turn(&mut self) {
        self.flush();
        let mut buffer = [0; 65_536];
        self.socket.set_read_timeout(Some(Duration::from_millis(2))).expect("a timeout");
        self.socket.set_nonblocking(false).expect("an option");
        for _ in 0..64 {
            let Ok((length, from)) = self.socket.recv_from(&mut buffer) else { break };
            self.socket.set_nonblocking(true).expect("an option");
            let number = match buffer[0] & 0x80 {
                0 => buffer[1],
                _ => buffer[6],
            };
            let Some(connection) = self.connections.get_mut(usize::from(number)) else { continue };
            let info = quiche::RecvInfo { from, to: connection.local };
            // What comes after the end is no matter.
            let _ = connection.quic.recv(&mut buffer[..length], info);
        }
        let (wanted, allowed) = (self.body_bytes, self.allowed);
        for (number, connection) in (0..).zip(&mut self.connections) {
            if connection.quic.timeout().is_some_and(|left| left.is_zero()) {
                connection.quic.on_timeout();
            }
            connection.offer_ids(number);
            connection.take(wanted, allowed);
        }
        self.flush();
    }

    /// Sends what the connections have to say, those of one size together and in turn.
    fn flush(&mut self) {
        let mut by_size: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
        let mut out = [0; 1350];
        for _ in 0..SEGMENTS_MAX {
            for connection in &mut self.connections {
                if let Ok((length, _)) = connection.quic.send(&mut out) {
                    by_size.entry(length).or_default().push(out[..length].to_vec());
                }
            }
        }
        for (size, datagrams) in by_size {
            let size = u16::try_from(size).expect("a datagram is small");
            for together in datagrams.chunks(SEGMENTS_MAX) {
                self.sent += together.len() as u64;
                sys::send_segments(&self.socket, &together.concat(), size, self.gateway).expect("sent");
            }
        }
    }
}

impl Carried {
    /// Whether a download goes on without fault.
    pub fn is_well(&self) -> bool {
        self.fault.is_none() && !self.quic.is_closed() && self.quic.peer_error().is_none()
    }

    /// Whether no download is under way.
    pub fn is_between(&self) -> bool {
        self.under_way.is_none()
    }

    fn offer_ids(&mut self, number: u8) {
        while self.quic.scids_left() > 0 {
            self.sequence += 1;
            let sequence = self.sequence;
            let scid = scid(number, sequence);
            let token = u128::from(number) << 8 | u128::from(sequence);
            if self.quic.new_scid(&quiche::ConnectionId::from_ref(&scid), token, false).is_err() {
                break;
            }
        }
    }

    fn take(&mut self, wanted: u64, allowed: u64) {
        if self.under_way.is_none() && self.taken < allowed && self.is_well() {
            let request = crate::h3::request("GET", "/body");
            if let Ok(id) = self.h3.send_request(&mut self.quic, &request, true) {
                self.under_way = Some((id, 0));
            }
        }
        let mut ended = false;
        while let Ok((id, event)) = self.h3.poll(&mut self.quic) {
            match event {
                h3::Event::Finished => ended = true,
                h3::Event::Reset(code) => self.fault = Some(format!("stream {id} was reset with {code:#x}")),
                _ => {}
            }
        }
        let Some((id, at)) = &mut self.under_way else { return };
        let mut piece = [0; 16 * 1024];
        while self.taken < allowed {
            let room = piece.len().min(usize::try_from(allowed - self.taken).unwrap_or(usize::MAX));
            let Ok(count) = self.h3.recv_body(&mut self.quic, *id, &mut piece[..room]) else { break };
            if piece[..count].iter().zip(*at..).any(|(octet, place)| *octet != octet_at(place)) {
                self.fault = Some(format!("a wrong octet behind {at}"));
            }
            *at += count as u64;
            self.taken += count as u64;
        }
        if ended {
            if *at != wanted {
                self.fault = Some(format!("{at} bytes instead of {wanted}"));
            }
            self.downloads += 1;
            self.under_way = None;
        }
    }
}

fn scid(number: u8, sequence: u8) -> [u8; 8] {
    [number, sequence, 0, 0, 0, 0, 0, number]
}

fn open(network: Option<&Network>, source: IpAddr) -> UdpSocket {
    let open = || {
        let socket = UdpSocket::bind((source, 0)).expect("a socket");
        // A plain user gets the usual size.
        let _refused = sys::force_receive_buffer(&socket, 8 << 20);
        socket
    };
    match network {
        Some(network) => network.run(open),
        None => open(),
    }
}
