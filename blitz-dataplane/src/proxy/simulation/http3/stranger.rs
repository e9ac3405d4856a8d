//! Whoever speaks to the gateway without wanting a connection: spoofed sources, a thief of tokens, noise.
//!
//! Owns: what they send. Does not own: what may come back (`wiretap.rs`).
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use blitz_ebpf_common::cid::Routing;

use super::Scene;
use super::peer::{self, Peer};
use crate::http3::keys::GENERATION;
use crate::runtime::sim::Rng;
use crate::runtime::{Transmit, UdpSocket};

/// How long a spoofer goes on repeating its first packets.
const INSISTS: Duration = Duration::from_secs(20);

fn address(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 9, 0, host], port))
}

/// First packets from an address where nobody listens.
pub(super) async fn spoofs(scene: Rc<Scene>, rng: Rng, number: u16) {
    let env = &scene.env;
    env.handle.sleep(Duration::from_millis(rng.below(env.span_ms))).await;
    scene.env.ledger.count("stranger spoofs");
    let victim = address(1, 1000 + number);
    let mut peer = Peer::new(env, address(2, 1000 + number), &rng, &mut peer::config(&rng));
    // What is said to the victim is read by nobody.
    peer.leaves_by = Some(peer.add_port(victim));
    peer.is_deaf = true;
    peer.until(INSISTS, |_| false).await;
}

/// A token that was given to one address, shown from another.
pub(super) async fn steals(scene: Rc<Scene>, rng: Rng) {
    let env = &scene.env;
    let mut peer = Peer::new(env, address(3, 1), &rng, &mut peer::config(&rng));
    if !peer.until(Duration::from_secs(10), |peer| peer.received > 0).await {
        return;
    }
    scene.env.ledger.count("stranger steals");
    peer.leaves_by = Some(peer.add_port(address(5, 2)));
    peer.is_deaf = true;
    peer.until(INSISTS, |_| false).await;
}

/// Datagrams that belong to no connection, each kind from an address of its own.
pub(super) async fn babbles(scene: Rc<Scene>, rng: Rng) {
    let env = &scene.env;
    let random = |len: usize| -> Vec<u8> { (0..len).map(|_| rng.next() as u8).collect() };
    let short = |cid: &[u8], len: usize| [&[0x40 | rng.next() as u8 & 0x3f], cid, &random(len)].concat();
    let long = |version: u32, dcid: &[u8], len: usize| {
        let mut packet = vec![0xc0];
        packet.extend(version.to_be_bytes());
        packet.push(dcid.len() as u8);
        packet.extend(dcid);
        packet.push(8);
        packet.extend(random(8));
        // No token, and as much as there is.
        packet.extend([0, 0x40 | (len >> 8) as u8, len as u8]);
        packet.extend(random(len.saturating_sub(packet.len())));
        packet
    };
    let codec = scene.keys.steering(2).expect("few workers").codec;
    let cid = |worker: u32| {
        codec.encode(Routing::new(0, GENERATION, worker).expect("few workers"), rng.next()).to_vec()
    };
    // What it is, what is sent, and whether anything may come back.
    let kinds: [(&str, Vec<u8>, bool); 10] = [
        // A longer one may look like a version that nobody speaks.
        ("noise", random(1 + rng.below(1199) as usize), false),
        ("a connection ID of nobody", short(&random(16), 40), false),
        ("a connection ID of another worker", short(&cid(1), 40), false),
        ("a connection ID of ours, too short to be answered", short(&cid(0), 4), false),
        ("a connection ID of ours", short(&cid(0), 40 + rng.below(1000) as usize), true),
        ("another version", long(0xfafa_fafa, &random(8), 1200), true),
        ("another version, too short", long(0xfafa_fafa, &random(8), 600), false),
        ("a first packet that is too short", long(1, &random(8), 1100), false),
        ("a first packet whose connection ID is too short", long(1, &random(7), 1200), false),
        ("a first packet that nobody can open", long(1, &random(8), 1200), scene.retries),
    ];
    for (number, (what, bytes, may_be_answered)) in kinds.into_iter().enumerate() {
        let address = address(4, 1 + number as u16);
        if !may_be_answered {
            scene.wiretap.is_nobody(address);
        }
        let Ok(socket) = UdpSocket::simulated(&env.handle, address, 1) else { return };
        let mut buffer = bytes.clone().into_boxed_slice();
        let transmit = Transmit { to: env.gateway, from: None, segment: None };
        let _sent = socket.start_send(0, &mut buffer, bytes.len(), transmit);
        env.handle.sleep(Duration::from_millis(300 + rng.below(300))).await;
        if scene.wiretap.sent_to(address) > 0 {
            scene.env.ledger.count(&format!("answered: {what}"));
        }
    }
}
