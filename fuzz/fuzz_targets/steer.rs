//! Datagrams of QUIC, steered by the Rust text and by the classic BPF program.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blitz_ebpf_common::fuzz::steer(data));
