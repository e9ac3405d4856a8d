#![forbid(unsafe_code)]
//! The stage without a kernel: the same decision over hash maps.
//!
//! Owns: [`Twin`], which answers for an [`Image`] what the loaded program would. Does not own: the
//! decision itself (`blitz_ebpf_common::decide`), which both run.
//!
//! Its use is to say why: in tests, which compare it with the loaded program, in fuzzing, and for
//! packets that never were on a wire.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::atomic::AtomicU64;

use blitz_ebpf_common::decide::quic::{Found, examine};
use blitz_ebpf_common::decide::{Decision, Tables, decide};
use blitz_ebpf_common::layout::{
    Block, BlockKey, Buckets, Deny, Dimension, Fault, Lengths, Limit, Ports, Prefix4, Prefix6, Seat, Service,
    ServiceKey, Settings, Steer, Steered,
};
use blitz_ebpf_common::packet::{Bytes, Family, Words};
use blitz_ebpf_common::sources::Set;

use crate::image::Image;
use crate::prefixes::Prefix;

type Triple = Rc<[AtomicU64; 3]>;

/// The tables of one interface, on one CPU, at a time of the caller's choice.
pub struct Twin {
    image: Image,
    blocked: HashMap<BlockKey, Block>,
    sources: RefCell<HashMap<u32, Rc<Set<AtomicU64>>>>,
    shared: RefCell<HashMap<u32, Triple>>,
    credit: RefCell<HashMap<u32, Buckets>>,
    versions: AtomicU64,
    /// How connection IDs are read; at first nobody has said so.
    pub steer: Option<Steer>,
    /// The workers that live; at first none.
    pub workers: BTreeSet<Seat>,
    /// Who owns the receive queue on which all packets come; at first nobody.
    pub queue: Seat,
    /// What was found out about datagrams of QUIC, in order.
    pub steered: RefCell<Vec<Steered>>,
    /// CLOCK_MONOTONIC in nanoseconds, as the next packet reads it.
    pub now: Cell<u64>,
    /// Rules in `shadow` that would have dropped packets, in order.
    pub shadowed: RefCell<Vec<u32>>,
    /// Faults met, in order.
    pub faults: RefCell<Vec<Fault>>,
}

impl Twin {
    /// The tables as `image` says, with `blocked` on the blocklist and all buckets full.
    pub fn new(image: Image, blocked: HashMap<BlockKey, Block>) -> Self {
        Self {
            image,
            blocked,
            sources: RefCell::default(),
            shared: RefCell::default(),
            credit: RefCell::default(),
            versions: AtomicU64::new(0),
            steer: None,
            workers: BTreeSet::new(),
            queue: Seat::NOBODY,
            steered: RefCell::default(),
            now: Cell::new(1),
            shadowed: RefCell::default(),
            faults: RefCell::default(),
        }
    }

    /// What the stage does with a frame, from its Ethernet header on.
    pub fn decide(&self, frame: &[u8]) -> Decision {
        decide(frame, u32::try_from(frame.len()).unwrap_or(u32::MAX), self)
    }
}

impl Tables for Twin {
    type Word = AtomicU64;
    type Words = Triple;
    type Set = Rc<Set<AtomicU64>>;

    fn settings(&self) -> Settings {
        let mut settings = self.image.settings();
        if !self.blocked.is_empty() {
            settings.flags |= blitz_ebpf_common::layout::SETTING_BLOCK;
        }
        settings
    }

    fn ports(&self, port: u16) -> Option<Ports> {
        Some(self.image.ports.get(&port).copied().unwrap_or_default())
    }

    fn service_at(&self, key: &ServiceKey) -> Option<u32> {
        self.image.service_at.get(key).copied()
    }

    fn service(&self, number: u32) -> Option<Service> {
        self.image.services.get(number as usize).copied()
    }

    fn allowed(&self, family: Family, source: &Words) -> u32 {
        let longest = self.image.allow.iter().filter(|(prefix, _)| holds(prefix, family, source));
        longest.max_by_key(|(prefix, _)| prefix.length()).map_or(0, |(_, flags)| *flags)
    }

    fn blocked(&self, key: &BlockKey) -> Option<Block> {
        self.blocked.get(key).copied()
    }

    fn lengths4(&self, bucket: u32) -> Option<Lengths> {
        Some(self.image.denied.index4_at(bucket))
    }

    fn lengths6(&self, bucket: u32) -> Option<Lengths> {
        Some(self.image.denied.index6_at(bucket))
    }

    fn everywhere4(&self, _: u32, word: usize) -> u64 {
        self.image.denied.everywhere().v4.get(word).copied().unwrap_or(0)
    }

    fn everywhere6(&self, _: u32, word: usize) -> u64 {
        self.image.denied.everywhere().v6.get(word).copied().unwrap_or(0)
    }

    fn deny4(&self, prefix: &Prefix4) -> Option<Deny> {
        self.image.denied.get(&Prefix::V4(*prefix)).copied()
    }

    fn deny6(&self, prefix: &Prefix6) -> Option<Deny> {
        self.image.denied.get(&Prefix::V6(*prefix)).copied()
    }

    fn limit(&self, number: u32) -> Option<&Limit> {
        self.image.limits.get(number as usize)
    }

    fn sources(&self, set: u32) -> Option<Self::Set> {
        Some(Rc::clone(self.sources.borrow_mut().entry(set).or_default()))
    }

    fn shared(&self, limit: u32) -> Option<Triple> {
        Some(Rc::clone(self.shared.borrow_mut().entry(limit).or_default()))
    }

    fn credit(&self, limit: u32) -> Option<Buckets> {
        Some(self.credit.borrow().get(&limit).copied().unwrap_or_default())
    }

    fn set_credit(&self, limit: u32, dimension: Dimension, value: u64) {
        *dimension.of_mut(&mut self.credit.borrow_mut().entry(limit).or_default().words) = value;
    }

    fn steer(&self) -> Option<&Steer> {
        self.steer.as_ref()
    }

    fn worker(&self, place: u32) -> Seat {
        self.workers.iter().find(|seat| seat.index() == place).copied().unwrap_or_default()
    }

    fn queue(&self) -> Seat {
        self.queue
    }

    fn versions(&self) -> Option<&AtomicU64> {
        Some(&self.versions)
    }

    fn steered(&self, reason: u32) {
        self.steered.borrow_mut().extend(Steered::ALL.get(reason as usize));
    }

    fn examine<B: Bytes + ?Sized>(&self, frame: &B, udp_at: usize, length: u32) -> Found {
        examine(frame, udp_at, length as usize, self)
    }

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn shadow(&self, rule: u32) {
        self.shadowed.borrow_mut().push(rule);
    }

    fn fault(&self, fault: Fault) {
        self.faults.borrow_mut().push(fault);
    }
}

fn holds(prefix: &Prefix, family: Family, source: &Words) -> bool {
    match (prefix, family) {
        (Prefix::V4(p), Family::V4) => Prefix4::of(source[3], p.length.into(), 0).address == p.address,
        (Prefix::V6(p), Family::V6) => Prefix6::of(source, p.length.into(), 0).address == p.address,
        _ => false,
    }
}
