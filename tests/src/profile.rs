//! Mixes of faults. Probabilities are in thousandths, rates are mean pauses in simulated microseconds (0: never).
//!
//! A profile promises that certain counters move: one that stays at zero over [`PROMISE_STEPS`] means that the profile does not do
//! what its name says, and is a failure like any other.

use crate::report::{Counter, Stats};

/// Steps with faults after which every promised counter of a profile must have moved: fifty runs of the default length. The
/// rarest of them, a power cut in the middle of a write, comes about once in two such runs.
pub const PROMISE_STEPS: u64 = 50 * 6_000;

/// What every run does.
const ALWAYS: &[Counter] = &[
    Counter::ELECTIONS,
    Counter::CRASHES,
    Counter::PARTITIONS,
    Counter::ACKED,
    Counter::READS_CHECKED,
    Counter::READS,
    Counter::JUDGED,
    Counter::RETRIES,
];

/// What a run does to its cluster until it heals it.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    /// Its name on the command line.
    pub name: &'static str,
    /// The longest way of a message, while nothing reorders it.
    pub latency_us: u64,
    /// Messages lost.
    pub loss: u64,
    /// Messages that arrive twice.
    pub doubling: u64,
    /// Messages that overtake or are overtaken, by up to 20 ms.
    pub reordering: u64,
    /// Pause between partitions.
    pub partition_us: u64,
    /// Pause between crashes of a node.
    pub crash_us: u64,
    /// The longest time a node stays down.
    pub down_us: u64,
    /// Crashes that lose power (and with it unsynced sectors), not just the process.
    pub power: u64,
    /// Crashes that wait for the node's next write and come in the middle of it.
    pub in_write: u64,
    /// Losses of power after which a bit of what was not synced is wrong.
    pub flips: u64,
    /// Pause between processes that stand still, for up to 3 s.
    pub pause_us: u64,
    /// Lives of a node in which its disk and its network are slow.
    pub slow_lives: u64,
    /// Pause between failing disk operations.
    pub disk_fault_us: u64,
    /// Pause between disks that fill up.
    pub full_us: u64,
    /// Syncs that take up to 50 ms, and one in twenty of those up to 2.5 s.
    pub slow_sync: u64,
    /// Pause between requests to hand leadership over.
    pub transfer_us: u64,
    /// Pause between wishes to change the members.
    pub member_us: u64,
    /// Pause between trims.
    pub trim_us: u64,
    /// Pause between nodes whose logs rot.
    pub rot_us: u64,
    /// Nodes read their sealed segments again while they run, some of which rot then.
    pub scrubs: bool,
    /// Pause between snapshots with names that are put, dropped or lost.
    pub picture_us: u64,
    /// Pause between moves of cursors and looks at them.
    pub cursor_us: u64,
    /// Records after which a node's state machine is saved, which is all that trims the log then; 0: nodes have none, or one that is never
    /// saved.
    pub states: u64,
    /// Whether nodes trim by themselves, with the first one's clock off by years.
    pub retention: bool,
    /// Leaders that crash or are cut off within 30 ms of being elected, when what they hold is in doubt the most.
    pub depose: u64,
    /// How much clocks may be fast or slow.
    pub drift: u64,
    /// Answers and requests of clients that get lost.
    pub client_loss: u64,
    /// How many times slower than usual clients are: fewer of their events leave room for more elections in a run.
    pub pace: u64,
    /// Appends are single records of nearly one size: what is written in the place of something else often ends where that did.
    pub tiny: bool,
    /// Counters that move, beside those that always do.
    pub promises: &'static [Counter],
}

