//! Connection IDs, read and made.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blitz_ebpf_common::fuzz::cid(data));
