//! What nodes say to each other. Every message carries its sender's term, replies too, so that a newer term is never hidden.
//!
//! All but the append go over the control lane. An append is an [`AppendHead`] followed by frames, on the append lane.
//! Messages may be lost, doubled, delayed and reordered; none of it costs safety.

use serde::{Deserialize, Serialize};

use crate::types::{Index, LogId, Term};

/// A control message. The core trusts that the transport proved who sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// "Could I win?" Touches nobody's term (thesis 9.6).
    PreVote {
        /// The asker's current term.
        term: Term,
        /// The term it would stand in: the one after its own.
        campaign: Term,
        /// The end of its log.
        last: LogId,
    },
    /// Answer to [`Message::PreVote`].
    PreVoteReply {
        /// The answerer's current term. When it is ahead of the asker's, the asker adopts it.
        term: Term,
        /// The term that was asked about.
        campaign: Term,
        /// Whether it would get this vote.
        granted: bool,
    },
    /// Request for a vote (Raft paper 5.2). Leaves after the candidate's own term and vote are durable.
    Vote {
        /// The term the candidate stands in.
        term: Term,
        /// The end of its log.
        last: LogId,
        /// Stands at its leader's wish: a voter that heard its leader a moment ago listens all the same (thesis 3.10).
        transfer: bool,
    },
    /// Answer to [`Message::Vote`]. Leaves after the vote is durable.
    VoteReply {
        /// The voter's term.
        term: Term,
        /// Whether the vote was given, in `term`.
        granted: bool,
    },
    /// Answer to an append. A success leaves after everything it vouches for is durable.
    AppendReply {
        /// The follower's term.
        term: Term,
        /// The request answered.
        request: u64,
        /// Its epoch, echoed.
        epoch: u64,
        /// Whether the follower's log holds the entry before the append.
        success: bool,
        /// On success: everything up to here is durable and equal to the log of `term`'s leader.
        matched: Index,
        /// The end of the follower's log.
        last: Index,
        /// On refusal: where the logs may meet.
        hint: Option<ConflictHint>,
    },
    /// "I lead `term`." Sent to all at an interval, and when reads need a confirmation.
    Heartbeat {
        /// The leader's term.
        term: Term,
        /// Committed index, never past what this follower acknowledged.
        commit: Index,
        /// Counts the broadcasts of this leadership.
        round: u64,
    },
    /// Answer to [`Message::Heartbeat`]: at this moment the sender follows `term`'s leader.
    HeartbeatReply {
        /// The follower's term.
        term: Term,
        /// The broadcast answered.
        round: u64,
        /// The end of the follower's log.
        last: Index,
        /// Up to here the follower, in this life, found its log equal to the one of `term`'s leader.
        verified: Index,
        /// Whether the follower's disk has no room for records.
        disk_full: bool,
    },
    /// The commit index moved and no append was about to carry it. Needs no answer.
    Commit {
        /// The leader's term.
        term: Term,
        /// Committed index, never past what this follower acknowledged.
        commit: Index,
    },
    /// "Stand for election now" (thesis 3.10). Ignored unless the receiver's durable log ends exactly at `last`.
    TimeoutNow {
        /// The leader's term.
        term: Term,
        /// The end of the leader's log.
        last: LogId,
    },
    /// A follower asks its leader for a read index (thesis 6.4).
    ReadIndex {
        /// The follower's term.
        term: Term,
        /// Names the question; the answer echoes it.
        token: u64,
    },
    /// Answer to [`Message::ReadIndex`].
    ReadIndexReply {
        /// The leader's term.
        term: Term,
        /// The question's name.
        token: u64,
        /// State applied up to here is fresh enough; `None` when leadership could not be confirmed.
        index: Option<Index>,
    },
    /// "What you lack is not in my log any more: install the checkpoint that ends with `base`" (Raft paper 7). The checkpoint itself
    /// is fetched by the driver. Repeated until it is answered.
    Install {
        /// The leader's term.
        term: Term,
        /// The last entry that the checkpoint covers; committed.
        base: LogId,
    },
    /// Answer to [`Message::Install`].
    InstallReply {
        /// The follower's term.
        term: Term,
        /// The checkpoint answered.
        base: LogId,
        /// Whether the follower's log now holds or begins behind `base`; if not, it may be offered again.
        ok: bool,
    },
    /// What a follower tells the driver of its leader beside the protocol. The core does not look at it.
    Report {
        /// The follower's term.
        term: Term,
        /// What it tells.
        report: Report,
    },
}

impl Message {
    /// The sender's term.
    #[must_use]
    pub fn term(&self) -> Term {
        match self {
            Message::PreVote { term, .. }
            | Message::PreVoteReply { term, .. }
            | Message::Vote { term, .. }
            | Message::VoteReply { term, .. }
            | Message::AppendReply { term, .. }
            | Message::Heartbeat { term, .. }
            | Message::HeartbeatReply { term, .. }
            | Message::Commit { term, .. }
            | Message::TimeoutNow { term, .. }
            | Message::ReadIndex { term, .. }
            | Message::ReadIndexReply { term, .. }
            | Message::Install { term, .. }
            | Message::InstallReply { term, .. }
            | Message::Report { term, .. } => *term,
        }
    }
}

/// How a follower stands in what is not the protocol's: its clock and its snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Its wall clock, milliseconds since the epoch.
    pub wall_ms: u64,
    /// The offset up to which its state machine's state is durable in a snapshot; 0 without one.
    pub snapshot: u64,
    /// The named snapshots that are durable here, by their ids, ascending.
    pub held: Vec<u64>,
}

/// Where a follower's log may meet the leader's: its last entry at or before the asked one whose term is not above the asked term.
///
/// With it a leader steps over a whole term of its own log, or of the follower's, at once (Raft paper 5.3, end).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictHint {
    /// That entry.
    pub at: LogId,
    /// The first index of its term in the follower's log.
    pub first: Index,
}

/// What goes before the frames of an append, on the append lane.
///
/// The driver builds it from [`crate::Output::Append`] and adds the frames; on the receiving side the driver makes the list of
/// entries from the frames. Each append stands alone: it may arrive twice, late, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendHead {
    /// The leader's term.
    pub term: Term,
    /// The entry before the first frame.
    pub prev: LogId,
    /// The chain value of that entry. For drivers, who compare it with their own; the core does not look at it. Zero: not told.
    pub prev_chain: u64,
    /// The leader's commit index, unclamped.
    pub commit: Index,
    /// Names this append; the answer echoes it.
    pub request: u64,
    /// Grows when the leader starts over with this follower; the answer echoes it.
    pub epoch: u64,
}
