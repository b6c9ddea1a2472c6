//! Clusters whose logs rot, one node at a time: whatever it is, the others mend it, and nobody is given a wrong byte.

use graven_tests::profile::Profile;
use graven_tests::report::Stats;
use graven_tests::{Settings, run};

fn heals(profile: Profile, seeds: u64) {
    let seeds = if std::env::var("GRAVEN_LONG").is_ok_and(|value| value == "1") { 10 * seeds } else { seeds };
    let settings = Settings { profile: Some(profile), ..Settings::default() };
    let mut sum = Stats::default();
    for seed in 0..seeds {
        let outcome = run(seed, &settings);
        if let Some(words) = outcome.describe() {
            panic!("{words}");
        }
        sum.add(outcome.stats);
    }
    println!("{seeds} seeds: {sum:?}");
    if let Some(counter) = profile.broken_promise(&sum) {
        panic!("{counter:?} did not move: {sum:?}");
    }
}

#[test]
fn what_rots_in_a_stopped_node_is_mended_before_it_counts_again() {
    heals(Profile::ROT, 100);
}

#[test]
fn what_rots_in_a_running_node_is_found_and_mended_while_it_runs() {
    heals(Profile::SCRUB, 100);
}
