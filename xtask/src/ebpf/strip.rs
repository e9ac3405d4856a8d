//! Takes the DWARF out of a BPF object.
//!
//! Owns: the few fields of ELF-64 that it takes. Does not own: BTF, which stays, since the kernel reads it.
//!
//! The linker makes BTF out of DWARF and leaves both; the DWARF is most of the file and nothing reads it.
//! The emptied sections keep their headers, with type NULL, so that every index in symbols and
//! relocations goes on meaning the same section.

/// `name` of a section that is emptied.
fn is_dwarf(name: &str) -> bool {
    name.starts_with(".debug_") || name.starts_with(".rel.debug_")
}

// ELF-64 header and section header: offsets and sizes in bytes.
const HEADER_BYTES: usize = 64;
const SECTION_HEADER_BYTES: usize = 64;
const SHT_NULL: u64 = 0;
const SHT_NOBITS: u64 = 8;

/// One section header as its raw bytes.
#[derive(Clone)]
struct Section {
    raw: [u8; SECTION_HEADER_BYTES],
}

impl Section {
    fn name(&self) -> usize {
        number(&self.raw, 0, 4) as usize
    }

    fn kind(&self) -> u64 {
        number(&self.raw, 4, 4)
    }

    fn offset(&self) -> usize {
        number(&self.raw, 24, 8) as usize
    }

    fn size(&self) -> usize {
        number(&self.raw, 32, 8) as usize
    }

    fn align(&self) -> usize {
        (number(&self.raw, 48, 8) as usize).max(1)
    }

    fn set(&mut self, at: usize, bytes: usize, value: u64) {
        self.raw[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }
}

/// The same object with its DWARF sections empty; what it says otherwise is unchanged.
pub(super) fn without_dwarf(file: &[u8]) -> Result<Vec<u8>, String> {
    let header = file.get(..HEADER_BYTES).ok_or("too short for an ELF header")?;
    // Class 64 bit, little endian.
    if header[..6] != *b"\x7fELF\x02\x01" || number(header, 56, 2) != 0 {
        return Err("not a little-endian 64-bit ELF object".to_owned());
    }
    if number(header, 58, 2) as usize != SECTION_HEADER_BYTES {
        return Err("section headers of another size".to_owned());
    }
    let count = number(header, 60, 2) as usize;
    let begin = number(header, 40, 8) as usize;
    let table = file.get(begin..).and_then(|rest| rest.get(..count.checked_mul(SECTION_HEADER_BYTES)?));
    let table = table.ok_or("the section headers lie outside the file")?;
    let (rows, _) = table.as_chunks::<SECTION_HEADER_BYTES>();
    let mut sections: Vec<Section> = rows.iter().map(|raw| Section { raw: *raw }).collect();
    let names = sections.get(number(header, 62, 2) as usize).ok_or("no section of names")?;
    let names = content(file, names)?.to_vec();

    let mut out = header.to_vec();
    for section in &mut sections {
        let rest = names.get(section.name()..).ok_or("a section without a name")?;
        let name = rest.split(|byte| *byte == 0).next().unwrap_or_default();
        if is_dwarf(&String::from_utf8_lossy(name)) {
            let at = section.name() as u64;
            section.raw = [0; SECTION_HEADER_BYTES];
            section.set(0, 4, at);
        }
        if section.kind() == SHT_NULL {
            continue;
        }
        out.resize(out.len().next_multiple_of(section.align()), 0);
        let bytes = if section.kind() == SHT_NOBITS { &[] } else { content(file, section)? };
        section.set(24, 8, out.len() as u64);
        out.extend_from_slice(bytes);
    }
    out.resize(out.len().next_multiple_of(8), 0);
    let begin = out.len() as u64;
    out[40..48].copy_from_slice(&begin.to_le_bytes());
    for section in &sections {
        out.extend_from_slice(&section.raw);
    }
    Ok(out)
}

fn content<'a>(file: &'a [u8], section: &Section) -> Result<&'a [u8], String> {
    let bytes = file.get(section.offset()..).and_then(|rest| rest.get(..section.size()));
    bytes.ok_or_else(|| "a section lies outside the file".to_owned())
}

/// A little-endian number of up to 8 bytes; `at + bytes` lies inside every header that is read.
fn number(raw: &[u8], at: usize, bytes: usize) -> u64 {
    raw[at..at + bytes].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object with these sections, of which the last holds the names.
    fn object(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut names = vec![0];
        let mut out = vec![0; HEADER_BYTES];
        out[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut rows = vec![Section { raw: [0; SECTION_HEADER_BYTES] }];
        for (name, bytes) in sections {
            let mut row = Section { raw: [0; SECTION_HEADER_BYTES] };
            row.set(0, 4, names.len() as u64);
            row.set(4, 4, 1);
            row.set(24, 8, out.len() as u64);
            row.set(32, 8, bytes.len() as u64);
            row.set(48, 8, 8);
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            out.extend_from_slice(bytes);
            rows.push(row);
        }
        let mut row = Section { raw: [0; SECTION_HEADER_BYTES] };
        row.set(4, 4, 3);
        row.set(24, 8, out.len() as u64);
        row.set(32, 8, names.len() as u64);
        out.extend_from_slice(&names);
        rows.push(row);
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        let begin = (HEADER_BYTES
            + sections.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
            + names.len()) as u64;
        put(40, &begin.to_le_bytes());
        put(58, &(SECTION_HEADER_BYTES as u16).to_le_bytes());
        put(60, &(rows.len() as u16).to_le_bytes());
        put(62, &(rows.len() as u16 - 1).to_le_bytes());
        rows.iter().for_each(|row| out.extend_from_slice(&row.raw));
        out
    }

    fn section(file: &[u8], index: usize) -> (u64, Vec<u8>) {
        let begin = number(file, 40, 8) as usize + index * SECTION_HEADER_BYTES;
        let mut raw = [0; SECTION_HEADER_BYTES];
        raw.copy_from_slice(&file[begin..begin + SECTION_HEADER_BYTES]);
        let section = Section { raw };
        (section.kind(), content(file, &section).unwrap_or_default().to_vec())
    }

    #[test]
    fn dwarf_goes_and_every_other_section_keeps_its_index_and_bytes() {
        let whole = object(&[
            ("xdp.frags", b"code"),
            (".debug_info", &[7; 100]),
            (".rel.debug_info", &[8; 32]),
            (".BTF", b"types"),
        ]);
        let small = without_dwarf(&whole);
        assert_eq!(small.as_ref().map(|small| section(small, 1)), Ok((1, b"code".to_vec())));
        assert_eq!(small.as_ref().map(|small| section(small, 2)), Ok((SHT_NULL, Vec::new())));
        assert_eq!(small.as_ref().map(|small| section(small, 3)), Ok((SHT_NULL, Vec::new())));
        assert_eq!(small.as_ref().map(|small| section(small, 4)), Ok((1, b"types".to_vec())));
        assert!(small.as_ref().is_ok_and(|small| small.len() + 100 < whole.len()));
        // What is small already stays as it is.
        assert_eq!(small.clone().and_then(|small| without_dwarf(&small)), small);
    }

    #[test]
    fn what_is_no_whole_object_is_refused() {
        let whole = object(&[("xdp.frags", b"code")]);
        for length in 0..whole.len() {
            assert!(without_dwarf(&whole[..length]).is_err(), "cut at {length}");
        }
        let mut big_endian = whole;
        big_endian[5] = 2;
        assert!(without_dwarf(&big_endian).is_err());
    }
}
