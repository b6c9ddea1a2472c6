//! The proofs of the log: every crash, every failing call, every damaged byte, and bugs planted to show that they see.
//!
//! Each checker is a function that returns what it found wrong. The ordinary tests want nothing found; the tests in
//! [`planted`] switch on one bug in the product and want the same function to find it. Sizes are small by default;
//! `GRAVEN_LONG=1` runs them all. What cannot run on a machine says `SKIPPED` and why; `GRAVEN_NO_SKIP=1` makes that a failure.

#[path = "../common/mod.rs"]
mod common;

mod adopt;
mod arbitrary;
mod crashes;
mod damage;
mod faults;
mod full_disk;
mod injector;
mod mend;
mod planted;
mod read_log;
mod rows;
mod script;
mod stale;

/// Whether the full sizes are asked for.
pub(crate) fn long() -> bool {
    std::env::var_os("GRAVEN_LONG").is_some_and(|value| value == "1")
}

/// Says that a test did not run, or fails if that is not wanted.
pub(crate) fn skipped(test: &str, why: &str) {
    println!("SKIPPED {test}: {why}");
    assert!(std::env::var_os("GRAVEN_NO_SKIP").is_none_or(|value| value != "1"), "{test} must run here: {why}");
}
