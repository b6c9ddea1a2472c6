//! The node's listener for clients.
//!
//! [`Server`] owns the socket, the handshakes, the streams and the bounds; what a request means is decided by a
//! [`Service`], which the daemon implements. Who may do what is decided here, from the one table
//! [`role_needed`](crate::protocol::role_needed), before the service hears of a request.
//!
//! Bounds (P11), all in [`ServerConfig`]: handshakes and their rate, connections, subscriptions, streams, windows, and bytes
//! received but not answered. One client can have three quarters of what there is. A client that sends faster than the service
//! takes is slowed down by QUIC's flow control: its stream is not read; so is one that does not read its answers. A subscriber
//! that reads too slowly is slowed down in the same way: its feed is not asked for more. `docs/decisions/hostile.md` adds it up.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use graven_frame::{Frame, Group};
use tokio::sync::watch;

pub use crate::protocol::append::{Ack, Rejection};
pub use crate::protocol::backup::{BackupHead, BackupRequest};
pub use crate::protocol::feed::{Start, SubscribeRequest};
pub use crate::protocol::snapshot::{GetRequest, PutAnswer, PutRequest, SnapshotEntry, SnapshotInfo, SnapshotState};
pub use crate::protocol::{
    Bounds, DamagedRange, ErrorCode, Failure, LeaderView, MemberChange, MemberEntry, MemberList, MemberReport,
    MemberRole, NodeHealth, NodeReport, NodeRole, NodeState, NodeStats, NodeStatus, Outcome, PeerHealth, PlaceHealth,
    Request, Response, SocketHealth, SyncHealth, Usage,
};
pub use crate::tls::Role;
pub use answers::AppendReply;
pub use backup::OpenedBackup;
pub use listener::{Server, ServerConfig, ServerStats, StartError};

mod accounts;
mod answers;
mod append;
mod backup;
mod connection;
mod listener;
mod snapshot;
mod subscribe;

/// What [`crate::fuzzing`] tries of this room.
pub(crate) mod fuzzing {
    pub(crate) use super::append::{parse, too_large};
}

/// What a node does for its clients. Called from the client plane's runtime, from many tasks at once.
pub trait Service: Send + Sync + 'static {
    /// A subscription's source of frames.
    type Feed: Feed;

    /// Takes an append group: lengths and CRC are verified, session and sequence are there, the caller's role suffices.
    ///
    /// Must not block. The answer is given by [`AppendReply::done`], from any thread, in any order across sessions, in
    /// order within one. A reply that is dropped answers [`Rejection::Unsure`].
    ///
    /// # Errors
    /// [`Busy`] gives both back when the service's own queue is full. The stream is then not read any further, and the
    /// same group is offered again when [`Service::ready`] resolves.
    fn append(&self, group: Group, reply: AppendReply) -> Result<(), Busy>;

    /// Resolves when [`Service::append`] is worth another try.
    fn ready(&self) -> impl Future<Output = ()> + Send;

    /// Answers a request; the caller's role suffices. Dropped when the client gives up.
    fn unary(&self, caller: Caller, request: Request) -> impl Future<Output = Response> + Send;

    /// Opens a subscription. For [`Start::End`] the start lies behind every record acknowledged before the call; with
    /// `resume` a start beyond the end of this node's log waits, else it fails with `out_of_range`.
    fn subscribe(
        &self,
        caller: Caller,
        request: SubscribeRequest,
    ) -> impl Future<Output = Result<Opened<Self::Feed>, Failure>> + Send;

    /// Whether a snapshot may come, and where its bytes go. By default none may.
    fn put_snapshot(
        &self,
        _caller: Caller,
        _request: PutRequest,
    ) -> impl Future<Output = Result<Box<dyn SnapshotSink>, PutAnswer>> + Send {
        async { Err(PutAnswer::Failed(no_snapshots())) }
    }

    /// Opens a snapshot. By default there is none.
    fn get_snapshot(
        &self,
        _caller: Caller,
        _request: GetRequest,
    ) -> impl Future<Output = Result<OpenedSnapshot, Failure>> + Send {
        async { Err(no_snapshots()) }
    }

    /// Opens a copy of the whole log; the caller's role suffices.
    fn backup(
        &self,
        _caller: Caller,
        _request: BackupRequest,
    ) -> impl Future<Output = Result<OpenedBackup, Failure>> + Send {
        std::future::ready(Err(Failure::refused(
            ErrorCode::Unavailable,
            "this node gives no backups now; ask another one",
        )))
    }

    /// Who leads: changes are pushed to every client.
    fn leader(&self) -> watch::Receiver<LeaderView>;
}

/// The service's queue is full: group and reply are given back, to be offered again.
#[derive(Debug)]
pub struct Busy(pub Box<(Group, AppendReply)>);

/// A subscription that was accepted.
#[derive(Debug)]
pub struct Opened<F> {
    /// The first offset the feed will give.
    pub from: u64,
    /// Where the frames come from. Starts with the frame that holds `from`.
    pub feed: F,
}

fn no_snapshots() -> Failure {
    Failure::refused(ErrorCode::Usage, "this node keeps no snapshots of applications")
}

/// Where the bytes of a snapshot go. Dropped before its end, nothing of it is left.
pub trait SnapshotSink: Send + 'static {
    /// Takes the next bytes, at most a chunk. May wait for a disk.
    ///
    /// # Errors
    /// It is closed then, and nothing is left.
    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure>;

    /// All bytes are there, and are what was meant. Resolves when the snapshot is committed, or with why it is not.
    fn finish(self: Box<Self>) -> Pin<Box<dyn Future<Output = PutAnswer> + Send>>;
}

/// A snapshot that can be read. It stays what it is until this is dropped.
pub struct OpenedSnapshot {
    /// What it is.
    pub info: SnapshotInfo,
    /// How many chunks it has.
    pub chunks: u64,
    /// Its bytes.
    pub body: Box<dyn SnapshotBody>,
}

/// The bytes of a snapshot.
pub trait SnapshotBody: Send + 'static {
    /// The chunk `number`, verified: no wrong byte leaves a node. At most [`CHUNK_BYTES`](crate::protocol::snapshot::CHUNK_BYTES). May wait
    /// for a disk.
    ///
    /// # Errors
    /// When it cannot be given: `damaged` and `unavailable` when another node may.
    fn chunk(&mut self, number: u64) -> Result<Bytes, Failure>;
}

/// A subscription's source of frames, asked whenever its client has room.
pub trait Feed: Send + 'static {
    /// The next item; waits for new records when all are sent. At most about `max_bytes`, but at least one frame.
    ///
    /// Give [`FeedItem::Progress`] after a second without anything else, so that the client knows where it stands.
    /// Never dropped while it waits, except with the feed.
    fn next(&mut self, max_bytes: usize) -> impl Future<Output = FeedItem> + Send;
}

/// What a [`Feed`] gives.
#[derive(Debug)]
pub enum FeedItem {
    /// Frames in log order. Control frames may be among them or left out.
    Frames(Vec<Frame>),
    /// Records from `from` to before `to` are gone.
    Trimmed {
        /// First offset missing.
        from: u64,
        /// First offset there.
        to: u64,
    },
    /// Nothing new below this offset.
    Progress {
        /// Where the feed stands.
        next_offset: u64,
    },
    /// Everything committed so far has been given.
    CaughtUp {
        /// Where the feed stands.
        next_offset: u64,
    },
    /// `until` is reached.
    Done,
    /// The feed cannot go on.
    End(Failure),
}

/// Who asks, by its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The name in the certificate.
    pub name: std::sync::Arc<str>,
    /// What it may do.
    pub role: Role,
}
