//! What nodes hold and say to each other in a transcript: entries with bodies, snapshots, messages under the names that transcripts
//! give them.

use std::fmt;

use graven_raft::{AppendHead, EntryKind, EntryMeta, Index, LogId, Membership, Message, NodeId, Term};

/// What stands in an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    /// A token that somebody proposed; empty for the entry that opens a term.
    Data(String),
    /// A membership change.
    Change {
        /// Proposed in the older form, which holds one change only.
        legacy: bool,
        /// As it was written: `v1 l2`; empty when it leaves a joint membership.
        text: String,
        /// Whether the joint membership it makes is left without being asked.
        auto_leave: bool,
        /// What it puts in force; `None` for a change that a core would not take and that stands in the log as mere data.
        membership: Option<Membership>,
    },
}

impl Body {
    pub(crate) fn membership(&self) -> Option<&Membership> {
        match self {
            Body::Data(_) => None,
            Body::Change { membership, .. } => membership.as_ref(),
        }
    }

    /// What the core is told of it.
    pub(crate) fn meta(&self) -> EntryMeta {
        let membership = self.membership().cloned();
        let kind = if membership.is_some() { EntryKind::Membership } else { EntryKind::Records };
        EntryMeta { kind, bytes: 1, membership }
    }
}

/// An entry and its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) id: LogId,
    pub(crate) body: Body,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ", self.id.term, self.id.index)?;
        match &self.body {
            Body::Data(data) => write!(f, "EntryNormal {data:?}"),
            Body::Change { legacy, text, .. } => {
                let version = if *legacy { "" } else { "V2" };
                let gap = if text.is_empty() { "" } else { " " };
                write!(f, "EntryConfChange{version}{gap}{text}")
            }
        }
    }
}

/// The state machine at one entry: all tokens up to there in a row, and the membership.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Snapshot {
    pub(crate) id: LogId,
    pub(crate) data: String,
    pub(crate) membership: Membership,
    /// Where that membership stands.
    pub(crate) since: Index,
    pub(crate) auto_leave: bool,
}

/// One message under way.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    /// What transcripts call this kind of message.
    pub(crate) kind: &'static str,
    pub(crate) payload: Payload,
}

#[derive(Debug, Clone)]
pub(crate) enum Payload {
    Message(Message),
    Append(AppendHead, Vec<Item>),
    Snapshot(Term, Snapshot),
    /// A follower has the snapshot it was sent, durably.
    Installed(Term),
    /// The node's own disk reports writes as durable.
    Durable(Vec<(Term, Index)>),
    /// The node's own state machine reports what it applied.
    Applied(Index),
    /// A proposal that was made at a follower.
    Propose(Body),
}

/// What transcripts call a message of the core. A commit index that travels alone is an append without entries there.
pub(crate) fn kind_of(message: &Message) -> &'static str {
    match message {
        Message::PreVote { .. } => "MsgPreVote",
        Message::PreVoteReply { .. } => "MsgPreVoteResp",
        Message::Vote { .. } => "MsgVote",
        Message::VoteReply { .. } => "MsgVoteResp",
        Message::AppendReply { .. } => "MsgAppResp",
        Message::Heartbeat { .. } => "MsgHeartbeat",
        Message::HeartbeatReply { .. } => "MsgHeartbeatResp",
        Message::Commit { .. } => "MsgApp",
        Message::TimeoutNow { .. } => "MsgTimeoutNow",
        Message::ReadIndex { .. } => "MsgReadIndex",
        Message::ReadIndexReply { .. } => "MsgReadIndexResp",
        Message::Install { .. } => "MsgSnap",
        Message::InstallReply { .. } => "MsgSnapStatus",
        Message::Report { .. } => "MsgReport",
    }
}
