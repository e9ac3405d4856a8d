//! First packets of QUIC in bursts.

use std::net::UdpSocket;

use blitz_tests::initial::DATAGRAM_BYTES_MIN;
use blitz_tests::{Initial, PATIENCE, Pki, Setup, matrix, process};

matrix! { mp only:
    /// However many first packets a worker finds at once, everybody is asked for proof: a client that is not waits for
    /// a second before it says its own again.
    fn nobody_in_a_burst_is_forgotten(cell) {
        const BURST: u64 = 100;
        let pki = Pki::edge();
        let toml = pki.h3_listener("") + "[http3]\nretry = \"always\"\n";
        let gateway = Setup::new(cell).config(&toml).start();
        let socket = UdpSocket::bind((gateway.address.ip(), 0)).expect("a socket");
        let said = Initial::new("edge.test");
        process::halt(gateway.workers()[0], || {
            for number in 0..BURST {
                let dcid = number.to_be_bytes();
                socket.send_to(&said.sealed(&dcid, DATAGRAM_BYTES_MIN), gateway.address).expect("sent");
            }
        });
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        for number in 0..BURST {
            socket.recv(&mut [0; 1500]).unwrap_or_else(|error| panic!("{number} were answered: {error}"));
        }
        assert_eq!(gateway.metric("blitz_quic_datagrams_received_total{fate=\"retry\"}"), BURST);
        gateway.stop();
    }
}
