//! What reaches the protocol thread, and what bounds it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use graven_frame::{Frame, Group};
use graven_net::server::{AppendReply, MemberChange};
use graven_snapshot::Checkpoint;
use tokio::sync::{Notify, oneshot};

use crate::replica::cursors::Move;
use crate::replica::names::Picture;
use crate::replica::sessions::Placed;
use crate::replica::snapshots::StatesKept;
use crate::replica::{Answer, Rejection};

/// Inputs that may wait for the protocol thread. Appends are bounded by bytes before they get here; this bounds their
/// number: small appends of 256 clients with all they may have in flight fit four times.
pub(super) const INPUTS_MAX: usize = 16_384;

/// One input.
#[derive(Debug)]
pub(super) enum Input {
    /// Records for the log.
    Append(Group, Waiter),
    /// A session is wanted.
    OpenSession(Reply),
    /// A linearizable read.
    ReadIndex(Reply),
    /// Leadership should move to the node with this id.
    Transfer(u64, Reply),
    /// The members should change.
    ChangeMembers(MemberChange, Reply),
    /// Records before this offset should go.
    Trim(u64, Reply),
    /// A cursor should move.
    MoveCursor(Move, Reply),
    /// Where the cursor of this name stands here.
    Cursor(String, oneshot::Sender<Option<u64>>),
    /// The first so many cursors behind this name.
    Cursors(String, usize, oneshot::Sender<Vec<(String, u64)>>),
    /// Whether a snapshot of this name and offset may be sent: asked before its bytes are.
    MayOffer(String, u64, Reply),
    /// The file of a snapshot with this name is durable here.
    Offer(String, Picture, Reply),
    /// A name should stand for nothing any more.
    DropSnapshot(String, Reply),
    /// The file of a snapshot was fetched, or could not be.
    PictureFetched(u64, bool),
    /// The file of a snapshot is gone or damaged.
    PictureLost(u64),
    /// These snapshots of this node's state machine are durable.
    StatesKept(StatesKept),
    /// A checkpoint was fetched, or could not be.
    Fetched(u64, Option<Box<Checkpoint>>),
    /// The state machine has applied up to this index.
    Applied(u64),
    /// Frames were read for a follower.
    Loaded(u64, Vec<Frame>),
    /// The node is going to stop: hand the leadership over if it is here, then answer.
    StepDown(oneshot::Sender<()>),
    /// End the thread, now.
    Stop,
}

/// Where the answer to a rare request goes.
pub(super) type Reply = oneshot::Sender<Result<Answer, Rejection>>;

/// Who waits for an append, and its part of the budget, given back with the answer.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) who: Who,
    pub(super) permit: Permit,
}

/// Who waits for an append.
#[derive(Debug)]
pub(super) enum Who {
    /// A client of this cluster, over the network.
    Client(AppendReply),
    /// The program that embeds this node. Its answer goes through the thread of the state machine.
    Embedded(Box<dyn Waiting>),
}

impl Who {
    /// Whose turn it takes.
    pub(super) fn client(&self) -> u64 {
        match self {
            Who::Client(reply) => reply.client(),
            Who::Embedded(_) => 0,
        }
    }
}

/// Somebody in this process who waits for an append.
pub(super) trait Waiting: Send + std::fmt::Debug {
    /// Takes the answer.
    fn done(self: Box<Self>, answer: Result<Placed, Rejection>);
}

/// Bounds the bytes of appends that this node holds, from their arrival to their answer (P11).
#[derive(Debug)]
pub(super) struct Budget {
    held: AtomicUsize,
    limit: usize,
    room: Notify,
}

/// A part of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Budget> {
        Arc::new(Budget { held: AtomicUsize::new(0), limit, room: Notify::new() })
    }

    /// Takes `bytes` out of the budget, if anything is left of it.
    pub(super) fn take(self: &Arc<Budget>, bytes: usize) -> Option<Permit> {
        let before = self.held.fetch_add(bytes, Ordering::AcqRel);
        if before >= self.limit {
            self.held.fetch_sub(bytes, Ordering::AcqRel);
            return None;
        }
        Some(Permit { budget: Arc::clone(self), bytes })
    }

    /// Resolves when something is left.
    pub(super) async fn room(&self) {
        loop {
            let notified = self.room.notified();
            if self.held.load(Ordering::Acquire) < self.limit {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let before = self.budget.held.fetch_sub(self.bytes, Ordering::AcqRel);
        if before >= self.budget.limit {
            self.budget.room.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spent_budget_refuses_until_a_permit_is_dropped() {
        let budget = Budget::new(10);
        let first = budget.take(10).expect("empty");
        assert!(budget.take(1).is_none());
        drop(first);
        assert!(budget.take(1).is_some());
    }
}
