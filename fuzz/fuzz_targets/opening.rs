//! The first block of a segment.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| graven_wal::fuzzing::opening(bytes));
