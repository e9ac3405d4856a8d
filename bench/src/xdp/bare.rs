//! The floor of an XDP program: it drops every frame and does nothing else.
//!
//! Owns: its two instructions, the object around them (ELF, System V ABI), loading, timing, linking.

use aya::Ebpf;
use aya::programs::{TestRun as _, TestRunOptions, Xdp, XdpMode};

use crate::Result;

const NAME: &str = "bare_drop";
/// `r0 = XDP_DROP; exit` (RFC 9669 sections 4.1 and 4.3).
const INSTRUCTIONS: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// The loaded program. Dropping it unloads and unlinks it.
pub(super) struct Bare {
    ebpf: Ebpf,
}

impl Bare {
    pub(super) fn new() -> Result<Self> {
        let ebpf = Ebpf::load(&object()).map_err(|error| format!("the bare drop: {error}"))?;
        let mut bare = Self { ebpf };
        bare.program()?.load().map_err(|error| format!("the bare drop: {error}"))?;
        Ok(bare)
    }

    /// Runs it `repeat` times (BPF_PROG_TEST_RUN).
    pub(super) fn run(&mut self, frame: &[u8], repeat: u32) -> Result<()> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = repeat;
        let result = self.program()?.test_run(options).map_err(|error| format!("the bare drop: {error}"))?;
        // XDP_DROP of linux/bpf.h.
        if result.return_value == 1 { Ok(()) } else { Err("the bare drop does not drop".to_owned()) }
    }

    /// Links it to an interface in native mode, until it is dropped.
    pub(super) fn link(&mut self, interface: &str) -> Result<()> {
        let linked = self.program()?.attach(interface, XdpMode::Driver);
        linked.map(drop).map_err(|error| format!("the bare drop on {interface}: {error}"))
    }

    fn program(&mut self) -> Result<&mut Xdp> {
        let program = self.ebpf.program_mut(NAME).ok_or("the bare drop has no program")?;
        program.try_into().map_err(|error| format!("the bare drop: {error}"))
    }
}

/// A relocatable ELF object of four sections: the program, its license, one symbol, the names.
fn object() -> Vec<u8> {
    const HEADER_BYTES: u64 = 64;
    const SYMBOL_BYTES: u64 = 24;
    // Names of sections and symbols in one table: (name, offset in it).
    let mut names = vec![0_u8];
    let mut name = |text: &str| {
        let at = names.len() as u32;
        names.extend(text.as_bytes());
        names.push(0);
        at
    };
    // The same kind of program as the stage: one that takes frames of several fragments.
    let (program_name, license_name) = (name("xdp.frags"), name("license"));
    let (symbols_name, names_name, symbol_name) = (name(".symtab"), name(".strtab"), name(NAME));

    let program = INSTRUCTIONS.concat();
    let license = b"GPL\0".to_vec();
    let mut symbols = vec![0; SYMBOL_BYTES as usize];
    symbols.extend(symbol_name.to_le_bytes());
    // A global function in section 1.
    symbols.extend([0x12, 0, 1, 0]);
    symbols.extend(0_u64.to_le_bytes());
    symbols.extend((program.len() as u64).to_le_bytes());

    // Name, type, flags, contents, section of the names, first global symbol, entry size.
    // Types: 1 PROGBITS, 2 SYMTAB, 3 STRTAB; flags: 2 ALLOC, 4 EXECINSTR.
    let sections = [
        (program_name, 1_u32, 2_u64 | 4, program, 0_u32, 0_u32, 0_u64),
        (license_name, 1, 2, license, 0, 0, 0),
        (symbols_name, 2, 0, symbols, 4, 1, SYMBOL_BYTES),
        (names_name, 3, 0, names, 0, 0, 0),
    ];
    let mut contents = Vec::new();
    let mut headers = vec![0; HEADER_BYTES as usize];
    for (name, kind, flags, bytes, link, info, entry) in sections {
        contents.resize(contents.len().next_multiple_of(8), 0);
        let offset = HEADER_BYTES + contents.len() as u64;
        headers.extend(name.to_le_bytes());
        headers.extend(kind.to_le_bytes());
        for word in [flags, 0, offset, bytes.len() as u64] {
            headers.extend(word.to_le_bytes());
        }
        headers.extend(link.to_le_bytes());
        headers.extend(info.to_le_bytes());
        for word in [8, entry] {
            headers.extend(word.to_le_bytes());
        }
        contents.extend(bytes);
    }
    contents.resize(contents.len().next_multiple_of(8), 0);

    // 64 bits, little endian, version 1.
    let mut object = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // ET_REL, EM_BPF.
    object.extend([1, 0, 247, 0, 1, 0, 0, 0]);
    // No entry point, no program headers, then the section headers' place, no flags.
    for word in [0, 0, HEADER_BYTES + contents.len() as u64] {
        object.extend(word.to_le_bytes());
    }
    object.extend([0; 4]);
    // Sizes and counts: this header, program headers, section headers (the first is empty), the names.
    for half in [HEADER_BYTES as u16, 0, 0, HEADER_BYTES as u16, 5, 4] {
        object.extend(half.to_le_bytes());
    }
    object.extend(contents);
    object.extend(headers);
    object
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_object_is_one_that_the_loader_reads() {
        let object = super::object();
        // Loading the object makes no system call that needs a right: it has no maps.
        let ebpf = aya::Ebpf::load(&object).expect("an object");
        let names: Vec<&str> = ebpf.programs().map(|(name, _)| name).collect();
        assert_eq!(names, [super::NAME]);
    }
}
