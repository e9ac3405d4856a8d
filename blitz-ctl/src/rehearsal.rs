#![forbid(unsafe_code)]
//! The object without an interface: loaded, filled, and run on packets by BPF_PROG_TEST_RUN.
//!
//! Owns: a private copy of program and maps that nobody else sees. Does not own: the stage on an interface,
//! which outlives its loader (see `stage`). Tests compare it with [`crate::twin`], benches time it, by
//! itself and for as long as it lives on a link.
//!
//! Loading needs the rights that attaching needs (bpf(2): CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON).

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap as Hash, LpmTrie, MapData, PerCpuArray, XskMap};
use aya::programs::{TestRun as _, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, Pod};
use blitz_ebpf_common::layout::{
    Block, BlockKey, Count, Deny, Fault, PROGRAM, Prefix4, Prefix6, RuleCount, SETTING_BLOCK, Seat,
    ServiceKey, Steer, Steered, Verdict, maps,
};
use blitz_ebpf_common::packet::Words;
use blitz_ebpf_common::sources::Set;

use crate::apply::allowed;
use crate::image::Image;
use crate::prefixes::Prefix;

/// Why a rehearsal could not be set up or run, with the kernel's words.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What may be set before the program is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// `ROTATE_SOURCES` of the object: zero, or how many source addresses each packet stands for.
    pub rotate_sources: u32,
}

/// A loaded program with its own maps.
pub struct Rehearsal {
    ebpf: Ebpf,
}

impl Rehearsal {
    /// Loads `object` and fills its maps with `image` and `blocked`.
    pub fn new(
        object: &[u8],
        image: &Image,
        blocked: &HashMap<BlockKey, Block>,
        options: Options,
    ) -> Result<Self, Failure> {
        let ebpf = EbpfLoader::new()
            .override_global("ROTATE_SOURCES", &options.rotate_sources, true)
            .map_max_entries(maps::SOURCES, image.sizes().source_sets())
            .map_max_entries(maps::DENY4, image.sizes().deny_entries())
            .map_max_entries(maps::DENY6, image.sizes().deny_entries())
            .load(object)?;
        let mut rehearsal = Self { ebpf };
        rehearsal.program()?.load()?;
        rehearsal.fill(image, blocked)?;
        Ok(rehearsal)
    }

    fn fill(&mut self, image: &Image, blocked: &HashMap<BlockKey, Block>) -> Result<(), Failure> {
        for (port, ports) in &image.ports {
            self.array(maps::PORTS)?.set(u32::from(*port), *ports, 0)?;
        }
        let mut services = self.hash::<ServiceKey, u32>(maps::SERVICE_AT)?;
        for (key, number) in &image.service_at {
            services.insert(key, number, 0)?;
        }
        for (number, service) in (0..).zip(&image.services) {
            self.array(maps::SERVICES)?.set(number, *service, 0)?;
        }
        for (number, limit) in (0..).zip(&image.limits) {
            self.array(maps::LIMITS)?.set(number, *limit, 0)?;
        }
        let (allow4, allow6) = allowed(image);
        let mut trie = LpmTrie::<_, u32, u32>::try_from(self.map(maps::ALLOW4)?)?;
        for ((length, data), flags) in allow4 {
            trie.insert(&Key::new(length, data), flags, 0)?;
        }
        let mut trie = LpmTrie::<_, Words, u32>::try_from(self.map(maps::ALLOW6)?)?;
        for ((length, data), flags) in allow6 {
            trie.insert(&Key::new(length, data), flags, 0)?;
        }
        let mut denied = self.hash::<Prefix4, Deny>(maps::DENY4)?;
        for (prefix, deny) in image.denied.entries() {
            if let Prefix::V4(p) = prefix {
                denied.insert(p, deny, 0)?;
            }
        }
        let mut denied = self.hash::<Prefix6, Deny>(maps::DENY6)?;
        for (prefix, deny) in image.denied.entries() {
            if let Prefix::V6(p) = prefix {
                denied.insert(p, deny, 0)?;
            }
        }
        for (bucket, lengths) in image.denied.index4() {
            self.array(maps::DENY_INDEX4)?.set(*bucket, *lengths, 0)?;
        }
        for (bucket, lengths) in image.denied.index6() {
            self.array(maps::DENY_INDEX6)?.set(*bucket, *lengths, 0)?;
        }
        self.array(maps::DENY_LENGTHS)?.set(0, image.denied.everywhere(), 0)?;
        let mut settings = image.settings();
        let mut block = self.hash::<BlockKey, Block>(maps::BLOCKED)?;
        for (key, entry) in blocked {
            block.insert(key, entry, 0)?;
            settings.flags |= SETTING_BLOCK;
        }
        self.array(maps::SETTINGS)?.set(0, settings, 0)?;
        Ok(())
    }

    /// Says how connection IDs are read, which workers live, and who owns the one receive queue on which packets come
    /// here.
    pub fn steer(&mut self, steer: &Steer, workers: &BTreeSet<Seat>, queue: Seat) -> Result<(), Failure> {
        self.array::<Steer>(maps::STEER)?.set(0, *steer, 0)?;
        for seat in workers {
            self.array::<Seat>(maps::WORKERS)?.set(seat.index(), *seat, 0)?;
        }
        self.array(maps::QUEUES)?.set(0, queue, 0)?;
        Ok(())
    }

