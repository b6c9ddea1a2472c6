//! What a node tells a client: answers, a feed, messages.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| graven_net::fuzzing::node_answer(bytes));
