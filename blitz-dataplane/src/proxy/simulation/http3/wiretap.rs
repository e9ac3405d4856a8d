//! What can be told from outside: who got how much, and whether it was ever more than may be.
//!
//! Owns: the tally of each address that spoke to the gateway, the rules about it. Does not own: what is in the packets.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::runtime::sim::{Passage, Passing, Tap};

/// Times of what has come from an address that may be sent to it before it is proven (RFC 9000 section 8.1).
const AMPLIFICATION_MAX: u64 = 3;

/// Everything that has passed between the gateway and others.
#[derive(Default)]
pub(super) struct Wiretap {
    gateway: Cell<Option<SocketAddr>>,
    addresses: RefCell<BTreeMap<SocketAddr, Tally>>,
    /// Datagrams and bytes that the gateway has read, and that it has sent.
    pub(super) read: Cell<(u64, u64)>,
    pub(super) sent: Cell<(u64, u64)>,
    /// Of those sent to clients: lost on the way.
    pub(super) lost: Cell<u64>,
    /// FNV-1a of lengths, addresses and times.
    pub(super) trace: Cell<u64>,
    broken: RefCell<Vec<String>>,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    received: u64,
    sent: u64,
    /// Something from the gateway was read there, so what comes from there now may say so.
    may_know: bool,
    is_proven: bool,
    /// Nothing may be said to it.
    is_nobody: bool,
}

impl Wiretap {
    pub(super) fn new(gateway: SocketAddr) -> Rc<Self> {
        let wiretap = Self::default();
        wiretap.gateway.set(Some(gateway));
        Rc::new(wiretap)
    }

    pub(super) fn tap(self: &Rc<Self>) -> Tap {
        let wiretap = Rc::clone(self);
        Tap(Rc::new(move |passing| wiretap.note(passing)))
    }

    /// From now on nothing may be sent to `address`.
    pub(super) fn is_nobody(&self, address: SocketAddr) {
        self.addresses.borrow_mut().entry(address).or_default().is_nobody = true;
    }

    /// Bytes that the gateway has sent to `address`.
    pub(super) fn sent_to(&self, address: SocketAddr) -> u64 {
        self.addresses.borrow().get(&address).map_or(0, |tally| tally.sent)
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.broken.borrow().clone()
    }

    fn note(&self, passing: &Passing<'_>) {
        let Passing { now_ns, from, to, bytes, what } = *passing;
        let len = bytes.len() as u64;
        let is_from_gateway = Some(from) == self.gateway.get();
        self.hash(&[now_ns, len, u64::from(from.port()), u64::from(to.port()), what as u64]);
        let add = |sum: &Cell<(u64, u64)>| sum.set((sum.get().0 + 1, sum.get().1 + len));
        let mut addresses = self.addresses.borrow_mut();
        match what {
            Passage::Read if is_from_gateway => addresses.entry(to).or_default().may_know = true,
            Passage::Read => {
                add(&self.read);
                addresses.entry(from).or_default().received += len;
                // Who has several ports may show by one what he has read at another.
                for (_, tally) in addresses.iter_mut().filter(|(owner, _)| owner.ip() == from.ip()) {
                    tally.is_proven |= tally.may_know;
                }
            }
            Passage::Sent if is_from_gateway => {
                add(&self.sent);
                let tally = addresses.entry(to).or_default();
                tally.sent += len;
                let Tally { received, sent, is_proven, is_nobody, .. } = *tally;
                if !is_proven && sent > received * AMPLIFICATION_MAX {
                    self.say(format!("{sent} bytes to {to}, which is not proven and has sent {received}"));
                }
                if is_nobody {
                    self.say(format!("an answer of {len} bytes to {to}, which spoke to nobody here"));
                }
            }
            Passage::Lost if is_from_gateway => self.lost.set(self.lost.get() + 1),
            Passage::Sent | Passage::Arrived | Passage::Lost => {}
        }
    }

    fn say(&self, what: String) {
        let mut broken = self.broken.borrow_mut();
        if broken.len() < 5 {
            broken.push(what);
        }
    }

    fn hash(&self, numbers: &[u64]) {
        let mut hash = self.trace.get() ^ 0xCBF2_9CE4_8422_2325;
        for byte in numbers.iter().flat_map(|number| number.to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        self.trace.set(hash);
    }
}
