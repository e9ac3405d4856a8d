//! The steering rule as a classic BPF program, for `SO_ATTACH_REUSEPORT_CBPF`, which any user may set.
//!
//! Owns: the program's text for given keys and a given bank. Does not own: the rule ([`crate::steer`], with which the
//! program agrees on every datagram: `fuzz::steer` compares them), attaching it (`blitz-dataplane`).
//!
//! What the kernel makes of it (seen on Linux 6.18):
//! - Offset 0 is the first octet behind the UDP header and the length counts from there, also for a datagram in pieces.
//!   Of a GRO aggregate they are the first segment's octets and the length of the whole.
//! - The result is an index in the order in which the sockets were bound. An index that no socket has does not drop:
//!   the kernel chooses by its hash. So the program always names a socket, the sink when nobody gets the datagram.
//! - A load beyond the end ends the program with result 0, which is a worker's socket. So each load stands behind a
//!   comparison of the length.
//! - When a socket of a group is closed, the last takes its index. So a bank is closed whole.
//! - The program counts against `net.core.optmem_max` as the kernel translates it, 8 octets for each instruction and a
//!   little more. Older kernels have 20 KiB there; [`LENGTH_MAX`] leaves room.
//!
//! The machine has two registers, sixteen words of memory, no rotation, and jumps forward only. Conditional jumps reach
//! 255 instructions. So the permutation is written out twice: for the tag, and for what decides in the end, the mask of
//! a routing or the hash of a client's connection ID.

use core::ops::Deref;

use crate::chaskey::{Key, ROUNDS};
use crate::cid::{CID_BYTES, FORMAT, FORMAT_MASK, KEY_BIT, PADDING, WORKER_BITS, WORKERS_MAX};
use crate::quic::{LONG, LONG_DCID_AT, SHORT_DCID_AT, VERSION_NEGOTIATION};
use crate::steer::{Bank, PICK_BYTES, PICK_PADDING, Steering, counting};

pub(crate) mod machine;
mod opcode;

use opcode::{
    ADD_K, ADD_X, AND_K, JA, JEQ_K, JGE_K, JGE_X, JSET_K, LD_B, LD_B_X, LD_IMM, LD_LEN, LD_MEM, LD_W,
    LDX_MEM, LSH_K, MOD_K, MUL_K, OR_K, OR_X, RET_A, RET_K, RSH_K, ST, SUB_K, SUB_X, TAX, TXA, XOR_K, XOR_X,
};

/// One instruction: the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// Instructions to step over when the condition holds.
    pub jt: u8,
    /// Instructions to step over when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// The most instructions that a program of ours has: what still loads where `net.core.optmem_max` is 20 KiB. The
/// kernel's own bound is 4096.
pub const LENGTH_MAX: usize = 2100;

/// The filter (`SO_ATTACH_FILTER`) of the sink: it takes no octet of anything, so the kernel drops the datagram and
/// tells nobody.
pub const REFUSE_ALL: [Instruction; 1] = [Instruction { code: RET_K, jt: 0, jf: 0, k: 0 }];

/// A program, as a slice of its instructions. It holds the keys.
#[derive(Clone)]
pub struct Program {
    instructions: [Instruction; LENGTH_MAX],
    length: usize,
}

impl Deref for Program {
    type Target = [Instruction];

    fn deref(&self) -> &[Instruction] {
        &self.instructions[..self.length]
    }
}

/// The program that returns the index of the socket that [`Steering::aim`] chooses, and the sink's where that drops.
pub fn program(steering: &Steering) -> Program {
    let nothing = Instruction { code: RET_K, jt: 0, jf: 0, k: 0 };
    let program = Program { instructions: [nothing; LENGTH_MAX], length: 0 };
    let mut text = Text { program, waiting: [None; LABELS] };
    text.steer(steering);
    debug_assert!(text.waiting.iter().all(Option::is_none), "a jump leads nowhere");
    text.program
}

