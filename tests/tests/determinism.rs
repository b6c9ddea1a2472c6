//! One seed in, the same bytes out.

use graven_tests::trace::TraceTo;
use graven_tests::{Settings, run};

#[test]
fn one_seed_run_twice_gives_the_same_trace_byte_for_byte() {
    for seed in 0..9 {
        let settings = Settings { steps: 4_000, trace: TraceTo::Memory, ..Settings::default() };
        let (one, two) = (run(seed, &settings), run(seed, &settings));
        assert_eq!(one.violation, None, "seed {seed}");
        let (one_text, two_text) = (one.trace.expect("kept"), two.trace.expect("kept"));
        let differs = one_text.lines().zip(two_text.lines()).position(|(one, two)| one != two);
        assert_eq!(differs, None, "seed {seed}: the first line that differs");
        assert!(one_text == two_text, "seed {seed}: one trace is longer");
        assert!(one_text.lines().count() > 1_000, "seed {seed}: nothing happened");
        assert_eq!(run(seed, &Settings { trace: TraceTo::Hash, ..settings }).trace_hash, one.trace_hash, "seed {seed}");
    }
}

#[test]
fn two_seeds_give_two_traces() {
    let settings = Settings { steps: 1_000, ..Settings::default() };
    assert_ne!(run(1, &settings).trace_hash, run(2, &settings).trace_hash);
}
