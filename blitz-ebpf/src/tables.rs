//! The maps, and how the decision reads them.
//!
//! Owns: one static per map of `blitz_ebpf_common::layout`, and every access to their values. Does not
//! own: what is decided (`blitz_ebpf_common::decide`), or their contents (`blitz-ctl`).
//!
//! Values are read by copy. User space replaces elements of hashes as a whole; in arrays it writes words
//! that a packet may see before or after, and each of those words has a meaning on its own.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_xdp_get_buff_len};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray, XskMap};
use aya_ebpf::programs::XdpContext;
use blitz_ebpf_common::decide::quic::{Found, examine};
use blitz_ebpf_common::decide::{Decision, Tables};
use blitz_ebpf_common::gcra::Word;
use blitz_ebpf_common::layout::{
    ALLOW_MAX, BLOCKED_MAX, Block, BlockKey, Buckets, Count, DENY_MAX, Deny, Dimension, Everywhere, Fault,
    INDEX4, INDEX6, LIMITS_MAX, Layout, Lengths, Limit, NOTES_MAX, Note, PORTS as PORTS_MAX, Ports, Prefix4,
    Prefix6, QUEUES_MAX, RULES_MAX, RuleCount, RuleName, SEATS, SERVICE_AT_MAX, SERVICES_MAX, SOURCES_MAX,
    Seat, Service, ServiceKey, Settings, Steer, Steered, Verdict,
};
use blitz_ebpf_common::packet::{Bytes, Family, Words};
use blitz_ebpf_common::sources::{Set, WAYS};

use crate::atomic;
use crate::frame::{Frame, Scattered};

/// `BPF_F_NO_PREALLOC`: a hash takes memory as it fills.
const AS_IT_FILLS: u32 = 1;
/// `BPF_F_MMAPABLE`: the values begin with a page, so each set of 128 octets is two cache lines.
const BY_PAGES: u32 = 1 << 10;

#[map]
static LAYOUT: Array<Layout> = Array::with_max_entries(1, 0);
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static PORTS: Array<Ports> = Array::with_max_entries(PORTS_MAX, 0);
#[map]
static SERVICE_AT: HashMap<ServiceKey, u32> = HashMap::with_max_entries(SERVICE_AT_MAX, 0);
#[map]
static SERVICES: Array<Service> = Array::with_max_entries(SERVICES_MAX, 0);
#[map]
static ALLOW4: LpmTrie<u32, u32> = LpmTrie::with_max_entries(ALLOW_MAX, AS_IT_FILLS);
#[map]
static ALLOW6: LpmTrie<Words, u32> = LpmTrie::with_max_entries(ALLOW_MAX, AS_IT_FILLS);
#[map]
static BLOCKED: HashMap<BlockKey, Block> = HashMap::with_max_entries(BLOCKED_MAX, AS_IT_FILLS);
#[map]
static DENY4: HashMap<Prefix4, Deny> = HashMap::with_max_entries(DENY_MAX, AS_IT_FILLS);
#[map]
static DENY6: HashMap<Prefix6, Deny> = HashMap::with_max_entries(DENY_MAX, AS_IT_FILLS);
#[map]
static DENY_INDEX4: Array<Lengths> = Array::with_max_entries(2 * INDEX4, 0);
#[map]
static DENY_INDEX6: Array<Lengths> = Array::with_max_entries(2 * INDEX6, 0);
#[map]
static DENY_LENGTHS: Array<Everywhere> = Array::with_max_entries(2, 0);
#[map]
static LIMITS: Array<Limit> = Array::with_max_entries(LIMITS_MAX, 0);
#[map]
static SOURCES: Array<Set<u64>> = Array::with_max_entries(SOURCES_MAX / WAYS as u32, BY_PAGES);
#[map]
static SERVICE_WORDS: Array<Buckets> = Array::with_max_entries(LIMITS_MAX, 0);
#[map]
static SERVICE_CREDIT: PerCpuArray<Buckets> = PerCpuArray::with_max_entries(LIMITS_MAX, 0);
#[map]
static STEER: Array<Steer> = Array::with_max_entries(1, 0);
#[map]
static WORKERS: Array<Seat> = Array::with_max_entries(SEATS, 0);
#[map]
static QUEUES: Array<Seat> = Array::with_max_entries(QUEUES_MAX, 0);
#[map]
static XSKS: XskMap = XskMap::with_max_entries(QUEUES_MAX, 0);
#[map]
static VERSIONS: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static STEERED: PerCpuArray<u64> = PerCpuArray::with_max_entries(Steered::ALL.len() as u32, 0);
#[map]
static VERDICTS: PerCpuArray<Count> = PerCpuArray::with_max_entries(Verdict::ALL.len() as u32, 0);
#[map]
static RULES: PerCpuArray<RuleCount> = PerCpuArray::with_max_entries(RULES_MAX, 0);
#[map]
static FAULTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Fault::ALL.len() as u32, 0);
#[map]
static RULE_NAMES: Array<RuleName> = Array::with_max_entries(RULES_MAX, 0);
#[map]
static DENY_NOTES: HashMap<Prefix6, Note> = HashMap::with_max_entries(NOTES_MAX, AS_IT_FILLS);

