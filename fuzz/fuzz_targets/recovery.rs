//! A data directory: a small log, changed as the bytes say, opened, read, appended to and opened again.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| graven_wal::fuzzing::recovery(bytes));
