//! The checkers see: each planted bug is found within the seeds that its row in [`graven_tests::planted`] states, by a property
//! that speaks of it.
//!
//! Four tests share them, so that they run beside each other.

use graven_tests::planted::{ALL, Planted};
use graven_tests::{Settings, check};

fn is_found(bug: &Planted) {
    let found = bug.hunt(0..bug.within, &Settings::default());
    let Some(outcome) = found else { panic!("{} is not found in {} seeds", bug.name, bug.within) };
    let Some(check::Violation { property, detail }) = outcome.violation else { return };
    println!("{} is found by seed {} ({}), {property}: {detail}", bug.name, outcome.seed, outcome.profile.name);
    assert!(
        bug.found_by.contains(&property),
        "{} is found by {property} ({detail}), not by {:?}",
        bug.name,
        bug.found_by
    );
}

fn each_is_found(quarter: usize) {
    ALL.iter().skip(quarter).step_by(4).for_each(is_found);
}

#[test]
fn a_quarter_of_the_bugs_is_found() {
    each_is_found(0);
}

#[test]
fn a_second_quarter_of_the_bugs_is_found() {
    each_is_found(1);
}

#[test]
fn a_third_quarter_of_the_bugs_is_found() {
    each_is_found(2);
}

#[test]
fn the_last_quarter_of_the_bugs_is_found() {
    each_is_found(3);
}

#[test]
fn names_are_unique_and_can_be_typed() {
    let mut names: Vec<_> = ALL.iter().map(|bug| bug.name).collect();
    assert!(names.len() >= 25, "{} bugs", names.len());
    assert!(names.iter().all(|name| name.chars().all(|letter| letter == '-' || letter.is_ascii_lowercase())));
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ALL.len());
}