/// The maps of this object, for one packet of `length` octets.
pub(crate) struct Maps {
    /// Octets of the frame, for the counters.
    pub(crate) length: u32,
    /// The packet.
    pub(crate) context: *mut xdp_md,
}

/// [`examine`] for the frame of `context`.
///
/// A function of its own with global linkage: the verifier looks at it once and takes every result for possible.
/// Inlined it is looked at anew for each way in which a packet can get there: more than the verifier's million.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn blitz_quic(context: *mut xdp_md, udp_at: u32) -> u32 {
    let packet = XdpContext::new(context);
    let maps = Maps::new(context);
    examine(&Scattered(Frame::new(&packet)), udp_at as usize, maps.length as usize, &maps).to_word()
}

impl Maps {
    /// For the packet of `context`, which is that of the program's very call.
    #[inline(always)]
    pub(crate) fn new(context: *mut xdp_md) -> Self {
        // SAFETY: the context of this very call.
        let length = unsafe { bpf_xdp_get_buff_len(context) } as u32;
        Self { length, context }
    }

    /// The receive queue on which the packet came.
    #[inline(always)]
    fn receive_queue(&self) -> u32 {
        // SAFETY: the context of this very call.
        unsafe { (*self.context).rx_queue_index }
    }

    /// Counts a decision under its verdict and its rule.
    #[inline(always)]
    pub(crate) fn count(&self, decision: Decision) {
        if let Some(count) = VERDICTS.get_ptr_mut(decision.verdict as u32) {
            // SAFETY: this CPU's own value; nothing else on this CPU writes it while the program runs.
            self.add(unsafe { &mut *count });
        }
        if decision.rule != 0
            && let Some(count) = RULES.get_ptr_mut(decision.rule)
        {
            // SAFETY: as above.
            self.add(unsafe { &mut (*count).decided });
        }
    }

    /// Sends the packet to the socket of its receive queue; where there is none, to the kernel. Returns what the
    /// program has to return.
    #[inline(always)]
    pub(crate) fn redirect(&self) -> u32 {
        match XSKS.redirect(self.receive_queue(), xdp_action::XDP_PASS.into()) {
            Ok(action) | Err(action) => action,
        }
    }

    #[inline(always)]
    fn add(&self, count: &mut Count) {
        count.packets += 1;
        count.bytes += u64::from(self.length);
    }
}

/// A bucket word in a map value.
#[repr(transparent)]
pub(crate) struct SharedWord(core::cell::UnsafeCell<u64>);

impl Word for SharedWord {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: map values are aligned to 8 octets and live until the program ends; every writer of a
        // bucket word uses one instruction.
        unsafe { atomic::load(self.0.get()) }
    }

    #[inline(always)]
    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        // SAFETY: as above, and the value is writable: it was looked up by this program.
        match unsafe { atomic::compare_exchange(self.0.get(), old, new) } {
            Ok(_) => Ok(()),
            Err(seen) => Err(seen),
        }
    }

    #[inline(always)]
    fn store(&self, new: u64) {
        // SAFETY: as above.
        unsafe { atomic::store(self.0.get(), new) }
    }
}

/// The words behind a pointer from a map.
#[inline(always)]
fn words<'a>(buckets: *mut Buckets) -> &'a [SharedWord; 3] {
    // SAFETY: `Buckets` is `repr(C)` around three `u64`, `SharedWord` is transparent around one that may
    // change; the kernel keeps the value readable until the program ends.
    unsafe { &*buckets.cast::<[SharedWord; 3]>() }
}

impl Tables for Maps {
    type Word = SharedWord;
    type Words = &'static [SharedWord; 3];
    type Set = &'static Set<SharedWord>;

