//! A client's hello, requests and subscriptions.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| graven_net::fuzzing::client_request(bytes));
