//! The core: one node's share of the protocol.

use std::collections::VecDeque;

use crate::config::{Config, Restored};
use crate::errors::{ProposeError, ReadError, TransferError};
use crate::message::{AppendHead, Message};
use crate::output::Output;
use crate::types::{
    Entry, EntryMeta, HardState, Index, LogId, Membership, NodeId, Role, Term, Tick,
};

/// One node's share of the protocol. Inputs change state; outputs are fetched with [`Core::poll`].
#[derive(Debug, Clone)]
pub struct Core {
    config: Config,
    restored: Restored,
    outputs: VecDeque<Output>,
}

/// What a leader knows of one follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follower {
    /// The follower.
    pub node: NodeId,
    /// The highest index known durable there.
    pub matched: Index,
    /// The next index to send.
    pub next: Index,
    /// How it is being fed.
    pub state: ProgressState,
}

/// How a follower is being fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressState {
    /// One append at a time, until the logs are known to meet.
    Probe,
    /// A window of appends in flight.
    Replicate,
    /// Waiting for the driver to install a checkpoint there.
    Snapshot,
}

impl Core {
    /// Starts from what recovery found.
    #[must_use]
    pub fn new(config: Config, restored: Restored, now: Tick) -> Core {
        let _ = now;
        Core {
            config,
            restored,
            outputs: VecDeque::new(),
        }
    }
    /// Time passed.
    pub fn tick(&mut self, now: Tick) {
        let _ = now;
    }
    /// When the next [`Core::tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        None
    }
    /// Takes in a control message.
    pub fn receive(&mut self, now: Tick, from: NodeId, message: Message) {
        let _ = (now, from, message);
    }
    /// Takes in an append.
    pub fn receive_append(
        &mut self,
        now: Tick,
        from: NodeId,
        head: AppendHead,
        entries: Vec<Entry>,
    ) {
        let _ = (now, from, head, entries);
    }
    /// Appends an entry.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub fn propose(&mut self, now: Tick, meta: EntryMeta) -> Result<LogId, ProposeError> {
        let _ = (now, meta);
        Err(ProposeError::NotLeader { leader: None })
    }
    /// The oldest unreported [`Output::Persist`] is durable.
    pub fn durable(&mut self, now: Tick, term: Term, last: Index) {
        let _ = (now, term, last);
    }
    /// Everything up to `index` is applied.
    pub fn applied(&mut self, now: Tick, index: Index) {
        let _ = (now, index);
    }
    /// What was attached to an [`Output::Append`].
    pub fn sent(
        &mut self,
        now: Tick,
        to: NodeId,
        request: u64,
        last: Index,
        bytes: u64,
        epoch: u64,
    ) {
        let _ = (now, to, request, last, bytes, epoch);
    }
    /// The lane to `to` is lost.
    pub fn unreachable(&mut self, now: Tick, to: NodeId) {
        let _ = (now, to);
    }
    /// The lane to `to` stands again.
    pub fn reachable(&mut self, now: Tick, to: NodeId) {
        let _ = (now, to);
    }
    /// Asks for a read index.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&mut self, now: Tick, id: u64) -> Result<(), ReadError> {
        let _ = (now, id);
        Err(ReadError::NoLeader)
    }
    /// Hands leadership to `to`.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn transfer(&mut self, now: Tick, to: NodeId) -> Result<(), TransferError> {
        let _ = (now, to);
        Err(TransferError::NotLeader { leader: None })
    }
    /// Entries up to `base` were dropped from the start of the log on disk.
    pub fn trimmed(&mut self, now: Tick, base: Index) {
        let _ = (now, base);
    }
    /// The answer to [`Output::SnapshotNeeded`].
    pub fn snapshot_done(&mut self, now: Tick, to: NodeId, ok: bool) {
        let _ = (now, to, ok);
    }
    /// A checkpoint that ends at `base` was installed here, durably.
    pub fn installed(&mut self, now: Tick, base: LogId, memberships: Vec<(Index, Membership)>) {
        let _ = (now, base, memberships);
    }
    /// The next thing to do.
    #[must_use]
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
    /// This node's role.
    #[must_use]
    pub fn role(&self) -> Role {
        Role::Follower
    }
    /// The current term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.restored.hard_state.term
    }
    /// Term and vote.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        self.restored.hard_state
    }
    /// The known leader of this term.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        None
    }
    /// The commit index.
    #[must_use]
    pub fn commit(&self) -> Index {
        self.restored.commit
    }
    /// The highest index durable here.
    #[must_use]
    pub fn durable_index(&self) -> Index {
        self.restored.last
    }
    /// The highest index applied here.
    #[must_use]
    pub fn applied_index(&self) -> Index {
        self.restored.applied
    }
    /// The end of the log.
    #[must_use]
    pub fn last_id(&self) -> LogId {
        LogId::default()
    }
    /// The entry before the first one held.
    #[must_use]
    pub fn base(&self) -> LogId {
        self.restored.base
    }
    /// The term of an entry.
    #[must_use]
    pub fn term_at(&self, index: Index) -> Option<Term> {
        let _ = index;
        None
    }
    /// The membership in force.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        &self.restored.memberships[0].1
    }
    /// The followers, when leading.
    pub fn progress(&self) -> impl Iterator<Item = Follower> + '_ {
        std::iter::empty()
    }
    /// Whom leadership is being handed to.
    #[must_use]
    pub fn transferring(&self) -> Option<NodeId> {
        None
    }
    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }
}
