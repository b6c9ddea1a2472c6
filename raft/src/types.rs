//! The numbers and facts the protocol speaks about. Newtypes, so that no two of them are mistaken for one another.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A leadership's number: at most one leader in each. Zero stands before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Term(pub u64);

/// An entry's position in the log. The first entry of every log is 1; zero stands before the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Index(pub u64);

/// A member of the cluster, from 1. Ids are never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct NodeId(pub u64);

/// Microseconds since an arbitrary start, from a clock that never goes back. The driver brings it; the core has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Tick(pub u64);

impl Index {
    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Index {
        Index(self.0 + 1)
    }

    /// The position before this one; before zero stands zero.
    #[must_use]
    pub fn previous(self) -> Index {
        Index(self.0.saturating_sub(1))
    }
}

impl Term {
    /// The highest term that is believed: a thousand elections a second do not get there in the age of the universe. One above it is a
    /// lie, and adopted it would leave no term to stand in.
    pub const MAX: Term = Term(u64::MAX >> 1);

    /// The term after this one.
    #[must_use]
    pub fn next(self) -> Term {
        Term(self.0 + 1)
    }
}

impl Tick {
    /// This moment and `us` microseconds.
    #[must_use]
    pub fn after(self, us: u64) -> Tick {
        Tick(self.0.saturating_add(us))
    }

    /// Microseconds that passed since `earlier`; zero when it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Tick) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An entry's name. Two logs that hold the same `LogId` are equal up to it (Raft paper 5.3, Log Matching).
///
/// The order is that of Raft paper 5.4.1: the later term wins, within one term the longer log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct LogId {
    /// The term whose leader made the entry.
    pub term: Term,
    /// Its position.
    pub index: Index,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}

/// What an entry holds. The core itself looks only at `Noop` and `Membership`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EntryKind {
    /// Records that users appended.
    Records,
    /// Nothing: opens a leader's term.
    Noop,
    /// Who belongs to the cluster; in force from the moment it stands in the log.
    Membership,
    /// The log's new first offset.
    Trim,
    /// A session opened or closed.
    Session,
    /// A named snapshot was committed or dropped.
    Snapshot,
    /// A cursor moves, or is dropped.
    Cursor,
}

/// Who belongs to the cluster, and with which say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Membership {
    /// Those whose majority decides.
    pub voters: BTreeSet<NodeId>,
    /// The voters before the change under way; its majority is needed too. Empty when no change is under way.
    pub outgoing: BTreeSet<NodeId>,
    /// Those who receive the log and decide nothing.
    pub learners: BTreeSet<NodeId>,
}

impl Membership {
    /// A plain membership of voters.
    #[must_use]
    pub fn of_voters(voters: impl IntoIterator<Item = NodeId>) -> Self {
        Self { voters: voters.into_iter().collect(), ..Self::default() }
    }

    /// Whether two majorities are needed (thesis 4.3, joint consensus).
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `node` has a say in either half.
    #[must_use]
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing.contains(&node)
    }

    /// Whether `node` belongs to the cluster at all.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.is_voter(node) || self.learners.contains(&node)
    }

    /// Everybody, once each, in order of id.
    #[must_use]
    pub fn members(&self) -> BTreeSet<NodeId> {
        let mut all = self.voters.clone();
        all.extend(&self.outgoing);
        all.extend(&self.learners);
        all
    }
}

/// What the core knows of an entry: never its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryMeta {
    /// What it holds.
    pub kind: EntryKind,
    /// Its encoded size.
    pub bytes: u32,
    /// The membership it puts in force; present exactly when `kind` is [`EntryKind::Membership`].
    pub membership: Option<Membership>,
}

impl EntryMeta {
    /// An entry that is not a membership.
    #[must_use]
    pub fn plain(kind: EntryKind, bytes: u32) -> Self {
        Self { kind, bytes, membership: None }
    }
}

/// An entry as the core knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub id: LogId,
    /// What is known of it.
    pub meta: EntryMeta,
}

/// What must be on disk before any word that rests on it leaves: the term, and whom this node voted for in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HardState {
    /// The highest term this node has seen.
    pub term: Term,
    /// Its vote in that term. A fact of its own: seeing a higher term never is a vote.
    pub vote: Option<NodeId>,
}

/// What a node is doing at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Takes entries from a leader, or waits for one.
    Follower,
    /// Asks whether it could win, without touching any term (thesis 9.6).
    PreCandidate,
    /// Asks for votes in its own new term.
    Candidate,
    /// Orders the log of its term.
    Leader,
}
