//! Fetching from another node by number: frames of its log, its newest checkpoint, and snapshots chunk by chunk.
//!
//! What a node needs to heal its own log, or to begin with one, comes this way and not over the peers' lanes: a fetch of gigabytes
//! must not stand before a heartbeat, and a node that is not whole has no lanes. The listener for clients takes a second protocol
//! name, [`ALPN_BULK`], for the certificates of nodes; a client under that name, and a node under the clients', is refused by name.
//!
//! - [`BulkSource`] is what a node gives; the listener asks it from threads that may wait for a disk.
//! - [`BulkClient`] dials one node and reads from it. Everything that arrives is checked before it is handed on: lengths, header and
//!   body sums, that frames follow each other by number and chain. Whether they fit the log they are for is the caller's business.
//!
//! Bounds: [`CONNECTIONS_MAX`] connections, [`STREAMS_MAX`] requests on each, [`BATCH_BYTES`] or one frame borrowed for each; a
//! reader that stops is given up after [`WRITE_STALL`]. Of a snapshot two chunks are borrowed. A receiver holds QUIC's windows (512 KiB for
//! each request) and one frame or chunk.
//! The bytes are in `PROTOCOL.md`, "Bulk".

use std::io;
use std::time::Duration;

use bytes::Bytes;
use graven_frame::Frame;
use serde::{Deserialize, Serialize};

use crate::peer::Roster;

pub use client::{BulkClient, BulkConfig, BulkError, CheckpointStream, FrameStream};
pub use pace::Pace;
pub use snapshots::{SnapshotReader, SnapshotResume, SnapshotStream, SnapshotWanted};

mod client;
mod pace;
pub(crate) mod server;
mod snapshots;
mod wire;

pub use crate::tls::ALPN_BULK;

/// What a node gives to others. Its methods may wait for a disk: they are called on threads made for that.
pub trait BulkSource: Send + Sync + 'static {
    /// Who this is.
    fn local(&self) -> BulkIdentity;

    /// Who is welcome. A node that is newer than the roster is.
    fn roster(&self) -> Roster;

    /// The frames from `wanted.first` on, as many as fit into `max_bytes`, and at least one; none above `wanted.last`. Each
    /// must have been verified: no wrong byte leaves a node.
    ///
    /// # Errors
    /// When the first of them cannot be given.
    fn frames(&self, wanted: Wanted, max_bytes: usize) -> Result<Vec<Frame>, Refusal>;

    /// The checkpoint with which its log begins.
    ///
    /// # Errors
    /// When there is none.
    fn checkpoint(&self) -> Result<Box<dyn CheckpointReader>, Refusal> {
        Err(Refusal::NoCheckpoint)
    }

    /// The same for an asker that names a place (the `meta` of its request): one from there on, if this node knows what that means and
    /// has one.
    ///
    /// # Errors
    /// As [`BulkSource::checkpoint`].
    fn checkpoint_from(&self, _place: &[u8]) -> Result<Box<dyn CheckpointReader>, Refusal> {
        self.checkpoint()
    }

    /// The heads of the snapshots it has, each at most [`SNAPSHOT_HEAD_BYTES_MAX`] bytes, at most [`SNAPSHOTS_MAX`].
    ///
    /// # Errors
    /// When it cannot look.
    fn snapshots(&self) -> Result<Vec<Bytes>, Refusal> {
        Ok(Vec::new())
    }

    /// One of its snapshots.
    ///
    /// # Errors
    /// When there is none such.
    fn snapshot(&self, _wanted: SnapshotWanted) -> Result<Box<dyn SnapshotReader>, Refusal> {
        Err(Refusal::NoSnapshot)
    }
}

/// A checkpoint file, open for reading: it stays what it is until this is dropped, whatever takes its place.
pub trait CheckpointReader: Send + 'static {
    /// What it is of, for whoever installs it; opaque here. At most [`META_BYTES_MAX`] bytes, different for each checkpoint.
    fn meta(&self) -> &[u8];

    /// Its bytes.
    fn size(&self) -> u64;

    /// Fills `into` from byte `at` on; the range lies within [`CheckpointReader::size`].
    ///
    /// # Errors
    /// What the disk said.
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
}

/// A node on one side of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkIdentity {
    /// Its cluster.
    pub cluster: u128,
    /// Its id.
    pub node: u64,
    /// The life of its data directory.
    pub incarnation: u128,
}

/// Frames that are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The first entry, from 1.
    pub first: u64,
    /// The last entry.
    pub last: u64,
    /// What the asker takes.
    pub only: Only,
}

/// Which frames may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Only {
    /// Committed ones that are on stable storage.
    Committed,
    /// Any that are on stable storage. The asker knows the chain value on both sides of the range, which admits one content
    /// only: whether this node has heard that it is committed makes no difference.
    Durable,
}

/// Why a node does not give what it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Its log begins later.
    #[error("its log begins at entry {first}")]
    Trimmed {
        /// The first entry it has.
        first: u64,
    },
    /// It has no such entry yet, or not durable, or does not know it to be committed.
    #[error("it gives entries up to {last}")]
    NotYet {
        /// The last entry it gives.
        last: u64,
    },
    /// Its own log is damaged there.
    #[error("its own log is damaged at entry {index}")]
    Damaged {
        /// The entry.
        index: u64,
    },
    /// Not now: it has all the fetches it takes, or is healing itself.
    #[error("it is busy; ask again later")]
    Busy,
    /// It has no checkpoint.
    #[error("it has no checkpoint")]
    NoCheckpoint,
    /// The request makes no sense to it.
    #[error("it does not understand the request: {0}")]
    Malformed(String),
    /// It has no such snapshot.
    #[error("it has no such snapshot")]
    NoSnapshot,
    /// Its own copy of the snapshot is damaged.
    #[error("its own copy of the snapshot is damaged in chunk {chunk}")]
    SnapshotDamaged {
        /// The first chunk that it cannot give.
        chunk: u64,
    },
}

/// Connections of other nodes at the same time: six peers, each twice around a restart, and some that are taken in.
pub const CONNECTIONS_MAX: usize = 16;
/// Requests served at the same time on one connection; one more is [`Refusal::Busy`].
pub const STREAMS_MAX: usize = 4;
/// Frames are asked of the source in batches of about this: enough to amortise the hand-over to a thread, little against the window.
pub const BATCH_BYTES: usize = 256 << 10;
/// A reader that takes less than 64 KiB in this time holds a batch for nothing.
pub const WRITE_STALL: Duration = Duration::from_secs(30);
/// What a checkpoint says about itself: membership, a session table's place, a few numbers.
pub const META_BYTES_MAX: usize = 64 << 10;
/// What a snapshot says about itself: its header and footer.
pub const SNAPSHOT_HEAD_BYTES_MAX: usize = 1024;
/// A chunk of a snapshot with its head.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = (1 << 20) + 64;
/// Heads in one list: names are bounded far below it.
pub const SNAPSHOTS_MAX: usize = 4096;

/// Close code: the dialling side has what it wanted.
pub const CLOSE_DONE: u32 = 0;
