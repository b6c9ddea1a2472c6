//! Messages between clients and nodes, shared by the client library and the listener.
//!
//! `net/PROTOCOL.md` describes the bytes. Control messages pass through [`wire`](crate::wire); what carries records is laid out by
//! hand, in [`append`] and [`feed`]. The one table of who may do what is [`role_needed`].

use serde::{Deserialize, Serialize};

use crate::tls::Role;

pub mod append;
pub mod backup;
pub(crate) mod budget;
pub(crate) mod chunks;
mod failure;
pub mod feed;
mod health;
mod members;
pub mod snapshot;
mod status;

pub use failure::{Detail, ErrorCode, Failure, Outcome};
pub use health::{NodeHealth, PeerHealth, PlaceHealth, SocketHealth, SyncHealth, Usage};
pub use members::{MemberChange, MemberEntry, MemberList, MemberRole, NewMember};
pub use snapshot::{SnapshotEntry, SnapshotInfo, SnapshotState};
pub use status::{
    Behind, Bounds, ClusterStatus, DamagedRange, MemberReport, NodeReport, NodeRole, NodeState, NodeStats, NodeStatus,
};

/// Name of the client protocol in the TLS handshake.
pub use crate::tls::ALPN_CLIENT as ALPN;
/// The protocol version this code speaks.
pub const VERSION: u16 = 1;
/// The oldest version it still speaks.
pub const OLDEST_VERSION: u16 = 1;
/// The cluster feature level this code knows. 2: cursors and snapshots with names, retention, reports of followers.
pub const FEATURE_LEVEL: u32 = 2;
/// The largest control message. Ours are a few hundred bytes; a report on a cluster of seven stays below 4 KiB.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// The largest message of a client: a hello, a request, a subscription. The largest names a member with two addresses, and has
/// some hundred bytes; a node holds so much for each stream on which a client may still be speaking.
pub const MAX_REQUEST_BYTES: usize = 4 << 10;

/// Close code: the side that closes is done, nothing is wrong.
pub const CLOSE_DONE: u32 = 0;
/// Close code: the node is going away; connect to another one.
pub const CLOSE_SHUTDOWN: u32 = 1;
/// Close code: the node has as many connections as it takes.
pub const CLOSE_BUSY: u32 = 2;
/// Close code: the bytes received are not this protocol.
pub const CLOSE_PROTOCOL: u32 = 3;
/// Close code: the certificate is valid, but not for a client of this cluster.
pub const CLOSE_UNAUTHENTICATED: u32 = 4;

/// The first byte of every stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamKind {
    /// The first bidirectional stream: [`Hello`], answered by [`HelloReply`].
    Hello = 1,
    /// One [`Request`], answered by one [`Response`].
    Unary = 2,
    /// Append groups, answered by [`append::Answer`]s.
    Append = 3,
    /// A [`feed::SubscribeRequest`], answered by feed items.
    Subscribe = 4,
    /// Unidirectional, from the node: one [`LeaderView`] whenever it changes.
    Leader = 5,
    /// A [`snapshot::PutRequest`] and a body, answered by [`snapshot::PutAnswer`]s.
    PutSnapshot = 6,
    /// A [`snapshot::GetRequest`], answered by a [`snapshot::GetAnswer`] and a body.
    GetSnapshot = 7,
    /// A [`backup::BackupRequest`], answered by a whole log.
    Backup = 8,
}

impl StreamKind {
    /// The kind with this number.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<StreamKind> {
        StreamKind::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    const ALL: [StreamKind; 8] = [
        StreamKind::Hello,
        StreamKind::Unary,
        StreamKind::Append,
        StreamKind::Subscribe,
        StreamKind::Leader,
        StreamKind::PutSnapshot,
        StreamKind::GetSnapshot,
        StreamKind::Backup,
    ];
}

/// What a client says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The oldest protocol version it speaks.
    pub oldest: u16,
    /// The newest protocol version it speaks.
    pub newest: u16,
    /// The highest cluster feature level it knows.
    pub feature_level: u32,
    /// Its software version, for logs.
    pub software: String,
}

/// The node's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelloReply {
    /// The connection may be used.
    Welcome(Welcome),
    /// It may not: no common version, for example.
    Refused(Failure),
}

/// Who the client is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol version to use.
    pub version: u16,
    /// The cluster's feature level.
    pub feature_level: u32,
    /// The cluster.
    pub cluster: u128,
    /// The node's id.
    pub node: u64,
    /// The node's name.
    pub name: String,
    /// The node's software version.
    pub software: String,
    /// The largest record it takes, in bytes.
    pub max_record_bytes: u32,
}

/// Who leads, as one node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeaderView {
    /// The node's term.
    pub term: u64,
    /// The leader of that term, when known.
    pub leader: Option<String>,
    /// Where clients reach the leader.
    pub address: Option<String>,
}

impl LeaderView {
    /// Nobody is known to lead in `term`.
    #[must_use]
    pub fn nobody(term: u64) -> LeaderView {
        LeaderView { term, leader: None, address: None }
    }
}

