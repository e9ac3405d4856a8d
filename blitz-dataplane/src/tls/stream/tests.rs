//! Both ends against each other, without a network between them: bytes arrive in all sorts of pieces.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, ServerConfig};

use super::*;
use crate::tls::testing::{Certificates, config, material};

fn client(tls: &str, certificates: &Certificates) -> Arc<ClientConfig> {
    Arc::new(material(&config("[\"h1\"]", tls), &certificates.files()).client.clone())
}

/// How the bytes of a flight are cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Into two, at this position.
    At(usize),
    /// Into pieces of this length.
    Every(usize),
}

impl Cut {
    fn pieces(self, bytes: &[u8]) -> Vec<&[u8]> {
        match self {
            Self::At(at) => {
                let (front, back) = bytes.split_at(at.min(bytes.len()));
                [front, back].into_iter().filter(|piece| !piece.is_empty()).collect()
            }
            Self::Every(len) => bytes.chunks(len).collect(),
        }
    }
}

struct Pair {
    client: Session<UnbufferedClientConnection>,
    server: Session<UnbufferedServerConnection>,
    cut: Cut,
}

impl Pair {
    fn new(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, cut: Cut) -> Self {
        let name = ServerName::try_from("edge.test").expect("a name");
        let client = UnbufferedClientConnection::new(Arc::clone(client), name).expect("a client");
        let server = UnbufferedServerConnection::new(Arc::clone(server)).expect("a server");
        Self { client: Session::new(client), server: Session::new(server), cut }
    }

    /// Carries bytes to and fro until both ends have nothing more to say.
    fn settle(&mut self, mut to_server: Vec<u8>, mut to_client: Vec<u8>) {
        while !to_server.is_empty() || !to_client.is_empty() {
            let (mut from_server, mut from_client) = (Vec::new(), Vec::new());
            self.cut.pieces(&to_server).iter().for_each(|piece| self.server.take_in(piece, &mut from_server));
            self.cut.pieces(&to_client).iter().for_each(|piece| self.client.take_in(piece, &mut from_client));
            (to_server, to_client) = (from_client, from_server);
        }
    }

    fn shake_hands(&mut self) {
        let mut hello = Vec::new();
        self.client.take_in(&[], &mut hello);
        self.settle(hello, Vec::new());
    }
}

/// A handshake, a message in each direction, fresh keys, and an end.
fn converse(pair: &mut Pair) {
    pair.shake_hands();
    assert!(!pair.client.tls.common().is_handshaking() && !pair.server.tls.common().is_handshaking());
    let question: Vec<u8> = (0..20_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    pair.client.seal(&question, &mut up).expect("sealed");
    pair.server.seal(b"answer", &mut down).expect("sealed");
    pair.settle(up, down);
    assert!(pair.server.opened == question && pair.client.opened == b"answer");
    if pair.server.tls.common().protocol_version() == Some(ProtocolVersion::TLSv1_3) {
        let Ok(ConnectionState::WriteTraffic(traffic)) = pair.server.tls.process(&mut []).state else {
            panic!("the server cannot write");
        };
        traffic.refresh_traffic_keys().expect("fresh keys");
    }
    let mut down = Vec::new();
    pair.server.seal(b" and more", &mut down).expect("sealed");
    pair.settle(Vec::new(), down);
    assert_eq!(pair.client.opened, b"answer and more");
    let mut end = Vec::new();
    pair.client.seal_close(&mut end).expect("sealed");
    pair.settle(end, Vec::new());
    assert!(pair.server.has_ended && !pair.client.has_ended);
    assert!(pair.server.failure.is_none() && pair.client.failure.is_none());
    assert!(pair.server.unopened.is_empty() && pair.client.unopened.is_empty());
}

#[test]
fn it_does_not_matter_how_bytes_are_cut() {
    let certificates = Certificates::new();
    for (name, version) in [("1.3", &TLS13), ("1.2", &TLS12)] {
        let client = client(&format!("ca_path = \"ca.pem\"\nmin_version = \"{name}\""), &certificates);
        let server = certificates.server(version);
        let cuts = (1..80).chain((80..4_000).step_by(61)).map(Cut::At);
        for cut in cuts.chain([1, 2, 3, 5, 100, 1_000].map(Cut::Every)) {
            converse(&mut Pair::new(&client, &server, cut));
        }
    }
}

#[test]
fn sessions_are_resumed_at_both_ends() {
    let certificates = Certificates::new();
    let (client, server) = (client("ca_path = \"ca.pem\"", &certificates), certificates.server(&TLS13));
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let mut pair = Pair::new(&client, &server, Cut::Every(7));
        converse(&mut pair);
        assert_eq!(pair.client.tls.common().handshake_kind(), Some(kind));
        assert_eq!(pair.server.tls.common().handshake_kind(), Some(kind));
    }
}

#[test]
fn a_client_that_breaks_off_says_why() {
    let certificates = Certificates::new();
    let (client, server) = (client("ca_path = \"stranger.pem\"", &certificates), certificates.server(&TLS13));
    let mut pair = Pair::new(&client, &server, Cut::Every(1));
    pair.shake_hands();
    assert!(matches!(pair.client.failure, Some(rustls::Error::InvalidCertificate(_))));
    assert!(matches!(pair.server.failure, Some(rustls::Error::AlertReceived(_))), "the alert arrives");
    assert!(pair.client.seal(b"x", &mut Vec::new()).is_err());
}
