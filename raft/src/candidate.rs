//! Elections: pre-vote, votes, and who listens to them.
//!
//! A node first asks whether it could win (thesis 9.6), so that one that was cut off raises nobody's term. A voter that
//! heard its leader within the minimum election timeout refuses both questions without touching its term (thesis 4.2.3),
//! unless the leader itself asked for the election (thesis 3.10). A leader that lost its quorum falls silent, so that
//! a bridge node's timer runs out and the connected majority is heard (thesis 6.2).

use std::collections::BTreeSet;

use crate::core::Core;
use crate::message::Message;
use crate::planted::{Bug, is_planted};
use crate::quorum;
use crate::types::{LogId, NodeId, Role, Term};

/// Who answered yes, and who no, in the election under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ballot {
    pub(crate) granted: BTreeSet<NodeId>,
    refused: BTreeSet<NodeId>,
}

impl Ballot {
    fn open(&mut self) {
        self.granted.clear();
        self.refused.clear();
    }

    /// Notes an answer; a yes stands, whatever is heard later (messages may be doubled and reordered).
    fn note(&mut self, from: NodeId, granted: bool) {
        let answers = if granted { &mut self.granted } else { &mut self.refused };
        answers.insert(from);
    }

    fn answer(&self, node: NodeId) -> Option<bool> {
        if self.granted.contains(&node) { Some(true) } else { self.refused.contains(&node).then_some(false) }
    }
}

/// Whether an election is held at the leader's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Timeout,
    Transfer,
}

impl Core {
    /// Whether this node may stand now: a voter, restored and applied to what was known to be committed, whose disk answers and
    /// whose last word about term and vote is durable.
    ///
    /// The last one makes the timer run from the moment of persistence: a sync slower than the timeout would otherwise
    /// start the next election before the first vote request left.
    pub(crate) fn may_stand(&self) -> bool {
        self.votes()
            && self.applied >= self.must_apply
            && self.is_needed()
            && !self.disk_stalled()
            && !self.hard_state_pending()
    }

    /// Whether this node's say in an election means anything.
    fn votes(&self) -> bool {
        self.config.may_vote && !self.abstaining
    }

    /// Whether an election may depend on this node: it votes by the membership in force, or by one before it that is not known to be
    /// over. One whose log alone holds the entry that removes it must be able to win with it, or nobody could: the others
    /// still need its vote, which it cannot give to their shorter logs (thesis 4.2.2).
    fn is_needed(&self) -> bool {
        self.log.memberships().iter().any(|(_, membership)| membership.is_voter(self.config.id))
    }

    /// Asks whether it could win, in the term after its own (thesis 9.6).
    pub(crate) fn become_pre_candidate(&mut self) {
        if is_planted(Bug::PreVoteSkipped) {
            return self.become_candidate(Cause::Timeout);
        }
        self.role = Role::PreCandidate;
        self.leader = None;
        self.restart_election_timer();
        self.ballot.open();
        self.ballot.note(self.config.id, true);
        self.tell_role();
        let (term, last) = (self.hard.term, self.log.last_id());
        for to in self.other_voters() {
            self.send(to, Message::PreVote { term, campaign: term.next(), last });
        }
        self.maybe_win_pre_vote();
    }

    /// Stands in a new term (Raft paper 5.2). Its own vote counts, and its requests leave, once term and vote are durable.
    pub(crate) fn become_candidate(&mut self, cause: Cause) {
        self.role = Role::Candidate;
        self.leader = None;
        self.ballot.open();
        self.enter_term(self.hard.term.next(), Some(self.config.id));
        self.restart_election_timer();
        self.tell_role();
        let (term, last) = (self.hard.term, self.log.last_id());
        let transfer = cause == Cause::Transfer;
        for to in self.other_voters() {
            if is_planted(Bug::VoteRequestBeforePersist) {
                self.send(to, Message::Vote { term, last, transfer });
                continue;
            }
            self.send_after_persist(to, Message::Vote { term, last, transfer });
        }
    }