impl Profile {
    /// Nothing goes wrong.
    pub const CALM: Profile = Profile {
        name: "calm",
        latency_us: 200,
        loss: 0,
        doubling: 0,
        reordering: 0,
        partition_us: 0,
        crash_us: 0,
        down_us: 600_000,
        power: 0,
        in_write: 400,
        flips: 200,
        pause_us: 0,
        slow_lives: 0,
        disk_fault_us: 0,
        full_us: 0,
        slow_sync: 0,
        transfer_us: 0,
        member_us: 0,
        trim_us: 0,
        rot_us: 0,
        scrubs: false,
        picture_us: 0,
        cursor_us: 0,
        states: 0,
        retention: false,
        depose: 0,
        drift: 10,
        client_loss: 0,
        pace: 1,
        tiny: false,
        promises: &[],
    };
    /// Nodes die and come back, half of them without what was not synced.
    pub const CRASHES: Profile = Profile {
        name: "crashes",
        crash_us: 400_000,
        power: 600,
        slow_sync: 20,
        client_loss: 5,
        promises: &[Counter::TORN_WRITES, Counter::STALLS],
        ..Profile::CALM
    };
    /// Power is lost in the middle of one write after the other, and comes back at once: tails are torn, cut, and torn again.
    pub const TORN: Profile = Profile {
        name: "torn",
        tiny: true,
        slow_lives: 400,
        crash_us: 250_000,
        power: 950,
        in_write: 950,
        flips: 300,
        down_us: 8_000,
        client_loss: 5,
        promises: &[Counter::TORN_WRITES, Counter::FLIPS],
        ..Profile::CALM
    };
    /// The network falls apart in all shapes.
    pub const PARTITIONS: Profile = Profile {
        name: "partitions",
        partition_us: 600_000,
        loss: 5,
        client_loss: 5,
        promises: &[Counter::LOST],
        ..Profile::CALM
    };
    /// The network stays whole but loses, doubles and reorders.
    pub const FLAKY: Profile = Profile {
        name: "flaky",
        loss: 60,
        doubling: 60,
        reordering: 150,
        client_loss: 60,
        drift: 50,
        promises: &[Counter::LOST, Counter::DOUBLED, Counter::REORDERED],
        ..Profile::CALM
    };
    /// Processes stand still for up to 3 s and go on as if nothing had happened, some lives are slow from end to end, and
    /// clocks disagree about how fast time passes.
    pub const PAUSES: Profile = Profile {
        name: "pauses",
        pause_us: 300_000,
        slow_lives: 250,
        crash_us: 1_500_000,
        power: 500,
        slow_sync: 20,
        client_loss: 10,
        drift: 50,
        promises: &[Counter::PAUSES, Counter::SLOW_LIVES, Counter::STALLS],
        ..Profile::CALM
    };
    /// Disks stall, fill up, fail syncs, and lose power in the middle of a write.
    pub const DISKS: Profile = Profile {
        name: "disks",
        crash_us: 900_000,
        power: 800,
        disk_fault_us: 500_000,
        full_us: 800_000,
        slow_sync: 60,
        slow_lives: 60,
        client_loss: 5,
        promises: &[Counter::FAILED_SYNCS, Counter::FULL_DISKS, Counter::STALLS, Counter::TORN_WRITES, Counter::FLIPS],
        ..Profile::CALM
    };
    /// Leadership is pushed around while messages get lost.
    pub const TRANSFERS: Profile = Profile {
        name: "transfers",
        transfer_us: 250_000,
        loss: 15,
        reordering: 50,
        partition_us: 2_000_000,
        client_loss: 10,
        promises: &[Counter::TRANSFERS, Counter::LOST, Counter::REORDERED],
        ..Profile::CALM
    };
    /// Messages take as long as patience lasts and nodes come back at once: candidates overlap, votes are split, and who
    /// forgot a vote is asked again.
    pub const ELECTIONS: Profile = Profile {
        name: "elections",
        latency_us: 90_000,
        depose: 100,
        crash_us: 200_000,
        down_us: 20_000,
        slow_sync: 100,
        power: 500,
        loss: 20,
        reordering: 200,
        doubling: 20,
        client_loss: 10,
        drift: 50,
        pace: 8,
        promises: &[Counter::DEPOSED, Counter::LOST, Counter::DOUBLED, Counter::REORDERED, Counter::STALLS],
        ..Profile::CALM
    };
    /// No leader is left in peace: tails of many terms stand in the logs (Raft paper, figures 7 and 8).
    pub const DEPOSED: Profile = Profile {
        name: "deposed",
        latency_us: 4_000,
        depose: 950,
        power: 400,
        down_us: 400_000,
        slow_sync: 100,
        loss: 50,
        reordering: 20,
        client_loss: 10,
        drift: 50,
        pace: 40,
        tiny: true,
        promises: &[Counter::DEPOSED, Counter::LOST, Counter::STALLS],
        ..Profile::CALM
    };
    /// Members come, get votes, replace others and go, while leaders die in the middle of it.
    pub const MEMBERS: Profile = Profile {
        name: "members",
        member_us: 120_000,
        trim_us: 60_000,
        crash_us: 900_000,
        power: 600,
        partition_us: 2_000_000,
        transfer_us: 1_500_000,
        loss: 10,
        reordering: 20,
        slow_sync: 20,
        client_loss: 5,
        promises: &[Counter::MEMBERSHIP_CHANGES, Counter::TRANSFERS],
        ..Profile::CALM
    };
    /// The log begins later and later; whoever was away is given a checkpoint, and power fails in the middle of it.
    pub const TRIMS: Profile = Profile {
        name: "trims",
        trim_us: 60_000,
        crash_us: 250_000,
        down_us: 900_000,
        power: 700,
        in_write: 500,
        partition_us: 900_000,
        transfer_us: 2_000_000,
        full_us: 1_500_000,
        loss: 10,
        reordering: 20,
        slow_sync: 10,
        client_loss: 5,
        promises: &[Counter::CHECKPOINTS, Counter::RELEASES, Counter::INSTALLS, Counter::FULL_DISKS],
        ..Profile::CALM
    };
    /// Applications put snapshots under names, and the log is trimmed behind them; files are lost and fetched again.
    pub const SNAPSHOTS: Profile = Profile {
        name: "snapshots",
        picture_us: 25_000,
        depose: 300,
        promises: &[Counter::CHECKPOINTS, Counter::RELEASES, Counter::INSTALLS, Counter::SNAPSHOTS, Counter::SPREAD],
        ..Profile::TRIMS
    };
    /// State machines save what they are, and the log goes behind that by itself.
    pub const STATES: Profile = Profile {
        name: "states",
        trim_us: 0,
        states: 12,
        promises: &[Counter::CHECKPOINTS, Counter::RELEASES, Counter::INSTALLS, Counter::STATES],
        ..Profile::TRIMS
    };
    /// Consumers keep their place in the log, which is trimmed under their feet.
    pub const CURSORS: Profile = Profile {
        name: "cursors",
        cursor_us: 10_000,
        depose: 150,
        promises: &[Counter::CHECKPOINTS, Counter::RELEASES, Counter::INSTALLS, Counter::CURSORS],
        ..Profile::TRIMS
    };
    /// Every node trims by bytes and by age, and one of them has no idea what year it is.
    pub const RETENTION: Profile = Profile {
        name: "retention",
        trim_us: 0,
        retention: true,
        transfer_us: 400_000,
        promises: &[Counter::CHECKPOINTS, Counter::RELEASES, Counter::INSTALLS, Counter::TRIMS_BY_AGE],
        ..Profile::TRIMS
    };
    /// Logs of stopped nodes rot, in the middle and at the end, and are mended by the others while leaders change.
    pub const ROT: Profile = Profile {
        name: "rot",
        rot_us: 120_000,
        crash_us: 300_000,
        down_us: 200_000,
        power: 500,
        trim_us: 400_000,
        partition_us: 900_000,
        depose: 300,
        loss: 10,
        reordering: 20,
        client_loss: 5,
        promises: &[Counter::ROTS, Counter::MENDED, Counter::CUT_ENDS],
        ..Profile::CALM
    };
    /// Sealed segments of running nodes rot too, whose scrubbers find that and mend it.
    pub const SCRUB: Profile = Profile {
        name: "scrub",
        scrubs: true,
        rot_us: 80_000,
        crash_us: 400_000,
        promises: &[Counter::ROTS, Counter::MENDED, Counter::SCRUBBED, Counter::SCRUB_MENDED],
        ..Profile::ROT
    };
    /// Everything at once.
    pub const CHAOS: Profile = Profile {
        name: "chaos",
        latency_us: 3_000,
        down_us: 400_000,
        loss: 20,
        doubling: 20,
        reordering: 50,
        partition_us: 1_200_000,
        crash_us: 700_000,
        power: 600,
        disk_fault_us: 1_500_000,
        full_us: 3_000_000,
        slow_sync: 30,
        transfer_us: 1_500_000,
        member_us: 0,
        trim_us: 1_000_000,
        rot_us: 0,
        scrubs: false,
        picture_us: 1_000_000,
        cursor_us: 0,
        states: 0,
        retention: false,
        depose: 150,
        drift: 50,
        client_loss: 20,
        in_write: 400,
        flips: 200,
        pause_us: 2_000_000,
        slow_lives: 60,
        pace: 1,
        tiny: false,
        promises: &[
            Counter::TORN_WRITES,
            Counter::FAILED_SYNCS,
            Counter::LOST,
            Counter::DOUBLED,
            Counter::REORDERED,
            Counter::PAUSES,
            Counter::SLOW_LIVES,
            Counter::STALLS,
            Counter::FULL_DISKS,
            Counter::FLIPS,
            Counter::TRANSFERS,
            Counter::DEPOSED,
        ],
    };
    /// All that take turns; [`Profile::RETENTION`], [`Profile::ROT`] and [`Profile::SCRUB`] have seeds of their own.
    pub const ALL: [Profile; 16] = [
        Profile::CHAOS,
        Profile::MEMBERS,
        Profile::CRASHES,
        Profile::TORN,
        Profile::PARTITIONS,
        Profile::FLAKY,
        Profile::PAUSES,
        Profile::DISKS,
        Profile::TRANSFERS,
        Profile::ELECTIONS,
        Profile::DEPOSED,
        Profile::CALM,
        Profile::TRIMS,
        Profile::SNAPSHOTS,
        Profile::STATES,
        Profile::CURSORS,
    ];

    /// The profile of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Profile> {
        Profile::ALL
            .into_iter()
            .chain([Profile::RETENTION, Profile::ROT, Profile::SCRUB])
            .find(|profile| profile.name == name)
    }

    /// What `sum`, over runs of this profile, owes to its promises: the first counter that did not move. Nothing is owed below
    /// [`PROMISE_STEPS`].
    #[must_use]
    pub fn broken_promise(&self, sum: &Stats) -> Option<Counter> {
        if sum.steps < PROMISE_STEPS {
            return None;
        }
        sum.unmoved(ALWAYS).or_else(|| sum.unmoved(self.promises))
    }

    /// The profile a seed runs under when none is asked for: they take turns, chaos twice as often; trims and cursors, which are trims with
    /// cursors, share theirs.
    #[must_use]
    pub fn of_seed(seed: u64) -> Profile {
        let turns = Profile::ALL.len() as u64;
        let (round, turn) = (seed / turns, (seed % turns) as usize);
        match Profile::ALL[turn] {
            profile if profile.name == Profile::CURSORS.name => Profile::CHAOS,
            profile if profile.name == Profile::TRIMS.name && round % 2 == 1 => Profile::CURSORS,
            profile => profile,
        }
    }
}
