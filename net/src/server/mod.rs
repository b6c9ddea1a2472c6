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

use graven_frame::{Frame, Group};
use tokio::sync::watch;

pub use crate::protocol::append::{Ack, Rejection};
pub use crate::protocol::backup::{BackupHead, BackupRequest};
pub use crate::protocol::feed::{Start, SubscribeRequest};
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
