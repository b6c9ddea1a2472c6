//! What goes into a replica and what comes out of it.

use std::sync::Arc;

use graven_frame::Frame;
use graven_raft::{AppendHead, HardState, LogId, Message, NodeId, Role, Term, Tick};
use graven_snapshot::Checkpoint;

use super::names::Picture;
use super::sessions::Placed;
use crate::members::change::ChangeRefused;

/// The moment of an input: the driver's monotonic clock and its wall clock. The replica has no clock of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time.
    pub tick: Tick,
    /// Wall clock in milliseconds since the epoch; stamps entries, decides nothing.
    pub wall_ms: u64,
}

/// The driver's name for something it wants answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Something to do. The order of effects is the order in which they must be started.
#[derive(Debug)]
pub enum Effect {
    /// Send a control message.
    Send {
        /// The receiver.
        to: NodeId,
        /// What to send.
        message: Message,
    },
    /// Send frames to a follower.
    SendAppend {
        /// The follower.
        to: NodeId,
        /// What goes before the frames.
        head: AppendHead,
        /// The frames, maybe none.
        frames: Vec<Frame>,
    },
    /// Run this on the log, after all jobs before it; report [`super::Replica::disk_done`].
    Disk(DiskJob),
    /// Read frames for a follower that is behind the ring; report [`super::Replica::loaded`].
    Load(Load),
    /// Fetch a checkpoint from a peer; report [`super::Replica::fetched`], whatever becomes of it.
    Fetch(Fetch),
    /// Fetch the file of an application's snapshot from any peer; report [`super::Replica::picture_fetched`], whatever becomes of it.
    FetchPicture {
        /// Its name.
        name: String,
        /// Which one.
        picture: Picture,
    },
    /// Remove the file of a snapshot that the log no longer names.
    ForgetPicture(u64),
    /// Answer a request.
    Answer {
        /// Which.
        request: RequestId,
        /// With what.
        answer: Result<Answer, Rejection>,
    },
    /// The role, term or leader changed. Lanes of a passed leadership may be reset.
    Role {
        /// The role now.
        role: Role,
        /// The term now.
        term: Term,
        /// Who leads, as far as known.
        leader: Option<NodeId>,
    },
    /// Something that a person must know.
    Alarm(Alarm),
    /// This node has everything again that it may once have acknowledged: it votes from here on, in later lives too.
    Recovered,
}

/// Writes for the log, made durable together with whatever stands in the queue beside them.
#[derive(Debug, Clone)]
pub struct DiskJob {
    /// Number of the job; completions are reported by it, in order.
    pub sequence: u64,
    /// Commit index known when the job was made; a hint that recovery uses.
    pub commit: u64,
    /// Term and vote to write before the frames.
    pub hard_state: Option<HardState>,
    /// Frames to append. The first may stand at or below the log's last index: it supersedes.
    pub frames: Vec<Frame>,
    /// What else is to be done, after all of that is durable.
    pub chore: Option<Chore>,
}

/// Work on the files that is no append.
#[derive(Debug, Clone)]
pub enum Chore {
    /// Save a checkpoint of this node. On a full disk it is not saved, and the job is done all the same.
    Save(Arc<Checkpoint>),
    /// Save a checkpoint that a peer made and start the log anew behind it. On a full disk neither happens.
    Install(Arc<Checkpoint>),
    /// Let go of the log up to this entry, whose checkpoint is durable, and of older checkpoints.
    Release(u64),
    /// Forget that the log lost its end: everything that may have been acknowledged there is back, and durable.
    Recovered,
}

/// A checkpoint wanted from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// Names the fetch; goes back with the checkpoint.
    pub token: u64,
    /// Who has it.
    pub from: NodeId,
    /// The last entry it covers.
    pub base: LogId,
}

/// Frames wanted from the log's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Names the load; goes back with the frames.
    pub token: u64,
    /// First index wanted.
    pub first: u64,
    /// Last index wanted.
    pub last: u64,
    /// Bytes after which to stop; one frame is always wanted.
    pub max_bytes: usize,
}

/// A request that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The append is committed and durable on a majority, here.
    Appended(Placed),
    /// The session is open.
    SessionOpened {
        /// Its id.
        session: u64,
    },
    /// Every append acknowledged before the request is below `next_offset`, and readable on this node.
    ReadIndex {
        /// Offset after the last committed record.
        next_offset: u64,
    },
    /// Leadership is where it was wanted.
    Transferred,
    /// The members are as wanted, and that is committed.
    MembersChanged,
    /// What was to be trimmed is, and that is committed.
    Trimmed {
        /// The first offset now.
        first_offset: u64,
    },
    /// A majority of the voters holds the snapshot, and its name means it.
    SnapshotNamed {
        /// Its offset.
        offset: u64,
    },
    /// The name stands for nothing any more, and that is committed.
    SnapshotDropped,
    /// A snapshot may come.
    Welcome,
    /// The cursor stands there, and that is committed.
    CursorAt {
        /// The offset of the record that is wanted next.
        offset: u64,
    },
    /// There is no cursor of that name, and that is committed.
    CursorDropped {
        /// Where it stood, if there was one.
        offset: Option<u64>,
    },
}

