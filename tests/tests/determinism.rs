//! One seed in, the same bytes out: in one thread after the other, in two threads at once, and in two processes, whose hash maps and
//! addresses differ.

use std::process::Command;
use std::thread;

use graven_tests::trace::TraceTo;
use graven_tests::{Settings, run};

/// Seeds that every profile has one of.
const SEEDS: std::ops::Range<u64> = 0..13;

#[test]
fn one_seed_run_in_two_threads_at_once_gives_the_same_trace_byte_for_byte() {
    for seed in SEEDS {
        let settings = Settings { steps: 4_000, trace: TraceTo::Memory, ..Settings::default() };
        let other = thread::spawn(move || run(seed, &settings));
        let one = run(seed, &settings);
        let two = other.join().expect("a run that breaks a property returns");
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
fn one_seed_run_in_two_processes_gives_the_same_bytes() {
    for seed in [0, 5, 11] {
        let run = || {
            let sim = Command::new(env!("CARGO_BIN_EXE_sim"))
                .args(["--steps", "3000", "--trace", "--seed", &seed.to_string()])
                .output()
                .expect("it was built with this test");
            assert!(sim.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&sim.stderr));
            sim.stdout
        };
        let (one, two) = (run(), run());
        assert!(one == two, "seed {seed}: two processes print different traces");
        assert!(one.len() > 100_000, "seed {seed}: {} bytes of trace", one.len());
    }
}

#[test]
fn two_seeds_give_two_traces() {
    let settings = Settings { steps: 1_000, ..Settings::default() };
    assert_ne!(run(1, &settings).trace_hash, run(2, &settings).trace_hash);
}
