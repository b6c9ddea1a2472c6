//! The follower: takes entries from its term's leader, and learns from it what is committed.
//!
//! Two rules keep it honest. It acknowledges only after everything it vouches for is durable. And it commits only
//! what it found equal to the log of *this* leader in *this* term: its own tail beyond that may yet be replaced, whatever commit
//! index a message names (Raft paper 5.3; figure 2, "last new entry").

use crate::core::Core;
use crate::message::{AppendHead, Message};
use crate::output::{Alarm, Output};
use crate::planted::{Bug, is_planted};
use crate::types::{Entry, EntryKind, Index, LogId, Membership, NodeId, Role, Term, Tick};

/// What the entries of an append mean for this log.
enum Finding {
    /// All held already, up to where the append ends.
    Held,
    /// From this position in the append on they are new.
    New { at: usize },
    /// A committed entry is contradicted.
    Diverged { index: Index },
}

impl Core {
    /// Takes in an append from a leader: its head, and the entries of the frames that came with it.
    ///
    /// A [`Output::Persist`] it causes names the entries to write by index; they are among those passed here, so the driver
    /// drains the outputs before the next input.
    pub fn receive_append(&mut self, now: Tick, from: NodeId, head: AppendHead, entries: Vec<Entry>) {
        self.observe(now);
        if head.term > Term::MAX {
            return self.malformed(from, "a term that no cluster reaches");
        }
        if head.term < self.hard.term && !is_planted(Bug::PassedTermTaken) {
            // Of a passed term. The reply's term makes the old leader step down.
            return self.refuse_append(from, &head);
        }
        if head.term > self.hard.term {
            self.become_follower(head.term, None, Some(from));
        }
        if !self.follow(from) {
            return;
        }
        if !well_formed(&head, &entries) {
            return self.malformed(from, "an append whose entries do not follow each other");
        }
        let end = head.prev.index.0 + entries.len() as u64;
        let prev = self.log.term_at(head.prev.index);
        let follows = prev == Some(head.prev.term) || (prev.is_some() && is_planted(Bug::PrevUnchecked));
        if head.prev.index >= self.log.base().index && !follows {
            return self.refuse_append(from, &head);
        }
        match self.find_new(&entries) {
            Finding::Held => {}
            Finding::New { at } => self.take_entries(entries, at),
            Finding::Diverged { index } => {
                let theirs =
                    entries.iter().find(|entry| entry.id.index == index).map_or(head.term, |entry| entry.id.term);
                let ours = self.log.term_at(index);
                return self.alarm(Alarm::Diverged { from, index, ours, theirs });
            }
        }
        self.verified = self.verified.max(Index(end).min(self.log.last()));
        self.learn_commit(head.commit);
        // The persist this rests on may be the one just put out, an earlier one, or none: the order of outputs tells.
        self.send_after_persist(
            from,
            Message::AppendReply {
                term: self.hard.term,
                request: head.request,
                epoch: head.epoch,
                success: true,
                matched: self.verified,
                last: self.log.last(),
                hint: None,
            },
        );
    }

    /// Compares with what is held. Entries at or below `base` are committed and applied here: they cannot differ.
    fn find_new(&self, entries: &[Entry]) -> Finding {
        for (at, entry) in entries.iter().enumerate() {
            let LogId { term, index } = entry.id;
            if index < self.log.base().index {
                continue;
            }
            match self.log.term_at(index) {
                Some(held) if held == term && !is_planted(Bug::TruncatesWhatAgrees) => {}
                Some(held) if held != term && index <= self.commit => return Finding::Diverged { index },
                _ => return Finding::New { at },
            }
        }
        Finding::Held
    }

    /// Adds entries from `at` on; what stood there in their place goes first (Raft paper 5.3).
    fn take_entries(&mut self, entries: Vec<Entry>, at: usize) {
        let from = entries[at].id.index;
        if from <= self.log.last() {
            debug_assert!(from > self.verified, "a leader does not contradict itself");
            self.truncate(from);
        }
        for entry in entries.into_iter().skip(at) {
            self.log.append(entry.id.term, entry.meta.membership);
        }
        self.persist_entries(from);
    }

    fn refuse_append(&mut self, from: NodeId, head: &AppendHead) {
        let hint = self.log.hint(head.prev.index, head.prev.term);
        let reply = Message::AppendReply {
            term: self.hard.term,
            request: head.request,
            epoch: head.epoch,
            success: false,
            matched: Index(0),
            last: self.log.last(),
            hint: Some(hint),
        };
        self.send(from, reply);
    }

