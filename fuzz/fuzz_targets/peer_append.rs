//! A peer's append lane: heads, frames, groups.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| graven_net::fuzzing::peer_append(bytes));
