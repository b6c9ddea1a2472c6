//! A frame as it comes from a peer, a client or a disk.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| graven_wal::fuzzing::frame(bytes));
