//! Who belongs to a cluster, and wishes to change it.

use serde::{Deserialize, Serialize};

/// A wish to change who belongs to the cluster. A wish that is granted already changes nothing and is answered as done, so
/// that it may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MemberChange {
    /// Takes a node in as a learner: it receives the log and has no vote.
    Add(NewMember),
    /// Gives a learner a vote, when it has caught up.
    Promote {
        /// Its name.
        name: String,
    },
    /// Takes a member out.
    Remove {
        /// Its name.
        name: String,
    },
    /// Gives a learner that has caught up a vote and takes another member out, in one step.
    Replace {
        /// Who goes.
        old: String,
        /// The learner who comes.
        new: String,
    },
    /// Takes a node in as a learner at the address of the member `old`, in whose place it was started: `old` lost its data
    /// directory. The first half of a replacement; [`MemberChange::Replace`] is the second.
    AddInPlace {
        /// Whose address it took over.
        old: String,
        /// The new node.
        new: NewMember,
    },
}

/// A node to be taken in, as it tells about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMember {
    /// Its id, above every id that was ever given in this cluster.
    pub id: u64,
    /// Its name, which its certificate carries.
    pub name: String,
    /// `HOST:PORT` for the other nodes.
    pub peer_address: String,
    /// `HOST:PORT` for clients.
    pub client_address: String,
    /// The life of its data directory.
    pub incarnation: [u8; 16],
}

/// A member's say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum MemberRole {
    /// Receives the log, has no vote.
    Learner,
    /// Votes.
    Voter,
    /// About to become a voter: a change is under way.
    Joining,
    /// A voter that is about to be gone: a change is under way.
    Leaving,
}

/// A member as the leader has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberEntry {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u64,
    /// Its say.
    pub role: MemberRole,
    /// Where clients reach it.
    pub address: String,
    /// Where peers reach it.
    pub peer_address: String,
    /// The life of its data directory, 32 hexadecimal digits.
    pub incarnation: String,
}

/// The answer of `graven member list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberList {
    /// All members, by id.
    pub members: Vec<MemberEntry>,
    /// Whether a change of voters is under way.
    pub changing: bool,
}