    fn other_voters(&self) -> Vec<NodeId> {
        let members = self.log.membership();
        let others = members.members().into_iter();
        others.filter(|&node| node != self.config.id && members.is_voter(node)).collect()
    }

    /// Term and vote became durable: a candidate's own vote counts from here.
    pub(crate) fn on_own_vote_durable(&mut self) {
        if self.role == Role::Candidate {
            self.ballot.note(self.config.id, true);
            self.maybe_win();
        }
    }

    pub(crate) fn on_pre_vote(&mut self, from: NodeId, campaign: Term, last: LogId) {
        let granted = self.votes() && !self.is_loyal() && campaign > self.hard.term && self.is_complete(last);
        self.send(from, Message::PreVoteReply { term: self.hard.term, campaign, granted });
    }

    /// Gives or refuses a vote (Raft paper 5.2, 5.4.1).
    pub(crate) fn on_vote(&mut self, from: NodeId, term: Term, last: LogId, transfer: bool) {
        if term < self.hard.term || (self.is_loyal() && !transfer) {
            return self.send(from, Message::VoteReply { term: self.hard.term, granted: false });
        }
        let worthy = self.votes() && self.is_complete(last);
        if term > self.hard.term {
            self.become_follower(term, worthy.then_some(from), None);
        } else if worthy && (self.hard.vote.is_none() || is_planted(Bug::VoteTwice)) && self.leader.is_none() {
            self.hard.vote = Some(from);
            self.persist_hard_state();
        }
        if worthy && self.hard.vote == Some(from) {
            self.restart_election_timer();
            if is_planted(Bug::VoteBeforePersist) {
                return self.send(from, Message::VoteReply { term, granted: true });
            }
            // Power fails between this and the sync: the vote is forgotten, and was never heard of.
            self.send_after_persist(from, Message::VoteReply { term, granted: true });
        } else {
            self.send(from, Message::VoteReply { term, granted: false });
        }
    }

    /// Whether a log that ends with `last` holds all that this one does, as far as it may be committed (Raft paper 5.4.1).
    fn is_complete(&self, last: LogId) -> bool {
        last >= self.log.last_id() || is_planted(Bug::VoteForShorterLog)
    }

    /// Whether this node stands by its leader: it heard it within the minimum election timeout, or it is the leader and
    /// heard a quorum (thesis 4.2.3, 6.2).
    fn is_loyal(&self) -> bool {
        match self.role {
            Role::Leader => !self.quorum_lost(),
            _ if is_planted(Bug::LoyaltyOff) => false,
            _ => self.heard_leader.is_some_and(|heard| self.now.since(heard) < self.config.election_us),
        }
    }

    pub(crate) fn on_pre_vote_reply(&mut self, from: NodeId, campaign: Term, granted: bool) {
        // A refusal decides nothing: it may answer this node's last question, asked about the same term when its leader was alive.
        if self.role == Role::PreCandidate && granted && campaign == self.hard.term.next() {
            self.ballot.note(from, true);
            self.maybe_win_pre_vote();
        }
    }

    fn maybe_win_pre_vote(&mut self) {
        if self.verdict() == Some(quorum::Verdict::Won) {
            self.become_candidate(Cause::Timeout);
        }
    }

    pub(crate) fn on_vote_reply(&mut self, from: NodeId, granted: bool) {
        if self.role == Role::Candidate {
            self.ballot.note(from, granted);
            self.maybe_win();
        }
    }

    fn maybe_win(&mut self) {
        // Its own vote is durable before it leads: the quorum is one of votes that survive any crash.
        let own = self.ballot.granted.contains(&self.config.id);
        match self.verdict() {
            Some(quorum::Verdict::Won) if own => self.become_leader(),
            // A refusal in this term is final, so the election is over. Term and vote stay.
            Some(quorum::Verdict::Lost) => self.become_follower(self.hard.term, None, None),
            Some(_) | None => {}
        }
    }

    fn verdict(&self) -> Option<quorum::Verdict> {
        quorum::verdict(self.log.membership(), |node| self.ballot.answer(node))
    }
}
