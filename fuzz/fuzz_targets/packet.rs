//! Frames as the kernel stage parses them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blitz_ebpf_common::fuzz::packet(data));
