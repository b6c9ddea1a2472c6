//! Mixes of faults. Probabilities are in thousandths, rates are mean pauses in simulated microseconds (0: never).

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
    /// Pause between failing disk operations.
    pub disk_fault_us: u64,
    /// Pause between disks that fill up.
    pub full_us: u64,
    /// Syncs that take up to 50 ms, and one in twenty of those up to 2.5 s.
    pub slow_sync: u64,
    /// Pause between requests to hand leadership over.
    pub transfer_us: u64,
    /// Leaders that crash or are cut off within 30 ms of being elected, when what they hold is in doubt the most.
    pub depose: u64,
    /// How much clocks may be fast or slow.
    pub drift: u64,
    /// Answers and requests of clients that get lost.
    pub client_loss: u64,
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
        disk_fault_us: 0,
        full_us: 0,
        slow_sync: 0,
        transfer_us: 0,
        depose: 0,
        drift: 10,
        client_loss: 0,
    };
    /// Nodes die and come back, half of them without what was not synced.
    pub const CRASHES: Profile =
        Profile { name: "crashes", crash_us: 400_000, power: 600, slow_sync: 20, client_loss: 5, ..Profile::CALM };
    /// The network falls apart in all shapes.
    pub const PARTITIONS: Profile =
        Profile { name: "partitions", partition_us: 600_000, loss: 5, client_loss: 5, ..Profile::CALM };
    /// The network stays whole but loses, doubles and reorders.
    pub const FLAKY: Profile =
        Profile { name: "flaky", loss: 60, doubling: 60, reordering: 150, client_loss: 60, drift: 50, ..Profile::CALM };
    /// Disks stall, fill up, fail syncs, and lose power in the middle of a write.
    pub const DISKS: Profile = Profile {
        name: "disks",
        crash_us: 900_000,
        power: 800,
        disk_fault_us: 500_000,
        full_us: 800_000,
        slow_sync: 60,
        client_loss: 5,
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
        ..Profile::CALM
    };
    /// No leader is left in peace: tails of many terms stand in the logs (Raft paper, figures 7 and 8).
    pub const DEPOSED: Profile = Profile {
        name: "deposed",
        latency_us: 4_000,
        depose: 800,
        power: 400,
        down_us: 250_000,
        slow_sync: 100,
        loss: 50,
        reordering: 20,
        client_loss: 10,
        drift: 50,
        ..Profile::CALM
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
        depose: 150,
        drift: 50,
        client_loss: 20,
    };
    /// All of them.
    pub const ALL: [Profile; 9] = [
        Profile::CHAOS,
        Profile::CRASHES,
        Profile::PARTITIONS,
        Profile::FLAKY,
        Profile::DISKS,
        Profile::TRANSFERS,
        Profile::ELECTIONS,
        Profile::DEPOSED,
        Profile::CALM,
    ];

    /// The profile of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Profile> {
        Profile::ALL.into_iter().find(|profile| profile.name == name)
    }

    /// The profile a seed runs under when none is asked for: they take turns, chaos twice as often.
    #[must_use]
    pub fn of_seed(seed: u64) -> Profile {
        let turn = (seed % (Profile::ALL.len() as u64 + 1)) as usize;
        Profile::ALL.get(turn).copied().unwrap_or(Profile::CHAOS)
    }
}
