//! Replication progress of one follower, as its leader sees it.
//!
//! A follower is in one of three modes. `Probe` sends one append at a time until the logs are known to meet;
//! `Replicate` keeps a window of appends in flight; `Snapshot` waits for the driver to install a checkpoint.
//! Invariants, checked by [`Progress::check`] after every step in tests and simulation:
//!
//! - `matched < next`, and `matched` falls within a term only together with an alarm for lost entries;
//! - in `Probe` at most one append is in flight or asked for; in `Snapshot` none;
//! - requests in flight ascend, and `inflight_bytes` is their sum.
//!
//! Every append has a request id and a deadline, so that nothing in flight is waited for without end; starting over takes a
//! new epoch, so that answers to what was sent before are told apart. Source: Raft paper 5.3; thesis 10.2.1 (pipelining).

use std::collections::VecDeque;

use crate::types::{Index, NodeId, Tick};

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
    /// Bytes in flight to it.
    pub inflight_bytes: u64,
    /// When it was last heard of in this term.
    pub heard: Tick,
    /// The highest heartbeat round of this leadership that it answered: see [`crate::Core::heartbeat_round`].
    pub round: u64,
    /// Present while it is not counted: it lost entries up to here that it had acknowledged.
    pub lost: Option<Index>,
    /// Whether it said last that its disk has no room for records.
    pub full: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) node: NodeId,
    pub(crate) matched: Index,
    pub(crate) next: Index,
    pub(crate) state: ProgressState,
    pub(crate) epoch: u64,
    /// The append put out as an output and not yet reported by `sent`.
    pub(crate) asked: Option<Asked>,
    pub(crate) inflight: VecDeque<Inflight>,
    pub(crate) inflight_bytes: u64,
    /// Nothing is asked for before this moment, unless the follower is heard of.
    pub(crate) paused_until: Option<Tick>,
    /// Whether the next probe carries entries: it does when there is reason to think that it fits.
    pub(crate) hopeful: bool,
    /// The commit index this follower will know from what was sent to it.
    pub(crate) commit_told: Index,
    pub(crate) heard: Tick,
    /// When `matched` last grew, or there was last nothing to wait for.
    pub(crate) moved: Tick,
    /// The highest heartbeat round it answered.
    pub(crate) round: u64,
    /// It lost entries up to here that it had acknowledged: not counted until it has them again.
    pub(crate) lost: Option<Index>,
    /// Its disk has no room for records, it says.
    pub(crate) full: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) request: u64,
    pub(crate) prev: Index,
    pub(crate) empty: bool,
    pub(crate) commit: Index,
    pub(crate) deadline: Tick,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Inflight {
    pub(crate) request: u64,
    pub(crate) last: Index,
    pub(crate) bytes: u64,
    pub(crate) deadline: Tick,
    /// What was matched when it left. A follower that answers from a shorter log has lost entries; a refusal alone proves
    /// nothing, it may have been overtaken by an acknowledgement.
    pub(crate) matched: Index,
}

impl Progress {
    /// A follower at the start of a leadership: nothing known, its log hoped to end at or after `last`.
    pub(crate) fn new(node: NodeId, last: Index, now: Tick) -> Self {
        Self {
            node,
            matched: Index(0),
            next: last.next(),
            state: ProgressState::Probe,
            epoch: 1,
            asked: None,
            inflight: VecDeque::new(),
            inflight_bytes: 0,
            paused_until: None,
            hopeful: true,
            commit_told: Index(0),
            heard: now,
            moved: now,
            round: 0,
            lost: None,
            full: false,
        }
    }

    /// What it counts for in a commit.
    pub(crate) fn counted(&self) -> Index {
        if self.lost.is_some() { Index(0) } else { self.matched }
    }

    /// Starts over: what is in flight is forgotten, and answers to it will be dropped.
    pub(crate) fn become_probe(&mut self, next: Index) {
        self.state = ProgressState::Probe;
        self.epoch += 1;
        self.next = next.max(self.matched.next());
        self.forget_inflight();
        self.paused_until = None;
    }