/// The words of memory.
mod memory {
    /// The four words of the permutation.
    pub(super) const STATE: [u32; 4] = [0, 1, 2, 3];
    /// The first half of a rotation.
    pub(super) const HALF: u32 = 4;
    /// The four words of a connection ID.
    pub(super) const CID: [u32; 4] = [5, 6, 7, 8];
    /// What is added to the first word of the permutation's result.
    pub(super) const AFTER: u32 = 9;
    /// Length of the destination connection ID, octets.
    pub(super) const DCID_LENGTH: u32 = 10;
    /// Length of the source connection ID, octets.
    pub(super) const SCID_LENGTH: u32 = 11;
    /// 1 when a client's connection ID is hashed, 0 when one of ours is unmasked.
    pub(super) const IS_PICK: u32 = 12;
}

/// Where unconditional jumps lead.
#[derive(Clone, Copy)]
enum Label {
    LongHeader,
    Unmask,
    Pick,
    Hash,
    Decide,
    Chosen,
}

const LABELS: usize = Label::Chosen as usize + 1;

/// The program, as far as it is written.
struct Text {
    program: Program,
    /// By label: the last jump to it that was written before it was. The operand of each names the one before.
    waiting: [Option<usize>; LABELS],
}

/// In the operand of a jump that waits: there is none before.
const FIRST: u32 = u32::MAX;

impl Text {
    fn steer(&mut self, steering: &Steering) {
        let bank = &steering.bank;
        self.drop_unless_longer(0, bank);
        self.put(LD_B, 0);
        self.jump_if(JSET_K, u32::from(LONG), Label::LongHeader);

        self.drop_unless_longer(SHORT_DCID_AT + CID_BYTES - 1, bank);
        self.put(LD_B, SHORT_DCID_AT as u32);
        self.put(AND_K, u32::from(FORMAT_MASK));
        self.drop_unless(JEQ_K, u32::from(FORMAT), bank);
        self.load_cid(SHORT_DCID_AT);
        self.jump(Label::Unmask);

        self.label(Label::LongHeader);
        self.long_header(bank);
        // A client chose it, unless length, format and tag say that we did.
        self.put(LD_MEM, memory::DCID_LENGTH);
        self.jump_unless(JEQ_K, CID_BYTES as u32, Label::Pick);
        self.put(LD_B, LONG_DCID_AT as u32);
        self.put(AND_K, u32::from(FORMAT_MASK));
        self.jump_unless(JEQ_K, u32::from(FORMAT), Label::Pick);
        self.load_cid(LONG_DCID_AT);
        let [first, second, masked, tag] = memory::CID;
        self.with_key(
            steering,
            [Word::Memory(first), Word::Memory(second), Word::Memory(masked), Word::Constant(PADDING)],
        );
        self.permute();
        self.result();
        self.put(LDX_MEM, tag);
        self.put(XOR_X, 0);
        self.jump_unless(JEQ_K, 0, Label::Pick);

        self.label(Label::Unmask);
        self.with_key(
            steering,
            [Word::Memory(first), Word::Memory(second), Word::Constant(PADDING), Word::Constant(0)],
        );
        self.put(LD_IMM, 0);
        self.put(ST, memory::IS_PICK);
        self.jump(Label::Decide);

        self.label(Label::Pick);
        self.pick(&steering.pick);

        self.label(Label::Decide);
        self.permute();
        self.result();
        self.put(ST, first);
        self.put(LD_MEM, memory::IS_PICK);
        self.jump_if(JEQ_K, 1, Label::Hash);

        self.put(LD_MEM, first);
        self.put(LDX_MEM, masked);
        self.put(XOR_X, 0);
        self.put(ST, first);
        self.put(AND_K, WORKERS_MAX - 1);
        self.drop_if(JGE_K, bank.workers(), bank);
        self.put(ST, second);
        self.put(LD_MEM, first);
        self.put(RSH_K, WORKER_BITS);
        self.put(AND_K, 1);
        self.put(MUL_K, bank.workers());
        self.put(LDX_MEM, second);
        self.put(ADD_X, 0);
        self.put(RET_A, 0);

        self.label(Label::Hash);
        self.put(LD_MEM, first);
        self.put(MOD_K, bank.workers());
        self.put(ADD_K, bank.base());
        self.put(RET_A, 0);
    }

