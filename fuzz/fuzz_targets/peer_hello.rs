//! A peer's first words, and the answer to them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| graven_net::fuzzing::peer_hello(bytes));
