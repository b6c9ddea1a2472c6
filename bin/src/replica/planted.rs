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
    /// A follower's session table does not hear of the entries it takes: a new leader knows no results.
    SessionsNotRebuilt,
    /// A fencing token stays in force though a truncation took its append out of the log.
    FenceNotRolledBack,
    /// How to undo what is committed is never forgotten.
    UndoKept,
    /// An answer that rests on the uncommitted tail leaves at once.
    JudgedTooEarly,
    /// An answer that rests on a committed log leaves without a word of the quorum.
    DeposedJudges,
    /// Those who wait for a commit go on waiting when the leadership is lost.
    AcksSurviveDeposition,
    /// A feed leaves an entry out now and then.
    FeedSkips,
    /// A linearizable read asks nobody.
    StaleRead,
    /// A confirmed read is answered before the node has come that far itself.
    ReadNotAwaited,
    /// Readers see what is synced here, committed or not.
    ReadableBeforeCommit,
    /// A joint membership is never left.
    JointKept,
    /// A report of a write counts for the entries that replace what it wrote.
    StaleDurableReport,
    /// The ring of recent frames never shrinks.
    RingGrows,
    /// A trim moves the first offset when it is in the log, committed or not.
    TrimBeforeCommit,
    /// The log is let go of up to the newest checkpoint, trimmed or not.
    ReleasePastTrim,
    /// An installed checkpoint leaves the sessions as they were.
    InstallKeepsSessions,
    /// The log is reset to an offered checkpoint that is not durable.
    InstallUnsaved,
    /// What stands in the log about names, uncommitted, is not looked at.
    NamesJudgedLate,
    /// A trim goes past the offset of a named snapshot.
    TrimPastSnapshot,
    /// The file of a snapshot goes when the log says so, committed or not.
    PictureGoneEarly,
    /// The names are not in a checkpoint.
    NamesForgotten,
    /// An installed checkpoint leaves the members as they were.
    InstallKeepsMembers,
    /// Whoever is behind the beginning is offered the newest checkpoint, trimmed up to there or not.
    NewestOffered,
    /// The log goes on behind an installed checkpoint as it was.
    InstallKeepsLog,
    /// A snapshot is committed that only the leader holds.
    PictureUnspread,
    /// The log is trimmed to what one node has in a snapshot of its state.
    TrimBeforeMajority,
    /// The log is let go of past the node's own snapshot of its state.
    ReleasePastState,
    /// Advancing a cursor may take it back.
    CursorGoesBack,
    /// The cursors keep what a truncation took out of the log.
    CursorsNotRolledBack,
    /// The cursors are not in a checkpoint.
    CursorsForgotten,
    /// An installed checkpoint leaves the cursors as they were.
    InstallKeepsCursors,
    /// Retention by age goes by the leader's clock alone.
    AgeBelievesLeader,
    /// Retention by bytes leaves half of what is to stay.
    RetentionTakesMore,
    /// A node that lost the end of its log votes on.
    LostEndVotes,
    /// A node that lost the end of its log has its vote back before it has everything again.
    RecoveredEarly,
    /// A node that lost the end of its log has its vote back without having heard from the leader that counts on it.
    RecoveredUntold,
    /// The log that a transfer's receiver needs next is let go of like any other.
    TransferUnpinned,
    /// A disk that was full once stays full in the eyes of the node.
    FullNotCleared,
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
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
