//! Clusters that trim by themselves, in which one clock is off by years.

use graven_tests::profile::Profile;
use graven_tests::report::Stats;
use graven_tests::{Settings, run};

#[test]
fn retention_takes_what_is_too_much_or_too_old_and_a_clock_off_by_years_nothing() {
    let seeds = if std::env::var("GRAVEN_LONG").is_ok_and(|value| value == "1") { 600 } else { 60 };
    let settings = Settings { profile: Some(Profile::RETENTION), ..Settings::default() };
    let mut sum = Stats::default();
    for seed in 0..seeds {
        let outcome = run(seed, &settings);
        if let Some(words) = outcome.describe() {
            panic!("{words}");
        }
        sum.add(outcome.stats);
    }
    println!("{seeds} seeds: {sum:?}");
    if let Some(counter) = Profile::RETENTION.broken_promise(&sum) {
        panic!("{counter:?} did not move: {sum:?}");
    }
}
