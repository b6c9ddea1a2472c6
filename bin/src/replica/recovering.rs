//! A node whose log is damaged.
//!
//! One that lost its end: its word means nothing until it has everything again that it may have acknowledged.
//! It takes entries and acknowledges them, because what it holds it holds; it neither votes nor stands, because what it once held decides
//! elections (Raft paper 5.4.1).
//!
//! One that knows of damage further back, and mends it while it runs, neither votes nor stands either, and hands the leadership over: its
//! disk is in doubt, and a leader that cannot read its own log cannot feed whoever is behind. It goes on to take and acknowledge what is
//! appended at its end: those bytes it has written and synced, and what is damaged is no less there for it.

use graven_raft::{AppendHead, Follower, Role, Tick};

use super::effect::{Chore, Effect, Now};
use super::planted::{Bug, is_planted};
use super::{After, Replica};

/// The highest of what is known to have been in a log that lost its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostEnd {
    /// The highest index.
    pub index: u64,
    /// The highest term.
    pub term: u64,
}

/// Until when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recovering {
    lost: LostEnd,
    /// The last entry that the leader of term `told` counted on, or knew to be committed, since this start.
    until: u64,
    /// The highest term whose leader said so.
    told: u64,
}

impl Recovering {
    pub(super) fn new(lost: LostEnd) -> Recovering {
        Recovering { lost, until: 0, told: 0 }
    }

    /// Whether a log that is committed up to an entry of this index and term, the leader's own, has everything again.
    fn is_over(&self, index: u64, term: u64) -> bool {
        // Of an earlier term than the leader's, what was committed is here, and the rest never will be. It may have been more than there is now.
        let whole = term > self.lost.term || index >= self.lost.index;
        let told = self.told == term || is_planted(Bug::RecoveredUntold);
        (told && whole && index >= self.until) || is_planted(Bug::RecoveredEarly)
    }

    /// A leader asks for what follows `head.prev`: it counted on everything up to there. What it lets go of, because it was told of the loss
    /// in an earlier life of this node, was committed by then or never counted.
    pub(super) fn counted_on(&mut self, head: &AppendHead) {
        if head.term.0 < self.told {
            return;
        }
        // What an earlier leader commits by counting this node, a later one holds: a majority of the others elected it (Raft paper 5.4.3).
        let before = if head.term.0 == self.told { self.until } else { 0 };
        self.until = before.max(head.prev.index.0).max(head.commit.0);
        self.told = head.term.0;
    }
}

impl Replica {
    /// Whether this node neither votes nor stands, for now.
    pub(super) fn abstains(&self) -> bool {
        // A leader that hands over because of damage gives its heir its vote: with another node down nobody else could.
        let damaged = self.damaged && self.core.role() != Role::Leader;
        let lost_end = self.recovering.is_some() && !is_planted(Bug::LostEndVotes);
        lost_end || self.installs.is_installing() || damaged
    }

    /// Takes in that damage in this node's log is known, or that none is any more. Told again while it lasts, a leader that nobody
    /// took the leadership from tries again.
    pub fn note_damage(&mut self, now: Now, damaged: bool) {
        self.damaged = damaged;
        self.core.abstain(now.tick, self.abstains());
        if damaged && self.core.role() == Role::Leader && self.core.transferring().is_none() {
            self.maybe_hand_over(now.tick);
        }
        self.settle(now);
    }

    /// Gives the leadership away. With nobody to take it this node leads on: a cluster without a leader is worse than one whose leader
    /// has a hole in its log, which harms none but a follower that is as far behind.
    fn maybe_hand_over(&mut self, now: Tick) {
        let membership = self.core.membership();
        let may_lead = |follower: &Follower| {
            follower.node != self.config.raft.id
                && membership.is_voter(follower.node)
                && now.since(follower.heard) < self.config.raft.election_us
        };
        let heir = self.core.progress().filter(may_lead).max_by_key(|follower| follower.matched);
        if let Some(heir) = heir.map(|follower| follower.node) {
            // Refused, or not done in time, it is tried again when damage is told of again.
            let _ = self.core.transfer(now, heir);
        }
    }

    /// Ends the time in which this node's word means nothing: it holds an entry of its leader's own term, committed, and everything that
    /// the leader once counted on it for, as the leader said itself: the log may have ended with entries of this term, and what is left of
    /// them fulfils the rest without a word from anybody. Whatever it acknowledged before it lost its log's end is there again, or never was
    /// committed (Raft paper 5.4.3).
    pub(super) fn maybe_recovered(&mut self, now: Tick) {
        let readable = self.log.readable();
        let follows = readable.term == self.core.term().0 && self.core.role() == Role::Follower;
        let is_back = |recovering: &Recovering| follows && recovering.is_over(readable.index, readable.term);
        if self.recovering.as_ref().is_some_and(is_back) {
            self.recovering = None;
            self.core.abstain(now, self.abstains());
            self.chore(Chore::Recovered, After::Nothing);
            self.effects.push_back(Effect::Recovered);
        }
    }
}

#[cfg(test)]
mod tests {
    use graven_raft::{Index, LogId, Term};

    use super::*;

    const LOST: LostEnd = LostEnd { index: 110, term: 7 };

    fn head(term: u64, prev: u64, commit: u64) -> AppendHead {
        AppendHead {
            term: Term(term),
            prev: LogId { term: Term(term), index: Index(prev) },
            prev_chain: 0,
            commit: Index(commit),
            request: 1,
            epoch: 1,
        }
    }

    #[test]
    fn nothing_is_over_before_the_leader_of_this_term_spoke() {
        let mut recovering = Recovering::new(LOST);
        assert!(!recovering.is_over(110, 7));
        recovering.counted_on(&head(7, 105, 100));
        assert!(recovering.is_over(110, 7) && !recovering.is_over(109, 7), "in its own term it counted on all of that");
        assert!(!recovering.is_over(120, 8), "another leader has not spoken yet");
    }

    #[test]
    fn a_later_leader_need_not_bring_as_much_as_was_here() {
        let mut recovering = Recovering::new(LOST);
        recovering.counted_on(&head(8, 105, 100));
        assert!(recovering.is_over(109, 8));
    }

    #[test]
    fn what_an_earlier_leader_counted_on_does_not_matter_to_a_later_one() {
        let mut recovering = Recovering::new(LOST);
        for told in [head(7, 112, 100), head(8, 105, 100), head(7, 120, 100)] {
            recovering.counted_on(&told);
        }
        assert!(recovering.is_over(106, 8), "112 and 120 may never come");
    }

    #[test]
    fn what_the_leader_counted_on_or_has_committed_must_be_here() {
        for told in [head(8, 112, 100), head(8, 105, 112)] {
            let mut recovering = Recovering::new(LOST);
            recovering.counted_on(&told);
            assert!(!recovering.is_over(111, 8) && recovering.is_over(112, 8));
        }
    }
}
