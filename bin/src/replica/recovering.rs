//! A node whose log is damaged.
//!
//! One that lost its end: its word means nothing until it has everything again that it may have acknowledged.
//! It takes entries and acknowledges them, because what it holds it holds; it neither votes nor stands, because what it once held decides
//! elections (Raft paper 5.4.1).
//!
//! One that knows of damage further back, and mends it while it runs, neither votes nor stands either, and hands the leadership over: its
//! disk is in doubt, and a leader that cannot read its own log cannot feed whoever is behind. It goes on to take and acknowledge what is
//! appended at its end: those bytes it has written and synced, and what is damaged is no less there for it.

use graven_raft::{Follower, Role, Tick};

use super::effect::{Chore, Effect, Now};
use super::planted::{Bug, is_planted};
use super::{After, Replica};

/// Until when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recovering {
    /// The last entry that it must have again.
    until: u64,
}

impl Recovering {
    /// `until` is the highest entry that is known to have been here.
    pub(super) fn new(until: u64) -> Recovering {
        Recovering { until }
    }

    /// A leader asks for what follows entry `prev`: it counted on everything up to there.
    pub(super) fn counted_on(&mut self, prev: u64) {
        self.until = self.until.max(prev);
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
    /// the leader once counted on it for. Whatever it acknowledged before it lost its log's end is there again, or never was
    /// committed (Raft paper 5.4.3).
    pub(super) fn maybe_recovered(&mut self, now: Tick) {
        let readable = self.log.readable();
        let is_back = |recovering: &Recovering| {
            (readable.index >= recovering.until || is_planted(Bug::RecoveredEarly))
                && readable.term == self.core.term().0
                && self.core.role() == Role::Follower
        };
        if self.recovering.as_ref().is_some_and(is_back) {
            self.recovering = None;
            self.core.abstain(now, self.abstains());
            self.chore(Chore::Recovered, After::Nothing);
            self.effects.push_back(Effect::Recovered);
        }
    }
}
