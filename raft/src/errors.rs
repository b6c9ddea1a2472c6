//! Why an input was refused. Each tells what to do next; none of them changed anything.

use crate::types::NodeId;

/// A proposal was refused; nothing entered the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// Propose at the leader.
    #[error("this node does not lead; the leader is {}", name(.leader))]
    NotLeader {
        /// The leader of this term, when known.
        leader: Option<NodeId>,
    },
    /// Leadership is being handed over: retry in a moment, perhaps elsewhere.
    #[error("leadership is being transferred to node {to}")]
    Transferring {
        /// Whom it goes to.
        to: NodeId,
    },
    /// One change at a time: retry when the one under way is committed.
    #[error("an earlier membership entry, or this leader's first entry, is not committed yet")]
    MembershipPending,
    /// Two majorities that need not meet would decide. Go through a joint membership.
    #[error("the membership does not follow from the one in force: {reason}")]
    MembershipUnsafe {
        /// The rule it breaks.
        reason: &'static str,
    },
}

/// A read was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Retry when a leader is known.
    #[error("no leader is known")]
    NoLeader,
    /// Too many reads wait already: retry when some are answered.
    #[error("{waiting} reads are waiting already")]
    Busy {
        /// How many.
        waiting: usize,
    },
}

/// A transfer was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// Ask the leader.
    #[error("this node does not lead; the leader is {}", name(.leader))]
    NotLeader {
        /// The leader of this term, when known.
        leader: Option<NodeId>,
    },
    /// Another transfer is under way; it ends within an election timeout.
    #[error("leadership is being transferred to node {to} already")]
    Transferring {
        /// Whom it goes to.
        to: NodeId,
    },
    /// Name another voter.
    #[error("node {to} is not another voter")]
    NotAVoter {
        /// The node that was named.
        to: NodeId,
    },
}

fn name(leader: &Option<NodeId>) -> String {
    leader.map_or_else(|| "unknown".to_owned(), |id| format!("node {id}"))
}
