//! Bugs that can be switched on, so that the simulator can show that it sees them.
//!
//! Off, and nothing switches one on but `sim --planted NAME` and the tests of the simulator. The switch belongs to the thread,
//! so that tests beside each other do not disturb one another.

use std::cell::Cell;

/// One planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// An append is answered when it is in the leader's log.
    AckBeforeCommit,
    /// Votes, requests for votes and acknowledgements leave before what they rest on is synced.
    PromiseBeforeSync,
    /// The log thread reports jobs as done without a sync.
    SyncSkipped,
    /// The vote never reaches the disk.
    VoteForgotten,
    /// A retry is not recognised.
    DuplicateLands,
    /// The session table keeps what a truncation took out of the log.
    SessionsNotRolledBack,
    /// An answer that rests on the uncommitted tail leaves at once.
    JudgedTooEarly,
    /// A feed leaves an entry out now and then.
    FeedSkips,
    /// A linearizable read asks nobody.
    StaleRead,
    /// Readers see what is synced here, committed or not.
    ReadableBeforeCommit,
    /// A joint membership is left before it is committed.
    JointLeftEarly,
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 11] = [
        Bug::AckBeforeCommit,
        Bug::PromiseBeforeSync,
        Bug::SyncSkipped,
        Bug::VoteForgotten,
        Bug::DuplicateLands,
        Bug::SessionsNotRolledBack,
        Bug::JudgedTooEarly,
        Bug::FeedSkips,
        Bug::StaleRead,
        Bug::ReadableBeforeCommit,
        Bug::JointLeftEarly,
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Bug::AckBeforeCommit => "ack-before-commit",
            Bug::PromiseBeforeSync => "promise-before-sync",
            Bug::SyncSkipped => "sync-skipped",
            Bug::VoteForgotten => "vote-forgotten",
            Bug::DuplicateLands => "duplicate-lands",
            Bug::SessionsNotRolledBack => "sessions-not-rolled-back",
            Bug::JudgedTooEarly => "judged-too-early",
            Bug::FeedSkips => "feed-skips",
            Bug::StaleRead => "stale-read",
            Bug::ReadableBeforeCommit => "readable-before-commit",
            Bug::JointLeftEarly => "joint-left-early",
        }
    }

    /// What goes wrong.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            Bug::AckBeforeCommit => "an append is answered when it is in the leader's log",
            Bug::PromiseBeforeSync => "votes and acknowledgements leave before what they rest on is synced",
            Bug::SyncSkipped => "disk jobs are reported as done without a sync",
            Bug::VoteForgotten => "the vote never reaches the disk",
            Bug::DuplicateLands => "a retry is not recognised",
            Bug::SessionsNotRolledBack => "the session table keeps what a truncation took out of the log",
            Bug::JudgedTooEarly => "an answer that rests on the uncommitted tail leaves at once",
            Bug::FeedSkips => "a feed leaves an entry out now and then",
            Bug::StaleRead => "a linearizable read asks nobody",
            Bug::ReadableBeforeCommit => "readers see what is synced here, committed or not",
            Bug::JointLeftEarly => "a joint membership is left before it is committed",
        }
    }
}

/// Switches `bug` on in this thread, in place of any other.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether `bug` is switched on in this thread.
#[must_use]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