/// What a client asks on a unary stream. New requests are added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Request {
    /// Opens an append session; at the leader only. Safe to repeat: a lost answer wastes a session and no more.
    OpenSession,
    /// What the node says about itself.
    NodeStatus,
    /// Where the log begins and ends. Linearizable: not before every append acknowledged until now is covered.
    Bounds {
        /// Confirm with a majority, and wait until this node has applied that far.
        linearizable: bool,
    },
    /// Hands the leadership to the named node; at the leader only. Answered when that node leads.
    Transfer {
        /// Name of the node.
        node: String,
    },
    /// The process's counters.
    NodeStats,
    /// Who belongs to the cluster, as the node's log has it.
    Members,
    /// Changes who belongs to the cluster; at the leader only. Answered when the change is committed, both its steps when it
    /// has two. Safe to repeat.
    ChangeMembers(MemberChange),
    /// The node's condition and surroundings, for `graven doctor`.
    NodeHealth,
    /// Lets go of all records before an offset; at the leader only. Answered when that is committed. Safe to repeat.
    Trim {
        /// The first offset that stays.
        before: u64,
    },
    /// The first damage in the node's log, of one that reports itself `recovering` or `damaged`.
    Damage,
    /// Where a cursor stands. Linearizable.
    Cursor {
        /// Its name.
        name: String,
    },
    /// The cursors whose names come behind this one, some hundred of them at most. Linearizable.
    Cursors {
        /// A name, or nothing.
        after: String,
    },
    /// Moves a cursor forward, or leaves it where it is; at the leader only. Answered when that is committed. Safe to repeat.
    AdvanceCursor {
        /// Its name: 1 to 64 letters, digits, `.`, `_` and `-`, the first of them no dot and no dash.
        name: String,
        /// The record that is wanted next.
        offset: u64,
    },
    /// Puts a cursor anywhere in the log; at the leader only. Answered when that is committed.
    SetCursor {
        /// Its name.
        name: String,
        /// The record that is wanted next.
        offset: u64,
    },
    /// Takes a cursor away; at the leader only. Answered when that is committed.
    DropCursor {
        /// Its name.
        name: String,
    },
    /// The snapshots of applications.
    Snapshots,
    /// Ends a name of snapshots; at the leader only. Answered when that is committed.
    DropSnapshot {
        /// The name.
        name: String,
    },
    /// How the others keep up with the leader that is asked.
    Followers,
}

/// The answer to a [`Request`]. New answers are added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Response {
    /// To [`Request::OpenSession`].
    SessionOpened {
        /// The session's id: the index of the entry that opened it.
        session: u64,
    },
    /// To [`Request::NodeStatus`].
    NodeStatus(Box<NodeReport>),
    /// To [`Request::Bounds`].
    Bounds(Bounds),
    /// To [`Request::Transfer`]: the node leads.
    Transferred,
    /// To [`Request::NodeStats`].
    NodeStats(NodeStats),
    /// The node does not lead, and the request needs the leader.
    NotLeader(LeaderView),
    /// The request failed.
    Failed(Failure),
    /// To [`Request::Members`].
    Members(MemberList),
    /// To [`Request::ChangeMembers`]: the change is committed.
    MembersChanged,
    /// To [`Request::NodeHealth`].
    NodeHealth(Box<NodeHealth>),
    /// To [`Request::Trim`]: that is committed.
    Trimmed {
        /// The first offset now: what was asked for, or more when more was trimmed before.
        first_offset: u64,
    },
    /// To [`Request::Damage`].
    Damage(Option<DamagedRange>),
    /// To [`Request::Cursor`], [`Request::AdvanceCursor`] and [`Request::SetCursor`].
    Cursor {
        /// Where it stands, if it is there.
        offset: Option<u64>,
    },
    /// To [`Request::Cursors`].
    Cursors {
        /// Names and offsets, by name, ascending.
        cursors: Vec<(String, u64)>,
        /// Whether there are more behind the last of them.
        more: bool,
    },
    /// To [`Request::DropCursor`].
    CursorDropped {
        /// Where it stood, if it was there.
        offset: Option<u64>,
    },
    /// To [`Request::Snapshots`], by name.
    Snapshots(Vec<SnapshotEntry>),
    /// To [`Request::DropSnapshot`]: that is committed.
    SnapshotDropped,
    /// To [`Request::Followers`]: each by its id; empty at one that does not lead.
    Followers(Vec<(u64, Behind)>),
}

/// Everything a client may ask for, for [`role_needed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// A unary request.
    Unary(&'a Request),
    /// Opening an append stream.
    Append,
    /// Opening a subscription.
    Subscribe,
    /// Putting a snapshot.
    PutSnapshot,
    /// Getting a snapshot.
    GetSnapshot,
    /// Copying the whole log.
    Backup,
}

/// The one table of who may do what: the least role for an action.
///
/// | action | role |
/// |---|---|
/// | subscribe, status, bounds, counters, health, members, damage, see and advance cursors, list and get snapshots | read |
/// | open a session, append, put a snapshot | append |
/// | transfer, change members, trim, set and drop cursors, drop a snapshot, copy the whole log | admin |
///
/// Whoever puts a snapshot takes room on every node and holds trims up, as whoever appends does; dropping one gives away, as a trim
/// does, what cannot be had back.
#[must_use]
pub fn role_needed(action: Action<'_>) -> Role {
    match action {
        Action::Subscribe | Action::GetSnapshot => Role::Read,
        Action::Unary(
            Request::NodeStatus
            | Request::Bounds { .. }
            | Request::NodeStats
            | Request::NodeHealth
            | Request::Members
            | Request::Damage
            | Request::Followers
            | Request::Cursor { .. }
            | Request::Cursors { .. }
            // Whoever may follow the log may keep its place in it.
            | Request::AdvanceCursor { .. }
            | Request::Snapshots,
        ) => Role::Read,
        Action::Append | Action::PutSnapshot | Action::Unary(Request::OpenSession) => Role::Append,
        // Sessions and their numbers are in it, and whatever is trimmed and not yet gone.
        Action::Backup => Role::Admin,
        Action::Unary(
            Request::Transfer { .. }
            | Request::ChangeMembers(_)
            | Request::Trim { .. }
            | Request::SetCursor { .. }
            | Request::DropCursor { .. }
            | Request::DropSnapshot { .. },
        ) => Role::Admin,
    }
}
