//! A record prefix, and the payloads that stand behind one.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| graven_wal::fuzzing::prefix(bytes));
