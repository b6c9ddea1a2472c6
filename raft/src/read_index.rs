//! Linearizable reads without touching the log (ReadIndex, thesis 6.4), and without clocks.
//!
//! A leader that has committed an entry of its own term notes its commit index and confirms, by a heartbeat round that
//! *starts after the request*, that it still led when the request came. Reads that arrive while a round is under way share the
//! next one. A follower asks its leader. Whoever waits gets an answer: ready, or failed when leadership changed or time ran out.

use std::collections::VecDeque;

use crate::core::Core;
use crate::errors::ReadError;
use crate::message::Message;
use crate::output::Output;
use crate::planted::{Bug, is_planted};
use crate::quorum;
use crate::types::{Index, NodeId, Role, Tick};

/// Reads waiting at one node. Past it [`ReadError::Busy`]: at 10,000 rounds a second they are answered within a second anyway,
/// and each costs some 40 bytes.
const MAX_WAITING_READS: usize = 8_192;

#[derive(Debug, Clone)]
pub(crate) struct Reads {
    /// Wait for the next round.
    waiting: VecDeque<Waiting>,
    /// Wait for the round under way.
    round: Option<Round>,
    /// Asked at the leader by this follower.
    forwarded: VecDeque<Forwarded>,
    /// Drawn at random at the start, so that an answer to an earlier life's question matches nothing.
    next_token: u64,
}

#[derive(Debug, Clone)]
struct Round {
    number: u64,
    index: Index,
    reads: VecDeque<Waiting>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    asker: Asker,
    deadline: Tick,
}

#[derive(Debug, Clone, Copy)]
enum Asker {
    Here { id: u64 },
    There { node: NodeId, token: u64 },
}

#[derive(Debug, Clone, Copy)]
struct Forwarded {
    token: u64,
    id: u64,
    deadline: Tick,
}

impl Reads {
    pub(crate) fn new(first_token: u64) -> Self {
        Self { waiting: VecDeque::new(), round: None, forwarded: VecDeque::new(), next_token: first_token }
    }

    fn count(&self) -> usize {
        let round = self.round.as_ref().map_or(0, |round| round.reads.len());
        self.waiting.len() + self.forwarded.len() + round
    }

    pub(crate) fn deadline(&self) -> Option<Tick> {
        let waiting = self.waiting.front().map(|read| read.deadline);
        let round = self.round.as_ref().and_then(|round| round.reads.front()).map(|read| read.deadline);
        let forwarded = self.forwarded.front().map(|read| read.deadline);
        [waiting, round, forwarded].into_iter().flatten().min()
    }
}

impl Core {
    /// Asks for an index that is safe to read at: every append acknowledged before this call is at or below it.
    ///
    /// Answered by [`Output::ReadReady`] or [`Output::ReadFailed`] with the same `id`, always, within
    /// [`crate::Config::read_timeout_us`].
    ///
    /// # Errors
    /// Refused at once: see [`ReadError`].
    pub fn read(&mut self, now: Tick, id: u64) -> Result<(), ReadError> {
        self.observe(now);
        let waiting = self.reads.count();
        if waiting >= MAX_WAITING_READS {
            return Err(ReadError::Busy { waiting });
        }
        let deadline = self.now.after(self.config.read_timeout_us);
        if self.role == Role::Leader {
            self.reads.waiting.push_back(Waiting { asker: Asker::Here { id }, deadline });
            self.maybe_start_round();
            return Ok(());
        }
        let Some(leader) = self.leader else {
            return Err(ReadError::NoLeader);
        };
        let token = self.reads.next_token;
        self.reads.next_token = token.wrapping_add(1);
        self.reads.forwarded.push_back(Forwarded { token, id, deadline });
        self.send(leader, Message::ReadIndex { term: self.hard.term, token });
        Ok(())
    }

