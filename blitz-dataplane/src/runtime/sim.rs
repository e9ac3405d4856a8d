//! The simulated world: a seed, and how unkind its network is.
//!
//! The same seed gives the same run, byte for byte and turn for turn. Time is virtual: it jumps to
//! the next event, so an hour of timeouts takes milliseconds.
//!
//! Owns: the knobs and the generator. Does not own: the network (see `driver::sim`).

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

/// A small seeded generator (SplitMix64), good enough to choose faults with.
#[derive(Clone, Debug)]
pub struct Rng(Rc<Cell<u64>>);

impl Rng {
    /// A generator that repeats itself for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(Cell::new(seed)))
    }

    /// The next 64 bits.
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.0.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; zero when the bound is zero.
    pub fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// True `per_mille` times in a thousand.
    pub fn chance(&self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// How the network behaves.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Longest delay of a segment or a completion, in microseconds.
    pub delay_us_max: u64,
    /// Whether reads and writes are cut short at random.
    pub short_io: bool,
    /// Chance in a thousand that a connection is reset at a random moment of its first second.
    pub reset_per_mille: u64,
    /// Bytes under way in one direction; beyond it the sender waits.
    pub window_bytes: usize,
    /// Slots of the receive pool; a small number makes it run empty.
    pub pool_slots: u16,
    /// Bytes per slot.
    pub pool_slot_bytes: u32,
    /// Chance in a thousand that a multishot operation ends early, as at a full completion queue.
    pub multishot_end_per_mille: u64,
    /// What happens to datagrams.
    pub weather: Weather,
}

/// What happens to datagrams on their way.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// How long each takes, in microseconds.
    pub delay_us: u64,
    /// How much longer it may take, in order, in microseconds.
    pub jitter_us_max: u64,
    /// Chance in a thousand that it is lost.
    pub loss_per_mille: u64,
    /// Chance in a thousand that it arrives twice.
    pub duplicate_per_mille: u64,
    /// Chance in a thousand that it takes a longer way, and others overtake it.
    pub late_per_mille: u64,
    /// How much longer that way is at most, in microseconds.
    pub late_us_max: u64,
    /// Nanoseconds for each byte of the link before a socket; what would wait for it longer than 100 ms is lost.
    pub byte_ns: u64,
    /// The largest that passes (bytes).
    pub mtu_bytes: usize,
    /// Chance in a thousand that those that wait are handed over together (GRO), for each one more.
    pub merge_per_mille: u64,
    /// Chance in a thousand that a send fails at once.
    pub send_error_per_mille: u64,
}

impl Weather {
    /// Everything arrives soon, once, and in order.
    pub const CALM: Self = Self {
        delay_us: 200,
        jitter_us_max: 0,
        loss_per_mille: 0,
        duplicate_per_mille: 0,
        late_per_mille: 0,
        late_us_max: 0,
        byte_ns: 0,
        mtu_bytes: 1500 - 20 - 8,
        merge_per_mille: 0,
        send_error_per_mille: 0,
    };

    /// Weather drawn from `rng`, fair or foul: up to a fifth is lost.
    pub fn random(rng: &Rng) -> Self {
        let pick = |values: [u64; 4]| values[rng.below(4) as usize];
        Self {
            delay_us: pick([100, 1_000, 10_000, 40_000]),
            jitter_us_max: pick([0, 100, 2_000, 10_000]),
            loss_per_mille: pick([0, 10, 80, 200]),
            duplicate_per_mille: pick([0, 0, 10, 100]),
            late_per_mille: pick([0, 0, 20, 150]),
            late_us_max: 1_000 + rng.below(60_000),
            byte_ns: pick([0, 0, 80, 800]),
            mtu_bytes: [1472, 1472, 1472, 9000][rng.below(4) as usize],
            merge_per_mille: pick([0, 500, 900, 1000]),
            send_error_per_mille: pick([0, 0, 5, 30]),
        }
    }
}

impl Profile {
    /// A network without faults.
    pub const CALM: Self = Self {
        delay_us_max: 200,
        short_io: false,
        reset_per_mille: 0,
        window_bytes: 64 * 1024,
        pool_slots: 256,
        pool_slot_bytes: 4096,
        multishot_end_per_mille: 0,
        weather: Weather::CALM,
    };

    /// A network drawn from `rng`, kind or unkind.
    pub fn random(rng: &Rng) -> Self {
        Self {
            delay_us_max: [0, 100, 5_000, 50_000][rng.below(4) as usize],
            short_io: rng.chance(700),
            reset_per_mille: [0, 0, 20, 150][rng.below(4) as usize],
            window_bytes: [700, 4096, 64 * 1024][rng.below(3) as usize],
            pool_slots: [4, 16, 256][rng.below(3) as usize],
            pool_slot_bytes: [64, 512, 4096][rng.below(3) as usize],
            multishot_end_per_mille: [0, 50, 300][rng.below(3) as usize],
            weather: Weather::CALM,
        }
    }
}

/// A connection to this port is never answered: the way to a connect timeout.
pub const BLACK_HOLE_PORT: u16 = 9;

/// A connection to this port finds no way to the host.
pub const UNREACHABLE_PORT: u16 = 7;

/// What has become of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It was sent.
    Sent,
    /// It lies at the socket that has its address.
    Arrived,
    /// The socket's owner has it.
    Read,
    /// Nobody will ever see it.
    Lost,
}

/// A datagram as somebody sees it who watches the network.
#[derive(Clone, Copy, Debug)]
pub struct Passing<'a> {
    /// Nanoseconds of virtual time.
    pub now_ns: u64,
    /// From whom, as the network sees it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// What it says.
    pub bytes: &'a [u8],
    /// What has become of it.
    pub what: Passage,
}

/// Watches datagrams.
#[derive(Clone)]
pub struct Tap(pub Rc<dyn Fn(&Passing<'_>)>);

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tap")
    }
}

/// One simulated world.
#[derive(Clone, Debug)]
pub struct World {
    /// Everything random comes out of this.
    pub rng: Rng,
    /// How the network behaves.
    pub profile: Profile,
    /// Who watches datagrams.
    pub tap: Option<Tap>,
}

impl World {
    /// A world of this seed whose network is drawn from it as well.
    pub fn from_seed(seed: u64) -> Self {
        let rng = Rng::new(seed);
        let profile = Profile::random(&rng);
        Self { rng, profile, tap: None }
    }

    /// A world of this seed with the given network.
    pub fn with_profile(seed: u64, profile: Profile) -> Self {
        Self { rng: Rng::new(seed), profile, tap: None }
    }
}
