//! The checkers see: each planted bug must be found within some seeds, by a property that speaks of it.

use graven::replica::planted::{Bug, plant};
use graven_tests::{Settings, run};

/// Seeds after which a bug counts as overlooked.
const SEEDS: u64 = 300;

fn is_found_by(bug: Bug, properties: &[&str]) {
    plant(Some(bug));
    let found =
        (0..SEEDS).find_map(|seed| run(seed, &Settings::default()).violation.map(|violation| (seed, violation)));
    plant(None);
    let Some((seed, violation)) = found else { panic!("{} is not found in {SEEDS} seeds", bug.name()) };
    println!("{} found by seed {seed}: {violation:?}", bug.name());
    assert!(properties.contains(&violation.property), "{} found by another property: {violation:?}", bug.name());
}

#[test]
fn ack_before_commit_is_found() {
    is_found_by(Bug::AckBeforeCommit, &["P1"]);
}

#[test]
fn promise_before_sync_is_found() {
    is_found_by(Bug::PromiseBeforeSync, &["P1", "leader completeness", "election safety", "state-machine safety"]);
}

#[test]
fn sync_skipped_is_found() {
    is_found_by(Bug::SyncSkipped, &["P1"]);
}

#[test]
fn vote_forgotten_is_found() {
    is_found_by(Bug::VoteForgotten, &["election safety"]);
}

#[test]
fn duplicate_lands_is_found() {
    is_found_by(Bug::DuplicateLands, &["P7"]);
}

#[test]
fn sessions_not_rolled_back_is_found() {
    is_found_by(Bug::SessionsNotRolledBack, &["P2", "P7", "P1", "answers", "liveness"]);
}

#[test]
fn judged_too_early_is_found() {
    is_found_by(Bug::JudgedTooEarly, &["P1", "P10"]);
}

#[test]
fn feed_skips_is_found() {
    is_found_by(Bug::FeedSkips, &["P4"]);
}

#[test]
fn stale_read_is_found() {
    is_found_by(Bug::StaleRead, &["P8"]);
}

#[test]
fn readable_before_commit_is_found() {
    is_found_by(Bug::ReadableBeforeCommit, &["state-machine safety", "invariant"]);
}