    pub(crate) fn on_read_index(&mut self, from: NodeId, token: u64) {
        let known = self.role == Role::Leader && self.follower_at(from).is_some();
        if !known || self.reads.count() >= MAX_WAITING_READS {
            let reply = Message::ReadIndexReply { term: self.hard.term, token, index: None };
            return self.send(from, reply);
        }
        let deadline = self.now.after(self.config.read_timeout_us);
        let asker = Asker::There { node: from, token };
        self.reads.waiting.push_back(Waiting { asker, deadline });
        self.maybe_start_round();
    }

    pub(crate) fn on_read_index_reply(&mut self, from: NodeId, token: u64, index: Option<Index>) {
        if self.leader != Some(from) || self.role == Role::Leader {
            return;
        }
        let Some(at) = self.reads.forwarded.iter().position(|read| read.token == token) else {
            return;
        };
        if let Some(read) = self.reads.forwarded.remove(at) {
            self.outputs.push_back(match index {
                Some(index) => Output::ReadReady { id: read.id, index },
                None => Output::ReadFailed { id: read.id },
            });
        }
    }

    /// Starts a round for those who wait, unless one is under way or this leader does not know yet what is committed: that
    /// is sure only with an entry of its own term (thesis 6.4, step 1).
    pub(crate) fn maybe_start_round(&mut self) {
        let knows = self.is_established() || is_planted(Bug::ReadBeforeOwnEntry);
        if self.reads.round.is_some() || self.reads.waiting.is_empty() || !knows {
            return;
        }
        self.broadcast_heartbeat();
        let reads = std::mem::take(&mut self.reads.waiting);
        self.reads.round = Some(Round { number: self.round, index: self.commit, reads });
        self.maybe_confirm_round();
    }

    /// Answers the reads of the round under way once a quorum answered it or a later one.
    pub(crate) fn maybe_confirm_round(&mut self) {
        let Some(number) = self.reads.round.as_ref().map(|round| round.number) else {
            return;
        };
        let heard = |node| self.read_round_reached(node) >= number || is_planted(Bug::ReadRoundUnconfirmed);
        if !quorum::agreed(self.log.membership(), heard) {
            return;
        }
        if let Some(round) = self.reads.round.take() {
            for read in round.reads {
                self.answer(read, Some(round.index));
            }
        }
        self.maybe_start_round();
    }

    fn answer(&mut self, read: Waiting, index: Option<Index>) {
        match (read.asker, index) {
            (Asker::Here { id }, Some(index)) => self.outputs.push_back(Output::ReadReady { id, index }),
            (Asker::Here { id }, None) => self.outputs.push_back(Output::ReadFailed { id }),
            (Asker::There { node, token }, index) => {
                self.send(node, Message::ReadIndexReply { term: self.hard.term, token, index });
            }
        }
    }

    /// This node stopped leading: what it could not confirm has failed.
    pub(crate) fn fail_reads(&mut self) {
        let round = self.reads.round.take().map(|round| round.reads).unwrap_or_default();
        let waiting = std::mem::take(&mut self.reads.waiting);
        for read in round.into_iter().chain(waiting) {
            self.answer(read, None);
        }
    }

    /// The leader or the term changed: what was asked there will not be answered.
    pub(crate) fn fail_forwarded_reads(&mut self) {
        while let Some(read) = self.reads.forwarded.pop_front() {
            self.outputs.push_back(Output::ReadFailed { id: read.id });
        }
    }

    pub(crate) fn tick_reads(&mut self) {
        let now = self.now;
        while let Some(read) = pop_due(&mut self.reads.forwarded, |read| now >= read.deadline) {
            self.outputs.push_back(Output::ReadFailed { id: read.id });
        }
        while let Some(read) = pop_due(&mut self.reads.waiting, |read| now >= read.deadline) {
            self.answer(read, None);
        }
        while let Some(round) = &mut self.reads.round
            && let Some(read) = pop_due(&mut round.reads, |read| now >= read.deadline)
        {
            self.answer(read, None);
        }
    }
}

fn pop_due<T>(queue: &mut VecDeque<T>, is_due: impl Fn(&T) -> bool) -> Option<T> {
    if queue.front().is_some_and(is_due) { queue.pop_front() } else { None }
}
