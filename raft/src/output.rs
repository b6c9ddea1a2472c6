//! What the core asks of its driver. The order of outputs is the order of their effects.

use std::ops::RangeInclusive;

use crate::message::Message;
use crate::types::{HardState, Index, LogId, NodeId, Role, Term, Tick};

/// One thing to do. Fetched by [`crate::Core::poll`] until there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Leave at once: vouches for nothing that is not durable yet.
    Send {
        /// The receiver.
        to: NodeId,
        /// What to say.
        message: Message,
    },
    /// Leave only when every `Persist` before it is durable: a vote, a request for votes, an acknowledgement.
    SendAfterPersist {
        /// The receiver.
        to: NodeId,
        /// What to say.
        message: Message,
    },
    /// The core appended the no-op that opens its term; the driver seals a frame for it. Stands before its `Persist`.
    Noop {
        /// The entry's name.
        id: LogId,
    },
    /// Write these in order, sync, then report [`crate::Core::durable`] with this `term` and `last`: one report for each, in order.
    Persist(Write),
    /// Send entries to a follower: attach frames from `first` on, then report [`crate::Core::sent`] exactly once.
    ///
    /// Attach at least one frame when `first <= last`, even one above `max_bytes`; otherwise stop at `max_bytes`.
    /// `first > last`: the head travels alone, a probe.
    Append {
        /// The follower.
        to: NodeId,
        /// The entry before `first`.
        prev: LogId,
        /// The first entry to attach.
        first: Index,
        /// The highest entry there is to attach.
        last: Index,
        /// How many bytes the window has room for.
        max_bytes: u64,
        /// For [`crate::AppendHead::commit`].
        commit: Index,
        /// For [`crate::AppendHead::request`].
        request: u64,
        /// For [`crate::AppendHead::epoch`].
        epoch: u64,
        /// For [`crate::AppendHead::term`]: stamped now, whatever the core's term is when the bytes leave.
        term: Term,
    },
    /// Everything up to here is committed and may be applied. It may be ahead of what is durable on this node.
    Commit {
        /// The highest committed index.
        up_to: Index,
    },
    /// Role, term or known leader changed.
    Role {
        /// The role now.
        role: Role,
        /// The term now.
        term: Term,
        /// The leader of this term, when known.
        leader: Option<NodeId>,
    },
    /// A read may be answered from state that is applied up to `index` or further.
    ReadReady {
        /// The id given to [`crate::Core::read`].
        id: u64,
        /// What must be applied first.
        index: Index,
    },
    /// A read could not be confirmed; it may be asked again.
    ReadFailed {
        /// The id given to [`crate::Core::read`].
        id: u64,
    },
    /// Entries from here on are gone from the log; stands before the `Persist` that writes over them, or before nothing
    /// when a log was replaced by an install.
    Truncated {
        /// The first entry that is gone.
        from: Index,
    },
    /// A transfer of leadership ended.
    TransferDone {
        /// Whom it was meant for.
        to: NodeId,
        /// Whether that node leads now.
        ok: bool,
    },
    /// The follower needs entries from before this log's first. Offer it a checkpoint with [`crate::Core::offer_install`], again and
    /// again until its answer takes it out of [`crate::ProgressState::Snapshot`].
    SnapshotNeeded {
        /// The follower.
        to: NodeId,
    },
    /// The leader offers a checkpoint that this node needs: fetch it, install it, report [`crate::Core::installed`], and answer with
    /// [`crate::Core::answer_install`].
    InstallOffered {
        /// The leader.
        from: NodeId,
        /// The last entry that the checkpoint covers.
        base: LogId,
    },
    /// Something an operator must hear of; the variant says what the driver does.
    Alarm(Alarm),
}

/// What to make durable, in one sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Term and vote, when they changed. They go before the entries.
    pub hard_state: Option<HardState>,
    /// Entries to write. A range that starts at or below the last entry written before supersedes from there on.
    pub entries: Option<RangeInclusive<Index>>,
    /// To be reported back: the core's term when this was put out.
    pub term: Term,
    /// To be reported back: the end of the log when this was put out.
    pub last: Index,
}

/// What should not happen, and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    /// A write has not become durable for the first bound: leadership is given up. Log it.
    DiskStalled {
        /// When that write was put out.
        since: Tick,
    },
    /// A write has not become durable for the second bound. The driver ends the process.
    DiskDead {
        /// When that write was put out.
        since: Tick,
    },
    /// A follower came back without entries it had acknowledged as durable. It is not counted until it has them again.
    FollowerLostEntries {
        /// The follower.
        node: NodeId,
        /// What it had acknowledged.
        matched: Index,
        /// Where its log ends now.
        last: Index,
    },
    /// A leader's entry contradicts one that is committed here. The driver stops the node; nothing was changed.
    Diverged {
        /// Who sent it.
        from: NodeId,
        /// Where.
        index: Index,
        /// The term of the entry held here.
        ours: Option<Term>,
        /// The term of the entry received.
        theirs: Term,
    },
    /// Another node claims to lead the term this node leads. The driver stops the node; nothing was changed.
    TwoLeaders {
        /// The term.
        term: Term,
        /// The other.
        other: NodeId,
    },
    /// A message contradicts itself or what this node knows; it was dropped.
    Malformed {
        /// Who sent it.
        from: NodeId,
        /// What was wrong with it.
        what: &'static str,
    },
}
