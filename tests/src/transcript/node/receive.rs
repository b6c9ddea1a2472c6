//! Messages that arrive at a node.

use graven_raft::{Entry, Index, LogId, Message, NodeId, Output, ProgressState, Role, Term};

use super::super::wire::{Payload, Snapshot, Wire, kind_of};
use super::{ELECTION_US, Node};

impl Node {
    pub(crate) fn deliver(&mut self, wire: Wire) -> Result<(), String> {
        let from = wire.from;
        let staged = (self.messages.len(), self.job.after.len());
        match wire.payload {
            Payload::Message(message) => self.receive(from, message),
            Payload::Append(head, items) => {
                let stale = head.term < self.core.term();
                self.incoming = items.iter().map(|item| (item.id.index, item.body.clone())).collect();
                let entries = items.iter().map(|item| Entry { id: item.id, meta: item.body.meta() }).collect();
                self.input(|core, now| core.receive_append(now, from, head, entries));
                self.answer_stale(stale, true, staged);
            }
            Payload::Snapshot(term, snapshot) => self.receive_snapshot(from, term, snapshot),
            Payload::Installed(..) => {}
            Payload::Durable(reports) => {
                self.reports_under_way -= 1;
                self.report(reports);
            }
            Payload::Applied(index) => self.on_applied(index),
            Payload::Propose(body) => return self.propose(body),
        }
        Ok(())
    }

    fn receive(&mut self, from: NodeId, message: Message) {
        let staged = (self.messages.len(), self.job.after.len());
        let stale = message.term() < self.core.term();
        match message {
            Message::PreVote { campaign, .. } if self.ignores(campaign) => return,
            Message::PreVote { .. } => return self.answer_pre_vote(from, message),
            Message::Vote { term, transfer, .. } => {
                if !transfer && self.ignores(term) {
                    return;
                }
                if !self.options.check_quorum && term > self.core.term() {
                    self.clock = self.clock.after(ELECTION_US);
                }
            }
            // A late vote says nothing about who answers a leader.
            Message::PreVoteReply { campaign, granted, .. } if campaign == self.core.term().next() => {
                self.pre_votes.entry(from).or_insert(granted);
            }
            Message::VoteReply { .. } | Message::PreVoteReply { .. }
                if self.core.role() == Role::Leader && message.term() == self.core.term() =>
            {
                return;
            }
            Message::HeartbeatReply { .. } if !stale && self.core.role() == Role::Leader => self.lane_stands(from),
            _ => {}
        }
        let leads = matches!(message, Message::Heartbeat { .. } | Message::Commit { .. });
        self.input(|core, now| core.receive(now, from, message));
        self.answer_stale(stale, leads, staged);
    }

    /// Whether this node stands by its leader and does not even answer who asks for its vote.
    fn ignores(&self, term: Term) -> bool {
        if !self.options.check_quorum || term <= self.core.term() {
            return false;
        }
        // Asked for a term and a log that nobody could refuse, only loyalty says no.
        let (campaign, last) = (Term(u64::MAX), LogId { term: Term(u64::MAX), index: Index(u64::MAX) });
        let mut twin = self.core.clone();
        twin.receive(self.clock, NodeId(u64::MAX), Message::PreVote { term, campaign, last });
        let mut outputs = std::iter::from_fn(|| twin.poll());
        outputs
            .any(|output| matches!(output, Output::Send { message: Message::PreVoteReply { granted: false, .. }, .. }))
    }

    /// The question touches nothing, so a twin answers it: one at which, without check-quorum, an election timeout has passed.
    fn answer_pre_vote(&mut self, from: NodeId, question: Message) {
        let passed = if self.options.check_quorum { 0 } else { ELECTION_US };
        let mut twin = self.core.clone();
        twin.receive(self.clock.after(passed), from, question);
        while let Some(output) = twin.poll() {
            if let Output::Send { to, message } = output {
                let wire = self.wire(to, kind_of(&message), Payload::Message(message));
                self.messages.push(wire);
            }
        }
    }

    /// To a message of a passed term the transcripts' protocol answers only a leader, and only if it knows pre-vote or check-quorum.
    fn answer_stale(&mut self, stale: bool, leads: bool, staged: (usize, usize)) {
        if !stale {
            return;
        }
        if leads && (self.options.pre_vote || self.options.check_quorum) {
            self.messages[staged.0..].iter_mut().for_each(|wire| wire.kind = "MsgAppResp");
        } else {
            self.messages.truncate(staged.0);
            self.job.after.truncate(staged.1);
        }
    }

    /// A follower that answers heartbeats and acknowledges nothing may have lost what was sent: it is probed again at once.
    fn lane_stands(&mut self, from: NodeId) {
        let last = self.core.last_id().index;
        let Some(follower) = self.core.progress().find(|one| one.node == from) else { return };
        match follower.state {
            ProgressState::Probe => {
                self.lost_lanes.remove(&from);
                self.input(|core, now| core.reachable(now, from));
            }
            ProgressState::Replicate if follower.matched < last && follower.inflight_bytes > 0 => {
                self.input(|core, now| core.unreachable(now, from));
                self.input(|core, now| core.reachable(now, from));
            }
            ProgressState::Replicate | ProgressState::Snapshot => {}
        }
    }

    fn receive_snapshot(&mut self, from: NodeId, term: Term, snapshot: Snapshot) {
        if term < self.core.term() {
            return;
        }
        // Whoever sends a checkpoint leads.
        let staged = self.messages.len();
        self.input(|core, now| core.receive(now, from, Message::Heartbeat { term, commit: Index(0), round: 0 }));
        self.messages.truncate(staged);
        if snapshot.id.index <= self.core.commit() {
            let wire = self.wire(from, "MsgAppResp", Payload::Installed(term));
            self.job.after.push(wire);
        } else {
            self.install = Some((from, term, snapshot));
        }
    }

    /// A follower has what it was sent. Returns the probe that asks it, to be answered as part of the install.
    pub(crate) fn on_installed(&mut self, from: NodeId, term: Term) -> Option<Wire> {
        if self.core.role() != Role::Leader || term != self.core.term() {
            return None;
        }
        let state = self.core.progress().find(|one| one.node == from)?.state;
        let staged = self.messages.len();
        match state {
            ProgressState::Snapshot => {
                let base = self.core.base();
                self.input(|core, now| core.receive(now, from, Message::InstallReply { term, base, ok: true }));
            }
            ProgressState::Probe => self.input(|core, now| core.reachable(now, from)),
            ProgressState::Replicate => return None,
        }
        let probe = self.messages[staged..].iter().position(|wire| wire.to == from && wire.kind == "MsgApp")?;
        Some(self.messages.remove(staged + probe))
    }

    /// The answer that is about to leave for `to`, if any: for a probe that is answered at once.
    pub(crate) fn take_answer(&mut self, to: NodeId) -> Option<Wire> {
        if self.core.oldest_unsynced().is_some() {
            return None;
        }
        let answers = |wire: &Wire| wire.to == to && wire.kind == "MsgAppResp";
        if let Some(at) = self.job.after.iter().rposition(answers) {
            return Some(self.job.after.remove(at));
        }
        self.messages.iter().rposition(answers).map(|at| self.messages.remove(at))
    }
}
