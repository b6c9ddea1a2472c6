//! What came of a run, in numbers.

use serde::Serialize;

/// Counters, summed over runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Runs.
    pub seeds: u64,
    /// Events.
    pub steps: u64,
    /// Leaders elected.
    pub elections: u64,
    /// Processes that died.
    pub crashes: u64,
    /// Partitions made.
    pub partitions: u64,
    /// Losses of power in the middle of a write.
    pub torn_writes: u64,
    /// Disk operations that failed.
    pub failed_syncs: u64,
    /// Membership changes that were committed.
    pub membership_changes: u64,
    /// Appends acknowledged.
    pub acked: u64,
    /// Linearizable reads answered, and records delivered to readers.
    pub reads_checked: u64,
    /// Properties that did not hold.
    pub violations: u64,
}

impl Stats {
    /// Adds another run's counters.
    pub fn add(&mut self, other: &Stats) {
        self.seeds += other.seeds;
        self.steps += other.steps;
        self.elections += other.elections;
        self.crashes += other.crashes;
        self.partitions += other.partitions;
        self.torn_writes += other.torn_writes;
        self.failed_syncs += other.failed_syncs;
        self.membership_changes += other.membership_changes;
        self.acked += other.acked;
        self.reads_checked += other.reads_checked;
        self.violations += other.violations;
    }
}