    #[inline(always)]
    fn settings(&self) -> Settings {
        SETTINGS.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn ports(&self, port: u16) -> Option<Ports> {
        PORTS.get(u32::from(port)).copied()
    }

    #[inline(always)]
    fn service_at(&self, key: &ServiceKey) -> Option<u32> {
        // SAFETY: read once, by copy; see the module's head.
        unsafe { SERVICE_AT.get(key) }.copied()
    }

    #[inline(always)]
    fn service(&self, number: u32) -> Option<Service> {
        SERVICES.get(number).copied()
    }

    #[inline(always)]
    fn allowed(&self, family: Family, source: &Words) -> u32 {
        let flags = match family {
            Family::V4 => ALLOW4.get(Key::new(32, source[3].to_be())),
            Family::V6 => ALLOW6.get(Key::new(128, source.map(u32::to_be))),
        };
        flags.copied().unwrap_or(0)
    }

    #[inline(always)]
    fn blocked(&self, key: &BlockKey) -> Option<Block> {
        // SAFETY: read once, by copy; see the module's head.
        unsafe { BLOCKED.get(key) }.copied()
    }

    #[inline(always)]
    fn lengths4(&self, bucket: u32) -> Option<Lengths> {
        DENY_INDEX4.get(bucket).copied()
    }

    #[inline(always)]
    fn lengths6(&self, bucket: u32) -> Option<Lengths> {
        DENY_INDEX6.get(bucket).copied()
    }

    #[inline(always)]
    fn everywhere4(&self, slot: u32, word: usize) -> u64 {
        DENY_LENGTHS.get(slot).and_then(|lengths| lengths.v4.get(word)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn everywhere6(&self, slot: u32, word: usize) -> u64 {
        DENY_LENGTHS.get(slot).and_then(|lengths| lengths.v6.get(word)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn deny4(&self, prefix: &Prefix4) -> Option<Deny> {
        // SAFETY: read once, by copy; see the module's head.
        unsafe { DENY4.get(prefix) }.copied()
    }

    #[inline(always)]
    fn deny6(&self, prefix: &Prefix6) -> Option<Deny> {
        // SAFETY: read once, by copy; see the module's head.
        unsafe { DENY6.get(prefix) }.copied()
    }

    #[inline(always)]
    fn limit(&self, number: u32) -> Option<&Limit> {
        LIMITS.get(number)
    }

    #[inline(always)]
    fn sources(&self, set: u32) -> Option<Self::Set> {
        let set = SOURCES.get_ptr_mut(set)?;
        // SAFETY: `Set<u64>` and `Set<SharedWord>` have one layout; the kernel keeps the value readable
        // until the program ends.
        Some(unsafe { &*set.cast::<Set<SharedWord>>() })
    }

    #[inline(always)]
    fn shared(&self, limit: u32) -> Option<Self::Words> {
        SERVICE_WORDS.get_ptr_mut(limit).map(words)
    }

    #[inline(always)]
    fn credit(&self, limit: u32) -> Option<Buckets> {
        SERVICE_CREDIT.get(limit).copied()
    }

    #[inline(always)]
    fn set_credit(&self, limit: u32, dimension: Dimension, value: u64) {
        if let Some(credit) = SERVICE_CREDIT.get_ptr_mut(limit) {
            // SAFETY: this CPU's own value; nothing else on this CPU writes it while the program runs.
            let credit = unsafe { &mut *credit };
            *dimension.of_mut(&mut credit.words) = value;
        }
    }

    #[inline(always)]
    fn steer(&self) -> Option<&Steer> {
        STEER.get(0)
    }

    #[inline(always)]
    fn worker(&self, place: u32) -> Seat {
        WORKERS.get(place).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn queue(&self) -> Seat {
        QUEUES.get(self.receive_queue()).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn versions(&self) -> Option<&SharedWord> {
        let word = VERSIONS.get_ptr_mut(0)?;
        // SAFETY: transparent around a word that may change; the kernel keeps the value readable until the
        // program ends.
        Some(unsafe { &*word.cast::<SharedWord>() })
    }

    #[inline(always)]
    fn steered(&self, reason: u32) {
        if let Some(count) = STEERED.get_ptr_mut(reason) {
            // SAFETY: this CPU's own value; nothing else on this CPU writes it while the program runs.
            unsafe { *count += 1 };
        }
    }

    #[inline(always)]
    fn examine<B: Bytes + ?Sized>(&self, _: &B, udp_at: usize, _: u32) -> Found {
        // The frame is that of the context, which is all that may be passed on.
        Found::from_word(blitz_quic(self.context, udp_at as u32))
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn shadow(&self, rule: u32) {
        if let Some(count) = RULES.get_ptr_mut(rule) {
            // SAFETY: this CPU's own value; nothing else on this CPU writes it while the program runs.
            self.add(unsafe { &mut (*count).shadow });
        }
    }

    #[inline(always)]
    fn fault(&self, fault: Fault) {
        if let Some(count) = FAULTS.get_ptr_mut(fault as u32) {
            // SAFETY: as above.
            unsafe { *count += 1 };
        }
    }
}