    /// Drops what is no long header; leaves the lengths of the connection IDs in memory.
    fn long_header(&mut self, bank: &Bank) {
        let fixed = LONG_DCID_AT + 1;
        self.drop_unless_longer(LONG_DCID_AT + PICK_BYTES - 1, bank);
        self.put(LD_W, 1);
        self.drop_if(JEQ_K, VERSION_NEGOTIATION, bank);
        self.put(LD_B, LONG_DCID_AT as u32 - 1);
        self.put(ST, memory::DCID_LENGTH);
        self.put(TAX, 0);
        self.put(LD_LEN, 0);
        self.put(SUB_K, fixed as u32);
        self.drop_unless(JGE_X, 0, bank);
        self.put(LD_B_X, LONG_DCID_AT as u32);
        self.put(ST, memory::SCID_LENGTH);
        self.put(LD_LEN, 0);
        self.put(SUB_K, fixed as u32);
        self.put(SUB_X, 0);
        self.put(LDX_MEM, memory::SCID_LENGTH);
        self.drop_unless(JGE_X, 0, bank);
    }

    /// The octets of a client's connection ID that count, and its length, as the block to permute.
    fn pick(&mut self, key: &Key) {
        let [first, second, masked, _] = memory::CID;
        self.put(LD_MEM, memory::DCID_LENGTH);
        for length in 0..=PICK_BYTES as u8 {
            let is_last = usize::from(length) == PICK_BYTES;
            if !is_last {
                // When it has another length, over the seven instructions for this one. They alone change A.
                self.push(Instruction { code: JEQ_K, jt: 0, jf: 7, k: u32::from(length) });
            }
            for (half, word) in [first, second].into_iter().enumerate() {
                self.put(LD_W, (LONG_DCID_AT + 4 * half) as u32);
                self.put(AND_K, (counting(length) >> (32 - 32 * half)) as u32);
                self.put(ST, word);
            }
            if !is_last {
                self.jump(Label::Chosen);
            }
        }
        self.label(Label::Chosen);
        self.put(LD_MEM, memory::DCID_LENGTH);
        self.put(OR_K, PICK_PADDING);
        self.put(ST, masked);
        self.start(key, [Word::Memory(first), Word::Memory(second), Word::Memory(masked), Word::Constant(0)]);
        self.put(LD_IMM, 1);
        self.put(ST, memory::IS_PICK);
    }

    /// [`Self::start`] with the key that the connection ID names.
    fn with_key(&mut self, steering: &Steering, block: [Word; 4]) {
        self.put(LD_MEM, memory::CID[0]);
        let choice = self.program.length;
        self.put(JSET_K, KEY_BIT);
        self.start(&steering.codec.even, block);
        let end_of_even = self.program.length;
        self.put(JA, 0);
        let odd = self.program.length;
        self.start(&steering.codec.odd, block);
        let end_of_odd = self.program.length;
        self.program.instructions[choice].jt = (odd - choice - 1) as u8;
        self.program.instructions[end_of_even].k = (end_of_odd - odd) as u32;
    }

    /// Adds a block and a key to the state, and keeps what [`Self::result`] adds.
    fn start(&mut self, key: &Key, block: [Word; 4]) {
        for ((word, before), at) in block.into_iter().zip(key.before).zip(memory::STATE) {
            match word {
                Word::Memory(from) => {
                    self.put(LD_MEM, from);
                    self.put(XOR_K, before);
                }
                Word::Constant(word) => self.put(LD_IMM, word ^ before),
            }
            self.put(ST, at);
        }
        self.put(LD_IMM, key.after[0]);
        self.put(ST, memory::AFTER);
    }

