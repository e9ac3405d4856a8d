//! Requests with their bodies, in every kind of split.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blitz_dataplane::http1::fuzz::request_head(data));