    /// A message of the current term's leader arrived: whoever stood for election stops, and the timer starts over, whatever
    /// becomes of the message. `false` when the sender cannot be the leader.
    pub(crate) fn follow(&mut self, from: NodeId) -> bool {
        let other = self.role == Role::Leader || self.leader.is_some_and(|leader| leader != from);
        if other {
            self.alarm(Alarm::TwoLeaders { term: self.hard.term, other: from });
            return false;
        }
        if self.role != Role::Follower || self.leader.is_none() {
            self.become_follower(self.hard.term, None, Some(from));
        }
        self.heard_leader = Some(self.now);
        self.restart_election_timer();
        true
    }

    pub(crate) fn on_heartbeat(&mut self, from: NodeId, commit: Index, round: u64) {
        if self.follow(from) {
            self.learn_commit(commit);
            let reply = self.heartbeat_reply(round);
            self.send(from, reply);
        }
    }

    pub(crate) fn heartbeat_reply(&self, round: u64) -> Message {
        let (term, last, verified) = (self.hard.term, self.log.last(), self.verified);
        Message::HeartbeatReply { term, round, last, verified, disk_full: self.room.full }
    }

    pub(crate) fn on_commit(&mut self, from: NodeId, commit: Index) {
        if self.follow(from) {
            self.learn_commit(commit);
        }
    }

    fn learn_commit(&mut self, leader_commit: Index) {
        let bound = if is_planted(Bug::CommitBeyondVerified) { self.log.last() } else { self.verified };
        let commit = leader_commit.min(bound);
        if commit > self.commit {
            self.set_commit(commit);
        }
    }

    /// The leader has no entries for this log's end any more.
    pub(crate) fn on_install(&mut self, from: NodeId, base: LogId) {
        if !self.follow(from) {
            return;
        }
        if self.log.base().index >= base.index || self.log.term_at(base.index) == Some(base.term) {
            return self.send(from, Message::InstallReply { term: self.hard.term, base, ok: true });
        }
        self.outputs.push_back(Output::InstallOffered { from, base });
    }

    /// Answers an offer ([`Output::InstallOffered`]): whether the checkpoint is installed here, durably.
    pub fn answer_install(&mut self, now: Tick, to: NodeId, base: LogId, ok: bool) {
        self.observe(now);
        self.send(to, Message::InstallReply { term: self.hard.term, base, ok });
    }

    /// Reports that a checkpoint which ends with the entry `base` was installed on this node and is durable, together
    /// with the memberships up to it, ascending (Raft paper 7).
    ///
    /// | the log here            | what happens |
    /// |-------------------------|---|
    /// | begins at or after base | nothing: older than what is held |
    /// | holds base              | what follows base stays, with its memberships |
    /// | ends before base        | starts over after base |
    /// | differs at base         | starts over after base; [`Alarm::Diverged`] when base was committed here |
    pub fn installed(&mut self, now: Tick, base: LogId, memberships: Vec<(Index, Membership)>) {
        self.observe(now);
        if base.index <= self.log.base().index {
            return;
        }
        if self.role == Role::Leader {
            return self.malformed(self.config.id, "an install on a leader");
        }
        let held = self.log.term_at(base.index);
        if held != Some(base.term) {
            if base.index <= self.commit {
                let theirs = base.term;
                return self.alarm(Alarm::Diverged { from: self.config.id, index: base.index, ours: held, theirs });
            }
            let from = self.log.base().index.next();
            if self.log.last() >= from {
                self.outputs.push_back(Output::Truncated { from });
            }
            self.log.reset(base, memberships);
            self.durable = base.index;
            for pending in &mut self.pending {
                pending.vouches = base.index;
            }
            // What was verified of the log before is gone with it; base itself is committed, in every leader's log.
            self.verified = Index(0);
        }
        if base.index > self.commit {
            self.set_commit(base.index);
        }
        self.applied = self.applied.max(base.index);
        self.log.trim(base.index);
    }
}

/// Whether entries follow `prev` and one another, their terms never going back nor past the leader's.
fn well_formed(head: &AppendHead, entries: &[Entry]) -> bool {
    let mut before = head.prev;
    entries.iter().all(|entry| {
        let follows = Some(entry.id.index.0) == before.index.0.checked_add(1) && entry.id.term >= before.term;
        before = entry.id;
        let is_membership = entry.meta.kind == EntryKind::Membership;
        follows && entry.id.term <= head.term && is_membership == entry.meta.membership.is_some()
    }) && head.prev.term <= head.term
}