    /// Puts an AF_XDP socket in the place of the receive queue; it has to have a receive ring.
    pub fn place(&mut self, socket: BorrowedFd<'_>) -> Result<(), Failure> {
        XskMap::try_from(self.map(maps::XSKS)?)?.set(0, socket.as_raw_fd(), 0)?;
        Ok(())
    }

    /// Whether one packet is not dropped. `frame` begins with its Ethernet header and has at least 14 octets.
    pub fn passes(&mut self, frame: &[u8]) -> Result<bool, Failure> {
        // xdp_action of linux/bpf.h.
        const XDP_DROP: u32 = 1;
        const XDP_PASS: u32 = 2;
        const XDP_REDIRECT: u32 = 4;
        match self.run(frame, 1)?.0 {
            XDP_DROP => Ok(false),
            XDP_PASS | XDP_REDIRECT => Ok(true),
            other => Err(format!("the program returned {other}").into()),
        }
    }

    /// The mean time of one of `repeat` runs on `frame`, as the kernel measures it.
    pub fn time(&mut self, frame: &[u8], repeat: u32) -> Result<Duration, Failure> {
        Ok(self.run(frame, repeat)?.1)
    }

    /// Links the program to an interface of this network namespace in native mode. The link ends with
    /// this value: nothing is pinned.
    ///
    /// # Errors
    /// The interface is missing, has another program, or has no native mode.
    pub fn link(&mut self, interface: &str) -> Result<(), Failure> {
        self.program()?.attach(interface, XdpMode::Driver)?;
        Ok(())
    }

    fn run(&mut self, frame: &[u8], repeat: u32) -> Result<(u32, Duration), Failure> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = repeat;
        let result = self.program()?.test_run(options)?;
        Ok((result.return_value, result.duration))
    }

    /// Instructions that the verifier has looked at, of the million that it may.
    pub fn verified_instructions(&mut self) -> Result<u32, Failure> {
        Ok(self.program()?.info()?.verified_instruction_count().ok_or("this kernel does not say")?)
    }

    /// Packets by verdict, so far.
    pub fn verdicts(&self) -> Result<[u64; Verdict::ALL.len()], Failure> {
        let counts = PerCpuArray::<_, Count>::try_from(self.map_ref(maps::VERDICTS)?)?;
        let mut sums = [0; Verdict::ALL.len()];
        for (number, sum) in (0..).zip(&mut sums) {
            *sum = counts.get(&number, 0)?.iter().map(|count| count.packets).sum();
        }
        Ok(sums)
    }

    /// Packets and octets that a rule decided, and that it would have dropped without `shadow`.
    pub fn rule(&self, number: u32) -> Result<RuleCount, Failure> {
        let counts = PerCpuArray::<_, RuleCount>::try_from(self.map_ref(maps::RULES)?)?;
        let mut sum = RuleCount::default();
        for count in counts.get(&number, 0)?.iter() {
            sum.decided.packets += count.decided.packets;
            sum.decided.bytes += count.decided.bytes;
            sum.shadow.packets += count.shadow.packets;
            sum.shadow.bytes += count.shadow.bytes;
        }
        Ok(sum)
    }

    /// How many sources the limiter's table holds now. Reads all of it: about a microsecond for four places.
    pub fn sources(&self) -> Result<usize, Failure> {
        let sets = Array::<_, Set<u64>>::try_from(self.map_ref(maps::SOURCES)?)?;
        let mut count = 0;
        for number in 0..sets.len() {
            count += sets.get(&number, 0)?.tags.iter().filter(|tag| **tag != 0).count();
        }
        Ok(count)
    }

    /// Datagrams of QUIC by what was found out about them, so far.
    pub fn steered(&self) -> Result<[u64; Steered::ALL.len()], Failure> {
        let counts = PerCpuArray::<_, u64>::try_from(self.map_ref(maps::STEERED)?)?;
        let mut sums = [0; Steered::ALL.len()];
        for (number, sum) in (0..).zip(&mut sums) {
            *sum = counts.get(&number, 0)?.iter().sum();
        }
        Ok(sums)
    }

    /// How often a fault was met.
    pub fn fault(&self, fault: Fault) -> Result<u64, Failure> {
        let counts = PerCpuArray::<_, u64>::try_from(self.map_ref(maps::FAULTS)?)?;
        Ok(counts.get(&(fault as u32), 0)?.iter().sum())
    }

    fn program(&mut self) -> Result<&mut Xdp, Failure> {
        Ok(self.ebpf.program_mut(PROGRAM).ok_or("the object has no program of this name")?.try_into()?)
    }

    fn map(&mut self, name: &str) -> Result<&mut aya::maps::Map, Failure> {
        self.ebpf.map_mut(name).ok_or_else(|| format!("the object has no map {name}").into())
    }

    fn map_ref(&self, name: &str) -> Result<&aya::maps::Map, Failure> {
        self.ebpf.map(name).ok_or_else(|| format!("the object has no map {name}").into())
    }

    fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>, Failure> {
        Ok(Array::try_from(self.map(name)?)?)
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> Result<Hash<&mut MapData, K, V>, Failure> {
        Ok(Hash::try_from(self.map(name)?)?)
    }
}
