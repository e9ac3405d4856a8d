//! Must fail: shows that the harness finds and reports what it should.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blitz_dataplane::http1::fuzz::canary(data));
