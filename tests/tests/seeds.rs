//! Hundreds of short runs. `GRAVEN_LONG=1` makes them ten times as many.

use graven_tests::report::Stats;
use graven_tests::{Settings, run};

/// Seeds of each of the four tests: together 2,000.
const SEEDS: u64 = 500;

fn seeds(quarter: u64) {
    let times = if std::env::var("GRAVEN_LONG").is_ok_and(|value| value == "1") { 10 } else { 1 };
    let mut sum = Stats::default();
    for seed in (quarter..4 * SEEDS * times).step_by(4) {
        let outcome = run(seed, &Settings { steps: 9_000, ..Settings::default() });
        sum.add(outcome.stats);
        if let Some(words) = outcome.describe() {
            panic!("{words} --steps 9000");
        }
    }
    println!("{sum:?}");
    assert!(sum.acked > SEEDS && sum.crashes > 0 && sum.reads_checked > SEEDS, "the runs did nothing: {sum:?}");
}

#[test]
fn every_property_holds_in_the_first_quarter_of_the_seeds() {
    seeds(0);
}

#[test]
fn every_property_holds_in_the_second_quarter_of_the_seeds() {
    seeds(1);
}

#[test]
fn every_property_holds_in_the_third_quarter_of_the_seeds() {
    seeds(2);
}

#[test]
fn every_property_holds_in_the_last_quarter_of_the_seeds() {
    seeds(3);
}
