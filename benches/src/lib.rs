//! Micro-benchmarks of graven: `cargo bench -p graven-benches`. Each stands beside the limit it is measured against.
