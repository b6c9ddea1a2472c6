//! A client's append stream: prefixes, groups, records.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| graven_net::fuzzing::client_append(bytes));
