//! Bugs that can be switched on, so that the simulator can show that it sees them.
//!
//! Off, and nothing but the simulator and its tests switches one on. The switch belongs to the thread, so that runs beside
//! each other do not disturb one another. It is a constant-initialised thread-local without a destructor: a look at it is one
//! load, and the looks stand where a message, a report or a timer is handled, never in a loop over entries.

use std::cell::Cell;

/// One planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Entries of earlier terms commit by counting (Raft paper, figure 8).
    OldTermCommit,
    /// A leader counts its own entries before they are synced.
    LeaderCountsUnsynced,
    /// Half of the voters decide.
    HalfIsEnough,
    /// A follower commits what it did not compare with its leader.
    CommitBeyondVerified,
    /// A refused leader goes back one entry at a time.
    HintIgnored,
    /// A read round is confirmed by nobody.
    ReadRoundUnconfirmed,
    /// A round of a passed leadership is answered in the term at work.
    PassedRoundAnswered,
    /// A leader answers reads before it has committed an entry of its own term.
    ReadBeforeOwnEntry,
    /// A vote is given to any log.
    VoteForShorterLog,
    /// A vote is given twice in a term.
    VoteTwice,
    /// A request for votes leaves before term and vote are durable.
    VoteRequestBeforePersist,
    /// A vote leaves before it is durable.
    VoteBeforePersist,
    /// A higher term that was only heard of is not persisted.
    TermNotPersisted,
    /// Appends of a passed term are taken.
    PassedTermTaken,
    /// A follower does not look at the term of the entry before an append.
    PrevUnchecked,
    /// Every append cuts the log behind it, also where it agrees (Raft paper, figure 2, AppendEntries 3).
    TruncatesWhatAgrees,
    /// A leader without a quorum goes on.
    CheckQuorumOff,
    /// Nobody asks before standing for election.
    PreVoteSkipped,
    /// Voters that hear their leader grant pre-votes.
    LoyaltyOff,
    /// A leader opens its term without an entry.
    NoopSkipped,
    /// A follower that answers heartbeats and acknowledges nothing is left alone.
    WatchdogOff,
    /// A membership is followed by the next one before it is committed: a joint one is left while it can still vanish.
    ChangeTooEarly,
    /// A membership is in force when it is committed, not when it stands in the log.
    MembershipOnCommit,
    /// A truncation leaves the membership that it took out of the log in force.
    MembershipKept,
    /// A leader without room for records leads on though others have room.
    FullLeaderStays,
    /// A disk that hangs is never noticed.
    StallUnnoticed,
    /// A disk that hangs long enough is believed to have written.
    StallCountsAsDone,
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