    /// The permutation over the state; see [`crate::chaskey`].
    fn permute(&mut self) {
        let [a, b, c, d] = memory::STATE;
        for _ in 0..ROUNDS {
            self.mix(a, b, 5);
            self.turn(a);
            self.mix(c, d, 8);
            self.mix(a, d, 13);
            self.mix(c, b, 7);
            self.turn(c);
        }
    }

    /// `sum += other; other = (other <<< bits) ^ sum`.
    fn mix(&mut self, sum: u32, other: u32, bits: u32) {
        self.put(LD_MEM, sum);
        self.put(LDX_MEM, other);
        self.put(ADD_X, 0);
        self.put(ST, sum);
        self.rotate_x(bits);
        self.put(LDX_MEM, sum);
        self.put(XOR_X, 0);
        self.put(ST, other);
    }

    /// `word <<<= 16`.
    fn turn(&mut self, word: u32) {
        self.put(LDX_MEM, word);
        self.rotate_x(16);
        self.put(ST, word);
    }

    /// A = X rotated to the left.
    fn rotate_x(&mut self, bits: u32) {
        self.put(TXA, 0);
        self.put(LSH_K, bits);
        self.put(ST, memory::HALF);
        self.put(TXA, 0);
        self.put(RSH_K, u32::BITS - bits);
        self.put(LDX_MEM, memory::HALF);
        self.put(OR_X, 0);
    }

    /// A = the first word of the function's result.
    fn result(&mut self) {
        self.put(LD_MEM, memory::STATE[0]);
        self.put(LDX_MEM, memory::AFTER);
        self.put(XOR_X, 0);
    }

    /// Leaves the four words of the connection ID at `at` in memory.
    fn load_cid(&mut self, at: usize) {
        for (offset, word) in (at as u32..).step_by(4).zip(memory::CID) {
            self.put(LD_W, offset);
            self.put(ST, word);
        }
    }

    /// Drops the datagram unless it has more than `octets`.
    fn drop_unless_longer(&mut self, octets: usize, bank: &Bank) {
        self.put(LD_LEN, 0);
        self.drop_unless(JGE_K, octets as u32 + 1, bank);
    }

    /// Drops the datagram unless the condition holds.
    fn drop_unless(&mut self, code: u16, k: u32, bank: &Bank) {
        self.push(Instruction { code, jt: 1, jf: 0, k });
        self.put(RET_K, bank.sink());
    }

    /// Drops the datagram when the condition holds.
    fn drop_if(&mut self, code: u16, k: u32, bank: &Bank) {
        self.push(Instruction { code, jt: 0, jf: 1, k });
        self.put(RET_K, bank.sink());
    }

    fn jump_if(&mut self, code: u16, k: u32, label: Label) {
        self.push(Instruction { code, jt: 0, jf: 1, k });
        self.jump(label);
    }

    fn jump_unless(&mut self, code: u16, k: u32, label: Label) {
        self.push(Instruction { code, jt: 1, jf: 0, k });
        self.jump(label);
    }

    /// A jump to where `label` will be.
    fn jump(&mut self, label: Label) {
        let before = self.waiting[label as usize].replace(self.program.length);
        self.put(JA, before.map_or(FIRST, |before| before as u32));
    }

    /// Here the jumps to `label` end.
    fn label(&mut self, label: Label) {
        let here = self.program.length;
        let mut next = self.waiting[label as usize].take();
        while let Some(jump) = next {
            let operand = &mut self.program.instructions[jump].k;
            next = (*operand != FIRST).then_some(*operand as usize);
            *operand = (here - jump - 1) as u32;
        }
    }

    fn put(&mut self, code: u16, k: u32) {
        self.push(Instruction { code, jt: 0, jf: 0, k });
    }

    fn push(&mut self, instruction: Instruction) {
        // It fits: the length depends on neither keys nor bank, and a test knows it.
        self.program.instructions[self.program.length] = instruction;
        self.program.length += 1;
    }
}

/// A word of a block.
#[derive(Clone, Copy)]
enum Word {
    /// In memory.
    Memory(u32),
    /// Known when the program is written.
    Constant(u32),
}

#[cfg(test)]
mod tests;
