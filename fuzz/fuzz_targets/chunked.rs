//! Chunked bodies alone, decoded and encoded again.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blitz_dataplane::http1::fuzz::chunked(data));
