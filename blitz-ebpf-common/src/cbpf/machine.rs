//! The machine of classic BPF, as far as the program uses it.
//!
//! Owns: what each instruction does, and the kernel's rules for a program that it takes: every jump stays inside, no
//! memory is read that was not written. Does not own: the program. Nothing runs here but tests and the fuzz target.

use super::Instruction;
use super::opcode::{
    ADD_K, ADD_X, AND_K, JA, JEQ_K, JGE_K, JGE_X, JSET_K, LD_B, LD_B_X, LD_IMM, LD_LEN, LD_MEM, LD_W,
    LDX_MEM, LSH_K, MOD_K, MUL_K, OR_K, OR_X, RET_A, RET_K, RSH_K, ST, SUB_K, SUB_X, TAX, TXA, XOR_K, XOR_X,
};

/// Words of memory (`BPF_MEMWORDS`).
const MEMORY_WORDS: usize = 16;

/// What `program` returns for `packet`. A load beyond the packet's end ends it with 0, as in the kernel.
///
/// # Panics
/// When the program does what the kernel would refuse.
pub(crate) fn run(program: &[Instruction], packet: &[u8]) -> u32 {
    let (mut a, mut x) = (0u32, 0u32);
    let mut memory = [None; MEMORY_WORDS];
    let mut at = 0;
    loop {
        let Instruction { code, jt, jf, k } = *program.get(at).expect("the program ends with a result");
        let word =
            |memory: &[Option<u32>; MEMORY_WORDS]| memory[k as usize].expect("memory is written first");
        let mut step = |is_true: bool| at += usize::from(if is_true { jt } else { jf });
        match code {
            LD_W | LD_B | LD_B_X => {
                let from = k.wrapping_add(if code == LD_B_X { x } else { 0 }) as usize;
                let octets = if code == LD_W { 4 } else { 1 };
                let Some(loaded) = packet.get(from..from.saturating_add(octets)) else { return 0 };
                a = loaded.iter().fold(0, |word, octet| word << 8 | u32::from(*octet));
            }
            LD_IMM => a = k,
            LD_LEN => a = packet.len() as u32,
            LD_MEM => a = word(&memory),
            LDX_MEM => x = word(&memory),
            ST => memory[k as usize] = Some(a),
            ADD_K => a = a.wrapping_add(k),
            ADD_X => a = a.wrapping_add(x),
            SUB_K => a = a.wrapping_sub(k),
            SUB_X => a = a.wrapping_sub(x),
            MUL_K => a = a.wrapping_mul(k),
            OR_K => a |= k,
            OR_X => a |= x,
            AND_K => a &= k,
            LSH_K => a = a.checked_shl(k).expect("the kernel refuses a shift by 32"),
            RSH_K => a = a.checked_shr(k).expect("the kernel refuses a shift by 32"),
            MOD_K => a = a.checked_rem(k).expect("the kernel refuses a division by 0"),
            XOR_K => a ^= k,
            XOR_X => a ^= x,
            JA => at += k as usize,
            JEQ_K => step(a == k),
            JGE_K => step(a >= k),
            JGE_X => step(a >= x),
            JSET_K => step(a & k != 0),
            TAX => x = a,
            TXA => a = x,
            RET_K => return k,
            RET_A => return a,
            _ => panic!("no such instruction: {code:#x}"),
        }
        at += 1;
    }
}