    pub(crate) fn become_replicate(&mut self) {
        self.state = ProgressState::Replicate;
        self.next = self.matched.next();
        self.forget_inflight();
    }

    pub(crate) fn become_snapshot(&mut self) {
        self.state = ProgressState::Snapshot;
        self.epoch += 1;
        self.forget_inflight();
    }

    pub(crate) fn forget_inflight(&mut self) {
        self.asked = None;
        self.inflight.clear();
        self.inflight_bytes = 0;
    }

    /// Whether an append may be asked for now, `last` being the end of the leader's log.
    pub(crate) fn may_ask(&self, now: Tick, last: Index, window_bytes: u64, window_messages: usize) -> bool {
        if self.asked.is_some() || self.paused_until.is_some_and(|until| now < until) {
            return false;
        }
        match self.state {
            ProgressState::Probe => self.inflight.is_empty(),
            // Without room it takes control entries only: one try at a time shows whether the next entry is one.
            ProgressState::Replicate if self.full => self.next <= last && self.inflight.is_empty(),
            ProgressState::Replicate => {
                self.next <= last && self.inflight_bytes < window_bytes && self.inflight.len() < window_messages
            }
            ProgressState::Snapshot => false,
        }
    }

    pub(crate) fn push_inflight(&mut self, sent: Inflight) {
        self.inflight_bytes += sent.bytes;
        self.inflight.push_back(sent);
    }

    /// An acknowledgement up to `matched`: frees what it covers. Returns whether anything new is matched.
    pub(crate) fn on_matched(&mut self, now: Tick, matched: Index) -> bool {
        while let Some(front) = self.inflight.front().filter(|sent| sent.last <= matched) {
            self.inflight_bytes -= front.bytes;
            self.inflight.pop_front();
        }
        if matched <= self.matched {
            return false;
        }
        self.matched = matched;
        self.next = self.next.max(matched.next());
        self.moved = now;
        if self.lost.is_some_and(|lost| matched >= lost) {
            self.lost = None;
        }
        true
    }

    /// When this follower needs attention next, `None` when nothing is outstanding.
    pub(crate) fn deadline(&self) -> Option<Tick> {
        let asked = self.asked.as_ref().map(|asked| asked.deadline);
        let sent = self.inflight.front().map(|sent| sent.deadline);
        [asked, sent, self.paused_until].into_iter().flatten().min()
    }

    pub(crate) fn view(&self) -> Follower {
        Follower {
            node: self.node,
            matched: self.matched,
            next: self.next,
            state: self.state,
            inflight_bytes: self.inflight_bytes,
            heard: self.heard,
            round: self.round,
            lost: self.lost,
            full: self.full,
        }
    }

    /// Looks for a broken invariant.
    pub(crate) fn check(&self, last: Index, window_messages: usize) -> Result<(), String> {
        let node = self.node;
        if self.matched >= self.next || self.matched > last {
            return Err(format!("node {node}: matched {}, next {}, log ends at {last}", self.matched, self.next));
        }
        let outstanding = self.inflight.len() + usize::from(self.asked.is_some());
        let most = match self.state {
            ProgressState::Probe => 1,
            ProgressState::Replicate => window_messages + 1,
            ProgressState::Snapshot => 0,
        };
        if outstanding > most {
            return Err(format!("node {node}: {outstanding} appends outstanding in {:?}", self.state));
        }
        if self.inflight_bytes != self.inflight.iter().map(|sent| sent.bytes).sum::<u64>() {
            return Err(format!("node {node}: bytes in flight do not add up"));
        }
        if self.inflight.iter().zip(self.inflight.iter().skip(1)).any(|(a, b)| a.request >= b.request) {
            return Err(format!("node {node}: requests in flight do not ascend"));
        }
        Ok(())
    }
}
