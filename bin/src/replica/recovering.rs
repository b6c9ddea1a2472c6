//! A node that lost the end of its log: its word means nothing until it has everything again that it may have acknowledged.
//!
//! It takes entries and acknowledges them, because what it holds it holds; it neither votes nor stands, because what it once held decides
//! elections (Raft paper 5.4.1).

use graven_raft::{Role, Tick};

use super::effect::{Chore, Effect};
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
    /// Ends the time in which this node's word means nothing: it holds an entry of its leader's own term, committed, and everything that
    /// the leader once counted on it for. Whatever it acknowledged before it lost its log's end is there again, or never was
    /// committed (Raft paper 5.4.3).
    pub(super) fn maybe_recovered(&mut self, now: Tick) {
        let readable = self.log.readable();
        let is_back = |recovering: &Recovering| {
            readable.index >= recovering.until
                && readable.term == self.core.term().0
                && self.core.role() == Role::Follower
        };
        if self.recovering.as_ref().is_some_and(is_back) {
            self.recovering = None;
            self.core.abstain(now, self.installs.is_installing());
            self.chore(Chore::Recovered, After::Nothing);
            self.effects.push_back(Effect::Recovered);
        }
    }
}
