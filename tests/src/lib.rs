//! The simulator of graven: whole clusters of the real replica and the real log on simulated network, clock and disk.
//!
//! One seed in, the same run out, byte for byte. Faults for some thousand events, then everything heals and all work must get
//! done; every checker of [`check`] looks after every event.
#![doc = include_str!("../README.md")]

#[cfg(test)]
mod changes;
pub mod chaos;
pub mod check;
pub mod client;
pub mod clock;
pub mod cluster;
mod cursors;
mod disks;
mod faults;
pub mod lab;
mod log_thread;
pub mod network;
pub mod node;
mod phases;
mod pictures;
pub mod planted;
pub mod profile;
pub mod report;
pub mod rng;
mod rot;
mod scrub;
#[cfg(test)]
mod survivor;
pub mod trace;
pub mod transcript;
mod workload;

use std::panic::{AssertUnwindSafe, catch_unwind};

use check::Violation;
use cluster::Cluster;
use profile::Profile;
use report::Stats;
use trace::{Trace, TraceTo};

/// How to run a seed; everything that is `None` follows from the seed.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Events before all heals.
    pub steps: u64,
    /// Nodes of the cluster.
    pub nodes: Option<u64>,
    /// The mix of faults.
    pub profile: Option<Profile>,
    /// What becomes of the trace.
    pub trace: TraceTo,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { steps: 6_000, nodes: None, profile: None, trace: TraceTo::Hash }
    }
}

/// What came of one seed.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Its mix of faults.
    pub profile: Profile,
    /// Its nodes.
    pub nodes: u64,
    /// Counters.
    pub stats: Stats,
    /// The property that did not hold, if any.
    pub violation: Option<Violation>,
    /// Hash of the trace.
    pub trace_hash: u64,
    /// The trace, when it was kept.
    pub trace: Option<String>,
}

impl Outcome {
    /// One paragraph for a person: what broke, when, and how to see it alone.
    #[must_use]
    pub fn describe(&self) -> Option<String> {
        let Violation { property, detail } = self.violation.as_ref()?;
        let Outcome { seed, nodes, .. } = self;
        Some(format!(
            "seed {seed}: {property} does not hold at step {}: {detail}\n\
             run it alone: cargo run --release -p graven-tests --bin sim -- --seed {seed} --nodes {nodes} --profile {} --trace",
            self.stats.steps, self.profile.name
        ))
    }
}

/// Runs one seed to its end, or to the first property that does not hold.
#[must_use]
pub fn run(seed: u64, settings: &Settings) -> Outcome {
    let profile = settings.profile.unwrap_or_else(|| Profile::of_seed(seed));
    let nodes = settings.nodes.unwrap_or(match seed / 12 % 10 {
        0..6 => 3,
        6..9 => 5,
        _ => 7,
    });
    let mut cluster = Cluster::new(seed, nodes, profile, Trace::new(settings.trace));
    let ended = catch_unwind(AssertUnwindSafe(|| cluster.run(settings.steps)));
    let violation = match ended {
        Ok(checked) => checked.err(),
        Err(panic) => Some(Violation { property: "invariant", detail: words_of(panic.as_ref()) }),
    };
    let mut stats = cluster.stats;
    stats.seeds = 1;
    stats.reads_checked = cluster.checkers.reads_checked();
    stats.membership_changes = cluster.checkers.membership_changes;
    stats.retries = cluster.retries();
    (stats.lost, stats.doubled, stats.reordered) =
        (cluster.network.lost, cluster.network.doubled, cluster.network.reordered);
    stats.trims_by_age = cluster.kept.by_age;
    stats.violations = u64::from(violation.is_some());
    let trace_hash = cluster.trace.hash();
    Outcome { seed, profile, nodes, stats, violation, trace_hash, trace: cluster.trace.into_text() }
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}
