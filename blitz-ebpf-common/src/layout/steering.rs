//! Layout of what steers QUIC: keys, who is where, and why a datagram went where it went.
//!
//! Owns: the values of the steering maps and the labels of their counters. Does not own: the decision
//! ([`crate::decide`]), the layout of connection IDs ([`crate::cid`]), writing (`blitz-ctl`).
//!
//! All of it is written while packets are decided by it, and nothing here needs two words to change at once: a
//! [`Seat`] is one word, and [`Steer`] is put out of force ([`Steer::version`]) before other keys come into it.

use crate::cid::{Codec, GENERATIONS, Routing, WORKERS_MAX};

/// Version of [`Steer`] and of what its words mean; 0 in a map that nobody has written, and while keys change.
pub const STEER_VERSION: u32 = 1;
/// Receive queues that can have a socket, from number 0 on. What comes on others goes to the kernel.
pub const QUEUES_MAX: u32 = 256;
/// Seats: the workers of one even and of one odd generation.
pub const SEATS: u32 = 2 * WORKERS_MAX;

/// How the stage reads connection IDs.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Steer {
    /// Until when a bad connection ID may be dropped where the policy says so, CLOCK_MONOTONIC nanoseconds. The
    /// gateway's word on its keys is that old at most: when nobody renews it, everything passes.
    pub drop_until: u64,
    /// [`STEER_VERSION`], or 0: nothing is steered and everything passes to the kernel.
    pub version: u32,
    /// The generation that new connections go to, as connection IDs have it.
    pub generation: u32,
    /// The keys.
    pub codec: Codec,
    /// Zero.
    pub reserved: u32,
}

/// Who owns a place: one worker of one generation, or nobody.
///
/// In [`super::maps::WORKERS`], at [`Self::index`]: the worker lives. In [`super::maps::QUEUES`], by receive queue:
/// its AF_XDP socket is bound there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seat {
    /// [`Self::TAKEN`], the generation and the worker as connection IDs have them; or 0.
    packed: u32,
}

impl Seat {
    /// Nobody's.
    pub const NOBODY: Self = Self { packed: 0 };
    const TAKEN: u32 = 1 << 31;

    /// That of a worker of a generation. `None` when the worker is [`WORKERS_MAX`] or more.
    pub const fn new(generation: u32, worker: u32) -> Option<Self> {
        match Routing::new(0, generation, worker) {
            Some(routing) => Some(Self::of(routing)),
            None => None,
        }
    }

    /// That of the worker which a connection ID names, on whatever host.
    #[inline(always)]
    pub const fn of(routing: Routing) -> Self {
        Self { packed: Self::TAKEN | routing.on_host() }
    }

    /// Whether it is somebody's.
    #[inline(always)]
    pub const fn is_taken(self) -> bool {
        self.packed & Self::TAKEN != 0
    }

    /// Its place among [`SEATS`]: generations of one parity share theirs, as they do in the bank of sockets.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.packed & (SEATS - 1)
    }

    /// The generation, modulo [`GENERATIONS`].
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.packed / WORKERS_MAX) & (GENERATIONS - 1)
    }

    /// The worker.
    #[inline(always)]
    pub const fn worker(self) -> u32 {
        self.packed & (WORKERS_MAX - 1)
    }
}

/// What was found out about a datagram to a service that speaks QUIC. Each gets exactly one, unless a list or a limit
/// ends it first.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Steered {
    /// Its worker owns this queue: to its socket.
    Owner = 0,
    /// Its worker lives and owns another queue, or none: to the kernel.
    Elsewhere = 1,
    /// A client chose the connection ID, and a worker of the current generation owns this queue: to its socket.
    Fresh = 2,
    /// A client chose the connection ID, and no worker for new connections owns this queue: to the kernel.
    FreshElsewhere = 3,
    /// It names a worker that nobody is: to the kernel, where somebody answers for it with a reset.
    UnknownWorker = 4,
    /// Nobody has said how to read connection IDs: to the kernel.
    Unset = 5,
    /// A version that we do not speak: to the kernel, where its sender is told which ones we do.
    Version = 6,
    /// The same, over the rate at which that is done.
    VersionOver = 7,
    /// A datagram with an Initial has at least 1200 octets (RFC 9000 section 14.1), and this one has not.
    SmallInitial = 8,
    /// A short header whose connection ID has another format or a wrong tag.
    BadCid = 9,
    /// Empty, or ends within its header.
    Cut = 10,
    /// Version Negotiation, which only servers send.
    VersionNegotiation = 11,
    /// A fragment, or hidden behind extension headers: to the kernel.
    Fragment = 12,
}

impl Steered {
    /// Each of them, by its number.
    pub const ALL: [Self; 13] = [
        Self::Owner,
        Self::Elsewhere,
        Self::Fresh,
        Self::FreshElsewhere,
        Self::UnknownWorker,
        Self::Unset,
        Self::Version,
        Self::VersionOver,
        Self::SmallInitial,
        Self::BadCid,
        Self::Cut,
        Self::VersionNegotiation,
        Self::Fragment,
    ];

    /// The value of the metric label `reason`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Elsewhere => "elsewhere",
            Self::Fresh => "fresh",
            Self::FreshElsewhere => "fresh_elsewhere",
            Self::UnknownWorker => "unknown_worker",
            Self::Unset => "unset",
            Self::Version => "version",
            Self::VersionOver => "version_over",
            Self::SmallInitial => "small_initial",
            Self::BadCid => "bad_cid",
            Self::Cut => "cut",
            Self::VersionNegotiation => "version_negotiation",
            Self::Fragment => "fragment",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_that_of_the_routing_on_any_host() {
        for (generation, worker) in [(0, 0), (1, 0), (5, 17), (63, 1023), (64, 1)] {
            let seat = Seat::new(generation, worker).expect("a worker");
            assert!(seat.is_taken());
            assert_eq!((seat.generation(), seat.worker()), (generation % GENERATIONS, worker));
            assert_eq!(seat.index(), (generation % 2) * WORKERS_MAX + worker);
            let routing = Routing::new(0xbeef, generation, worker).expect("a worker");
            assert_eq!(Seat::of(routing), seat);
        }
        assert_eq!(Seat::new(0, WORKERS_MAX), None);
        assert!(!Seat::NOBODY.is_taken() && Seat::default() == Seat::NOBODY);
    }
}