/// A request that was not carried out, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// Refused: this node does not lead.
    NotLeader {
        /// Who does, as far as known.
        leader: Option<NodeId>,
    },
    /// Unknown: this node stopped leading before the append was committed; it may or may not survive.
    LostLeadership {
        /// Who leads now, as far as known.
        leader: Option<NodeId>,
    },
    /// Refused: the first record would not have landed at the expected offset.
    Conflict {
        /// Where the next record lands.
        next_offset: u64,
    },
    /// Refused: nothing can be trimmed that is not there yet.
    TrimBeyond {
        /// Where the next record lands.
        next_offset: u64,
    },
    /// Refused: those records are what follows a named snapshot.
    NeededBySnapshot {
        /// Its name.
        name: String,
        /// Its offset.
        offset: u64,
    },
    /// Refused: that offset is not committed yet.
    Beyond {
        /// Where the next record lands.
        next_offset: u64,
    },
    /// Refused: records behind that offset are trimmed, so nobody could go on from the snapshot.
    TrimmedAway {
        /// The first offset.
        first_offset: u64,
    },
    /// Refused: the name's snapshot is of a later offset.
    OlderSnapshot {
        /// That offset.
        current: u64,
    },
    /// Refused: another snapshot of that name is being taken in.
    SnapshotComing,
    /// Refused: there are as many names, or uploads, as there may be.
    TooManySnapshots,
    /// Did not happen: a later snapshot of the name, or its end, came first.
    SnapshotReplaced,
    /// Refused: no snapshot has that name.
    NoSuchSnapshot,
    /// Refused: no cursor may be named so.
    CursorName,
    /// Refused: there are as many cursors as there may be.
    TooManyCursors,
    /// Refused: too many moves of cursors wait. Passes by itself.
    CursorsBusy,
    /// Refused: not all nodes of the cluster understand it yet.
    Level {
        /// The feature level that is needed.
        needed: u32,
    },
    /// Refused: a higher fencing token has been used.
    Fenced {
        /// That token.
        fence: u64,
    },
    /// Unknown: the session or its result is forgotten, so nobody can tell any more.
    SessionExpired,
    /// Refused: an earlier append of the session is missing.
    Gap {
        /// The sequence number to go on with.
        expected: u64,
    },
    /// Refused: this node's disk is full.
    DiskFull,
    /// Refused: leadership is being handed over.
    Transferring,
    /// Refused: the node to lead is unknown, dead or too far behind.
    TransferFailed,
    /// No quorum confirmed the read in time.
    ReadFailed,
    /// Refused: another change of the members is not over, or this leader's first entry is not committed. Passes by itself.
    MembersChanging,
    /// Refused: the members cannot be changed so.
    Change(Box<ChangeRefused>),
    /// Refused: the group does not follow the rules (a session append without a sequence number, no record).
    Malformed,
}

/// Something that a person must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    /// Two logs have the same index and term with different contents. This node stops taking entries.
    Diverged {
        /// The entry where it shows.
        index: u64,
        /// Whose log differs.
        peer: NodeId,
    },
    /// A peer sent frames that do not follow each other; they were dropped.
    BadAppend {
        /// Who sent it.
        peer: NodeId,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The core's own alarm, in words.
    Core(String),
    /// The oldest unsynced write is so old that this process should end.
    DiskStalled,
}

/// What others may know of the replica, copied out after every round of inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The current term.
    pub term: Term,
    /// The role in it.
    pub role: Role,
    /// Who leads.
    pub leader: Option<NodeId>,
    /// Index of the newest committed entry known here.
    pub commit_index: u64,
    /// Index of the newest entry in the log, synced or not.
    pub last_index: u64,
    /// Index of the newest entry that is synced here.
    pub durable_index: u64,
    /// Index of the newest entry that readers of this node may see: committed and synced here.
    pub readable_index: u64,
    /// Index of the newest entry applied by the state machine; of a node without one, the readable index.
    pub applied_index: u64,
    /// The first offset that was not trimmed.
    pub first_offset: u64,
    /// Offset after the last readable record.
    pub next_offset: u64,
    /// Whether a divergence alarm stopped this node.
    pub diverged: bool,
    /// Whether this node's disk is full.
    pub disk_full: bool,
    /// Whether its log is being brought back: it does not vote.
    pub recovering: bool,
    /// Since when the oldest write waits that the disk has not finished.
    pub unsynced_since: Option<Tick>,
}

impl std::fmt::Display for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Alarm::Diverged { index, peer } => write!(
                f,
                "the log differs from that of node {} at entry {index}, where both must be equal; this node stops. Keep its \
                 data directory for a look at the cause, then replace the node",
                peer.0
            ),
            Alarm::BadAppend { peer, reason } => write!(f, "an append of node {} was dropped: {reason}", peer.0),
            Alarm::Core(words) => f.write_str(words),
            Alarm::DiskStalled => f.write_str(
                "a write to the log has not ended for half a minute: its disk hangs, so this node stops; look at the disk, \
                 then start the node again",
            ),
        }
    }
}
