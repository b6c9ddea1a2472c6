//! A peer's control lane.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| graven_net::fuzzing::peer_control(bytes));
