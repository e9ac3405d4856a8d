//! Codes of classic BPF's instructions (`linux/filter.h`, `linux/bpf_common.h`).
//!
//! Owns: the codes that the program uses, by the names of its assembler: `_K` with the operand, `_X` with register X.
//! Does not own: what they do ([`super::machine`]).

/// A = four octets of the packet at K, network order.
pub(crate) const LD_W: u16 = 0x20;
/// A = the octet of the packet at K.
pub(crate) const LD_B: u16 = 0x30;
/// A = the octet of the packet at X + K.
pub(crate) const LD_B_X: u16 = 0x50;
/// A = K.
pub(crate) const LD_IMM: u16 = 0x00;
/// A = the packet's length.
pub(crate) const LD_LEN: u16 = 0x80;
/// A = memory word K.
pub(crate) const LD_MEM: u16 = 0x60;
/// X = memory word K.
pub(crate) const LDX_MEM: u16 = 0x61;
/// Memory word K = A.
pub(crate) const ST: u16 = 0x02;
/// A += K.
pub(crate) const ADD_K: u16 = 0x04;
/// A += X.
pub(crate) const ADD_X: u16 = 0x0c;
/// A -= K.
pub(crate) const SUB_K: u16 = 0x14;
/// A -= X.
pub(crate) const SUB_X: u16 = 0x1c;
/// A *= K.
pub(crate) const MUL_K: u16 = 0x24;
/// A |= K.
pub(crate) const OR_K: u16 = 0x44;
/// A |= X.
pub(crate) const OR_X: u16 = 0x4c;
/// A &= K.
pub(crate) const AND_K: u16 = 0x54;
/// A <<= K.
pub(crate) const LSH_K: u16 = 0x64;
/// A >>= K.
pub(crate) const RSH_K: u16 = 0x74;
/// A %= K, which is not 0.
pub(crate) const MOD_K: u16 = 0x94;
/// A ^= K.
pub(crate) const XOR_K: u16 = 0xa4;
/// A ^= X.
pub(crate) const XOR_X: u16 = 0xac;
/// Forward by K.
pub(crate) const JA: u16 = 0x05;
/// Is A = K?
pub(crate) const JEQ_K: u16 = 0x15;
/// Is A >= K?
pub(crate) const JGE_K: u16 = 0x35;
/// Is A >= X?
pub(crate) const JGE_X: u16 = 0x3d;
/// Is A & K not 0?
pub(crate) const JSET_K: u16 = 0x45;
/// The result is K.
pub(crate) const RET_K: u16 = 0x06;
/// The result is A.
pub(crate) const RET_A: u16 = 0x16;
/// X = A.
pub(crate) const TAX: u16 = 0x07;
/// A = X.
pub(crate) const TXA: u16 = 0x87;
