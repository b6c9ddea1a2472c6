//! What came of a run, in numbers.

use serde::Serialize;

/// Counters, summed over runs. The first eleven are the line that `sim` ends with.
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
    /// Messages lost.
    #[serde(skip)]
    pub lost: u64,
    /// Messages that arrived twice.
    #[serde(skip)]
    pub doubled: u64,
    /// Messages that were overtaken or overtook.
    #[serde(skip)]
    pub reordered: u64,
    /// Processes that stood still for a while.
    #[serde(skip)]
    pub pauses: u64,
    /// Lives of a node that were slow.
    #[serde(skip)]
    pub slow_lives: u64,
    /// Syncs that took long.
    #[serde(skip)]
    pub stalls: u64,
    /// Disks that filled up.
    #[serde(skip)]
    pub full_disks: u64,
    /// Bits flipped in what was not synced.
    #[serde(skip)]
    pub flips: u64,
    /// Wishes to hand leadership over.
    #[serde(skip)]
    pub transfers: u64,
    /// Leaders cut off or killed soon after their election.
    #[serde(skip)]
    pub deposed: u64,
    /// Linearizable reads answered.
    #[serde(skip)]
    pub reads: u64,
    /// Appends refused for good, by their expected offset or a fence.
    #[serde(skip)]
    pub judged: u64,
    /// Appends sent again.
    #[serde(skip)]
    pub retries: u64,
    /// Checkpoints saved.
    #[serde(skip)]
    pub checkpoints: u64,
    /// Times a node let go of the beginning of its log.
    #[serde(skip)]
    pub releases: u64,
    /// Checkpoints of others put in the place of a log.
    #[serde(skip)]
    pub installs: u64,
    /// Snapshots with names that were committed and acknowledged.
    #[serde(skip)]
    pub snapshots: u64,
    /// Files of snapshots fetched from other nodes.
    #[serde(skip)]
    pub spread: u64,
    /// Times that a state machine saved its state.
    #[serde(skip)]
    pub states: u64,
    /// Moves of cursors that were acknowledged.
    #[serde(skip)]
    pub cursors: u64,
    /// Trims that are committed because of the age of records.
    #[serde(skip)]
    pub trims_by_age: u64,
    /// Times that a node's log rotted.
    #[serde(skip)]
    pub rots: u64,
    /// Entries put back into damaged logs.
    #[serde(skip)]
    pub mended: u64,
    /// Logs that lost their end.
    #[serde(skip)]
    pub cut_ends: u64,
    /// Damage that a running node's scrubber found.
    #[serde(skip)]
    pub scrubbed: u64,
    /// Segments that a running node mended.
    #[serde(skip)]
    pub scrub_mended: u64,
}

/// A counter that a profile promises to move.
#[derive(Clone, Copy)]
pub struct Counter {
    /// Its name.
    pub name: &'static str,
    /// Its place.
    pub of: fn(&mut Stats) -> &mut u64,
}

macro_rules! counters {
    ($($constant:ident $field:ident),* $(,)?) => {
        impl Counter {
            $(
                #[doc = concat!("`", stringify!($field), "`")]
                pub const $constant: Counter = Counter { name: stringify!($field), of: |stats| &mut stats.$field };
            )*
            /// All of them.
            pub const ALL: &'static [Counter] = &[$(Counter::$constant),*];
        }
    };
}

counters! {
    SEEDS seeds, STEPS steps, ELECTIONS elections, CRASHES crashes, PARTITIONS partitions, TORN_WRITES torn_writes,
    FAILED_SYNCS failed_syncs, MEMBERSHIP_CHANGES membership_changes, ACKED acked, READS_CHECKED reads_checked,
    VIOLATIONS violations, LOST lost, DOUBLED doubled, REORDERED reordered, PAUSES pauses, SLOW_LIVES slow_lives,
    STALLS stalls, FULL_DISKS full_disks, FLIPS flips, TRANSFERS transfers, DEPOSED deposed, READS reads, JUDGED judged,
    RETRIES retries, CHECKPOINTS checkpoints, RELEASES releases, INSTALLS installs,
    SNAPSHOTS snapshots, SPREAD spread, STATES states, CURSORS cursors, TRIMS_BY_AGE trims_by_age,
    ROTS rots, MENDED mended, CUT_ENDS cut_ends, SCRUBBED scrubbed, SCRUB_MENDED scrub_mended,
}

impl std::fmt::Debug for Counter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Stats {
    /// Adds another run's counters.
    pub fn add(&mut self, mut other: Stats) {
        for counter in Counter::ALL {
            *(counter.of)(self) += *(counter.of)(&mut other);
        }
    }

    /// The first of `promised` that never moved.
    #[must_use]
    pub fn unmoved(mut self, promised: &[Counter]) -> Option<Counter> {
        promised.iter().copied().find(|counter| *(counter.of)(&mut self) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_never_moved_is_named() {
        let mut sum = Stats::default();
        sum.add(Stats { acked: 3, ..Stats::default() });
        sum.add(Stats { acked: 4, pauses: 1, ..Stats::default() });
        assert_eq!((sum.acked, sum.pauses), (7, 1));
        assert!(sum.unmoved(&[Counter::ACKED, Counter::PAUSES]).is_none());
        assert_eq!(sum.unmoved(&[Counter::ACKED, Counter::FLIPS]).map(|counter| counter.name), Some("flips"));
    }

    #[test]
    fn the_line_has_the_eleven_counters_in_order() {
        let line = serde_json::to_string(&Stats::default()).expect("numbers");
        let names = [
            "seeds",
            "steps",
            "elections",
            "crashes",
            "partitions",
            "torn_writes",
            "failed_syncs",
            "membership_changes",
            "acked",
            "reads_checked",
            "violations",
        ];
        assert_eq!(line, format!("{{{}}}", names.map(|name| format!("\"{name}\":0")).join(",")));
    }
}
