//! Settings of one core, and what it is restored from.

use crate::types::{HardState, Index, LogId, Membership, NodeId, Term};

/// Settings. Times are microseconds.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub id: NodeId,
    /// Between a leader's heartbeats. Default 50 ms. Keep it below a third of `election_us`, or one lost
    /// message costs an election.
    pub heartbeat_us: u64,
    /// Election timeouts are drawn from `[election_us, 2 * election_us)`. Default 150 ms. Far above a round trip and a sync.
    pub election_us: u64,
    /// How long an append may stay unanswered before its follower is probed. Default 500 ms: above a slow sync.
    pub append_timeout_us: u64,
    /// How long a read waits for its confirmation. Default 1 s.
    pub read_timeout_us: u64,
    /// Bytes in flight to one follower. Default 1 MiB, near bandwidth times (round trip + sync).
    pub window_bytes: u64,
    /// Appends in flight to one follower. Default 128.
    pub window_messages: usize,
    /// Bytes in one append, as far as frames allow. Default 256 KiB.
    pub max_append_bytes: u32,
    /// A leader whose oldest unsynced write is older hands over. Default 1 s.
    pub disk_stall_us: u64,
    /// Past this age of the oldest unsynced write [`crate::Alarm::DiskDead`] is raised. Default 30 s.
    pub disk_dead_us: u64,
    /// Seeds election timeouts and read tokens. Must differ between nodes, and between two lives of one node.
    pub seed: u64,
    /// `false` for a node whose log is damaged: it follows, and neither votes nor stands.
    pub may_vote: bool,
}

impl Config {
    /// The defaults, for node `id`.
    #[must_use]
    pub fn new(id: NodeId, seed: u64) -> Self {
        Self {
            id,
            heartbeat_us: 50_000,
            election_us: 150_000,
            append_timeout_us: 500_000,
            read_timeout_us: 1_000_000,
            window_bytes: 1 << 20,
            window_messages: 128,
            max_append_bytes: 256 << 10,
            disk_stall_us: 1_000_000,
            disk_dead_us: 30_000_000,
            seed,
            may_vote: true,
        }
    }
}

/// What recovery found. Everything in it is durable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Restored {
    /// Term and vote.
    pub hard_state: HardState,
    /// The first index held: the one after `base`.
    pub first: Index,
    /// The entry before `first`; all zero for a log that starts at 1.
    pub base: LogId,
    /// Each term in the log with its first index, ascending. A run that begins at or below `base` is cut there.
    pub term_runs: Vec<(Term, Index)>,
    /// The last index held; `base.index` when the log is empty.
    pub last: Index,
    /// Membership entries at or below `last`, ascending, from the one in force at `base` on.
    pub memberships: Vec<(Index, Membership)>,
    /// The highest index known to be committed.
    pub commit: Index,
    /// The highest index whose effects are in the restored state.
    pub applied: Index,
}
